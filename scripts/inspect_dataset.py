r"""Shows what a converted data set holds: counts, class frequencies, and a contact sheet of images and labels.

  python scripts/inspect_dataset.py --dataset=gta5 --data_dir=DATA
  python scripts/inspect_dataset.py --dataset=crosscity --city=Rome --split=test --class_set=crosscity13 \
      --data_dir=DATA --output=rome.png

Without --split every split is shown, and without --class_set the classes are those that the labels give.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from fada_jax import classes, cli, files, images
from fada_jax.classes import ClassSet
from fada_jax.errors import UserError

# Of a sheet, which takes a dozen bytes a pixel while it is drawn.
_MAX_PIXELS = 50_000_000


def choose_class_set(dataset: str, root: Path, name: str) -> ClassSet:
    """The class set called ``name``; without one a user's own, else the first of ours that the labels give.

    Raises:
      UserError: no such class set.
    """
    from fada_jax.input_pipeline import records

    if name:
        try:
            return classes.get_class_set(name)
        except ValueError as error:
            raise UserError(f"--class_set={name}: {error}") from error
    if dataset not in classes.ENCODINGS:
        return classes.parse_class_map(records.class_map(root), root / "conversion.json")[0]
    labelled = set(classes.ENCODINGS[dataset].ids.values())
    return next(s for s in classes.CLASS_SETS.values() if labelled >= set(s.names))


def frequency_table(counts: np.ndarray, class_set: ClassSet) -> str:
    """A line a class: its share of the labelled pixels, and the images that hold it.

    Args:
      counts: int64 [N, K + 1], pixels per image and class; the last column is ignored pixels.
      class_set: names of the K classes.
    """
    labelled = max(int(counts[:, :-1].sum()), 1)
    lines = [f"  {'class':<14}{'pixels':>16}{'share':>10}{'images':>9}"]
    for name, column in zip(class_set.names, counts.T, strict=False):
        share = 100 * int(column.sum()) / labelled
        lines.append(f"  {name:<14}{int(column.sum()):>16,}{share:>9.3f}%{int((column > 0).sum()):>9,}")
    ignored = int(counts[:, -1].sum())
    lines.append(f"  {'(ignored)':<14}{ignored:>16,}{100 * ignored / max(int(counts.sum()), 1):>9.3f}% of all pixels")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    from fada_jax.input_pipeline import layouts, records, streams
    from fada_jax.input_pipeline.stream import Stream

    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    for flag in ("dataset", "city", "split"):
        if value := options[flag].value or "":
            layouts.check_name(value, f"--{flag}")
    root = records.root(options.data_dir, options.dataset, options.city)
    splits = records.splits(root)
    if options.split or not splits:
        streams.num_examples(options.data_dir, Stream(options.dataset, options.split, (0, 0), options.city))
        splits = [options.split]
    class_set = choose_class_set(options.dataset, root, options.class_set)
    output = files.place(options.output, "--output")
    files.check_output(output, "--output", ours=images.is_ours)
    sheets: list[tuple[np.ndarray, np.ndarray | None]] = []
    for split in splits:
        stream = Stream(options.dataset, split, (options.width, 0), city=options.city)
        counts = streams.class_counts(options.data_dir, stream, class_set)
        images_stored = streams.num_examples(options.data_dir, stream)
        print(f"{root} {split}: {images_stored:,} images" + ("" if counts is not None else ", unlabelled"))
        if counts is not None:
            print(frequency_table(counts, class_set))
        sheets += streams.examples(
            options.data_dir,
            stream,
            class_set,
            np.linspace(0, images_stored - 1, min(options.images, images_stored)).astype(int),
        )
    write_sheet(output, sheets, options.width, class_set)
    print(f"contact sheet ({', '.join(splits)}): {output}")


def write_sheet(
    output: Path, examples: list[tuple[np.ndarray, np.ndarray | None]], width: int, class_set: ClassSet
) -> None:
    """Writes images of ``width`` pixels with their labels, one example a row.

    Raises:
      UserError: more pixels than memory should be asked for, or somebody else's file lies at ``output``.
    """
    size = (width, max(1, round(width * examples[0][0].shape[0] / examples[0][0].shape[1])))
    if 3 * len(examples) * size[0] * size[1] > _MAX_PIXELS:
        raise UserError(
            f"--images and --width make a sheet of {len(examples)} rows of {3 * size[0]}x{size[1]}: lower either"
        )
    rows = []
    for image, label in examples:
        image = images.resize_image(image, size)
        color = np.zeros((1, 1, 3), np.uint8) if label is None else images.colorize(label, class_set)
        color = np.asarray(Image.fromarray(color).resize(size, Image.Resampling.NEAREST))
        overlay = image if label is None else np.rint(0.5 * image + 0.5 * color).astype(np.uint8)
        rows.append((image, color, overlay))
    sheet = images.panel(("image", "label", "overlay"), rows, class_set)
    images.write_image(output, np.asarray(sheet), ours=images.is_ours)


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, "Which converted data set.")
    flags.DEFINE_string("data_dir", None, "Where the TFRecords are.")
    flags.DEFINE_string("city", "", "Cross-City only.")
    flags.DEFINE_string("split", "", "One split; default: all.")
    flags.DEFINE_string("class_set", "", "Classes to show, a name or a class map; default: what the labels give.")
    flags.DEFINE_string("output", "sheet.png", "PNG to write.")
    flags.DEFINE_integer("images", 6, "Images of each split on the sheet.", 1, 1000)
    flags.DEFINE_integer("width", 256, "Width of an image on the sheet.", 16, 4096)
    flags.mark_flags_as_required(["dataset", "data_dir"])
    cli.run(main)
