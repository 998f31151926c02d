"""Where a stage's wall time goes, over starts, kills and lines of earlier versions."""

import json

import pytest

from fada_jax import stored
from fada_jax.documents import check
from fada_jax.training import goodput


class Clock:
    """Seconds since 1970, as a test lets them pass."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def run(clock, steps, *, lines=(), start=0, every=1):
    """The lines that a start of a stage leaves whose steps take 2 s each, after 10 s to begin and 5 s to compile."""
    account = goodput.Account(clock=clock)
    account.resume(lines, start)
    kept = [line for line in lines if json.loads(line)["step"] <= start]
    clock.pass_by(10)
    with account.spent("steps"):
        for step in range(start + 1, start + steps + 1):
            with account.spent("compile" if step == start + 1 else "steps"):
                clock.pass_by(5 if step == start + 1 else 2)
            if step % every == 0:
                kept.append(json.dumps({"step": step, "time": account.plain()}) + "\n")
            if step % 4 == 0:
                with account.spent("checkpoint"):
                    clock.pass_by(3)
                    with account.spent("evaluation"):
                        clock.pass_by(1)
    return kept, account.plain()


def test_every_second_is_of_one_kind():
    clock = Clock(1000.0)
    _, plain = run(clock, 6)
    assert plain["seconds"] == {"start": 10, "compile": 5, "steps": 10, "checkpoint": 3, "evaluation": 1}
    assert plain["at"] == 1000 + sum(plain["seconds"].values()) == clock.now
    assert goodput.share(plain["seconds"]) == pytest.approx(10 / 29)
    text = goodput.summary(plain["seconds"], plain["starts"])
    assert text == "34.5% of 0.5 minutes in steps; start 34.5%, compile 17.2%, checkpoint 10.3%, evaluation 3.4%"


@pytest.mark.parametrize("every", [1, 3])
def test_steps_that_a_kill_took_back_are_no_goodput(every):
    clock = Clock(0.0)
    lines, killed = run(clock, 7, every=every)  # Its last checkpoint is that of step 4.
    logged = json.loads(lines[-1])
    ended = clock.now
    clock.pass_by(100)
    again, plain = run(clock, 4, lines=lines, start=4, every=every)
    assert [json.loads(line)["step"] for line in again] == [n for n in range(1, 9) if n % every == 0]
    seconds = plain["seconds"]
    # Steps after the checkpoint that were logged, of 2 s each.
    assert seconds["repeated"] == pytest.approx(2 * (logged["step"] - 4), abs=0.01)
    assert seconds["away"] == pytest.approx(ended - logged["time"]["at"] + 100)
    # Of the second start, 3 count that were not compiled, and of the first those up to its checkpoint.
    assert seconds["steps"] == pytest.approx(killed["seconds"]["steps"] - 2 * 3 + 2 * 3, abs=0.01)
    assert plain["starts"] == 2 and sum(seconds.values()) == pytest.approx(clock.now, abs=0.01)
    assert "2 starts" in goodput.summary(seconds, 2) and "away" in goodput.summary(seconds, 2)


def test_an_orderly_stop_repeats_nothing():
    clock = Clock(0.0)
    lines, _ = run(clock, 8)
    _, plain = run(clock, 4, lines=lines, start=8)
    assert "repeated" not in plain["seconds"] and plain["seconds"]["steps"] == 2 * (7 + 3)


def test_lines_of_earlier_versions_and_cut_ones_are_passed_over():
    account = goodput.Account(5.0, clock=lambda: 7.0)
    account.resume(['{"step": 10}\n', '{"step": 20, "loss_seg": 1.0}\n', '{"st'], 10)
    assert account.plain() == {"at": 7.0, "starts": 1, "seconds": {"start": 2.0}}
    line = {"step": 10, "time": account.plain()}
    assert check(line, stored.LogLine, "line").time.seconds == {"start": 2.0}
    assert check({"step": 10}, stored.LogLine, "line").time is None
