"""A workdir belongs to one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from fada_jax.errors import UserError


@contextlib.contextmanager
def hold(workdir: str | Path) -> Iterator[None]:
    """Makes ``workdir`` and keeps other runs out of it while open.

    Process 0 holds a lock on ``workdir/lock`` for all processes of a run. The kernel lets go of it when that process
    ends in whatever way, so a lock is never stale.

    Raises:
      UserError: another run is at work there, or the folder cannot be written.
    """
    workdir = Path(workdir).absolute()
    reason = ""
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((workdir / "lock").open("w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                reason = "another run is at work in it: wait for it or use another --workdir"
            except OSError as error:
                reason = f"it cannot be written ({error.strerror})"
        # All processes leave together, instead of waiting for one that has left.
        if multihost_utils.broadcast_one_to_all(np.bool_(bool(reason))):
            raise UserError(f"{workdir}: {reason or 'process 0 was refused'}")
        yield
