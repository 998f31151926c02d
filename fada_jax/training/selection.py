"""Which pixels get a pseudo label: all of them, as released, or the surest share of each class.

Class-balanced self-training (Zou et al., CBST, ECCV 2018) takes a confidence threshold a class, the one that keeps the
same share of the pixels predicted as each. Thresholds come from a histogram over the whole split, so that no
confidence is kept.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Gt, Le

from fada_jax.classes import IGNORE

# Bins over -log(1 - confidence): a trained network is sure of most pixels, and what distinguishes them is near 1.
_BINS = 4096
_LOWEST_DOUBT = 1e-7


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which pixels get a pseudo label."""

    # Share of the pixels of each predicted class that is labelled, the surest first; 1: all of them.
    keep: Annotated[float, Gt(0), Le(1)] = 1.0
    # Label by probability over the class's threshold (CBST) instead of the argmax, in favour of classes that the
    # teacher is seldom sure of.
    relative: bool = False
    multi_scale: bool = False  # Label with multi-scale testing.

    @property
    def needs_thresholds(self) -> bool:
        return self.keep < 1 or self.relative


def confidence_counts(probabilities: jax.Array, mask: jax.Array) -> jax.Array:
    """Histogram of the largest probability of each pixel by predicted class.

    Args:
      probabilities: float32 [N, H, W, K], fewer than 2**31 pixels.
      mask: bool [N]; False for padding.

    Returns:
      int32 [K, bins]; it adds up over batches.
    """
    k = probabilities.shape[-1]
    doubt = jnp.maximum(1 - jnp.max(probabilities, axis=-1), _LOWEST_DOUBT)
    scaled = jnp.log(doubt) / np.log(_LOWEST_DOUBT) * _BINS
    index = jnp.argmax(probabilities, axis=-1) * _BINS + jnp.clip(scaled.astype(jnp.int32), 0, _BINS - 1)
    index = jnp.where(mask[:, None, None], index, k * _BINS)
    return jnp.bincount(index.ravel(), length=k * _BINS + 1)[:-1].reshape(k, _BINS).astype(jnp.int32)


def class_thresholds(counts: np.ndarray, keep: float) -> np.ndarray:
    """The confidence of each class above which at least the share ``keep`` of its predicted pixels lies.

    Args:
      counts: integer [K, bins], sum of ``confidence_counts``.
      keep: share in (0, 1].

    Returns:
      float32 [K], lower edges of bins; 1 for a class that was never predicted.
    """
    above = np.cumsum(counts[:, ::-1].astype(np.int64), axis=1)[:, ::-1]
    enough = above >= keep * above[:, :1]
    edge = enough.shape[1] - 1 - np.argmax(enough[:, ::-1], axis=1)
    return np.where(above[:, 0] > 0, 1 - _LOWEST_DOUBT ** (edge / counts.shape[1]), 1.0).astype(np.float32)


def select(probabilities: jax.Array, thresholds: jax.Array | np.ndarray, *, relative: bool = False) -> jax.Array:
    """Pseudo labels of the pixels whose class reaches its threshold, ``IGNORE`` elsewhere.

    Args:
      probabilities: float32 [N, H, W, K].
      thresholds: float32 [K]; zeros label every pixel.
      relative: see ``Selection``.

    Returns:
      uint8 [N, H, W].
    """
    thresholds = jnp.asarray(thresholds)  # NumPy's cannot be indexed by what is traced.
    scores = probabilities / jnp.maximum(thresholds, 1e-6) if relative else probabilities
    labels = jnp.argmax(scores, axis=-1)
    confidence = jnp.take_along_axis(probabilities, labels[..., None], axis=-1)[..., 0]
    return jnp.where(confidence >= thresholds[labels], labels, IGNORE).astype(jnp.uint8)
