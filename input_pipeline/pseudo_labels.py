"""The file of a teacher's labels: one TFRecord an image, after one that says what the labels were made of."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from fada_jax import files
from fada_jax.errors import UserError
from fada_jax.input_pipeline import encoding, load_tensorflow

tf = load_tensorflow()


def write(
    path: str | Path, items: Iterable[tuple[str, np.ndarray]], provenance: Mapping[str, Any] | None = None
) -> int:
    """Writes label maps by image name, whole or not at all.

    Args:
      path: file to write.
      items: (name, uint8 [h, w] of class indices and ``IGNORE``).
      provenance: what the labels were made of, in JSON types; the file begins with it.

    Returns:
      the number of maps.
    """
    count = 0
    with files.replacing(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        writer.write(_example(provenance=json.dumps(dict(provenance or {}), sort_keys=True).encode()))
        for name, label in items:
            writer.write(_example(name=name.encode(), label=encoding.encode_tiff(Image.fromarray(label))))
            count += 1
    return count


def provenance(path: str | Path) -> dict[str, Any]:
    """What a file says its labels were made of; {} where an earlier version wrote it.

    Raises:
      UserError: the file is missing or damaged.
    """
    for _, _, features in _records(path):
        if "provenance" in features:
            return json.loads(features["provenance"].bytes_list.value[0])
        break
    return {}


class PseudoLabels:
    """The label maps of a file by image name; memory holds only their places in the file.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._places: dict[str, tuple[int, int, int]] = {}
        for offset, payload, features in _records(path):
            if "provenance" in features:
                continue
            name = features["name"].bytes_list.value[0].decode()
            self._places[name] = (offset, len(payload), zlib.crc32(payload))

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that have no label."""
        return [name for name in names if name not in self._places]

    def read(self, name: str) -> bytes:
        """The label file of an image.

        Raises:
          UserError: the image has no label, or its label was damaged since the file was opened.
        """
        if name not in self._places:
            raise UserError(f"{self._path} has no label for {name}: delete it, the same command makes it again")
        offset, length, crc = self._places[name]
        with self._path.open("rb") as file:
            payload = os.pread(file.fileno(), length, offset)
        if zlib.crc32(payload) != crc:
            raise UserError(f"{self._path}: the label of {name} is damaged: delete the file, it is made again")
        return tf.train.Example.FromString(payload).features.feature["label"].bytes_list.value[0]


def _example(**features: bytes) -> bytes:
    lists = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString(deterministic=True)


def _records(path: str | Path) -> Iterator[tuple[int, bytes, Mapping[str, Any]]]:
    """Offset, payload and features of every record.

    Raises:
      UserError: the file is missing, of another kind, or a record differs from its checksum.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of pseudo labels")
    offset = 0
    try:
        # TensorFlow's own reader compares both checksums of every record.
        for payload in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(payload).features.feature
            if "provenance" not in features and not {"name", "label"} <= set(features):
                raise UserError(f"{path} is no file of pseudo labels: delete it, the same command makes it again")
            yield offset + 12, payload, features
            offset += 12 + len(payload) + 4
    except (tf.errors.OpError, DecodeError) as error:
        raise UserError(f"{path} is damaged: delete it, the same command makes it again") from error
