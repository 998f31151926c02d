"""Class tables: what each raw label id means, and the class sets that models are trained and scored on.

One literal table per raw encoding and per class set; every lookup is derived from them. A user's own data bring both
in a class map, a JSON file, and nothing here changes. Labels inside a model's class set run from 0 to K - 1; pixels
that belong to no class carry ``IGNORE`` and never count.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Len

from fada_jax import documents
from fada_jax.documents import STRICT
from fada_jax.errors import UserError
from fada_jax.ranges import Byte

IGNORE = 255
# Target cities of Cross-City.
CITIES = ("Rome", "Rio", "Tokyo", "Taipei")

# Cityscapes classes in train id order: name, raw id, colour of the official palette.
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("light", 19, (250, 170, 30)),
    ("sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

# SYNTHIA-RAND-CITYSCAPES classes that Cityscapes shares: name, raw id (method of the released code, 16 classes).
_SYNTHIA = (
    ("road", 3),
    ("sidewalk", 4),
    ("building", 2),
    ("wall", 21),
    ("fence", 5),
    ("pole", 7),
    ("light", 15),
    ("sign", 9),
    ("vegetation", 6),
    ("sky", 1),
    ("person", 10),
    ("rider", 17),
    ("car", 8),
    ("bus", 19),
    ("motorcycle", 12),
    ("bicycle", 11),
)

# CamVid as in the SegNet tutorial: name, raw id, colour.
_CAMVID = (
    ("sky", 0, (128, 128, 128)),
    ("building", 1, (128, 0, 0)),
    ("pole", 2, (192, 192, 128)),
    ("road", 3, (128, 64, 128)),
    ("pavement", 4, (60, 40, 222)),
    ("tree", 5, (128, 128, 0)),
    ("sign", 6, (192, 128, 128)),
    ("fence", 7, (64, 64, 128)),
    ("car", 8, (64, 0, 128)),
    ("pedestrian", 9, (64, 64, 0)),
    ("bicyclist", 10, (0, 128, 192)),
)


@dataclasses.dataclass(frozen=True)
class LabelEncoding:
    """How a dataset's label files encode classes.

    Attributes:
      ids: raw id -> class name, for the ids that are classes.
      defined: every raw id that may occur in a correct label file, the void ones included.
    """

    ids: Mapping[int, str]
    defined: frozenset[int]


@dataclasses.dataclass(frozen=True)
class ClassSet:
    """The classes that a model predicts and is scored on.

    Attributes:
      name: key of the set in configs, checkpoints and results.
      names: K class names in index order.
      colors: K RGB triples, 0-255.
      subset_13: indices of the 13 classes of mIoU* (SYNTHIA's second score), empty where the set has none.

    Raises:
      ValueError: fields that do not fit together.
    """

    __pydantic_config__: ClassVar = STRICT
    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[Byte, Byte, Byte], ...]
    subset_13: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise ValueError("names must be there and different")
        if not 0 < len(self.names) < IGNORE:
            raise ValueError(f"must have 1 to {IGNORE - 1} names")
        if len(self.colors) != len(self.names):
            raise ValueError(f"must have as many colors as names, {len(self.names)}")
        if len(set(self.subset_13)) != len(self.subset_13) or not set(self.subset_13) <= set(range(len(self.names))):
            raise ValueError("subset_13 must be different indices of names")

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def palette(self) -> np.ndarray:
        """Colours by label value, uint8 [256, 3]; labels outside the set are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colors
        return table


_CITYSCAPES_ENCODING = LabelEncoding({raw: name for name, raw, _ in _CITYSCAPES}, frozenset(range(34)))

# Raw dataset -> encoding of its label files. Cross-City labels use the Cityscapes raw ids.
ENCODINGS: Mapping[str, LabelEncoding] = {
    "gta5": LabelEncoding(_CITYSCAPES_ENCODING.ids, frozenset(range(35))),
    "cityscapes": _CITYSCAPES_ENCODING,
    "crosscity": _CITYSCAPES_ENCODING,
    "synthia": LabelEncoding({raw: name for name, raw in _SYNTHIA}, frozenset(range(23))),
    "camvid": LabelEncoding({raw: name for name, raw, _ in _CAMVID}, frozenset(range(12))),
}


def _cityscapes_subset(set_name: str, without: tuple[str, ...], without_13: tuple[str, ...] = ()) -> ClassSet:
    rows = [(name, color) for name, _, color in _CITYSCAPES if name not in without]
    names = tuple(name for name, _ in rows)
    subset = tuple(i for i, name in enumerate(names) if name not in without_13) if without_13 else ()
    return ClassSet(set_name, names, tuple(color for _, color in rows), subset)


CLASS_SETS: Mapping[str, ClassSet] = {
    s.name: s
    for s in (
        _cityscapes_subset("cityscapes19", ()),
        _cityscapes_subset("synthia16", ("terrain", "truck", "train"), ("wall", "fence", "pole")),
        _cityscapes_subset("crosscity13", ("wall", "fence", "pole", "terrain", "truck", "train")),
        ClassSet("camvid11", tuple(r[0] for r in _CAMVID), tuple(r[2] for r in _CAMVID)),
    )
}


def get_class_set(name: str) -> ClassSet:
    """The class set called ``name``, or the one of a class map where ``name`` is the path of a .json file.

    Raises:
      ValueError: no such set.
      UserError: the class map cannot be used.
    """
    if name.endswith(".json"):
        return parse_class_map(read_class_map(name), name)[0]
    if name not in CLASS_SETS:
        raise ValueError(f"unknown class set {name!r}: one of {', '.join(CLASS_SETS)}, or a class map (.json)")
    return CLASS_SETS[name]


@dataclasses.dataclass(frozen=True)
class _MappedClass:
    """A class of a class map."""

    __pydantic_config__: ClassVar = STRICT
    name: Annotated[str, Len(1)]
    ids: Annotated[tuple[Byte, ...], Len(1)]
    color: tuple[Byte, Byte, Byte] | None = None


@dataclasses.dataclass(frozen=True)
class _ClassMap:
    """A class map."""

    __pydantic_config__: ClassVar = STRICT
    classes: Annotated[tuple[_MappedClass, ...], Len(1, IGNORE - 1)]
    name: str = ""
    ignored_ids: tuple[Byte, ...] = ()


def read_class_map(path: str | Path) -> dict[str, Any]:
    """The class map in a JSON file; its name is the file's unless it has one.

    Raises:
      UserError: not there, no JSON, or not a valid class map.
    """
    try:
        values = documents.read(path, limit=2**20)
    except UserError as error:
        raise UserError(f"class map {error}") from error
    if isinstance(values, dict):
        values = {"name": Path(path).stem, **values}
    parse_class_map(values, path)
    return values


def parse_class_map(values: Any, source: str | Path) -> tuple[ClassSet, LabelEncoding]:
    """The class set and the label encoding of a class map.

    Args:
      values: ``{"name": ..., "classes": [{"name": ..., "ids": [raw ids], "color": [r, g, b]}, ...], "ignored_ids":
        [...]}``; colours and ignored ids may be left out.
      source: names the class map in errors.

    Raises:
      UserError: naming the entry that is wrong.
    """
    source = f"class map {source}"
    mapped = documents.check(values, _ClassMap, source)
    ids: dict[int, str] = {}
    names: list[str] = []
    for entry in mapped.classes:
        if entry.name in names:
            raise UserError(f"{source}: two classes are called {entry.name!r}")
        names.append(entry.name)
        for raw in entry.ids:
            if raw in ids or raw in mapped.ignored_ids:
                raise UserError(f"{source}: raw id {raw} of class {entry.name!r} is used twice")
            ids[raw] = entry.name
    colors = tuple(entry.color or _color(i) for i, entry in enumerate(mapped.classes))
    return ClassSet(mapped.name, tuple(names), colors), LabelEncoding(ids, frozenset(ids) | set(mapped.ignored_ids))


def class_map_of(dataset: str) -> dict[str, Any]:
    """A class map, as ``read_class_map`` returns it, that says what the labels of one of ``ENCODINGS`` mean."""
    encoding = ENCODINGS[dataset]
    colored = CLASS_SETS["camvid11" if dataset == "camvid" else "cityscapes19"]
    colors = dict(zip(colored.names, colored.colors, strict=True))
    rows = [
        {
            "name": name,
            "ids": [raw for raw, other in encoding.ids.items() if other == name],
            "color": list(colors[name]),
        }
        for name in dict.fromkeys(encoding.ids.values())
    ]
    return {"name": dataset, "classes": rows, "ignored_ids": sorted(encoding.defined - encoding.ids.keys())}


def _color(i: int) -> tuple[int, int, int]:
    """A colour of class ``i``: hues a golden angle apart stay distinct for any number of classes."""
    red, green, blue = (round(255 * x) for x in colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.7, 0.9))
    return red, green, blue


def raw_ids(class_set: ClassSet) -> np.ndarray:
    """Raw id of each class of a set, uint8 [K]: Cityscapes' ids, which its server takes, or CamVid's.

    Raises:
      UserError: the classes are a user's own; their raw ids may be several for one class.
    """
    for dataset in ("cityscapes", "camvid"):
        by_name = {name: raw for raw, name in ENCODINGS[dataset].ids.items()}
        if set(class_set.names) <= by_name.keys():
            return np.array([by_name[name] for name in class_set.names], np.uint8)
    raise UserError(f"class set {class_set.name!r} has no raw ids of its own: take the class indices")


def label_table(dataset: str, class_set: ClassSet, encoding: LabelEncoding | None = None) -> np.ndarray:
    """Lookup from a dataset's raw ids to the indices of a class set.

    Args:
      dataset: key of ``ENCODINGS``, or the name of a user's data set.
      class_set: the classes wanted; they are found by name.
      encoding: of the labels; None: the dataset's own in ``ENCODINGS``.

    Returns:
      uint8 [256]: class index, ``IGNORE`` for every id that is no class of the set.

    Raises:
      ValueError: an unknown dataset, or a class of the set that the dataset does not label.
    """
    if encoding is None:
        if dataset not in ENCODINGS:
            raise ValueError(f"unknown dataset {dataset!r}: one of {', '.join(ENCODINGS)}")
        encoding = ENCODINGS[dataset]
    table = np.full(256, IGNORE, np.uint8)
    for raw, name in encoding.ids.items():
        if name in class_set.names:
            table[raw] = class_set.names.index(name)
    missing = [name for name in class_set.names if name not in encoding.ids.values()]
    if missing:
        raise ValueError(
            f"dataset {dataset!r} has no labels for {', '.join(missing)} of class set {class_set.name!r}: "
            "choose a class set that both domains share"
        )
    return table
