"""Bounds on the sizes of classes: the distribution over pixels that is nearest to a prediction within them.

Pathak et al., "Constrained Convolutional Neural Networks for Weakly Supervised Segmentation" (ICCV 2015): the problem
has a dual with one multiplier a bound, whatever the number of pixels, and its solution tilts the prediction:
``q_i(c)`` is proportional to ``p_i(c) exp(multiplier(c))``. They follow the dual's gradient; Newton's steps, projected
likewise, reach the same point in some dozens of passes over the pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# What a unit beyond an upper bound costs, which has no slack. It tilts a class by e^-100 at most, which is beyond what
# float32 tells from 0, and where no distribution is within the upper bounds it makes the nearest to them a solution.
HARD = 100.0
# When to stop: at this error, after so many passes, or after so many that brought nothing.
_TOLERANCE, _PASSES, _PATIENCE = 3e-8, 100, 6
_FRACTIONS = np.array([1.0, 0.5, 0.25, 2**-4, 2**-6, 2**-9, 2**-13], np.float32)


class Bounds(NamedTuple):
    """On the mean probability of each class, float32 [K] each; a lower one above its upper one counts as that.

    Attributes:
      lower, upper: bounds.
      present: bool [K]; other classes get the probability 0.
    """

    lower: jax.Array
    upper: jax.Array
    present: jax.Array


class _At(NamedTuple):
    """The dual at multipliers [K]: its value, and the gradient as multipliers grow and as they shrink."""

    value: jax.Array
    up: jax.Array
    down: jax.Array


class _Place(NamedTuple):
    """Multipliers [K], the dual there, and the largest part of its gradient that may be followed."""

    multipliers: jax.Array
    at: _At
    error: jax.Array


def tilted(log_p: jax.Array, multipliers: jax.Array) -> jax.Array:
    """``q`` proportional to ``p exp(multipliers)``, float32 [h, w, K]."""
    return jax.nn.softmax(log_p + multipliers)


def nearest(log_p: jax.Array, bounds: Bounds, slack: float = HARD) -> jax.Array:
    """Minimises ``mean_i KL(q_i || p_i) + slack sum_c xi_c`` under ``lower - xi <= mean_i q_i <= upper``, ``xi >= 0``.

    Args:
      log_p: logarithms of the prediction, float32 [h, w, K].
      bounds: of the classes. Where none is present the prediction itself comes back.
      slack: what a unit below a lower bound costs.

    Returns:
      q, float32 [h, w, K]; no gradient passes through it.
    """
    log_p, bounds = jax.lax.stop_gradient((log_p.astype(jnp.float32), bounds))
    none = ~jnp.any(bounds.present)
    inside = jnp.where(bounds.present | none, log_p, -jnp.inf)
    bounds = bounds._replace(lower=jnp.minimum(bounds.lower, bounds.upper))
    zeros = jnp.zeros(log_p.shape[-1], jnp.float32)
    at = _dual(inside, zeros, bounds)
    here = _Place(zeros, at, jnp.max(jnp.abs(_gradient(zeros, at, bounds, slack))))

    def unfinished(carry: Any) -> jax.Array:
        _, best, passes, idle = carry
        return (best.error > _TOLERANCE) & (passes < _PASSES) & (idle < _PATIENCE) & ~none

    def advance(carry: Any) -> Any:
        here, best, passes, idle = carry
        here = _advanced(inside, here, bounds, slack)
        rounding = _rounding(best)
        gain = here.at.value - best.at.value
        better = (gain > rounding) | ((gain >= -rounding) & (here.error < best.error))
        best = jax.tree.map(lambda x, y: jnp.where(better, x, y), here, best)
        return here, best, passes + 1, jnp.where(better, 0, idle + 1)

    best = jax.lax.while_loop(unfinished, advance, (here, here, jnp.int32(0), jnp.int32(0)))[1]
    return tilted(inside, best.multipliers)


def _mean(x: jax.Array) -> jax.Array:
    """[h, w, ...] -> [...]; first over rows, which keeps the rounding of many pixels small."""
    return x.mean(axis=1).mean(axis=0)


def _dual(log_p: jax.Array, multipliers: jax.Array, bounds: Bounds) -> _At:
    tilts = log_p + multipliers
    share = _mean(jax.nn.softmax(tilts))
    costs = jnp.where(multipliers > 0, bounds.lower, bounds.upper) * multipliers
    value = jnp.sum(jnp.where(bounds.present, costs, 0)) - _mean(jax.nn.logsumexp(tilts, axis=-1))
    return _At(value, bounds.lower - share, bounds.upper - share)


def _rounding(place: _Place) -> jax.Array:
    """Values of the dual that are as close are the same: they are made of numbers as large as the multipliers."""
    return 1e-6 * (1 + jnp.abs(place.at.value) + jnp.max(jnp.abs(place.multipliers)))


def _gradient(multipliers: jax.Array, at: _At, bounds: Bounds, slack: float) -> jax.Array:
    """The dual's gradient [K], 0 where a multiplier may not follow it."""
    # At 0 the dual has a corner: one leaves it upwards below the lower bound, downwards above the upper one.
    corner = jnp.maximum(at.up, 0) + jnp.minimum(at.down, 0)
    slope = jnp.where(multipliers > 0, at.up, jnp.where(multipliers < 0, at.down, corner))
    ends = ((multipliers >= slack) & (slope > 0)) | ((multipliers <= -HARD) & (slope < 0))
    return jnp.where(bounds.present & ~ends, slope, 0)


def _advanced(log_p: jax.Array, here: _Place, bounds: Bounds, slack: float) -> _Place:
    """One pass."""
    multipliers, at, error = here
    slope = _gradient(multipliers, at, bounds, slack)
    upwards = (multipliers > 0) | ((multipliers == 0) & (slope > 0))
    # No multiplier changes its sign within a pass: beyond 0 the other bound holds.
    low, high = jnp.where(upwards, 0, -HARD), jnp.where(upwards, slack, 0)
    free = slope != 0
    q = tilted(log_p, multipliers)
    products = jnp.einsum("hwc,hwd->hcd", q, q, precision=jax.lax.Precision.HIGHEST) / q.shape[1]
    curvature = jnp.diag(_mean(q)) - products.mean(axis=0)
    damped = curvature + jnp.eye(len(slope)) * (1e-6 * jnp.max(jnp.diag(curvature)) + 1e-9)
    newton = jnp.linalg.solve(jnp.where(free[:, None] & free, damped, jnp.eye(len(slope))), slope)
    # Where the prediction is sure there is hardly any curvature: then fractions of the way to the bounds are tried.
    newton *= jnp.minimum(1, 2 * HARD / jnp.maximum(jnp.max(jnp.abs(newton)), 1e-9))
    # The curvature is at most 1/2: a step of 2 along the gradient never descends.
    steps = jnp.concatenate([_FRACTIONS[:, None] * newton, 2 * slope[None]])
    tried = jnp.clip(multipliers + jnp.where(free, steps, 0), low, high)
    values = jax.vmap(lambda x: _dual(log_p, x, bounds))(tried)
    errors = jax.vmap(lambda x, at: jnp.max(jnp.abs(_gradient(x, at, bounds, slack))))(tried, values)
    # Close to the solution values differ by less than rounding, and the error tells.
    level = values.value[0] >= at.value - _rounding(here)
    chosen = jnp.where(level & (errors[0] < 0.5 * error), 0, jnp.argmax(values.value))
    return _Place(tried[chosen], jax.tree.map(lambda x: x[chosen], values), errors[chosen])
