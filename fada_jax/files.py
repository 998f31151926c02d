"""Files that are there whole or not at all, and paths that this version can reach."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fada_jax.errors import UserError

# ``Path`` turns gs://bucket into gs:/bucket.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local(path: str | Path, name: str = "") -> Path:
    """``path`` as a local path.

    Args:
      path: as the user gave it.
      name: flag or key to name in the error.

    Raises:
      UserError: it names object storage or the like (``gs://...``), which would become a local folder of that name.
    """
    if _SCHEME.match(str(path)):
        raise UserError(f"{name}{name and '='}{path}: only local and mounted paths work, not object storage")
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, in the folder of ``path``, which is made; what it holds then takes the place of ``path``.

    An error inside leaves ``path`` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may write the same file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)
