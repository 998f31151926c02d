"""The paper's tables as data: per-class IoU of tables 1 to 3 (``paper_tables.csv``), ablations of tables 4 to 6.

Table 1 is Cross-City, table 2 SYNTHIA, table 3 GTA5. Numbers are exactly as printed, in percent, misprints included:
``ERRATA`` and ``REMARKS`` say what to mind, and each row carries its note. tests/test_paper.py finds the errata by
machine: everywhere else the printed mean is that of the printed classes to rounding, and no two rows are equal.

The gains that the text names are those of the tables, with two exceptions. Section 4.4 gives 8.5 over source only as
the average of Cross-City's four cities, where table 1 prints 8.0 (with the duplicated rows of Tokyo and Taipei);
section 4.6 gives 0.7 for multi-scale testing, where table 4 prints 0.9.
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
      note: what to mind when comparing with the row (``ERRATA``, ``REMARKS``); mostly empty.
    """

    group: str
    method: str
    iou: Mapping[str, float | None]
    miou: float | None
    miou_13: float | None
    note: str


# Task (name of the config file) -> class set of its table.
CLASS_SETS: Mapping[str, str] = {
    "cityscapes_to_crosscity": "crosscity13",
    "synthia_to_cityscapes": "synthia16",
    "gta5_to_cityscapes": "cityscapes19",
}

# (task, group, method) -> what is wrong with a row as printed.
ERRATA: Mapping[tuple[str, str, str], str] = {
    ("cityscapes_to_crosscity", "Tokyo", "Source DeepLab-v2"): (
        "Printed with every number of the Cross-City row above it; elsewhere this source-only model has 47.8."
    ),
    ("cityscapes_to_crosscity", "Taipei", "Source DeepLab-v2"): (
        "Printed with every number of the Cross-City row above it; elsewhere this source-only model has 46.3."
    ),
    ("synthia_to_cityscapes", "VGG-16", "CBST"): "mIoU* is printed as 36.1; the 13 printed classes average 40.7.",
    ("gta5_to_cityscapes", "ResNet-101", "Baseline (feat. only)"): "Printed as 39.3 here and as 39.4 in table 5.",
}

# Method -> what its rows are, in every table that has them.
REMARKS: Mapping[str, str] = {
    "FADA": "With self-distillation.",
    "FADA-MST": "With self-distillation and multi-scale testing.",
    "Baseline (feat. only)": (
        "Taken from AdaptSegNet [30], with that system's own discriminator, lambda and code: FADA's gain over it is no "
        "ablation on equal terms; binary labels on FADA's own discriminator are one."
    ),
}

# Table 4, GTA5 -> Cityscapes with ResNet-101; the names are those of results.json.
COMPONENTS: Mapping[str, float] = {
    "source_only": 36.8,
    "adapted": 46.9,
    "self_distilled": 49.2,
    "self_distilled_multi_scale": 50.1,
}

# Table 5, ResNet-101; 'binary' is the paper's baseline, features aligned globally (``REMARKS``).
KNOWLEDGE: Mapping[str, Mapping[str, float]] = {
    "gta5_to_cityscapes": {"binary": 39.4, "hard": 45.7, "soft": 46.9},
    "synthia_to_cityscapes": {"binary": 35.4, "hard": 40.8, "soft": 41.5},
}

# Table 6, GTA5 -> Cityscapes with ResNet-101, by clipping threshold.
CLIPPING: Mapping[float, float] = {0.7: 46.2, 0.8: 46.3, 0.9: 46.9, 1.0: 45.7}

# Section 4.5: mean Class Center Distance of FADA.
MEAN_CLASS_CENTER_DISTANCE = 1.1


# Networks of tables 2 and 3; rows of table 1 are of DeepLab-v2 but for those that ``FRONTEND`` names.
RESNET, VGG = "ResNet-101", "VGG-16"
FRONTEND = ("Source Dilation-Frontend", "Cross-City")


def printed(task: str, method: str, network: str = RESNET) -> str:
    """The mIoU of a method in tables 1 to 3 as text; empty where they have none.

    Args:
      task: name of the config file, for Cross-City with the city: ``cityscapes_to_crosscity_Rome``.
      method: as in the table.
      network: preferred; a number of the other one says so.

    Returns:
      '42.4', '27.1 (VGG-16)', '46.7 (13 classes)' where the table has no mean over 16; a misprint says so.
    """
    name = next((name for name in CLASS_SETS if task.startswith(name)), "")
    found = {row.group: row for row in rows(name) if row.method == method}
    groups = [task.removeprefix(f"{name}_")] if name == "cityscapes_to_crosscity" else [network, RESNET, VGG]
    for group in groups:
        if group in found:
            row = found[group]
            number = row.miou if row.miou is not None else row.miou_13
            remarks = ["13 classes"] if row.miou is None else []
            remarks += [group] if group in (RESNET, VGG) and group != network else []
            remarks += ["Dilation-Frontend"] if method in FRONTEND else []
            remarks += ["misprint"] if "row above it" in row.note else []
            return f"{number:.1f}" + (f" ({', '.join(remarks)})" if remarks else "")
    return ""


def note(task: str, group: str, method: str) -> str:
    """What to mind when comparing with a row, as whole sentences; empty where there is nothing."""
    return " ".join(filter(None, (ERRATA.get((task, group, method)), REMARKS.get(method))))


@functools.cache
def rows(task: str) -> tuple[Row, ...]:
    """Rows of a task's table in the paper's order; none for a task that the paper does not have."""
    if task not in CLASS_SETS:
        return ()
    names = get_class_set(CLASS_SETS[task]).names

    def number(text: str) -> float | None:
        return float(text) if text else None

    with importlib.resources.files("fada_jax.reporting").joinpath("paper_tables.csv").open(encoding="utf-8") as file:
        return tuple(
            Row(
                r["group"],
                r["method"],
                {name: number(r[name]) for name in names},
                number(r["miou"]),
                number(r["miou_13"]),
                note(task, r["group"], r["method"]),
            )
            for r in csv.DictReader(file)
            if r["task"] == task
        )
