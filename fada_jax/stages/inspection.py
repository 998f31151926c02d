"""Looking inside a step: an XLA trace of some steps, and the program that the compiler made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from fada_jax import files
from fada_jax.errors import UserError
from fada_jax.storage import caches

StepFn = Callable[[Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a run writes about its steps.

    Attributes:
      profile: (start, stop): a trace from when ``start`` steps are done until ``stop`` are, in ``profile/``.
      dump_hlo: the optimised HLO of the step as text, in ``hlo/``.
    """

    profile: tuple[int, int] | None = None
    dump_hlo: bool = False

    def check(self, start: int, total: int) -> None:
        """Refuses steps that a run will not do, or that would be traced while they are compiled; not of a finished run.

        Raises:
          UserError: see above.
        """
        if self.profile and start < total and not start < self.profile[0] < self.profile[1] <= total:
            raise UserError(
                f"--profile={self.profile[0]}:{self.profile[1]}: this run goes from step {start} to {total}, and its "
                f"first step compiles: START must be at least {start + 1}, and STOP greater and at most {total}"
            )


def parse_profile(text: str) -> tuple[int, int] | None:
    """(start, stop) of a flag's 'START:STOP'; None of ''.

    Raises:
      UserError: not of that form.
    """
    if not text:
        return None
    match = re.fullmatch("([0-9]{1,9}):([0-9]{1,9})", text)
    if not match:
        raise UserError(f"--profile={text}: must be START:STOP, for instance 100:110")
    return int(match[1]), int(match[2])


@contextlib.contextmanager
def inspected(inspection: Inspection, jitted: Any, start: int, workdir: Path) -> Iterator[StepFn]:
    """A step that writes what is asked for on its way; without that it is ``jitted``.

    Args:
      inspection: what is asked for.
      jitted: of ``program.jit_step``.
      start: the step that the run goes on from.
      workdir: of the stage.
    """
    step = _dumping(jitted, workdir / "hlo" / "step.txt") if inspection.dump_hlo else jitted
    if not inspection.profile:
        yield step
        return
    first, last = inspection.profile
    done, tracing = start, False
    # The profiler writes files, which go to a bucket when they are complete.
    folder, send = caches.mirrored(workdir / "profile")

    def stop() -> None:
        jax.profiler.stop_trace()
        send()

    def traced(states: Any, batch: Any) -> tuple[Any, Any]:
        nonlocal done, tracing
        if done == first:
            jax.profiler.start_trace(str(folder))
            tracing = True
        with jax.profiler.StepTraceAnnotation("step", step_num=done + 1) if tracing else contextlib.nullcontext():
            result = step(states, batch)
        done += 1
        if done == last:
            jax.block_until_ready(result)
            stop()
            tracing = False
        return result

    try:
        yield traced
    finally:
        if tracing:  # The run was stopped in between.
            stop()


def _dumping(jitted: Any, path: Path) -> StepFn:
    """The step, compiled ahead of its first call for the program's text."""
    compiled: Any = None

    def step(states: Any, batch: Any) -> tuple[Any, Any]:
        nonlocal compiled
        if compiled is None:
            compiled = jitted.lower(states, batch).compile()
            if jax.process_index() == 0:
                path.parent.mkdir(exist_ok=True)
                files.write_text(path, compiled.as_text())
        return compiled(states, batch)

    return step
