"""Draws miniature street scenes in the raw layouts of GTA5, SYNTHIA, Cityscapes and Cross-City.

  python scripts/make_miniature.py --out=RAW --datasets=gta5,cityscapes

Every dataset shares one sampler of streets in perspective with the 19 Cityscapes classes; what differs are the scene
statistics (camera, road, buildings, traffic) and the renderer (palette of every class, textures, light, haze, lens).
--shift scales both differences linearly: 0 draws every dataset like gta5, 1 with the statistics and palettes that are
written in miniature/domains.py. The default goes a quarter beyond: still streets to the eye, and a source-only model
fails clearly. Files, bit depths and label ids are those of the real datasets. The same flags give the same bytes.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from absl import flags

from fada_jax import cli
from fada_jax.errors import UserError
from fada_jax.scripts.miniature.generation import DEFAULT_SHIFT, MAX_SHIFT, generate
from fada_jax.scripts.miniature.layouts import DATASETS, Counts


def main(arguments: list[str]) -> None:
    values = flags.FLAGS
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: every setting is a flag, see --help")
    if not values.out:
        raise UserError("--out is missing: the folder to make")
    counts = Counts(*(getattr(values, f"{field.name}_images") for field in dataclasses.fields(Counts)))
    workers = values.workers if values.workers is not None else os.cpu_count() or 1
    size = cli.size("size", values.size)
    out = Path(values.out)
    text = generate(out, values.datasets, counts, size, values.seed, values.shift, workers, values.overwrite)
    print(f"{text}\nmade in {out}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to make; it must not exist yet.")
    flags.DEFINE_list("datasets", list(DATASETS), "Datasets to make, separated by commas.")
    flags.DEFINE_integer("seed", 0, "Seed of all random numbers, 0 or more.")
    flags.DEFINE_string("size", "128x64", "Width x height of the target; gta5 is 9/8 and synthia 19/16 as high.")
    flags.DEFINE_float("shift", DEFAULT_SHIFT, f"Strength of the domain shift, from 0 (like gta5) to {MAX_SHIFT}.")
    flags.DEFINE_integer("source_images", Counts.source, "Images of gta5, and of synthia.")
    flags.DEFINE_integer("target_images", Counts.target, "Training images of cityscapes.")
    flags.DEFINE_integer("val_images", Counts.val, "Validation images of cityscapes.")
    flags.DEFINE_integer("test_images", Counts.test, "Test images of cityscapes; their labels are void, as in reality.")
    flags.DEFINE_integer("city_train_images", Counts.city_train, "Unlabelled images of each city of crosscity.")
    flags.DEFINE_integer("city_test_images", Counts.city_test, "Labelled images of each city of crosscity.")
    flags.DEFINE_integer("workers", None, "Processes; default: the number of cores. The files do not depend on it.")
    flags.DEFINE_bool("overwrite", False, "Replace --out if this script made it.")
    cli.run(main)
