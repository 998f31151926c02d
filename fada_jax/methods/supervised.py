"""G trained on labels alone: source only, the oracle, the control without adaptation, and a student (equation 3)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from fada_jax.methods.interface import Batch, Metrics, States, TrainingSpec
from fada_jax.training import steps
from fada_jax.training.states import create_generator


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Cross entropy on the batch's labels.

    Attributes:
      temperature: T, divides the logits; the control has the adaptation stage's.
    """

    temperature: float = 1.0
    streams: ClassVar[tuple[str, ...]] = ("source",)

    def init(self, rng: jax.Array, spec: TrainingSpec) -> States:
        g_key, _ = jax.random.split(rng)
        return {"generator": create_generator(spec.model, spec.generator_optimizer, g_key)}

    def step(
        self, states: States, batch: Batch, rng: jax.Array, progress: jax.Array, spec: TrainingSpec
    ) -> tuple[States, Metrics]:
        del rng, progress
        generator, metrics = steps.supervised_step(
            states["generator"],
            batch["source"],
            preprocessing=spec.preprocessing,
            temperature=self.temperature,
            accumulate_steps=spec.accumulate_steps,
            block_rows=spec.block_rows,
            reduce_dtype=spec.reduce_dtype,
        )
        return {"generator": generator}, metrics
