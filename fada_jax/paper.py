"""The paper's tables as data: per-class IoU of tables 1 to 3 (``paper_tables.csv``), ablations of tables 4 to 6.

Exactly as printed, in percent; every FADA row of tables 1 to 3 is with self-distillation. The printed mean is that of
the printed classes to rounding, but for one row: CBST with VGG-16 in table 2, whose 13 classes average 40.7.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Mapping
from typing import NamedTuple

from fada_jax.classes import get_class_set


class Row(NamedTuple):
    """One row of table 1, 2 or 3.

    Attributes:
      group: city (table 1) or backbone.
      method: as in the paper, without its citation.
      iou: by class name; None where the paper has "-", absent where the table has no such class.
      miou, miou_13: mean over the classes, and over the 13 of table 2's mIoU*; None where the paper has none.
    """

    group: str
    method: str
    iou: Mapping[str, float | None]
    miou: float | None
    miou_13: float | None


# Task (name of the config file) -> class set of its table.
CLASS_SETS: Mapping[str, str] = {
    "cityscapes_to_crosscity": "crosscity13",
    "synthia_to_cityscapes": "synthia16",
    "gta5_to_cityscapes": "cityscapes19",
}

# Table 4, GTA5 -> Cityscapes with ResNet-101; the names are those of results.json.
COMPONENTS: Mapping[str, float] = {
    "source_only": 36.8,
    "adapted": 46.9,
    "self_distilled": 49.2,
    "self_distilled_multi_scale": 50.1,
}

# Table 5, ResNet-101; 'binary' is the baseline, global alignment of features.
KNOWLEDGE: Mapping[str, Mapping[str, float]] = {
    "gta5_to_cityscapes": {"binary": 39.4, "hard": 45.7, "soft": 46.9},
    "synthia_to_cityscapes": {"binary": 35.4, "hard": 40.8, "soft": 41.5},
}

# Table 6, GTA5 -> Cityscapes with ResNet-101, by clipping threshold.
CLIPPING: Mapping[float, float] = {0.7: 46.2, 0.8: 46.3, 0.9: 46.9, 1.0: 45.7}

# Section 4.5: mean Class Center Distance of FADA.
MEAN_CLASS_CENTER_DISTANCE = 1.1


@functools.cache
def rows(task: str) -> tuple[Row, ...]:
    """Rows of a task's table in the paper's order; none for a task that the paper does not have."""
    if task not in CLASS_SETS:
        return ()
    names = get_class_set(CLASS_SETS[task]).names

    def number(text: str) -> float | None:
        return float(text) if text else None

    with importlib.resources.files("fada_jax").joinpath("paper_tables.csv").open() as file:
        return tuple(
            Row(
                r["group"],
                r["method"],
                {name: number(r[name]) for name in names},
                number(r["miou"]),
                number(r["miou_13"]),
            )
            for r in csv.DictReader(file)
            if r["task"] == task
        )
