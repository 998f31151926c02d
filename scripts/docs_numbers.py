"""Writes the measured numbers into README.md and docs/*.md, from the files of docs/results/.

  python scripts/docs_numbers.py            # or: make docs-numbers
  python scripts/docs_numbers.py --check    # writes nothing; ends with status 1 where a page differs

Pages mark where numbers stand: a table between ``<!-- numbers:NAME -->`` and ``<!-- /numbers -->``, a value in a
line between ``<!--=NAME-->`` and ``<!--/-->``. NAME is a path: a file of docs/results/ or docs/ without its ending,
then keys and positions, joined by dots. ``NAME:SPEC`` formats a value as Python does:
``<!--=gta5.mean.adapted:.1f-->``.

A table is an object with ``columns``, ``rows`` and a format for each column, or one of ``TABLES`` below.
``system.NAME`` is what ``pages.systems`` says of a system of docs/systems.md: its code, the paper's numbers, and those
of docs/results/systems.json, a copy of the file that scripts/ablate.py --table=systems writes; ``systems.TASK`` is its
table of a task.

TASK_components.csv, which scripts/ablate.py writes, is read as TASK: ``mean``, ``sd`` and ``over`` (gains paired by
seed with 95% t intervals). Tables are written without spaces beside their bars: nobody edits them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from fada_jax import cli, files
from fada_jax.errors import UserError
from fada_jax.reporting import paper
from fada_jax.scripts.pages import systems
from fada_jax.scripts.pages.tables import gain, interval_text, markdown
from fada_jax.scripts.rehearsal import report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
_BLOCK = re.compile(r"(<!-- numbers:(\S+) -->\n).*?(<!-- /numbers -->)", re.DOTALL)
_VALUE = re.compile(r"(<!--=([^>]+?)-->).*?(<!--/-->)")

# Rows of table 4 by their column in TASK_components.csv, in the order of the pages.
LABELS = {
    "source_only": "source only",
    "control": "control (lambda = 0)",
    "colour_matching_global": "colour matching, global",
    "colour_matching_image": "colour matching, per image",
    "binary": "binary (global alignment)",
    "adapted": "F-Adv",
    "adapted_colour_matching": "F-Adv tested on matched colours",
    "self_distilled": "F-Adv + SD",
    "self_distilled_multi_scale": "F-Adv + SD + MST",
    "oracle": "oracle (target labels)",
}
TASKS = {
    "gta5": "GTA5 -> Cityscapes",
    "synthia": "SYNTHIA -> Cityscapes",
    "crosscity": "Cityscapes -> Cross-City",
    "camvid": "CamVid day -> dusk",
}
_MATCHING = ("colour_matching_global", "colour_matching_image")


def components(path: Path) -> dict[str, Any]:
    """Rows of a TASK_components.csv: scores by seed, mean, standard deviation, paired gains over every other row."""
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    scores = {name: [float(line[name]) for line in lines] for name in lines[0] if name != "seed"}
    mean = {name: float(np.mean(values)) for name, values in scores.items()}
    scores["matched"] = scores[max(_MATCHING, key=mean.__getitem__)]  # The better of the two.
    return {
        "seeds": [int(line["seed"]) for line in lines],
        "scores": scores,
        "mean": {name: float(np.mean(values)) for name, values in scores.items()},
        "sd": {name: float(np.std(values, ddof=1)) for name, values in scores.items()},
        "over": {
            name: {row: gain(values, baseline) for row, values in scores.items() if row != name}
            for name, baseline in scores.items()
        },
    }


def read_results(root: Path = ROOT) -> dict[str, Any]:
    """Everything that a page may name, by the first part of the name."""
    docs = root / "docs"
    data = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in (*docs.glob("*.json"), *docs.glob("results/*.json"))
    }
    for path in docs.glob("results/*_components.csv"):
        data[path.stem.removesuffix("_components")] = components(path)
    return {**data, "system": systems.system_facts(data.get("systems", {}))}


def stored_table(table: Mapping[str, Any]) -> str:
    """An object with columns, formats and rows as a table."""
    formats = table["formats"]
    rows = [
        ["" if cell is None else format(cell, spec) for cell, spec in zip(row, formats, strict=True)]
        for row in table["rows"]
    ]
    return markdown(table["columns"], rows)


def _spread(task: Mapping[str, Any], name: str) -> str:
    return f"{task['mean'][name]:.1f} ± {task['sd'][name]:.1f}"


def _interval(task: Mapping[str, Any], name: str, baseline: str) -> str:
    found = task["over"][baseline].get(name)
    return "" if found is None else interval_text(found)


def component_table(name: str, data: Mapping[str, Any]) -> str:
    """Scores of every seed, their mean and spread, and the gain over source only."""
    task = data[name]
    stars = data["experiments"].get(f"{name}_miou_13", {}).get("mean", {})
    head = ["", *(f"seed {seed}" for seed in task["seeds"]), "mean ± sd", *(["mIoU*"] if stars else [])]
    rows = []
    for row, label in LABELS.items():
        if row in task["scores"]:
            cells = [label, *(f"{value:.1f}" for value in task["scores"][row]), _spread(task, row)]
            cells += [f"{stars[row]:.1f}"] if stars else []
            rows.append([*cells, _interval(task, row, "source_only")])
    return markdown([*head, "gain over source only"], rows)


def paired_table(name: str, data: Mapping[str, Any]) -> str:
    """Paired gains of the adapted rows over each baseline."""
    baselines = {"control": "control", "matched": "matched colours, the better", "binary": "binary", "adapted": "F-Adv"}
    adapted = ("adapted", "self_distilled", "self_distilled_multi_scale")
    rows = [[LABELS[row], *(_interval(data[name], row, baseline) for baseline in baselines)] for row in adapted]
    return markdown(["paired gain", *(f"over {label}" for label in baselines.values())], rows)


def headline(data: Mapping[str, Any]) -> str:
    """The README's table: both tasks of which it speaks, and the paper's numbers."""
    names = {"source_only": "source only", "control": "control: same extra steps, lambda = 0"}
    names |= {"matched": "colour matching, no training (the better of two)", "binary": "binary: global alignment"}
    names |= {row: LABELS[row] for row in ("adapted", "self_distilled", "self_distilled_multi_scale", "oracle")}
    published = {**paper.COMPONENTS, "binary": paper.KNOWLEDGE["gta5_to_cityscapes"]["binary"]}
    rows = []
    for row, label in names.items():
        cells = [label]
        for name in ("gta5", "camvid"):
            cells += [_spread(data[name], row), _interval(data[name], row, "source_only")]
        rows.append([*cells, f"{published[row]:.1f}" if published.get(row) else ""])
    return markdown(["mIoU", "GTA5", "gain", "CamVid", "gain", "paper, GTA5"], rows)


def gains(data: Mapping[str, Any]) -> str:
    """Gains of the complete method, a line a task."""
    baselines = {"source_only": "source only", "control": "the control", "matched": "matched colours"}
    baselines |= {"binary": "binary (which has no SD)"}
    rows = [
        [label, *(f"{data[name]['over'][base]['self_distilled_multi_scale']['mean']:+.1f}" for base in baselines)]
        for name, label in TASKS.items()
        if name in data
    ]
    return markdown(["F-Adv + SD + MST over", *baselines.values()], rows)


def parity(data: Mapping[str, Any]) -> str:
    """The worst row of each kind of quantity, by its ratio to PyTorch's own error."""
    kinds = {
        "logits of G and D": r"logits",
        "probabilities, 3 scales, flipped, at label size": r"probabilities",
        "losses": r" loss_",
        "gradients": r" gradient of (?!.*float64)",
        "gradients of the full networks, ours in float64": r"float64",
        "3 and 10 iterations: updates": r"iterations: update",
        "3 and 10 iterations: optimizer states": r"iterations: optimizer",
        "live batch norm, 3 steps": r"live BN",
    }
    rows = []
    for label, pattern in kinds.items():
        matching = [row for row in data["parity"]["rows"] if re.search(pattern, row["name"])]
        worst = max(matching, key=lambda row: row["ours"])
        ratio = max(row["ratio"] for row in matching)
        cells = [f"{worst['ours']:.1e}", f"{worst['torch32']:.1e}", f"{ratio:.2f}", f"{worst['limit']:.0e}"]
        rows.append([label, str(len(matching)), *cells])
    return markdown(["quantity", "rows", "largest error", "PyTorch float32 there", "largest ratio", "limit"], rows)


def jitter(data: Mapping[str, Any]) -> str:
    """What jitter after resizing changes, and what it saves."""
    cases = {
        "1914x1052 -> 1280x720": ("jitter", "source"),
        "2048x1024, scaled, crop of 1024x512": ("jitter", "self_distillation"),
        "480x360 -> 192x144": ("jitter_camvid", "camvid"),
        "480x360, scaled, crop of 480x360": ("jitter_camvid", "camvid_self_distillation"),
    }
    rows = []
    for label, (file, name) in cases.items():
        case = data[file]["cases"][name]
        cells = [f"{case['mean']:.1f}", f"{case['p99']}", f"{case['max']}"]
        times = [f"{case[key]:.{0 if case['released'] > 20 else 1}f} ms" for key in ("released", "late")]
        images = "generated" if file == "jitter" else "CamVid by day"
        rows.append([label, f"{images}, {case['draws']}", *cells, *times])
    head = ["", "images", "mean", "99% below", "most", "released", "`jitter_first=False`"]
    return markdown(head, rows, left=2)


def rehearsal(data: Mapping[str, Any]) -> str:
    """What the last rehearsal of the released sizes saw."""
    return report.markdown(data["rehearsal"])


def errors(data: Mapping[str, Any]) -> str:
    """Every mistake that is tested, with its answer."""
    parts = []
    for group, answers in data["errors"].items():
        rows = [[name, "`" + answer.replace("|", "\\|") + "`"] for name, answer in answers.items()]
        parts.append(f"## {group[0].upper()}{group[1:]}\n\n{markdown(['mistake', 'answer'], rows, left=2)}")
    return "\n".join(parts)


# Tables that are more than an object of a file.
TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "headline": headline,
    "gains": gains,
    "parity": parity,
    "jitter": jitter,
    "rehearsal": rehearsal,
    "errors": errors,
    "ccd_systems": systems.distance_table,
}


def lookup(name: str, data: Mapping[str, Any]) -> Any:
    """What a path names.

    Raises:
      UserError: there is nothing of that name.
    """
    value: Any = data
    for key in name.split("."):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UserError(f"docs/results holds no {name!r}: nothing is called {key!r}") from error
    return value


def table(name: str, data: Mapping[str, Any]) -> str:
    """The table of a name."""
    task, _, kind = name.partition(".")
    if task == "systems":
        return systems.measured_table(lookup(name.replace("systems.", "systems.tasks.", 1), data))
    if kind in ("table", "paired") and task in TASKS:
        lookup(task, data)
        return (component_table if kind == "table" else paired_table)(task, data)
    return TABLES[name](data) if name in TABLES else stored_table(lookup(name, data))


def fill(text: str, data: Mapping[str, Any]) -> str:
    """A page with the numbers that its marks name."""
    text = _BLOCK.sub(lambda match: f"{match[1]}\n{table(match[2], data)}\n{match[3]}", text)

    def value(match: re.Match[str]) -> str:
        name, _, spec = match[2].partition(":")
        return f"{match[1]}{lookup(name, data):{spec}}{match[3]}"

    return _VALUE.sub(value, text)


def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    if not RESULTS.is_dir():
        raise UserError(f"{RESULTS} is not there: this command needs a checkout")
    data, differing = read_results(), []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        filled = fill(text, data)
        if filled != text:
            differing.append(str(page.relative_to(ROOT)))
            if not flags.FLAGS.check:
                files.write_text(page, filled)
    if differing and flags.FLAGS.check:
        raise UserError(f"{', '.join(differing)}: numbers differ from docs/results; run make docs-numbers")
    print(f"written: {', '.join(differing)}" if differing else "every page is up to date")


if __name__ == "__main__":
    flags.DEFINE_bool("check", False, "Write nothing; fail where a page differs.")
    cli.run(main)
