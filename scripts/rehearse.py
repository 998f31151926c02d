"""Rehearses the released road at its real sizes: raw images of every data set to scores, files and predictions.

  python scripts/rehearse.py --out=rehearsal
  python scripts/rehearse.py --out=rehearsal --tasks=gta5_to_cityscapes --backbones=vgg16
  python scripts/rehearse.py --out=rehearsal --docs

It makes a few random images of each data set in its raw layout and at its real size, random weights as ImageNet models
have them, and runs every command that a user would run, for three tasks with two backbones. Of the released configs
nothing is changed but what makes them small: channels, blocks, batch size and steps. What each command hands over is
compared, row by row, with what the released code does (scripts/rehearsal_table.py); any difference, and anything seen
that no row covers, ends the command with status 1. Scores mean nothing here.

OUT receives raw/, data/, weights/, a workdir a task and backbone, logs/ of every command, and handovers.json: all that
was seen, by task, backbone and stage, the compared rows, and what was checked besides. --docs also writes the rows to
docs/rehearsal.json and as a table to docs/method.md. It runs on CPUs, two commands side by side, and takes a quarter
of an hour of their time.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from fada_jax import checkpoints, cli, convert_weights, files
from fada_jax.errors import UserError
from fada_jax.scripts.rehearsal_inputs import CITY, SMALL, caffe_vgg, make_raw, raw_files, torchvision_resnet
from fada_jax.scripts.rehearsal_table import (
    BACKBONES,
    CITIES,
    CONVERSION,
    DOMAINS,
    GTA5,
    RAW,
    RESNET,
    TASKS,
    VGG,
    Fact,
    Run,
    compact,
    compare,
    markdown,
    stage_of,
)

ROOT = Path(__file__).resolve().parents[1]
MARKER = "rehearsal.json"
DOCS, DOCS_ROWS = ROOT / "docs" / "method.md", ROOT / "docs" / "rehearsal.json"
BEGIN, END = "<!-- numbers:rehearsal -->", "<!-- /numbers -->"

STEPS, BATCH = 2, 2
ROW_NAMES = ("source_only", "control", "colour_matching", "adapted", "self_distilled", "self_distilled_multi_scale")
STAGES = ("source", "control", "adversarial", "self_distillation")
# Share of pixels that must have the same label where two ways lead to it; ties may fall either way.
AGREEMENT = 0.999


def log(text: str, began: float = time.perf_counter()) -> None:
    """A progress line with the seconds since the start."""
    print(f"{time.perf_counter() - began:5.0f} s  {text}", flush=True)


def require(condition: Any, message: str) -> None:
    """Ends the rehearsal where a check fails.

    Raises:
      UserError: ``condition`` is false.
    """
    if not condition:
        raise UserError(message)


# Commands.


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Where everything lies."""

    out: Path

    def command(self, name: str, *arguments: Any) -> list[dict[str, Any]]:
        """Runs ``python *arguments`` as a user does; returns what it handed over.

        Args:
          name: of its log and of its facts, unique.

        Raises:
          UserError: it failed.
        """
        path, facts = self.out / "logs" / f"{name}.txt", self.out / "facts" / f"{name}.jsonl"
        for file in (path, facts):
            file.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with path.open("w") as output:
            status = subprocess.call(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env=self._environment(facts),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if status:
            lines = path.read_text().strip().splitlines() or ["no output"]
            raise UserError(f"{name} ended with status {status}: {lines[-1]} (all of it: {path})")
        log(f"{name} ({time.perf_counter() - began:.0f} s)")
        return [json.loads(line) for line in dict.fromkeys(facts.read_text().splitlines())] if facts.exists() else []

    def _environment(self, facts: Path) -> dict[str, str]:
        return {
            **os.environ,
            "FADA_JAX_HANDOVERS": str(facts),
            "JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }

    def raw(self, dataset: str) -> Path:
        return self.out / "raw" / dataset

    def weights(self, backbone: str) -> Path:
        return self.out / "weights" / backbone

    def workdir(self, run: Run) -> Path:
        return self.out / "runs" / "_".join(run)


def config_of(run: Run, stage: str = "") -> str:
    """``--config`` of a task and a backbone."""
    task, backbone = run
    arguments = [
        *([f"city={CITY}"] if task == CITIES else []),
        f"backbone={backbone}",
        *([f"stage={stage}"] if stage else []),
    ]
    return f"--config=configs/{task}.py:{','.join(arguments)}"


def small(backbone: str) -> list[str]:
    """Overrides that make a config's networks small."""
    return [f"--config.{key}={value}".replace(" ", "") for key, value in SMALL[backbone].items()]


def convert(rehearsal: Rehearsal, dataset: str) -> list[tuple[str, Fact]]:
    """Makes and converts one data set; returns its facts."""
    make_raw(dataset, rehearsal.raw(dataset))
    city = [f"--city={CITY}"] if dataset == "crosscity" else []
    facts = rehearsal.command(
        f"convert.{dataset}", "scripts/convert_dataset.py", f"--dataset={dataset}",
        f"--raw_dir={rehearsal.raw(dataset)}", f"--data_dir={rehearsal.out}/data", "--workers=1", "--verify", *city,
    )  # fmt: skip
    return [(RAW, {**fact, "dataset": dataset}) for fact in facts]


def import_weights(rehearsal: Rehearsal, backbone: str) -> None:
    """Makes a workdir of a backbone's ImageNet weights."""
    file = rehearsal.weights(backbone).with_suffix(".pth")
    file.parent.mkdir(parents=True, exist_ok=True)
    make, layout = {RESNET: (torchvision_resnet, "torchvision"), VGG: (caffe_vgg, "caffe_vgg")}[backbone]
    make(file)
    rehearsal.command(
        f"import.{backbone}", "-m", "fada_jax.convert_weights", "import", f"--input={file}", f"--format={layout}",
        f"--output={rehearsal.weights(backbone)}", config_of((GTA5, backbone), "source"), *small(backbone),
    )  # fmt: skip


def rehearse(rehearsal: Rehearsal, run: Run) -> tuple[list[tuple[str, Fact]], dict[str, Any]]:
    """All commands of one task with one backbone.

    Returns:
      what they handed over, each fact with its command, and what was checked.

    Raises:
      UserError: a command failed, or what it made is not what it should be.
    """
    workdir, name, facts = rehearsal.workdir(run), ".".join(run), []
    target = target_images(rehearsal, run)

    def do(command: str, *arguments: Any) -> None:
        facts.extend((command, fact) for fact in rehearsal.command(f"{name}.{command.replace(' ', '_')}", *arguments))

    def predict(command: str, model: Path, *images: Path, options: tuple[str, ...] = ()) -> list[np.ndarray]:
        out = workdir / "predictions" / command.replace(" ", "_")
        do(command, "-m", "fada_jax.predict", f"--workdir={model}", f"--out={out}", *options, *images)
        labels = [np.asarray(Image.open(out / f"{image.stem}_label.png")) for image in images]
        facts.extend((command, {"what": "written", "size": f"{x.shape[1]}x{x.shape[0]}"}) for x in labels)
        return labels

    do(
        "recipe", "scripts/run_recipe.py", config_of(run), f"--workdir={workdir}",
        f"--config.data_dir={rehearsal.out}/data", f"--config.init_from={rehearsal.weights(run[1])}",
        f"--config.total_steps={STEPS}", f"--config.batch_size={BATCH}", *small(run[1]),
    )  # fmt: skip
    do(
        "evaluate --multi_scale", "-m", "fada_jax.evaluate", f"--workdir={workdir}", "--multi_scale",
        f"--output={workdir}/scores.json",
    )  # fmt: skip
    checks = check_scores(workdir) | check_weights(rehearsal, run)

    by_teacher = predict("predict from adversarial", workdir / "adversarial", *target.values())
    pseudo = pseudo_labels(rehearsal, run)
    require(pseudo.keys() == target.keys(), f"{workdir}: pseudo labels of {sorted(pseudo)}, images {sorted(target)}")
    stacked = np.stack([pseudo[key] for key in target]), np.stack(by_teacher)
    checks["pseudo labels as predict gives them"] = agreement(*stacked, f"{name}: pseudo labels and predict's")
    checks["classes among pseudo labels"] = len(np.unique(stacked[0]))
    require(checks["classes among pseudo labels"] > 1, f"{name}: the teacher knows a single class, so nothing is shown")

    image = next(iter(target.values()))
    ours = predict("predict", workdir, image, options=("--save_probabilities",))[0]
    checks |= check_probabilities(workdir / "predictions" / "predict" / f"{image.stem}_probabilities.npy", ours)
    artifact, pth, tensors = workdir / "artifact", workdir / "model.pth", workdir / "model.safetensors"
    do("export", "-m", "fada_jax.export", f"--workdir={workdir}", f"--output={artifact}")
    for file in (pth, tensors):
        convert_ = ("-m", "fada_jax.convert_weights")
        do(f"export {file.suffix}", *convert_, "export", f"--workdir={workdir}", f"--output={file}")
    # A .pth says nothing about a network with other widths than the release's, so the config does.
    do(
        "import .pth", *convert_, "import", f"--input={pth}", f"--output={workdir}/from_pth",
        config_of(run, "self_distillation"), *small(run[1]),
    )  # fmt: skip
    for what, model in (("artifact", artifact), (".pth", workdir / "from_pth"), (".safetensors", tensors)):
        theirs = predict(f"predict from {what}", model, image)[0]
        checks[f"{what} labels as the workdir"] = agreement(ours, theirs, f"{name}: labels of {model} and {workdir}")
    return facts, checks


# Checks.


def target_images(rehearsal: Rehearsal, run: Run) -> dict[str, Path]:
    """Raw training images of a task's target, by the name that records have."""
    dataset = next(name for name, domain in DOMAINS[run[0]].items() if domain == "target")
    images = [image for image, _ in raw_files(dataset, rehearsal.raw(dataset))]
    images = [image for image in images if {"train", "Train"} & set(image.parts[-3:])]
    return {image.stem.removesuffix("_leftImg8bit"): image for image in images}


def pseudo_labels(rehearsal: Rehearsal, run: Run) -> dict[str, np.ndarray]:
    """What the student reads as the labels of the target's training images, by name, uint8 [H, W]."""
    from fada_jax.input_pipeline import pipeline

    student = checkpoints.load_model(rehearsal.workdir(run) / "self_distillation")
    target = student.config["target"]
    stream = pipeline.Stream(
        target["dataset"],
        target["split"],
        tuple(target["size"]),
        city=target["city"],
        pseudo_labels=str(rehearsal.workdir(run) / "self_distillation" / "pseudo_labels.tfrecord"),
    )
    data = rehearsal.out / "data"
    # Without balancing, as many images as there are hold each of them once.
    choice = {"class_set": student.class_set, "batch_size": pipeline.num_examples(data, stream), "seed": 0}
    batch = next(pipeline.train_batches(data, stream, **choice))
    return dict(zip(pipeline.batch_names(data, stream, **choice, step=0), batch["label"], strict=True))


def agreement(ours: np.ndarray, theirs: np.ndarray, what: str) -> float:
    """Share of pixels with the same label.

    Raises:
      UserError: other sizes, or less than ``AGREEMENT``.
    """
    require(ours.shape == theirs.shape, f"{what} differ in size: {ours.shape} and {theirs.shape}")
    share = float((ours == theirs).mean())
    require(share >= AGREEMENT, f"{what} are the same in {share:.4%} of the pixels, not in {AGREEMENT:.1%}")
    return share


def check_scores(workdir: Path) -> dict[str, Any]:
    """Every row is there and scored at the label's size, and ``evaluate`` gives the recipe's last one.

    Raises:
      UserError: not so.
    """
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    names = tuple(row["name"] for row in rows)
    require(names == ROW_NAMES, f"{workdir}/results.json has the rows {names}")
    sizes = {row["scored_at"] for row in rows}
    require(sizes == {"2048x1024"}, f"{workdir}/results.json: scored at {sizes}")
    alone = json.loads((workdir / "scores.json").read_text())
    require(alone["iou"] == rows[-1]["iou"], f"{workdir}: evaluate and the recipe score the same model differently")
    return {"classes scored": len(alone["iou"]), "images scored": alone["num_images"]}


def check_probabilities(path: Path, label: np.ndarray) -> dict[str, Any]:
    """Probabilities sum to 1 and their argmax is the label; the file, a large one, is removed.

    Raises:
      UserError: not so.
    """
    probabilities = np.load(path)
    furthest = float(np.abs(probabilities.sum(-1) - 1).max())
    require(furthest < 1e-4 and probabilities.min() >= 0, f"{path}: probabilities sum to 1 within {furthest}")
    require(probabilities.shape[:2] == label.shape, f"{path} has shape {probabilities.shape}")
    require((probabilities.argmax(-1) == label).all(), f"{path}: its argmax is not the written label")
    path.unlink()
    return {"probabilities sum to 1 within": furthest}


def check_weights(rehearsal: Rehearsal, run: Run) -> dict[str, Any]:
    """Every stage moved its parameters from those it began with, and has its checkpoint; D lives.

    Raises:
      UserError: not so.
    """
    workdir = rehearsal.workdir(run)
    models = {"imagenet": checkpoints.load_model(rehearsal.weights(run[1]))}
    for stage in STAGES:
        steps = checkpoints.available_steps(workdir / stage)
        require(steps == [STEPS], f"{workdir / stage} has checkpoints at {steps}, expected at {[STEPS]}")
        models[stage] = checkpoints.load_model(workdir / stage)
    began_with = {"source": "imagenet", "control": "source", "adversarial": "source", "self_distillation": "imagenet"}
    for stage, parent in began_with.items():
        both, same = in_common(models[parent], models[stage])
        require(both >= 15, f"{workdir}: {parent} and {stage} have {both} arrays in common")
        require(not same, f"{workdir}: {stage} has {', '.join(same[:3])} as {parent} has it")
    # Two steps of so weak a loss do not reach every parameter.
    both, same = in_common(models["control"], models["adversarial"])
    require(len(same) < both, f"{workdir}: adversarial ends where control does, so its adversary did nothing")
    for stage in STAGES if run[1] == RESNET else ():
        frozen = models[stage].spec.norm == "frozen"
        first, second = (flat(models[name].batch_stats) for name in ("imagenet", stage))
        same = [np.array_equal(first[key], second[key]) for key in first.keys() & second.keys()]
        require(all(same) if frozen else not any(same), f"{workdir / stage}: statistics of {stage} (frozen: {frozen})")
    sections = convert_weights.export_sections(workdir / "adversarial")
    for key, value in sections["model_D"].items():
        require(np.any(value), f"{workdir}/adversarial: {key} of the discriminator is all zero")
    for moments in sections["optimizer_D"]["state"].values():
        require(np.any(moments["exp_avg"]), f"{workdir}/adversarial: part of the discriminator was never trained")
    return {"norm of the student": models["self_distillation"].spec.norm}


def in_common(first: checkpoints.Model, second: checkpoints.Model) -> tuple[int, list[str]]:
    """How many parameters two models both have, and which of them are equal; an untrained head does not count."""
    before, after = (flat(model.params) for model in (first, second))
    both = [key for key in before.keys() & after.keys() if first.class_set or "classifier" not in key]
    return len(both), sorted(key for key in both if np.array_equal(before[key], after[key]))


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a pytree by path."""
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(tree)}


# The whole.


def side_by_side(jobs: int, tasks: list[Callable[[], Any]]) -> list[Any]:
    """Results of ``tasks``, ``jobs`` at a time, each with its share of the cores where the system can say so.

    Raises:
      UserError: the first that failed; those that run then are waited for, those that wait are left out.
    """
    cores: queue.SimpleQueue = queue.SimpleQueue()
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        jobs = min(jobs, len(mine))
        for lane in range(jobs):
            cores.put(mine[lane::jobs])

    def settle() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(threading.get_native_id(), cores.get())  # Commands inherit it.

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=settle) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def prepare(out: Path) -> None:
    """An empty folder with the mark of this script; of an earlier rehearsal only what was compiled stays.

    Raises:
      UserError: something else lies there.
    """
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out}: not made by this script; name another folder")
    for path in out.iterdir() if out.is_dir() else ():
        if path.is_dir() and path.name != "compiled":
            shutil.rmtree(path)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("{}\n")


def write_docs(rows: list[dict[str, Any]]) -> None:
    """Writes the rows to docs/rehearsal.json and between the marks of docs/method.md.

    Raises:
      UserError: the marks are not there.
    """
    text = DOCS.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{DOCS} lacks the marks {BEGIN} and {END}")
    head, rest = text.split(BEGIN)
    DOCS_ROWS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    DOCS.write_text(f"{head}{BEGIN}\n\n{markdown(rows)}\n{END}{rest.split(END)[1]}")
    log(f"written: {DOCS_ROWS} and the table in {DOCS}")


def grouped(facts: Mapping[Run, list[tuple[str, Fact]]]) -> dict[str, Any]:
    """Facts by task, backbone and stage, in JSON types."""
    result: dict[str, Any] = {}
    for (task, backbone), found in facts.items():
        commands = result.setdefault(task, {}).setdefault(backbone, {})
        for command, fact in found:
            commands.setdefault(stage_of(command, fact), []).append(fact)
    return result


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    for flag, known in (("tasks", TASKS), ("backbones", BACKBONES)):
        unknown = [value for value in options[flag].value if value not in known]
        if unknown or not options[flag].value:
            raise UserError(f"--{flag}={','.join(options[flag].value)}: choose from {','.join(known)}")
    if options.docs and len(options.tasks) * len(options.backbones) < len(TASKS) * len(BACKBONES):
        raise UserError("--docs needs all tasks and backbones")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError("the rehearsal brings weights from PyTorch: pip install 'fada-jax[test]'") from error
    jax.config.update("jax_platforms", "cpu")
    rehearsal = Rehearsal(files.local(options.out, "--out").absolute())
    prepare(rehearsal.out)
    began = time.perf_counter()
    runs = [(task, backbone) for task in options.tasks for backbone in options.backbones]
    datasets = list(dict.fromkeys(name for task, _ in runs for name in DOMAINS[task]))
    log(f"making and converting {', '.join(datasets)} at their real sizes, importing weights")
    first = side_by_side(
        options.jobs,
        [
            *(lambda dataset=dataset: convert(rehearsal, dataset) for dataset in datasets),
            *(lambda backbone=backbone: import_weights(rehearsal, backbone) for backbone in options.backbones),
        ],
    )
    facts: dict[Run, list[tuple[str, Fact]]] = {
        CONVERSION: [fact for found in first[: len(datasets)] for fact in found]
    }
    log(f"{len(runs)} recipes and what follows each")
    done = side_by_side(options.jobs, [lambda run=run: rehearse(rehearsal, run) for run in runs])
    facts |= {run: found for run, (found, _) in zip(runs, done, strict=True)}
    checks = {"/".join(run): values for run, (_, values) in zip(runs, done, strict=True)}

    compared = compare(facts, datasets=datasets)
    rows = compact(compared)
    report = {"rows": rows, "checks": checks, "facts": grouped(facts)}
    path = rehearsal.out / "handovers.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print("\n" + markdown(rows))
    for run, values in checks.items():
        shown = (f"{key} {value:.4%}" if "as " in key else f"{key} {value}" for key, value in values.items())
        print(f"{run}: {', '.join(shown)}")
    minutes = (time.perf_counter() - began) / 60
    differing = [row for row in compared if not row.equal]
    print(f"\n{len(compared) - len(differing)} of {len(compared)} rows equal, in {minutes:.1f} minutes")
    print(
        f"made in {rehearsal.out}: raw/, data/, weights/, logs/, runs/ (workdirs, predictions, artifacts), {path.name}"
    )
    if differing:
        row = differing[0]
        raise UserError(
            f"{len(differing)} rows differ from the release; first: {'/'.join(row.run)}, {row.stage}, {row.what}: "
            f"released {row.released or 'no such row'}, seen {row.seen}"
        )
    if options.docs:
        write_docs(rows)


if __name__ == "__main__":
    flags.DEFINE_string("out", "rehearsal", "Folder to make; one of an earlier rehearsal is made anew.")
    flags.DEFINE_list("tasks", list(TASKS), "Tasks, separated by commas.")
    flags.DEFINE_list("backbones", list(BACKBONES), "Backbones, separated by commas.")
    flags.DEFINE_integer("jobs", 2, "Commands side by side; each takes gigabytes of memory.", lower_bound=1)
    flags.DEFINE_bool("docs", False, "Write the compared rows to docs/rehearsal.json and docs/method.md.")
    cli.run(main)
