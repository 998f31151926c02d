"""The runs: every command of a task with a backbone, from raw images to scores, files and predictions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fada_jax.input_pipeline import streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.scripts.rehearsal.checks import (
    STEPS,
    agreement,
    check_probabilities,
    check_scores,
    check_weights,
    require,
)
from fada_jax.scripts.rehearsal.commands import Rehearsal, log, prepare, side_by_side
from fada_jax.scripts.rehearsal.comparison import Fact
from fada_jax.scripts.rehearsal.inputs import CITY, SMALL, caffe_vgg, make_raw, raw_files, torchvision_resnet
from fada_jax.scripts.rehearsal.released import CITIES, CONVERSION, DOMAINS, GTA5, RAW, RESNET, VGG, Run
from fada_jax.training import checkpoints

BATCH = 2


def datasets_of(tasks: Sequence[str]) -> list[str]:
    """Data sets of some tasks, each once."""
    return list(dict.fromkeys(name for task in tasks for name in DOMAINS[task]))


def run_all(
    rehearsal: Rehearsal, tasks: Sequence[str], backbones: Sequence[str], jobs: int
) -> tuple[dict[Run, list[tuple[str, Fact]]], dict[str, dict[str, Any]]]:
    """Every run in a new folder, ``jobs`` commands at a time: facts by run, each with its command, and checks.

    Raises:
      UserError: the folder is not free, a command failed, or a check did.
    """
    prepare(rehearsal.out)
    datasets, runs = datasets_of(tasks), list(itertools.product(tasks, backbones))
    log(f"making and converting {', '.join(datasets)} at their real sizes, importing weights")
    conversions = [functools.partial(convert, rehearsal, dataset) for dataset in datasets]
    imports = [functools.partial(import_weights, rehearsal, backbone) for backbone in backbones]
    noted = side_by_side(jobs, [*conversions, *imports])[: len(datasets)]
    facts: dict[Run, list[tuple[str, Fact]]] = {CONVERSION: list(itertools.chain(*noted))}
    log(f"{len(runs)} recipes and what follows each")
    results = side_by_side(jobs, [functools.partial(rehearse, rehearsal, run) for run in runs])
    facts |= {run: noted for run, (noted, _) in zip(runs, results, strict=True)}
    return facts, {"/".join(run): checks for run, (_, checks) in zip(runs, results, strict=True)}


def convert(rehearsal: Rehearsal, dataset: str) -> list[tuple[str, Fact]]:
    """Makes and converts one data set; returns its facts."""
    make_raw(dataset, rehearsal.raw(dataset))
    city = [f"--city={CITY}"] if dataset == "crosscity" else []
    facts = rehearsal.command(
        f"convert.{dataset}", "scripts/convert_dataset.py", f"--dataset={dataset}",
        f"--raw_dir={rehearsal.raw(dataset)}", f"--data_dir={rehearsal.data}", "--workers=1", "--verify", *city,
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


def config_of(run: Run, stage: str = "") -> str:
    """``--config`` of a task and a backbone."""
    task, backbone = run
    arguments = {"city": CITY if task == CITIES else "", "backbone": backbone, "stage": stage}
    return f"--config=configs/{task}.py:{','.join(f'{key}={value}' for key, value in arguments.items() if value)}"


def small(backbone: str) -> list[str]:
    """Overrides that make a config's networks small."""
    return [f"--config.{key}={value}".replace(" ", "") for key, value in SMALL[backbone].items()]


@dataclasses.dataclass(frozen=True)
class Road:
    """The commands of one task with one backbone, and the facts that they noted, each with its command."""

    rehearsal: Rehearsal
    run: Run
    facts: list[tuple[str, Fact]] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return ".".join(self.run)

    @property
    def workdir(self) -> Path:
        return self.rehearsal.out / "runs" / "_".join(self.run)

    def do(self, command: str, *arguments: Any) -> None:
        """Runs ``python *arguments``."""
        facts = self.rehearsal.command(f"{self.name}.{command.replace(' ', '_')}", *arguments)
        self.facts.extend((command, fact) for fact in facts)

    def predict(self, command: str, model: Path, *images: Path, options: tuple[str, ...] = ()) -> list[np.ndarray]:
        """Labels of images as ``predict`` writes them, uint8 [H, W]."""
        out = self.workdir / "predictions" / command.replace(" ", "_")
        self.do(command, "-m", "fada_jax.predict", f"--workdir={model}", f"--out={out}", *options, *images)
        labels = [np.asarray(Image.open(out / f"{image.stem}_label.png")) for image in images]
        self.facts.extend((command, {"what": "written", "size": f"{x.shape[1]}x{x.shape[0]}"}) for x in labels)
        return labels


def rehearse(rehearsal: Rehearsal, run: Run) -> tuple[list[tuple[str, Fact]], dict[str, Any]]:
    """All commands of one task with one backbone.

    Returns:
      their facts, each with its command, and what was checked.

    Raises:
      UserError: a command failed, or a check of its files did.
    """
    road = Road(rehearsal, run)
    road.do(
        "recipe", "scripts/run_recipe.py", config_of(run), f"--workdir={road.workdir}",
        f"--config.data_dir={rehearsal.data}", f"--config.init_from={rehearsal.weights(run[1])}",
        f"--config.total_steps={STEPS}", f"--config.batch_size={BATCH}", *small(run[1]),
    )  # fmt: skip
    road.do(
        "evaluate --multi_scale", "-m", "fada_jax.evaluate", f"--workdir={road.workdir}", "--multi_scale",
        f"--output={road.workdir}/scores.json",
    )  # fmt: skip
    checks = check_scores(road.workdir) | check_weights(road.workdir, rehearsal.weights(run[1]))
    images = target_images(rehearsal, run)
    checks |= _check_pseudo_labels(road, images)
    checks |= _check_other_programs(road, next(iter(images.values())))
    return road.facts, checks


def target_images(rehearsal: Rehearsal, run: Run) -> dict[str, Path]:
    """Raw training images of a task's target, by the name that records have."""
    dataset = next(name for name, domain in DOMAINS[run[0]].items() if domain == "target")
    images = [image for image, _ in raw_files(dataset, rehearsal.raw(dataset))]
    images = [image for image in images if {"train", "Train"} & set(image.parts[-3:])]
    return {image.stem.removesuffix("_leftImg8bit"): image for image in images}


def pseudo_labels(road: Road) -> dict[str, np.ndarray]:
    """The labels of the target's training images as the student gets them, by name, uint8 [H, W]."""
    student = checkpoints.load_model(road.workdir / "self_distillation")
    target = student.config["target"]
    stream = Stream(
        target["dataset"],
        target["split"],
        tuple(target["size"]),
        city=target["city"],
        pseudo_labels=str(road.workdir / "self_distillation" / "pseudo_labels.tfrecord"),
    )
    data = road.rehearsal.data
    # Without balancing, a batch of the size of the split holds each of its images once.
    class_set, count = student.classes, streams.num_examples(data, stream)
    batch = next(streams.train_batches(data, stream, class_set=class_set, batch_size=count, seed=0))
    names = streams.batch_names(data, stream, class_set=class_set, batch_size=count, seed=0, step=0)
    return dict(zip(names, batch["label"], strict=True))


def _check_pseudo_labels(road: Road, images: dict[str, Path]) -> dict[str, Any]:
    """The pseudo labels are those that ``predict`` writes with the teacher."""
    predicted = road.predict("predict from adaptation", road.workdir / "adaptation", *images.values())
    pseudo = pseudo_labels(road)
    require(
        pseudo.keys() == images.keys(), f"{road.workdir}: pseudo labels of {sorted(pseudo)}, images {sorted(images)}"
    )
    labels = np.stack([pseudo[key] for key in images])
    share = agreement(labels, np.stack(predicted), f"{road.name}: pseudo labels and predict's")
    count = len(np.unique(labels))
    require(count > 1, f"{road.name}: the teacher knows a single class, so nothing is shown")
    return {"pseudo labels as predict gives them": share, "classes among pseudo labels": count}


def _check_other_programs(road: Road, image: Path) -> dict[str, Any]:
    """The exported artifact and weight files label an image as the workdir does."""
    workdir = road.workdir
    label = road.predict("predict", workdir, image, options=("--save_probabilities",))[0]
    checks = check_probabilities(workdir / "predictions" / "predict" / f"{image.stem}_probabilities.npy", label)
    artifact, pth, tensors = workdir / "artifact", workdir / "model.pth", workdir / "model.safetensors"
    road.do("export", "-m", "fada_jax.export", f"--workdir={workdir}", f"--output={artifact}")
    weights = ("-m", "fada_jax.convert_weights")
    for file in (pth, tensors):
        road.do(f"export {file.suffix}", *weights, "export", f"--workdir={workdir}", f"--output={file}")
    # A .pth says nothing about a network with other widths than the release's, so the config does.
    road.do(
        "import .pth", *weights, "import", f"--input={pth}", f"--output={workdir}/from_pth",
        config_of(road.run, "self_distillation"), *small(road.run[1]),
    )  # fmt: skip
    for form, model in (("artifact", artifact), (".pth", workdir / "from_pth"), (".safetensors", tensors)):
        other = road.predict(f"predict from {form}", model, image)[0]
        message = f"{road.name}: labels of {model} and {workdir}"
        checks[f"{form} labels as the workdir"] = agreement(label, other, message)
    return checks
