"""Runs one ablation over seeds and writes its table, with mean and spread, beside the paper's numbers.

  python scripts/ablate.py --config=configs/gta5_to_cityscapes.py:size=miniature --config.data_dir=DATA --workdir=W
  python scripts/ablate.py --config=... --workdir=W --table=clipping --seeds=0,1,2,3,4
  python scripts/ablate.py --config=configs/gta5_to_cityscapes.py --config=configs/synthia_to_cityscapes.py \\
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

import csv
import dataclasses
import functools
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy import stats

from fada_jax import classes, cli, colour_matching, evaluate, paper, settings, train
from fada_jax.errors import UserError
from fada_jax.methods import METHODS
from fada_jax.scripts import run_recipe

# Scores of one seed by row: ``miou``, ``iou`` by class and, where the class set has one, ``miou_13``; percent.
Scores = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: a stage by its method and overrides; without a method it has the config's own.

    Attributes:
      label: in the table.
      method: config argument; empty: the config's own.
      overrides: config keys; that of lambda_adv is a factor on the config's value.
      paper: the paper's mIoU by task.
      stage: adversarial, or self_distillation, which has a second row with multi-scale testing.
    """

    label: str
    method: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stage: str = "adversarial"


def _knowledge(name: str) -> dict[str, float]:
    return {task: values[name] for task, values in paper.KNOWLEDGE.items()}


_BINARY = {"binary": Variant("binary (global alignment)", "binary", paper=_knowledge("binary"))}
_SOFT = {"fada": Variant("soft labels (FADA)", "fada", paper=_knowledge("soft"))}
# Rows of each table by name; the recipe's own rows come first in 'components'.
TABLES: Mapping[str, Mapping[str, Variant]] = {
    "components": _BINARY,
    "knowledge": {**_BINARY, "hard": Variant("hard labels", "hard", paper=_knowledge("hard")), **_SOFT},
    "clipping": {
        f"clip_{clip}": Variant(f"clip {clip}", "fada", {"knowledge.clip": clip}, {"gta5_to_cityscapes": value})
        for clip, value in paper.CLIPPING.items()
    },
    "alignment": {
        **_BINARY,
        "output_space": Variant("output space (as AdaptSegNet)", "output_space"),
        "entropy": Variant("entropy (as ADVENT)", "entropy"),
        **_SOFT,
    },
    "lambda": {
        f"lambda_x{factor:g}": Variant(f"lambda_adv times {factor:g}", overrides={"lambda_adv": factor})
        for factor in (0.1, 0.3, 1.0, 3.0, 10.0)
    },
    "temperature": {
        f"temperature_{t}": Variant(f"T = {t}", overrides={"knowledge.temperature": t}) for t in (1.0, 1.8, 3.0)
    },
    "distillation": {
        name: Variant(label, overrides=overrides, stage="self_distillation")
        for name, label, overrides in (
            ("keep_1", "SD, every pixel", {"pseudo_labels.keep": 1.0}),
            ("keep_0.8", "SD, surest 80% of each class", {"pseudo_labels.keep": 0.8}),
            ("keep_0.5", "SD, surest half of each class", {"pseudo_labels.keep": 0.5}),
            ("keep_0.3", "SD, surest 30% of each class", {"pseudo_labels.keep": 0.3}),
            ("relative_0.5", "SD, class-balanced", {"pseudo_labels.keep": 0.5, "pseudo_labels.relative": True}),
            ("teacher_multi_scale", "SD, multi-scale teacher", {"pseudo_labels.multi_scale": True}),
            ("student_from_adversarial", "SD, student from the teacher", {"student_from": "adversarial"}),
        )
    },
}
_MULTI_SCALE = "_multi_scale"
# Rows of 'components' that no variant is behind.
LABELS = {
    **run_recipe.LABELS,
    "colour_matching_global": "colour matching, global (no training)",
    "colour_matching_image": "colour matching, per image (no training)",
    "adapted_colour_matching": "F-Adv tested on matched colours",
    "oracle": "oracle (trained on target labels)",
}
# What gains are paired against, where a table has it.
BASELINES = ("source_only", "control", "colour_matching_global", "colour_matching_image", "binary", "adapted")


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


def run_variant(task: Task, name: str, variant: Variant, seed: int) -> dict[str, dict[str, Any]]:
    """Scores of the rows of one variant, trained from the stages before its own where it is not yet."""
    folder = task.workdir / f"seed{seed}"
    own = stages_of(task, seed)[variant.stage]
    changes = dict(variant.overrides)
    if "lambda_adv" in changes:
        changes["lambda_adv"] *= own.lambda_adv
    config = stages_of(task, seed, variant.method, changes)[variant.stage]
    settings.check(config)
    # A variant that is the recipe's own stage shares its folder.
    trained = folder / (variant.stage if settings.plain(config) == settings.plain(own) else name)
    train.train(config, trained)
    scores = {name: _score(task, trained, config)}
    if variant.stage == "self_distillation":
        scores[name + _MULTI_SCALE] = _score(task, trained, config, multi_scale=True)
    return scores


def stages_of(
    task: Task, seed: int, method: str = "", changes: Mapping[str, Any] | None = None
) -> dict[str, ConfigDict]:
    """Configs of the recipe's stages for one seed, with another method and more overrides."""
    overrides = {**task.overrides, "seed": seed, **(changes or {})}
    method = method or run_recipe.stage_config(task.path, overrides).method
    return run_recipe.stage_configs(task.path, overrides, method, task.workdir / f"seed{seed}")


def _score(task: Task, folder: Path, config: ConfigDict, **options: Any) -> dict[str, Any]:
    result = evaluate.evaluate_stage(folder, data_dir=config.data_dir, split=task.split, **options)
    return run_recipe.only_scores(result)


def _labelled(config: ConfigDict) -> bool:
    from fada_jax.input_pipeline import streams

    class_set = classes.get_class_set(config.class_set)
    return streams.class_counts(config.data_dir, train.make_stream(config.source), class_set) is not None


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
            scores |= {name: run_recipe.only_scores(result) for name, result in named.items()}
        if "adapted" in scores:
            adapted = functools.partial(_score, task, folder / "adversarial", stages["adversarial"])
            matched = (adapted(colour=mode) for mode in colour_matching.MODES)
            scores["adapted_colour_matching"] = max(matched, key=lambda result: result["miou"])
        oracle = stages_of(task, seed, "oracle")["source"]
        if _labelled(oracle):
            train.train(oracle, folder / "oracle")
            scores["oracle"] = _score(task, folder / "oracle", oracle)
        else:
            print(f"no oracle: {oracle.source.dataset}/{oracle.source.split} has no labels to train it on", flush=True)
    else:
        train.train(stages["source"], folder / "source")
        scores = {"source_only": _score(task, folder / "source", stages["source"])}
        if any(variant.stage == "self_distillation" for variant in TABLES[table].values()):
            train.train(stages["adversarial"], folder / "adversarial")
            adapted = functools.partial(_score, task, folder / "adversarial", stages["adversarial"])
            scores |= {"adapted": adapted(), "adapted" + _MULTI_SCALE: adapted(multi_scale=True)}
    for name, variant in TABLES[table].items():
        scores |= run_variant(task, name, variant, seed)
    return scores


def finished(path: Path, config: Mapping[str, Any]) -> Scores | None:
    """Scores in the file of a seed, None where it is not there.

    Raises:
      UserError: it was made with another config.
    """
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    if stored["config"] != config:
        raise UserError(
            f"{path} was made by {stored['config']}, not by {config}: use another --workdir, or delete this file"
        )
    return stored["scores"]


def difference(values: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of the paired differences and the half width of its t confidence interval (NaN for a single pair)."""
    gains = np.subtract(values, baseline)
    if len(gains) < 2:
        return float(gains.mean()), float("nan")
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean()), float(stats.t.ppf(0.5 + level / 2, len(gains) - 1) * error)


def _paper(table: str, task: str, name: str) -> float | None:
    if name in TABLES[table]:
        return TABLES[table][name].paper.get(task)
    return paper.COMPONENTS.get(name) if task == "gta5_to_cityscapes" else None


def _label(table: str, name: str) -> str:
    labels = LABELS | {key: variant.label for key, variant in TABLES[table].items()}
    return labels[name] if name in labels else f"{labels[name.removesuffix(_MULTI_SCALE)]} + MST"


def markdown(table: str, task: str, scores: Mapping[int, Scores]) -> str:
    """Rows with mean and standard deviation over seeds, then gains paired by seed with 95% t intervals."""
    miou = by_row(scores, "miou")
    miou_13 = by_row(scores, "miou_13")
    head = [f"{task}, {table}", "mIoU", *(["mIoU* (13)"] if miou_13 else []), *(f"seed {s}" for s in scores), "paper"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, values in miou.items():
        there = _paper(table, task, name)
        cells = [_label(table, name), _spread(values), *([_spread(miou_13[name])] if miou_13 else [])]
        cells += [*(f"{v:.1f}" for v in values), "" if there is None else f"{there:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    baselines = [name for name in BASELINES if name in miou]
    lines += [
        "",
        "| gain, 95% interval | over " + " | over ".join(_label(table, name) for name in baselines) + " |",
        "| --- |" + " ---: |" * len(baselines),
    ]
    for name, values in miou.items():
        cells = []
        for baseline in baselines:
            mean, half = difference(values, miou[baseline])
            interval = "" if np.isnan(half) else f" [{mean - half:+.1f}, {mean + half:+.1f}]"
            cells.append("" if name == baseline else f"{mean:+.1f}{interval}")
        lines.append(f"| {_label(table, name)} | " + " | ".join(cells) + " |")
    # A class that occurs in no label and no prediction of a seed has no IoU there.
    lines += [
        "",
        "| class | " + " | ".join(_label(table, name) for name in miou) + " |",
        "| --- |" + " ---: |" * len(miou),
    ]
    for label in next(iter(next(iter(scores.values())).values()))["iou"]:
        cells = []
        for name in miou:
            present = [s[name]["iou"][label] for s in scores.values() if s[name]["iou"][label] is not None]
            cells.append(_spread(present) if present else "-")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_row(scores: Mapping[int, Scores], key: str) -> dict[str, list[float]]:
    """One score of every seed, by row; empty where the rows do not have it."""
    first = next(iter(scores.values()))
    return {name: [s[name][key] for s in scores.values()] for name, row in first.items() if key in row}


def across_tasks(table: str, scores: Mapping[str, Mapping[int, Scores]]) -> str:
    """One column a task, as in the paper's table 5: mean and standard deviation, and the paper's number."""
    miou = {task: by_row(seeds, "miou") for task, seeds in scores.items()}
    lines = [f"| {table} | {' | '.join(scores)} |", "| --- |" + " ---: |" * len(scores)]
    for name in next(iter(miou.values())):
        cells = []
        for task, rows in miou.items():
            there = _paper(table, task, name)
            cells.append(_spread(rows[name]) + ("" if there is None else f" (paper {there:.1f})"))
        lines.append(f"| {_label(table, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def to_csv(scores: Mapping[int, Scores]) -> str:
    """mIoU: one row a seed, one column a row of the table."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["seed", *next(iter(scores.values()))], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"seed": seed} | {name: row["miou"] for name, row in s.items()} for seed, s in scores.items())
    return buffer.getvalue()


def run_task(table: str, file: str, task: Task, seeds: Sequence[int]) -> dict[int, Scores]:
    """Scores by seed of every seed that is finished, after running those of ``seeds`` that are not."""
    # Data may move between two seeds.
    overrides = {key: value for key, value in task.overrides.items() if key != "data_dir"}
    made_by = json.loads(json.dumps({"path": task.path, "overrides": overrides, "split": task.split}))
    for seed in seeds:
        path = task.workdir / f"seed{seed}" / f"{file}.json"
        if finished(path, made_by) is None:
            scores = run_seed(table, task, seed)
            evaluate.write_text(path, json.dumps({"config": made_by, "scores": scores}, indent=2) + "\n")
    there = {int(path.parent.name.removeprefix("seed")): path for path in task.workdir.glob(f"seed*/{file}.json")}
    scores = {seed: finished(there[seed], made_by) for seed in sorted(there)}
    for seed, rows in scores.items():
        if list(rows) != list(scores[seeds[0]]):
            raise UserError(f"{there[seed]} has other rows than seed {seeds[0]}: delete it and run its seed again")
    evaluate.write_text(task.workdir / f"{file}.md", markdown(table, task.name, scores))
    evaluate.write_text(task.workdir / f"{file}.csv", to_csv(scores))
    return scores


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    _, first, overrides = cli.config()
    if not all(seed.isdigit() for seed in options.seeds) or len(set(options.seeds)) != len(options.seeds):
        raise UserError(f"--seeds={','.join(options.seeds)}: different whole numbers, separated by commas")
    workdir, tasks = Path(options.workdir).absolute(), []
    for path in (first, *options.and_config):
        config = run_recipe.stage_config(path, overrides)
        settings.check(config)
        if config.method not in METHODS:
            raise UserError(f"--config={path}: method={config.method} has nothing to ablate: {', '.join(METHODS)}")
        name = "_".join(filter(None, (config.task, config.target.city)))
        tasks.append(Task(path, overrides, name, workdir / name if options.and_config else workdir, options.split))
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"--config: {', '.join(task.name for task in tasks)}: each task only once")
    file = "_".join(filter(None, (options.table, options.split)))
    scores = {task.name: run_task(options.table, file, task, [int(s) for s in options.seeds]) for task in tasks}
    for task in tasks:
        print(f"\n{(task.workdir / file).with_suffix('.md').read_text()}")
        print(f"written: {task.workdir / file}.md and .csv")
    if len(tasks) > 1:
        text = across_tasks(options.table, scores)
        evaluate.write_text(workdir / f"{file}.md", text)
        print(f"\n{text}\nwritten: {workdir / file}.md")


if __name__ == "__main__":
    # absl keeps the last of several --config; all but the first go by another name.
    given = [i for i, argument in enumerate(sys.argv) if argument.startswith("--config=")]
    for i in given[1:]:
        sys.argv[i] = "--and_" + sys.argv[i].removeprefix("--")
    cli.define_config()
    flags.DEFINE_multi_string("and_config", [], "Another config of the same table: every --config but the first.")
    flags.DEFINE_string("workdir", None, "Folder of the ablation.")
    flags.DEFINE_enum("table", "components", list(TABLES), "Which table.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run, separated by commas.")
    flags.DEFINE_string("split", "", "Score this split of the target instead of the config's.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
