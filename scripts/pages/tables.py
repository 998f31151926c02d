"""Tables and cells of the pages: paired gains with their intervals, means with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats


def gain(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Mean of the paired differences with the ends of its 95% t interval."""
    gains = np.subtract(values, baseline)
    half = float(stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    mean = float(gains.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def interval_text(found: Mapping[str, float]) -> str:
    """What ``gain`` gives as a cell."""
    return f"{found['mean']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"


def spread_text(values: Sequence[float]) -> str:
    """Mean and standard deviation as a cell."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; the first ``left`` columns are text."""
    lines = [columns, ["---"] * left + ["---:"] * (len(columns) - left), *rows]
    return "".join(f"|{'|'.join(cells)}|\n" for cells in lines)
