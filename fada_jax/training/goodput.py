"""Goodput: the share of a stage's wall time that went into steps that count, and where the rest went.

Every line of ``metrics.jsonl`` holds the seconds of each kind since the stage began, over all starts of its command. A
later start goes on from the last line, also of steps whose checkpoint was never written: they are done again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fada_jax import documents
from fada_jax.errors import UserError
from fada_jax.stored import LogLine

# Where time goes: before the first step, in compiling it, in waiting for batches, in steps, in checkpoints, in scores
# and pictures, in a teacher's labels, in steps that a kill took back, and from a run's last line to the next start.
KINDS = ("start", "compile", "input", "steps", "checkpoint", "evaluation", "labelling", "repeated", "away")


class Account:
    """Seconds by kind; each second belongs to the innermost ``spent`` that is open, and before any to the start."""

    def __init__(self, began: float | None = None, clock: Callable[[], float] = time.time) -> None:
        """Begins at ``began`` (seconds since 1970), or now."""
        self._clock = clock
        self._kind = "start"
        self._since = self._began = clock() if began is None else began
        self.starts = 1
        self.seconds = dict.fromkeys(KINDS, 0.0)

    def _switch(self, kind: str) -> str:
        now, before = self._clock(), self._kind
        self.seconds[before] += max(0.0, now - self._since)
        self._since, self._kind = now, kind
        return before

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """While open, time is of this kind."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def resume(self, lines: Iterable[str], step: int) -> None:
        """Adds what earlier starts spent.

        Args:
          lines: of ``metrics.jsonl`` as they left it; those of earlier versions hold no times.
          step: that this start goes on from.
        """
        known = [line for line in map(_read, lines) if line and line.time]
        if not known:
            return
        last, before = known[-1], [line for line in known if line.step <= step]
        times: Any = last.time
        done = times.seconds.get("steps", 0.0)
        kept = before[-1].time.seconds.get("steps", 0.0) if before and before[-1].time else 0.0
        # Steps between the last line that counts and the checkpoint count, too.
        counted = before[-1].step if before else 0
        share = (last.step - step) / (last.step - counted) if last.step > step else 0.0
        lost = max(0.0, done - kept) * share
        for kind in KINDS:
            self.seconds[kind] += times.seconds.get(kind, 0.0)
        self.seconds["steps"] -= lost
        self.seconds["repeated"] += lost
        self.seconds["away"] += max(0.0, self._began - times.at)
        self.starts += times.starts

    def plain(self) -> dict[str, Any]:
        """In JSON types, as ``stored.Spent`` reads it."""
        self._switch(self._kind)
        seconds = {kind: round(value, 3) for kind, value in self.seconds.items() if value > 0}
        return {"at": round(self._since, 3), "starts": self.starts, "seconds": seconds}


def share(seconds: Mapping[str, float]) -> float:
    """Of the wall time that went into steps that count, from 0 to 1."""
    return seconds.get("steps", 0.0) / max(sum(seconds.values()), 1e-9)


def summary(seconds: Mapping[str, float], starts: int) -> str:
    """One line for people: the goodput, and where the rest of the time went."""
    total = max(sum(seconds.values()), 1e-9)
    rest = [f"{kind} {seconds[kind] / total:.1%}" for kind in KINDS if kind != "steps" and seconds.get(kind)]
    begun = f", {starts} starts" if starts > 1 else ""
    return f"{share(seconds):.1%} of {total / 60:.1f} minutes in steps{begun}; {', '.join(rest)}"


def _read(line: str) -> LogLine | None:
    """A line of ``metrics.jsonl``; None where a kill cut it short or its times are none."""
    try:
        return documents.check(documents.parse(line, "line"), LogLine, "line")
    except UserError:
        return None
