"""The other processes of a run: when one of them ends, in whatever way, all end within a minute, each with one line.

JAX's processes send heartbeats to process 0, from threads of their own. One that is missed, or process 0 gone, makes
JAX abort the process, whatever it is at: no code of ours may run in it any more. The line comes from a shell beside the
process, which waits for its end. ``as_command`` silences the stack trace that JAX prints. ``--debug`` leaves it all to
JAX.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading

import jax

from fada_jax import endings
from fada_jax.errors import UserError

# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT = 30
# Seconds that a process which failed waits for the others, which may be about to fail like it.
GRACE = 10
# Seconds that a process which has finished waits for the others: they are alive, so as long as they need.
FINISHING = 24 * 3600
# Exit status of a process that JAX aborts.
ABORTED = int(signal.SIGABRT)
ENDED = (
    "another process of this run has ended or cannot be reached, and its own output says why: run the same command "
    "again to continue"
)
# Prints its first argument where its input ends without a line.
_SAY_AT_THE_END = ("/bin/sh", "-c", 'read -r said || printf "%s\\n" "$0" >&2')
# What collectives and barriers raise when a process is not there any more.
_BROKEN = re.compile(r"gloo|nccl|coordination service|heartbeat|barrier|connection (closed|reset)|socket closed", re.I)


class _State:
    """Of the process.

    Attributes:
      together: it has joined others.
      speaker: the shell that says why it ended, where nothing else can.
    """

    together = False
    speaker: subprocess.Popen[bytes] | None = None


_state = _State()


def watch(*, debug: bool = False) -> None:
    """From here on the end of another process ends this one; to be called when all have joined.

    Args:
      debug: leave it to JAX, which aborts with its reasons and a stack trace.
    """
    _state.together = True
    if debug:
        return

    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    # No handler of Python's: whoever aborts may wait for the interpreter, and the interpreter for whoever aborts.
    library.signal(signal.SIGABRT, ctypes.cast(library._exit, ctypes.c_void_p))
    with endings.undisturbed(handlers=False):
        command = [*_SAY_AT_THE_END, f"error: {ENDED}"]
        _state.speaker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    endings.state.on_last_line = hush


def hush() -> None:
    """The process ends with a word of its own, or has nothing to say."""
    if _state.speaker and _state.speaker.stdin:
        with contextlib.suppress(OSError, ValueError):
            _state.speaker.stdin.write(b"\n")
            _state.speaker.stdin.close()


def together() -> bool:
    """Whether this process has joined others."""
    return _state.together


def broken(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return _state.together and not isinstance(error, UserError) and bool(_BROKEN.search(str(error)))


def leave(status: int, *, at_once: bool = False) -> None:
    """The end of a process of several that has said why it fails; does nothing in one that is alone.

    The others have ``GRACE`` seconds to end like it, as they do where all were refused. After that they wait for it
    in vain, and its silence ends them. One that has succeeded waits for them, and its caller ends it.

    Args:
      status: of the process.
      at_once: the others are gone already.
    """
    if not _state.together:
        return
    if not status:
        jax.distributed.shutdown()
        hush()
        return
    hush()
    if not at_once:
        meeting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        meeting.start()
        meeting.join(GRACE)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # Full, or closed.
            stream.flush()
    os._exit(status)  # JAX would wait for the others for minutes.
