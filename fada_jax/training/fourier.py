"""Fourier domain adaptation: low frequencies of a source image get the amplitudes of a target image.

Yang and Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation" (CVPR 2020). Only the coefficients of the
lowest frequencies change, so that only those are computed, as products with small matrices, and what changes is added
to the image: no transform of the whole image, on any device.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.models import height_width


def half_width(size: tuple[int, int], beta: float) -> int:
    """Frequencies to each side of 0 that ``beta`` means for images of (H, W)."""
    return int(np.floor(min(size) * beta))


def _waves(size: int, half: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the frequencies -half to half at every pixel, float32 [2 half + 1, size] each."""
    # Whole turns are taken off in integers: the angle is as exact as float32 is.
    turns = np.outer(np.arange(-half, half + 1), np.arange(size)) % size
    angles = 2 * np.pi * turns / size
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def _product(equation: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *arrays, precision=jax.lax.Precision.HIGHEST)


def _coefficients(images: jax.Array, half: int) -> tuple[jax.Array, jax.Array]:
    """Real and imaginary parts of the lowest frequencies, float32 [N, k, k, C], as a share of the pixels."""
    _, height, width, _ = images.shape
    (cos_h, sin_h), (cos_w, sin_w) = _waves(height, half), _waves(width, half)
    cos, sin = (_product("kh,nhwc->nkwc", wave, images) for wave in (cos_h, sin_h))
    real = _product("lw,nkwc->nklc", cos_w, cos) - _product("lw,nkwc->nklc", sin_w, sin)
    imaginary = -_product("lw,nkwc->nklc", cos_w, sin) - _product("lw,nkwc->nklc", sin_w, cos)
    return real / (height * width), imaginary / (height * width)


def _image(real: jax.Array, imaginary: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The images whose coefficients these are, all others being 0; [N, H, W, C]."""
    half = real.shape[1] // 2
    (cos_h, sin_h), (cos_w, sin_w) = _waves(size[0], half), _waves(size[1], half)
    cos = _product("lw,nklc->nkwc", cos_w, real) - _product("lw,nklc->nkwc", sin_w, imaginary)
    sin = _product("lw,nklc->nkwc", cos_w, imaginary) + _product("lw,nklc->nkwc", sin_w, real)
    return _product("kh,nkwc->nhwc", cos_h, cos) - _product("kh,nkwc->nhwc", sin_h, sin)


def swap_amplitudes(source: jax.Array, target: jax.Array, beta: float) -> jax.Array:
    """Source images in the low frequencies of which lie the amplitudes of the target's.

    Args:
      source: uint8 or float 0-255 [N, H, W, C].
      target: likewise, [M, H', W', C]; image i gives to the source images i, i + M, ... Amplitudes are those a pixel,
        which makes images of two sizes comparable; where the sizes agree, they are the release's.
      beta: frequencies up to ``floor(min(H, W) beta)`` in both directions are swapped; below 0.5.

    Returns:
      float32 [N, H, W, C], beyond 0 to 255 where the swap leads there, as released.
    """
    source, target = source.astype(jnp.float32), target.astype(jnp.float32)
    size = height_width(source)
    half = min(half_width(size, beta), (min(height_width(target)) - 1) // 2)
    real, imaginary = _coefficients(source, half)
    amplitude = jnp.hypot(real, imaginary)
    wanted = jnp.hypot(*_coefficients(target, half))[jnp.arange(source.shape[0]) % target.shape[0]]
    # A coefficient of 0 has the phase 0.
    is_zero = amplitude == 0
    factor = wanted / jnp.where(is_zero, 1.0, amplitude)
    real = jnp.where(is_zero, wanted, real * factor) - real
    return source + _image(real, jnp.where(is_zero, 0.0, imaginary * factor) - imaginary, size)


def restyled(batch: Mapping[str, Mapping[str, jax.Array]], beta: float) -> Mapping[str, Mapping[str, jax.Array]]:
    """A batch whose source images have the amplitudes of its target images; ``beta`` 0: the batch as it is."""
    if not beta:
        return batch
    images = swap_amplitudes(batch["source"]["image"], batch["target"]["image"], beta)
    return {**batch, "source": {**batch["source"], "image": images}}
