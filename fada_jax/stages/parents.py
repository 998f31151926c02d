"""The models that a stage is made from: loaded, refused where they do not fit, and brought into its layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fada_jax import distributed, files
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.methods import States
from fada_jax.methods.cyclegan import SEGMENTER
from fada_jax.models import interchange
from fada_jax.stages import workdirs
from fada_jax.stages.program import fresh_states
from fada_jax.stored import Parent
from fada_jax.training import checkpoints
from fada_jax.training.states import TrainState, replace_weights


def load_parents(config: Config, *, needs_teacher: bool) -> dict[str, checkpoints.Model]:
    """The models that a stage is made from, by the config key that names them.

    Args:
      config: of the stage.
      needs_teacher: the stage labels its images with ``teacher_from``, which must then be named.

    Raises:
      UserError: one is missing or does not fit the config.
    """
    parents = {}
    if config.init_from:
        parents["init_from"] = load_compatible(config, config.init_from, "config.init_from", any_head=_any_head(config))
    if needs_teacher or (config.kind.pseudo_labels and config.teacher_from):
        parents["teacher_from"] = load_teacher(config)
    return parents


def _any_head(config: Config) -> bool:
    """Whether ``init_from`` need not have a trained classifier: what labels images needs one."""
    return not config.kind.translates


def load_teacher(config: Config) -> checkpoints.Model:
    """The adapted model of ``teacher_from``.

    Raises:
      UserError: none is named, or it does not fit the config.
    """
    if not config.teacher_from:
        raise UserError("config.teacher_from is empty: name the workdir of the model that labels the target")
    return load_compatible(config, config.teacher_from, "config.teacher_from")


def load_compatible(config: Config, workdir: str, key: str, *, any_head: bool = False) -> checkpoints.Model:
    """The last model of ``workdir``, refused where it cannot serve this config.

    Args:
      config: of the stage.
      workdir: of the model.
      key: config key to name in errors.
      any_head: accept weights without a trained classifier.

    Raises:
      UserError: no checkpoint, or another class set, preprocessing or network; both values are named.
    """
    try:
        model = checkpoints.load_model(workdir)
    except UserError as error:
        raise UserError(f"{key}: {error}{_hint(files.place(workdir))}") from error
    pairs: list[tuple[str, Any, Any]] = [("preprocessing", model.preprocessing, config.preprocessing)]
    if model.class_set or not any_head:
        name, names = (model.class_set.name, model.class_set.names) if model.class_set else ("", ())
        pairs += [("class set", name, config.classes.name), ("classes", names, config.classes.names)]
    agreed = interchange(model.spec, config.model)
    # Which branches take part says nothing about a classifier that nobody trained.
    pairs += agreed if model.class_set else [pair for pair in agreed if pair[0] != "model.active_rates"]
    for name, stored, wanted in pairs:
        if stored != wanted:
            raise UserError(f"{key}={workdir}: its {name} is {stored!r}, this config's is {wanted!r}")
    return model


def _hint(path: Path) -> str:
    """What may have been meant by a path that is no workdir of a stage."""
    if path.is_file():
        return "; it is a file: python -m fada_jax.convert_weights import makes a workdir of it"
    stages = [name for name in workdirs.stages_of(path) if workdirs.segments(workdirs.stage_folder(path, name))]
    if stages:
        folders = ", ".join(str(workdirs.stage_folder(path, name)) for name in stages)
        return f"; it is a recipe's: name one of its stages, {folders}"
    return ""


def same_parents(
    config: Config, before: Mapping[str, Any], begun_with: Mapping[str, Parent], workdir: Path
) -> dict[str, str]:
    """Refuses to go on from weights or labels whose origin has changed since the workdir began.

    Args:
      config: of the stage.
      before: config that the workdir began with, as a plain dict.
      begun_with: the models that it began with, by config key.
      workdir: of the stage.

    Returns:
      the config's keys whose folders hold the weights that the workdir began with, spelled as they were then.

    Raises:
      UserError: other weights lie there now.
    """
    same = {}
    for key, parent in begun_with.items():
        folder = getattr(config, key, "")
        if not folder or not checkpoints.available_steps(folder):
            continue  # What is gone cannot be compared, and what is renamed differs from the stored config.
        model = checkpoints.load_model(folder)
        if model.digest != parent.digest:
            raise UserError(
                f"{workdir} was made from step {parent.step} of config.{key}={folder}, where other weights lie "
                f"now (step {model.step}): remove {workdir} to have it made again, or use another --workdir"
            )
        same[key] = before[key]
    return same


def initial_states(config: Config, mesh: jax.sharding.Mesh, model: checkpoints.Model | None = None) -> States:
    """States at step 0 on the mesh: random, then the weights of ``model`` or else of ``init_from``.

    Translators start from random weights: these are those of the frozen model of their semantic loss.

    Raises:
      UserError: the weights do not fit the config.
    """
    if model is None and config.init_from:
        model = load_compatible(config, config.init_from, "config.init_from", any_head=_any_head(config))
    states = fresh_states(config, mesh)
    if model is None:
        return states
    name = SEGMENTER if config.kind.translates else "generator"
    fresh = states[name].params
    # A classifier that nobody trained stays behind.
    own = model.params if model.class_set else {"feature_extractor": model.params["feature_extractor"]}
    weights = _in_layout(states[name], _with_heads(own, fresh), model.batch_stats)
    shardings = distributed.by_size(mesh, states)
    states[name] = replace_weights(states[name], *weights)
    return jax.device_put(states, shardings)


def _with_heads(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Weights with the classifiers of ``fresh``, whose own serve where there are none; others are left out.

    Of two classifiers the sum predicts, and it is one classifier with the sum of their kernels.
    """
    params = dict(params)
    if "second_classifier" in params.keys() - fresh.keys():
        params["classifier"] = jax.tree.map(np.add, params["classifier"], params["second_classifier"])
    return {name: params.get(name, value) for name, value in fresh.items()}


def _in_layout(state: TrainState, params: Any, batch_stats: Any) -> tuple[Any, Any]:
    """Weights in the layout of ``state``: live batch norm has its scale and bias among the parameters."""
    wanted: Any = jax.tree.structure({"params": state.params, "batch_stats": state.collections.get("batch_stats", {})})
    if wanted == jax.tree.structure({"params": params, "batch_stats": batch_stats}):
        return params, batch_stats
    held = jax.tree.leaves_with_path(state.collections.get("batch_stats", {}))
    live = not any(path[-1].key == "scale" for path, _ in held)
    extractor, statistics = _move_norms(params["feature_extractor"], batch_stats["feature_extractor"], live=live)
    return {**params, "feature_extractor": extractor}, {"feature_extractor": statistics}


def _move_norms(params: Any, statistics: Any, *, live: bool) -> tuple[dict, dict]:
    """Moves ``scale`` and ``bias`` of every batch norm into (live) or out of (frozen, statistics) the parameters."""
    params, moved = dict(params), {}
    for name, value in statistics.items():
        if "var" in value:
            tensors = {**value, **params.pop(name, {})}
            names = ("mean", "var") if live else ("scale", "bias", "mean", "var")
            moved[name] = {key: tensors[key] for key in names}
            if live:
                params[name] = {key: tensors[key] for key in ("scale", "bias")}
        else:
            params[name], moved[name] = _move_norms(params[name], value, live=live)
    return params, moved
