"""What a training stream has of an image beside its pixels: a label, a teacher's label, or answers of easy tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fada_jax.classes import ClassSet, label_table
from fada_jax.errors import UserError
from fada_jax.input_pipeline import decoding
from fada_jax.input_pipeline.pseudo_labels import PseudoLabels
from fada_jax.input_pipeline.records import Records
from fada_jax.input_pipeline.stream import Stream

_IDENTITY = list(range(256))
Note = Callable[..., None]


class Labels(NamedTuple):
    """How they are read from a stored record.

    Attributes:
      key: of the map in a batch; empty: the stream has none.
      read: the map at ``stream.size``, which moves with the image.
      further: arrays of the image, in the order of ``blank``.
      blank: types and shapes of these by their key in a batch.
    """

    key: str = ""
    read: Callable[[Mapping[str, Any]], Image.Image | None] = lambda record: None
    further: Callable[[Mapping[str, Any]], tuple[np.ndarray, ...]] = lambda record: ()
    blank: Mapping[str, np.ndarray] = {}


def table(stream: Stream, class_set: ClassSet, stored: Records) -> np.ndarray:
    """Raw id -> class index, uint8 [256].

    Raises:
      UserError: the split has no labels, or not of these classes.
    """
    if not stored.labelled:
        raise UserError(f"{stream.dataset}/{stream.split} in {stored.root} has no labels")
    try:
        return label_table(stream.dataset, class_set, stored.encoding)
    except ValueError as error:
        raise UserError(str(error)) from error


def of(stream: Stream, class_set: ClassSet, stored: Records, on_damage: str, note: Note) -> Labels:
    """How the labels of a training stream are read.

    Raises:
      UserError: no labels, or a file of a teacher's that lacks images or is of another kind.
    """
    if stream.landmarks:
        landmarks = PseudoLabels(stream.landmarks, class_set.num_classes, kind="landmarks")
        _refuse_missing(landmarks, stream.landmarks, stored.names.tolist(), on_damage)
        return Labels(
            "landmark",
            lambda record: decoding.look_up(landmarks.read(record["name"]), _IDENTITY, stream.size, note),
            lambda record: landmarks.estimates(record["name"]),
            blank_estimates(class_set.num_classes),
        )
    if stream.pseudo_labels:
        pseudo = PseudoLabels(stream.pseudo_labels, class_set.num_classes)
        _refuse_missing(pseudo, stream.pseudo_labels, stored.names.tolist(), on_damage)
        return Labels(
            "label", lambda record: decoding.look_up(pseudo.read(record["name"]), _IDENTITY, stream.size, note)
        )
    if not stream.labels:
        return Labels()
    ids = table(stream, class_set, stored).tolist()
    return Labels("label", lambda record: decoding.look_up(decoding.stored_label(record), ids, stream.size, note))


def blank_estimates(num_classes: int) -> dict[str, np.ndarray]:
    """Zeros like what ``PseudoLabels.estimates`` returns, by their key in a batch."""
    return {"distribution": np.zeros(num_classes, np.float32), "landmark_class": np.zeros(255, np.uint8)}


def _refuse_missing(pseudo: PseudoLabels, path: str, names: Iterable[str], on_damage: str) -> None:
    names = list(names)
    # The teacher left damaged images out where they are skipped.
    if on_damage == "fail" and (missing := pseudo.missing(names)):
        raise UserError(
            f"{path} has no label for {len(missing)} of {len(names)} images, for instance {missing[0]}: delete it, the "
            "same command makes it again"
        )
