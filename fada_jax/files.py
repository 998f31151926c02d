"""Files and folders of the user and of ours: what may be opened, what may be replaced, and how both are written whole.

What this package makes carries its mark (``MARK``) where its format has a place for one. A file or a folder without the
mark belongs to the user and is never overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fada_jax.errors import UserError

# ``Path`` turns gs://bucket into gs:/bucket.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Stands near the beginning or the end of every file of ours that a user may name as an output.
MARK = b"fada-jax"
_MARKED_WITHIN = 4096
# First file of a folder in the making.
MARKER = ".made_by_fada_jax"


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


# Reading -------------------------------------------------------------------------------------------------------------


def special(path: str | Path) -> str:
    """'a named pipe' or the like, which opening may wait on for ever; '' for a file, a folder or nothing there.

    Raises:
      OSError, ValueError: the path cannot be looked at; the latter where it holds a zero byte.
    """
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
    path = Path(path)
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


# Writing -------------------------------------------------------------------------------------------------------------


def is_ours(path: Path, mark: bytes = MARK) -> bool:
    """Whether a file carries our mark, or a narrower one: a picture of ours is none that a report may replace."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            beginning = file.read(_MARKED_WITHIN)
            file.seek(-min(_MARKED_WITHIN, path.stat().st_size), os.SEEK_END)
            return mark in beginning or mark in file.read()
    except OSError:
        return False


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
    path, title = Path(path), f"{name}{name and '='}{path}"
    if path.is_dir():
        raise UserError(f"{title} is a folder: name a file")
    if os.path.lexists(path) and not ours(path):
        raise UserError(f"{title} is there already and was not made by fada-jax: move it away or name another")
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{title} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{title} cannot be written: no permission, or a read-only file system")


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
    path = Path(path)
    if ours is not anything:
        check_output(path, ours=ours)
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


# Folders -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds the lock file ``path`` while open; the kernel lets go of it when the process ends in whatever way.

    Args:
      path: of the lock file, which is made and removed again.
      busy: the error where another process holds it.

    Raises:
      UserError: another process holds it, or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(path)
    except BlockingIOError as error:
        raise UserError(busy) from error
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file between both calls.
            if os.path.lexists(path) and os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def making(folder: str | Path, *, ours: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """A folder to fill beside ``folder``, which then takes its place; one process at a time does so.

    What a killed process left of its own is cleared first. An error inside leaves ``folder`` as it was.

    Args:
      folder: to make.
      ours: whether a folder that lies there may be replaced.

    Raises:
      UserError: another process makes it, somebody else's folder lies there, or it cannot be written.
    """
    folder = Path(folder).absolute()
    partial, replaced = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "replaced"))
    busy = f"{folder} is being made by another process: wait for it or name another folder"
    with locked(folder.with_name(f".{folder.name}.lock"), busy):
        _put_back(replaced, folder)  # Killed between the two moves below.
        if os.path.lexists(folder) and not ours(folder):
            raise UserError(f"{folder} is there already and was not made for this: move it away or name another")
        for left in (partial, replaced):
            _clear(left)
        partial.mkdir()
        try:
            (partial / MARKER).touch()
            yield partial
            if folder.exists():
                (folder / MARKER).touch()
                os.replace(folder, replaced)
            os.replace(partial, folder)
        except BaseException:
            _put_back(replaced, folder)
            _clear(partial)
            raise
        (folder / MARKER).unlink()
        _clear(replaced)


def _put_back(replaced: Path, folder: Path) -> None:
    """Undoes a replacement that did not come to its end."""
    if (replaced / MARKER).exists() and not folder.exists():
        os.replace(replaced, folder)
        (folder / MARKER).unlink()


def _clear(folder: Path) -> None:
    """Deletes a folder of ours.

    Raises:
      UserError: it is not.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink() or (not (folder / MARKER).exists() and any(folder.iterdir())):
        raise UserError(f"{folder} is in the way and was not made by fada-jax: move it away")
    # The marker last: a process that is killed here leaves nothing that could be somebody else's.
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    shutil.rmtree(folder)
