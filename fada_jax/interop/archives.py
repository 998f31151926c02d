"""Zip archives, which PyTorch's and NumPy's files are: whether they hold no more than they have on disk."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fada_jax.errors import UserError

# What Python's reader raises about the directory of a damaged archive.
_DAMAGED = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError)


def check(path: Path) -> None:
    """Refuses an archive that would need more memory than it has on disk.

    Both libraries store their members as they are, so nothing is lost by refusing what is compressed or lies over
    another member. Names do not matter: members are read into memory alone.

    Raises:
      UserError: naming the path and the member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        size = path.stat().st_size
    except _DAMAGED as error:
        raise UserError(f"{path} is a damaged archive: {error}") from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UserError(f"{path}: its member {member.filename!r} is compressed: save the file again as it was made")
    if sum(member.file_size for member in members) > size:
        raise UserError(f"{path} is a damaged archive: its members are larger than it is")
    if len({member.filename for member in members}) != len(members):
        raise UserError(f"{path} is a damaged archive: two members have one name")
