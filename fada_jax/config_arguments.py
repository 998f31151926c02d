"""What the command line says of ``--config``, put in the one form that ml_collections reads as it was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import config_flags

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
    others, found = [], {}
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
        flag, _, path = found.pop("config").partition("=")
        found = {"config": f"{flag}={installed(path)}" if path else flag, **found}
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
    file = path.partition(":")[0]
    if not Path(file).is_file():
        return
    try:
        config = config_flags.ConfigFileFlagParser("config").parse(path)
    except (TypeError, ValueError, SyntaxError, ImportError):
        return  # Parsing the flags says the same again, and says it well.
    except (Exception, SystemExit) as error:
        if Path(file).resolve().parent == Path(__file__).with_name("configs").resolve():
            raise
        # The code is the user's, whatever it raises.
        raise UserError(f"--config={file} cannot be run: {type(error).__name__}: {error}") from error
    if not isinstance(config, Mapping):
        raise UserError(f"--config={file}: its get_config() returned {type(config).__name__}, not a ConfigDict")
    for argument in arguments:
        if argument.startswith("--config."):
            _refuse_below_a_value(config, argument.partition("=")[0].removeprefix("--config."))


def _refuse_below_a_value(config: Mapping, key: str) -> None:
    value, parts = config, key.split(".")
    for i, part in enumerate(parts):
        if not isinstance(value, Mapping):
            raise UserError(f"--config.{key}: config.{'.'.join(parts[:i])} is {value!r}, which has no keys of its own")
        if part not in value:
            return  # Parsing the flags names it and what is like it.
        value = value[part]
