"""What is handed over on the road from raw images to scores, written down for a rehearsal.

Where the environment variable ``FADA_JAX_HANDOVERS`` names a file, every place that changes the size of an image or a
label, or hands one to a network, appends what it saw as a line of JSON, each fact once a process. Otherwise nothing
happens. ``scripts/rehearse.py`` compares the lines with the released code's.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

VARIABLE = "FADA_JAX_HANDOVERS"

_context: dict[str, Any] = {}
_seen: set[str] = set()
_lock = threading.Lock()


def size(value: Any) -> str:
    """'WIDTHxHEIGHT' of an image of Pillow's, or of an array [H, W, ...] or a batch's shape ``(H, W)``."""
    if isinstance(getattr(value, "size", None), tuple):
        return "{}x{}".format(*value.size)
    height, width = getattr(value, "shape", value)[:2]
    return f"{width}x{height}"


@contextlib.contextmanager
def within(**context: Any) -> Iterator[None]:
    """Adds ``context``, for instance the stage, to all that is noted while open."""
    before = dict(_context)
    _context.update(context)
    try:
        yield
    finally:
        _context.clear()
        _context.update(before)


def recorder(**context: Any) -> Callable[..., None]:
    """A ``note`` with the context of now, for threads that outlive it."""
    path, fixed = os.environ.get(VARIABLE), {**_context, **context}
    if not path:
        return lambda what, **facts: None

    def note(what: str, **facts: Any) -> None:
        line = json.dumps({"what": what, **fixed, **facts}, sort_keys=True)
        with _lock:
            if line in _seen:
                return
            _seen.add(line)
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    return note


def note(what: str, **facts: Any) -> None:
    """Writes down one fact, if anybody asked for it."""
    if os.environ.get(VARIABLE):
        recorder()(what, **facts)
