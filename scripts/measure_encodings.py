"""Measures what each encoding of ``convert_dataset.py`` costs: conversion, disk, and training input.

  python scripts/measure_encodings.py --images=CAMVID/train --labels=CAMVID/trainannot --output=encodings.json

Pictures are enlarged to 2048x1024 and get a camera's grain; --files=jpeg stores them as JPEGs of quality 95 first.
Rates divide by CPU time.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from absl import flags
from PIL import Image

from fada_jax import classes, cli
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, streams
from fada_jax.input_pipeline.augmentation import Augment
from fada_jax.input_pipeline.encoding import ENCODINGS
from fada_jax.input_pipeline.stream import Stream
from fada_jax.reporting import results
from fada_jax.scripts.benchmarks import training_input

SIZE = (2048, 1024)


def make_raw(root: Path, images: Path, labels: Path, count: int, kind: str) -> None:
    """``count`` pictures of a folder, evenly spread, and their labels of the same names, in GTA5's layout."""
    paths = sorted(images.glob("*.png"))
    if not paths:
        raise UserError(f"{images} holds no PNG files")
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    options: dict[str, Any] = {"quality": 95} if kind == "jpeg" else {}
    for i in range(count):
        path = paths[i * len(paths) // count]
        random = np.random.default_rng(i)
        pixels = np.asarray(Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)).astype(float)
        pixels += random.normal(0, 1.4, (*pixels.shape[:2], 1)) + random.normal(0, 0.5, pixels.shape)
        name = f"{i:05d}"
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        picture.save(root / "images" / f"{name}.{kind}", **options)
        label = Image.open(labels / path.name).resize(SIZE, Image.Resampling.NEAREST)
        label.save(root / "labels" / f"{name}.{kind}", "png")  # The layout wants one name for both.


def measure(raw: Path, data_dir: Path, encoding: str, count: int, batches: int) -> dict[str, float]:
    """Converts ``count`` images in this process and reads them at 1280x720, without and with the released jitter."""
    began = time.process_time()
    root, _, _ = conversion.convert(conversion.Conversion("gta5", raw, encoding=encoding), data_dir)
    result = {"conversion_ms": 1e3 * (time.process_time() - began) / count}
    result["megabytes"] = sum(path.stat().st_size for path in root.glob("*.tfrecord*")) / count / 1e6
    for name, augment in (("plain", Augment()), ("jitter", training_input.JITTER)):
        stream = Stream("gta5", "train", training_input.SIZE, augment=augment)
        class_set, batch_size = classes.get_class_set("cityscapes19"), training_input.BATCH_SIZE
        rates = []
        for _ in range(2):
            opened = streams.train_batches(data_dir, stream, class_set=class_set, batch_size=batch_size, seed=0)
            rates.append(training_input.rate(opened, batches))
            opened.close()
        result[f"{name}_images_per_second_per_core"] = max(rates)
    return result


KINDS = {
    "png": "PNG, lossless; labels PNG",
    "jpeg": "JPEG of quality 95, **detail is lost**; labels PNG",
    "tiff": "TIFF of zstd, lossless; labels too",
}


def table(results: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The results as scripts/docs_numbers.py shows them."""
    rates = ("plain_images_per_second_per_core", "jitter_images_per_second_per_core")
    columns = ["`--encoding`", "images that are no JPEG", "convert, ms", "MB", "read/s", "read/s, jittered"]
    keys = ("conversion_ms", "megabytes", *rates)
    rows = [[f"`{name}`", KINDS[name], *(result[key] for key in keys)] for name, result in results.items()]
    return {"columns": columns, "formats": ["", "", ".0f", ".2f", ".1f", ".1f"], "rows": rows}


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options, measured = flags.FLAGS, {}
    results.check(options.output, "--output")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        make_raw(raw, Path(options.images), Path(options.labels), options.count, options.files)
        files = sum(path.stat().st_size for path in raw.rglob("*.*")) / options.count / 1e6
        for encoding in ENCODINGS:
            measured[encoding] = measure(raw, Path(folder, encoding), encoding, options.count, options.batches)
            print(encoding, ", ".join(f"{key} {value:.2f}" for key, value in measured[encoding].items()))
    facts: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "pillow": PIL.__version__, "images": options.count}
    facts |= {"size": list(SIZE), "files": options.files, "files_megabytes": files, "encodings": measured}
    facts["table"] = table(measured)
    if options.output:
        results.write(options.output, facts)


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "Folder of PNG pictures.")
    flags.DEFINE_string("labels", None, "Folder of their labels, of the same names.")
    flags.DEFINE_enum("files", "png", ["png", "jpeg"], "What the raw files are.")
    flags.DEFINE_integer("count", 8, "Pictures.", lower_bound=1)
    flags.DEFINE_integer("batches", 8, "Batches of 4 for each rate.", lower_bound=1)
    flags.DEFINE_string("output", "", "JSON file to write.")
    flags.mark_flags_as_required(["images", "labels"])
    cli.run(main)
