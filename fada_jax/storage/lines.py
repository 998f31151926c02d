"""Files of lines that grow: a local one is appended to; in a bucket, where nothing can be, parts are written beside it.

``NAME`` and the objects of ``NAME.parts/`` together are the lines, in that order, each once; ``appending`` makes one
object of them when it closes, and a run that was killed before leaves that to the next.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TextIO

from fada_jax import files
from fada_jax.errors import UserError
from fada_jax.storage import caches, leases, objects
from fada_jax.storage.paths import is_object

# Seconds between two parts at the least; what a kill in between costs.
_EVERY = 10.0


class Lines(Protocol):
    """A file of lines, open to be added to."""

    def add(self, line: str) -> None:
        """Adds a line."""

    def flush(self) -> None:
        """Has all lines so far written, where they may wait."""


def read(path: Path) -> list[str]:
    """All lines of a file, with their ends; none where there is no file."""
    if not is_object(path):
        return files.read_text(path).splitlines(keepends=True) if path.exists() else []
    lines: dict[str, None] = {}
    for name in _objects(path):
        with contextlib.suppress(FileNotFoundError):  # Merged by its run meanwhile.
            lines.update(dict.fromkeys(objects.read(name).decode().splitlines(keepends=True)))
    return list(lines)


def _objects(path: Path) -> list[str]:
    return [str(path), *_parts(path)] if path.is_file() else _parts(path)


def _folder(path: Path) -> str:
    return f"{path}.parts"


def _parts(path: Path) -> list[str]:
    return [f"{_folder(path)}/{name}" for name in objects.tree(_folder(path))]


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Lines]:
    """Opens a file to add lines to."""
    if is_object(path):
        parts = _Parts(path)
        try:
            yield parts
        except BaseException:
            # What ends the run matters more; the next one merges what could be written.
            with contextlib.suppress(OSError, UserError):
                parts.merge()
            raise
        parts.merge()
        return
    with path.open("a", encoding="utf-8") as file:
        yield _File(file)


class _File:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def flush(self) -> None:
        pass


class _Parts:
    def __init__(self, path: Path) -> None:
        self._path, self._waiting, self._count, self._written = path, [""], 0, time.monotonic()

    def add(self, line: str) -> None:
        self._waiting.append(line)
        if time.monotonic() - self._written >= _EVERY:
            self.flush()

    def flush(self) -> None:
        text = "".join(self._waiting)
        if not text:
            return
        leases.check()
        # In the order of their time, also those of the run before.
        objects.write(f"{_folder(self._path)}/{time.time_ns():020d}", text.encode())
        self._waiting, self._count, self._written = [""], self._count + 1, time.monotonic()

    def merge(self) -> None:
        """One object of all parts."""
        self.flush()
        if _parts(self._path):
            replace(self._path, read(self._path))


def replace(path: Path, lines: list[str]) -> None:
    """Makes a file hold these lines alone."""
    files.write_text(path, "".join(lines))
    if is_object(path):
        caches.in_parallel(objects.remove, _parts(path))
