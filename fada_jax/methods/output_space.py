"""Output-space alignment: D tells the domain of the predicted class probabilities.

Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation" (AdaptSegNet, CVPR 2018), at a single
level and with the discriminator that the other methods have, so that only what it reads differs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fada_jax.methods.adversarial import Adversarial


@dataclasses.dataclass(frozen=True)
class OutputSpace(Adversarial):
    """Binary domain labels on ``softmax(z / T)``."""

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        del features
        return jax.nn.softmax(logits.astype(jnp.float32) / self.temperature)
