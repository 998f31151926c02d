"""From a ConfigDict to the frozen dataclasses that the rest of the library takes, with every value checked."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fada_jax import classes, files
from fada_jax.configs import base
from fada_jax.errors import UserError
from fada_jax.methods import METHODS, Method
from fada_jax.models import BACKBONES, DTYPES, ModelSpec, compute_dtype
from fada_jax.models.layers import NORMS
from fada_jax.optim import OptimizerSpec
from fada_jax.preprocessing import Preprocessing
from fada_jax.self_distillation import Selection

_STREAMS = ("source", "target", "eval")
_OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")
# Allowed types by the type of a key's default.
_TYPES = {float: (float, int), tuple: (tuple, list)}
# Least and greatest value -> keys.
_RANGES: dict[tuple[float, float], tuple[str, ...]] = {
    (1, math.inf): (
        *("total_steps", "batch_size", "accumulate_steps", "checkpoint_every", "keep_checkpoints", "log_every"),
        *("eval_batch_size", "model.stem_width"),
    ),
    (0, math.inf): (
        *("loss_block_rows", "keep_every", "eval_every", "num_devices", "lambda_adv", "log_images"),
        *(f"{stream}.{key}" for stream in _STREAMS for key in ("brightness", "contrast", "saturation")),
        *(f"{net}.{key}" for net in _OPTIMIZERS for key in ("learning_rate", "power", "weight_decay", "eps")),
        *(f"{net}.classifier_multiplier" for net in _OPTIMIZERS),
    ),
    (0, 1): (
        *("knowledge.clip", "knowledge.threshold"),
        *(f"{net}.{key}" for net in _OPTIMIZERS for key in ("momentum", "b1", "b2")),
    ),
    (0, 0.5): tuple(f"{stream}.hue" for stream in _STREAMS),
    (1e-6, math.inf): ("knowledge.temperature", "preprocessing.scale"),
    (0, 2**31 - 1): ("seed",),
}

# Keys that may differ between the run that wrote a checkpoint and the one that goes on from it.
_FREE_ON_RESUME = (
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "eval_every",
    "on_non_finite",
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
    _same_keys(config, base.get_config(base.parse("")))
    for key in ("data_dir", "init_from", "teacher_from"):
        files.local(config[key], f"config.{key}")
    try:
        classes.get_class_set(config.class_set)
    except ValueError as error:
        raise UserError(f"config.class_set: {error}") from error
    _one_of(config, "stage", base.STAGES)
    _one_of(config, "method", base.METHODS)
    _one_of(config, "on_non_finite", ("stop", "skip"))
    _one_of(config, "damaged_records", ("fail", "skip"))
    _one_of(config.model, "backbone", BACKBONES, "model.")
    _one_of(config.model, "norm", NORMS, "model.")
    _one_of(config.model, "dtype", DTYPES, "model.")
    _one_of(config.model, "output_stride", (4, 8, 16, 32), "model.")
    _one_of(config.preprocessing, "channel_order", ("RGB", "BGR"), "preprocessing.")
    for (low, high), keys in _RANGES.items():
        for key in keys:
            group, _, name = key.rpartition(".")
            value = (config[group] if group else config)[name]
            if not low <= value <= high:
                at_most = f" and at most {high}" if math.isfinite(high) else ""
                raise UserError(f"config.{key}={value} must be at least {low:g}{at_most}")
    if config.model.remat and config.model.backbone == "vgg16":
        raise UserError("config.model.remat=True needs a ResNet: VGG-16 has no blocks to compute again")
    if config.stage == "adversarial" and config.batch_size % 2:
        raise UserError(f"config.batch_size={config.batch_size} must be even: half source, half target")
    if config.stage == "adversarial" and config.lambda_adv > 0:
        _one_of(config, "method", METHODS)
    if not 0 < config.pseudo_labels.keep <= 1:
        raise UserError(f"config.pseudo_labels.keep={config.pseudo_labels.keep} must be a share of (0, 1]")
    _one_of(config, "student_from", ("init_from", "source", "adversarial"))
    if config.eval_every % config.checkpoint_every:
        raise UserError(
            f"config.eval_every={config.eval_every} must be a multiple of config.checkpoint_every="
            f"{config.checkpoint_every}: what is scored is a checkpoint"
        )
    _numbers(config.model, "aspp_rates", 1, range(1, 100), "model.")
    _numbers(config.discriminator, "widths", 1, (2,), "discriminator.")
    _numbers(config, "multi_scale", 0.1, range(1, 100))
    _numbers(config.preprocessing, "mean", -math.inf, (3,), "preprocessing.")
    _numbers(config.preprocessing, "std", 1e-6, (3,), "preprocessing.")
    stages = 6 if config.model.backbone == "vgg16" else 4
    _numbers(config.model, "stage_sizes", 1, (0, stages), "model.")
    _numbers(config.model, "widths", 1, (0, stages), "model.")
    for name in _STREAMS:
        _numbers(config[name], "size", 8, (2,), f"{name}.", "(width, height) of at least 8 pixels")
        _numbers(config[name], "crop", 8, (0, 2), f"{name}.", "() or (width, height) of at least 8 pixels")
        _numbers(config[name], "scale", 0.01, (0, 2), f"{name}.", "() or (low, high) of positive factors")
        if config[name].scale and config[name].scale[0] > config[name].scale[1]:
            raise UserError(f"config.{name}.scale={tuple(config[name].scale)} must be (low, high)")
    for name in _OPTIMIZERS:
        _one_of(config[name], "kind", ("sgd", "adam"), f"{name}.")
        if config[name].schedule_steps < config.total_steps:
            raise UserError(
                f"config.{name}.schedule_steps={config[name].schedule_steps} is less than "
                f"config.total_steps={config.total_steps}: the learning rate would be 0 before the end"
            )


def _same_keys(config: Any, wanted: Any, prefix: str = "config") -> None:
    """Refuses keys that ``configs/base.py`` does not have, lacks of them, and values of another type."""
    for key in [*config, *wanted]:
        name = f"{prefix}.{key}"
        if key not in wanted:
            raise UserError(f"{name} is no key of configs/base.py: correct its spelling or take it out")
        if key not in config:
            raise UserError(f"{name} is missing: start from configs/base.py, which documents it")
        value, like = config[key], wanted[key]
        if isinstance(like, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(f"{name}={value!r} must be a group of keys, as in configs/base.py")
            _same_keys(value, like, name)
        # A whole number will do for a float, but True is no number.
        elif isinstance(value, bool) != isinstance(like, bool) or not isinstance(
            value, _TYPES.get(type(like), type(like))
        ):
            raise UserError(f"{name}={value!r} must be of type {type(like).__name__}, as in configs/base.py")


def _numbers(config: ConfigDict, key: str, low: float, counts: Any, prefix: str = "", what: str = "") -> None:
    """Refuses a sequence of another length than ``counts`` allow, or with anything but numbers from ``low`` on."""
    values = config[key]
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and low <= x < math.inf for x in values)
    if len(values) not in counts or not numbers:
        lengths = " or ".join(map(str, counts)) if len(counts) < 4 else "one or more"
        what = what or f"{lengths} numbers" + (f" of at least {low:g}" if math.isfinite(low) else "")
        raise UserError(f"config.{prefix}{key}={tuple(values)} must be {what}")


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
    for values in (before, now):
        # 'auto' and what it means here are the same.
        values["model.dtype"] = compute_dtype(values.get("model.dtype", "auto"))
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        # A key that an earlier version did not have is no contradiction.
        for key in sorted(before)
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
