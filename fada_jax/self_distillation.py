"""Pseudo labels of the teacher for self-distillation: its argmax, as released, or the surest share of each class.

Class-balanced self-training (Zou et al., CBST, ECCV 2018) takes a confidence threshold a class, the one that keeps the
same share of the pixels predicted as each. Thresholds come from a histogram over the whole split, so that no
confidence is kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax import handovers, inference, sharding
from fada_jax.checkpoints import Model
from fada_jax.classes import IGNORE
from fada_jax.models import Segmenter

# Bins over -log(1 - confidence): a trained network is sure of most pixels, and what distinguishes them is near 1.
_BINS = 4096
_LOWEST_DOUBT = 1e-7


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which pixels get a pseudo label.

    Attributes:
      keep: share of the pixels predicted as each class that are labelled, the most confident first; 1: all of them.
      relative: label with the class whose probability is largest relative to its threshold (CBST) instead of the
        argmax, in favour of classes that the teacher is seldom sure of.
      multi_scale: the teacher is tested at several scales, each also flipped.
    """

    keep: float = 1.0
    relative: bool = False
    multi_scale: bool = False

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


def select(probabilities: jax.Array, thresholds: jax.Array, *, relative: bool = False) -> jax.Array:
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


def pseudo_labels(
    model: Model,
    read: Callable[[], Iterable[Mapping[str, Any]]],
    names: Sequence[str],
    *,
    size: tuple[int, int],
    mesh: jax.sharding.Mesh,
    selection: Selection = Selection(),
    scales: tuple[float, ...] = inference.MULTI_SCALE,
    log: Callable[[str], None] = print,
) -> Iterator[tuple[str, np.ndarray]]:
    """Labels of every image by name, uint8 [H, W]; all devices of all processes share the work.

    Args:
      model: the teacher.
      read: starts one pass over this process's share of batches with ``image`` uint8 [N, h, w, 3] at the size that the
        teacher is tested at, ``number`` int32 [N] and ``mask`` bool [N]; called twice where thresholds are needed.
      names: of the images, by number.
      size: (H, W) of the labels, which the teacher's softmax is upsampled to.
      mesh: that splits the batches.
      selection: which pixels are labelled.
      scales: of multi-scale testing.
      log: receives the thresholds.

    Yields:
      the same in every process: each must take all.
    """
    probabilities = functools.partial(
        inference.class_probabilities,
        Segmenter(model.spec).apply,
        preprocessing=model.preprocessing,
        size=size,
        scales=scales if selection.multi_scale else inference.SINGLE_SCALE,
        flip=selection.multi_scale,
    )
    everywhere = sharding.replicated(mesh)
    variables = jax.device_put(model.variables, everywhere)
    thresholds = np.zeros(model.class_set.num_classes, np.float32)

    def batches() -> Iterator[dict[str, jax.Array]]:
        for batch in read():
            handovers.note("teacher", input=handovers.size(batch["image"].shape[1:3]), labels=handovers.size(size))
            yield sharding.put_batch({key: batch[key] for key in ("image", "number", "mask")}, mesh)

    if selection.needs_thresholds:
        count = jax.jit(
            lambda variables, images, mask: confidence_counts(probabilities(variables, images), mask),
            out_shardings=everywhere,
        )
        total = np.zeros((), np.int64)
        for batch in batches():
            total = total + np.asarray(count(variables, batch["image"], batch["mask"]))
        thresholds = class_thresholds(total, selection.keep)
        named = zip(model.class_set.names, thresholds, strict=True)
        log("confidence thresholds: " + ", ".join(f"{name} {value:.3f}" for name, value in named))

    def label(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        labels = select(probabilities(variables, batch["image"]), thresholds, relative=selection.relative)
        return labels, batch["number"], batch["mask"]

    label = jax.jit(label, out_shardings=everywhere)
    for batch in batches():
        labels, numbers, mask = jax.device_get(label(variables, batch))
        yield from ((names[number], x) for x, number, real in zip(labels, numbers, mask, strict=True) if real)
