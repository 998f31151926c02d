"""Scores a trained stage (or the last stage of a recipe's workdir) at the label's own size.

  python -m fada_jax.evaluate --workdir=W
  python -m fada_jax.evaluate --workdir=W/adaptation --checkpoint=all --multi_scale --output=scores.json
  python -m fada_jax.evaluate --workdir=W --ensemble=V,U     # the mean of the probabilities of all three

Class set, preprocessing, network and input size come from the checkpoint. --checkpoint=all also writes a CSV beside
the JSON, one row a checkpoint; --checkpoint=best scores all of them and reports the best, which on labelled target
images is model selection by the very labels that are reported: say so where you publish it. A workdir that cannot be
written is scored all the same; the scores are then printed, and written where --output says.

Models of an ensemble must have the classes and the evaluation data of the first; network, preprocessing and input size
may differ. Its scores are written to ensemble.json, with step and digest of every model.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from fada_jax import cli, files, progress
from fada_jax.errors import UserError
from fada_jax.evaluation import colour_matching, ensembles, scoring
from fada_jax.reporting import results
from fada_jax.stages.workdirs import stage_workdir
from fada_jax.training import checkpoints

_COLUMNS = ("step", "miou", "miou_13", "accuracy")


def table(result: Mapping[str, Any]) -> str:
    """Scores as lines for the terminal."""
    lines = [f"  {name:<14}{'-' if iou is None else f'{iou:6.2f}'}" for name, iou in result["iou"].items()]
    lines.append(f"  {'mIoU':<14}{result['miou']:6.2f}  over {len(result['iou'])} classes ({result['class_set']})")
    if result.get("miou_13") is not None:
        lines.append(f"  {'mIoU*':<14}{result['miou_13']:6.2f}  over 13 classes")
    lines.append(f"  {'accuracy':<14}{result['accuracy']:6.2f}")
    how = "multi-scale + flip" if result["multi_scale"] else "single scale"
    steps = [model["checkpoint_step"] for model in result.get("models", [result])]
    lines.append(
        f"  step {', '.join(map(str, steps))}, {result['num_images']} images of {result['dataset']}/{result['split']}, "
        f"{how}, {result['dtype']}, scored at the label's size {result['scored_at']}"
    )
    return "\n".join(lines)


def to_csv(results: Iterable[Mapping[str, Any]]) -> str:
    """One row a checkpoint: step, mIoU, mIoU*, accuracy, IoU of each class."""
    buffer = io.StringIO()
    rows = [
        dict(zip(_COLUMNS, (r["checkpoint_step"], r["miou"], r.get("miou_13"), r["accuracy"]), strict=True)) | r["iou"]
        for r in results
    ]
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def is_table(path: Path) -> bool:
    """Whether a file is a CSV of ``to_csv``."""
    return files.is_ours(path, ",".join(_COLUMNS).encode())


def outputs(options: flags.FlagValues, workdir: Path) -> tuple[list[Path], str]:
    """Files to write, JSON and where all checkpoints are scored CSV, and why the workdir cannot take them, if so.

    Raises:
      UserError: on all processes: what --output names cannot be written, or must not be.
    """
    default = workdir / ("ensemble.json" if options.ensemble else "evaluation.json")
    path = files.place(options.output or default, "--output")
    paths = [path, path.with_suffix(".csv")] if options.checkpoint in ("all", "best") else [path]
    if path.suffix.lower() == ".csv":
        raise UserError(
            f"--output={path} receives JSON: name a .json; the CSV of --checkpoint=all or best is written beside it"
        )
    problem = ""
    if not jax.process_index():
        name = "--output" if options.output else ""
        try:
            for file, ours in zip(paths, _replaceable(options), strict=False):
                files.check_output(file, name, ours=ours)
        except UserError as error:
            problem = str(error)
    # All processes leave together, instead of waiting for one that has left.
    if options.output and multihost_utils.broadcast_one_to_all(np.bool_(bool(problem))):
        raise UserError(problem or "--output: process 0 was refused")
    return paths, problem


def _replaceable(options: flags.FlagValues) -> tuple[Callable[[Path], bool], ...]:
    """What JSON and what CSV may be replaced: in the stage's folder whatever is called as the scores are."""
    return (results.is_ours, is_table) if options.output else (files.anything, files.anything)


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    if options.ensemble and (options.checkpoint != "last" or options.colour_matching):
        raise UserError("--ensemble scores last checkpoints as they are: leave out --checkpoint and --colour_matching")
    cli.join_processes()
    workdir = stage_workdir(options.workdir)
    others = [stage_workdir(other) for other in options.ensemble]
    paths, problem = outputs(options, workdir)
    for folder, given in zip((workdir, *others), (options.workdir, *options.ensemble), strict=True):
        if folder != files.place(given):
            print(f"reading stage {folder.name} of {given}", flush=True)
    every = options.checkpoint in ("all", "best")
    wanted = [str(step) for step in checkpoints.available_steps(workdir)] if every else [options.checkpoint]
    scored = [score(workdir, checkpoint, options, others) for checkpoint in wanted]
    chosen = scored[-1] if options.checkpoint != "best" else max(scored, key=lambda r: r["miou"])
    print("\n".join([*map(str, (workdir, *others)), table(chosen)]))
    if jax.process_index():
        return
    if problem:
        print(f"not written: {problem}; --output names another place")
        return
    texts = [results.text(chosen), *([to_csv(scored)] if every else [])]
    for path, text, ours in zip(paths, texts, _replaceable(options), strict=False):
        files.write_text(path, text, ours=ours)
        print(f"written: {path}")


def score(workdir: Path, checkpoint: str, options: flags.FlagValues, others: Sequence[Path] = ()) -> dict[str, Any]:
    """Scores of one checkpoint, or together with ``others``, with its progress on the stderr of process 0."""
    several = options.checkpoint in ("all", "best")
    with contextlib.ExitStack() as stack:

        @functools.cache
        def line(total: int) -> Callable[[int], None]:
            title = f"step {checkpoint}" if several else ""
            return (lambda done: None) if jax.process_index() else stack.enter_context(progress.shown(title, total))

        shared: dict[str, Any] = {
            "multi_scale": options.multi_scale,
            "data_dir": options.data_dir,
            "dataset": options.dataset,
            "split": options.split,
            "dtype": options.dtype,
            "progress": lambda done, total: line(total)(done),
        }
        if others:
            return ensembles.evaluate_stages([workdir, *others], **shared)
        result = scoring.evaluate_stage(workdir, checkpoint=checkpoint, colour=options.colour_matching, **shared)
    if options.checkpoint == "all":
        print(f"step {result['checkpoint_step']:>7}  mIoU {result['miou']:6.2f}", flush=True)
    return result


if __name__ == "__main__":
    cli.define_processes()
    flags.DEFINE_string("workdir", None, "Folder of a stage or of a recipe.")
    flags.DEFINE_list("ensemble", [], "More folders of stages or recipes: the mean of all networks is scored.")
    flags.DEFINE_string("checkpoint", "last", "last, best, all or a step.")
    flags.DEFINE_bool("multi_scale", False, "Average over the config's scales, each also flipped.")
    flags.DEFINE_string("output", "", "JSON file to write; default: evaluation.json in the stage's folder.")
    flags.DEFINE_string("data_dir", "", "TFRecords; default: the config's data_dir.")
    flags.DEFINE_string("dataset", "", "Another data set of the same classes, for instance the source's.")
    flags.DEFINE_string("split", "", "Another split.")
    cli.define_dtype()
    flags.DEFINE_enum("colour_matching", "", ["", *colour_matching.MODES], "Recolour the images to the source first.")
    flags.mark_flag_as_required("workdir")
    cli.define_cache()
    cli.run(main)
