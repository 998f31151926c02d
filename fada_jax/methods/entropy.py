"""Entropy alignment: D tells the domain of the weighted self-information of the prediction.

Vu et al., "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation" (CVPR 2019), at a
single level and with the discriminator that the other methods have, so that only what it reads differs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fada_jax.methods.adversarial import Adversarial


@dataclasses.dataclass(frozen=True)
class Entropy(Adversarial):
    """Binary domain labels on ``-p log p / log K`` with ``p = softmax(z / T)``, which sums to the entropy, 0 to 1."""

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        del features
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / self.temperature)
        return -jnp.exp(log_p) * log_p / jnp.log(float(logits.shape[-1]))
