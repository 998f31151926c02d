"""Traces of steps and the program of a step, as a run writes them."""

import pathlib  # noqa: F401  (for the process that traces)

import jax
import jax.numpy as jnp
import pytest
from commands import on_devices

from fada_jax.errors import UserError
from fada_jax.stages import inspection
from fada_jax.stages.inspection import Inspection


def run(tmp_path, asked, steps=6, start=2):
    """The state after some steps that are inspected so."""
    jitted = jax.jit(lambda state, batch: (state + batch, {"loss": batch}))
    state = jnp.float32(0)
    with inspection.inspected(asked, jitted, start, tmp_path) as step:
        for i in range(start, start + steps):
            state, _ = step(state, jnp.float32(i))
    return state.item()


@pytest.mark.parametrize("stop", [5, 50])
def test_a_trace_holds_the_steps_asked_for_also_of_a_run_that_ends_before(tmp_path, stop):
    # In a process of its own: the profiler may crash in one that has loaded all libraries of the tests.
    asked = f"run(pathlib.Path({str(tmp_path)!r}), Inspection(profile=(3, {stop})))"
    assert on_devices(1, "test_inspection", asked) == sum(range(2, 8))
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    data = trace.read_bytes()
    assert data.count(b"jit_") and b"step" in data
    assert not (tmp_path / "hlo").exists()


def test_the_program_of_the_step_is_written_and_run(tmp_path):
    assert run(tmp_path, Inspection(dump_hlo=True)) == sum(range(2, 8))
    assert (tmp_path / "hlo" / "step.txt").read_text().startswith("HloModule jit")
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("text", ["", "5:9", "x", "5", "5:", "9:5", "2:5", "5:40"])
def test_only_steps_that_are_done_after_the_first_can_be_traced(text):
    if text in ("", "5:9"):
        return Inspection(inspection.parse_profile(text)).check(2, 20)
    with pytest.raises(UserError, match=rf"--profile={text}: (must be START:STOP|.*START must be at least 3)"):
        Inspection(inspection.parse_profile(text)).check(2, 20)
    return None


def test_a_finished_run_traces_nothing():
    Inspection(profile=(1, 2)).check(20, 20)
