"""The work of a benchmark: networks, images and views; states and batches of that size."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.methods import SoftLabels
from fada_jax.models import ComputeType, ModelSpec
from fada_jax.training import optimizers
from fada_jax.training import states as train_states

METHOD = SoftLabels()


@dataclasses.dataclass(frozen=True)
class Work:
    """The size of a benchmark.

    Attributes:
      backbone, classes, dtype, remat: of the network; released widths, frozen batch norm.
      source, target: (width, height) of the images of a domain; ``target`` is also that of inference.
      batch: images of each domain, or of inference.
      block_rows: see ``pixels.pixel_sums``.
      scales, flip: views of inference.
    """

    backbone: str
    classes: int
    dtype: ComputeType
    remat: bool
    source: tuple[int, int]
    target: tuple[int, int]
    batch: int
    block_rows: int
    scales: tuple[float, ...]
    flip: bool

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.backbone, self.classes, dtype=self.dtype, remat=self.remat)


def create_states(work: Work) -> tuple[train_states.TrainState, train_states.TrainState]:
    """Random G and D with the released optimizers; traceable."""
    g_spec = optimizers.OptimizerSpec()
    d_spec = optimizers.OptimizerSpec("adam", 1e-4, weight_decay=0.0, classifier_multiplier=1.0)
    generator = train_states.create_generator(work.spec, g_spec, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    features = jax.eval_shape(generator.apply_fn, generator.variables, image)[1].shape[-1]
    outputs = METHOD.num_outputs(work.classes)
    return generator, train_states.create_discriminator(outputs, features, d_spec, jax.random.key(1), dtype=work.dtype)


def batch_shapes(work: Work) -> tuple[dict, dict]:
    """Shapes of a source and of a target batch."""

    def images(size: tuple[int, int], *channels: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((work.batch, size[1], size[0], *channels), jnp.uint8)

    return {"image": images(work.source, 3), "label": images(work.source)}, {"image": images(work.target, 3)}


def inference_shapes(work: Work) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Shapes of the variables and of the images."""
    variables = jax.eval_shape(lambda: create_states(work)[0].variables)
    return variables, jax.ShapeDtypeStruct((work.batch, work.target[1], work.target[0], 3), jnp.uint8)


def random_batch(shapes: Any, classes: int) -> Any:
    """Random pixels and labels of ``shapes``, NumPy."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, classes if name == "label" else 256, x.shape, dtype=np.uint8)
        for name, x in shapes.items()
    }
