"""Writes docs/configs.md, the reference of config keys, from the comments of fada_jax/config.py.

  python scripts/config_reference.py --output=docs/configs.md

A comment stands behind its key, or where it is longer above it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from absl import flags

from fada_jax import cli, files
from fada_jax.config import Config, StreamConfig
from fada_jax.configs import base
from fada_jax.errors import UserError
from fada_jax.training.optimizers import OptimizerSpec

# Streams and optimizers share their keys.
_SHARED = {
    "source, target, eval": StreamConfig,
    "generator_optimizer, discriminator_optimizer": OptimizerSpec,
}


def comments(kind: type) -> dict[str, str]:
    """Comments of a dataclass's fields, behind or else above them, by field; '' without any."""
    texts: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        if match := re.match(r"    (\w+): (.*)$", line):
            texts[match[1]] = match[2].partition("  # ")[2] or " ".join(above)
        above = [*above, line.strip("# ")] if line.lstrip().startswith("#") else []
    return texts


def table(kind: type, default: Any, prefix: str = "") -> list[str]:
    """Rows of a group's keys: name, default, meaning; groups inside it follow in their place."""
    rows = []
    for key, text in comments(kind).items():
        if key not in {field.name for field in dataclasses.fields(kind)} - {"num_classes"}:
            continue
        value = getattr(default, key)
        if not dataclasses.is_dataclass(value):
            cell = text.replace("|", "\\|")
            rows.append(f"|`{prefix}{key}`|`{value!r}`|{cell}|")
        elif not any(isinstance(value, shared) for shared in _SHARED.values()):
            rows += table(type(value), value, f"{key}.")
    return rows


def reference() -> str:
    """The page: arguments, then every key with its default and meaning."""
    head = ["|key|default|meaning|", "|---|---|---|"]
    lines = [
        "# Configs",
        "",
        "Written by `python scripts/config_reference.py` from `fada_jax/config.py`; a test keeps it so.",
        "",
        "`--config=configs/TASK.py:argument=value,...` chooses a variant, `--config.key=value` then overrides any key.",
        "Unknown keys are refused. Defaults below are those of the released source stage with ResNet-101; the",
        "adaptation stage, `size=miniature` and the task files change some of them.",
        "",
        "## Arguments",
        "",
        "|argument|default|values|",
        "|---|---|---|",
    ]
    for name, default in base.ARGUMENTS.items():
        lines.append(f"|`{name}`|`{default}`|{', '.join(f'`{value}`' for value in base.VALUES[name])}|")
    lines += ["", "## Keys", "", *head, *table(Config, Config())]
    for name, kind in _SHARED.items():
        lines += ["", f"## Keys of {name}", "", (kind.__doc__ or "").splitlines()[0], "", *head, *table(kind, kind())]
    return "\n".join(lines) + "\n"


def is_reference(path: Path) -> bool:
    """Whether a file is a page of ``reference``."""
    return files.is_ours(path, b"Written by `python scripts/config_reference.py`")


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    files.write_text(flags.FLAGS.output, reference(), ours=is_reference)
    print(f"written: {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "docs/configs.md", "File to write.")
    cli.run(main)
