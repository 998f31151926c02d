"""Every command under one name, wherever the package is installed.

  fada-jax COMMAND [flags]                 the same as `python -m fada_jax COMMAND [flags]`
  fada-jax COMMAND --help                  what it does, its flags and examples
  fada-jax demo [--out=demo] [--seed=0]    miniature data, all stages, evaluation: ends with a table and paths

A command is the module or script of that name: `fada-jax train` is `python -m fada_jax.train`, and `fada-jax
run_recipe` is `python scripts/run_recipe.py`.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

MODULES = ("train", "evaluate", "predict", "export", "convert_weights")


def commands() -> dict[str, str]:
    """Modules by the command that runs them."""
    scripts = sorted(Path(__file__).parent.glob("scripts/[a-z]*.py"))
    scripts = [path for path in scripts if '__name__ == "__main__"' in path.read_text()]
    return {name: f"fada_jax.{name}" for name in MODULES} | {
        path.stem: f"fada_jax.scripts.{path.stem}" for path in scripts
    }


def demo(arguments: list[str]) -> int:
    """The miniature GTA5 -> Cityscapes recipe in one folder; what is done is not done again. Returns the status."""
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    out, seed = given.pop("out", "demo"), given.pop("seed", "0")
    shutil.rmtree(f"{out}/raw.partial", ignore_errors=True)
    steps = [] if Path(out, "raw").is_dir() else [["make_miniature", f"--out={out}/raw", "--datasets=gta5,cityscapes"]]
    for name in ("gta5", "cityscapes"):
        steps.append(["convert_dataset", f"--dataset={name}", f"--raw_dir={out}/raw/{name}", f"--data_dir={out}/data"])
    recipe = ["run_recipe", "--config=configs/gta5_to_cityscapes.py:size=miniature", f"--workdir={out}/run_seed{seed}"]
    recipe += [f"--config.data_dir={out}/data", f"--config.seed={seed}"]
    steps.append([*recipe, *(f"--{key}={value}" for key, value in given.items())])
    statuses = (subprocess.call([sys.executable, "-m", "fada_jax", *step]) for step in steps)
    return next((status for status in statuses if status), 0)


def main() -> None:
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    known = commands()
    if name in ("--help", "-h", "help") or (name == "demo" and "--help" in arguments):
        print(f"{__doc__.strip()}\n\nCommands: demo, {', '.join(known)}")
    elif name == "demo":
        sys.exit(demo(arguments))
    elif name not in known:
        print(f"error: no command {name!r}: one of demo, {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [name, *arguments]
        runpy.run_module(known[name], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
