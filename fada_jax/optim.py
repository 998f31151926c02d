"""Optimizers and schedules as released: torch-style SGD for F and C, Adam for D, poly decay that stops early."""

from __future__ import annotations

import dataclasses

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """One network's optimizer.

    Attributes:
      kind: 'sgd' (torch: decay added to the gradient, then momentum, then the rate) or 'adam'.
      learning_rate: rate at step 0.
      schedule_steps: length of the poly decay. The released code decays over more steps than it runs, so the rate
        never reaches 0.
      power: exponent of the poly decay.
      weight_decay: L2 coefficient, added to the gradient of every trainable tensor.
      momentum: of SGD.
      b1, b2, eps: of Adam.
      classifier_multiplier: factor on the rate of the classifier C.
    """

    kind: str = "sgd"
    learning_rate: float = 2.5e-4
    schedule_steps: int = 62_500
    power: float = 0.9
    weight_decay: float = 5e-4
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    classifier_multiplier: float = 10.0


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
        parts.insert(0, optax.add_decayed_weights(spec.weight_decay))
    return optax.chain(*parts)


def generator_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Optimizer of G: one rate for the feature extractor, ``classifier_multiplier`` times it for the classifier."""
    return optax.multi_transform(
        {"feature_extractor": _transform(spec, 1.0), "classifier": _transform(spec, spec.classifier_multiplier)},
        lambda params: {name: name for name in params},
    )


def discriminator_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Optimizer of D."""
    return _transform(spec, 1.0)
