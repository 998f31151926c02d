r"""Runs one ablation over seeds and writes its table, with mean and spread, beside the paper's numbers.

  python scripts/ablate.py --config=configs/gta5_to_cityscapes.py:size=miniature --config.data_dir=DATA --workdir=W
  python scripts/ablate.py --config=... --workdir=W --table=clipping --seeds=0,1,2,3,4
  python scripts/ablate.py --config=configs/gta5_to_cityscapes.py --config=configs/synthia_to_cityscapes.py \
      --table=knowledge --workdir=W --config.data_dir=DATA

  python scripts/ablate.py --config=... --workdir=W --table=systems --rows=clan,advent     # these rows alone

Tables: components (the paper's table 4, with global alignment, the oracle and the honest baselines beside it),
knowledge (table 5), clipping (table 6), alignment (what the discriminator reads), lambda, temperature and distillation
(pseudo labels and start of the student) of the config's own method, portion (labelled share of the first round of
self-training); systems (every system that adapts, from one source stage, beside the paper's tables 1 to 3). Several
--config share the overrides and get a folder each.

W receives a folder a seed, with one a stage or variant, and TABLE.md and TABLE.csv of every seed that is finished.
Variants share the stages before theirs. The same command goes on where it stopped. Seeds may run at the same
time, each in a process of its own (--seeds=0, --seeds=1, ...): whichever ends last has the whole table. Rows of
'systems' are kept one by one, so the table may grow, and processes may share it by --rows, too: whoever finds a stage
in the making waits for it. W then also receives systems.json, from which docs/systems.md is filled.

To choose a value without touching the reported labels, score another split: --split=train where the target's training
images have labels, as in the miniature data. The table is then called TABLE_train. --table=lambda takes any method
(--config=...:method=clan), portion those with rounds; that of another method than fada is called lambda_METHOD, and
shares the workdir.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fada_jax import cli, files
from fada_jax import config as schema
from fada_jax.config import FREE_ON_RESUME, Config
from fada_jax.configs.base import ARGUMENTS
from fada_jax.errors import Busy, UserError
from fada_jax.evaluation import colour_matching, scoring
from fada_jax.input_pipeline import streams
from fada_jax.methods import SYSTEMS
from fada_jax.reporting import ablation, paper, results
from fada_jax.scripts import run_recipe
from fada_jax.scripts.ablations.kept import Task, by_seed, finished, finished_rows, row_file, shape
from fada_jax.stages import recipe, run, workdirs

# Seconds between two looks at a stage that another process trains.
WAIT = 2.0
_NO_SETTINGS = ("init_from", "teacher_from", *FREE_ON_RESUME)
# Tables that a value is chosen from for each method.
SEARCHES = ("lambda", "portion")


def _train(config: Config, folder: Path) -> None:
    """``run.train``, once no other process is at work in the folder."""
    waits = False
    while True:
        try:
            run.train(config, folder)
            return
        except Busy:
            if not waits:
                print(f"waiting: another process is at work in {folder}", flush=True)
            waits = True
            time.sleep(WAIT)


def run_variant(task: Task, name: str, variant: ablation.Variant, seed: int) -> dict[str, dict[str, Any]]:
    """Scores of the rows of one variant, trained from the stages before its own where it is not yet."""
    folder, stages = task.workdir / f"seed{seed}", stages_of(task, seed)
    own = stages[_trained(stages, variant)]
    changes = dict(variant.overrides)
    if "lambda_adv" in changes:
        changes["lambda_adv"] *= own.lambda_adv
    changed = stages_of(task, seed, variant.method, changes)
    config = changed[_trained(changed, variant)]
    if _has_several(changed, variant):
        return {name: _run_stages(task, folder, changed, name if variant.method else f"{config.method}_{name}")}
    # A variant that is the recipe's own stage shares its folder.
    trained = workdirs.stage_folder(folder, variant.stage) if config == own else folder / name
    if "lambda_adv" in changes and config.method != ARGUMENTS["method"]:  # The folder may be that of several methods.
        trained = folder / (config.method if config == own else f"{config.method}_{name}")
    _train(config, trained)
    scores = {name: _score(task, trained, config)}
    if variant.stage == "self_distillation":
        scores[name + ablation.MULTI_SCALE] = _score(task, trained, config, multi_scale=True)
    return scores


def _trained(stages: Mapping[str, Config], variant: ablation.Variant) -> str:
    """The stage of a recipe that a variant is scored by; the last one where it does not have the variant's."""
    return variant.stage if variant.stage in stages else list(stages)[-1]


def _has_several(stages: Mapping[str, Config], variant: ablation.Variant) -> bool:
    """Whether a variant is more than one stage after the source stage that all share."""
    translates = any(config.kind.translates for config in stages.values())
    return translates or stages[_trained(stages, variant)].stage != variant.stage


def _run_stages(task: Task, folder: Path, stages: Mapping[str, Config], own: str) -> dict[str, Any]:
    """Scores of the last of several stages, such as rounds, in folders that begin with ``own``.

    Several variants share the source stage on the data set's own images, which is there already, and translators.
    """
    done = {name for name, config in stages.items() if name == "source" and not config.source.data_dir}
    shared = done | {name for name, config in stages.items() if config.kind.translates}
    places = {str(folder / name): folder / (name if name in shared else f"{own}_{name}") for name in stages}
    scored: tuple[Path, Config]
    for name, config in stages.items():
        parents = [str(places.get(parent, parent)) for parent in (config.init_from, config.teacher_from)]
        config = dataclasses.replace(config, init_from=parents[0], teacher_from=parents[1])
        scored = places[str(folder / name)], config
        recipe.provide(config, stages, folder)
        if name not in done:
            _train(config, scored[0])
    return _score(task, *scored)


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


def _source(table: str, task: Task, seed: int) -> Config:
    """Config of the source stage, which the searches of all methods share."""
    config = stages_of(task, seed)["source"]
    if table not in SEARCHES or config.method == ARGUMENTS["method"]:
        return config
    shared = {key: value for key, value in task.overrides.items() if key.partition(".")[0] not in ("options", "method")}
    return stages_of(dataclasses.replace(task, overrides=shared), seed, ARGUMENTS["method"])["source"]


def _oracle(task: Task, seed: int) -> dict[str, dict[str, Any]]:
    """The row of the oracle; none where the target's training images have no labels."""
    config, folder = stages_of(task, seed, "oracle")["source"], task.workdir / f"seed{seed}" / "oracle"
    if not _labelled(config):
        print(f"no oracle: {config.source.dataset}/{config.source.split} has no labels to train it on", flush=True)
        return {}
    _train(config, folder)
    return {"oracle": _score(task, folder, config)}


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
        scores |= _oracle(task, seed)
    else:
        source = _source(table, task, seed)
        _train(source, folder / "source")
        scores = {"source_only": _score(task, folder / "source", source)}
        if any(variant.stage == "self_distillation" for variant in ablation.TABLES[table].values()):
            _train(stages["adaptation"], workdirs.stage_folder(folder, "adaptation"))
            adapted = functools.partial(_score, task, workdirs.stage_folder(folder, "adaptation"), stages["adaptation"])
            scores |= {"adapted": adapted(), "adapted" + ablation.MULTI_SCALE: adapted(multi_scale=True)}
    for name, variant in ablation.TABLES[table].items():
        scores |= run_variant(task, name, variant, seed)
    return scores


def run_task(
    table: str, file: str, task: Task, seeds: Sequence[int], rows: Sequence[str] = ()
) -> dict[int, ablation.Scores]:
    """Scores by seed of every seed that is finished, after running those of ``seeds`` that are not.

    Args:
      table, file: its name, and that of its files.
      task: of the table.
      seeds: to run.
      rows: of 'systems' to run.
    """
    if table == "systems":
        for seed in seeds:
            for name in rows:
                run_row(file, task, name, seed)
        scores = finished_rows(file, task)
    else:
        for seed in seeds:
            path = task.workdir / f"seed{seed}" / f"{file}.json"
            if finished(path, table, task.made_by) is None:
                new = run_seed(table, task, seed)
                files.write_text(path, json.dumps({"config": task.made_by, "scores": new}, indent=2) + "\n")
        paths = by_seed(task, f"seed*/{file}.json")
        kept = ((number, finished(paths[number], table, task.made_by)) for number in sorted(paths))
        scores = {number: rows for number, rows in kept if rows is not None}
        for seed, rows_of_seed in scores.items():
            if shape(rows_of_seed) != shape(scores[seeds[0]]):
                raise UserError(
                    f"{paths[seed]} has other rows or classes than seed {seeds[0]}: delete it and run its seed again"
                )
    files.write_text(task.workdir / f"{file}.md", ablation.markdown(table, task.name, scores, task.network))
    files.write_text(task.workdir / f"{file}.csv", ablation.to_csv(scores))
    return scores


def run_row(file: str, task: Task, name: str, seed: int) -> None:
    """Trains and scores one row of 'systems' and writes its file, where that is not there.

    Raises:
      UserError: the file was made with other settings.
    """
    stages, folder = stages_of(task, seed), task.workdir / f"seed{seed}"
    variant = ablation.TABLES["systems"].get(name)
    if variant:
        changed = stages_of(task, seed, variant.method)
        config = changed[_trained(changed, variant)]
    elif name == "control":  # Not every recipe has one.
        config = stages["control"] if "control" in stages else stages_of(task, seed, "control")["adaptation"]
    else:
        config = stages_of(task, seed, "oracle")["source"] if name == "oracle" else stages["source"]
    settings = {key: value for key, value in config.plain().items() if key not in ("init_from", "teacher_from")}
    if variant and _has_several(changed, variant):
        settings["before"] = {
            stage: {key: value for key, value in other.plain().items() if key not in _NO_SETTINGS}
            for stage, other in changed.items()
            if other is not config
        }
    made_by = {**task.made_by, "trained": json.loads(json.dumps(settings))}
    path = folder / file / f"{name}.json"
    if path.exists():
        workdirs.refuse_other_config(row_file(path, task)["trained"], made_by["trained"], path)
        return
    if name == "oracle":
        scores = _oracle(task, seed)
    else:
        _train(stages["source"], folder / "source")
        if variant:
            scores = run_variant(task, name, variant, seed)
        else:
            stage = workdirs.stage_folder(folder, "control" if name == "control" else "source")
            _train(config, stage)
            mode = name.removeprefix("colour_matching_")
            scores = {name: _score(task, stage, config, colour=mode if mode != name else "")}
    if scores:
        files.write_text(path, json.dumps({"config": made_by, "scores": scores}, indent=2) + "\n")


def seeds_of(texts: Sequence[str]) -> list[int]:
    """The seeds that ``--seeds`` names.

    Raises:
      UserError: none, one twice, or something else than whole numbers.
    """
    seeds = [int(text) if re.fullmatch(r"[0-9]{1,10}", text) else -1 for text in texts]
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
        raise UserError(f"--seeds={','.join(texts)}: different whole numbers below 2147483648, separated by commas")
    return seeds


def rows_of(table: str, texts: Sequence[str]) -> list[str]:
    """The rows that ``--rows`` names; all of them where it is empty.

    Raises:
      UserError: an unknown one, or another table.
    """
    if texts and table != "systems":
        raise UserError(f"--rows={','.join(texts)}: --table={table} is scored as a whole, only systems by rows")
    unknown = [text for text in texts if text not in ablation.SYSTEM_ROWS]
    if unknown:
        raise UserError(f"--rows={','.join(texts)}: {unknown[0]!r} is none of {', '.join(ablation.SYSTEM_ROWS)}")
    return list(dict.fromkeys(texts or ablation.SYSTEM_ROWS))


def tasks_of(paths: Sequence[str], overrides: Mapping[str, Any], options: flags.FlagValues) -> list[Task]:
    """The tasks that the configs name.

    Raises:
      UserError: one that has nothing to ablate, or the same twice.
    """
    workdir, tasks = Path(options.workdir).absolute(), []
    for path in paths:
        config = schema.load(path, overrides)
        methods = [name for name, system in SYSTEMS.items() if system.adapts]
        if config.method not in methods:
            raise UserError(f"--config={path}: method={config.method} has nothing to ablate: {', '.join(methods)}")
        if options.table == "lambda" and not hasattr(SYSTEMS[config.method].method(), "lambda_adv"):
            raise UserError(f"--config={path}: method={config.method} has no lambda_adv to choose")
        if options.table == "portion" and SYSTEMS[config.method].stage != "self_training":
            raise UserError(f"--config={path}: method={config.method} has no rounds of pseudo labels: --table=portion")
        name = "_".join(filter(None, (config.task, config.target.city)))
        network = paper.VGG if config.model.backbone == "vgg16" else paper.RESNET
        folder = workdir / name if len(paths) > 1 else workdir
        tasks.append(Task(path, overrides, name, folder, options.split, network))
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"--config: {', '.join(task.name for task in tasks)}: each task only once")
    return tasks


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    _, first, overrides = cli.config()
    seeds, rows = seeds_of(options.seeds), rows_of(options.table, options.rows)
    workdir, tasks = Path(options.workdir).absolute(), tasks_of((first, *options.and_config), overrides, options)
    method = schema.load(first, overrides).method
    of_method = method if options.table in SEARCHES and method != ARGUMENTS["method"] else ""
    file = "_".join(filter(None, (options.table, of_method, options.split)))
    for task in tasks:
        files.check_output(task.workdir / f"{file}.md", ours=files.anything)
        check_split(task, stages_of(task, seeds[0])["source"])
    scores = {task.name: run_task(options.table, file, task, seeds, rows) for task in tasks}
    for task in tasks:
        print(f"\n{files.read_text(task.workdir / f'{file}.md')}")
        print(f"written: {task.workdir / file}.md and .csv")
    if options.table == "systems":
        table = {t.name: ablation.summary("systems", t.name, scores[t.name], t.network) for t in tasks}
        made = {"date": datetime.date.today().isoformat(), "command": sys.argv, "tasks": table}
        files.write_text(workdir / f"{file}.json", results.text(made))
        print(f"written: {workdir / file}.json")
    if len(tasks) > 1:
        text = ablation.across_tasks(options.table, scores, {task.name: task.network for task in tasks})
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
    flags.DEFINE_list("rows", [], "Rows of --table=systems to run, separated by commas; default: all.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run, separated by commas.")
    flags.DEFINE_string("split", "", "Score this split of the target instead of the config's.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
