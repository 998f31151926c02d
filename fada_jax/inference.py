"""Jitted inference: class probabilities at the label's own size, over scales and flips, in one compiled call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fada_jax import metrics
from fada_jax.models import resize_align_corners
from fada_jax.preprocessing import Preprocessing, normalise

SINGLE_SCALE: tuple[float, ...] = (1.0,)
MULTI_SCALE: tuple[float, ...] = (0.7, 1.0, 1.3)


def class_probabilities(
    apply_fn: Callable[..., Any],
    variables: Any,
    images: jax.Array,
    *,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    scales: tuple[float, ...] = SINGLE_SCALE,
    flip: bool = False,
) -> jax.Array:
    """Mean of the softmax over scales, each also flipped, taken at ``size`` (multi-scale testing of the released code).

    Args:
      apply_fn: ``Segmenter.apply``.
      variables: its collections.
      images: uint8 RGB [N, H, W, 3] at the network's input size, scale 1.
      preprocessing: input normalisation.
      size: (H, W) of the result; the label's or the image's own size.
      scales: factors on the input size.
      flip: average with the mirrored image at each scale.

    Returns:
      float32 [N, *size, K], summing to 1 over K.
    """
    x = normalise(images, preprocessing)
    total, views = 0.0, 0
    for scale in scales:
        scaled = resize_align_corners(x, (int(x.shape[1] * scale), int(x.shape[2] * scale)))
        for mirrored in (False, True) if flip else (False,):
            view = scaled[:, :, ::-1] if mirrored else scaled
            logits, _ = apply_fn(variables, view, train=False)
            logits = logits[:, :, ::-1] if mirrored else logits
            total = total + jax.nn.softmax(resize_align_corners(logits, size))
            views += 1
    return total / views


def evaluation_step(
    count: tuple[jax.Array, jax.Array],
    variables: Any,
    batch: Any,
    *,
    apply_fn: Callable[..., Any],
    preprocessing: Preprocessing,
    scales: tuple[float, ...],
    flip: bool,
) -> tuple[jax.Array, jax.Array]:
    """Adds a batch (``image``, ``label`` at its own size, ``mask``) to a confusion count; nothing leaves the device."""
    probabilities = class_probabilities(
        apply_fn,
        variables,
        batch["image"],
        preprocessing=preprocessing,
        size=batch["label"].shape[1:3],
        scales=scales,
        flip=flip,
    )
    return metrics.add_confusion(count, batch["label"], jnp.argmax(probabilities, axis=-1), batch["mask"])
