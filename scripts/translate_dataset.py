r"""Translates the images of a converted data set into the look of another domain, and writes a data set of its own.

  python -m fada_jax.train --config=configs/gta5_to_cityscapes.py:stage=translation --workdir=W --config.data_dir=DATA
  python scripts/translate_dataset.py --workdir=W --data_dir=DATA --name=gta5_as_cityscapes
  python scripts/run_recipe.py --config=configs/gta5_to_cityscapes.py --workdir=R --config.data_dir=DATA \
      --config.source.dataset=gta5_as_cityscapes

CyCADA's own recipe (method=cycada) translates by itself: give it the data set as it was.

W is a finished translation stage. Whole images are resized to the size that its images had before they were cropped,
translated, and resized to their own size again. Labels are carried over as they are, and what their ids mean stands in
the new data set, so that every method and class set of the original works on it. It appears at its place only when it
is complete; conversion.json says which translator made it of which images.
"""

from __future__ import annotations

import os

import jax
from absl import flags

from fada_jax import cli, distributed, files
from fada_jax.errors import UserError
from fada_jax.evaluation.translators import Translator
from fada_jax.input_pipeline import translated as writing
from fada_jax.stages import translating
from fada_jax.training import checkpoints


def load(workdir: str, checkpoint: str) -> Translator:
    """``translating.load_finished`` of a stage, or of the stage of that name in a recipe's folder."""
    place = files.place(workdir, "--workdir")
    inside = place / "translation"
    if not checkpoints.available_steps(place) and checkpoints.available_steps(inside):
        place = inside
    return translating.load_finished(place, checkpoint)


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    translator = load(options.workdir, options.checkpoint)
    source = translator.config["source"]
    size = cli.size("size", options.size, least=8) if options.size else tuple(source["size"])
    request = writing.Translation(
        options.dataset or source["dataset"],
        options.split or source["split"],
        options.name,
        size,
        translator.digest,
        translator.step,
        city=options.city or ("" if options.dataset else source["city"]),
        encoding=options.encoding,
        workers=options.workers,
    )
    writing.check(request, options.data_dir)
    mesh = distributed.make_mesh()
    title = f"{request.name}: {request.dataset}"
    print(
        f"{title}/{request.split} at {size[0]}x{size[1]} by step {translator.step} of {options.workdir} on {mesh.size} "
        f"{jax.default_backend()} device(s)"
    )
    root, count = translating.write(translator, request, options.data_dir, mesh, options.batch_size)
    print(f"{request.name}: {request.split} {count} images in {root}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished translation stage.")
    flags.DEFINE_string("data_dir", None, "Where the TFRecords are, and where the new ones go.")
    flags.DEFINE_string("name", None, "What configs call the new data set.")
    flags.DEFINE_string("dataset", "", "Data set to translate; default: the stage's source.")
    flags.DEFINE_string("split", "", "Its split; default: the stage's.")
    flags.DEFINE_string("city", "", "Cross-City only.")
    flags.DEFINE_string("size", "", "WIDTHxHEIGHT that the translator works at; default: the stage's, uncropped.")
    flags.DEFINE_string("checkpoint", "last", "Step of the stage; 'last' must be its last.")
    flags.DEFINE_enum("encoding", "", ["", "png", "jpeg", "tiff"], "Of the new images; default: as in the data set.")
    flags.DEFINE_integer("batch_size", 1, "Images on each device at a time.", 1, 1024)
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Threads that decode and encode images.", 1, 1024)
    flags.mark_flags_as_required(["workdir", "data_dir", "name"])
    cli.run(main)
