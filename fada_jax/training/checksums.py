"""SHA-256 sums of the files of a checkpoint or an artifact, as ``sha256sum -c`` reads them: they tell a damaged one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orbax.checkpoint as ocp

from fada_jax import files, folders
from fada_jax.errors import UserError
from fada_jax.storage import leases

# Folder of the checkpoints in a workdir, and the file of sums in each.
FOLDER, SUMS = "checkpoints", "SHA256SUMS"
# What orbax writes last into a checkpoint in a bucket, where nothing is renamed.
COMMITTED = "commit_success.txt"
# orbax stamps these with the time when it commits a checkpoint, after the sums are taken.
_STAMPED = ("_CHECKPOINT_METADATA", COMMITTED)
# Of a bucket: bytes of an object that are asked for at once, and objects that are read at a time.
_PART, _TOGETHER = 2**24, 16
# What every checkpoint holds.
ITEMS = ("meta", "model", "training")
_LINE = re.compile(r"([0-9a-f]{64})  ([^\0]+)")


class SummedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint in the making: its checksums are written before the rename that completes it."""

    async def finalize(self) -> None:
        path = Path(self.get())
        if path.parent.name == FOLDER:  # Not one of its items.
            await asyncio.to_thread(write, path)
        await super().finalize()


class SummedObjects(ocp.path.atomicity.CommitFileTemporaryPath):
    """A checkpoint in the making in a bucket: its checksums are written before the object that completes it."""

    async def finalize(self) -> None:
        path = files.place(os.fspath(self.get()))
        if path.parent.name == FOLDER:
            await asyncio.to_thread(write, path)
            # A run that has lost its workdir must not complete anything there.
            await asyncio.to_thread(leases.confirm)
        await super().finalize()


def in_the_making(folder: Path) -> type[SummedPath] | type[SummedObjects]:
    """What orbax makes the checkpoints in a folder by."""
    return SummedObjects if files.is_object(folder) else SummedPath


def write(path: Path) -> None:
    """Writes the sums of all files below a folder."""
    digests = _digests(path, _summed(path))
    (path / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests), encoding="utf-8")


def _summed(path: Path) -> list[str]:
    return [name for name in files.tree(path) if name not in (*_STAMPED, SUMS, folders.MARKER)]


def _digests(path: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names with the digests of their files, in order; in a bucket many are read at a time."""
    if not files.is_object(path):
        yield from ((name, _digest(path / name)) for name in names)
        return
    with ThreadPoolExecutor(_TOGETHER) as pool:
        waiting = [(name, pool.submit(_digest, path / name)) for name in names]
        yield from ((name, digest.result()) for name, digest in waiting)


def _digest(path: Path) -> str:
    if not files.is_object(path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest, start = hashlib.sha256(), 0
    while part := path.read_range(start, start + _PART):  # type: ignore[attr-defined]
        digest.update(part)
        if len(part) < _PART:
            break
        start += _PART
    return digest.hexdigest()


def damage(path: Path, items: tuple[str, ...] = ()) -> str:
    """What is wrong with the files of a checkpoint or an artifact; '' where they are as they were written.

    What file managers and file systems put beside its own files does not count.

    Args:
      path: ``checkpoints/<step>``, or the artifact's folder.
      items: look at these files and folders in it alone, which must be there; empty: at all of a checkpoint.
    """
    try:
        sums = _read_sums(path / SUMS)
        listed = {name.partition("/")[0] for name in sums}
        if missing := [item for item in items or ITEMS if item not in listed]:
            return f"{SUMS} holds no sum of {missing[0]}"
    except UserError as error:
        return str(error)
    there = {name for name in _summed(path) if not _is_stray(name)}
    names = [name for name in sorted(sums.keys() | there) if not items or name.partition("/")[0] in items]
    try:
        if problem := next(filter(None, (_special(path, name) for name in names)), ""):
            return problem
        for name, digest in _digests(path, names):
            if digest != sums.get(name):
                return f"{name} is not as it was written"
    except OSError as error:
        return f"{str(error.filename or '').removeprefix(f'{path}/')}: {error.strerror}"
    return ""


def _special(path: Path, name: str) -> str:
    problem = files.special(path / name)
    return problem and f"{name} is {problem}"


def _is_stray(name: str) -> bool:
    """Whether a file is one that desktops and NFS leave in folders."""
    file = name.rpartition("/")[2]
    return file.startswith(".") or file.lower() in ("thumbs.db", "desktop.ini")


def _read_sums(path: Path) -> dict[str, str]:
    """Digests by the name of a file below the folder of ``path``.

    Raises:
      UserError: there is no such file, or one of its names leaves the folder.
    """
    try:
        lines = files.read_text(path, limit=2**24).splitlines()
    except UserError as error:
        raise UserError(f"{SUMS} is missing or cannot be read") from error
    sums = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if not match or match[2].startswith("/") or ".." in match[2].split("/"):
            raise UserError(f"{SUMS} has a line that is no sum of a file in it: {line[:80]!r}")
        sums[match[2]] = match[1]
    return sums
