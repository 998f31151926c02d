"""Optimizers and schedules as released: torch-style SGD for F and C, Adam for D, poly decay that stops early."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

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
    classifier_multiplier: NonNegative = 10.0  # The classifier's rate over the feature extractor's.


def poly_schedule(learning_rate: float, schedule_steps: int, power: float) -> optax.Schedule:
    """``learning_rate * (1 - step / schedule_steps) ** power``, 0 from ``schedule_steps`` on."""
    return optax.polynomial_schedule(learning_rate, 0.0, power, schedule_steps)


def _transform(spec: OptimizerSpec, multiplier: float) -> optax.GradientTransformation:
    schedule = poly_schedule(spec.learning_rate * multiplier, spec.schedule_steps, spec.power)
    if spec.kind == "sgd":
        direction = optax.trace(decay=spec.momentum)
    else:
        direction = optax.scale_by_adam(b1=spec.b1, b2=spec.b2, eps=spec.eps)
    parts = [direction, optax.scale_by_learning_rate(schedule)]
    if spec.weight_decay:
        # As in PyTorch: decay joins the gradient before momentum.
        parts.insert(0, optax.add_decayed_weights(spec.weight_decay))
    return optax.chain(*parts)


def generator_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Optimizer of G: one rate for the feature extractor, ``classifier_multiplier`` times it for the classifier."""
    return optax.multi_transform(
        {"feature_extractor": _transform(spec, 1.0), "classifier": _transform(spec, spec.classifier_multiplier)},
        lambda params: {name: name if name == "feature_extractor" else "classifier" for name in params},
    )


def discriminator_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Optimizer of D."""
    return _transform(spec, 1.0)
