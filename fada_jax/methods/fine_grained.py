"""FADA: a discriminator of features over 2K channels, with soft or hard class knowledge (sections 3.2 and 3.3)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """FADA with soft labels (equation 8).

    Attributes:
      temperature: T, divides the logits before the softmax.
      clip: entries are cut at this value and not renormalised (confidence clipping, table 6); 1 keeps all.
    """

    temperature: float = 1.8
    clip: float = 0.9

    def num_outputs(self, num_classes: int) -> int:
        return 2 * num_classes

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        del logits
        return features

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        return jnp.minimum(_probabilities(logits, self.temperature), self.clip)


@dataclasses.dataclass(frozen=True)
class HardLabels:
    """FADA with hard labels (equation 7).

    Attributes:
      temperature: T, divides the logits before the softmax.
      threshold: pixels below this confidence are ignored.
    """

    temperature: float = 1.8
    threshold: float = 0.9

    def num_outputs(self, num_classes: int) -> int:
        return 2 * num_classes

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        del logits
        return features

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        p = _probabilities(logits, self.temperature)
        one_hot = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=jnp.float32)
        return one_hot * (jnp.max(p, axis=-1, keepdims=True) >= self.threshold)


def _probabilities(logits: jax.Array, temperature: float) -> jax.Array:
    return jax.nn.softmax(jax.lax.stop_gradient(logits.astype(jnp.float32)) / temperature)
