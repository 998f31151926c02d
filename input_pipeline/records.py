"""A converted data set on disk: its description, its index, random access to its records, and damaged ones."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fada_jax.classes import ENCODINGS, IGNORE, LabelEncoding, parse_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import load_tensorflow

tf = load_tensorflow()

VERSION = "1.0.0"
# What a stream does with a record whose checksum differs.
ON_DAMAGE = ("fail", "skip")


class DamagedRecordError(UserError):
    """A stored record whose bytes are not those that were written."""


def folder(data_dir: str | Path, dataset: str, city: str = "") -> Path:
    """Where a converted data set lies."""
    return Path(data_dir) / dataset / city / VERSION


def splits(root: Path) -> list[str]:
    """Splits of a converted data set, by name."""
    return sorted(path.name.removesuffix("_index.npz") for path in root.glob("*_index.npz"))


def description(root: Path) -> dict[str, Any]:
    """What conversion noted of a data set: ``resize``, ``encoding``, ``images`` per split, ``skipped``, ``class_map``.

    Raises:
      UserError: an earlier version converted it, without a note.
    """
    path = root / "conversion.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: convert again with --overwrite")
    return {"encoding": "tiff", **json.loads(path.read_text())}  # Earlier versions had no other encoding.


def label_encoding(root: Path, dataset: str) -> LabelEncoding:
    """How the labels of a converted data set encode classes.

    Raises:
      UserError: a user's own data set without its class map.
    """
    if dataset in ENCODINGS:
        return ENCODINGS[dataset]
    return parse_class_map(description(root)["class_map"], root / "conversion.json")[1]


def index_path(root: Path, split: str) -> Path:
    """The random-access index of a split.

    It holds ``records`` int64 [N, 4] (shard, offset, length, CRC-32), ``names``, ``shards`` and ``counts`` int64
    [N, 256] (pixels per raw id).
    """
    return root / f"{split}_index.npz"


def _parse(payload: bytes) -> dict[str, Any]:
    """A record's ``image`` and ``label`` as files' bytes, ``name``, ``size`` (height, width)."""
    features = tf.train.Example.FromString(payload).features.feature
    image, label, name = (features[key].bytes_list.value[0] for key in ("image", "label", "name"))
    size = tuple(features[key].int64_list.value[0] for key in ("height", "width"))
    return {"image": image, "label": label, "name": name.decode(), "size": size}


def read_payload(root: Path, shards: np.ndarray, record: np.ndarray, number: int) -> bytes:
    """The payload of one record, checked.

    Raises:
      DamagedRecordError: naming the shard and the record whose CRC differs.
      UserError: naming the shard that cannot be read.
    """
    shard, offset, length, crc = (int(x) for x in record)
    path = root / str(shards[shard])
    try:
        with path.open("rb") as file:
            payload = os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(payload) != length or zlib.crc32(payload) != crc:
        raise DamagedRecordError(
            f"{path}: record {number} is damaged (its checksum differs); convert again with --overwrite"
        )
    return payload


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to the records of a split.

    Attributes:
      root, split: where they lie.
      shards: file names [S].
      records: int64 [N, 4], see ``index_path``.
      names: of the images [N].
      labelled: some image has labels.
      encoding: what the raw ids of the labels mean.
      skipped: numbers of the damaged records that were met.
    """

    root: Path
    split: str
    shards: np.ndarray
    records: np.ndarray
    names: np.ndarray
    labelled: bool
    encoding: LabelEncoding
    skipped: set[int] = dataclasses.field(default_factory=set)

    def raw_counts(self) -> np.ndarray:
        """Pixels per image and raw id, int64 [N, 256]."""
        return np.load(index_path(self.root, self.split))["counts"]

    def class_counts(self, table: np.ndarray) -> np.ndarray:
        """Pixels per image and class, int64 [N, K]; ``table`` maps raw ids to class indices."""
        classes = table[table != IGNORE]
        one_hot = table[:, None] == np.arange(classes.max() + 1)
        return self.raw_counts() @ one_hot.astype(np.int64)

    def read(self, i: int) -> dict[str, Any]:
        """Record ``i``: ``image`` and ``label`` as files' bytes, ``name``, ``size`` (height, width)."""
        return _parse(read_payload(self.root, self.shards, self.records[i], i))

    def read_or_skip(self, i: int, on_damage: str) -> dict[str, Any] | None:
        """Record ``i``; None where it is damaged and ``on_damage`` is 'skip', which is said once a record."""
        try:
            return self.read(i)
        except DamagedRecordError as error:
            if on_damage == "fail":
                raise UserError(f"{error}, or leave it out with --config.damaged_records=skip") from error
            if i not in self.skipped:
                self.skipped.add(i)
                print(f"skipped: {error} ({len(self.skipped)} of {self.split} so far)", file=sys.stderr)
            return None

    def read_usable(self, i: int, on_damage: str) -> dict[str, Any]:
        """Record ``i``, or the next intact one where damaged ones are skipped."""
        for k in range(i, i + len(self.records)):
            record = self.read_or_skip(k % len(self.records), on_damage)
            if record is not None:
                return record
        raise UserError(f"{self.root}: every record of {self.split} is damaged; convert again with --overwrite")


def open_split(data_dir: str | Path, dataset: str, split: str, city: str = "") -> Records:
    """The records of a split.

    Raises:
      UserError: the data set or the split is missing; the message names the command that makes it.
    """
    root = folder(data_dir, dataset, city)
    path = index_path(root, split)
    if not path.is_file():
        if splits(root):
            raise UserError(f"{root} has no split {split!r}: one of {', '.join(splits(root))}")
        own = dataset not in ENCODINGS
        which = f"--dataset=folder --name={dataset} --class_map=MAP" if own else f"--dataset={dataset}"
        raise UserError(
            f"{root} is not there: make it with python scripts/convert_dataset.py {which} --raw_dir=RAW "
            f"--data_dir={data_dir}" + (f" (ours are {', '.join(ENCODINGS)})" if own else "")
        )
    index = np.load(path)
    labelled, encoding = bool(index["counts"].any()), label_encoding(root, dataset)
    return Records(root, split, index["shards"], index["records"], index["names"], labelled, encoding)


def verify(root: Path) -> dict[str, int]:
    """Re-reads a converted data set: every record's CRC, image and label.

    Returns:
      images per split.

    Raises:
      UserError: naming the shard and record that differ.
    """
    result = {}
    for split in splits(root):
        index = np.load(index_path(root, split))
        for i, record in enumerate(index["records"]):
            example = _parse(read_payload(root, index["shards"], record, i))
            place = f"{root / str(index['shards'][record[0]])}, record {i} of {split}"
            if example["name"] != index["names"][i]:
                raise UserError(f"{place} is not the example of the index: convert again with --overwrite")
            with Image.open(io.BytesIO(example["image"])) as image:
                image.load()
            if index["counts"][i].any():
                with Image.open(io.BytesIO(example["label"])) as ids:
                    counts = np.array(ids.histogram())
                if not np.array_equal(counts, index["counts"][i]) or ids.size != image.size:
                    raise UserError(f"{place} has other labels than were converted: convert again with --overwrite")
        result[split] = len(index["records"])
    return result
