r"""Runs one ablation over seeds and writes its table, with mean and spread, beside the paper's numbers.

  python scripts/ablate.py --config=configs/gta5_to_cityscapes.py:size=miniature --config.data_dir=DATA --workdir=W
  python scripts/ablate.py --config=... --workdir=W --table=clipping --seeds=0,1,2,3,4
  python scripts/ablate.py --config=configs/gta5_to_cityscapes.py --config=configs/synthia_to_cityscapes.py \
      --table=knowledge --workdir=W --config.data_dir=DATA

Tables: components (the paper's table 4, with global alignment, the oracle and the honest baselines beside it),
knowledge (table 5), clipping (table 6), alignment (what the discriminator reads), lambda, temperature and distillation
(pseudo labels and start of the student) of the config's own method. Several --config share the overrides and get a
folder each.

W receives a folder a seed, with one a stage or variant, and TABLE.md and TABLE.csv of every seed that is finished.
Variants share the stages before theirs. The same command goes on where it stopped. Seeds may run at the same
time, each in a process of its own (--seeds=0, --seeds=1, ...): whichever ends last has the whole table.

To choose a value without touching the reported labels, score another split: --split=train where the target's training
images have labels, as in the miniature data. The table is then called TABLE_train.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fada_jax import cli, documents, files, stored
from fada_jax import config as schema
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.evaluation import colour_matching, scoring
from fada_jax.input_pipeline import streams
from fada_jax.methods import SYSTEMS
from fada_jax.reporting import ablation
from fada_jax.scripts import run_recipe
from fada_jax.stages import recipe, run, workdirs


@dataclasses.dataclass(frozen=True)
class Task:
    """One --config of the command.

    Attributes:
      path: config file with its arguments.
      overrides: ``--config.key=value`` of the command line.
      name: of the task, with the city where there is one.
      workdir: folder of its seeds.
      split: evaluation split that replaces the config's; may be empty.
    """

    path: str
    overrides: Mapping[str, Any]
    name: str
    workdir: Path
    split: str


def run_variant(task: Task, name: str, variant: ablation.Variant, seed: int) -> dict[str, dict[str, Any]]:
    """Scores of the rows of one variant, trained from the stages before its own where it is not yet."""
    folder = task.workdir / f"seed{seed}"
    own = stages_of(task, seed)[variant.stage]
    changes = dict(variant.overrides)
    if "lambda_adv" in changes:
        changes["lambda_adv"] *= own.lambda_adv
    config = stages_of(task, seed, variant.method, changes)[variant.stage]
    # A variant that is the recipe's own stage shares its folder.
    trained = workdirs.stage_folder(folder, variant.stage) if config == own else folder / name
    run.train(config, trained)
    scores = {name: _score(task, trained, config)}
    if variant.stage == "self_distillation":
        scores[name + ablation.MULTI_SCALE] = _score(task, trained, config, multi_scale=True)
    return scores


def stages_of(task: Task, seed: int, method: str = "", changes: Mapping[str, Any] | None = None) -> dict[str, Config]:
    """Configs of the recipe's stages for one seed, with another method and more overrides."""
    overrides = {**task.overrides, "seed": seed, **(changes or {})}
    return recipe.configs(task.path, overrides, task.workdir / f"seed{seed}", method)


def _score(task: Task, folder: Path, config: Config, **options: Any) -> dict[str, Any]:
    result = scoring.evaluate_stage(folder, data_dir=config.data_dir, split=task.split, **options)
    return recipe.only_scores(result)


def _labelled(config: Config) -> bool:
    return streams.class_counts(config.data_dir, config.source.stream(), config.classes) is not None


def check_split(task: Task, config: Config) -> None:
    """Refuses a split that could not be scored, before stages train for it.

    Raises:
      UserError: it is not there.
    """
    if task.split:
        streams.num_examples(config.data_dir, dataclasses.replace(config.eval, split=task.split).stream(augment=False))


def run_seed(table: str, task: Task, seed: int) -> dict[str, dict[str, Any]]:
    """Scores of every row of a table for one seed."""
    folder = task.workdir / f"seed{seed}"
    stages = stages_of(task, seed)
    if table == "components":
        rows, _ = run_recipe.run(task.path, {**task.overrides, "seed": seed}, folder, split=task.split)
        scores: dict[str, dict[str, Any]] = {}
        for row in rows:
            modes = row.get("by_mode", {"": row}).items()
            named = {"_".join(filter(None, (row["name"], mode))): result for mode, result in modes}
            scores |= {name: recipe.only_scores(result) for name, result in named.items()}
        if "adapted" in scores:
            adapted = functools.partial(_score, task, workdirs.stage_folder(folder, "adaptation"), stages["adaptation"])
            matched = (adapted(colour=mode) for mode in colour_matching.MODES)
            scores["adapted_colour_matching"] = max(matched, key=lambda result: result["miou"])
        oracle = stages_of(task, seed, "oracle")["source"]
        if _labelled(oracle):
            run.train(oracle, folder / "oracle")
            scores["oracle"] = _score(task, folder / "oracle", oracle)
        else:
            print(f"no oracle: {oracle.source.dataset}/{oracle.source.split} has no labels to train it on", flush=True)
    else:
        run.train(stages["source"], folder / "source")
        scores = {"source_only": _score(task, folder / "source", stages["source"])}
        if any(variant.stage == "self_distillation" for variant in ablation.TABLES[table].values()):
            run.train(stages["adaptation"], workdirs.stage_folder(folder, "adaptation"))
            adapted = functools.partial(_score, task, workdirs.stage_folder(folder, "adaptation"), stages["adaptation"])
            scores |= {"adapted": adapted(), "adapted" + ablation.MULTI_SCALE: adapted(multi_scale=True)}
    for name, variant in ablation.TABLES[table].items():
        scores |= run_variant(task, name, variant, seed)
    return scores


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


def run_task(table: str, file: str, task: Task, seeds: Sequence[int]) -> dict[int, ablation.Scores]:
    """Scores by seed of every seed that is finished, after running those of ``seeds`` that are not."""
    # Data may move between two seeds.
    overrides = {key: value for key, value in task.overrides.items() if key != "data_dir"}
    made_by = json.loads(json.dumps({"path": task.path, "overrides": overrides, "split": task.split}))
    for seed in seeds:
        path = task.workdir / f"seed{seed}" / f"{file}.json"
        if finished(path, table, made_by) is None:
            new = run_seed(table, task, seed)
            files.write_text(path, json.dumps({"config": made_by, "scores": new}, indent=2) + "\n")
    stored_files = task.workdir.glob(f"seed*/{file}.json")
    named = ((re.fullmatch(r"seed([0-9]{1,10})", path.parent.name), path) for path in stored_files)
    paths = {int(match[1]): path for match, path in named if match}
    kept = ((number, finished(paths[number], table, made_by)) for number in sorted(paths))
    scores = {number: rows for number, rows in kept if rows is not None}
    for seed, rows in scores.items():
        if _shape(rows) != _shape(scores[seeds[0]]):
            raise UserError(
                f"{paths[seed]} has other rows or classes than seed {seeds[0]}: delete it and run its seed again"
            )
    files.write_text(task.workdir / f"{file}.md", ablation.markdown(table, task.name, scores))
    files.write_text(task.workdir / f"{file}.csv", ablation.to_csv(scores))
    return scores


def _shape(scores: ablation.Scores) -> dict[str, tuple[Any, ...]]:
    """What the seeds of a table must share: rows, their scores and classes."""
    return {name: (*row["iou"], "miou_13" in row) for name, row in scores.items()} | {"": tuple(scores)}


def seeds_of(texts: Sequence[str]) -> list[int]:
    """The seeds that ``--seeds`` names.

    Raises:
      UserError: none, one twice, or something else than whole numbers.
    """
    seeds = [int(text) if re.fullmatch(r"[0-9]{1,10}", text) else -1 for text in texts]
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
        raise UserError(f"--seeds={','.join(texts)}: different whole numbers below 2147483648, separated by commas")
    return seeds


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    _, first, overrides = cli.config()
    seeds = seeds_of(options.seeds)
    workdir, tasks = Path(options.workdir).absolute(), []
    for path in (first, *options.and_config):
        config = schema.load(path, overrides)
        methods = [name for name, system in SYSTEMS.items() if system.adapts]
        if config.method not in methods:
            raise UserError(f"--config={path}: method={config.method} has nothing to ablate: {', '.join(methods)}")
        name = "_".join(filter(None, (config.task, config.target.city)))
        tasks.append(Task(path, overrides, name, workdir / name if options.and_config else workdir, options.split))
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"--config: {', '.join(task.name for task in tasks)}: each task only once")
    file = "_".join(filter(None, (options.table, options.split)))
    for task in tasks:
        files.check_output(task.workdir / f"{file}.md", ours=files.anything)
        check_split(task, stages_of(task, seeds[0])["source"])
    scores = {task.name: run_task(options.table, file, task, seeds) for task in tasks}
    for task in tasks:
        print(f"\n{files.read_text(task.workdir / f'{file}.md')}")
        print(f"written: {task.workdir / file}.md and .csv")
    if len(tasks) > 1:
        text = ablation.across_tasks(options.table, scores)
        files.write_text(workdir / f"{file}.md", text)
        print(f"\n{text}\nwritten: {workdir / file}.md")


if __name__ == "__main__":
    # absl keeps the last of several --config; all but the first go by another name.
    given = [i for i, argument in enumerate(sys.argv) if argument.startswith("--config=")]
    for i in given[1:]:
        sys.argv[i] = "--and_" + sys.argv[i].removeprefix("--")
    cli.define_config()
    flags.DEFINE_multi_string("and_config", [], "Another config of the same table: every --config but the first.")
    flags.DEFINE_string("workdir", None, "Folder of the ablation.")
    flags.DEFINE_enum("table", "components", list(ablation.TABLES), "Which table.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run, separated by commas.")
    flags.DEFINE_string("split", "", "Score this split of the target instead of the config's.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
