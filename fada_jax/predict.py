"""Segments images: label, colour and overlay PNGs at each image's own size.

  python -m fada_jax.predict --workdir=W --out=DIR street.png photos/*.jpg
  python -m fada_jax.predict --workdir=W --out=DIR --multi_scale --save_probabilities street.png
  python -m fada_jax.predict --workdir=W --out=DIR --on_error=skip --batch_size=8 frames/ 'more/**/*.png'
  python -m fada_jax.predict --workdir=ARTIFACT --out=DIR --tile=1024x512 aerial.png
  python -m fada_jax.predict --workdir=W --out=DIR --submission CITYSCAPES/leftImg8bit/test

An argument is an image, a folder (with its subfolders; frames in the order of their numbers) or a quoted glob. For
x.png it writes x_label.png (8-bit class indices), x_color.png, x_overlay.png and, if asked, x_probabilities.npy
(float32 [H, W, K], summing to 1 over K) and x_confidence.png (probability of the label, 255 is 1). Images of a
subfolder keep it.
--submission writes what the Cityscapes server takes and nothing else: raw ids in CITY_SEQ_FRAME_pred_labelIds.png.
--workdir may be anything that fada_jax.load takes. Every image is opened before the first is segmented: what cannot be
read ends the command with nothing written, or is left out and named with --on_error=skip.
"""

from __future__ import annotations

import csv
import glob
import io
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from fada_jax import classes, cli, images, loading
from fada_jax.errors import UserError
from fada_jax.evaluation.predictor import Predictor
from fada_jax.files import write_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_CITYSCAPES_NAME = re.compile(r"([a-z-]+_\d{6}_\d{6})(_.*)?")


def _in_order(path: Path) -> list[str | int]:
    """Sorting key that puts frame 9 before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def find_images(arguments: Sequence[str]) -> dict[Path, Path]:
    """Images by the output that each is for: its name without suffix, below the subfolders of a folder.

    Raises:
      UserError: nothing found, or two images with one output.
    """
    if not arguments:
        raise UserError("no image given: name image files, folders or quoted globs")
    inputs: dict[Path, Path] = {}

    def add(path: Path, output: Path) -> None:
        if inputs.setdefault(output, path) != path:
            raise UserError(f"several images are called {str(output)!r}: their outputs would overwrite each other")

    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted((p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES), key=_in_order)
            if not inside:
                raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)})")
            for image in inside:
                add(image, image.relative_to(path).with_suffix(""))
        elif not path.exists() and glob.has_magic(argument):
            matches = sorted(map(Path, glob.glob(argument, recursive=True)), key=_in_order)
            if not matches:
                raise UserError(f"no file matches {argument}")
            for image in matches:
                add(image, Path(image.stem))
        else:
            add(path, Path(path.stem))
    return inputs


def submission_names(inputs: Mapping[Path, Path]) -> dict[Path, Path]:
    """The same images under the names that the Cityscapes server finds them by: ``<city>_<seq>_<frame>``.

    Raises:
      UserError: an image with another name, or two of one frame.
    """
    renamed: dict[Path, Path] = {}
    for path in inputs.values():
        match = _CITYSCAPES_NAME.fullmatch(path.stem)
        if not match:
            raise UserError(f"{path}: --submission needs the names of Cityscapes, <city>_<seq>_<frame>_leftImg8bit.png")
        if renamed.setdefault(Path(match[1]), path) != path:
            raise UserError(f"{path} and {renamed[Path(match[1])]} are the same frame of Cityscapes")
    return renamed


def readable(inputs: Mapping[Path, Path], *, skip: bool) -> tuple[dict[Path, Path], list[str]]:
    """Images whose files open, and the messages about those that were skipped.

    Raises:
      UserError: one that does not, where none is to be skipped, or none that does.
    """
    kept, messages = {}, []
    for output, path in inputs.items():
        try:
            images.check_image(path)
            kept[output] = path
        except UserError as error:
            if not skip:
                raise
            messages.append(str(error))
    if not kept:
        raise UserError(f"none of {len(inputs)} images can be read; first: {messages[0]}")
    return kept, messages


def batches(
    inputs: Mapping[Path, Path], batch_size: int, skipped: list[str] | None
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Outputs and images, uint8 [n, H, W, 3], n up to ``batch_size`` neighbours of one size.

    Args:
      skipped: receives the message about an image that turns out to be damaged; None: it is an error.
    """
    outputs: list[Path] = []
    batch: list[np.ndarray] = []
    for output, path in inputs.items():
        try:
            image = images.read_image(path)
        except UserError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            yield outputs, np.stack(batch)
            outputs, batch = [], []
        outputs.append(output)
        batch.append(image)
    if batch:
        yield outputs, np.stack(batch)


def segment(
    segmenter: Predictor,
    batch: np.ndarray,
    *,
    probabilities: bool,
    multi_scale: bool,
    tile: tuple[int, int] | None,
    overlap: float,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels of a batch and, where asked, the probabilities that they come from."""
    if not probabilities:
        return segmenter(batch, multi_scale=multi_scale, tile=tile, overlap=overlap), None
    values = segmenter.probabilities(batch, multi_scale=multi_scale, tile=tile, overlap=overlap)
    return values.argmax(-1).astype(np.uint8), values


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    tile = cli.size("tile", options.tile) if options.tile else None
    skip = options.on_error == "skip"
    inputs = find_images(arguments)
    if options.submission:
        inputs = submission_names(inputs)
    inputs, skipped = readable(inputs, skip=skip)
    segmenter = loading.load(options.workdir, checkpoint=options.checkpoint, dtype=options.dtype)
    class_set, out = segmenter.class_set, Path(options.out)
    table = classes.raw_ids(class_set) if options.ids == "raw" or options.submission else np.arange(256, dtype=np.uint8)
    want = options.save_probabilities or options.save_confidence
    rows, done = [], 0
    for outputs, batch in batches(inputs, options.batch_size, skipped if skip else None):
        began = time.perf_counter()
        labels, probabilities = segment(
            segmenter, batch, probabilities=want, multi_scale=options.multi_scale, tile=tile, overlap=options.overlap
        )
        seconds = (time.perf_counter() - began) / len(batch)
        for i, (output, label, image) in enumerate(zip(outputs, labels, batch, strict=True)):
            stem = str(out / output)
            rows.append((inputs[output], image.shape[1], image.shape[0], f"{seconds:.4f}"))
            if options.submission:
                images.write_image(Path(f"{stem}_pred_labelIds.png"), table[label])
                continue
            color = images.colorize(label, class_set)
            images.write_image(Path(f"{stem}_label.png"), table[label])
            images.write_image(Path(f"{stem}_color.png"), color)
            overlay = np.rint(0.5 * image + 0.5 * color).astype(np.uint8)
            images.write_image(Path(f"{stem}_overlay.png"), overlay)
            if probabilities is None:
                continue
            if options.save_probabilities:
                np.save(f"{stem}_probabilities.npy", probabilities[i])
            if options.save_confidence:
                confidence = np.rint(255 * probabilities[i].max(-1)).astype(np.uint8)
                images.write_image(Path(f"{stem}_confidence.png"), confidence)
        done += len(batch)
        print(f"\r{done}/{len(inputs)} images, {1 / seconds:.2f} images/s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    if options.timing:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([("image", "width", "height", "seconds"), *rows])
        write_text(options.timing, buffer.getvalue())
    left_out = f", {len(skipped)} skipped" if skipped else ""
    middle = statistics.median(float(row[3]) for row in rows) if rows else 0.0
    print(
        f"{done} image(s){left_out}, {class_set.num_classes} classes ({class_set.name}), {middle:.3f} s an image "
        f"(median, {segmenter.dtype}), written to {out}"
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Workdir, checkpoint, weight file or exported artifact.")
    flags.DEFINE_string("out", None, "Folder for the predictions.")
    flags.DEFINE_string("checkpoint", "last", "last or a step.")
    cli.define_dtype()
    flags.DEFINE_bool("multi_scale", False, "Average over the config's scales, each also flipped.")
    flags.DEFINE_bool("save_probabilities", False, "Also write float32 class probabilities as .npy.")
    flags.DEFINE_bool("save_confidence", False, "Also write the probability of each label as 8-bit PNG.")
    flags.DEFINE_enum("ids", "train", ["train", "raw"], "Values of x_label.png: class indices, or raw ids.")
    flags.DEFINE_bool("submission", False, "Write raw ids under the names that the Cityscapes server takes.")
    flags.DEFINE_string("tile", "", "WIDTHxHEIGHT of overlapping windows, for images too large to take whole.")
    flags.DEFINE_float("overlap", 0.25, "Share of a window that its neighbours see too.", 0.0, 0.9)
    flags.DEFINE_integer("batch_size", 1, "Images of one size that are segmented together.", lower_bound=1)
    flags.DEFINE_enum("on_error", "fail", ["fail", "skip"], "Unreadable images: end, or leave out and name them.")
    flags.DEFINE_string("timing", "", "CSV file to write: seconds each image took (the first of a size compiles).")
    flags.mark_flags_as_required(["workdir", "out"])
    cli.run(main)
