"""Losses of one FADA iteration, all in float32, as pure functions of logits.

``z`` are classifier logits, ``P`` the discriminator's softmax over its channels: [0, K) source, [K, 2K) target
(section 3.2). Every mean is over pixels; the sums behind them add up over blocks of rows, micro-batches and devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fada_jax.classes import IGNORE


def segmentation_sum(logits: jax.Array, labels: jax.Array, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Sum of the cross entropy of ``softmax(logits / temperature)`` over labelled pixels, and their number (int32).

    Args:
      logits: float32 [N, H, W, K].
      labels: integer [N, H, W]; ``IGNORE`` does not count.
    """
    valid = labels != IGNORE
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    one_hot = jnp.arange(logits.shape[-1]) == labels[..., None].astype(jnp.int32)
    picked = jnp.sum(jnp.where(one_hot & valid[..., None], log_p, 0.0))
    # float32 cannot count beyond 2**24 pixels one by one: 20 images of 1280x720.
    return -picked, jnp.sum(valid, dtype=jnp.int32)


def segmentation_loss(logits: jax.Array, labels: jax.Array, temperature: float = 1.0) -> jax.Array:
    """L_seg (equation 3): mean of ``segmentation_sum``; 0 with zero gradient when no pixel is labelled.

    The released code divides by the temperature here too in the adversarial stage.
    """
    return mean(*segmentation_sum(logits, labels, temperature))


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """``total / count``, and 0 where nothing was counted."""
    return total / jnp.maximum(count, 1).astype(jnp.float32)


def domain_sums(d_logits: jax.Array, knowledge: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over pixels of ``-sum_k a_k log P(d, c = k | f)`` (equations 1, 4, 5, 6), and the pixels that count.

    Pixels without knowledge (hard labels below the threshold) do not count.

    Args:
      d_logits: discriminator logits, float32 [N, H, W, 2K].
      knowledge: class knowledge a of a method (see ``fada_jax.methods``), float32 [N, H, W, K].

    Returns:
      float32 [2], one sum for d = source and one for d = target; and their number of pixels, int32.
    """
    k = knowledge.shape[-1]
    if d_logits.shape[-1] != 2 * k:
        raise ValueError(f"discriminator has {d_logits.shape[-1]} outputs, knowledge of {k} classes needs {2 * k}")
    log_p = jax.nn.log_softmax(d_logits.astype(jnp.float32))
    sums = [-jnp.sum(knowledge * log_p[..., d * k : (d + 1) * k]) for d in (0, 1)]
    return jnp.stack(sums), jnp.sum(jnp.any(knowledge > 0, axis=-1), dtype=jnp.int32)


def domain_loss(d_logits: jax.Array, knowledge: jax.Array, domain: int) -> jax.Array:
    """Mean of ``domain_sums`` for one domain, 0 source or 1 target.

    It serves L_adv (target features, domain 0) and both terms of L_D (each domain's own).
    """
    sums, count = domain_sums(d_logits, knowledge)
    return mean(sums[domain], count)
