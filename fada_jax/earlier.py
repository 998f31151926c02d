"""What earlier versions stored as a config, under the names of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STREAMS = ("source", "target", "eval")
_NETWORKS = ("generator", "discriminator")
# Keys that earlier versions did not have.
ADDED = (
    *("accumulate_steps", "damaged_records", "eval_every", "fidelity", "keep_every", "log_images", "mesh", "options"),
    *(
        "fourier_beta",
        "loss_block_rows",
        "on_non_finite",
        "pseudo_labels",
        "recipe",
        "reduce_dtype",
        "rounds",
        "student_from",
    ),
    *("wandb", *(f"pseudo_labels.{key}" for key in ("balanced", "cap", "spatial_prior"))),
    *("model.remat", "model.variant", "model.active_rates", "model.heads", "discriminator.patch_width"),
    *(f"{name}_optimizer.{key}" for key in ("warmup_steps", "lineage_repeats", "constant_steps") for name in _NETWORKS),
    *(f"{name}.{key}" for name in STREAMS for key in ("data_dir", "jitter_first", "sampling", "sampling_temperature")),
)


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config whose first keys have the names of today."""
    values = dict(values)
    knowledge = values.get("knowledge")
    if isinstance(knowledge, Mapping) and "kind" in knowledge:
        values["knowledge"] = {key: value for key, value in knowledge.items() if key != "kind"}
        if values.get("method") == "fada":  # Which took its kind of class knowledge from there.
            values["method"] = "fada" if knowledge["kind"] == "soft" else knowledge["kind"]
    if "student_from_teacher" in values:
        values["student_from"] = "adaptation" if values.pop("student_from_teacher") else "init_from"
    return values


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``under`` that ``over``, group by group, does not replace."""
    result = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], Mapping) and isinstance(over[key], Mapping):
            result[key] = merged(under[key], over[key])
    return result
