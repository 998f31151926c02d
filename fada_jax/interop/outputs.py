"""Files and folders that go elsewhere: what a full or broken disk does to them ends in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fada_jax.errors import UserError, storage_fault


@contextlib.contextmanager
def disk(path: Path, *types: type[Exception]) -> Iterator[None]:
    """Names ``path`` where what is inside cannot be stored.

    Args:
      path: that is written inside.
      types: errors, beside OSError, by which a library says so.

    Raises:
      UserError: the disk is full, read-only or gone.
    """
    expected: tuple[type[Exception], ...] = (OSError, *types)
    try:
        yield
    except expected as error:
        if not (fault := storage_fault(error) or storage_fault(error.__context__ or error)):
            raise
        raise UserError(f"{path} cannot be written ({fault}): make room or name another --output") from error
