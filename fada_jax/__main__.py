"""Every command under one name, wherever the package is installed.

  fada-jax COMMAND [flags]                 the same as `python -m fada_jax COMMAND [flags]`
  fada-jax COMMAND --help                  what it does, its flags and examples
  fada-jax demo [--out=demo] [--seed=0]    miniature data, all stages, evaluation: ends with a table and paths

A command is the module or script of that name: `fada-jax train` is `python -m fada_jax.train`, and `fada-jax
run_recipe` is `python scripts/run_recipe.py`.
"""

from __future__ import annotations

from fada_jax import as_command  # noqa: F401  # A signal finds its handler from here on.

# isort: split
import argparse
import contextlib
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from fada_jax import endings

MODULES = ("train", "evaluate", "predict", "export", "convert_weights")
SCRIPTS = (
    *("ablate", "benchmark", "ccd", "config_reference", "convert_dataset", "docs_numbers", "inspect_dataset"),
    *("make_miniature", "measure_encodings", "measure_input", "measure_parity", "rehearse", "report", "run_recipe"),
    "translate_dataset",
)
# Modules by the command that runs them.
COMMANDS = {name: f"fada_jax.{name}" for name in MODULES} | {name: f"fada_jax.scripts.{name}" for name in SCRIPTS}


def demo(arguments: list[str]) -> int:
    """The miniature GTA5 -> Cityscapes recipe in one folder; what is done is not done again. Returns the status."""
    parser = _Parser(
        "fada-jax demo",
        description="Makes miniature data, trains every stage on it and scores them, in one folder.",
        epilog="--config.KEY=VALUE, --deterministic and --debug go to run_recipe.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="demo", help="folder to make, or to go on in (default: demo)")
    parser.add_argument("--seed", default="0", type=_seed, help="of all random numbers (default: 0)")
    options, recipe_flags = parser.parse_known_args(arguments)
    for flag in recipe_flags:
        if not re.fullmatch(r"--config\.\S+=.*|--(no)?(debug|deterministic)", flag):
            parser.error(
                f"unexpected argument {flag!r}: there are --out, --seed, --deterministic and --config.KEY=VALUE"
            )
    out = Path(options.out)
    if not options.out or out.absolute().parent == out.absolute():
        parser.error(f"--out={options.out}: name a folder to make")
    steps = []
    if not (out / "raw").is_dir():
        steps.append(["make_miniature", f"--out={out}/raw", "--datasets=gta5,cityscapes"])
    for name in ("gta5", "cityscapes"):
        steps.append(["convert_dataset", f"--dataset={name}", f"--raw_dir={out}/raw/{name}", f"--data_dir={out}/data"])
    recipe = ["run_recipe", "--config=configs/gta5_to_cityscapes.py:size=miniature"]
    recipe += [f"--workdir={out}/run_seed{options.seed}", f"--config.data_dir={out}/data"]
    steps.append([*recipe, f"--config.seed={options.seed}", *recipe_flags])
    for step in steps:
        status = _command(step)
        if status:
            return status
    return 0


class _Parser(argparse.ArgumentParser):
    """Errors on one line, as all commands have them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _seed(text: str) -> int:
    """A seed, which also becomes part of a folder's name."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to {2**32 - 1}")
    return int(text)


def _command(arguments: list[str]) -> int:
    """Status of one command, which gets the signals that this process gets and says how it ended.

    Raises:
      KeyboardInterrupt: a signal came when the command had done its work already.
    """
    process, came = None, None
    with endings.saving():
        while True:
            try:
                process = process or subprocess.Popen([sys.executable, "-m", "fada_jax", *arguments])
                status = process.wait()
                break
            except KeyboardInterrupt as error:
                if process is None:
                    raise
                came = error
                endings.state.said = True  # By the command, which gets the signal, too.
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(error.args[0] if error.args else signal.SIGINT)
    if came and not status:
        endings.state.said = False
        raise came
    return status


def main() -> None:
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in COMMANDS:
        sys.argv = [name, *arguments]
        runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)
        return
    try:
        endings.begin()
        status = _own(name, arguments)
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status, line = endings.interrupted()
        endings.say(line)
    endings.ignore_signals()
    sys.exit(status)


def _own(name: str, arguments: list[str]) -> int:
    """What is no other command: help and the demo. Returns the status."""
    if name in ("--help", "-h", "-help", "help"):
        print(f"{endings.description(sys.modules[__name__])}\n\nCommands: demo, {', '.join(COMMANDS)}")
        return 0
    if name == "demo":
        return demo(arguments)
    print(f"error: no command {name!r}: one of demo, {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
