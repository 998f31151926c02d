"""Folders that one process makes at a time, and whose contents appear all at once or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from fada_jax import documents, files
from fada_jax.errors import UserError
from fada_jax.storage import caches, leases
from fada_jax.storage.paths import is_object, place

# First file of a folder in the making.
MARKER = ".made_by_fada_jax"
# In a folder of a bucket: the name of the folder in it that holds what was published last.
PUBLISHED = "published.json"


@dataclasses.dataclass(frozen=True)
class _Published:
    """What ``PUBLISHED`` holds; both are texts."""

    made_by: str
    folder: str


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds the lock file ``path`` while open; the kernel lets go of it when the process ends in whatever way.

    In a bucket it is a lease (``storage.leases``).

    Args:
      path: of the lock file, which is made and removed again.
      busy: the error where another process holds it.

    Raises:
      UserError: another process holds it, or it cannot be made.
    """
    if is_object(path):
        with leases.held(path, busy):
            yield
        return
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

    What a killed process left of its own is cleared first. An error inside leaves ``folder`` as it was. In a bucket it
    is filled locally and written to a folder inside ``folder``, which ``published`` finds once all of it is there.

    Args:
      folder: to make.
      ours: whether a folder that lies there may be replaced.

    Raises:
      UserError: another process makes it, somebody else's folder lies there, or it cannot be written.
    """
    folder = place(folder).absolute()
    if is_object(folder):
        with _making_objects(folder, ours) as partial:
            yield partial
        return
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


@contextlib.contextmanager
def _making_objects(folder: Path, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """``making`` in a bucket."""
    busy = f"{folder} is being made by another process: wait for it or name another folder"
    with locked(folder.with_name(f".{folder.name}.lock"), busy):
        before = set(files.tree(folder))
        left = all(name.startswith("made-") for name in before)  # By processes that were killed.
        if not left and not files.is_ours(folder / PUBLISHED) and not ours(folder):
            raise UserError(f"{folder} is there already and was not made for this: move it away or name another")
        partial = caches.scratch() / folder.name
        partial.mkdir()
        try:
            yield partial
            made = f"made-{uuid.uuid4().hex[:12]}"
            caches.uploaded(partial, folder / made)
            files.write_text(
                folder / PUBLISHED, json.dumps(dataclasses.asdict(_Published(files.MARK.decode(), made))) + "\n"
            )
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        # A run that reads the old one ends with an error that names it, as on a disk.
        caches.in_parallel(lambda name: (folder / name).unlink(missing_ok=True), before - {PUBLISHED})


def published(folder: Path) -> Path:
    """Where what was made at ``folder`` lies: itself, or in a bucket the folder inside that was published last.

    Raises:
      UserError: what says so cannot be read.
    """
    if not is_object(folder) or not (folder / PUBLISHED).is_file():
        return folder
    path = folder / PUBLISHED
    return folder / documents.check(documents.read(path), _Published, path, advice=f"make {folder.name} again").folder


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
