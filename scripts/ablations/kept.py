"""What an ablation keeps of a task: a file a seed, or in 'systems' a file a row, each with what made it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fada_jax import documents, stored
from fada_jax.errors import UserError
from fada_jax.reporting import ablation, paper


@dataclasses.dataclass(frozen=True)
class Task:
    """One --config of the command.

    Attributes:
      path: config file with its arguments.
      overrides: ``--config.key=value`` of the command line.
      name: of the task, with the city where there is one.
      workdir: folder of its seeds.
      split: evaluation split that replaces the config's; may be empty.
      network: of the paper's tables whose numbers stand beside ours.
    """

    path: str
    overrides: Mapping[str, Any]
    name: str
    workdir: Path
    split: str
    network: str = paper.RESNET

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides its scores, in JSON types; data may move between two seeds."""
        overrides = {key: value for key, value in self.overrides.items() if key != "data_dir"}
        return json.loads(json.dumps({"path": self.path, "overrides": overrides, "split": self.split}))


def finished(path: Path, table: str, config: Mapping[str, Any]) -> ablation.Scores | None:
    """Scores of a table in the file of a seed, None where it is not there.

    Raises:
      UserError: it was made with another config, or cannot be one of ours.
    """
    if not path.exists():
        return None
    values = documents.read(path)
    again = "delete this file, and its seed is scored again"
    documents.check(values, stored.SeedScores, path, advice=again)
    if values["config"] != config:
        raise UserError(
            f"{path} was made by {values['config']}, not by {config}: use another --workdir, or delete this file"
        )
    unknown = next((name for name in values["scores"] if not ablation.is_row(table, name)), None)
    if unknown is not None:
        raise UserError(f"{path}: scores.{unknown} is no row of the table {table}: {again}")
    return values["scores"]


def by_seed(task: Task, pattern: str) -> dict[int, Path]:
    """What matches in the folders of seeds, by seed."""
    found = ((re.fullmatch(r"seed([0-9]{1,10})", path.parent.name), path) for path in task.workdir.glob(pattern))
    return {int(match[1]): path for match, path in found if match}


def row_file(path: Path, task: Task) -> dict[str, Any]:
    """The ``config`` of a row's file.

    Raises:
      UserError: it is none of this task.
    """
    config = documents.read(path)
    config = config.get("config") if isinstance(config, dict) else None
    trained = config.get("trained") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(trained, dict):
        raise UserError(f"{path} is no row of systems: delete this file, and it is scored again")
    finished(path, "systems", {**task.made_by, "trained": trained})
    return config


def finished_rows(file: str, task: Task) -> dict[int, ablation.Scores]:
    """Every row of 'systems' that is finished, by seed and in the table's order; a row that a seed lacks is empty.

    Raises:
      UserError: rows of other classes, or none at all.
    """
    found: dict[int, dict[str, Any]] = {}
    for name in ablation.SYSTEM_ROWS:
        for path in task.workdir.glob(f"seed*/{file}/{name}.json"):
            if match := re.fullmatch(r"seed([0-9]{1,10})", path.parents[1].name):
                row_file(path, task)
                row = documents.read(path)["scores"].get(name, {})
                found.setdefault(int(match[1]), {})[name] = row
    shapes = {(*row["iou"], "miou_13" in row): seed for seed, rows in found.items() for row in rows.values()}
    if len(shapes) > 1:
        raise UserError(f"{task.workdir}: rows of seed {max(shapes.values())} have other classes than the others'")
    if not found:
        raise UserError(f"{task.workdir}: no row of systems is finished")
    names = [name for name in ablation.SYSTEM_ROWS if any(name in rows for rows in found.values())]
    return {seed: {name: found[seed].get(name, {}) for name in names} for seed in sorted(found)}


def shape(scores: ablation.Scores) -> dict[str, tuple[Any, ...]]:
    """What the seeds of a table must share: rows, their scores and classes."""
    return {name: (*row["iou"], "miou_13" in row) for name, row in scores.items()} | {"": tuple(scores)}
