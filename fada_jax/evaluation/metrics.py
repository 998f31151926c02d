"""Scores from confusion matrices: exact integer counts on the device, IoU and accuracy in float64 on the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.classes import IGNORE, ClassSet

# Counts are kept as two int32 digits: 500 Cityscapes images already hold half of what one int32 can count.
_BASE = 1 << 30


def empty_confusion(num_classes: int) -> tuple[jax.Array, jax.Array]:
    """A zero count, as (high, low) int32 [K, K] with value ``high * 2**30 + low``."""
    zero = jnp.zeros((num_classes, num_classes), jnp.int32)
    return zero, zero + 0


def add_confusion(
    count: tuple[jax.Array, jax.Array], labels: jax.Array, predictions: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds one batch to a confusion matrix (rows: label, columns: prediction).

    Args:
      count: (high, low) of ``empty_confusion``; a batch may hold fewer than 2**30 pixels.
      labels: uint8 [N, H, W], classes or ``IGNORE``, which does not count; other values must not come this far.
      predictions: integer [N, H, W].
      mask: bool [N]; False for padding.
    """
    high, low = count
    k = low.shape[0]
    valid = (labels != IGNORE) & mask[:, None, None]
    index = jnp.where(valid, labels.astype(jnp.int32) * k + predictions.astype(jnp.int32), k * k)
    low = low + jnp.bincount(index.ravel(), length=k * k + 1)[:-1].reshape(k, k).astype(jnp.int32)
    return high + low // _BASE, low % _BASE


def confusion_matrix(count: tuple[jax.Array, jax.Array]) -> np.ndarray:
    """The counts on the host, int64 [K, K]."""
    high, low = (np.asarray(x, np.int64) for x in count)
    return high * _BASE + low


def scores(confusion: np.ndarray, class_set: ClassSet) -> dict[str, Any]:
    """Field-standard scores of a confusion matrix, in percent.

    A class that occurs neither in the labels nor in the predictions has no IoU (None) and is left out of the mean.

    Args:
      confusion: int64 [K, K], rows are labels.
      class_set: names of the classes and the 13 of mIoU*.

    Returns:
      ``miou``, ``miou_13`` where the set has one, ``iou`` by class name, ``accuracy``; percent or None.
    """
    confusion = np.asarray(confusion, np.float64)
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = [float(100 * h / u) if u > 0 else None for h, u in zip(hits, union, strict=True)]

    def mean(indices: Any) -> float | None:
        present = [iou[i] for i in indices if iou[i] is not None]
        return float(np.mean(present)) if present else None

    total = confusion.sum()
    result: dict[str, Any] = {"miou": mean(range(len(iou)))}
    if class_set.subset_13:
        result["miou_13"] = mean(class_set.subset_13)
    result["iou"] = dict(zip(class_set.names, iou, strict=True))
    result["accuracy"] = float(100 * hits.sum() / total) if total else None
    return result
