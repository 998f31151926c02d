"""The training loop: any iterator of batches in, states out; nothing is fetched from the device between log lines."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.errors import UserError

# Steps that may wait on the device: a request to stop is then obeyed within as many, and the device never idles.
IN_FLIGHT = 8
# Steps in a row that may be skipped before something is wrong with more than a batch.
MAX_SKIPPED = 20


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


@jax.jit
def all_finite(leaves: Any) -> jax.Array:
    """Whether no floating-point array of a pytree holds a NaN or an infinity."""
    checks = [jnp.isfinite(x).all() for x in jax.tree.leaves(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack(checks).all()


def skip_non_finite(
    step_fn: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
) -> Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]:
    """A step that leaves the states as they were where it would bring a NaN or an infinity into them.

    Its metrics gain ``skipped``, 1 for such a step and else 0.
    """

    def guarded(states: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        updated, metrics = step_fn(states, batch)
        good = all_finite((jax.tree.leaves(updated), metrics))
        updated = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, states)
        return updated, {**metrics, "skipped": 1.0 - good}

    return guarded


def fit(
    states: Any,
    step_fn: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    batches: Iterable[Any],
    plan: Plan,
    *,
    on_log: Callable[[int, dict[str, float]], None],
    on_checkpoint: Callable[[int, Any], None],
    on_non_finite: Callable[[int, list[str]], None] = lambda step, names: None,
    should_stop: Callable[[int], bool] = lambda step: False,
    spent: Callable[[str], contextlib.AbstractContextManager[None]] = lambda kind: contextlib.nullcontext(),
) -> tuple[Any, int]:
    """Runs ``step_fn(states, batch) -> (states, metrics)`` from ``plan.start`` to ``plan.total``.

    Args:
      states: pytree of the step; donated by the caller's ``jax.jit``.
      step_fn: compiled step.
      batches: at least ``total - start`` batches, placed on the device.
      plan: see ``Plan``.
      on_log: called with the step and the mean of every metric since the last call, plus ``steps_per_second`` and
        ``data_wait`` (share of the time spent waiting for batches). Skipped steps are counted, and in no mean.
      on_checkpoint: called with the step and the states; the states must be copied before it returns. States that
        hold a NaN or an infinity never get there.
      on_non_finite: called with each step that made a NaN or an infinity, and the names of the metrics that are.
      spent: opened around what is no step, with its kind of ``goodput.KINDS``.
      should_stop: asked after each step, with its number; when true a checkpoint is made and the loop ends early.

    Returns:
      states, and the number of steps done in all.

    Raises:
      UserError: a metric or a state became NaN or infinite, or the batches ran out.
    """
    iterator, window = iter(batches), _Window(plan.start)
    step = plan.start
    while step < plan.total:
        with window.waiting(), spent("input"):
            batch = next(iterator, None)
        if batch is None:
            raise UserError(f"the input ended after {step} of {plan.total} steps")
        # What a step takes is on the device already: a copy that nobody asked for is a mistake, and slow.
        with jax.transfer_guard("disallow"), spent("compile" if step == plan.start else "steps"):
            states, metrics = step_fn(states, batch)
        window.pending.append(metrics)
        step += 1
        if len(window.pending) > IN_FLIGHT:
            jax.block_until_ready(window.pending[-1 - IN_FLIGHT])
        ending = should_stop(step) or step == plan.total
        logging, saving = ending or step % plan.log_every == 0, ending or step % plan.checkpoint_every == 0
        if logging or saving:
            window.check(step, states, on_non_finite)
        if logging:
            on_log(step, window.means())
        if saving:
            with window.paused(), spent("checkpoint"):
                on_checkpoint(step, states)
        if ending:
            break
    return states, step


@dataclasses.dataclass
class _Window:
    """Steps since the last report.

    Attributes:
      checked: the last step whose metrics were looked at.
      pending: metrics of the steps.
      since, waited: when the window began, and the seconds spent waiting for batches.
      skipped: steps skipped in a row.
    """

    checked: int
    pending: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    since: float = dataclasses.field(default_factory=lambda: time.perf_counter())
    waited: float = 0.0
    skipped: int = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While open, time counts as spent waiting for batches."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def check(self, step: int, states: Any, on_non_finite: Callable[[int, list[str]], None]) -> None:
        """Fetches the metrics up to ``step`` and refuses those, and states, that are not finite."""
        self.pending = jax.device_get(self.pending)
        for offset, values in enumerate(self.pending[self.checked - step :], start=self.checked + 1):
            self.skipped = self.skipped + 1 if values.get("skipped") else 0
            _check(offset, values, self.skipped, on_non_finite)
        self.checked = step
        if not jax.device_get(all_finite(jax.tree.leaves(states))):
            on_non_finite(step, [])
            raise UserError(_advice("the parameters", step))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While open, time counts in no rate: what a checkpoint takes, with its scores and pictures, is no step's."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def means(self) -> dict[str, float]:
        """Means of the metrics with the rate and the share of waiting; the next window begins."""
        elapsed = time.perf_counter() - self.since
        rates = {"steps_per_second": len(self.pending) / elapsed, "data_wait": self.waited / elapsed}
        result = {**_means(self.pending), **rates}
        self.pending, self.since, self.waited = [], time.perf_counter(), 0.0
        return result


def _means(values: list[dict[str, Any]]) -> dict[str, float]:
    good = [v for v in values if not v.get("skipped")]
    means = {key: float(np.mean([v[key] for v in good])) for key in values[0] if key != "skipped" and good}
    return means | ({"skipped": len(values) - len(good)} if "skipped" in values[0] else {})


def _check(step: int, values: dict[str, Any], skipped: int, on_non_finite: Callable[[int, list[str]], None]) -> None:
    bad = [key for key, value in values.items() if not math.isfinite(value)]
    if not bad and not skipped:
        return
    on_non_finite(step, bad)
    if not skipped:
        raise UserError(_advice(", ".join(bad), step))
    if skipped == MAX_SKIPPED:
        raise UserError(f"{MAX_SKIPPED} steps in a row were skipped; " + _advice("the loss or the gradients", step))


def _advice(quantity: str, step: int) -> str:
    return (
        f"{quantity} became NaN or infinite at step {step}: lower the learning rate or check the labels; "
        "the last checkpoint before it is kept"
    )
