"""The table of one recipe: its rows beside what they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fada_jax.config import Config

# By the name of a row in results.json.
LABELS = {
    "source_only": "source only",
    "control": "control (lambda = 0, same extra steps)",
    "colour_matching": "colour matching (no training)",
    "adapted": "F-Adv",
    "self_distilled": "F-Adv + SD",
    "self_distilled_multi_scale": "F-Adv + SD + MST",
}


def label(row: Mapping[str, Any]) -> str:
    """The label of a row of results.json."""
    folder, _, number = row["name"].partition("round_")
    if not folder and number.isdecimal():
        return f"self-training, round {number}"
    return LABELS.get(row["name"], row["name"]) + (f", {row['mode']}" if "mode" in row else "")


def markdown(rows: Sequence[Mapping[str, Any]], config: Config) -> str:
    """The rows as a table, then IoU by class."""
    star = any(row.get("miou_13") is not None for row in rows)
    head = ["", "mIoU", *(["mIoU* (13)"] if star else []), "gain over source only"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        cells = [label(row), f"{row['miou']:.1f}", *([f"{row['miou_13']:.1f}"] if star else [])]
        lines.append("| " + " | ".join([*cells, f"{row['miou'] - rows[0]['miou']:+.1f}"]) + " |")
    first = rows[0]
    lines.append(
        f"\n{config.task}, {config.method}, seed {config.seed}: mIoU in percent over {len(first['iou'])} classes "
        f"({first['class_set']}), {first['num_images']} images of {first['dataset']}/{first['split']}, scored at the "
        f"label's size {first['scored_at']}, last checkpoints.\n"
    )
    lines.append("| class | " + " | ".join(row["name"] for row in rows) + " |")
    lines.append("| --- |" + " ---: |" * len(rows))
    for name in first["iou"]:
        cells = ["-" if row["iou"][name] is None else f"{row['iou'][name]:.1f}" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
