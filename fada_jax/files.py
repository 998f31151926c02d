"""Files and folders of the user and of ours: what may be opened, what may be replaced, and how both are written whole.

Paths are local or of a bucket (``fada_jax.storage``): a write there is one request, which the store does whole or not
at all, and nothing is renamed. What this package makes carries its mark (``MARK``) where its format has a place for
one. A file or a folder without the mark belongs to the user and is never overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fada_jax.errors import UserError
from fada_jax.storage import caches
from fada_jax.storage.paths import is_object, place

# Stands near the beginning or the end of every file of ours that a user may name as an output.
MARK = b"fada-jax"
_MARKED_WITHIN = 4096


# Reading -------------------------------------------------------------------------------------------------------------


def special(path: str | Path) -> str:
    """'a named pipe' or the like, which opening may wait on for ever; '' for a file, a folder or nothing there.

    Raises:
      OSError, ValueError: the path cannot be looked at; the latter where it holds a zero byte.
    """
    if is_object(path):
        return ""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return ""
    kinds = {stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    kinds |= dict.fromkeys((stat.S_ISCHR, stat.S_ISBLK), "a device")
    return next((f"{name}, not a file" for is_kind, name in kinds.items() if is_kind(mode)), "")


def read_bytes(path: str | Path, limit: int = 2**30) -> bytes:
    """All of a file.

    Args:
      path: of the file.
      limit: bytes that it may have.

    Raises:
      UserError: naming the path: not there, not a regular file, larger than ``limit``, or not to be read.
    """
    path = place(path)
    try:
        if problem := special(path):
            raise UserError(f"{path} is {problem}")
        if (size := path.stat().st_size) > limit:
            raise UserError(f"{path} has {size} bytes, more than the {limit} that are read of such a file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from error


def read_text(path: str | Path, limit: int = 2**26) -> str:
    """A text file in UTF-8, whatever the locale; raises as ``read_bytes``, and where it is no UTF-8."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start})") from error


def fetched(path: str | Path) -> Path:
    """A local file or folder that holds what ``path`` does; a local path itself.

    Raises:
      UserError: a bucket does not give it.
    """
    try:
        return caches.fetched(place(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """``fetched``, while errors about the copy name ``path``."""
    copy = fetched(path)
    try:
        yield copy
    except UserError as error:
        if str(copy) == str(path):
            raise
        raise UserError(str(error).replace(str(copy), str(path))) from error


def exists(path: Path) -> bool:
    """Whether anything lies at a path, be it a link to nowhere."""
    return path.exists() if is_object(path) else os.path.lexists(path)


def tree(folder: Path) -> list[str]:
    """All files below a folder, by their paths from there, in order."""
    if is_object(folder):
        return list(folder.tree())  # type: ignore[attr-defined]
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# Writing -------------------------------------------------------------------------------------------------------------


def is_ours(path: Path, mark: bytes = MARK) -> bool:
    """Whether a file carries our mark, or a narrower one: a picture of ours is none that a report may replace."""
    try:
        return path.is_file() and any(mark in part for part in _ends(path))
    except OSError:
        return False


def _ends(path: Path) -> Iterator[bytes]:
    """The beginning and the end of a file."""
    size = path.stat().st_size
    last = max(0, size - _MARKED_WITHIN)
    if is_object(path):
        for start in (0, last):
            yield path.read_range(start, min(start + _MARKED_WITHIN, size))  # type: ignore[attr-defined]
        return
    with path.open("rb") as file:
        yield file.read(_MARKED_WITHIN)
        file.seek(last)
        yield file.read()


def anything(path: Path) -> bool:
    """For files inside a folder that is ours already: whatever is there may be replaced."""
    del path
    return True


def check_output(path: str | Path, name: str = "", *, ours: Callable[[Path], bool] = is_ours) -> None:
    """Refuses an output that could not be written, or must not be, before the work that goes into it.

    Args:
      path: of a file to be written.
      name: flag to name in the error.
      ours: whether what lies there may be replaced.

    Raises:
      UserError: a folder, somebody else's file, or a place that cannot be written.
    """
    path, title = place(path, name), f"{name}{name and '='}{path}"
    if path.is_dir():
        raise UserError(f"{title} is a folder: name a file")
    if exists(path) and not ours(path):
        raise UserError(f"{title} is there already and was not made by fada-jax: move it away or name another")
    if is_object(path):
        _probe(path.parent, title)
        return
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{title} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{title} cannot be written: no permission, or a read-only file system")


def _probe(folder: Path, title: str) -> None:
    """Refuses a folder of a bucket that nothing can be written to.

    Raises:
      UserError: see above.
    """
    try:
        caches.probe(str(folder))
    except OSError as error:
        raise UserError(f"{title} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: str | Path, *, ours: Callable[[Path], bool] = anything) -> Iterator[Path]:
    """A path to write to, in the folder of ``path``, which is made; what it holds then takes the place of ``path``.

    An error inside leaves ``path`` as it was, and nothing else.

    Args:
      path: file to write.
      ours: whether what lies there may be replaced; ``is_ours`` for outputs at a place that the user names.

    Raises:
      UserError: somebody else's file lies there.
      OSError: naming ``path``: it cannot be written.
    """
    path = place(path)
    if ours is not anything:
        check_output(path, ours=ours)
    if is_object(path):
        partial = caches.scratch() / path.name
        try:
            yield partial
            caches.publish(partial, path)
        finally:
            shutil.rmtree(partial.parent, ignore_errors=True)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    partial = _free(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial), partial):
            # A full disk is told of an open file, which has no name, or of one that the user does not know.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _free(path: Path) -> Path:
    """A name beside ``path`` that nothing has."""
    for number in range(1_000_000):
        partial = path.with_name(f".{path.name[:50]}.{os.getpid()}.{number}.partial")  # 255 bytes at most.
        if not os.path.lexists(partial):
            return partial
    raise UserError(f"{path.parent} is full of partial files: clear it")


def write_text(path: str | Path, text: str, *, ours: Callable[[Path], bool] = anything) -> None:
    """Writes a file in UTF-8, whole or not at all; see ``replacing``."""
    with replacing(path, ours=ours) as partial:
        partial.write_text(text, encoding="utf-8")
