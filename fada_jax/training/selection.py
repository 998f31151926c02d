"""Which pixels get a pseudo label: all of them, as released, or the surest share of all or of each class.

Self-training (ST) takes one confidence threshold; class-balanced self-training (Zou et al., CBST, ECCV 2018) one a
class, which keeps the same share of the pixels predicted as each; a cap on it labels all that is sure enough, and with
half of each class is the class median with a cap of later systems (BDL, IntraDA). Thresholds come from histograms over
the whole split, so that no confidence is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Gt, Le
from scipy import ndimage

from fada_jax.classes import IGNORE
from fada_jax.ranges import Positive, Share

# Confidences are ranked by the bits of their float32: by the upper half, then by the lower one of those that share the
# upper one with what is sought.
_HALF = 16
_UPPER = (0x3F800000 >> _HALF) + 1  # Of 1.0 is the largest.
_LOWER = 1 << _HALF


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which pixels get a pseudo label."""

    # Share of the pixels of each predicted class that is labelled, the surest first; 1: all of them.
    keep: Annotated[float, Gt(0), Le(1)] = 1.0
    balanced: bool = True  # False: one threshold for all classes (ST), that of the surest share of all pixels.
    cap: Annotated[float, Gt(0), Le(1)] = 1.0  # Whatever the teacher is so sure of is labelled, too; 1: as keep says.
    # Label by probability over the class's threshold (CBST) instead of the argmax, in favour of classes that the
    # teacher is seldom sure of.
    relative: bool = False
    # Multiply the probabilities by how often the source has each class at that place (CBST-SP).
    spatial_prior: bool = False
    multi_scale: bool = False  # Label with multi-scale testing.

    @property
    def needs_thresholds(self) -> bool:
        return self.keep < 1 or self.relative


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Self-training: rounds of a recipe, each with labels of the one before it (CBST)."""

    number: Positive = 6  # Of them, total_steps each.
    growth: Share = 0.05  # pseudo_labels.keep grows by so much a round,
    most: Share = 0.5  # up to this.

    def keep(self, first: float, number: int) -> float:
        """Share of the pixels that round ``number``, from 1, labels."""
        return max(first, min(self.most, first + self.growth * (number - 1)))


def spatial_prior(labels: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """How often the labels of a split have each class at each place.

    CBST smooths with a Gaussian kernel of 70 pixels at Cityscapes' height of 1024; that it is its standard deviation
    is unverified.

    Args:
      labels: one or more uint8 [H, W] of class indices and ``IGNORE``.
      num_classes: K.

    Returns:
      float32 [H, W, K], whose sum over classes is the share of labelled pixels.
    """
    counts, images = np.zeros((num_classes, 1, 1), np.float32), 0
    for label in labels:
        counts = counts + (label == np.arange(num_classes)[:, None, None])
        images += 1
    sigma = 70 * counts.shape[1] / 1024
    smooth = [ndimage.gaussian_filter(count / max(images, 1), sigma, mode="nearest") for count in counts]
    return np.stack(smooth, axis=-1).astype(np.float32)


def confidence_counts(
    probabilities: jax.Array, mask: jax.Array, upper: jax.Array | np.ndarray | None = None
) -> jax.Array:
    """Histogram of the bits of the largest value of each pixel by the class that has it.

    Args:
      probabilities: float32 [N, H, W, K] from 0 to 1, fewer than 2**31 pixels.
      mask: bool [N]; False for padding.
      upper: int32 [K]; count the lower halves of values whose upper half is that of their class. None: upper halves.

    Returns:
      int32 [K, bins]; it adds up over batches.
    """
    k = probabilities.shape[-1]
    bits = jax.lax.bitcast_convert_type(jnp.max(probabilities, axis=-1).astype(jnp.float32), jnp.int32)
    predicted, counted = jnp.argmax(probabilities, axis=-1), mask[:, None, None]
    if upper is None:
        bins, half = _UPPER, jnp.minimum(bits >> _HALF, _UPPER - 1)
    else:
        bins, half = _LOWER, bits & (_LOWER - 1)
        counted &= (bits >> _HALF) == jnp.asarray(upper)[predicted]
    index = jnp.where(counted, predicted * bins + half, k * bins)
    return jnp.bincount(index.ravel(), length=k * bins + 1)[:-1].reshape(k, bins).astype(jnp.int32)


def _ranked(counts: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each row that holds the value of a rank from the largest, 1 first; and the rank within that bin."""
    above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    # Of two programs one may round a value into the bin below; then the lowest bin has the rest.
    bins = np.maximum((above >= ranks[:, None]).sum(axis=1) - 1, 0)
    rows = np.arange(len(counts))
    return bins, ranks - (above[rows, bins] - counts[rows, bins])


def thresholds(chosen: Selection, count: Callable[[np.ndarray | None], np.ndarray]) -> np.ndarray:
    """The confidence of each class from which on its pixels are labelled: that of rank floor(keep x pixels), or 1.

    Args:
      chosen: the selection.
      count: sum over a split of ``confidence_counts`` of its argument ``upper``, integer [K, bins]; called twice.

    Returns:
      float32 [K], exact; 1 for a class that no pixel is predicted as.
    """

    def counts(upper: np.ndarray | None) -> np.ndarray:
        found = count(upper).astype(np.int64)
        return found if chosen.balanced else np.broadcast_to(found.sum(axis=0), found.shape)

    uppers = counts(None)
    pixels = uppers.sum(axis=1)
    ranks = np.maximum(np.floor(pixels * chosen.keep).astype(np.int64), 1)
    upper, ranks = _ranked(uppers, ranks)
    lower, _ = _ranked(counts(upper.astype(np.int32)), ranks)
    found = ((upper << _HALF) + lower).astype(np.int32).view(np.float32)
    return np.minimum(np.where(pixels > 0, found, 1.0), chosen.cap).astype(np.float32)


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
