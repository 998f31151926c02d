"""A method of one's own: the discriminator reads features and class probabilities side by side.

Where it differs from the paper: there, D reads features alone and the probabilities only weigh its labels. To train
with it from a config, see docs/extending.md.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fada_jax.methods import OutputSpace


@dataclasses.dataclass(frozen=True)
class FeaturesAndClasses(OutputSpace):
    """Binary domain labels on ``[f; softmax(z / T)]``."""

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        p = super().discriminator_input(logits, features)
        return jnp.concatenate([features, p.astype(features.dtype)], axis=-1)
