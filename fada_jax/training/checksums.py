"""SHA-256 sums of the files of a checkpoint or an artifact, as ``sha256sum -c`` reads them: they tell a damaged one."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import orbax.checkpoint as ocp

from fada_jax import files
from fada_jax.errors import UserError

# Folder of the checkpoints in a workdir, and the file of sums in each.
FOLDER, SUMS = "checkpoints", "SHA256SUMS"
# orbax stamps these with the time when it commits a checkpoint, after the sums are taken.
_STAMPED = ("_CHECKPOINT_METADATA", "commit_success.txt")
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


def write(path: Path) -> None:
    """Writes the sums of all files below a folder."""
    text = "".join(f"{_digest(path / name)}  {name}\n" for name in _summed(path))
    (path / SUMS).write_text(text, encoding="utf-8")


def _summed(path: Path) -> list[str]:
    names = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return sorted(name for name in names if name not in (*_STAMPED, SUMS, files.MARKER))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    for name in sorted(sums.keys() | {name for name in _summed(path) if not _is_stray(name)}):
        if items and name.partition("/")[0] not in items:
            continue
        try:
            if problem := files.special(path / name):
                return f"{name} is {problem}"
            if _digest(path / name) != sums.get(name):
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return ""


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
