"""Every command under one name, wherever the package is installed.

  fada-jax COMMAND [flags]                 the same as `python -m fada_jax COMMAND [flags]`
  fada-jax COMMAND --help                  what it does, its flags and examples
  fada-jax demo [--out=demo] [--seed=0]    miniature data, all stages, evaluation: ends with a table and paths

A command is the module or script of that name: `fada-jax train` is `python -m fada_jax.train`, and `fada-jax
run_recipe` is `python scripts/run_recipe.py`.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

MODULES = ("train", "evaluate", "predict", "export", "convert_weights")
SCRIPTS = (
    *("ablate", "benchmark", "ccd", "config_reference", "convert_dataset", "docs_numbers", "inspect_dataset"),
    *("make_miniature", "measure_encodings", "measure_input", "measure_parity", "rehearse", "report", "run_recipe"),
)
# Modules by the command that runs them.
COMMANDS = {name: f"fada_jax.{name}" for name in MODULES} | {name: f"fada_jax.scripts.{name}" for name in SCRIPTS}


def demo(arguments: list[str]) -> int:
    """The miniature GTA5 -> Cityscapes recipe in one folder; what is done is not done again. Returns the status."""
    parser = argparse.ArgumentParser("fada-jax demo", allow_abbrev=False)
    parser.add_argument("--out", default="demo")
    parser.add_argument("--seed", default="0")
    options, recipe_flags = parser.parse_known_args(arguments)
    out = options.out
    shutil.rmtree(f"{out}/raw.partial", ignore_errors=True)
    steps = [] if Path(out, "raw").is_dir() else [["make_miniature", f"--out={out}/raw", "--datasets=gta5,cityscapes"]]
    for name in ("gta5", "cityscapes"):
        steps.append(["convert_dataset", f"--dataset={name}", f"--raw_dir={out}/raw/{name}", f"--data_dir={out}/data"])
    recipe = ["run_recipe", "--config=configs/gta5_to_cityscapes.py:size=miniature"]
    recipe += [f"--workdir={out}/run_seed{options.seed}", f"--config.data_dir={out}/data"]
    steps.append([*recipe, f"--config.seed={options.seed}", *recipe_flags])
    for step in steps:
        status = subprocess.call([sys.executable, "-m", "fada_jax", *step])
        if status:
            return status
    return 0


def main() -> None:
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h", "help") or (name == "demo" and "--help" in arguments):
        print(f"{(__doc__ or '').strip()}\n\nCommands: demo, {', '.join(COMMANDS)}")
    elif name == "demo":
        sys.exit(demo(arguments))
    elif name not in COMMANDS:
        print(f"error: no command {name!r}: one of demo, {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [name, *arguments]
        runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
