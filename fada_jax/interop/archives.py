"""Zip archives, which PyTorch's and NumPy's files are: whether they hold no more than they have on disk."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from fada_jax.interop.tensors import printable

# What Python's reader raises about the directory of a damaged archive.
_DAMAGED = (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError, OverflowError, IndexError)


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive, by which PyTorch tells it, too."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def problem(path: Path) -> str:
    """Why an archive may need more memory than it has on disk, or cannot be read; '' where neither is so.

    Both libraries store their members as they are, so nothing is lost by refusing what is compressed or lies over
    another member. Names do not matter: members are read into memory alone.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        size = path.stat().st_size
    except _DAMAGED as error:
        return f"a damaged archive ({str(error) or type(error).__name__})"
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            return f"its member {printable(member.filename)!r} is compressed, save it as it was made"
    if sum(member.file_size for member in members) > size:
        return "a damaged archive, whose members are larger than it is"
    if len({member.filename for member in members}) != len(members):
        return "a damaged archive, in which two members have one name"
    return ""
