"""The training loop over plain iterators: what it reports, when it saves, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import on_devices

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


def copied_at(kind):
    """Step at which a loop on all devices refuses a copy of a kind that a step makes; 0: it makes none."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    split, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    add = jax.jit(lambda state, batch: (state + batch.sum(), {"loss": batch.sum()}))
    done = []

    def step(state, batch):
        if kind == "host" and len(done) == 3:
            batch = np.ones(8, np.float32)  # As a batch that was never put on the device.
        result = add(state, batch)
        done.append(batch)
        return result

    batches = (jax.device_put(np.full(8, i, np.float32), split) for i in range(6))
    ignored = {"on_log": lambda step, metrics: None, "on_checkpoint": lambda step, state: None}
    state = jax.device_put(np.float32(0), whole)
    try:
        loop.fit(state, step, batches, loop.Plan(0, 6, 2, 2), **ignored)
    except (RuntimeError, ValueError) as error:
        assert "Disallowed" in str(error), error
        return len(done) + 1
    return 0


@pytest.mark.parametrize("devices", [1, 4])
def test_a_step_that_copies_from_the_host_is_refused(devices):
    calls = [f"copied_at({kind!r})" for kind in ("", "host")]
    assert on_devices(devices, "test_loop", f"[{', '.join(calls)}]") == [0, 4]
