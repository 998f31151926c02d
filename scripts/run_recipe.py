"""Runs a config's whole recipe: source -> adaptation -> self-distillation -> evaluation, with the honest baselines.

  python scripts/run_recipe.py --config=configs/gta5_to_cityscapes.py:size=miniature --workdir=W --config.data_dir=DATA

W receives one folder a stage (source, adaptation, control, self_distillation; rounds of self-training are round_1 and
so on) and recipe.json, which lists them, results.md and results.json (rows of the paper's table 4 beside the lambda = 0
control and training-free colour matching), confusion.json, panel.png and its images in panels; scripts/report.py makes
a page of them. The same command goes on where it stopped. Overrides apply to every stage; --config.init_from names the
weights that the source stage and, with --config.student_from=init_from, the student start from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from fada_jax import cli, files
from fada_jax.errors import UserError
from fada_jax.reporting.panels import write_panels
from fada_jax.reporting.rows import markdown
from fada_jax.stages import recipe, workdirs


def run(
    path: str, overrides: Mapping[str, Any], workdir: Path, split: str = ""
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
    stages = recipe.configs(path, overrides, workdir)
    if all(config.kind.translates for config in stages.values()):
        raise UserError(
            f"--config={path}: translators have no scores; train them with python -m fada_jax.train, and translate the "
            "source with scripts/translate_dataset.py"
        )
    recipe.check(stages, workdir)
    adapted = recipe.adapted(stages)
    suffix, pictures = f"_{split}" if split else "", ["panel.png", "panels"] if adapted and "source" in stages else []
    if not any(workdirs.stage_folder(workdir, name).is_dir() for name in stages):
        for name in (f"results{suffix}.json", f"results{suffix}.md", f"confusion{suffix}.json", "panel.png"):
            files.check_output(workdir / name)
    with workdirs.hold(workdir):
        if jax.process_index() == 0:
            workdirs.write_stages(workdir, list(stages))
        recipe.train(stages, workdir)
        rows = recipe.score(stages, workdir, split)
    first = next(iter(stages.values()))
    confusions = {row["name"]: row.pop("confusion") for row in rows}
    if jax.process_index() == 0:
        summary = {"config": path, "seed": first.seed, "overrides": overrides, "rows": rows}
        files.write_text(workdir / f"results{suffix}.json", json.dumps(summary, indent=2) + "\n")
        files.write_text(workdir / f"results{suffix}.md", markdown(rows, first))
        files.write_text(workdir / f"confusion{suffix}.json", json.dumps(confusions) + "\n")
        if pictures:
            write_panels(workdir, adapted, stages[adapted])
    folders = [workdirs.stage_folder(workdir, name).name for name in stages]
    return rows, [workdir / name for name in (f"results{suffix}.md", f"results{suffix}.json", *pictures, *folders)]


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    began = time.perf_counter()
    _, path, overrides = cli.config()
    cli.join_processes()
    workdir = files.place(flags.FLAGS.workdir, "--workdir").absolute()
    _, paths = run(path, overrides, workdir)
    if jax.process_index():  # Process 0 speaks for all, and may be writing still.
        return
    print("\n" + files.read_text(workdir / "results.md").split("\n\n| class")[0])
    print(f"\nmade in {(time.perf_counter() - began) / 60:.1f} minutes:")
    for produced in paths:
        print(f"  {produced}")


if __name__ == "__main__":
    cli.define_config()
    cli.define_processes()
    flags.DEFINE_string("workdir", None, "Folder of the recipe.")
    flags.mark_flag_as_required("workdir")
    cli.define_cache()
    cli.run(main)
