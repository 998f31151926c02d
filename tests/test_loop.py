"""The training loop over plain iterators: what it reports, when it saves, what it refuses."""

import jax.numpy as jnp
import pytest

from fada_jax.errors import UserError
from fada_jax.training import loop


def _run(plan, values, **options):
    logs, saved = {}, []
    _, done = loop.fit(
        jnp.float32(0),
        lambda state, batch: (state + batch, {"loss": batch}),
        loop.prefetch((jnp.float32(v) for v in values), lambda b: b),
        plan,
        on_log=lambda step, metrics: logs.__setitem__(step, metrics["loss"]),
        on_checkpoint=lambda step, state: saved.append((step, float(state))),
        **options,
    )
    return logs, saved, done


def test_logs_interval_means_and_saves_at_the_end():
    logs, saved, done = _run(loop.Plan(2, 9, log_every=3, checkpoint_every=4), range(2, 20))
    # Batches 2..8 belong to steps 3..9; a log line holds the mean since the one before.
    assert logs == {3: 2.0, 6: 4.0, 9: 7.0}
    assert saved == [(4, 5.0), (8, 27.0), (9, 35.0)]
    assert done == 9


def test_stops_early_with_a_checkpoint():
    asked = iter([False, False, True])
    logs, saved, done = _run(loop.Plan(0, 9, 100, 100), range(9), should_stop=lambda step: next(asked))
    assert done == 3
    assert saved == [(3, 3.0)]
    assert logs == {3: 1.0}


def test_non_finite_loss_names_its_step_and_is_not_saved():
    saved = []
    with pytest.raises(UserError, match=r"loss became NaN or infinite at step 5"):
        loop.fit(
            jnp.float32(0),
            lambda state, batch: (state, {"loss": batch}),
            iter([jnp.float32(v) for v in (1, 1, 1, 1, float("nan"), 1)]),
            loop.Plan(0, 6, 3, 3),
            on_log=lambda step, metrics: None,
            on_checkpoint=lambda step, state: saved.append(step),
        )
    assert saved == [3]


def test_exhausted_input_is_an_error():
    with pytest.raises(UserError, match="input ended after 2 of 5 steps"):
        _run(loop.Plan(0, 5, 1, 5), range(2))


def test_rates_are_those_of_steps_alone(monkeypatch):
    """A step takes a second of this clock; what a checkpoint takes is in no rate."""
    now, rates = [0.0], {}

    def wait(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    loop.fit(
        jnp.float32(0),
        lambda state, batch: wait(1.0, (state, {"loss": batch})),
        iter([jnp.float32(1)] * 6),
        loop.Plan(0, 6, log_every=2, checkpoint_every=3),
        on_log=lambda step, metrics: rates.update({step: metrics["steps_per_second"]}),
        on_checkpoint=lambda step, state: wait(100.0),
    )
    assert rates == {2: 1.0, 4: 1.0, 6: 1.0}
