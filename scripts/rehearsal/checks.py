"""Checks of the files of a run: scores, weights, labels and probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fada_jax.errors import UserError
from fada_jax.interop import exporting
from fada_jax.training import checkpoints

STEPS = 2
ROW_NAMES = ("source_only", "control", "colour_matching", "adapted", "self_distilled", "self_distilled_multi_scale")
STAGES = ("source", "control", "adaptation", "self_distillation")
# Share of pixels that must have the same label where two ways lead to it; ties may fall either way.
AGREEMENT = 0.999


def require(condition: Any, message: str) -> None:
    """Ends the rehearsal where a check fails.

    Raises:
      UserError: ``condition`` is false.
    """
    if not condition:
        raise UserError(message)


def agreement(first: np.ndarray, second: np.ndarray, pair: str) -> float:
    """Share of pixels with the same label.

    Raises:
      UserError: other sizes, or less than ``AGREEMENT``.
    """
    require(first.shape == second.shape, f"{pair} differ in size: {first.shape} and {second.shape}")
    share = float((first == second).mean())
    require(share >= AGREEMENT, f"{pair} are the same in {share:.4%} of the pixels, not in {AGREEMENT:.1%}")
    return share


def check_scores(workdir: Path) -> dict[str, Any]:
    """Every row exists and is scored at the label's size, and ``evaluate`` gives the recipe's last one.

    Raises:
      UserError: not so.
    """
    rows = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["rows"]
    names = tuple(row["name"] for row in rows)
    require(names == ROW_NAMES, f"{workdir}/results.json has the rows {names}")
    sizes = {row["scored_at"] for row in rows}
    require(sizes == {"2048x1024"}, f"{workdir}/results.json: scored at {sizes}")
    alone = json.loads((workdir / "scores.json").read_text(encoding="utf-8"))
    require(alone["iou"] == rows[-1]["iou"], f"{workdir}: evaluate and the recipe score the same model differently")
    return {"classes scored": len(alone["iou"]), "images scored": alone["num_images"]}


def check_probabilities(path: Path, label: np.ndarray) -> dict[str, Any]:
    """Probabilities sum to 1 and their argmax is the label; the file, a large one, is removed.

    Raises:
      UserError: not so.
    """
    probabilities = np.load(path)
    furthest = float(np.abs(probabilities.sum(-1) - 1).max())
    require(furthest < 1e-4 and probabilities.min() >= 0, f"{path}: probabilities sum to 1 within {furthest}")
    require(probabilities.shape[:2] == label.shape, f"{path} has shape {probabilities.shape}")
    require((probabilities.argmax(-1) == label).all(), f"{path}: its argmax is not the written label")
    path.unlink()
    return {"probabilities sum to 1 within": furthest}


def check_weights(workdir: Path, imagenet: Path) -> dict[str, Any]:
    """Every stage moved its parameters from those it began with, and has its checkpoint; D lives.

    Args:
      workdir, imagenet: of the run, and of the weights that it began with.

    Raises:
      UserError: not so.
    """
    models = {"imagenet": checkpoints.load_model(imagenet)}
    for stage in STAGES:
        steps = checkpoints.available_steps(workdir / stage)
        require(steps == [STEPS], f"{workdir / stage} has checkpoints at {steps}, expected at {[STEPS]}")
        models[stage] = checkpoints.load_model(workdir / stage)
    began_with = {"source": "imagenet", "control": "source", "adaptation": "source", "self_distillation": "imagenet"}
    for stage, parent in began_with.items():
        both, same = in_common(models[parent], models[stage])
        require(both >= 15, f"{workdir}: {parent} and {stage} have {both} arrays in common")
        require(not same, f"{workdir}: {stage} has {', '.join(same[:3])} as {parent} has it")
    # Two steps of so weak a loss do not reach every parameter.
    both, same = in_common(models["control"], models["adaptation"])
    require(len(same) < both, f"{workdir}: adaptation ends where control does, so its adversary did nothing")
    for stage in STAGES:
        frozen = models[stage].spec.norm == "frozen"
        first, second = (flat(models[name].batch_stats) for name in ("imagenet", stage))
        equal = [np.array_equal(first[key], second[key]) for key in first.keys() & second.keys()]
        require(
            all(equal) if frozen else not any(equal), f"{workdir / stage}: statistics of {stage} (frozen: {frozen})"
        )
    sections = exporting.export_sections(workdir / "adaptation")
    for key, value in sections["model_D"].items():
        require(np.any(value), f"{workdir}/adaptation: {key} of the discriminator is all zero")
    for moments in sections["optimizer_D"]["state"].values():
        require(np.any(moments["exp_avg"]), f"{workdir}/adaptation: part of the discriminator was never trained")
    return {"norm of the student": models["self_distillation"].spec.norm}


def in_common(first: checkpoints.Model, second: checkpoints.Model) -> tuple[int, list[str]]:
    """How many parameters two models both have, and which of them are equal; an untrained head does not count."""
    before, after = (flat(model.params) for model in (first, second))
    both = [key for key in before.keys() & after.keys() if first.class_set or "classifier" not in key]
    return len(both), sorted(key for key in both if np.array_equal(before[key], after[key]))


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a pytree by path."""
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(tree)}
