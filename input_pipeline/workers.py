"""``map`` over several processes that end with their work, with their parent, and without a word of their own."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import multiprocessing
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

from fada_jax import endings
from fada_jax.errors import UserError
from fada_jax.input_pipeline.layouts import RawExample
from fada_jax.input_pipeline.raw_files import Record

# Tasks that a worker has at a time: the next one waits for it where it is.
_AHEAD = 2
# Results that may wait for an earlier one, for each worker.
_WAITING = 4
# Seconds that a worker may take for the task at hand once nobody wants it any more.
_PATIENCE = 10


def in_order(read: Callable[[Any], Any], examples: Iterable[Any], workers: int) -> Generator[Any]:
    """``map`` over processes, in order, with a bounded number of results in flight.

    Each worker has a pipe of its own, so that its death in the midst of a result is an end of that pipe and not a wait
    for the rest. TensorFlow is imported in a worker only where ``read`` does.

    Raises:
      UserError: a worker was killed. An error of ``read`` passes as itself.
    """
    if workers <= 1:
        yield from map(read, examples)
        return
    with _pool(read, workers) as pipes:
        tasks = enumerate(examples)
        load: dict[Any, int] = dict.fromkeys(pipes, 0)
        results: dict[int, Any] = {}
        wanted, given = 0, 0

        def give() -> None:
            nonlocal given
            for pipe in sorted(load, key=lambda pipe: load[pipe]):
                while load[pipe] < _AHEAD and given - wanted < _WAITING * workers:
                    task = next(tasks, None)
                    if task is None:
                        return
                    _send(pipe, task)
                    load[pipe] += 1
                    given += 1

        give()
        while wanted < given:
            while wanted not in results:
                for pipe in connection.wait([pipe for pipe in load if load[pipe]]):
                    number, result = _receive(pipe)
                    results[number] = result
                    load[pipe] -= 1
                give()
            yield _unwrapped(results.pop(wanted))
            wanted += 1
            give()


@dataclasses.dataclass(frozen=True)
class _Failure:
    """An error of a worker, with its traceback as text."""

    error: Exception
    trace: str


class _WorkerError(Exception):
    """Cause of an error that a worker raised: holds its traceback there."""

    def __str__(self) -> str:
        return f"in a worker:\n{self.args[0]}"


def _unwrapped(result: Any) -> Any:
    if isinstance(result, _Failure):
        raise result.error from _WorkerError(result.trace)
    return result


@contextlib.contextmanager
def _pool(read: Callable[[Any], Any], workers: int) -> Iterator[list[connection.Connection]]:
    """Pipes to processes that answer (number, example) with (number, ``read(example)``)."""
    # TensorFlow's and JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pipes: list[connection.Connection] = []
    processes: list[Any] = []

    def end() -> None:
        for pipe in pipes:
            pipe.close()
        until = time.monotonic() + _PATIENCE
        for process in processes:
            process.join(max(0, until - time.monotonic()))
            process.kill()
            process.join()

    # An error that nobody caught keeps the pool alive, and the interpreter would wait for its processes.
    atexit.register(end)
    try:
        resource_tracker.ensure_running()  # Starting it would unblock the signals.
        with endings.undisturbed():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(read, theirs), daemon=True)
                process.start()
                theirs.close()  # Or the end of the worker would not be the end of the pipe.
                pipes.append(ours)
                processes.append(process)
        yield pipes
    finally:
        end()
        atexit.unregister(end)


def _work(read: Callable[[Any], Any], pipe: connection.Connection) -> None:
    """What a worker does, until its pipe ends: with the work, or with the parent in whatever way that ends."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, example = pipe.recv()
            pipe.send((number, _answer(read, example)))


def _answer(read: Callable[[Any], Any], example: Any) -> Any:
    try:
        return read(example)
    except Exception as error:  # The parent raises it.
        return _Failure(error, traceback.format_exc())


def _send(pipe: connection.Connection, task: Any) -> None:
    try:
        pipe.send(task)
    except OSError as error:
        raise UserError(_KILLED) from error


def _receive(pipe: Any) -> tuple[int, Any]:
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise UserError(_KILLED) from error


_KILLED = "a worker process was killed, for want of memory perhaps: use fewer --workers"


def keyed_example(
    read: Callable[[RawExample], Record], errors: Path, spread: int, numbered: tuple[int, RawExample]
) -> list[tuple[int, dict[str, Any]]]:
    """A raw example's key and stored form; of a bad one nothing, and a file in ``errors`` that says why."""
    i, raw = numbered
    try:
        record = read(raw)
    except UserError as error:
        (errors / f"{i:09d}").write_text(str(error), encoding="utf-8")
        return []
    # Keys give the order; spread over their whole range they fill all bucket files alike.
    return [(i * spread, {field.name: getattr(record, field.name) for field in dataclasses.fields(record)})]
