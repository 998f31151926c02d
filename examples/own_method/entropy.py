"""A method of one's own: the discriminator tells domains by entropy maps.

Vu et al., "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation" (CVPR 2019), its
adversarial part. To train with it from a config, see docs/extending.md.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EntropyMaps:
    """Binary domain labels on the weighted self-information ``-p log p / log K`` of each class.

    Attributes:
      temperature: T, divides the logits before the softmax.
    """

    temperature: float = 1.0

    def num_outputs(self, num_classes: int) -> int:
        del num_classes
        return 2

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        del features
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / self.temperature)
        return -jnp.exp(log_p) * log_p / jnp.log(logits.shape[-1])

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        return jnp.ones((*logits.shape[:-1], 1), jnp.float32)
