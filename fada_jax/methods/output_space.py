"""Output-space alignment: D tells the domain of the predicted class probabilities.

Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation" (AdaptSegNet, CVPR 2018), at a single
level and with the discriminator that the other methods have, so that only what it reads differs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class OutputSpace:
    """Binary domain labels [1, 0] and [0, 1] on ``softmax(z / T)``.

    Attributes:
      temperature: T, divides the logits before the softmax.
    """

    temperature: float = 1.8

    def num_outputs(self, num_classes: int) -> int:
        del num_classes
        return 2

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        del features
        return jax.nn.softmax(logits.astype(jnp.float32) / self.temperature)

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        return jnp.ones((*logits.shape[:-1], 1), jnp.float32)
