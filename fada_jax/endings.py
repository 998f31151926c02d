"""How a command begins and ends: signals, standard output and error, and the time that one interrupted may take.

In a command SIGINT, SIGTERM and SIGHUP raise ``KeyboardInterrupt`` with the signal's number, which prints one line
where nobody catches it.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from fada_jax.errors import missing_extra

# When the process began, but for Python's own start: in seconds since 1970.
BEGAN = time.time()
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = "interrupted; run the same command again to continue"
# Seconds from a signal to the end, where nothing is being saved.
PATIENCE = 20.0
# What orbax's other writes say, each with a traceback, after one has failed, whose error follows.
_LEFT_BEHIND = "Event loop is closed"
# Seconds within which the same signal is one: a terminal sends it to all processes, and some pass it on.
_ONE_SIGNAL = 0.5


class _State:
    """Of the process.

    Attributes:
      received: signals, in their order.
      last: when the last one came.
      output_fault: why the standard output could not be written; '' while it can.
      saving: how many parts of the program ask for the time that they need after a signal.
      said: the last line is printed.
      on_last_line: told that it is about to be.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.last = 0.0
        self.output_fault = ""
        self.saving = 0
        self.said = False
        self.on_last_line: Callable[[], None] = lambda: None


state = _State()


# Signals -------------------------------------------------------------------------------------------------------------


def _raise(number: int, _: Any) -> None:
    now = time.monotonic()
    again, state.last = now - state.last < _ONE_SIGNAL and number in state.received, now
    if not again:
        state.received.append(number)
        raise KeyboardInterrupt(number)


def _send_to_main(number: int) -> None:
    """A signal that another thread gets would not wake the main thread, which answers it."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def _no_traceback(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """One line for a signal and for a missing library of an extra, whoever imports it and when."""
    if reason := missing_extra(error):
        say(f"error: {reason}")
    elif state.received or issubclass(kind, KeyboardInterrupt):
        # Libraries turn a signal during their import into errors of their own.
        leave_at_once()
    else:
        sys.__excepthook__(kind, error, trace)


def _unraisable(unraisable: Any) -> None:
    """A signal that comes inside of a callback, of garbage collection for instance, is raised again outside of it."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt) and state.received:
        state.last = 0.0
        again = threading.Timer(0.05, _send_to_main, [state.received[-1]])
        again.daemon = True
        again.start()
    elif str(unraisable.exc_value) != _LEFT_BEHIND:
        sys.__unraisablehook__(unraisable)


def obey_signals() -> None:
    """Takes the signals of a terminal and of a scheduler; one that the caller ignores (``nohup``) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    sys.excepthook, sys.unraisablehook = _no_traceback, _unraisable


def begin() -> None:
    """For the beginning of a command: signals are watched and the standard streams guarded.

    Raises:
      KeyboardInterrupt: a signal came already.
    """
    came = state.received[:]
    state.__init__()  # type: ignore[misc]
    obey_signals()
    watch_signals()
    guard_output()
    if came:
        _raise(came[0], None)


def interrupted() -> tuple[int, str]:
    """Exit status and last line of a command that a signal, or a standard output that failed, ended."""
    if fault := output_error():
        return 1, fault
    return 128 + (state.received[0] if state.received else signal.SIGINT), INTERRUPTED


def silence() -> None:
    """Nothing follows the line of a user's error.

    Libraries that fail together with it say so on their own when they are torn down: orbax's event loops, threads and
    coroutines that were never waited for, each with a traceback.
    """
    sys.unraisablehook = lambda _: None
    gc.collect()  # Of what the interpreter would find last, when it can be silenced no more.
    threading.excepthook = lambda _: None
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def ignore_signals() -> None:
    """For the end of a command whose work is done.

    The interpreter takes seconds to end, and gives the signals that it handles back to the system as it begins to.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """While open, a signal may take as long as it takes to save."""
    state.saving += 1
    try:
        yield
    finally:
        state.saving -= 1


def watch_signals() -> None:
    """Ends the process ``PATIENCE`` seconds after a signal, if it has not ended by itself.

    Python obeys a signal when the main thread comes back to it: not while a library computes, waits for another machine
    or swallows the exception.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)

    def watch() -> None:
        while (number := os.read(readable, 1)[0]) not in SIGNALS:
            pass
        state.received = state.received or [number]
        left = PATIENCE
        while left > 0:
            time.sleep(0.1)
            left = PATIENCE if state.saving else left - 0.1
        leave_at_once()

    threading.Thread(target=watch, daemon=True, name="signals").start()


def leave_at_once() -> None:
    """Ends an interrupted process: nothing is being saved, and nobody waits for a traceback."""
    status, line = interrupted()
    say(line)
    os._exit(status)


@contextlib.contextmanager
def limited(seconds: float, line: str) -> Iterator[None]:
    """Ends the process with status 1 and ``line`` where what is done inside takes longer; a library may wait in it."""

    def end() -> None:
        say(line)
        os._exit(1)  # The main thread is not in Python, so it cannot be told.

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def undisturbed(*, handlers: bool = True) -> Iterator[None]:
    """Processes started inside never get the signals of a terminal; ours wait until the end of it.

    Blocked signals are inherited by new programs. Ctrl-C goes to all processes of a terminal, and one that dies of it
    leaves a traceback and half a message.

    Args:
      handlers: have this process wait, too. Python would put its own handler of SIGTERM in the place of JAX's, which it
        does not know of, and a host that is preempted would end without saving.
    """
    seen: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    before: dict[int, Any] = {}
    if handlers and threading.current_thread() is threading.main_thread():
        # Another thread may take the signal from the system; the main thread answers it.
        before = {n: signal.signal(n, lambda number, _: seen.append(number)) for n in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in seen:
            signal.raise_signal(number)


def description(module: types.ModuleType) -> str:
    """A command's docstring, for its help, also where ``python -OO`` leaves it out."""
    text, path = module.__doc__, getattr(module, "__file__", None)
    if not text and path:
        text = ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8")), clean=False)
    return (text or "").strip()


# Standard output and error -------------------------------------------------------------------------------------------


class _Standard(io.FileIO):
    """A standard stream that goes on into nothing once it cannot be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1:
                state.output_fault = error.strerror or str(error)
                # A run saves then, and everything else ends.
                _send_to_main(signal.SIGTERM)
            return len(data)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file name that are no text stay as they are; what the encoding lacks is written as its number."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _stream(stream: TextIO) -> TextIO:
    encoding = codecs.lookup(stream.encoding or "utf-8").name
    # Terminals read UTF-8 even where no locale is set, as in most containers.
    encoding = "utf-8" if encoding == "ascii" else encoding
    buffer = io.BufferedWriter(_Standard(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, "fada_jax_readable", line_buffering=True)


def guard_output() -> None:
    """A standard output that is full or closed ends the command in order, and no character is too much for it."""
    # A file opened later must not get the number of a standard stream that is closed.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    codecs.register_error("fada_jax_readable", _readable)
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _stream(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _stream(sys.stderr)


def output_error() -> str:
    """The line about a standard output that could not be written; '' where it could."""
    fault = state.output_fault
    return f"error: the standard output cannot be written: {fault}" if fault else ""


def debugging() -> bool:
    """Whether the user asked for tracebacks, on the command line or in the environment."""
    # ``cli.run`` takes the flag out of sys.argv.
    return "--debug" in (*sys.argv, *sys.orig_argv) or os.environ.get("FADA_JAX_DEBUG") == "1"


def say(line: str) -> None:
    """Prints the last line of a command on stderr, unless one was printed."""
    if not state.said and sys.stderr:
        state.said = True
        state.on_last_line()
        with contextlib.suppress(OSError, ValueError):  # Full, or closed.
            print(line, file=sys.stderr, flush=True)
