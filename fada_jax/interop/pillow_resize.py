"""Pillow's bicubic resize in JAX, equal to the installed Pillow's in every bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import PIL

# Pillow keeps the weights of a resize as integers of this many fractional bits.
_BITS = 22


def pillow_weights(size_in: Any, size_out: int) -> jax.Array:
    """Pillow's bicubic weights with antialiasing, in units of 2**-22 as Pillow rounds them, float64 [out, in].

    Args:
      size_in: pixels of the image; may be symbolic.
      size_out: pixels wanted.
    """
    scale = jnp.asarray(size_in, jnp.float64) / size_out
    stretch = jnp.maximum(scale, 1.0)
    center = (jnp.arange(size_out) + 0.5) * scale
    first = jnp.maximum(jnp.trunc(center - 2.0 * stretch + 0.5), 0.0)
    last = jnp.minimum(jnp.trunc(center + 2.0 * stretch + 0.5), jnp.asarray(size_in, jnp.float64))
    x = jnp.arange(size_in, dtype=jnp.float64)
    t = jnp.abs((x - center[:, None] + 0.5) * (1.0 / stretch))
    # Keys' cubic with a = -0.5.
    weights = jnp.where(t < 1, (1.5 * t - 2.5) * t * t + 1, jnp.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0))
    weights = jnp.where((x >= first[:, None]) & (x < last[:, None]), weights, 0.0)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return jnp.trunc(weights * 2**_BITS + jnp.where(weights < 0, -0.5, 0.5))


def _begins_with_rows(height: jax.Array, width: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Whether Pillow resizes along the height first; rounding in between makes the order show."""
    if int(PIL.__version__.partition(".")[0]) < 13:
        return (height > 100 * width) & (height > size[1])
    return height - size[1] > 2 * jnp.maximum(width - size[0], 0)


def resize_like_pillow(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bicubic resize with antialiasing as Pillow does it: two passes, rounded to uint8 after each.

    Needs float64 (``jax.enable_x64``), in which the products of pixels and integer weights are exact.

    Args:
      images: uint8 [N, H, W, 3]; N, H and W may be symbolic.
      size: (width, height).
    """
    height, width = images.shape[1:3]

    def resize(x: jax.Array, axis: int) -> jax.Array:
        equation = {1: "oh,nhwc->nowc", 2: "ow,nhwc->nhoc"}[axis]
        weights = pillow_weights(x.shape[axis], size[2 - axis])
        x = jnp.einsum(equation, weights, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.clip(jnp.floor((x + 2 ** (_BITS - 1)) * 2.0**-_BITS), 0, 255)

    rows_first = _begins_with_rows(jnp.asarray(height), jnp.asarray(width), size)
    x = images.astype(jnp.float64)
    x = jax.lax.cond(rows_first, lambda x: resize(resize(x, 1), 2), lambda x: resize(resize(x, 2), 1), x)
    return x.astype(jnp.uint8)
