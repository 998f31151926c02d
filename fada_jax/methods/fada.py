"""FADA: a discriminator of features over 2K channels, with soft or hard class knowledge (sections 3.2 and 3.3)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fada_jax.methods.adversarial import Adversarial


@dataclasses.dataclass(frozen=True)
class _FineGrained(Adversarial):
    """What soft and hard labels share."""

    def num_outputs(self, num_classes: int) -> int:
        return 2 * num_classes

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """``softmax(z / T)`` of the classifier, gradient stopped."""
        return jax.nn.softmax(jax.lax.stop_gradient(logits.astype(jnp.float32)) / self.temperature)


@dataclasses.dataclass(frozen=True)
class SoftLabels(_FineGrained):
    """FADA with soft labels (equation 8).

    Attributes:
      clip: entries are cut at this value and not renormalised (confidence clipping, table 6); 1 keeps all.
    """

    clip: float = 0.9

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        return jnp.minimum(self.probabilities(logits), self.clip)


@dataclasses.dataclass(frozen=True)
class HardLabels(_FineGrained):
    """FADA with hard labels (equation 7).

    Attributes:
      threshold: pixels below this confidence are ignored.
    """

    threshold: float = 0.9

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        p = self.probabilities(logits)
        one_hot = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=jnp.float32)
        return one_hot * (jnp.max(p, axis=-1, keepdims=True) >= self.threshold)
