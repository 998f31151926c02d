"""The compared rows for reading: merged over runs, as a Markdown table, and in the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fada_jax.errors import UserError
from fada_jax.scripts.rehearsal.commands import ROOT, log
from fada_jax.scripts.rehearsal.comparison import Compared, Fact, stage_of
from fada_jax.scripts.rehearsal.released import BACKBONES, CONVERSION, NOTHING, RAW, TASKS, Run

DOCS, DOCS_ROWS = ROOT / "docs" / "method.md", ROOT / "docs" / "rehearsal.json"
BEGIN, END = "<!-- numbers:rehearsal -->", "<!-- /numbers -->"


def name(runs: Sequence[Run], every: Sequence[Run]) -> str:
    """Words for some of ``every`` run: 'all', 'GTA5', 'VGG-16', 'GTA5 with VGG-16', ..."""
    if set(runs) == set(every):
        return "all"
    tasks, backbones = (list(dict.fromkeys(run[i] for run in runs)) for i in (0, 1))
    if len(tasks) * len(backbones) != len(runs):
        return ", ".join(f"{TASKS[task]} with {BACKBONES[backbone]}" for task, backbone in runs)
    parts = []
    if set(tasks) != {run[0] for run in every}:
        parts.append(", ".join(TASKS[task] for task in tasks))
    if set(backbones) != {run[1] for run in every}:
        parts.append(", ".join(BACKBONES[backbone] for backbone in backbones))
    return " with ".join(parts)


def compact(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """The rows with equal values of several runs as one, in JSON types.

    Each has ``stage``, ``what``, ``runs``, ``released``, ``seen`` and, where the release has nothing of the kind,
    ``ours``.
    """
    every = [run for run in dict.fromkeys(row.run for row in compared) if run != CONVERSION]
    merged: dict[tuple, list[Run]] = {}
    for row in compared:
        key = (row.stage, row.what, row.released, row.seen, row.ours)
        merged.setdefault(key, []).append(row.run)
    order = {key: i for i, key in enumerate(dict.fromkeys((row.stage, row.what) for row in compared))}
    result = []
    for (stage, what, released, seen, ours), runs in sorted(merged.items(), key=lambda item: order[item[0][:2]]):
        line = {"stage": stage, "what": what, "runs": "all" if stage == RAW else name(runs, every)}
        result.append({**line, "released": released, "seen": seen, **({"ours": True} if ours else {})})
    return result


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compact`` as a table without what neither does.

    Stages, runs and quantities that are alike come in one line, and what is as released is said once.
    """
    stages: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        released = row["released"] or "no such row"
        if (released, row["seen"]) != (NOTHING, NOTHING):
            key = (row["what"], row["runs"], released, row["seen"])
            stages.setdefault(key, []).append(row["stage"] + ("\\*" if row.get("ours") else ""))
    values: dict[tuple[str, str], list[str]] = {}
    for (what, runs, released, seen), alike in stages.items():
        value = seen if seen == released else f"released: {released}; here: {seen}"
        cell = value if runs == "all" else f"{runs}: {value}"
        values.setdefault((", ".join(dict.fromkeys(alike)), what), []).append(cell)
    quantities: dict[tuple[str, str], list[str]] = {}
    for (names, what), cells in values.items():
        quantities.setdefault((names, "; ".join(cells)), []).append(what)
    lines = [f"|{names}|{'; '.join(whats)}|{cell}|" for (names, cell), whats in quantities.items()]
    return "\n".join(["|stage|what|released and here|", "|---|---|---|", *lines]) + "\n"


def write_docs(rows: list[dict[str, Any]]) -> None:
    """Writes the rows to docs/rehearsal.json and between the marks of docs/method.md.

    Raises:
      UserError: the documentation lacks the marks.
    """
    text = DOCS.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{DOCS} lacks the marks {BEGIN} and {END}")
    head, rest = text.split(BEGIN)
    DOCS_ROWS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    DOCS.write_text(f"{head}{BEGIN}\n\n{markdown(rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    log(f"written: {DOCS_ROWS} and the table in {DOCS}")


def grouped(facts: Mapping[Run, list[tuple[str, Fact]]]) -> dict[str, Any]:
    """Facts by task, backbone and stage, in JSON types."""
    result: dict[str, Any] = {}
    for (task, backbone), noted in facts.items():
        commands = result.setdefault(task, {}).setdefault(backbone, {})
        for command, fact in noted:
            commands.setdefault(stage_of(command, fact), []).append(fact)
    return result
