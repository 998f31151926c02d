"""The other processes of a run: when one of them ends, in whatever way, all end within a minute, each with one line.

JAX's processes send heartbeats to process 0, from threads of their own. One that is missed, or process 0 gone, makes
JAX abort the process (SIGABRT), whatever it is at: this is answered with a line. ``as_command`` silences the stack
trace that JAX prints first. ``--debug`` leaves both as JAX has them.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
from typing import Any

import jax

from fada_jax import endings
from fada_jax.errors import UserError

# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT = 30
# Seconds that a process which failed waits for the others, which may be about to fail like it.
GRACE = 15
# Seconds that a process which has finished waits for the others: they are alive, so as long as they need.
FINISHING = 24 * 3600
ENDED = (
    "another process of this run has ended or cannot be reached, and its own output says why: run the same command "
    "again to continue"
)
# What collectives and barriers raise when a process is not there any more.
_BROKEN = re.compile(r"gloo|nccl|coordination service|heartbeat|barrier|connection (closed|reset)|socket closed", re.I)


class _State:
    """Of the process.

    Attributes:
      together: it has joined others.
      handler: of SIGABRT, which C code calls and Python must not free.
    """

    together = False
    handler: Any = None


_state = _State()


def watch(*, debug: bool = False) -> None:
    """From here on the end of another process ends this one; to be called when all have joined.

    Args:
      debug: leave it to JAX, which aborts with its reasons and a stack trace.
    """
    _state.together = True
    if debug:
        return

    def aborted(_: int) -> None:
        endings.say(f"error: {ENDED}")
        os._exit(1)

    # Python's own handlers run in the main thread, later: the process would be gone.
    _state.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    ctypes.CDLL(None).signal(signal.SIGABRT, _state.handler)


def together() -> bool:
    """Whether this process has joined others."""
    return _state.together


def broken(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return _state.together and not isinstance(error, UserError) and bool(_BROKEN.search(str(error)))


def leave(status: int, *, at_once: bool = False) -> None:
    """Ends a process of several that failed and has said why; does nothing in one that is alone.

    The others have ``GRACE`` seconds to end like it, as they do where all were refused. After that they wait for it
    in vain, and its silence ends them.

    Args:
      status: of the process.
      at_once: the others are gone already.
    """
    if not _state.together:
        return
    if not at_once:
        meeting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        meeting.start()
        meeting.join(GRACE)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # Full, or closed.
            continue
    os._exit(status)  # JAX would wait for the others for minutes.
