"""JSON of results at places that the user names: it says who made it, and replaces nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fada_jax import __version__, documents, files, stored
from fada_jax.errors import UserError

MADE_BY = f"fada-jax {__version__}"
_MARK = b'"made_by": "fada-jax '


def is_ours(path: Path) -> bool:
    """Whether a file is JSON of results, of this version or of an earlier one, which did not say who made it."""
    if files.is_ours(path, _MARK):
        return True
    try:
        values = documents.read(path)
    except UserError:
        return False
    if not isinstance(values, dict):
        return False
    if "date" in values and {"command", "pillow"} & values.keys():  # Measurements.
        return True
    try:
        documents.check(values, stored.Scores, path)
    except UserError:
        return False
    return True


def check(path: str | Path, name: str) -> None:
    """Refuses an output that could not be written, or must not be, before the work that goes into it.

    Args:
      path: as the user gave it; empty: there is none.
      name: flag to name in the error.

    Raises:
      UserError: see above.
    """
    if path:
        files.check_output(path, name, ours=is_ours)


def text(values: Mapping[str, Any], indent: int = 2) -> str:
    """``values`` as JSON that says who made it."""
    return json.dumps({"made_by": MADE_BY, **values}, indent=indent) + "\n"


def write(path: str | Path, values: Mapping[str, Any], indent: int = 2) -> None:
    """Writes ``values`` whole or not at all; raises as ``files.replacing``."""
    files.write_text(path, text(values, indent), ours=is_ours)
