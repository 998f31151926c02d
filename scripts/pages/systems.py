"""What docs/systems.md says of the systems that no hand writes: facts of each, and a table of every measured task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fada_jax.classes import CITIES
from fada_jax.methods import SYSTEMS
from fada_jax.reporting import paper
from fada_jax.scripts.pages.tables import gain, interval_text, markdown, spread_text

# Names of the paper's tables 1 to 3 by ours in docs/systems.md.
PRINTED = {
    **{"source_only": "Source only", "fcn_wild": "FCNs in the wild", "crosscity": "Cross-City", "cda": "CDA"},
    **{"st": "ST", "cbst": "CBST", "cycada": "CyCADA", "adaptsegnet_multi": "AdaptSegNet", "siban": "SIBAN"},
    **{"clan": "CLAN", "adaptpatch": "AdaptPatch", "advent": "ADVENT", "feature_space": "Baseline (feat. only)"},
    **{"fada": "FADA", "adaptsegnet": "", "minent": "", "binary": "", "hard": "hard"},
}
_PRINTED_TASKS = ("gta5_to_cityscapes", "synthia_to_cityscapes")


def _printed(method: str) -> str:
    """The paper's numbers of a method: GTA5 / SYNTHIA by network, then cities; * is over 13 classes."""
    parts = []
    for network in (paper.RESNET, paper.VGG):
        found = [
            [row for row in paper.rows(task) if (row.group, row.method) == (network, method)] for task in _PRINTED_TASKS
        ]
        cells = [_number(rows[0]) if rows else "-" for rows in found]
        if cells != ["-", "-"]:
            parts.append(f"{' / '.join(cells)} {network}")
    in_cities = {"Source only": "Source DeepLab-v2"}.get(method, method)
    cities = {row.group: row for row in paper.rows("cityscapes_to_crosscity") if row.method == in_cities}
    parts += [", ".join(f"{city} {_number(cities[city])}" for city in CITIES)] if cities else []
    knowledge = {"FADA": ("F-Adv", "soft"), "hard": ("Table 5", "hard")}.get(method)
    if knowledge:
        cells = [f"{paper.KNOWLEDGE[task][knowledge[1]]:.1f}" for task in _PRINTED_TASKS]
        parts.append(f"{knowledge[0]}: {' / '.join(cells)} {paper.RESNET}")
    return "; ".join(parts) or "-"


def _number(row: paper.Row) -> str:
    return f"{row.miou:.1f}" if row.miou is not None else f"{row.miou_13:.1f}\\*"


def system_facts(measured: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What docs/systems.md says of each system that no hand writes.

    Args:
      measured: docs/results/systems.json; {}: it is not there.

    Returns:
      ``code``, ``status``, ``paper`` and ``ours`` (GTA5 / SYNTHIA), by name.
    """
    facts = {}
    for name, method in PRINTED.items():
        here = name in SYSTEMS
        tasks = [measured.get("tasks", {}).get(task, {}).get(name, {}).get("text", "") for task in _PRINTED_TASKS]
        module = SYSTEMS[name].method.__module__.rpartition(".")[2] if here else ""
        # Of SIBAN there is nothing to build it from.
        missing = "not here" if name == "siban" else "not here yet"
        status = ("measured" if any(tasks) else "here") if here else missing
        code, ours = f"`{module}.py`" if here else "-", " / ".join(text or "-" for text in tasks) if any(tasks) else ""
        facts[name] = {"code": code, "status": status, "paper": _printed(method), "ours": ours}
    return facts


# Rows of a system's table that every other row is compared with.
BASELINES = {"control": "control", "fada": "F-Adv"}


def measured_table(task: Mapping[str, Any]) -> str:
    """One task of docs/results/systems.json: every seed, mean and spread, and gains paired by seed."""
    seeds = sorted({seed for row in task.values() for seed in row["seeds"]}, key=int)
    rows = []
    for name, row in task.items():
        values = row["seeds"]
        cells = [row["label"], *(f"{values[seed]:.1f}" if seed in values else "" for seed in seeds)]
        cells.append(spread_text(list(values.values())))
        for baseline in BASELINES:
            base = task.get(baseline, {}).get("seeds", {})
            shared = [seed for seed in seeds if seed in values and seed in base]
            paired = [[scores[seed] for seed in shared] for scores in (values, base)]
            cells.append(interval_text(gain(*paired)) if name != baseline and len(shared) > 1 else "")
        rows.append(cells)
    over = [f"over {label}" for label in BASELINES.values()]
    return markdown(["mIoU", *(f"seed {seed}" for seed in seeds), "mean ± sd", *over], rows)


def distance_table(data: Mapping[str, Any]) -> str:
    """Mean class centre distance of every stage of docs/results/ccd_systems.json, over its seeds."""
    domains = ("both", "source", "target")
    rows = [
        [name, *(f"{stage[domain]['mean']:.2f} ± {stage[domain]['mean_sd']:.2f}" for domain in domains)]
        for name, stage in data["ccd_systems"]["stages"].items()
    ]
    return markdown(["CCD", "both domains", *domains[1:]], rows)
