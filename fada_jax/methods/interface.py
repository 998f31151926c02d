"""What a method is: its states and its pure step, over networks that the config chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np

from fada_jax.models import ModelSpec
from fada_jax.preprocessing import Preprocessing
from fada_jax.training.optimizers import OptimizerSpec
from fada_jax.training.reduction import ReduceType

# ``{"source": {"image": uint8 [N, H, W, 3], "label": uint8 [N, H, W]}, "target": {"image": ...}}``
Batch = Mapping[str, Mapping[str, jax.Array]]
Metrics = dict[str, jax.Array]
# Pytrees by name. ``generator`` is the TrainState of G, which is tested; others may be discriminators or a teacher.
States = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
    """What every method is given; hashable.

    Attributes:
      model: shapes of G.
      preprocessing: input normalisation.
      generator_optimizer, discriminator_optimizer: of G, and of each discriminator.
      discriminator_widths, patch_width: hidden channels of FADA's discriminator, and the first ones of a patch one.
      accumulate_steps: micro-batches that a batch is worked through in.
      block_rows: rows of full-resolution pixels that a loss holds at a time, see ``training.pixels``; 0: all.
      reduce_dtype: of gradients while devices sum them.
    """

    model: ModelSpec
    preprocessing: Preprocessing = Preprocessing()
    generator_optimizer: OptimizerSpec = OptimizerSpec()
    discriminator_optimizer: OptimizerSpec = OptimizerSpec()
    discriminator_widths: tuple[int, ...] = (256, 128)
    patch_width: int = 64
    accumulate_steps: int = 1
    block_rows: int = 0
    reduce_dtype: ReduceType = "float32"


class Method(Protocol):
    """A frozen, hashable dataclass; both functions are pure and traceable."""

    # Streams of its batch: ``source`` with labels, ``target`` without.
    streams: ClassVar[tuple[str, ...]]

    def init(self, rng: jax.Array, spec: TrainingSpec) -> States:
        """States before the first step."""

    def step(
        self, states: States, batch: Batch, rng: jax.Array, progress: jax.Array, spec: TrainingSpec
    ) -> tuple[States, Metrics]:
        """One iteration.

        Args:
          states: of ``init``.
          batch: of the streams.
          rng: key of this step, folded from the seed and the number of the step.
          progress: share of the steps that are done, float32 from 0 to 1.
          spec: as given to ``init``.

        Returns:
          the updated states, and scalars to log.
        """


@runtime_checkable
class Prepared(Protocol):
    """A method that wants to know something about the source before its first step.

    ``init`` puts zeros of the right shapes into ``states["statistics"]``, float32 by name, and a stage that begins puts
    what ``prepare`` returns in their place. They are stored with the states: a run that goes on has them from there.
    """

    def prepare(self, labels: Iterator[np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
        """Statistics of labels uint8 [H, W], 255 ignored, of images of the source without augmentation."""
