"""Data sets as a translation stage has learnt to paint them: of any split, or of the source of the same recipe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from fada_jax import distributed, files, progress
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.evaluation.translation import translated
from fada_jax.evaluation.translators import Translator, load_translator
from fada_jax.input_pipeline import records
from fada_jax.input_pipeline import translated as data_sets
from fada_jax.methods.cyclegan import TO_TARGET


def load_finished(place: Path, checkpoint: str = "last") -> Translator:
    """The translators of a stage, the last of which must be those of its last step.

    Raises:
      UserError: they are not there, or training is not finished.
    """
    translator = load_translator(place, checkpoint)
    total = int(translator.config["total_steps"])
    if checkpoint == "last" and translator.step < total:
        raise UserError(
            f"{place} has come to step {translator.step} of {total}: train it to its end, or name a step with "
            "--checkpoint"
        )
    return translator


def write(
    translator: Translator, request: data_sets.Translation, data_dir: str, mesh: jax.sharding.Mesh, per_device: int = 1
) -> tuple[Path, int]:
    """Writes a translated data set by the devices of ``mesh``; see ``input_pipeline.translated.write``."""
    title = f"{request.name}: {request.dataset}"
    return data_sets.write(
        request,
        data_dir,
        lambda images: translated(translator, TO_TARGET, images, mesh, per_device),
        lambda split, total: progress.shown(f"{title} {split}", total),
    )


def on_translated(config: Config, translation: Path) -> Config:
    """``config`` with its source as the stage in the folder ``translation`` translates it."""
    name = f"{config.source.dataset}_translated"
    source = dataclasses.replace(config.source, dataset=name, city="", data_dir=str(translation / "data"))
    return dataclasses.replace(config, source=source)


def is_there(config: Config) -> bool:
    """Whether the translated source of ``on_translated`` is written."""
    return files.exists(records.folder(files.place(config.source.data_dir), config.source.dataset))


def ensure(config: Config, original: Config, translation: Path, log: Callable[[str], None] = print) -> None:
    """Writes the translated source where it is not; process 0 does it for all.

    Args:
      config: of ``on_translated``.
      original: of the translation stage, whose source is translated.
      translation: its folder.
      log: receives what is done.

    Raises:
      UserError: the stage is not finished, data are missing, or translations of other weights lie there.
    """
    translator, source = load_finished(translation), original.source
    if is_there(config):
        root = records.open_split(config.source.data_dir, config.source.dataset, config.source.split).root
        note = records.description(root).translated
        if note is None or note.translator != translator.digest:
            raise UserError(f"{root} holds translations of other weights than {translation} does: delete it")
    elif jax.process_index() == 0:
        request = data_sets.Translation(
            source.dataset,
            source.split,
            config.source.dataset,
            source.size,
            translator.digest,
            translator.step,
            city=source.city,
            out_dir=str(translation / "data"),
            workers=os.cpu_count() or 1,
        )
        mesh = distributed.make_mesh(devices=jax.local_devices())
        root, count = write(translator, request, original.data_dir, mesh)
        log(f"translated {count} images of {source.dataset}/{source.split} with step {translator.step}: {root}")
    multihost_utils.sync_global_devices("translated")
