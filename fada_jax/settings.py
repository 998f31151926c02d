"""From a ConfigDict to the frozen dataclasses that the rest of the library takes, with every value checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fada_jax import classes
from fada_jax.errors import UserError
from fada_jax.methods import METHODS, Method
from fada_jax.models import BACKBONES, ModelSpec
from fada_jax.models.layers import NORMS
from fada_jax.optim import OptimizerSpec
from fada_jax.preprocessing import Preprocessing
from fada_jax.self_distillation import Selection

# Keys that may differ between the run that wrote a checkpoint and the one that goes on from it.
_FREE_ON_RESUME = (
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "data_dir",
    "damaged_records",
    "num_devices",
    "mesh",
    "eval_batch_size",
    "log_images",
    "wandb",
)


def check(config: ConfigDict) -> None:
    """Refuses values that cannot work.

    Raises:
      UserError: naming the key, its value and what is allowed.
    """
    try:
        classes.get_class_set(config.class_set)
    except ValueError as error:
        raise UserError(f"config.class_set: {error}") from error
    _one_of(config, "damaged_records", ("fail", "skip"))
    _one_of(config.model, "backbone", BACKBONES, "model.")
    _one_of(config.model, "norm", NORMS, "model.")
    _one_of(config.model, "dtype", ("float32", "bfloat16"), "model.")
    if config.model.remat and config.model.backbone == "vgg16":
        raise UserError("config.model.remat=True needs a ResNet: VGG-16 has no blocks to compute again")
    if config.loss_block_rows < 0:
        raise UserError(f"config.loss_block_rows={config.loss_block_rows} must not be negative")
    for key in (
        "total_steps",
        "batch_size",
        "accumulate_steps",
        "checkpoint_every",
        "log_every",
        "keep_checkpoints",
        "eval_batch_size",
    ):
        if config[key] < 1:
            raise UserError(f"config.{key}={config[key]} must be at least 1")
    if config.stage == "adversarial" and config.batch_size % 2:
        raise UserError(f"config.batch_size={config.batch_size} must be even: half source, half target")
    if config.lambda_adv < 0:
        raise UserError(f"config.lambda_adv={config.lambda_adv} must not be negative")
    if config.stage == "adversarial" and config.lambda_adv > 0:
        _one_of(config, "method", METHODS)
    if not 0 < config.pseudo_labels.keep <= 1:
        raise UserError(f"config.pseudo_labels.keep={config.pseudo_labels.keep} must be a share of (0, 1]")
    _one_of(config, "student_from", ("init_from", "source", "adversarial"))
    for name in ("source", "target", "eval"):
        if len(config[name].size) != 2 or min(config[name].size) < 8:
            raise UserError(
                f"config.{name}.size={tuple(config[name].size)} must be (width, height) of at least 8 pixels"
            )
    for name in ("generator_optimizer", "discriminator_optimizer"):
        _one_of(config[name], "kind", ("sgd", "adam"), f"{name}.")
        if config[name].schedule_steps < config.total_steps:
            raise UserError(
                f"config.{name}.schedule_steps={config[name].schedule_steps} is less than "
                f"config.total_steps={config.total_steps}: the learning rate would be 0 before the end"
            )


def _one_of(config: ConfigDict, key: str, allowed: Any, prefix: str = "") -> None:
    if config[key] not in allowed:
        raise UserError(f"config.{prefix}{key}={config[key]!r} must be one of {', '.join(allowed)}")


def model_spec(config: ConfigDict) -> ModelSpec:
    """Shapes of G."""
    values = {key: tuple(v) if isinstance(v, tuple | list) else v for key, v in config.model.items()}
    return ModelSpec(num_classes=classes.get_class_set(config.class_set).num_classes, **values)


def optimizer_spec(config: ConfigDict, network: str) -> OptimizerSpec:
    """Optimizer of ``network``, 'generator' or 'discriminator'."""
    return OptimizerSpec(**config[f"{network}_optimizer"])


def preprocessing(config: ConfigDict) -> Preprocessing:
    """Input normalisation."""
    values = config.preprocessing.to_dict()
    return Preprocessing(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def method(config: ConfigDict) -> Method:
    """The adversarial method; each takes its own fields from ``config.knowledge``."""
    kind = METHODS[config.method]
    return kind(**{field.name: config.knowledge[field.name] for field in dataclasses.fields(kind)})


def selection(config: ConfigDict) -> Selection:
    """Which pixels get a pseudo label."""
    return Selection(**config.pseudo_labels)


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config in JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def refuse_other_config(old: dict[str, Any], new: dict[str, Any], where: str | Path) -> None:
    """Refuses to go on in a workdir that belongs to another config.

    Raises:
      UserError: naming every key that matters, with both values.
    """
    before, now = flat(old), flat(new)
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.split(".")[0] not in _FREE_ON_RESUME
    ]
    if changed:
        raise UserError(f"{where} belongs to another config ({'; '.join(changed)}): use another --workdir")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as ``{"model.norm": ..., ...}``."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result
