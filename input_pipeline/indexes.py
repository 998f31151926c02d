"""The random-access index of a converted split: written once, and checked whenever it is opened.

``<split>_index.npz`` holds ``records`` int64 [N, 4] (shard, offset, length, CRC-32), ``names`` and ``shards`` as text,
and ``counts`` int64 [N, 256] (pixels per raw id).
"""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fada_jax import files
from fada_jax.errors import UserError

# Bytes around a record's payload in a TFRecord file: its length with a checksum, and a checksum.
HEADER, FOOTER = 12, 4
ADVICE = "convert again with --overwrite"
# Records are larger: each holds an image.
_SMALLEST = HEADER + FOOTER
_LONGEST_NAME = 1024
_SHARD = re.compile(r"\w[\w.-]{0,254}")
# What an archive's arrays begin with. NumPy's own reader guesses at headers that are not as it writes them.
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': '(<i8|<U\d{1,4})', 'fortran_order': False, 'shape': \((\d{1,18}, ?(?:\d{1,18})?)\), \}"
)
_UNREADABLE = (
    *(OSError, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass(frozen=True)
class Index:
    """A split's records.

    Attributes:
      shards: file names [S].
      records: int64 [N, 4]: shard, offset, length, CRC-32.
      names: of the images [N].
      counts: pixels per image and raw id, int64 [N, 256]; zeros where unlabelled.
    """

    shards: np.ndarray
    records: np.ndarray
    names: np.ndarray
    counts: np.ndarray


def path(root: Path, split: str) -> Path:
    """Where the index of a split lies."""
    return root / f"{split}_index.npz"


def write(
    root: Path, split: str, shards: Sequence[str], records: Sequence[Sequence[int]], names: Sequence[str], counts: Any
) -> None:
    """Writes the index of a split; see ``Index``."""
    with files.replacing(path(root, split)) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            counts=np.array(counts, np.int64),
            records=np.array(records, np.int64),
            names=np.array(names),
            shards=np.array(shards),
        )


def read(root: Path, split: str) -> Index:
    """The index of a split, whose arrays take memory only after their sizes were compared with those of the shards.

    Raises:
      UserError: it is not there, damaged, or says what cannot be.
    """
    source = path(root, split)
    try:
        with zipfile.ZipFile(io.BytesIO(files.read_bytes(source))) as archive:
            shards = _array(archive, "shards", None)
            if problem := _shard_problem(root, shards):
                raise ValueError(problem)
            most = sum((root / str(shard)).stat().st_size for shard in shards) // _SMALLEST
            records = _array(archive, "records", most, np.dtype(np.int64), 4)
            names = _array(archive, "names", len(records))
            counts = _array(archive, "counts", len(records), np.dtype(np.int64), 256)
        index = Index(shards, records, names, counts)
        if problem := _problem(index):
            raise ValueError(problem)
        return index
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source} is damaged ({reason}): {ADVICE}") from error


def _array(
    archive: zipfile.ZipFile, name: str, length: int | None, dtype: np.dtype | None = None, width: int = 0
) -> np.ndarray:
    """One array of the archive.

    Args:
      archive: the index.
      name: of the array.
      length: that it has, for ``records`` at most; None: any that is small.
      dtype: of numbers; None for texts.
      width: second dimension of numbers.

    Raises:
      ValueError: an array of another kind.
    """
    with archive.open(f"{name}.npy") as file:
        magic, header_length = file.read(8), int.from_bytes(file.read(2), "little")
        header = _HEADER.fullmatch(file.read(header_length).decode("latin-1").strip())
        if magic != _MAGIC or not header:
            raise ValueError(f"its {name} are no array that an index has")
        found, shape = np.dtype(header[1]), tuple(int(x) for x in header[2].split(",") if x.strip())
        is_text = found.kind == "U" and 0 < found.itemsize <= 4 * _LONGEST_NAME
        if not (len(shape) == 1 and is_text if dtype is None else found == dtype and shape[1:] == (width,)):
            raise ValueError(f"its {name} are {found}{list(shape)}")
        most = 100_000 if length is None else length
        if not 0 < shape[0] <= most or (name not in ("records", "shards") and shape[0] != length):
            raise ValueError(f"it says that there are {shape[0]} {name}, where {most} could be")
        size = found.itemsize * int(np.prod(shape))
        # One more byte, so that the end is reached and with it the comparison of the checksum.
        content = file.read(size + 1)
        if len(content) != size:
            raise ValueError(f"its {name} have another length than they say")
        return np.frombuffer(content, found).reshape(shape)


def _shard_problem(root: Path, shards: np.ndarray) -> str:
    """What is wrong with the names of the shards, or with the files; '' for nothing."""
    for shard in map(str, shards):
        if not _SHARD.fullmatch(shard):
            return f"{shard[:80]!r} can be no shard"
        if problem := files.special(root / shard):
            return f"{shard} is {problem}"
        if not (root / shard).is_file():
            return f"{shard} is missing"
    return "a shard is named twice" if len(set(shards.tolist())) < len(shards) else ""


def _problem(index: Index) -> str:
    """What an index says that cannot be; '' for nothing."""
    shard, offset, length, crc = index.records.T
    if shard.min() < 0 or shard.max() >= len(index.shards) or (np.diff(shard) < 0).any():
        return "it names shards that there are not"
    if length.min() < 1 or length.max() >= 2**31 or offset.min() < 0 or crc.min() < 0 or crc.max() >= 2**32:
        return "it has places that cannot be"
    # Records follow one another without a gap.
    first = np.concatenate([[True], np.diff(shard) > 0])
    expected = np.where(first, HEADER, np.roll(offset + length + FOOTER + HEADER, 1))
    if (offset != expected).any():
        return f"record {int(np.argmax(offset != expected))} is not where the one before ends"
    names = index.names.tolist()
    if not all(names) or len(set(names)) < len(names):
        return "its images have no names of their own"
    pixels = index.counts.sum(1)
    if index.counts.min() < 0 or index.counts.max() >= 2**31 or (pixels.any() and not pixels.all()):
        return "its counts of pixels cannot be"
    return ""
