"""What the command line says of ``--config``, put in the one form that ml_collections reads as it was meant."""

from __future__ import annotations

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fada_jax.errors import UserError

_CONFIG = re.compile(r"--?(config(?:\.[^=]*)?)(=.*)?", re.DOTALL)
_NUMBER = re.compile(r"-[0-9.]")


def normalised(arguments: Sequence[str]) -> list[str]:
    """Arguments with each of ``--config`` and ``--config.KEY`` once, as ``--config.KEY=VALUE``, in front.

    ml_collections reads overrides behind ``--config`` alone, joins the values of a tuple that is given twice, and looks
    for ``configs/NAME.py`` in the working directory alone; here the last value counts, and the installed file serves
    where the working directory has none.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    others: list[str] = []
    found: dict[str, str] = {}
    waiting = list(arguments[:end])
    while waiting:
        argument = waiting.pop(0)
        match = _CONFIG.fullmatch(argument)
        if not match:
            others.append(argument)
            continue
        name, value = match[1], match[2]
        if value is None and waiting and (not waiting[0].startswith("-") or _NUMBER.match(waiting[0])):
            value = f"={waiting.pop(0)}"
        found.pop(name, None)  # The last one counts, at its own place in the order.
        found[name] = f"--{name}{value or ''}"
    if "config" in found:
        path = found.pop("config").partition("=")[2]
        found = {"config": f"--config={installed(path)}", **found}
    return [*found.values(), *others, *arguments[end:]]


def installed(path: str) -> str:
    """``configs/NAME.py`` of the package where the working directory has no such file."""
    file = path.partition(":")[0]
    ours = Path(__file__).parent / file
    return str(ours.parent / path[len("configs/") :]) if _is_installed(file, ours) else path


def _is_installed(file: str, ours: Path) -> bool:
    return file.startswith("configs/") and not Path(file).exists() and ours.is_file()


def check(arguments: Sequence[str]) -> None:
    """Refuses what ml_collections would answer without naming the file or the key.

    Args:
      arguments: as ``normalised`` gives them.

    Raises:
      UserError: a config file that fails or gives no config, or a key below one that holds a value.
    """
    path = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), "")
    if "--config=" in arguments:
        raise UserError("--config is empty: give the path of a config file")
    file, *options = path.split(":", 1)
    if not Path(file).is_file():
        return
    try:
        config = runpy.run_path(file, run_name="config")["get_config"](*options)
    except (TypeError, ValueError, SyntaxError, ImportError):
        return  # Parsing the flags says the same again, and says it well.
    except (Exception, SystemExit) as error:
        if Path(file).resolve().parent == Path(__file__).with_name("configs").resolve():
            raise
        # The code is the user's, whatever it raises.
        raise UserError(f"--config={file} cannot be run: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={file}: its get_config() returned {type(config).__name__}, not a ConfigDict")
    for argument in arguments:
        if argument.startswith("--config."):
            _refuse_below_a_value(config, argument.partition("=")[0].removeprefix("--config."))


def _refuse_below_a_value(config: ConfigDict, key: str) -> None:
    value: Any = config
    parts = key.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"--config.{key}: no key; keys are names joined by dots")
    for i, part in enumerate(parts):
        if not isinstance(value, ConfigDict):
            raise UserError(f"--config.{key}: config.{'.'.join(parts[:i])} is {value!r}, which has no keys of its own")
        if part not in value:
            return  # Parsing the flags names it and what is like it.
        value = value[part]
