"""Writes docs/configs.md, the reference of config keys, from the comments of configs/base.py.

  python scripts/config_reference.py --output=docs/configs.md

A comment stands behind its key, or where it is longer above it.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from absl import flags

from fada_jax import cli, settings
from fada_jax.configs import base
from fada_jax.errors import UserError
from fada_jax.evaluate import write_text

# Keys that several configs share, by the function that makes them.
_SHARED = {
    "source, target, eval": base.stream,
    "generator_optimizer, discriminator_optimizer": base.optimizer,
}


def comments(function: Any) -> dict[str, str]:
    """Comments of a function's ``config.key = value`` lines, behind or else above them, by key; '' without any."""
    found, above = {}, []
    for line in inspect.getsource(function).splitlines():
        match = re.match(r"\s+(?:\w+ = )?(config|model)\.([\w.]+) = (.*)$", line)
        if match:
            prefix = "model." if match[1] == "model" else ""
            found[prefix + match[2]] = match[3].partition("  # ")[2] or " ".join(above)
        above = [*above, line.strip("# ")] if line.lstrip().startswith("#") else []
    return found


def _table(texts: dict[str, str], values: dict[str, Any], prefix: str = "") -> list[str]:
    lines = ["|key|default|meaning|", "|---|---|---|"]
    for key, text in texts.items():
        if key in values:
            cell = text.replace("|", "\\|")
            lines.append(f"|`{prefix}{key}`|`{values[key]!r}`|{cell}|")
    return lines


def reference() -> str:
    """The page: arguments, then every key with its default and meaning."""
    plain = base.get_config(base.parse("")).to_dict()
    own = {key: value for key, value in plain.items() if key not in ("source", "target", "eval")}
    lines = [
        "# Configs",
        "",
        "Written by `python scripts/config_reference.py` from the comments of `configs/base.py`; a test keeps it so.",
        "",
        "`--config=configs/TASK.py:argument=value,...` chooses a variant, `--config.key=value` then overrides any key.",
        "Unknown keys are refused. Defaults below are those of the released source stage with ResNet-101; the",
        "adversarial stage, `size=miniature` and the task files change some of them.",
        "",
        "## Arguments",
        "",
        "|argument|default|values|",
        "|---|---|---|",
    ]
    allowed = {"stage": base.STAGES, "method": base.METHODS, "backbone": base.BACKBONES, "size": base.SIZES}
    for name, default in base.ARGUMENTS.items():
        lines.append(f"|`{name}`|`{default}`|{', '.join(f'`{value}`' for value in allowed[name])}|")
    lines += ["", "## Keys", "", *_table(comments(base.get_config), settings.flat(own))]
    for name, function in _SHARED.items():
        lines += ["", f"## Keys of {name}", "", (function.__doc__ or "").splitlines()[0].replace("``", "`"), ""]
        lines += _table(comments(function), function().to_dict())
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    write_text(flags.FLAGS.output, reference())
    print(f"written: {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "docs/configs.md", "File to write.")
    cli.run(main)
