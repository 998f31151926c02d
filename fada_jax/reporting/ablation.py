"""Tables of an ablation as data, and what they say over seeds beside the paper's numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from fada_jax.methods import SYSTEMS
from fada_jax.reporting import paper, rows

# Scores of one seed by row: ``miou``, ``iou`` by class and, where the class set has one, ``miou_13``; percent. A row
# that the seed lacks is empty.
Scores = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: a stage by its method and overrides; without a method it has the config's own.

    Attributes:
      label: in the table.
      method: config argument; empty: the config's own.
      overrides: config keys; that of lambda_adv is a factor on the config's value.
      paper: the paper's mIoU by task.
      printed: its name in the paper's tables 1 to 3, where ``paper`` has no number; may be empty.
      stage: adaptation, or self_distillation, which has a second row with multi-scale testing.
    """

    label: str
    method: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    printed: str = ""
    stage: str = "adaptation"


def _knowledge(name: str) -> dict[str, float]:
    return {task: values[name] for task, values in paper.KNOWLEDGE.items()}


# What the systems of the paper's tables 1 to 3 are called here and there; others have their ``config.method`` alone.
_SYSTEMS: Mapping[str, Variant] = {
    "feature_space": Variant("features (AdaptSegNet, feat. only)", printed="Baseline (feat. only)"),
    "adaptsegnet": Variant("AdaptSegNet, one level"),
    "adaptsegnet_multi": Variant("AdaptSegNet", printed="AdaptSegNet"),
    "clan": Variant("CLAN", printed="CLAN"),
    "minent": Variant("MinEnt"),
    "advent": Variant("ADVENT", printed="ADVENT"),
    "fcn_wild": Variant("FCNs in the wild", printed="FCNs in the wild"),
    "crosscity": Variant("Cross-City", printed="Cross-City"),
    "adaptpatch": Variant("AdaptPatch", printed="AdaptPatch"),
    "cbst": Variant("CBST", printed="CBST"),
    "st": Variant("ST", printed="ST"),
    "crst": Variant("CRST (MRKLD)"),
    "cda": Variant("CDA", printed="CDA"),
    "cyclegan": Variant("source only on CycleGAN's images"),
    "cycada": Variant("CyCADA", printed="CyCADA"),
    "fda": Variant("FDA"),
    "maxsquare": Variant("MaxSquare"),
    # The paper's number of global alignment is that of 'feature_space', see ``paper.REMARKS``.
    "binary": Variant("binary labels on FADA's discriminator"),
    "output_space": Variant("output space on FADA's discriminator"),
    "entropy": Variant("entropy on FADA's discriminator"),
    "hard": Variant("hard labels", paper=_knowledge("hard")),
    "fada": Variant("soft labels (FADA, F-Adv)", paper=_knowledge("soft")),
}


def _systems() -> dict[str, Variant]:
    """A row for every system that adapts or translates; those of the paper first, in its order."""
    adapting = [name for name, system in SYSTEMS.items() if system.adapts or system.translates]
    names = [*(name for name in _SYSTEMS if name in adapting), *(name for name in adapting if name not in _SYSTEMS)]
    return {name: dataclasses.replace(_SYSTEMS.get(name, Variant(name)), method=name) for name in names}


_BINARY = {"binary": Variant("binary (global alignment)", "binary", paper=_knowledge("binary"))}
_SOFT = {"fada": Variant("soft labels (FADA)", "fada", paper=_knowledge("soft"))}
# Rows of each table by name; the recipe's own rows come first in 'components'.
TABLES: Mapping[str, Mapping[str, Variant]] = {
    "components": _BINARY,
    "knowledge": {**_BINARY, "hard": Variant("hard labels", "hard", paper=_knowledge("hard")), **_SOFT},
    "clipping": {
        f"clip_{clip}": Variant(f"clip {clip}", "fada", {"knowledge.clip": clip}, {"gta5_to_cityscapes": value})
        for clip, value in paper.CLIPPING.items()
    },
    "alignment": {
        **_BINARY,
        "output_space": Variant("output space (as AdaptSegNet)", "output_space"),
        "entropy": Variant("entropy (as ADVENT)", "entropy"),
        **_SOFT,
    },
    "systems": _systems(),
    "lambda": {
        f"lambda_x{factor:g}": Variant(f"lambda_adv times {factor:g}", overrides={"lambda_adv": factor})
        for factor in (0.1, 0.3, 1.0, 3.0, 10.0)
    },
    "portion": {
        f"portion_{keep:g}": Variant(f"surest {keep:.0%} in the first round", overrides={"pseudo_labels.keep": keep})
        for keep in (0.1, 0.2, 0.3, 0.5, 0.8)
    },
    "temperature": {
        f"temperature_{t}": Variant(f"T = {t}", overrides={"knowledge.temperature": t}) for t in (1.0, 1.8, 3.0)
    },
    "distillation": {
        name: Variant(label, overrides=overrides, stage="self_distillation")
        for name, label, overrides in (
            ("keep_1", "SD, every pixel", {"pseudo_labels.keep": 1.0}),
            ("keep_0.8", "SD, surest 80% of each class", {"pseudo_labels.keep": 0.8}),
            ("keep_0.5", "SD, surest half of each class", {"pseudo_labels.keep": 0.5}),
            ("keep_0.3", "SD, surest 30% of each class", {"pseudo_labels.keep": 0.3}),
            ("relative_0.5", "SD, class-balanced", {"pseudo_labels.keep": 0.5, "pseudo_labels.relative": True}),
            ("teacher_multi_scale", "SD, multi-scale teacher", {"pseudo_labels.multi_scale": True}),
            ("student_from_adaptation", "SD, student from the teacher", {"student_from": "adaptation"}),
        )
    },
}
MULTI_SCALE = "_multi_scale"
# Rows of 'components' that no variant is behind.
LABELS = {
    **rows.LABELS,
    "colour_matching_global": "colour matching, global (no training)",
    "colour_matching_image": "colour matching, per image (no training)",
    "adapted_colour_matching": "F-Adv tested on matched colours",
    "oracle": "oracle (trained on target labels)",
}
# Rows of 'systems' before and after the systems.
_FIRST = ("source_only", "control", "colour_matching_global", "colour_matching_image")
SYSTEM_ROWS = (*_FIRST, *TABLES["systems"], "oracle")
# What gains are paired against, where a table has it.
BASELINES = ("source_only", "control", "colour_matching_global", "colour_matching_image", "binary", "adapted")


def difference(values: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of the paired differences and the half width of its t confidence interval (NaN for a single pair).

    What is NaN on either side has no pair; without any pair both are NaN.
    """
    gains = np.subtract(values, baseline)
    gains = gains[np.isfinite(gains)]
    if len(gains) < 2:
        return float(gains[0]) if len(gains) else float("nan"), float("nan")
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean()), float(stats.t.ppf(0.5 + level / 2, len(gains) - 1) * error)


def _paper(table: str, task: str, name: str, network: str) -> str:
    """The paper's number for a row as text; that of another network says so."""
    if table == "systems" and name == "source_only":
        return paper.printed(task, "Source only", network) or paper.printed(task, "Source DeepLab-v2", network)
    variant = TABLES[table].get(name)
    if variant and variant.printed:
        return paper.printed(task, variant.printed, network)
    if variant:
        number = variant.paper.get(task)
    else:
        number = paper.COMPONENTS.get(name) if task == "gta5_to_cityscapes" else None
    if number is None:
        return ""
    return f"{number:.1f}" + ("" if network == paper.RESNET else f" ({paper.RESNET})")


def _labels(table: str) -> dict[str, str]:
    return LABELS | {key: variant.label for key, variant in TABLES[table].items()}


def is_row(table: str, name: str) -> bool:
    """Whether a table may have a row of that name."""
    return {name, name.removesuffix(MULTI_SCALE)} & _labels(table).keys() != set()


def label(table: str, name: str) -> str:
    """What a row is called."""
    labels = _labels(table)
    return labels[name] if name in labels else f"{labels[name.removesuffix(MULTI_SCALE)]} + MST"


def markdown(table: str, task: str, scores: Mapping[int, Scores], network: str = paper.RESNET) -> str:
    """Rows with mean and standard deviation over seeds, then gains paired by seed with 95% t intervals.

    Args:
      table: key of ``TABLES``.
      task: its name.
      scores: by seed.
      network: of the paper's tables whose numbers stand beside ours, where they have it.
    """
    miou = by_row(scores, "miou")
    miou_13 = by_row(scores, "miou_13")
    head = [f"{task}, {table}", "mIoU", *(["mIoU* (13)"] if miou_13 else []), *(f"seed {s}" for s in scores), "paper"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, values in miou.items():
        cells = [label(table, name), spread(values), *([spread(miou_13[name])] if miou_13 else [])]
        cells += [*("-" if np.isnan(v) else f"{v:.1f}" for v in values), _paper(table, task, name, network)]
        lines.append("| " + " | ".join(cells) + " |")
    baselines = [name for name in BASELINES if name in miou]
    lines += [
        "",
        "| gain, 95% interval | over " + " | over ".join(label(table, name) for name in baselines) + " |",
        "| --- |" + " ---: |" * len(baselines),
    ]
    for name, values in miou.items():
        cells = []
        for baseline in baselines:
            mean, half = difference(values, miou[baseline])
            interval = "" if np.isnan(half) else f" [{mean - half:+.1f}, {mean + half:+.1f}]"
            cells.append("" if name == baseline or np.isnan(mean) else f"{mean:+.1f}{interval}")
        lines.append(f"| {label(table, name)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_by_class(table, scores, list(miou))]) + "\n"


def _by_class(table: str, scores: Mapping[int, Scores], names: Sequence[str]) -> list[str]:
    """IoU of each class by row; a class in no label and no prediction of a seed has none there."""
    lines = [
        "| class | " + " | ".join(label(table, name) for name in names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for class_name in next(row["iou"] for s in scores.values() for row in s.values() if row):
        cells = []
        for name in names:
            found = [s[name]["iou"][class_name] for s in scores.values() if s[name]]
            present = [iou for iou in found if iou is not None]
            cells.append(spread(present) if present else "-")
        lines.append(f"| {class_name} | " + " | ".join(cells) + " |")
    return lines


def by_row(scores: Mapping[int, Scores], key: str) -> dict[str, list[float]]:
    """One score of every seed, by row, NaN where a seed lacks the row; empty where the rows do not have it."""
    names = {name for seed in scores.values() for name, row in seed.items() if key in row}
    first = next(iter(scores.values()))
    return {name: [s[name].get(key, float("nan")) for s in scores.values()] for name in first if name in names}


def across_tasks(
    table: str, scores: Mapping[str, Mapping[int, Scores]], networks: Mapping[str, str] | None = None
) -> str:
    """One column a task, as in the paper's table 5: mean and standard deviation, and the paper's number.

    Args:
      table: key of ``TABLES``.
      scores: by task and seed.
      networks: of the paper's tables by task, see ``markdown``.
    """
    miou = {task: by_row(seeds, "miou") for task, seeds in scores.items()}
    lines = [f"| {table} | {' | '.join(scores)} |", "| --- |" + " ---: |" * len(scores)]
    # A task without labels of the target's training images has no oracle.
    for name in dict.fromkeys(name for values in miou.values() for name in values):
        cells = []
        for task, values in miou.items():
            printed = _paper(table, task, name, (networks or {}).get(task, paper.RESNET))
            measured = spread(values[name]) if name in values else "-"
            cells.append(measured + (f" (paper {printed})" if printed else ""))
        lines.append(f"| {label(table, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, of the seeds that have a score."""
    present = [value for value in values if not np.isnan(value)]
    return f"{np.mean(present):.1f}" + (f" ± {np.std(present, ddof=1):.1f}" if len(present) > 1 else "")


def summary(table: str, task: str, scores: Mapping[int, Scores], network: str = paper.RESNET) -> dict[str, Any]:
    """Rows of a table for other programs: label, mIoU by seed, mean with spread as text, and the paper's number."""
    return {
        name: {
            "label": label(table, name),
            "seeds": {str(seed): s[name]["miou"] for seed, s in scores.items() if s[name]},
            "text": spread(values),
            "paper": _paper(table, task, name, network),
        }
        for name, values in by_row(scores, "miou").items()
    }


def to_csv(scores: Mapping[int, Scores]) -> str:
    """mIoU: one row a seed, one column a row of the table."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["seed", *next(iter(scores.values()))], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {"seed": seed} | {name: row.get("miou", "") for name, row in s.items()} for seed, s in scores.items()
    )
    return buffer.getvalue()
