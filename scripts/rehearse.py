"""Rehearses the released road at its real sizes: raw images of every data set to scores, files and predictions.

  python scripts/rehearse.py --out=rehearsal
  python scripts/rehearse.py --out=rehearsal --tasks=gta5_to_cityscapes --backbones=vgg16
  python scripts/rehearse.py --out=rehearsal --docs

It makes a few random images of each data set in its raw layout and at its real size, random weights as ImageNet models
have them, and runs every command that a user would run, for three tasks with two backbones. Of the released configs
nothing is changed but what makes them small: channels, blocks, batch size and steps. What each command hands over is
compared, row by row, with what the released code does (rehearsal/released.py); any difference, and anything seen that
no row covers, ends the command with status 1. Scores mean nothing here.

OUT receives raw/, data/, weights/, a workdir a task and backbone, logs/ of every command, and handovers.json: all that
was seen, by task, backbone and stage, the compared rows, and what was checked besides. --docs also writes the rows to
docs/rehearsal.json and as a table to docs/method.md. It runs on CPUs, two commands side by side, and takes a quarter
of an hour of their time.
"""

from __future__ import annotations

import importlib.util
import json
import time

import jax
from absl import flags

from fada_jax import cli, files
from fada_jax.errors import UserError
from fada_jax.scripts.rehearsal import report
from fada_jax.scripts.rehearsal.commands import Rehearsal
from fada_jax.scripts.rehearsal.comparison import compare
from fada_jax.scripts.rehearsal.released import BACKBONES, TASKS
from fada_jax.scripts.rehearsal.runs import datasets_of, run_all


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    for flag, known in (("tasks", TASKS), ("backbones", BACKBONES)):
        given = getattr(options, flag)
        if not given or not set(given) <= set(known):
            raise UserError(f"--{flag}={','.join(given)}: choose from {','.join(known)}")
    if options.docs and len(options.tasks) * len(options.backbones) < len(TASKS) * len(BACKBONES):
        raise UserError("--docs needs all tasks and backbones")
    if importlib.util.find_spec("torch") is None:
        raise UserError("the rehearsal brings weights from PyTorch: pip install 'fada-jax[test]'")
    jax.config.update("jax_platforms", "cpu")
    began = time.perf_counter()
    rehearsal = Rehearsal(files.place(options.out, "--out").absolute())
    facts, checks = run_all(rehearsal, options.tasks, options.backbones, options.jobs)
    compared = compare(facts, datasets=datasets_of(options.tasks))
    rows = report.compact(compared)
    path = rehearsal.out / "handovers.json"
    text = json.dumps({"rows": rows, "checks": checks, "facts": report.grouped(facts)}, indent=1) + "\n"
    files.write_text(path, text)
    print("\n" + report.markdown(rows))
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
        report.write_docs(rows)


if __name__ == "__main__":
    flags.DEFINE_string("out", "rehearsal", "Folder to make; one of an earlier rehearsal is made anew.")
    flags.DEFINE_list("tasks", list(TASKS), "Tasks, separated by commas.")
    flags.DEFINE_list("backbones", list(BACKBONES), "Backbones, separated by commas.")
    flags.DEFINE_integer("jobs", 2, "Commands side by side; each takes gigabytes of memory.", lower_bound=1)
    flags.DEFINE_bool("docs", False, "Write the compared rows to docs/rehearsal.json and docs/method.md.")
    cli.run(main)
