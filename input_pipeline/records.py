"""A converted data set on disk: its description, its index, random access to its records, and damaged ones."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from fada_jax import documents, files, folders, stored
from fada_jax.classes import ENCODINGS, IGNORE, LabelEncoding, parse_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import decoding, indexes, layouts, load_tensorflow
from fada_jax.storage import caches
from fada_jax.storage.paths import is_object, listed
from fada_jax.stored import ConversionNote

tf = load_tensorflow()

VERSION = "1.0.0"
# What a stream does with a record whose checksum differs.
ON_DAMAGE = ("fail", "skip")
# Files that conversions make, and those that file systems and desktops leave everywhere.
_OURS = re.compile(
    r"conversion\.json|(dataset_info|features|metadata)\.json|[\w-]+_index\.npz|\w+-[\w-]+\.tfrecord-\d+-of-\d+"
    r"|\.DS_Store|\._.*|\.nfs.*|Thumbs\.db|desktop\.ini|\.made_by_fada_jax"
)


class DamagedRecordError(UserError):
    """A stored record whose bytes are not those that were written."""


def folder(data_dir: str | Path, dataset: str, city: str = "") -> Path:
    """Where a converted data set is made.

    Raises:
      UserError: a name that cannot be, such as a path.
    """
    layouts.check_name(dataset, "data set")
    if city:
        layouts.check_name(city, "city")
    return files.place(data_dir) / dataset / city / VERSION


def root(data_dir: str | Path, dataset: str, city: str = "") -> Path:
    """Where a converted data set is read: ``folder``, or in a bucket what was published there last.

    Raises:
      UserError: as ``folder``.
    """
    return folders.published(folder(data_dir, dataset, city))


def splits(root: Path) -> list[str]:
    """Splits of a converted data set, by name."""
    return sorted(path.name.removesuffix("_index.npz") for path in root.glob("*_index.npz") if path.name[0] != ".")


def strangers(root: Path) -> list[str]:
    """What lies in the folder of a converted data set and was not made by its conversion."""
    try:
        return sorted(path.name for path in root.iterdir() if not _OURS.fullmatch(path.name) or path.is_dir())
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error


def is_ours(root: Path) -> bool:
    """Whether a folder holds a converted data set and nothing else."""
    noted = any((root / name).is_file() for name in ("conversion.json", "dataset_info.json"))
    return root.is_dir() and noted and not strangers(root)


def description(root: Path) -> ConversionNote:
    """What conversion noted of a data set.

    Raises:
      UserError: an earlier version converted it, without a note, or the note is damaged.
    """
    path = root / "conversion.json"
    if not path.exists():
        raise UserError(f"{path} is missing: {indexes.ADVICE}")
    values = documents.parse(files.read_bytes(path, documents.LIMIT), path, what=f"is not JSON: {indexes.ADVICE}")
    return stored.conversion_note(values, path)


def class_map(root: Path) -> dict[str, Any]:
    """The class map that a user's own data set was converted with.

    Raises:
      UserError: it has none.
    """
    values = description(root).class_map
    if values is None:
        raise UserError(f"{root / 'conversion.json'}: class_map is missing: {indexes.ADVICE}")
    return values


def check_class_map(root: Path, wanted: Mapping[str, Any]) -> None:
    """Refuses a class map that is called as the one of a converted data set and gives its ids other classes.

    Raises:
      UserError: see above.
    """
    before, path = class_map(root), root / "conversion.json"
    if before.get("name") == wanted.get("name") and parse_class_map(before, path)[1] != parse_class_map(wanted, "")[1]:
        raise UserError(
            f"{root} was converted with another class map called {wanted.get('name')!r}: {indexes.ADVICE}, or give "
            "one of both another 'name'"
        )


def label_encoding(root: Path, dataset: str) -> LabelEncoding:
    """How the labels of a converted data set encode classes.

    Raises:
      UserError: a user's own data set without its class map.
    """
    if dataset in ENCODINGS:
        return ENCODINGS[dataset]
    return parse_class_map(class_map(root), root / "conversion.json")[1]


def _parse(payload: bytes, place: str) -> dict[str, Any]:
    """A record's ``image`` and ``label`` as files' bytes, ``name``, ``size`` (height, width), and its ``place``.

    Raises:
      DamagedRecordError: no record of a conversion.
    """
    try:
        features = tf.train.Example.FromString(payload).features.feature
        image, label, name = (features[key].bytes_list.value[0] for key in ("image", "label", "name"))
        size = tuple(features[key].int64_list.value[0] for key in ("height", "width"))
        return {"image": image, "label": label, "name": name.decode(), "size": size, "place": place}
    except (DecodeError, IndexError, ValueError) as error:
        raise DamagedRecordError(f"{place} is no image of a conversion; {indexes.ADVICE}") from error


def read_payload(root: Path, shards: np.ndarray, record: np.ndarray, number: int) -> bytes:
    """The payload of one record, checked.

    Raises:
      DamagedRecordError: naming the shard and the record that is cut off or whose CRC differs.
      UserError: naming the shard that cannot be read.
    """
    shard, offset, length, crc = (int(x) for x in record)
    path = root / str(shards[shard])
    try:
        if is_object(path):
            payload = caches.record(path, offset, length, crc)
            return _checked(payload, path, length, crc, number)
        with path.open("rb") as file:
            # A length that was damaged is not asked of memory.
            rest = os.fstat(file.fileno()).st_size - offset
            payload = os.pread(file.fileno(), length, offset) if length <= rest else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return _checked(payload, path, length, crc, number)


def _checked(payload: bytes, path: Path, length: int, crc: int, number: int) -> bytes:
    if len(payload) != length or zlib.crc32(payload) != crc:
        raise DamagedRecordError(f"{path}: record {number} is damaged (its checksum differs); {indexes.ADVICE}")
    return payload


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to the records of a split.

    Attributes:
      root, split: where they lie.
      shards, records, names: of the index, see ``indexes.Index``.
      pixels: of each labelled image, int64 [N]; zeros where the split is unlabelled.
      encoding: what the raw ids of the labels mean.
      skipped: numbers of the damaged records that were met.
    """

    root: Path
    split: str
    shards: np.ndarray
    records: np.ndarray
    names: np.ndarray
    pixels: np.ndarray
    encoding: LabelEncoding
    skipped: set[int] = dataclasses.field(default_factory=set)

    @property
    def in_flight(self) -> int:
        """Records to read at a time; 0: as many as there are cores."""
        return caches.IN_FLIGHT if is_object(self.root) else 0

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.pixels.any())

    def raw_counts(self) -> np.ndarray:
        """Pixels per image and raw id, int64 [N, 256]."""
        return indexes.read(self.root, self.split).counts

    def class_counts(self, table: np.ndarray) -> np.ndarray:
        """Pixels per image and class, int64 [N, K]; ``table`` maps raw ids to class indices."""
        classes = table[table != IGNORE]
        one_hot = table[:, None] == np.arange(classes.max() + 1)
        return self.raw_counts() @ one_hot.astype(np.int64)

    def read(self, i: int) -> dict[str, Any]:
        """Record ``i``: ``image`` and ``label`` as files' bytes, ``name``, ``size`` (height, width), ``place``.

        Raises:
          DamagedRecordError: it is not what was written.
          UserError: its shard cannot be read.
        """
        payload = read_payload(self.root, self.shards, self.records[i], i)
        record = _parse(payload, f"{self.root / str(self.shards[self.records[i][0]])}: record {i}")
        if record["name"] != self.names[i] or self.pixels[i] not in (0, math.prod(record["size"])):
            raise DamagedRecordError(f"{record['place']} is not the image of the index; {indexes.ADVICE}")
        return record

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
        raise UserError(f"{self.root}: every record of {self.split} is damaged; {indexes.ADVICE}")


def open_split(data_dir: str | Path, dataset: str, split: str, city: str = "") -> Records:
    """The records of a split.

    Raises:
      UserError: the data set or the split is missing; the message names the command that makes it.
    """
    place = root(data_dir, dataset, city)
    if split:
        layouts.check_name(split, "split")
    if not indexes.path(place, split).exists():
        if splits(place):
            raise UserError(f"{place} has no split {split!r}: one of {', '.join(splits(place))}")
        own = dataset not in ENCODINGS
        which = f"--dataset=folder --name={dataset} --class_map=MAP" if own else f"--dataset={dataset}"
        raise UserError(
            f"{place} is not there: make it with python scripts/convert_dataset.py {which} --raw_dir=RAW "
            f"--data_dir={data_dir}" + (f" (ours are {', '.join(ENCODINGS)})" if own else "")
        )
    with listed(place):  # Instead of two requests for every shard.
        index = indexes.read(place, split)
    encoding = label_encoding(place, dataset)
    return Records(place, split, index.shards, index.records, index.names, index.counts.sum(1), encoding)


def verify(root: Path) -> dict[str, int]:
    """Re-reads a converted data set: every record's CRC, image and label.

    Returns:
      images per split.

    Raises:
      UserError: naming the shard and record that differ.
    """
    result, found = {}, splits(root)
    if not found:
        raise UserError(f"{root} holds no index of a split: {indexes.ADVICE}")
    nothing = LabelEncoding({}, frozenset())
    for split in found:
        index = indexes.read(root, split)
        opened = Records(root, split, index.shards, index.records, index.names, index.counts.sum(1), nothing)
        for i, counts in enumerate(index.counts):
            record = opened.read(i)
            decoding.stored_image(record)
            if opened.labelled and decoding.stored_label(record).histogram() != counts.tolist():
                raise UserError(f"{record['place']} has other labels than were converted; {indexes.ADVICE}")
        result[split] = len(index.records)
    return result
