"""How far a long command is, on stderr: one line that changes on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# Seconds between two lines: on a terminal, and in a file or a pipe.
_TERMINAL_EVERY, _FILE_EVERY = 0.2, 10.0


@contextlib.contextmanager
def shown(title: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """While open, shows how many of ``total`` are done, the rate and the time left.

    What is printed after it, an error for instance, begins on a line of its own. A stderr that is closed or full is
    passed over: progress is worth no failure.

    Args:
      title: what the line begins with; may be empty.
      total: of the units to do.
      unit: what is counted.

    Yields:
      a function to call with the number of units done so far.
    """
    line = _Line(title, total, unit)
    try:
        yield line.show
    except BaseException:
        line.end()
        raise
    line.last()
    line.end()


class _Line:
    """The line and when it was written last."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._began = self._written = time.monotonic()
        self._done, self._shown, self._open, self._length = 0, -1, False, 0
        try:
            self._terminal = sys.stderr.isatty()
        except (AttributeError, ValueError):  # No stderr at all, or a closed one.
            self._terminal = False

    def show(self, done: int) -> None:
        """Writes the line again where it is time to."""
        self._done, now = done, time.monotonic()
        if now - self._written >= (_TERMINAL_EVERY if self._terminal else _FILE_EVERY):
            self._written = now
            self._write(now)

    def last(self) -> None:
        """Writes the line as it is in the end."""
        if self._done and self._done != self._shown:
            self._write(time.monotonic())

    def end(self) -> None:
        """Ends a line that is open."""
        if self._open:
            self._open = False
            _print("\n")

    def _write(self, now: float) -> None:
        self._shown = self._done
        rate = self._done / max(now - self._began, 1e-9)
        parts = [f"{self._done}/{self._total} {self._unit}", f"{rate:.{1 if rate < 10 else 0}f} a second"]
        if 0 < self._done < self._total:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        text = f"{self._title}{self._title and ': '}{', '.join(parts)}"
        if self._terminal:
            # Blanks cover what a longer line before it left.
            _print(f"\r{text:<{self._length}}")
            self._open, self._length = True, len(text)
        else:
            _print(f"{text}\n")


def _duration(seconds: float) -> str:
    """'40 s', '12 min' or '3 h 5 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _print(text: str) -> None:
    # AttributeError: there is no stderr; ValueError: it is closed.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()
