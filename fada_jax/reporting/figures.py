"""Figures with matplotlib, without its global state: each function takes plain numbers and returns a ``Figure``.

Names of classes and stages are anybody's, so none is read as a formula.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fada_jax import __version__, files

# A fixed salt and no date: the same numbers give the same file.
_SVG: dict[Any, str] = {"svg.hashsalt": "fada_jax", "svg.fonttype": "path"}


def training_curves(stage: str, lines: Sequence[Mapping[str, float]]) -> Figure:
    """Losses of a stage over steps, from the lines of its ``metrics.jsonl``."""
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    for key in sorted({key for line in lines for key in line if key.startswith("loss")}):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), label=key)
    axes.set(title=stage, xlabel="step", ylim=(0, None))
    axes.legend()
    return figure


def _grouped_bars(
    rows: Mapping[str, Mapping[str, float | None]],
    ylabel: str,
    spreads: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Figure:
    """Bars of every class side by side, one colour a row; no bar where a value is missing, no line without a spread."""
    names = list(next(iter(rows.values())))
    figure = Figure(figsize=(max(6, 0.5 * len(names)), 3.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for i, (label, values) in enumerate(rows.items()):
        heights = [np.nan if (value := values[name]) is None else value for name in names]
        own = (spreads or {}).get(label)
        errors = own and [np.nan if (spread := own[name]) is None else spread for name in names]
        places = np.arange(len(names)) - 0.4 + (i + 0.5) * width
        axes.bar(places, heights, width, label=label, yerr=errors, error_kw={"elinewidth": 0.8})
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", parse_math=False)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.01)
    # About so many inches has an entry of the legend in its font.
    columns = int(figure.get_figwidth() / (0.8 + 0.08 * max(map(len, rows))))
    legend = figure.legend(loc="outside upper center", ncols=min(len(rows), max(columns, 1)), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def iou_bars(rows: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """IoU of each class in percent, by row name; all rows have the same classes."""
    return _grouped_bars(rows, "IoU, %")


def ccd_bars(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Class Center Distance of each class, with its mean in the legend (figure 4).

    Args:
      rows: ``ccd`` by class and ``mean``; over seeds also the spreads ``ccd_sd`` and ``mean_sd``.
    """
    labels = {}
    for name, row in rows.items():
        spread = "" if row.get("mean_sd") is None else f" ± {row['mean_sd']:.2f}"
        labels[name] = f"{name} (mean {'-' if row['mean'] is None else format(row['mean'], '.2f')}{spread})"
    spreads = {labels[name]: row["ccd_sd"] for name, row in rows.items() if "ccd_sd" in row}
    return _grouped_bars({labels[name]: row["ccd"] for name, row in rows.items()}, "Class Center Distance", spreads)


def confusion_matrix(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Share of each label's pixels by prediction; rows are labels. Classes without pixels stay empty."""
    counts = np.asarray(confusion, np.float64)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    side = 2 + 0.3 * len(names)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap=colormaps["Blues"])
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="prediction", ylabel="label")
    figure.colorbar(image, shrink=0.7, format=PercentFormatter(1.0))
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as SVG text, text as outlines: it looks the same everywhere."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(_SVG):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | Path, *, ours: Callable[[Path], bool] = files.anything) -> None:
    """Writes a PNG that says who made it, whole or not at all.

    Args:
      figure: to write.
      path: of the file.
      ours: whether what lies there may be replaced; ``images.is_ours`` at a place that the user names.

    Raises:
      UserError: somebody else's file lies there.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": f"fada-jax {__version__}"})
    with files.replacing(path, ours=ours) as partial:
        partial.write_bytes(buffer.getvalue())
