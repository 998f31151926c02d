"""SHA-256 sums of a checkpoint's files, as ``sha256sum -c`` reads them: they tell a damaged one."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import orbax.checkpoint as ocp

# Folder of the checkpoints in a workdir, and the file of sums in each.
FOLDER, SUMS = "checkpoints", "SHA256SUMS"
# orbax stamps these with the time when it commits a checkpoint, after the sums are taken.
_STAMPED = ("_CHECKPOINT_METADATA", "commit_success.txt")


class SummedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint in the making: its checksums are written before the rename that completes it."""

    async def finalize(self) -> None:
        path = Path(self.get())
        if path.parent.name == FOLDER:  # Not one of its items.
            await asyncio.to_thread(_write_sums, path)
        await super().finalize()


def _write_sums(path: Path) -> None:
    (path / SUMS).write_text("".join(f"{_digest(path / name)}  {name}\n" for name in _summed(path)))


def _summed(path: Path) -> list[str]:
    names = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return sorted(name for name in names if name not in (*_STAMPED, SUMS))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path, items: tuple[str, ...] = ()) -> str:
    """What is wrong with the files of a checkpoint; '' where they are as they were written.

    Args:
      path: ``checkpoints/<step>``.
      items: look at these of its items alone; empty: at all of it.
    """
    try:
        lines = (path / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return f"{SUMS} is missing or cannot be read"
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(sums.keys() | set(_summed(path))):
        if items and name.partition("/")[0] not in items:
            continue
        try:
            if _digest(path / name) != sums.get(name):
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return ""
