"""Reading raw examples in several processes, which start in a second: TensorFlow is imported only for 16-bit labels."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fada_jax.errors import UserError
from fada_jax.input_pipeline.layouts import RawExample
from fada_jax.input_pipeline.raw_files import Record


def in_order(read: Callable[[Any], Any], examples: Iterable[Any], workers: int) -> Iterator[Any]:
    """``map`` over processes, in order, with a bounded number of results in flight."""
    if workers <= 1:
        yield from map(read, examples)
        return
    # TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        iterator = iter(examples)
        pending = [pool.submit(read, example) for example in itertools.islice(iterator, 4 * workers)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(read, example) for example in itertools.islice(iterator, 1)]


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keyed_example(
    read: Callable[[RawExample], Record], errors: Path, spread: int, numbered: tuple[int, RawExample]
) -> list[tuple[int, dict[str, Any]]]:
    """A raw example's key and stored form; of a bad one nothing, and a file in ``errors`` that says why."""
    i, raw = numbered
    try:
        record = read(raw)
    except UserError as error:
        (errors / f"{i:09d}").write_text(str(error))
        return []
    # Keys give the order; spread over their whole range they fill all bucket files alike.
    return [(i * spread, {field.name: getattr(record, field.name) for field in dataclasses.fields(record)})]
