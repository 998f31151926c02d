"""Training-free colour matching: the baseline that any adaptation has to beat.

Each channel of the target images is shifted and scaled to the source's mean and standard deviation, with the target's
own statistics taken over its training images ('global': up to ``IMAGES`` of them, evenly spread) or over each image
alone ('image').
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

MODES = ("global", "image")
# Images that the statistics of a domain are taken over, at most.
IMAGES = 1_000


@dataclasses.dataclass(frozen=True)
class ColourStatistics:
    """Mean and standard deviation per RGB channel, 0-255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def colour_statistics(batches: Iterable[Mapping[str, Any]]) -> ColourStatistics:
    """Statistics over the pixels of the unpadded ``image`` of all batches, uint8 [N, H, W, 3]."""
    # Sums of integers do not depend on how the images come in batches.
    count, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for batch in batches:
        pixels = np.asarray(batch["image"])[np.asarray(batch["mask"])].reshape(-1, 3)
        histograms = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
        count += len(pixels)
        total += histograms @ np.arange(256)
        squares += histograms @ np.arange(256) ** 2
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return ColourStatistics(tuple(mean.tolist()), tuple(std.tolist()))


def matcher(
    mode: str, source: ColourStatistics, target: ColourStatistics
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that recolours the ``image`` (uint8 [N, H, W, 3]) of a target batch to the source's statistics."""

    def recolour(batch: Mapping[str, Any]) -> dict[str, Any]:
        images = np.asarray(batch["image"], np.float64)
        if mode == "image":
            mean, std = images.mean((1, 2), keepdims=True), images.std((1, 2), keepdims=True)
        else:
            mean, std = np.asarray(target.mean), np.asarray(target.std)
        matched = (images - mean) / np.maximum(std, 1e-6) * np.asarray(source.std) + np.asarray(source.mean)
        return {**batch, "image": np.clip(np.rint(matched), 0, 255).astype(np.uint8)}

    return recolour
