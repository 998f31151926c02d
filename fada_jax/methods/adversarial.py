"""What FADA and its relatives share: one discriminator D, and the alternating step over ``[a; 0]`` and ``[0; a]``.

They differ in what D reads and in the class knowledge ``a`` that a pixel gives it (equations 4 to 8).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fada_jax.methods.interface import Batch, Metrics, States, TrainingSpec
from fada_jax.models import compute_dtype
from fada_jax.training import steps
from fada_jax.training.states import TrainState, create_discriminator, create_generator, output_shapes


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """Global alignment of features, unless a subclass says otherwise.

    Attributes:
      temperature: T, divides the classifier's logits, in L_seg too.
      lambda_adv: weight of L_adv.
    """

    temperature: float = 1.8
    lambda_adv: float = 0.001
    streams: ClassVar[tuple[str, ...]] = ("source", "target")

    def num_outputs(self, num_classes: int) -> int:
        """Channels of D: the first half stands for the source, the second for the target."""
        del num_classes
        return 2

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        """What D reads, [N, h, w, C], from logits [N, h, w, K] and features; L_adv reaches G through it."""
        del logits
        return features

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        """Class knowledge ``a`` of each pixel, gradient stopped; all zeros where a pixel shall not count.

        Args:
          logits: float32 [N, H, W, K].

        Returns:
          float32 [N, H, W, num_outputs(K) / 2].
        """
        return jnp.ones((*logits.shape[:-1], 1), jnp.float32)

    def discriminator_logits(self, discriminator: TrainState, logits: jax.Array, features: jax.Array) -> jax.Array:
        """What D answers at feature resolution, float32 [N, h, w, outputs]."""
        variables = {"params": discriminator.params}
        return discriminator.apply_fn(variables, self.discriminator_input(logits, features))

    def init(self, rng: jax.Array, spec: TrainingSpec) -> States:
        g_key, d_key = jax.random.split(rng)
        generator = create_generator(spec.model, spec.generator_optimizer, g_key)
        d_input = jax.eval_shape(self.discriminator_input, *output_shapes(generator))
        discriminator = create_discriminator(
            self.num_outputs(spec.model.num_classes),
            d_input.shape[-1],
            spec.discriminator_optimizer,
            d_key,
            widths=spec.discriminator_widths,
            dtype=compute_dtype(spec.model.dtype),
        )
        return {"generator": generator, "discriminator": discriminator}

    def step(
        self, states: States, batch: Batch, rng: jax.Array, progress: jax.Array, spec: TrainingSpec
    ) -> tuple[States, Metrics]:
        del rng, progress
        generator, discriminator, metrics = steps.adversarial_step(
            states["generator"],
            states["discriminator"],
            batch["source"],
            batch["target"],
            preprocessing=spec.preprocessing,
            method=self,
            lambda_adv=self.lambda_adv,
            accumulate_steps=spec.accumulate_steps,
            block_rows=spec.block_rows,
            reduce_dtype=spec.reduce_dtype,
        )
        return {"generator": generator, "discriminator": discriminator}, metrics
