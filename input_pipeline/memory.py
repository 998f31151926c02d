"""Batches and the memory that they take: too little of it is said in the user's terms, and before it is asked for."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Generator, Iterator
from typing import Any

from fada_jax.errors import UserError


def available() -> int:
    """Bytes that this process may have at most."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return physical if limit == resource.RLIM_INFINITY else min(limit, physical)


def within(batches: Callable[[], Iterator[Any]], what: str, least: int) -> Generator[Any]:
    """What ``batches`` returns.

    Args:
      batches: begins to read.
      what: names the batches in errors.
      least: bytes that they take at the least.

    Raises:
      UserError: memory does not suffice. It is not left to the libraries alone, some of which crash.
    """
    problem = f"{what} do not fit in memory: lower config.batch_size, or their crop or size"
    if least > available():
        raise UserError(problem)
    try:
        yield from batches()
    except MemoryError as error:
        raise UserError(problem) from error
