"""The file of a teacher's labels: one TFRecord an image, after one that says what the labels were made of.

Labels are class indices, or the answers of CDA's easy tasks: the map then holds the number of the landmark that a pixel
is in, and a class distribution of the image and the landmarks' classes stand beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from fada_jax import documents, files
from fada_jax.classes import IGNORE
from fada_jax.errors import UserError
from fada_jax.input_pipeline import decoding, encoding, load_tensorflow
from fada_jax.input_pipeline.indexes import FOOTER, HEADER
from fada_jax.stored import PseudoLabelOrigin

tf = load_tensorflow()

# Stands in the first record; format 1, which had no digests, in none.
_FORMAT = b"2"
_ADVICE = "delete it, the same command makes it again"
Kind = Literal["classes", "landmarks"]


class Estimates(NamedTuple):
    """What the easy tasks say of an image beside its map.

    Attributes:
      distribution: share of each class, float32 [K].
      landmark_class: of each landmark by its number, uint8 [L]; L is at most 255.
    """

    distribution: np.ndarray
    landmark_class: np.ndarray


def write(
    path: str | Path,
    items: Iterable[tuple[str, np.ndarray] | tuple[str, np.ndarray, Estimates]],
    provenance: Mapping[str, Any] | None = None,
) -> int:
    """Writes label maps by image name, whole or not at all.

    Args:
      path: file to write.
      items: (name, uint8 [h, w] of class indices and ``IGNORE``), or of landmarks' numbers and ``IGNORE``, and then
        (name, map, ``Estimates``).
      provenance: what the labels were made of, in the JSON types of ``PseudoLabelOrigin``; the file begins with it.

    Returns:
      the number of maps.
    """
    count = 0
    with files.replacing(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        origin = json.dumps(dict(provenance or {}), sort_keys=True).encode()
        writer.write(_example(format=_FORMAT, provenance=origin))
        for name, label, *estimates in items:
            data = encoding.encode_tiff(Image.fromarray(label))
            counts = np.trim_zeros(np.bincount(label.ravel())[:IGNORE], "b").astype("<i8").tobytes()
            further = _bytes_of(estimates[0]) if estimates else {}
            digest = _digest(name.encode(), data, further)
            writer.write(_example(name=name.encode(), label=data, sha256=digest, counts=counts, **further))
            count += 1
    return count


def provenance(path: str | Path) -> dict[str, Any]:
    """What a file says its labels were made of; {} where an earlier version wrote it.

    Raises:
      UserError: the file is missing or damaged, or says what cannot be.
    """
    for _, _, features in _records(path):
        return _origin(path, features)
    return {}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a label's record lies, and its CRC-32."""

    offset: int
    length: int
    crc: int


class PseudoLabels:
    """The label maps of a file by image name; memory holds only their places in the file.

    Args:
      path: of the file.
      num_classes: that the maps may hold, beside ``IGNORE``, or that landmarks have.
      kind: of labels that the file must hold.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """

    def __init__(self, path: str | Path, num_classes: int = IGNORE, kind: Kind = "classes") -> None:
        self._path, self._local, self._num_classes = path, files.fetched(path), num_classes
        self._size: tuple[int, int] | None = None
        self._places: dict[str, _Place] = {}
        self._counts: dict[str, bytes | None] = {}
        self._estimates: dict[str, Estimates] = {}
        held: Kind = "classes"
        with_digests = False
        for number, (offset, payload, features) in enumerate(_records(path)):
            if number == 0 and "provenance" in features:
                origin, with_digests = _origin(path, features), "format" in features
                if origin:
                    self._size = (origin["label_size"][1], origin["label_size"][0])
                    self._num_classes = min(num_classes, len(origin["classes"]))
                    held = "landmarks" if origin.get("landmarks") else "classes"
                continue
            if held != kind:
                break
            name, label, digest = (_value(features, key) for key in ("name", "label", "sha256"))
            if not name or not label or name.decode(errors="replace") in self._places:
                raise UserError(f"{path}: record {number} is no label of an image of its own: {_ADVICE}")
            further = {key: _value(features, key) for key in Estimates._fields if key in features}
            if with_digests and digest != _digest(name, label, further):
                raise UserError(f"{path} is damaged (the checksum of record {number} differs): {_ADVICE}")
            if kind == "landmarks":
                self._estimates[name.decode(errors="replace")] = self._read_estimates(number, further)
            self._places[name.decode(errors="replace")] = _Place(offset, len(payload), zlib.crc32(payload))
            self._counts[name.decode(errors="replace")] = _value(features, "counts") if "counts" in features else None
        if held != kind:
            raise UserError(f"{path} holds {held}, where {kind} are wanted: {_ADVICE}")

    def _read_estimates(self, number: int, further: Mapping[str, bytes]) -> Estimates:
        """The estimates of a record.

        Raises:
          UserError: they cannot be.
        """
        shares, classes = (further.get(key, b"") for key in Estimates._fields)
        if len(shares) == 4 * self._num_classes and len(classes) <= IGNORE:
            found = Estimates(np.frombuffer(shares, "<f4"), np.frombuffer(classes, np.uint8))
            is_distribution = np.all(found.distribution >= 0) and abs(float(found.distribution.sum()) - 1) < 1e-3
            if is_distribution and np.all(found.landmark_class < self._num_classes):
                return found
        raise UserError(f"{self._path}: record {number} has no distribution and landmarks of its classes: {_ADVICE}")

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that have no label."""
        return [name for name in names if name not in self._places]

    def class_counts(self, names: Sequence[str], num_classes: int) -> np.ndarray:
        """Labelled pixels per image and class, int64 [N, num_classes]; none of images without a label.

        Raises:
          UserError: an earlier version wrote the file, without these counts.
        """
        result = np.zeros((len(names), num_classes), np.int64)
        for row, name in zip(result, names, strict=True):
            counts = self._counts.get(name, b"")
            if counts is None or len(counts) % 8 or len(counts) > 8 * num_classes:
                raise UserError(f"{self._path} does not say which classes its labels hold: {_ADVICE}")
            row[: len(counts) // 8] = np.frombuffer(counts, "<i8")
        return result

    def estimates(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The distribution of an image, float32 [K], and its landmarks' classes, uint8 [255] filled with ``IGNORE``."""
        found = self._estimates[name]
        fill = (0, IGNORE - len(found.landmark_class))
        return found.distribution, np.pad(found.landmark_class, fill, constant_values=IGNORE)

    def read(self, name: str) -> Image.Image:
        """The label of an image: class indices or landmarks' numbers, and ``IGNORE``, in grey.

        Raises:
          UserError: the image has no label, it was damaged since the file was opened, or it is none of these classes.
        """
        if name not in self._places:
            raise UserError(f"{self._path} has no label for {name}: {_ADVICE}")
        place, what = self._places[name], f"{self._path}: the label of {name}"
        try:
            with self._local.open("rb") as file:
                payload = os.pread(file.fileno(), place.length, place.offset)
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror or error}") from error
        if zlib.crc32(payload) != place.crc:
            raise UserError(f"{what} is damaged: {_ADVICE}")
        data = _value(tf.train.Example.FromString(payload).features.feature, "label")
        label = decoding.decoded(data, self._size, what, _ADVICE)
        if label.mode != "L":
            raise UserError(f"{what} is no map of classes ({label.mode}): {_ADVICE}")
        values, kinds = self._num_classes, "classes"
        if self._estimates:
            values, kinds = len(self._estimates[name].landmark_class), "landmarks"
        others = [i for i, count in enumerate(label.histogram()) if count and values <= i != IGNORE]
        if others:
            raise UserError(f"{what} holds {others[0]}, of {values} {kinds}: {_ADVICE}")
        return label


def _origin(path: str | Path, features: Mapping[str, Any]) -> dict[str, Any]:
    """What the first record says of its labels, in JSON types.

    Raises:
      UserError: another format, or what cannot be.
    """
    data = _value(features, "provenance")
    if not data:
        return {}
    number = _value(features, "format")
    if "format" in features and number != _FORMAT:
        raise UserError(f"{path}: format {number.decode(errors='replace')[:9]!r} is unknown to this version: {_ADVICE}")
    values = documents.parse(data, path, what=f"does not say what its labels are: {_ADVICE}")
    if values != {}:
        documents.check(values, PseudoLabelOrigin, path, advice=_ADVICE)
    return values


def _value(features: Mapping[str, Any], key: str) -> bytes:
    """The first bytes of a feature; none where it is not there or of another type."""
    values = features[key].bytes_list.value if key in features else ()
    return values[0] if values else b""


def _bytes_of(estimates: Estimates) -> dict[str, bytes]:
    """The features of an example that hold them."""
    distribution, classes = estimates
    return {"distribution": distribution.astype("<f4").tobytes(), "landmark_class": classes.astype(np.uint8).tobytes()}


def _digest(name: bytes, label: bytes, further: Mapping[str, bytes]) -> bytes:
    parts = [struct.pack("<Q", len(name)), name, label]
    for key in sorted(further):
        parts += [struct.pack("<Q", len(further[key])), further[key]]
    return hashlib.sha256(b"".join(parts)).hexdigest().encode()


def _example(**features: bytes) -> bytes:
    lists = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString(deterministic=True)


def _check_lengths(path: str | Path, local: Path) -> None:
    """Follows the records by the lengths that they say they have, before any of those is asked of memory.

    Args:
      path: names the file in errors.
      local: where it can be read.

    Raises:
      UserError: they do not add up to the file.
    """
    if problem := files.special(local):
        raise UserError(f"{path} is {problem}")
    if not local.is_file():
        raise UserError(f"{path}: no such file of pseudo labels")
    try:
        with local.open("rb") as file:
            place, size = 0, os.fstat(file.fileno()).st_size
            while place < size:
                header = os.pread(file.fileno(), 8, place)
                place += HEADER + int.from_bytes(header, "little") + FOOTER
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if place != size:
        raise UserError(f"{path} is damaged: {_ADVICE}")


def _records(path: str | Path) -> Iterator[tuple[int, bytes, Mapping[str, Any]]]:
    """Offset, payload and features of every record.

    Raises:
      UserError: the file is missing, of another kind, or a record differs from its checksum.
    """
    local = files.fetched(path)
    _check_lengths(path, local)
    offset = 0
    try:
        # TensorFlow's own reader compares both checksums of every record.
        for payload in tf.data.TFRecordDataset(str(local)).as_numpy_iterator():
            features = tf.train.Example.FromString(payload).features.feature
            if "provenance" not in features and not {"name", "label"} <= set(features):
                raise UserError(f"{path} is no file of pseudo labels: {_ADVICE}")
            yield offset + HEADER, payload, features
            offset += HEADER + len(payload) + FOOTER
    except (tf.errors.OpError, DecodeError) as error:
        raise UserError(f"{path} is damaged: {_ADVICE}") from error
