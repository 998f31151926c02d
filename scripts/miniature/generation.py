"""Whole miniature data sets: checked, made by several processes, and moved to their place once complete."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from fada_jax import progress
from fada_jax.errors import UserError
from fada_jax.folders import making
from fada_jax.input_pipeline.workers import in_order
from fada_jax.scripts.miniature import files
from fada_jax.scripts.miniature.layouts import DATASETS, Counts, Task, plan

MARKER = "miniature.json"  # Written last into --out; --overwrite deletes only folders that hold it.
MIN_SIZE, MAX_SIZE = (64, 32), 2048
MAX_SHIFT = 1.25  # Beyond, some interpolated parameters change their sign.
DEFAULT_SHIFT = 1.25
MAX_IMAGES = 20_000
DEFAULT_COUNTS = Counts()


def make_all(root: Path, tasks: list[Task], workers: int) -> None:
    """Makes every image below ``root``, with progress on stderr."""
    for folder in {os.path.dirname(path) for task in tasks for path in (task.image, task.label) if path}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    made = in_order(functools.partial(files.write, root), tasks, workers)
    with contextlib.closing(made), progress.shown("", len(tasks)) as show:
        for done, _ in enumerate(made, 1):
            show(done)


def summary(tasks: list[Task]) -> str:
    """One line per split: images, their size, and how many have labels."""
    lines = []
    for _, group in itertools.groupby(tasks, lambda task: (task.dataset, task.seed[2])):
        split = list(group)
        folder = os.path.dirname(split[0].image)
        folder = os.path.dirname(folder) if split[0].dataset == "cityscapes" else folder  # Without the city.
        width, height = split[0].size
        lines.append(f"{folder}: {len(split)} images {width}x{height}, {sum(bool(t.label) for t in split)} labelled")
    return "\n".join(lines)


def check(
    datasets: Sequence[str], counts: Counts, size: tuple[int, int], seed: int, shift: float, workers: int
) -> None:
    """Raises a UserError for values that cannot be meant."""
    unknown = [name for name in datasets if name not in DATASETS]
    if unknown or not datasets:
        raise UserError(f"--datasets={','.join(datasets)}: choose from {','.join(DATASETS)}")
    if not all(low <= length <= MAX_SIZE for low, length in zip(MIN_SIZE, size, strict=True)):
        least = "x".join(map(str, MIN_SIZE))
        raise UserError(f"--size={size[0]}x{size[1]}: from {least} to {MAX_SIZE}x{MAX_SIZE}")
    if not 0 <= shift <= MAX_SHIFT:
        raise UserError(f"--shift={shift}: from 0 to {MAX_SHIFT}")
    if seed < 0:
        raise UserError(f"--seed={seed}: 0 or more")
    if workers < 1:
        raise UserError(f"--workers={workers}: 1 or more")
    for name, count in dataclasses.asdict(counts).items():
        if not 0 <= count <= MAX_IMAGES:
            raise UserError(f"--{name}_images={count}: from 0 to {MAX_IMAGES}")


def check_out(out: Path, overwrite: bool) -> None:
    """Refuses a folder that must not be made, or made anew.

    Raises:
      UserError: see above.
    """
    if out.parent == out:
        raise UserError(f"--out={out}: the root of the file system; name a folder to make")
    if out.is_file():
        raise UserError(f"--out={out}: a file; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise UserError(f"--out={out}: not empty and not made by this script; name another folder")
        if not overwrite:
            raise UserError(f"--out={out}: exists; name another folder or add --overwrite to make it anew")


def _replaceable(folder: Path) -> bool:
    """Whether ``folder`` may be replaced, once it was found that it shall be."""
    return folder.is_dir() and ((folder / MARKER).is_file() or not any(folder.iterdir()))


def generate(
    out: Path,
    datasets: tuple[str, ...] = DATASETS,
    counts: Counts = DEFAULT_COUNTS,
    size: tuple[int, int] = (128, 64),
    seed: int = 0,
    shift: float = DEFAULT_SHIFT,
    workers: int = 1,
    overwrite: bool = False,
) -> str:
    """Makes the datasets below ``out``, which appears only once complete; returns the summary.

    Raises:
      UserError: a value is out of range, or ``out`` is in use or cannot be written.
    """
    check(datasets, counts, size, seed, shift, workers)
    out = Path(os.path.abspath(os.path.expanduser(out)))
    tasks = plan(datasets, counts, size, seed, shift)
    if not tasks:
        raise UserError("nothing to make: every count of the chosen datasets is 0")
    facts = {"datasets": datasets, "counts": dataclasses.asdict(counts), "size": size, "seed": seed, "shift": shift}
    try:
        check_out(out, overwrite)
        with making(out, ours=_replaceable) as partial:
            make_all(partial, tasks, workers)
            (partial / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror or error}") from error
    return summary(tasks)
