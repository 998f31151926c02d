"""Scores a trained stage (or the last stage of a recipe's workdir) at the label's own size.

  python -m fada_jax.evaluate --workdir=W
  python -m fada_jax.evaluate --workdir=W/adaptation --checkpoint=all --multi_scale --output=scores.json

Class set, preprocessing, network and input size come from the checkpoint. --checkpoint=all also writes a CSV beside
the JSON, one row a checkpoint; --checkpoint=best scores all of them and reports the best, which on labelled target
images is model selection by the very labels that are reported: say so where you publish it.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from fada_jax import cli
from fada_jax.errors import UserError
from fada_jax.evaluation import colour_matching, scoring
from fada_jax.files import write_text
from fada_jax.stages.workdirs import stage_workdir
from fada_jax.training import checkpoints


def table(result: Mapping[str, Any]) -> str:
    """Scores as lines for the terminal."""
    lines = [f"  {name:<14}{'-' if iou is None else f'{iou:6.2f}'}" for name, iou in result["iou"].items()]
    lines.append(f"  {'mIoU':<14}{result['miou']:6.2f}  over {len(result['iou'])} classes ({result['class_set']})")
    if result.get("miou_13") is not None:
        lines.append(f"  {'mIoU*':<14}{result['miou_13']:6.2f}  over 13 classes")
    lines.append(f"  {'accuracy':<14}{result['accuracy']:6.2f}")
    how = "multi-scale + flip" if result["multi_scale"] else "single scale"
    lines.append(
        f"  step {result['checkpoint_step']}, {result['num_images']} images of {result['dataset']}/{result['split']}, "
        f"{how}, {result['dtype']}, scored at the label's size {result['scored_at']}"
    )
    return "\n".join(lines)


def to_csv(results: Iterable[Mapping[str, Any]]) -> str:
    """One row a checkpoint: step, mIoU, mIoU*, accuracy, IoU of each class."""
    buffer = io.StringIO()
    rows = [
        {"step": r["checkpoint_step"], "miou": r["miou"], "miou_13": r.get("miou_13"), "accuracy": r["accuracy"]}
        | r["iou"]
        for r in results
    ]
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def show_progress(began: float, done: int, total: int) -> None:
    """A line on stderr of process 0."""
    if not jax.process_index():
        rate = done / (time.perf_counter() - began)
        print(f"\r{done}/{total} images, {rate:.1f} images/s", end="", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    cli.join_processes()
    workdir = stage_workdir(options.workdir)
    every = options.checkpoint in ("all", "best")
    wanted = [str(step) for step in checkpoints.available_steps(workdir)] if every else [options.checkpoint]
    results = []
    for checkpoint in wanted:
        results.append(
            scoring.evaluate_stage(
                workdir,
                checkpoint=checkpoint,
                multi_scale=options.multi_scale,
                data_dir=options.data_dir,
                dataset=options.dataset,
                split=options.split,
                colour=options.colour_matching,
                dtype=options.dtype,
                progress=functools.partial(show_progress, time.perf_counter()),
            )
        )
        print(file=sys.stderr)
        if options.checkpoint == "all":
            print(f"step {results[-1]['checkpoint_step']:>7}  mIoU {results[-1]['miou']:6.2f}")
    chosen = results[-1] if options.checkpoint != "best" else max(results, key=lambda r: r["miou"])
    print(f"{workdir}\n{table(chosen)}")
    if jax.process_index():
        return
    output = options.output or str(workdir / "evaluation.json")
    write_text(output, json.dumps(chosen, indent=2) + "\n")
    print(f"written: {output}")
    if every:
        csv_path = Path(output).with_suffix(".csv")
        write_text(csv_path, to_csv(results))
        print(f"written: {csv_path}")


if __name__ == "__main__":
    cli.define_processes()
    flags.DEFINE_string("workdir", None, "Folder of a stage or of a recipe.")
    flags.DEFINE_string("checkpoint", "last", "last, best, all or a step.")
    flags.DEFINE_bool("multi_scale", False, "Average over the config's scales, each also flipped.")
    flags.DEFINE_string("output", "", "JSON file to write; default: evaluation.json in the stage's folder.")
    flags.DEFINE_string("data_dir", "", "TFRecords; default: the config's data_dir.")
    flags.DEFINE_string("dataset", "", "Another data set of the same classes, for instance the source's.")
    flags.DEFINE_string("split", "", "Another split.")
    cli.define_dtype()
    flags.DEFINE_enum("colour_matching", "", ["", *colour_matching.MODES], "Recolour the images to the source first.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
