"""Converts a raw data set, as distributed, to sharded TFRecords with an index for random access.

  python scripts/convert_dataset.py --dataset=gta5 --raw_dir=GTA5 --data_dir=DATA --workers=8
  python scripts/convert_dataset.py --dataset=crosscity --raw_dir=NTHU --data_dir=DATA --city=Rome
  python scripts/convert_dataset.py --dataset=gta5 --raw_dir=GTA5 --data_dir=DATA --resize=1280x720
  python scripts/convert_dataset.py --dataset=gta5 --raw_dir=GTA5 --data_dir=DATA --encoding=tiff
  python scripts/convert_dataset.py --dataset=gta5 --data_dir=DATA --verify
  python scripts/convert_dataset.py --dataset=folder --name=mine --raw_dir=MINE --class_map=classes.json --data_dir=DATA

Labels keep their raw ids; the class set is chosen by the training config. Every image and label is checked. A data set
appears at its place only when it is complete, so a killed conversion leaves nothing that looks like one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from absl import flags

from fada_jax import cli, files, progress
from fada_jax.classes import CITIES, ENCODINGS, parse_class_map, read_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import layouts


def main(arguments: list[str]) -> None:
    from fada_jax.input_pipeline import records

    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    size = cli.size("resize", options.resize) if options.resize else None
    own = options.dataset == "folder"
    if own and (not re.fullmatch("[a-z][a-z0-9_]{0,63}", options.name) or options.name in ENCODINGS):
        raise UserError(f"--name={options.name}: name your data set in small letters, digits and _, unlike ours")
    if not own and (options.name or options.class_map):
        raise UserError(f"--name and --class_map are for --dataset=folder, not for {options.dataset}")
    if options.city and options.dataset != "crosscity":
        raise UserError(f"--city is for --dataset=crosscity, not for {options.dataset}")
    cities: tuple[str, ...] = ("",)
    if options.dataset == "crosscity":
        cities = (options.city,) if options.city else CITIES
    for city in cities:
        if city and city not in CITIES:
            raise UserError(f"--city={city}: one of {', '.join(CITIES)}")
        title = "/".join(filter(None, (options.name or options.dataset, city)))
        root = records.root(options.data_dir, options.name or options.dataset, city)
        if root.is_dir() and not options.overwrite:
            _refuse_other_form(options, title, root, size)
            compared = _refuse_other_files(options, title, root, city)
            print(f"{title} is already in {root} (--overwrite converts it again){compared}")
        elif options.verify and not options.raw_dir:
            raise UserError(f"{root} is not there: nothing to verify")
        else:
            _convert(options, title, city, size)
        if options.verify:
            counts = ", ".join(f"{split} {count}" for split, count in records.verify(root).items())
            print(f"{title}: verified ({counts})")


def _refuse_other_form(options: flags.FlagValues, title: str, root: Path, size: tuple[int, int] | None) -> None:
    """Says what a converted data set holds, where another size, encoding or class map is asked for."""
    from fada_jax.input_pipeline import records

    stored, difference = records.description(root), ""
    if options.raw_dir and stored.resize != size:
        stored_size = "x".join(map(str, stored.resize)) if stored.resize else "its own size"
        difference = f"at {stored_size}, not at {options.resize or 'its own size'}"
    elif options["encoding"].present and stored.encoding != options.encoding:
        difference = f"as {stored.encoding}, not as {options.encoding}"
    elif options.class_map:
        wanted = parse_class_map(read_class_map(options.class_map), options.class_map)[1]
        if records.label_encoding(root, options.name) != wanted:
            difference = f"converted with another class map than {options.class_map}"
    if difference:
        raise _another(f"{root} holds {title} {difference}")


def _refuse_other_files(options: flags.FlagValues, title: str, root: Path, city: str) -> str:
    """Says that a data set was converted from other files than now lie in the raw folder.

    Returns:
      a remark where they cannot be compared.
    """
    from fada_jax.input_pipeline import records

    converted = records.description(root).raw
    if not options.raw_dir or not converted:
        return ""
    raw = files.place(options.raw_dir, "--raw_dir")
    if not raw.exists():
        return f"; --raw_dir={options.raw_dir} is not there to be compared with it"
    now = layouts.fingerprints(layouts.list_splits(options.dataset, raw, city), raw)
    if others := [split for split in sorted({*now, *converted}) if now.get(split) != converted.get(split)]:
        raise _another(f"{root} holds {title} made of other files than lie in --raw_dir now ({', '.join(others)})")
    return ""


def _another(problem: str) -> UserError:
    return UserError(f"{problem}: --overwrite converts it again, another --data_dir keeps both")


def _convert(options: flags.FlagValues, title: str, city: str, size: tuple[int, int] | None) -> None:
    from fada_jax.input_pipeline import conversion, encoding

    if not options.raw_dir:
        raise UserError("--raw_dir is missing: the folder of the raw data")
    if not files.place(options.raw_dir, "--raw_dir").is_dir():
        raise UserError(f"--raw_dir={options.raw_dir}: no such folder")
    if options.name and not options.class_map:
        raise UserError("--class_map is missing: the JSON file that says which raw ids are which class")
    class_map = read_class_map(options.class_map) if options.class_map else None
    if options.encoding == "jpeg":
        quality = encoding.JPEG_QUALITY
        print(f"{title}: JPEG files are kept as they are; all other images LOSE detail, as JPEGs of quality {quality}")
    request = conversion.Conversion(
        options.dataset,
        files.place(options.raw_dir, "--raw_dir"),
        city=city,
        name=options.name,
        class_map=class_map,
        workers=options.workers,
        beam=options.beam,
        resize=size,
        encoding=options.encoding,
        skip_errors=options.on_error == "skip",
    )
    root, counts, errors = conversion.convert(
        request, options.data_dir, lambda split, total: progress.shown(f"{title} {split}", total)
    )
    print(f"{title}: {', '.join(f'{split} {count} images' for split, count in counts.items())} in {root}")
    if errors:
        report = conversion.report_path(options.data_dir, request.stored_as, city)
        print(f"{title}: {len(errors)} skipped, listed in {report}; first: {errors[0]}")


if __name__ == "__main__":
    flags.DEFINE_enum("dataset", None, list(layouts.DATASETS), "Which data set.")
    flags.DEFINE_string("raw_dir", "", "Its folder as distributed.")
    flags.DEFINE_string("data_dir", None, "Where the TFRecords go.")
    flags.DEFINE_string("city", "", "Cross-City: one city; default: all four.")
    flags.DEFINE_string("name", "", "folder: what configs call your data set.")
    flags.DEFINE_string("class_map", "", "folder: JSON file of class names and raw ids, see docs/custom_data.md.")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes that read and check images.", 1, 1024)
    flags.DEFINE_string("beam", "", "Let Apache Beam do it, with these pipeline options: '--runner=DirectRunner'.")
    flags.DEFINE_string("resize", "", "Store images at WIDTHxHEIGHT already.")
    flags.DEFINE_enum(
        "encoding",
        "png",
        ["png", "jpeg", "tiff"],
        "Images that are no JPEGs become png (lossless), jpeg (small, loses detail) or tiff (lossless, fastest, for "
        "fada-jax alone).",
    )
    flags.DEFINE_enum("on_error", "fail", ["fail", "skip"], "Bad files: fail with a report, or skip and count.")
    flags.DEFINE_bool("verify", False, "Re-read the converted data and prove counts and checksums.")
    flags.DEFINE_bool("overwrite", False, "Convert again even if the data set is there.")
    flags.mark_flags_as_required(["dataset", "data_dir"])
    cli.run(main)
