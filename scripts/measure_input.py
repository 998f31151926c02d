"""Measures what ``config.<stream>.jitter_first=False`` changes against the released order, and what it saves.

  python scripts/measure_input.py --output=jitter.json
  python scripts/measure_input.py --case=camvid --case=camvid_self_distillation --data_dir=DATA --dataset=camvid \\
      --split=train_day

Released, colours change on the whole stored image; with False, on the pixels that resizing and cropping leave. Both
orders read the same images with the same draws, with the released strengths; their pixels are compared in grey levels
of 0 to 255, and the CPU time of an image is that of the whole stream, decoding included. Without --data_dir images are
generated with detail of every size, and stored at each case's size.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from absl import flags

from fada_jax import classes, cli
from fada_jax.errors import UserError
from fada_jax.input_pipeline import augmentation, conversion, streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.scripts import benchmark_input

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


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options, results = flags.FLAGS, {}
    if bool(options.data_dir) != bool(options.dataset and options.split):
        raise UserError("--data_dir, --dataset and --split belong together")
    with tempfile.TemporaryDirectory() as folder:
        if not options.data_dir:
            benchmark_input.make_raw(Path(folder, "raw"), IMAGES)
        for name in options.case:
            case, data_dir = CASES[name], options.data_dir
            if not data_dir:
                data_dir = Path(folder, name)
                resize = None if case.stored == benchmark_input.FULL else case.stored
                conversion.convert(
                    conversion.Conversion("gta5", Path(folder, "raw"), resize=resize, encoding="tiff"), data_dir
                )
            stream = Stream(
                options.dataset or "gta5",
                options.split or "train",
                case.size,
                city=options.city,
                augment=augmentation.Augment(**benchmark_input.JITTER, **case.geometry),
                labels=False,
            )
            results[name] = measure(data_dir, stream, options.draws, options.seed)
    print(table(results))
    if options.output:
        images_of = "/".join(filter(None, (options.dataset, options.city, options.split))) or "generated"
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "pillow": PIL.__version__,
            "images": images_of,
            "seed": options.seed,
        }
        Path(options.output).write_text(json.dumps({**facts, "cases": results}, indent=2) + "\n")


def define_flags() -> None:
    flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "Sizes and geometry; may be repeated.")
    flags.DEFINE_integer("draws", 24, "Images of each case.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)
    flags.DEFINE_string("data_dir", "", "Converted data; empty: generated images.")
    flags.DEFINE_string("dataset", "", "Data set under --data_dir.")
    flags.DEFINE_string("split", "", "Its split.")
    flags.DEFINE_string("city", "", "Cross-City only.")
    flags.DEFINE_string("output", "", "JSON file to write.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
