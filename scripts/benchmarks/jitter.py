"""The difference that ``config.<stream>.jitter_first=False`` makes to the pixels and to the CPU time of an image."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fada_jax import classes
from fada_jax.input_pipeline import conversion, streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.scripts.benchmarks import training_input

# Images that are generated, those read before the clock starts, and how often each order is timed, in turns.
IMAGES, WARMUP, ROUNDS = 8, 4, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """Images of a size, what they are resized to, and the geometry of their augmentation."""

    title: str
    stored: tuple[int, int]
    size: tuple[int, int]
    geometry: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "source": Case("1914x1052 -> 1280x720", (1914, 1052), (1280, 720)),
    "self_distillation": Case(
        "2048x1024, scaled by 0.5 to 1.5 -> crop of 1024x512",
        (2048, 1024),
        (2048, 1024),
        {"flip": True, "scale": (0.5, 1.5), "crop": (1024, 512)},
    ),
    "camvid": Case("480x360 -> 192x144", (480, 360), (192, 144), {"flip": True}),
    "camvid_self_distillation": Case(
        "480x360, scaled by 0.5 to 1.5 -> crop of 480x360",
        (480, 360),
        (480, 360),
        {"flip": True, "scale": (0.5, 1.5), "crop": (480, 360)},
    ),
}


def images(data_dir: str | Path, stream: Stream, jitter_first: bool, seed: int) -> Iterator[np.ndarray]:
    """The stream's images one by one in either order, uint8 [H, W, 3]."""
    stream = dataclasses.replace(stream, augment=dataclasses.replace(stream.augment, jitter_first=jitter_first))
    class_set = classes.get_class_set("cityscapes19")  # Without labels it has no effect.
    for batch in streams.train_batches(data_dir, stream, class_set=class_set, batch_size=1, seed=seed):
        yield batch["image"][0]


def cpu_milliseconds(stream: Iterator[np.ndarray], count: int) -> float:
    """CPU time of an image of a stream, in all threads."""
    collections.deque(itertools.islice(stream, WARMUP), maxlen=0)
    began = time.process_time()
    collections.deque(itertools.islice(stream, count), maxlen=0)
    return 1e3 * (time.process_time() - began) / count


def measure(data_dir: str | Path, stream: Stream, draws: int, seed: int) -> dict[str, Any]:
    """Compares both orders over ``draws`` images.

    Returns:
      ``mean``, ``p99`` and ``max`` of the absolute difference in grey levels, over all values of all images; CPU
      milliseconds of an image with ``released`` and with ``late`` jitter, the least of ``ROUNDS``.
    """
    counts, levels = np.zeros(256, np.int64), np.arange(256)
    pairs = zip(images(data_dir, stream, True, seed), images(data_dir, stream, False, seed), strict=True)
    for a, b in itertools.islice(pairs, draws):
        counts += np.bincount(np.abs(a.astype(np.int16) - b).ravel(), minlength=256)
    times: dict[bool, list[float]] = {True: [], False: []}
    for first in (True, False) * ROUNDS:
        times[first].append(cpu_milliseconds(images(data_dir, stream, first, seed), draws))
    return {
        "draws": draws,
        "mean": float(counts @ levels / counts.sum()),
        "p99": int(np.searchsorted(counts.cumsum(), 0.99 * counts.sum())),
        "max": int(levels[counts > 0].max()),
        "released": min(times[True]),
        "late": min(times[False]),
    }


def table(results: dict[str, Any]) -> str:
    """The results for reading."""
    lines = [f"{'':<54}{'grey levels that differ':^24}{'CPU ms an image':^20}"]
    lines.append(f"{'':<54}{'mean':>8}{'99%':>8}{'max':>8}{'released':>10}{'late':>10}")
    for name, row in results.items():
        lines.append(
            f"{CASES[name].title:<54}{row['mean']:>8.2f}{row['p99']:>8}{row['max']:>8}"
            f"{row['released']:>10.1f}{row['late']:>10.1f}"
        )
    return "\n".join(lines)


def measure_cases(
    names: Sequence[str], data_dir: str, images_of: dict[str, Any], draws: int, seed: int
) -> dict[str, Any]:
    """Measures cases on the converted images of a split, or without ``data_dir`` on generated ones.

    Args:
      images_of: arguments of ``Stream`` that choose the images.
    """
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        if not data_dir:
            training_input.make_raw(Path(folder, "raw"), IMAGES)
        for name in names:
            case, converted = CASES[name], data_dir or Path(folder, name)
            if not data_dir:
                resize = None if case.stored == training_input.FULL else case.stored
                conversion.convert(conversion.Conversion("gta5", Path(folder, "raw"), resize=resize), converted)
            augment = dataclasses.replace(training_input.JITTER, **case.geometry)
            stream = Stream(**images_of, size=case.size, augment=augment, labels=False)
            results[name] = measure(converted, stream, draws, seed)
    return results
