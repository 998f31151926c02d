"""Runs a config's whole recipe: source -> adversarial -> self-distillation -> evaluation, with the honest baselines.

  python scripts/run_recipe.py --config=configs/gta5_to_cityscapes.py:size=miniature --workdir=W --config.data_dir=DATA

W receives one folder a stage (source, adversarial, control, self_distillation), results.md and results.json (rows of
the paper's table 4 beside the lambda = 0 control and training-free colour matching), confusion.json, panel.png and its
images in panels; scripts/report.py makes a page of them. The same command goes on where it stopped. Overrides apply to
every stage; --config.init_from names the weights that the source stage and, with --config.student_from=init_from, the
student start from.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from fada_jax import checkpoints, classes, cli, colour_matching, evaluate, handovers, images, train, workdirs
from fada_jax.errors import UserError
from fada_jax.methods import METHODS
from fada_jax.predictor import from_model

LABELS = {
    "source_only": "source only",
    "control": "control (lambda = 0, same extra steps)",
    "colour_matching": "colour matching (no training)",
    "adapted": "F-Adv",
    "self_distilled": "F-Adv + SD",
    "self_distilled_multi_scale": "F-Adv + SD + MST",
}


def stage_config(path: str, overrides: dict[str, Any], **arguments: str) -> ConfigDict:
    """The config of one stage of a recipe: the file's with other arguments and the same overrides.

    Args:
      path: config file with the user's arguments, as given to ``--config``.
      overrides: ``--config.key=value`` of the command line.
      **arguments: config arguments that replace the user's.
    """
    file, _, text = path.partition(":")
    given = dict(item.partition("=")[::2] for item in filter(None, text.split(",")))
    spec = importlib.util.spec_from_file_location("fada_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(",".join(f"{key}={value}" for key, value in {**given, **arguments}.items()))
    config.update_from_flattened_dict(overrides)
    return config


def stage_configs(path: str, overrides: dict[str, Any], method: str, workdir: Path) -> dict[str, ConfigDict]:
    """Configs of the stages by folder name, in the order they run."""

    def make(stage: str, method: str, **values: Any) -> ConfigDict:
        config = stage_config(path, overrides, stage=stage, method=method)
        with config.unlocked():
            config.update(values)
        return config

    if method in ("source_only", "oracle"):
        return {"source": make("source", method)}
    source = str(workdir / "source")
    result = {"source": make("source", method)}
    if method in METHODS:
        # A lambda on the command line is the adapted model's.
        result["control"] = make("adversarial", "control", init_from=source, lambda_adv=0.0)
    result["adversarial"] = make("adversarial", method, init_from=source)
    if method in METHODS:
        student = make("self_distillation", method, teacher_from=str(workdir / "adversarial"))
        if student.student_from != "init_from":
            student.init_from = str(workdir / student.student_from)
        result["self_distillation"] = student
    return result


def score_rows(workdir: Path, stages: dict[str, ConfigDict], data_dir: str, split: str = "") -> list[dict[str, Any]]:
    """Evaluates every row of the table on the target's evaluation split or another one, last checkpoints.

    Returns:
      ``name`` and the result of ``evaluate.evaluate_stage`` of each.
    """

    def row(name: str, stage: str, **options: Any) -> dict[str, Any]:
        print(f"scoring {name}", flush=True)
        with handovers.within(row=name):
            return {"name": name, **evaluate.evaluate_stage(workdir / stage, data_dir=data_dir, split=split, **options)}

    rows = [row("source_only", "source")]
    if "control" in stages:
        rows.append(row("control", "control"))
    if stages["source"].method != "oracle":
        # The better of the two is reported, chosen by the reported labels: in the baseline's favour.
        tried = {mode: row("colour_matching", "source", colour=mode) for mode in colour_matching.MODES}
        best = max(tried, key=lambda mode: tried[mode]["miou"])
        by_mode = {mode: only_scores(result) for mode, result in tried.items()}
        rows.append({**tried[best], "mode": best, "by_mode": by_mode})
    if "adversarial" in stages:
        rows.append(row("adapted", "adversarial"))
    if "self_distillation" in stages:
        rows.append(row("self_distilled", "self_distillation"))
        rows.append(row("self_distilled_multi_scale", "self_distillation", multi_scale=True))
    return rows


def only_scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a row that tables are made of."""
    return {key: result[key] for key in ("miou", "miou_13", "iou") if key in result}


def markdown(rows: list[dict[str, Any]], config: ConfigDict) -> str:
    """The rows as a table, with what they were measured on."""
    star = any(row.get("miou_13") is not None for row in rows)
    head = ["", "mIoU", *(["mIoU* (13)"] if star else []), "gain over source only"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        name = LABELS[row["name"]] + (f", {row['mode']}" if "mode" in row else "")
        cells = [name, f"{row['miou']:.1f}", *([f"{row['miou_13']:.1f}"] if star else [])]
        lines.append("| " + " | ".join([*cells, f"{row['miou'] - rows[0]['miou']:+.1f}"]) + " |")
    first = rows[0]
    lines.append(
        f"\n{config.task}, {config.method}, seed {config.seed}: mIoU in percent over {len(first['iou'])} classes "
        f"({first['class_set']}), {first['num_images']} images of {first['dataset']}/{first['split']}, scored at the "
        f"label's size {first['scored_at']}, last checkpoints.\n"
    )
    names = list(first["iou"])
    lines.append("| class | " + " | ".join(row["name"] for row in rows) + " |")
    lines.append("| --- |" + " ---: |" * len(rows))
    for name in names:
        cells = ("-" if row["iou"][name] is None else f"{row['iou'][name]:.1f}" for row in rows)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_panels(workdir: Path, config: ConfigDict, count: int = 4) -> None:
    """Image, source-only, adapted and ground truth of evenly spread evaluation images.

    ``panels/`` receives them one by one, N_{image,source,adversarial,label}.png; ``panel.png`` has them all.
    """
    from fada_jax.input_pipeline import streams

    class_set = classes.get_class_set(config.class_set)
    stages = ("source", "adversarial")
    segmenters = [from_model(checkpoints.load_model(workdir / stage)) for stage in stages]
    stream = train.make_stream(config.eval, augment=False)
    every = max(1, streams.num_examples(config.data_dir, stream) // count)
    batches = streams.eval_batches(config.data_dir, stream, class_set=class_set, batch_size=1)
    rows = []
    for batch in itertools.islice(batches, 0, every * count, every):
        image, label = batch["image"][0], batch["label"][0]
        image = images.resize_image(image, (label.shape[1], label.shape[0]))
        predicted = [segment(image) for segment in segmenters]
        rows.append([image, *(images.colorize(x, class_set) for x in (*predicted, label))])
        for column, picture in zip(("image", *stages, "label"), rows[-1], strict=True):
            images.write_image(workdir / "panels" / f"{len(rows) - 1}_{column}.png", picture)
    panel = images.panel(("target image", "source only", "adapted", "ground truth"), rows, class_set)
    images.write_image(workdir / "panel.png", np.asarray(panel))


def run(
    path: str, overrides: dict[str, Any], workdir: Path, split: str = ""
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Trains every stage and scores every row; what is finished already is not done again.

    Args:
      path: config file with its arguments.
      overrides: flattened keys and values.
      workdir: see the top of this file.
      split: scored instead of the config's, in results_SPLIT.json and .md.

    Returns:
      the rows of ``results.json``, and the files and folders made.
    """
    config = stage_config(path, overrides)
    stages = stage_configs(path, overrides, config.method, workdir)
    # A later stage's mistake shows before the first has run for a day.
    for name, stage in stages.items():
        train.check(stage, workdir / name)
    with workdirs.hold(workdir):
        for name, stage in stages.items():
            train.train(stage, workdir / name)
        rows = score_rows(workdir, stages, config.data_dir, split)
    confusions = {row["name"]: row.pop("confusion") for row in rows}
    suffix = f"_{split}" if split else ""
    made = [f"results{suffix}.md", f"results{suffix}.json", *stages]
    if jax.process_index() == 0:
        summary = {"config": path, "seed": config.seed, "overrides": overrides, "rows": rows}
        evaluate.write_text(workdir / f"results{suffix}.json", json.dumps(summary, indent=2) + "\n")
        evaluate.write_text(workdir / f"results{suffix}.md", markdown(rows, config))
        evaluate.write_text(workdir / f"confusion{suffix}.json", json.dumps(confusions) + "\n")
        if "adversarial" in stages:
            write_panels(workdir, stages["adversarial"])
            made[2:2] = ["panel.png", "panels"]
    return rows, [workdir / name for name in made]


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    began = time.perf_counter()
    config, path, overrides = cli.config()
    cli.join_processes()
    rows, made = run(path, overrides, Path(flags.FLAGS.workdir).absolute())
    print("\n" + markdown(rows, config).split("\n\n| class")[0])
    print(f"\nmade in {(time.perf_counter() - began) / 60:.1f} minutes:")
    for name in made:
        print(f"  {name}")


if __name__ == "__main__":
    cli.define_config()
    cli.define_processes()
    flags.DEFINE_string("workdir", None, "Folder of the recipe.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
