"""Optimizers and schedules as released: torch-style SGD for F and C, Adam for D, poly decay that stops early."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from fada_jax.errors import UserError
from fada_jax.models import ModelSpec
from fada_jax.models.resnet import RESNETS
from fada_jax.ranges import NonNegative, Share, Whole


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """Optimizer of one network; the defaults are those of the released source stage."""

    kind: Literal["sgd", "adam"] = "sgd"  # 'sgd' as in PyTorch, or 'adam'.
    learning_rate: NonNegative = 5e-4  # At step 0. Paper: 2.5e-4 in every stage.
    schedule_steps: Whole = 31_250  # Length of the poly decay, longer than the run: the rate never reaches 0.
    power: NonNegative = 0.9  # Exponent of the poly decay.
    weight_decay: NonNegative = 5e-4  # L2, added to the gradient of every trainable tensor. Paper: 1e-4.
    momentum: Share = 0.9  # SGD.
    b1: Share = 0.9  # Adam, decay of the mean.
    b2: Share = 0.99  # Adam, decay of the variance.
    eps: NonNegative = 1e-8  # Adam.
    classifier_multiplier: NonNegative = 10.0  # The classifiers' rate over the feature extractor's.
    warmup_steps: Whole = 0  # The rate rises linearly from 0 first (CLAN).
    lineage_repeats: bool = False  # F steps once for each time that AdaptSegNet's list names a parameter.
    constant_steps: Whole = 0  # The rate decays after these (CycleGAN).


def poly_schedule(learning_rate: float, schedule_steps: int, power: float, constant_steps: int = 0) -> optax.Schedule:
    """``learning_rate * (1 - step / schedule_steps) ** power``, 0 from ``schedule_steps`` on.

    With ``constant_steps`` the rate stays for so many, and decays over the others.
    """
    return optax.polynomial_schedule(learning_rate, 0.0, power, schedule_steps - constant_steps, constant_steps)


def warmed_up(schedule: optax.Schedule, learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """``learning_rate * step / warmup_steps`` for the first steps, then ``schedule`` at the step it is by then."""
    if not warmup_steps:
        return schedule
    return lambda step: jnp.where(step < warmup_steps, learning_rate * (step / warmup_steps), schedule(step))


def _transform(
    spec: OptimizerSpec, multiplier: float, decays: Callable[[Any], bool] | None = None
) -> optax.GradientTransformation:
    """One group's optimizer; ``decays``: of the path of a parameter, None: all decay."""
    rate = spec.learning_rate * multiplier
    decaying = poly_schedule(rate, spec.schedule_steps, spec.power, spec.constant_steps)
    schedule = warmed_up(decaying, rate, spec.warmup_steps)
    if spec.kind == "sgd":
        direction = optax.trace(decay=spec.momentum)
    else:
        direction = optax.scale_by_adam(b1=spec.b1, b2=spec.b2, eps=spec.eps)
    parts = [direction, optax.scale_by_learning_rate(schedule)]
    if spec.weight_decay:
        # As in PyTorch: decay joins the gradient before momentum.
        decay = _decay(spec.weight_decay, decays) if decays else optax.add_decayed_weights(spec.weight_decay)
        parts.insert(0, decay)
    return optax.chain(*parts)


def _decay(weight_decay: float, decays: Callable[[Any], bool]) -> optax.GradientTransformation:
    """``optax.add_decayed_weights`` of some parameters, with the same empty state."""

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, g, p: g + weight_decay * p if decays(path) else g, updates, params)

    return optax.stateless(update)


def _repeats(path: Any) -> int:
    """How often AdaptSegNet's list names a parameter of the ResNet: once for each module around it, but the network."""
    names = [str(entry.key) for entry in path]
    if any(name.startswith("downsample_") for name in names):
        return 4  # The stage, the block, the shortcut, the convolution.
    return 3 if any(re.fullmatch(r"layer\d+_\d+", name) for name in names) else 1


def _where_due(turn: int, repeats: Any, new: Any, old: Any) -> Any:
    """The arrays of ``new`` whose parameters have a step in this turn, and the others of ``old``."""
    return jax.tree.map(lambda count, a, b: a if count >= turn else b, repeats, new, old)


def _repeated(once: optax.GradientTransformation) -> optax.GradientTransformation:
    """``once``, a chain of SGD, with as many steps of each parameter as ``_repeats`` says, all of the same gradient.

    Each step decays with the parameter as the one before left it, and the momentum is that of all of them: what
    PyTorch's SGD does with a list that names a parameter several times. The schedule makes one step.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        repeats = jax.tree.map_with_path(lambda path, _: _repeats(path), updates)
        total, current, after = jax.tree.map(jnp.zeros_like, updates), state, state
        for turn in range(1, 5):
            chosen = functools.partial(_where_due, turn, repeats)
            step, after = once.update(updates, current, optax.apply_updates(params, total))
            total = chosen(jax.tree.map(jnp.add, total, step), total)
            # What is no momentum, the schedule's count, stays until the last turn.
            current = tuple(
                old._replace(trace=chosen(new.trace, old.trace)) if isinstance(old, optax.TraceState) else old
                for new, old in zip(after, current, strict=True)
            )
        counted = (old if isinstance(old, optax.TraceState) else new for new, old in zip(after, current, strict=True))
        return total, tuple(counted)

    return optax.GradientTransformation(once.init, update)


def generator_optimizer(spec: OptimizerSpec, model: ModelSpec | None = None) -> optax.GradientTransformation:
    """Optimizer of G: one rate for the feature extractor, ``classifier_multiplier`` times it for all classifiers.

    Args:
      spec: of the optimizer.
      model: of G; branches of its classifiers that take no part stay as they are. None: all take part.
    """
    decays = None
    if model and model.active_branches < len(model.aspp_rates):
        idle = {f"conv{i}" for i in range(model.active_branches, len(model.aspp_rates))}
        decays = lambda path: idle.isdisjoint(str(entry.key) for entry in path)  # noqa: E731
    extractor = _transform(spec, 1.0)
    return optax.multi_transform(
        {
            "feature_extractor": _repeated(extractor) if spec.lineage_repeats else extractor,
            "classifier": _transform(spec, spec.classifier_multiplier, decays),
        },
        lambda params: {name: name if name == "feature_extractor" else "classifier" for name in params},
    )


def discriminator_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Optimizer of D, and of every network that has one rate."""
    return _transform(spec, 1.0)


def check_optimizers(
    generator: OptimizerSpec, discriminator: OptimizerSpec, model: ModelSpec, total_steps: int
) -> None:
    """Refuses optimizers that do not serve a stage of ``total_steps`` of ``model``, under their names in a config.

    Raises:
      UserError: naming the key and why.
    """
    if discriminator.lineage_repeats:
        raise UserError("config.discriminator_optimizer.lineage_repeats=True: only G's parameters repeat")
    if generator.lineage_repeats and (generator.kind != "sgd" or model.backbone not in RESNETS):
        raise UserError("config.generator_optimizer.lineage_repeats=True needs kind='sgd' and a ResNet")
    for name, spec in (("generator", generator), ("discriminator", discriminator)):
        if spec.schedule_steps < total_steps:
            raise UserError(
                f"config.{name}_optimizer.schedule_steps={spec.schedule_steps} is less than config.total_steps="
                f"{total_steps}: the learning rate would be 0 before the end"
            )
        if spec.constant_steps >= spec.schedule_steps:
            raise UserError(
                f"config.{name}_optimizer.constant_steps={spec.constant_steps} must be less than its schedule_steps="
                f"{spec.schedule_steps}, over the rest of which the rate decays"
            )
