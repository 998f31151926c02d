"""The training loop: any iterator of batches in, states out; nothing is fetched from the device between log lines."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from fada_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """How far a loop runs and how often it reports.

    Attributes:
      start, total: first step and the number of steps in all.
      log_every, checkpoint_every: steps between reports and between checkpoints; the last step always has both.
    """

    start: int
    total: int
    log_every: int
    checkpoint_every: int


def prefetch(batches: Iterable[Any], put: Callable[[Any], Any], depth: int = 2) -> Iterator[Any]:
    """Batches placed on the device ``depth`` ahead of their use."""
    iterator = iter(batches)
    queue = collections.deque(put(batch) for batch in itertools.islice(iterator, depth))
    while queue:
        yield queue.popleft()
        queue.extend(put(batch) for batch in itertools.islice(iterator, 1))


def fit(
    states: Any,
    step_fn: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    batches: Iterable[Any],
    plan: Plan,
    *,
    on_log: Callable[[int, dict[str, float]], None],
    on_checkpoint: Callable[[int, Any], None],
    should_stop: Callable[[int], bool] = lambda step: False,
) -> tuple[Any, int]:
    """Runs ``step_fn(states, batch) -> (states, metrics)`` from ``plan.start`` to ``plan.total``.

    Args:
      states: pytree of the step; donated by the caller's ``jax.jit``.
      step_fn: compiled step.
      batches: at least ``total - start`` batches, placed on the device.
      plan: see ``Plan``.
      on_log: called with the step and the mean of every metric since the last call, plus ``steps_per_second`` and
        ``data_wait`` (share of the time spent waiting for batches).
      on_checkpoint: called with the step and the states; the states must be copied before it returns.
      should_stop: asked after each step, with its number; when true a checkpoint is made and the loop ends early.

    Returns:
      states, and the number of steps done in all.

    Raises:
      UserError: a metric became NaN or infinite, or the batches ran out.
    """
    iterator = iter(batches)
    pending: list[dict[str, jax.Array]] = []
    since, waited = time.perf_counter(), 0.0
    step = plan.start
    while step < plan.total:
        asked = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            raise UserError(f"the input ended after {step} of {plan.total} steps")
        waited += time.perf_counter() - asked
        states, metrics = step_fn(states, batch)
        pending.append(metrics)
        step += 1
        stopping = should_stop(step)
        if step % plan.log_every == 0 or step == plan.total or stopping:
            fetched = jax.device_get(pending)
            means = {key: float(np.mean([m[key] for m in fetched])) for key in fetched[0]}
            _refuse_non_finite(fetched, step)
            elapsed = time.perf_counter() - since
            on_log(step, {**means, "steps_per_second": len(pending) / elapsed, "data_wait": waited / elapsed})
            pending, since, waited = [], time.perf_counter(), 0.0
        if step % plan.checkpoint_every == 0 or step == plan.total or stopping:
            on_checkpoint(step, states)
        if stopping:
            break
    return states, step


def _refuse_non_finite(fetched: list[dict[str, Any]], step: int) -> None:
    for offset, metrics in enumerate(fetched):
        bad = [key for key, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"{', '.join(bad)} became NaN or infinite at step {step - len(fetched) + offset + 1}: "
                "lower the learning rate or check the labels; the last checkpoint before it is kept"
            )
