"""A system's whole recipe: its stages one after the other, then a row of scores for each result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fada_jax import config as schema
from fada_jax import handovers
from fada_jax.config import Config
from fada_jax.evaluation import colour_matching, scoring
from fada_jax.methods import SYSTEMS
from fada_jax.methods.stages import ALIGNED, RELEASED, STUDENT, Part
from fada_jax.stages import beginning, run, translating, workdirs

Row = dict[str, Any]
_BASELINES = ("source", "control")
# Names of rows that are not those of folders.
_ROWS = {"source": "source_only", "adaptation": "adapted", "self_distillation": "self_distilled"}


def configs(path: str, overrides: Mapping[str, Any], workdir: Path, method: str = "") -> dict[str, Config]:
    """Configs of the stages of a recipe by the name of their folder, in the order they run.

    Args:
      path: config file with the user's arguments.
      overrides: ``--config.key=value`` of the command line, by flattened key.
      workdir: of the recipe.
      method: replaces that of the config; its own recipe is then the method's.

    Raises:
      UserError: an impossible value.
    """
    begun = schema.load(path, overrides)
    parts = (begun.recipe if not method else ()) or SYSTEMS[method or begun.method].recipe
    method = method or begun.method
    if begun.fidelity == "released" and parts == ALIGNED:
        parts = RELEASED
    stages: dict[str, Config] = {}
    for part in parts:
        stages |= (
            _rounds(part, path, overrides, workdir, method)
            if part.repeated
            else {part.folder: _part(part, path, overrides, workdir, method)}
        )
    return stages


def _rounds(part: Part, path: str, overrides: Mapping[str, Any], workdir: Path, method: str) -> dict[str, Config]:
    """Configs of the rounds that a part stands for, by folder."""
    stages: dict[str, Config] = {}
    config = _part(part, path, overrides, workdir, method)
    for number in range(1, config.rounds.number + 1):
        keep = config.rounds.keep(config.pseudo_labels.keep, number)
        if stages:
            before = str(workdirs.stage_folder(workdir, [*stages][-1]))
            config = dataclasses.replace(config, init_from=before, teacher_from=before)
        chosen = dataclasses.replace(config.pseudo_labels, keep=keep)
        stages[f"{part.folder}_{number}"] = dataclasses.replace(config, pseudo_labels=chosen)
    return stages


def _part(part: Part, path: str, overrides: Mapping[str, Any], workdir: Path, method: str) -> Config:
    if part.method not in ("", method):  # What the command line says of a method is not said of another beside it.
        overrides = {key: x for key, x in overrides.items() if key.partition(".")[0] not in ("lambda_adv", "options")}
    config = schema.load(path, overrides, stage=part.stage, method=part.method or method)
    folders = {"init_from": part.init_from, "teacher_from": part.teacher_from}
    if part.init_from == STUDENT:
        folders["init_from"] = "" if config.student_from == "init_from" else config.student_from
    parents = {key: str(workdirs.stage_folder(workdir, folder)) for key, folder in folders.items() if folder}
    if part.images:
        config = translating.on_translated(config, workdirs.stage_folder(workdir, part.images))
    return dataclasses.replace(
        config,
        init_from=parents.get("init_from", config.init_from),
        teacher_from=parents.get("teacher_from", config.teacher_from),
    )


def check(stages: Mapping[str, Config], workdir: Path) -> None:
    """Refuses a later stage's mistake before the first stage has run for a day, while nothing is written.

    Raises:
      UserError: anything the user can mend.
    """
    for name, config in stages.items():
        translation = translation_of(config, stages, workdir)
        if translation and not translating.is_there(config):
            config = dataclasses.replace(config, source=stages[translation].source)
            if workdirs.segments(workdirs.stage_folder(workdir, name)):
                continue  # It is made again as it was, and what the stage began with is compared then.
        beginning.check(config, workdirs.stage_folder(workdir, name))


def translation_of(config: Config, stages: Mapping[str, Config], workdir: Path) -> str:
    """Folder of the stage that translates the source's images of another; empty where none does."""
    for name, other in stages.items():
        if other.kind.translates and config.source.data_dir == str(workdirs.stage_folder(workdir, name) / "data"):
            return name
    return ""


def provide(config: Config, stages: Mapping[str, Config], workdir: Path) -> None:
    """Translates the source's images of a stage, where an earlier one paints them and they are not there.

    Raises:
      UserError: see ``translating.ensure``.
    """
    if name := translation_of(config, stages, workdir):
        translating.ensure(config, stages[name], workdirs.stage_folder(workdir, name))


def train(stages: Mapping[str, Config], workdir: Path) -> None:
    """Trains every stage; what is finished already is not done again.

    Raises:
      UserError: anything the user can mend.
    """
    for name, config in stages.items():
        provide(config, stages, workdir)
        run.train(config, workdirs.stage_folder(workdir, name))


def score(stages: Mapping[str, Config], workdir: Path, split: str = "") -> list[Row]:
    """Scores of every row of the table on the target's evaluation split or another one, last checkpoints.

    Returns:
      ``name`` and the result of ``scoring.evaluate_stage`` of each.
    """
    first = next(iter(stages.values()))
    data_dir = first.data_dir

    def row(name: str, stage: str, **options: Any) -> Row:
        print(f"scoring {name}", flush=True)
        folder = workdirs.stage_folder(workdir, stage)
        with handovers.within(row=name):
            return {"name": name, **scoring.evaluate_stage(folder, data_dir=data_dir, split=split, **options)}

    rows = [row(_ROWS.get(name, name), name) for name in _BASELINES if name in stages]
    if "source" in stages and first.method != "oracle":
        # The better of the two is reported, chosen by the reported labels: in the baseline's favour.
        tried = {mode: row("colour_matching", "source", colour=mode) for mode in colour_matching.MODES}
        best = max(tried, key=lambda mode: tried[mode]["miou"])
        by_mode = {mode: only_scores(result) for mode, result in tried.items()}
        rows.append({**tried[best], "mode": best, "by_mode": by_mode})
    for folder, config in stages.items():
        if folder not in _BASELINES and not config.kind.translates:
            name = _ROWS.get(folder, folder)
            rows.append(row(name, folder))
            if config.stage == "self_distillation":
                rows.append(row(f"{name}_multi_scale", folder, multi_scale=True))
    return rows


def adapted(stages: Mapping[str, Config]) -> str:
    """Folder of the last stage of a recipe that adapts; empty where none does."""
    adapting = [name for name, config in stages.items() if config.kind.adapts and name not in _BASELINES]
    return adapting[-1] if adapting else ""


def only_scores(result: Mapping[str, Any]) -> Row:
    """The numbers of a row that tables are made of."""
    return {key: result[key] for key in ("miou", "miou_13", "iou") if key in result}
