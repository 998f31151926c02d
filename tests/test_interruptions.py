"""Kills and signals in the midst of training: the same command ends where an undisturbed run ends, to the bit."""

import signal
import time

import interruptions
import numpy as np
import pytest
from interruptions import PLACES, STAGES, STEPS, Run, differences, finish, recipe_command, stage_command, torment

from fada_jax.training import checkpoints

# The slow ones; a preempted host is what a user meets first, and quick.
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder of the module, with data and a cache that makes each start cost little beyond its imports."""
    root = tmp_path_factory.mktemp("interruptions")
    with pytest.MonkeyPatch.context() as patch:
        interruptions.cache_compiled(root, patch.setenv)
        yield root


@pytest.fixture(scope="module")
def data_dir(out):
    return interruptions.make_data(out)


@slow
@pytest.mark.timeout(3600)
def test_a_killed_recipe_ends_as_an_undisturbed_one(out, data_dir):
    finish(recipe_command(data_dir, out / "whole"))
    fell = torment(recipe_command(data_dir, out / "killed"), out / "killed", np.random.default_rng(0), kills=20)
    assert sum(fell.values()) == 20 and set(fell) == set(PLACES)
    assert {stage: differences(out / "whole" / stage, out / "killed" / stage) for stage in STAGES} == {
        stage: [] for stage in STAGES
    }


@slow
@pytest.mark.timeout(1800)
def test_two_killed_processes_end_as_undisturbed_ones(out, data_dir):
    whole, killed = out / "whole2", out / "killed2"
    finish(stage_command(data_dir, whole), processes=2)
    fell = torment(stage_command(data_dir, killed), killed, np.random.default_rng(0), 4, processes=2, stages=[""])
    assert sum(fell.values()) == 4 and set(fell) <= set(PLACES[:2])
    assert differences(whole, killed) == []


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("number", "receiver"),
    [(signal.SIGTERM, 1), *(pytest.param(number, 0, marks=slow) for number in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_to_one_of_two_processes_saves_and_ends_both(out, data_dir, number, receiver):
    workdir = out / f"signal{number}"
    run = Run((*stage_command(data_dir, workdir), "--config.checkpoint_every=1000"), 2)
    assert run.until(lambda: run.steps() >= 2)
    began = time.monotonic()
    run.processes[receiver].send_signal(number)
    assert run.wait() == [1, 1], run.report()
    assert time.monotonic() - began < 30
    assert f"of {STEPS}, saved: run the same command again to go on" in run.report()
    steps = [line["step"] for line in interruptions.losses(workdir)]
    assert checkpoints.available_steps(workdir) == [steps[-1]] and steps == list(range(1, steps[-1] + 1))
