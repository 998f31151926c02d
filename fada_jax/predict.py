"""Segments images: label, colour and overlay PNGs at each image's own size.

  python -m fada_jax.predict --workdir=W --out=DIR street.png photos/*.jpg
  python -m fada_jax.predict --workdir=W --out=DIR --multi_scale --save_probabilities street.png
  python -m fada_jax.predict --workdir=W --out=DIR --on_error=skip --batch_size=8 frames/ 'more/**/*.png'
  python -m fada_jax.predict --workdir=ARTIFACT --out=DIR --tile=1024x512 aerial.png
  python -m fada_jax.predict --workdir=W --out=DIR --submission CITYSCAPES/leftImg8bit/test

An argument is an image, a folder (with its subfolders; frames in the order of their numbers) or a quoted glob. For
x.png it writes x_label.png (8-bit class indices), x_color.png, x_overlay.png and, if asked, x_probabilities.npy
(float32 [H, W, K], summing to 1 over K) and x_confidence.png (probability of the label, 255 is 1). Images of a
subfolder keep it. What earlier calls wrote is written anew, and is left out where it is among the arguments; a file
that this command did not make is never overwritten.
--submission writes what the Cityscapes server takes and nothing else: raw ids in CITY_SEQ_FRAME_pred_labelIds.png.
--workdir may be anything that fada_jax.load takes. Every image is opened, and every output is looked at, before the
first image is segmented: what cannot be read or written then ends the command with nothing written. An image whose
pixels turn out to be damaged ends it after the images before it. With --on_error=skip such images are left out and
named. Several processes, each with a call of its own, segment and write a share of the images each.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from fada_jax import classes, cli, distributed, files, images, loading, progress
from fada_jax.errors import UserError
from fada_jax.evaluation.predictions import Outputs
from fada_jax.evaluation.predictor import MOST_OVERLAP, Predictor
from fada_jax.stages import workdirs

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_CITYSCAPES_NAME = re.compile(r"([a-z-]+_\d{6}_\d{6})(_.*)?")
_TIMING = ("image", "width", "height", "seconds")


def _in_order(path: Path) -> list[str | int]:
    """Sorting key that puts frame 9 before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def find_images(arguments: Sequence[str]) -> tuple[dict[Path, Path], int]:
    """Images by the output that each is for: its name without suffix, below the subfolders of a folder.

    Returns:
      them, and the number of files left out because this command wrote them.

    Raises:
      UserError: nothing found, or two images with one output.
    """
    if not all(arguments):
        raise UserError("an argument is empty: name image files, folders or quoted globs")
    if not arguments:
        raise UserError("no image given: name image files, folders or quoted globs")
    inputs: dict[Path, Path] = {}
    own = 0
    for argument in arguments:
        path = files.place(argument)
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
            found = [(image, _below(image, path).with_suffix("")) for image in sorted(inside, key=_in_order)]
            if not found:
                raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)})")
        elif not path.exists() and glob.has_magic(argument):
            found = [(p, Path(p.stem)) for p in sorted(_matching(argument), key=_in_order)]
            if not found:
                raise UserError(f"no file matches {argument}")
        else:
            found = [(path, Path(path.stem))]
        for image, output in found:
            if images.is_prediction(image):
                own += 1
            elif inputs.setdefault(output, image) != image:
                raise UserError(f"several images are called {str(output)!r}: their outputs would overwrite each other")
    if not inputs:
        raise UserError(f"nothing but predictions given ({own} files): name the images that they were made of")
    return inputs, own


def _below(image: Path, folder: Path) -> Path:
    """Where an image lies in a folder, as a path that has no place of its own."""
    return Path(str(image)[len(str(folder)) :].lstrip("/")) if files.is_object(image) else image.relative_to(folder)


def _matching(pattern: str) -> list[Path]:
    """Files that match a pattern, local or in a bucket."""
    if "://" not in pattern:
        return [Path(path) for path in glob.glob(pattern, recursive=True)]
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return list(files.place("/".join(parts[:first])).glob("/".join(parts[first:])))


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
                if batch:  # What is good is not lost with what is not.
                    yield outputs, np.stack(batch)
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


@contextlib.contextmanager
def within_memory(path: Path, shape: tuple[int, ...], tiled: bool) -> Iterator[None]:
    """Says what helps where a batch [N, H, W, 3] that begins with the image at ``path`` does not fit into memory.

    Raises:
      UserError: see above.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        advice = "lower --tile" if tiled else "cut it with --tile=WIDTHxHEIGHT, for instance --tile=1024x512"
        together = f", or lower --batch_size ({shape[0]} images together)" if shape[0] > 1 else ""
        raise UserError(f"{path} ({shape[2]}x{shape[1]}) does not fit into memory: {advice}{together}") from error


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


def is_timing(path: Path) -> bool:
    """Whether a file is a CSV that ``--timing`` wrote."""
    return files.is_ours(path, f"{','.join(_TIMING)}\n".encode())


def checked(options: flags.FlagValues) -> tuple[tuple[int, int] | None, Outputs]:
    """The windows and the outputs that the flags ask for.

    Raises:
      UserError: naming the flag that cannot be.
    """
    tile = cli.size("tile", options.tile, least=8) if options.tile else None
    if not 0 <= options.overlap <= MOST_OVERLAP:  # NaN passes the bounds of the flag.
        raise UserError(f"--overlap={options.overlap} must be from 0 to {MOST_OVERLAP}")
    if not re.fullmatch(r"last|best|[0-9]{1,10}", options.checkpoint):
        raise UserError(f"--checkpoint={options.checkpoint} must be last, best or a step")
    if not options.out:
        raise UserError("--out is empty: name a folder")
    if options.submission and (options.save_probabilities or options.save_confidence):
        raise UserError("--submission writes nothing else: leave out --save_probabilities and --save_confidence")
    if options.timing:
        files.check_output(options.timing, "--timing", ours=is_timing)
    outputs = Outputs(
        files.place(options.out, "--out"), options.submission, options.save_probabilities, options.save_confidence
    )
    return tile, outputs


def say_stage(workdir: Path) -> None:
    """Says which stage of a recipe was loaded from its workdir."""
    with contextlib.suppress(UserError):  # No workdir, but a file or an artifact.
        if (stage := workdirs.stage_workdir(workdir)) != workdir:
            print(f"reading stage {stage.name} of {workdir}", flush=True)


def predict(
    segmenter: Predictor, inputs: Mapping[Path, Path], outputs: Outputs, tile: tuple[int, int] | None
) -> tuple[list[tuple[str, int, int, str]], list[str]]:
    """Segments this process's share of the images and writes what the flags ask for.

    Returns:
      path, width, height and seconds of each image, and the messages about those that were skipped.
    """
    options = flags.FLAGS
    class_set, processes = segmenter.class_set, jax.process_count()
    ids = classes.raw_ids(class_set) if options.ids == "raw" or options.submission else np.arange(256, dtype=np.uint8)
    want = outputs.probabilities or outputs.confidence
    rows: list[tuple[str, int, int, str]] = []
    skipped: list[str] = []
    mine = dict(list(inputs.items())[distributed.share(len(inputs))])
    reading = batches(mine, options.batch_size * segmenter.devices, skipped if options.on_error == "skip" else None)
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(progress.shown("", len(inputs))) if not jax.process_index() else lambda done: None
        for names, batch in reading:
            began = time.perf_counter()
            with within_memory(mine[names[0]], batch.shape, bool(tile)):
                labels, probabilities = segment(
                    segmenter,
                    batch,
                    probabilities=want,
                    multi_scale=options.multi_scale,
                    tile=tile,
                    overlap=options.overlap,
                )
                seconds = (time.perf_counter() - began) / len(batch)
                for i, (name, image) in enumerate(zip(names, batch, strict=True)):
                    rows.append((str(mine[name]), image.shape[1], image.shape[0], f"{seconds:.4f}"))
                    own_probabilities = None if probabilities is None else probabilities[i]
                    outputs.write_all(name, image, labels[i], own_probabilities, class_set, ids)
            show(min(len(rows) * processes, len(inputs)))
    return rows, skipped


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    tile, outputs = checked(options)
    cli.join_processes()
    inputs, own = find_images(arguments)
    if options.submission:
        inputs = submission_names(inputs)
    inputs, unread = readable(inputs, skip=options.on_error == "skip")
    outputs.check(inputs)
    segmenter = loading.load(options.workdir, checkpoint=options.checkpoint, dtype=options.dtype)
    say_stage(files.place(options.workdir))
    shares = [json.loads(text) for text in distributed.gather(json.dumps(predict(segmenter, inputs, outputs, tile)))]
    if jax.process_index():
        return
    rows, skipped = (
        [row for share, _ in shares for row in share],
        unread + [text for _, share in shares for text in share],
    )
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    if not rows:
        raise UserError(f"none of {len(inputs)} images can be read; first: {skipped[0]}")
    if options.timing:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([_TIMING, *rows])
        files.write_text(options.timing, buffer.getvalue(), ours=is_timing)
    left_out = f", {len(skipped)} skipped" if skipped else ""
    left_out += f", {own} of earlier predictions left out" if own else ""
    print(
        f"{len(rows)} image(s){left_out}, {segmenter.class_set.num_classes} classes ({segmenter.class_set.name}), "
        f"{statistics.median(float(row[3]) for row in rows):.3f} s an image (median, {segmenter.dtype}), written to "
        f"{outputs.folder}"
    )


if __name__ == "__main__":
    cli.define_processes()
    flags.DEFINE_string("workdir", None, "Workdir, checkpoint, weight file or exported artifact.")
    flags.DEFINE_string("out", None, "Folder for the predictions.")
    flags.DEFINE_string("checkpoint", "last", "last, best or a step.")
    cli.define_dtype()
    flags.DEFINE_bool("multi_scale", False, "Average over the config's scales, each also flipped.")
    flags.DEFINE_bool("save_probabilities", False, "Also write float32 class probabilities as .npy.")
    flags.DEFINE_bool("save_confidence", False, "Also write the probability of each label as 8-bit PNG.")
    flags.DEFINE_enum("ids", "train", ["train", "raw"], "Values of x_label.png: class indices, or raw ids.")
    flags.DEFINE_bool("submission", False, "Write raw ids under the names that the Cityscapes server takes.")
    flags.DEFINE_string("tile", "", "WIDTHxHEIGHT of overlapping windows, for images too large to take whole.")
    flags.DEFINE_float("overlap", 0.25, "Share of a window that its neighbours see too.", 0.0, 0.9)
    flags.DEFINE_integer("batch_size", 1, "Images of one size that a device segments together.", lower_bound=1)
    flags.DEFINE_enum("on_error", "fail", ["fail", "skip"], "Unreadable images: end, or leave out and name them.")
    flags.DEFINE_string("timing", "", "CSV file to write: seconds each image took (the first of a size compiles).")
    flags.mark_flags_as_required(["workdir", "out"])
    cli.run(main)
