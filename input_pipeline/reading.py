"""Examples that Python reads in TensorFlow's threads, as batches; whoever reads them may stop at any moment."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from fada_jax.input_pipeline import load_tensorflow

tf = load_tensorflow()


def batches(
    count: int,
    load: Callable[[int], tuple[Any, ...]],
    blank: Sequence[np.ndarray],
    finish: Callable[..., Any],
    batch_size: int,
    in_flight: int = 0,
) -> Generator[Any]:
    """Batches of ``finish(*load(i))`` for i from 0 to ``count``, in order; an error of ``load`` passes as itself.

    ``load`` reads in TensorFlow's threads, several images side by side: Pillow lets go of Python's lock.

    Args:
      count: of the examples; what is left of a last batch is dropped.
      load: arrays of an example.
      blank: arrays of the types and shapes that ``load`` returns, for an example that nobody will see.
      finish: what TensorFlow does with the arrays of an example.
      batch_size: examples in a batch.
      in_flight: examples that are loaded at a time, where ``load`` waits for a store; 0: one a core.

    Raises:
      MemoryError: a batch takes more than there is.
    """
    reading = _Reading(load, blank)
    types = [tf.as_dtype(array.dtype) for array in blank]

    # AutoGraph would spend seconds a stream on translating nothing.
    @tf.autograph.experimental.do_not_convert
    def example(i: Any) -> Any:
        return finish(*tf.numpy_function(reading.example, [i], types, stateful=False))

    @tf.autograph.experimental.do_not_convert
    def wanted(i: Any) -> Any:
        return tf.logical_not(reading.stopped)

    # The autotuning thread takes a core now and then, and up to a minute to end.
    options = tf.data.Options()
    options.autotune.enabled = False
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if in_flight:
        threads = in_flight
        options.threading.private_threadpool_size = in_flight + 2
    dataset = tf.data.Dataset.range(count).take_while(wanted)
    dataset = dataset.map(example, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options)
    try:
        reading.open(dataset)
        for given, batch in enumerate(reading.batches, start=1):
            reading.raise_failed(given * batch_size)
            yield batch
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(f"for batches of {batch_size} images") from error
    except tf.errors.OpError:
        reading.raise_failed(count)
        raise
    finally:
        reading.close()


class _Reading:
    """``load`` in TensorFlow's threads, until it fails or is stopped.

    Attributes:
      stopped: for TensorFlow; the range that the examples come from ends then.
      batches: the iterator.
    """

    def __init__(self, load: Callable[[int], tuple[Any, ...]], blank: Sequence[np.ndarray]) -> None:
        self._load, self._blank = load, tuple(blank)
        self._failed: dict[int, Exception] = {}
        self._over = False
        self.stopped = tf.Variable(False, trainable=False)
        self.batches: Iterator[Any] = iter(())

    def open(self, dataset: Any) -> None:
        """Begins to read."""
        _open.add(self)
        self.batches = dataset.as_numpy_iterator()

    def example(self, i: np.ndarray) -> tuple[Any, ...]:
        """Arrays of ``load(i)``; blank ones where it fails: TensorFlow would log the error with its traceback."""
        if not self._over:
            try:
                return self._load(int(i))
            except Exception as error:  # Whoever reads gets it as it is.
                self._failed[int(i)] = error
        return self._blank

    def raise_failed(self, before: int) -> None:
        """Raises the error of the first example that failed, where its number is below ``before``."""
        first = min(tuple(self._failed), default=before)
        if first < before:
            raise self._failed[first]

    def close(self) -> None:
        """Returns when no thread is in ``load`` any more, nor will be.

        TensorFlow waits for its threads when the iterator is deleted. A thread that asks for Python's lock while the
        interpreter ends never gets it, so that deletion would never end.
        """
        if self not in _open:
            return
        self._over = True
        self.stopped.assign(True)
        while True:
            try:
                next(self.batches)
            except StopIteration:
                break
            except tf.errors.OpError:
                continue  # Of an example that was in the making.
        _open.discard(self)


_open: set[_Reading] = set()


@atexit.register
def _close_all() -> None:
    """An error that nobody caught keeps the stream that it came from alive until the interpreter ends."""
    for reading in tuple(_open):
        reading.close()
