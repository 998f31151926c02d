"""Sums over the pixels of upsampled maps, a block of rows at a time.

FADA takes its losses at the size of the image, where K or 2K channels a pixel are the largest arrays of a step. Here
upsampling, softmax and loss see a block of rows, and the gradient with respect to the small maps is taken in the same
pass, so that no map of full size is ever held. Up to rounding the result is that of upsampling first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.models.layers import interpolation_matrix

# (maps, fixed, pixels, inside) -> (sums, counts); see ``pixel_sums``.
PixelFunction = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, jax.Array]]


def pixel_sums(
    fn: PixelFunction,
    maps: Any,
    fixed: Any,
    pixels: Any,
    size: tuple[int, int],
    block_rows: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Sums of ``fn`` over all pixels of bilinearly upsampled maps (``align_corners=True``).

    Args:
      fn: takes blocks of rows of ``maps`` and ``fixed`` at full size, float32 [N, R, W, C], of ``pixels``
        [N, R, W, ...] and ``inside`` bool [R, 1] (False: rows that only fill up the last block). Returns ``sums``
        float32 [n] and ``counts`` int32 [] or [m], both additive over pixels.
      maps: pytree of [N, h, w, C]; the sums are differentiable with respect to these.
      fixed: pytree of [N, h, w, C], taken as constants.
      pixels: pytree of [N, H, W, ...] at full size, constants.
      size: (H, W).
      block_rows: rows of a block; 0: all of them at once.

    Returns:
      ``sums`` and ``counts`` over all pixels.
    """
    maps, fixed = jax.tree.map(lambda x: x.astype(jnp.float32), (maps, fixed))
    return _pixel_sums(fn, maps, jax.lax.stop_gradient(fixed), pixels, tuple(size), block_rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def _pixel_sums(fn: PixelFunction, maps: Any, fixed: Any, pixels: Any, size: Any, block_rows: int) -> Any:
    return _over_blocks(lambda block, maps: block(maps), fn, maps, fixed, pixels, size, block_rows)


def _forward(fn: PixelFunction, maps: Any, fixed: Any, pixels: Any, size: Any, block_rows: int) -> Any:
    def with_jacobian(block: Callable[[Any], Any], maps: Any) -> Any:
        sums, pullback, counts = jax.vjp(block, maps, has_aux=True)
        return sums, counts, jax.vmap(pullback)(jnp.eye(len(sums), dtype=jnp.float32))[0]

    sums, counts, jacobian = _over_blocks(with_jacobian, fn, maps, fixed, pixels, size, block_rows)
    return (sums, counts), jacobian


def _backward(fn: PixelFunction, size: Any, block_rows: int, jacobian: Any, cotangents: Any) -> Any:
    d_sums, _ = cotangents
    return jax.tree.map(lambda j: jnp.tensordot(d_sums, j, 1), jacobian), None, None


_pixel_sums.defvjp(_forward, _backward)


def _row_blocks(low: int, high: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of ``rows`` output rows: where their input rows begin [B], weights [B, rows, span], inside [B, rows]."""
    count = -(-high // rows)
    padded = np.zeros((count * rows, low), np.float32)
    padded[:high] = interpolation_matrix(low, high)
    weights = padded.reshape(count, rows, low)
    used = np.any(weights, axis=1)
    first, last = used.argmax(axis=1), low - 1 - used[:, ::-1].argmax(axis=1)
    span = int((last - first).max()) + 1
    starts = np.minimum(first, low - span)
    matrices = np.stack([block[:, start : start + span] for block, start in zip(weights, starts, strict=True)])
    return starts.astype(np.int32), matrices, np.arange(count * rows).reshape(count, rows) < high


def _over_blocks(
    evaluate: Callable[[Callable[[Any], Any], Any], Any],
    fn: PixelFunction,
    maps: Any,
    fixed: Any,
    pixels: Any,
    size: tuple[int, int],
    block_rows: int,
) -> Any:
    """Sum over blocks of ``evaluate(block, maps)``, where ``block`` maps the small maps to ``fn`` of a block."""
    height, width = size
    low_height, low_width = jax.tree.leaves(maps)[0].shape[1:3]
    rows = min(block_rows or height, height)
    starts, weights, inside = _row_blocks(low_height, height, rows)
    columns = interpolation_matrix(low_width, width)
    count, _, span = weights.shape

    def upsample(x: jax.Array, start: jax.Array, rows: jax.Array) -> jax.Array:
        x = jax.lax.dynamic_slice_in_dim(x, start, span, axis=1)
        x = jnp.einsum("pw,nlwc->nlpc", columns, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.einsum("rl,nlpc->nrpc", rows, x, precision=jax.lax.Precision.HIGHEST)

    def block_sums(start: jax.Array, weights: jax.Array, inside: jax.Array, pixels: Any) -> Any:
        upsample_block = functools.partial(upsample, start=start, rows=weights)
        constant = jax.tree.map(upsample_block, fixed)
        return evaluate(lambda maps: fn(jax.tree.map(upsample_block, maps), constant, pixels, inside[:, None]), maps)

    if count == 1:
        return block_sums(starts[0], weights[0], jnp.asarray(inside[0]), pixels)

    def by_block(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * rows - height)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, rows, *x.shape[2:]), 1, 0)

    blocks = (jnp.asarray(starts), jnp.asarray(weights), jnp.asarray(inside), jax.tree.map(by_block, pixels))
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(block_sums, *jax.tree.map(lambda x: x[0], blocks))
    )
    total, _ = jax.lax.scan(lambda total, block: (jax.tree.map(jnp.add, total, block_sums(*block)), None), zero, blocks)
    return total
