"""Class Center Distance (equation 9) of trained stages, and figure 4: one bar a class and stage.

  python scripts/ccd.py --workdir=W                                         # every stage of a recipe
  python scripts/ccd.py --workdir=W --output=OUT W/source V/seed0/binary    # any stages, in this order
  python scripts/ccd.py --workdir=W --systems=source,adaptsegnet_multi,clan,binary,adaptation

--systems names folders of an ablation (scripts/ablate.py --table=systems) below each W/seed*: what is written then is
their mean over seeds, with the standard deviation, and OUT is W/ccd_systems.

Features are those of labelled images of both domains, 2,000 of each at most: the source's training images and the
target's evaluation images. Every model sees the same pixels. Writes OUT.json (per class and mean, for both domains
together as in the paper, and for each) and OUT.png; OUT is W/ccd unless given. A class without features has no CCD, and
a domain that shows fewer than two classes no mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from fada_jax import cli, distributed, files, images
from fada_jax import config as schema
from fada_jax.classes import ClassSet
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.evaluation import class_center_distance as ccd
from fada_jax.input_pipeline import streams
from fada_jax.reporting import ablation, figures, results
from fada_jax.stages import workdirs
from fada_jax.training import checkpoints

PARTS = ("both", "source", "target")
STAGES = ("source", "binary", "adaptation", "self_distillation")


def labelled_examples(
    config: Config, domain: str, data_dir: str, class_set: ClassSet, count: int, seed: int
) -> tuple[int, Iterator[tuple[np.ndarray, np.ndarray]]]:
    """This process's share of random images of a domain at the network's input size, with their labels.

    Returns:
      position of the first, and the images.
    """
    stream = getattr(config, domain).stream(augment=False)
    total = streams.num_examples(data_dir, stream)
    numbers = np.random.default_rng(seed).permutation(total)[:count]
    share = distributed.share(len(numbers))

    def examples() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for image, label in streams.examples(data_dir, stream, class_set, numbers[share]):
            if label is None:
                raise UserError(f"{stream.dataset}/{stream.split} has no labels to tell classes by")
            yield images.resize_image(image, stream.size), label

    return share.start, examples()


def distances(stage: Path, data_dir: str, count: int, per_class: int, seed: int) -> dict[str, Any]:
    """CCD of the last checkpoint of a stage: by class and mean, for both domains together and for each."""
    model = checkpoints.in_dtype(checkpoints.load_model(stage), "auto")
    if not model.class_set:
        raise UserError(f"{stage}: these weights have no classifier, so no class set")
    config = schema.stored(model.config, model.spec.num_classes)
    moments = {}
    for name, domain in (("source", "source"), ("target", "eval")):
        first, examples = labelled_examples(config, domain, data_dir or config.data_dir, model.class_set, count, seed)
        own = ccd.measure(model, examples, per_class=per_class, seed=seed, first=first)
        moments[name] = ccd.merged(map(ccd.from_text, distributed.gather(ccd.as_text(own))))
    moments["both"] = ccd.merge(moments["source"], moments["target"])
    result: dict[str, Any] = {"stage": str(stage), "checkpoint_step": model.step}
    for name, value in moments.items():
        by_class = ccd.class_center_distance(value)
        present = by_class[np.isfinite(by_class)]
        result[name] = {
            "mean": float(present.mean()) if len(present) else None,
            "ccd": {
                k: float(v) if np.isfinite(v) else None for k, v in zip(model.class_set.names, by_class, strict=True)
            },
            "features": dict(zip(model.class_set.names, value.count.tolist(), strict=True)),
        }
    return result


def over_seeds(measured: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of what ``distances`` gives for each; a single seed has no deviation.

    A class or a mean that a seed lacks counts for that seed as not there.
    """

    def spread(values: Iterable[float | None]) -> tuple[float | None, float | None]:
        present = [value for value in values if value is not None]
        deviation = float(np.std(present, ddof=1)) if len(present) > 1 else None
        return (float(np.mean(present)) if present else None), deviation

    results = list(measured.values())
    row: dict[str, Any] = {
        "stage": [result["stage"] for result in results],
        "checkpoint_step": [result["checkpoint_step"] for result in results],
    }
    for part in PARTS:
        by_class = {k: spread(result[part]["ccd"][k] for result in results) for k in results[0][part]["ccd"]}
        mean_, deviation = spread(result[part]["mean"] for result in results)
        row[part] = {
            "mean": mean_,
            "mean_sd": deviation,
            "ccd": {k: value for k, (value, _) in by_class.items()},
            "ccd_sd": {k: value for k, (_, value) in by_class.items()},
            "seeds": {str(seed): result[part]["mean"] for seed, result in measured.items()},
        }
    return row


def folders_of(systems: Sequence[str], workdir: Path) -> dict[str, dict[int, Path]]:
    """The trained folder of every system by seed.

    Raises:
      UserError: one of them is missing in a seed, or named twice, or there is no seed.
    """
    if len(set(systems)) < len(systems):
        raise UserError(f"--systems={','.join(systems)}: each only once")
    matches = ((re.fullmatch(r"seed([0-9]{1,10})", path.name), path) for path in workdir.glob("seed*"))
    seeds = {int(match[1]): path for match, path in matches if match}
    if not seeds:
        raise UserError(f"{workdir} holds no seed*/: --systems reads the workdir of scripts/ablate.py")
    found = {name: {seed: workdirs.stage_folder(seeds[seed], name) for seed in sorted(seeds)} for name in systems}
    for name, folders in found.items():
        for folder in folders.values():
            if not checkpoints.available_steps(folder):
                raise UserError(f"--systems: {folder} holds no checkpoint of {name}: train it, or leave it out")
    return found


def stage_names(stages: list[Path]) -> list[str]:
    """Shortest names that tell the stages apart."""
    short = [stage.name for stage in stages]
    return short if len(set(short)) == len(short) else [str(stage) for stage in stages]


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    cli.join_processes()
    workdir = files.place(options.workdir)
    if options.systems and arguments:
        raise UserError("--systems names folders of every seed: leave out the others")
    seeds = folders_of(options.systems, workdir) if options.systems else {}
    stages = [folder for folders in seeds.values() for folder in folders.values()] or stages_of(arguments, workdir)
    paths = outputs(options.output, workdir / ("ccd_systems" if seeds else "ccd"))
    measured: dict[str, Any] = {}
    names = [str(stage.relative_to(workdir)) for stage in stages] if seeds else stage_names(stages)
    for name, stage in zip(names, stages, strict=True):
        measured[name] = distances(stage, options.data_dir, options.images, options.per_class, options.seed)
        if len({tuple(result["both"]["ccd"]) for result in measured.values()}) > 1:
            raise UserError(f"{stage} has other classes than the stages before it: compare stages of one task")
        print(described(name, measured[name]), flush=True)
    if seeds:
        by_stage = dict(zip(stages, measured.values(), strict=True))
        measured = {
            name: over_seeds({seed: by_stage[folder] for seed, folder in folders.items()})
            for name, folders in seeds.items()
        }
        for name, row in measured.items():
            print(described(f"{name}, {len(seeds[name])} seeds", row), flush=True)
    if jax.process_index():
        return
    summary = {"images": options.images, "per_class": options.per_class, "seed": options.seed, "stages": measured}
    named = bool(options.output)
    files.write_text(paths[0], results.text(summary), ours=results.is_ours if named else files.anything)
    labels = {name: label(name) if seeds else name for name in measured}
    figure = figures.ccd_bars({labels[name]: result["both"] for name, result in measured.items()})
    figures.save(figure, paths[1], ours=images.is_ours if named else files.anything)
    print(f"written: {paths[0]} and .png")


def stages_of(arguments: Sequence[str], workdir: Path) -> list[Path]:
    """The folders that are named, or else every stage of the recipe.

    Raises:
      UserError: there is none, or one twice.
    """
    stages = [files.place(a) for a in arguments] or [
        folder
        for folder in (workdirs.stage_folder(workdir, stage) for stage in STAGES)
        if checkpoints.available_steps(folder)
    ]
    if not stages:
        raise UserError(f"{workdir} holds none of the stages {', '.join(STAGES)}: name the folders to measure")
    if len({stage.absolute() for stage in stages}) < len(stages):
        raise UserError("the folders to measure: each only once")
    return stages


def label(system: str) -> str:
    """What a folder of an ablation is called in the figure."""
    row = {"source": "source_only", "adaptation": "adapted"}.get(system, system)
    return ablation.label("systems", row) if ablation.is_row("systems", row) else system


def described(name: str, row: Mapping[str, Any]) -> str:
    """A line about the means of a row."""
    means = (
        f"{part} {mean(row[part])}" + (f" ± {sd:.3f}" if (sd := row[part].get("mean_sd")) is not None else "")
        for part in PARTS
    )
    return f"{name}: mean CCD {', '.join(means)}"


def mean(result: Mapping[str, Any]) -> str:
    """The mean CCD of a domain for the terminal."""
    return "-" if result["mean"] is None else f"{result['mean']:.3f}"


def outputs(output: str, default: Path) -> tuple[Path, Path]:
    """JSON and picture to write.

    Args:
      output: the flag.
      default: where the flag is empty.

    Raises:
      UserError: one of them cannot be written, or must not be.
    """
    path = files.place(output or default, "--output")
    if not path.name:
        raise UserError(f"--output={output}: name the files to write, without their ending")
    document, picture = (path.with_name(f"{path.name}.{ending}") for ending in ("json", "png"))
    files.check_output(document, ours=results.is_ours if output else files.anything)
    files.check_output(picture, ours=images.is_ours if output else files.anything)
    return document, picture


if __name__ == "__main__":
    cli.define_processes()
    flags.DEFINE_string("workdir", None, "Folder of a recipe, or of an ablation.")
    flags.DEFINE_string("output", "", "Files to write, without their ending.")
    flags.DEFINE_list("systems", [], "Folders below each seed of an ablation: their mean over seeds.")
    flags.DEFINE_string("data_dir", "", "TFRecords; default: the config's data_dir.")
    flags.DEFINE_integer("images", 2000, "Images of each domain, at most.", lower_bound=1)
    flags.DEFINE_integer("per_class", 20, "Pixels of each class and image.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of images and pixels.", lower_bound=0)
    flags.mark_flag_as_required("workdir")
    cli.define_cache()
    cli.run(main)
