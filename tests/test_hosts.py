"""Hosts that share a run: what they compute together is what one computes, and when one ends, all do."""

import functools
import os
import time
import types

import host_failure
import hosts
import interruptions
import jax
import numpy as np
import pytest
from interruptions import Run

from fada_jax import distributed, peers
from fada_jax.errors import UserError
from fada_jax.training import checkpoints


def devices(processes, each):
    return [types.SimpleNamespace(process_index=i, platform="cpu", id=i * each + j)
            for i in range(processes) for j in range(each)]  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "each", "spatial", "shares"),
    [(4, 2, 1, [0, 1, 2, 3]), (4, 2, 2, [0, 1, 2, 3]), (4, 2, 4, [0, 0, 1, 1]), (4, 1, 4, [0, 0, 0, 0])],
)
def test_processes_that_share_rows_read_the_same_images(monkeypatch, processes, each, spatial, shares):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    chosen = distributed._shared_by_processes(devices(processes, each), processes * each, spatial)
    shape = {"data": processes * each // spatial, "fsdp": 1, "spatial": spatial}
    mesh = types.SimpleNamespace(devices=np.array(chosen), size=len(chosen), shape=shape)
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", functools.partial(int, process))
        assert distributed.readers(mesh) == (share, max(shares) + 1)


def test_rows_that_some_processes_alone_would_share_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"spatial=2 must divide the 3 device.s. of each process, or be a multiple"):
        distributed._shared_by_processes(devices(2, 3), 6, 2)


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_every_image_is_one_process_s(monkeypatch, count):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", functools.partial(int, process))
        shares.append(np.arange(count)[distributed.share(count)])
    assert np.concatenate(shares).tolist() == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_texts_of_one_process_are_gathered():
    assert [distributed.gather(text) for text in ("é\n", "")] == [["é\n"], [""]]


def test_what_collectives_say_of_a_lost_process_is_known(monkeypatch):
    lost = ValueError("UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:1: Connection reset by peer")
    assert not peers.broken(lost)  # Of a process that is alone it says something else.
    monkeypatch.setattr(peers._state, "together", True)
    assert peers.broken(lost) and not peers.broken(UserError(str(lost))) and not peers.broken(ValueError("shapes"))


def made_by(make):
    """A fixture: a folder that ``make`` fills, with a cache of what is compiled."""

    @pytest.fixture(scope="module")
    def root(tmp_path_factory):
        root = tmp_path_factory.mktemp("hosts")
        with pytest.MonkeyPatch.context() as patch:
            interruptions.cache_compiled(root, patch.setenv)
            make(root)
            yield root

    return root


out = made_by(hosts.make_references)  # Of the slow tests.
small = made_by(interruptions.make_data)


def test_two_processes_share_rows_and_end_together(small):
    """Trained over rows that both hold a half of, as one process does; and when one dies, the other ends."""
    data, stage = small / "data", "source, validated"
    hosts.run(hosts.command(data, small / "reference" / stage, stage))
    assert hosts.compare(small, stage, "spatial", 2) <= hosts.LIMIT
    os.environ["HOST_FAILURE_AT"] = str(small / "moment")
    _, *arguments = hosts.command(data, small / "killed", stage)
    killed = Run(("tests/host_failure.py", "evaluation", "kill", 0, *arguments), 2)
    assert killed.wait(60) in ([-9, 1], [-9, peers.ABORTED])
    assert time.time() - float((small / "moment").read_text()) < 60
    assert "error: another process of this run has ended" in killed.report()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", hosts.PROCESSES)
@pytest.mark.parametrize("mesh", hosts.MESHES)
@pytest.mark.parametrize("stage", hosts.STAGES)
def test_every_stage_on_every_mesh_is_what_one_process_computes(out, stage, mesh, processes):
    assert hosts.compare(out, stage, mesh, processes) <= hosts.LIMITS.get(stage, hosts.LIMIT)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", hosts.COMMANDS)
def test_commands_share_images_and_give_the_same(out, what):
    one, *others = (hosts.share_of(out, what, processes) for processes in hosts.PROCESSES)
    for other in others:
        np.testing.assert_allclose(other, one, rtol=hosts.LIMIT, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("how", "victim"), hosts.ENDS)
@pytest.mark.parametrize("place", host_failure.PLACES)
def test_when_one_process_ends_all_do_and_the_command_goes_on(out, place, how, victim):
    assert hosts.end_by(out, place, how, victim) < 60
    if place in ("training", "labelling"):
        stage = "self-distillation, live batch norm" if place == "labelling" else "adversarial"
        workdir = out / f"ended-{place}-{how}-{victim}"
        hosts.run(hosts.command(out / "data", workdir, stage), 2)
        assert checkpoints.available_steps(workdir)[-1] == hosts.STEPS
        assert hosts.difference(out / "reference" / stage, workdir) <= hosts.LIMITS.get(stage, hosts.LIMIT)
