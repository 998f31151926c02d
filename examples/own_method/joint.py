"""A method of one's own: the discriminator reads features and class probabilities side by side.

Where it differs from the paper: there, D reads features alone and the probabilities only weigh its labels. To train
with it from a config, see docs/extending.md.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class FeaturesAndClasses:
    """Binary domain labels on ``[f; softmax(z / T)]``.

    Attributes:
      temperature: T, divides the logits before the softmax.
    """

    temperature: float = 1.8

    def num_outputs(self, num_classes: int) -> int:
        del num_classes
        return 2

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        p = jax.nn.softmax(logits.astype(jnp.float32) / self.temperature)
        return jnp.concatenate([features, p.astype(features.dtype)], axis=-1)

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        return jnp.ones((*logits.shape[:-1], 1), jnp.float32)
