"""tf.data streams of batches from converted data sets: random access, resumable at any step.

Every random choice is a function of (seed, data set, split, position in the stream), so a stream that starts at step N
yields what an undisturbed one yields there, without replaying anything. Batches are uint8; normalisation belongs to the
accelerator.
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fada_jax import handovers
from fada_jax.classes import ENCODINGS, IGNORE, ClassSet
from fada_jax.errors import UserError
from fada_jax.input_pipeline import (
    augmentation,
    decoding,
    load_tensorflow,
    memory,
    reading,
    records,
    sampling,
    stream_labels,
)
from fada_jax.input_pipeline.pseudo_labels import PseudoLabels
from fada_jax.input_pipeline.records import Records
from fada_jax.input_pipeline.stream import Stream

tf = load_tensorflow()

_ENDLESS = np.iinfo(np.int64).max
# Batches that wait for their step while another is in use.
_PREPARED = 2
_IDENTITY = list(range(256))


def num_examples(data_dir: str | Path, stream: Stream) -> int:
    """Images of a stream's split.

    Raises:
      UserError: the data set or the split is missing.
    """
    return len(_open(data_dir, stream).records)


def names(data_dir: str | Path, stream: Stream) -> list[str]:
    """Names of the images of a stream's split, in stored order.

    Raises:
      UserError: the data set or the split is missing.
    """
    return _open(data_dir, stream).names.tolist()


def class_counts(data_dir: str | Path, stream: Stream, class_set: ClassSet) -> np.ndarray | None:
    """Pixels per image and class of a split, int64 [N, K + 1] with ignored pixels last; None where it is unlabelled.

    Raises:
      UserError: missing data, or a class set that the labels cannot give.
    """
    stored = _open(data_dir, stream)
    if not stored.labelled:
        return None
    counts = stored.class_counts(stream_labels.table(stream, class_set, stored))
    return np.column_stack([counts, stored.raw_counts().sum(1) - counts.sum(1)])


def examples(
    data_dir: str | Path, stream: Stream, class_set: ClassSet, numbers: Iterable[int]
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Stored images of a split by number, at their own size.

    Yields:
      uint8 [H, W, 3] and uint8 [H, W] of class indices and ``IGNORE``, None where unlabelled.

    Raises:
      UserError: missing data, or a damaged record.
    """
    stored = _open(data_dir, stream)
    for i in numbers:
        record = stored.read(int(i))
        label = None
        if stored.labelled:
            table = stream_labels.table(stream, class_set, stored).tolist()
            label = np.asarray(decoding.look_up(decoding.stored_label(record), table))
        yield np.asarray(decoding.stored_image(record)), label


def check(
    data_dir: str | Path, stream: Stream, class_set: ClassSet, class_map: Mapping[str, Any] | None = None
) -> None:
    """Refuses a stream that cannot be read, before anything is written.

    Args:
      data_dir: converted data.
      stream: what is to be read.
      class_set: classes of the labels.
      class_map: that the class set comes from, if it comes from one.

    Raises:
      UserError: missing data, no labels where they are needed, a class set that the labels cannot give, or data that
        were converted with another class map of that name.
    """
    stored = _open(data_dir, stream)
    if stream.labels and not stream.pseudo_labels:
        stream_labels.table(stream, class_set, stored)
        if class_map is not None and stream.dataset not in ENCODINGS:
            records.check_class_map(stored.root, class_map)
    # Pseudo labels may not be made yet.
    counts = np.ones((1, class_set.num_classes), np.int64) if stream.pseudo_labels else None
    _sampler(stream, class_set, stored, 0, counts)


def train_batches(
    data_dir: str | Path,
    stream: Stream,
    *,
    class_set: ClassSet,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    damaged_records: str = "fail",
) -> Generator[dict[str, np.ndarray]]:
    """Endless training batches in the order of ``stream.sampling``, each image newly augmented.

    Args:
      data_dir: converted data.
      stream: what to read.
      class_set: classes of the labels.
      batch_size: global; each process yields its share, and all processes together the same batch for any number.
      seed: with the position in the stream it determines everything.
      start_step: first step; costs nothing beyond reading the index.
      damaged_records: one of ``records.ON_DAMAGE``; 'skip' takes the next intact record of the split instead.

    Returns:
      batches: ``image`` uint8 [n, H, W, 3] and, with labels, ``label`` uint8 [n, H, W] of class indices and ``IGNORE``;
        with landmarks ``landmark`` uint8 [n, H, W], ``distribution`` and ``landmark_class``, see ``pseudo_labels``.

    Raises:
      UserError: missing data, no labels, or a damaged record.
    """
    stored = _open(data_dir, stream)
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    share, first = batch_size // process_count, start_step * batch_size
    number = _order(stream, class_set, stored, seed)
    note = handovers.recorder(stream=stream.role or "labelled", dataset=stream.dataset)
    labels = stream_labels.of(stream, class_set, stored, damaged_records, note)
    stream_id, (width, height) = _stream_id(stream), stream.image_size

    def load(i: int) -> tuple[np.ndarray, ...]:
        position = first + i // share * batch_size + process_index * share + i % share
        drawn = augmentation.draw(np.random.default_rng([seed, stream_id, position, 1]), stream.augment)
        record = stored.read_usable(number(position), damaged_records)
        augmented = _augmented(decoding.stored_image(record), labels.read(record), drawn, stream, note)
        return *augmented, *labels.further(record)

    def finish(image: Any, label: Any, *further: Any) -> dict[str, Any]:
        result = {"image": tf.ensure_shape(image, (height, width, 3))}
        if labels.key:
            result[labels.key] = tf.ensure_shape(label, (height, width))
        parts = zip(labels.blank.items(), further, strict=True)
        return result | {key: tf.ensure_shape(x, blank.shape) for (key, blank), x in parts}

    def batches() -> Iterator[dict[str, np.ndarray]]:
        label_shape = (height, width) if labels.key else (0, 0)
        blank = [np.zeros((height, width, 3), np.uint8), np.zeros(label_shape, np.uint8), *labels.blank.values()]
        return reading.batches(_ENDLESS, load, blank, finish, share, stored.in_flight)

    what = f"{stream.dataset}/{stream.split}: {share} images of {width}x{height} pixels"
    return memory.within(batches, what, (_PREPARED + 1) * share * width * height * (4 if labels.key else 3))


def batch_names(
    data_dir: str | Path, stream: Stream, *, class_set: ClassSet, batch_size: int, seed: int, step: int
) -> list[str]:
    """Names of the images of one global batch of ``train_batches``, of all processes, without reading any.

    Raises:
      UserError: missing data.
    """
    stored = _open(data_dir, stream)
    number = _order(stream, class_set, stored, seed)
    return [str(stored.names[number(position)]) for position in range(step * batch_size, (step + 1) * batch_size)]


def eval_batches(
    data_dir: str | Path,
    stream: Stream,
    *,
    class_set: ClassSet,
    batch_size: int,
    limit: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    damaged_records: str = "fail",
) -> Iterator[dict[str, Any]]:
    """One pass in stored order; every image counts once.

    Args:
      batch_size: global; each process yields its share of every batch.
      limit: at most so many images, spread evenly over the split; 0: all.
      damaged_records: one of ``records.ON_DAMAGE``; 'skip' leaves them out.

    Yields:
      ``image`` uint8 [n, H, W, 3] at ``stream.size``, ``label`` uint8 [n, h, w] at the label's own size (labelled
      streams; in one process images of another label size start a new batch), ``mask`` bool [n] (False: padding,
      black and ``IGNORE``), ``size`` int32 [n, 2] (height and width of the stored image), ``name`` [n], ``number``
      int32 [n] (place in the split).

    Raises:
      UserError: missing data, no labels, a damaged record, a batch that the processes cannot share evenly, or labels of
        several sizes in several processes.
    """
    stored = _open(data_dir, stream)
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    read = functools.partial(_eval_examples, stream, class_set, stored, damaged_records)
    numbers, share = np.arange(len(stored.records), dtype=np.int32), batch_size // process_count
    if 0 < limit < len(numbers):
        numbers = numbers[np.arange(limit) * len(numbers) // limit]
    batches = -(-len(numbers) // batch_size)
    places = (np.arange(batches)[:, None] * batch_size + process_index * share + np.arange(share)).ravel()

    waiting: list[dict[str, Any]] = []
    done, example = 0, None
    for example in read(numbers[places[places < len(numbers)]]):
        if waiting and stream.labels and waiting[0]["label"].shape != example["label"].shape:
            if process_count > 1:
                raise UserError(f"{stream.dataset}/{stream.split} has labels of several sizes: score it in one process")
            yield _pad(waiting, share)
            waiting = []
        waiting.append(example)
        if len(waiting) == share:
            yield _pad(waiting, share)
            waiting, done = [], done + 1
    if waiting:
        yield _pad(waiting, share)
        done += 1
    if process_count > 1 and done < batches:  # The others have images left, and every process takes part in a step.
        example = example or next(read(numbers))
        for _ in range(batches - done):
            yield {**_pad([example], share), "mask": np.zeros(share, bool)}


def _open(data_dir: str | Path, stream: Stream) -> Records:
    return records.open_split(stream.data_dir or data_dir, stream.dataset, stream.split, stream.city)


def _stream_id(stream: Stream) -> int:
    # crc32, because Python's own hash differs from process to process.
    role = f"/{stream.role}" if stream.role else ""
    return zlib.crc32(f"{stream.dataset}/{stream.city}/{stream.split}{role}".encode())


def _order(stream: Stream, class_set: ClassSet, stored: Records, seed: int) -> Callable[[int], int]:
    """A function from a position in the stream to the number of its image."""
    sampler = _sampler(stream, class_set, stored, seed)
    length = sampling.run_length(stream.sampling, len(stored.records))
    return lambda position: int(sampler(position // length)[position % length])


def _sampler(
    stream: Stream, class_set: ClassSet, stored: Records, seed: int, counts: np.ndarray | None = None
) -> Callable[[int], np.ndarray]:
    """A function from the number of a run to its image numbers, int64 [``sampling.run_length``].

    It keeps the last runs. One thread computes a run while the others that need it wait for it.

    Args:
      counts: pixels per image and class; None: those of the stream's labels.

    Raises:
      UserError: no such sampling, or one that needs labels on a stream without.
    """
    kind, stream_id = stream.sampling, _stream_id(stream)
    if kind not in sampling.KINDS:
        raise UserError(f"sampling={kind!r}: one of {', '.join(sampling.KINDS)}")
    if kind == "uniform":
        return _computed_once(lambda run: sampling.uniform_run(len(stored.records), [seed, stream_id, run]))
    if not (stream.labels or stream.pseudo_labels):
        raise UserError(f"sampling={kind!r} needs labels: use 'uniform' for {stream.dataset}/{stream.split}")
    if counts is None and stream.pseudo_labels:
        pseudo = PseudoLabels(stream.pseudo_labels, class_set.num_classes)
        counts = pseudo.class_counts(stored.names.tolist(), class_set.num_classes)
    elif counts is None:
        counts = stored.class_counts(stream_labels.table(stream, class_set, stored))
    if kind == "mined":
        return _computed_once(lambda run: sampling.mined_run(counts, [seed, stream_id, run]))
    if kind == "balanced":
        return _computed_once(lambda run: sampling.balanced_run(counts, [seed, stream_id, run]))
    if stream.sampling_temperature <= 0:
        raise UserError(f"sampling_temperature={stream.sampling_temperature} must be positive")
    return _computed_once(lambda run: sampling.rare_run(counts, [seed, stream_id, run], stream.sampling_temperature))


def _computed_once(order: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    cached, lock = functools.lru_cache(2)(order), threading.Lock()

    def locked(run: int) -> np.ndarray:
        # Without the lock every thread that misses the cache would compute the run.
        with lock:
            return cached(run)

    return locked


def _augmented(
    image: Image.Image, label: Image.Image | None, drawn: augmentation.Draw, stream: Stream, note: Callable[..., None]
) -> tuple[np.ndarray, np.ndarray]:
    """A stored image and its label as the network sees them; a label of no pixels stands for none."""
    options = stream.augment
    if options.jitters and options.jitter_first:
        note("jitter", size=handovers.size(image), strengths=options.strengths)
        image = augmentation.jitter(image, drawn)
    before, image = handovers.size(image), decoding.shrink(image, stream.size)
    note("resize", before=before, after=handovers.size(image))
    jitter_now = options.jitters and not options.jitter_first
    pixels, classes = augmentation.geometry(image, label, drawn, options, jitter_now=jitter_now, note=note)
    return pixels, np.zeros((0, 0), np.uint8) if classes is None else classes


def _eval_examples(
    stream: Stream, class_set: ClassSet, stored: Records, on_damage: str, numbers: np.ndarray
) -> Iterator[dict[str, Any]]:
    """The intact images of ``numbers`` one by one: ``eval_batches``'s entries without ``mask``."""
    table = stream_labels.table(stream, class_set, stored).tolist() if stream.labels else _IDENTITY
    note = handovers.recorder(stream=stream.role or "tested", dataset=stream.dataset)
    blank = {
        "image": np.zeros((1, 1, 3), np.uint8), "label": np.zeros((0, 0), np.uint8), "name": np.zeros((), "S1"),
        "size": np.zeros(2, np.int32), "number": np.zeros((), np.int32), "intact": np.zeros((), bool),
    }  # fmt: skip

    def load(i: int) -> tuple[Any, ...]:
        number = int(numbers[i])
        record = stored.read_or_skip(number, on_damage)
        intact = record is not None
        record = record or stored.read_usable(number, on_damage)
        label = np.zeros((0, 0), np.uint8)
        if stream.labels:
            label = np.asarray(decoding.look_up(decoding.stored_label(record), table))
        image = decoding.fitted(decoding.stored_image(record), stream.size)
        note("resize", before=handovers.size(record["size"]), after=handovers.size(image))
        size = np.array(record["size"], np.int32)
        return image, label, record["name"].encode(), size, np.int32(number), intact

    def finish(*values: Any) -> dict[str, Any]:
        return dict(zip(blank, values, strict=True))

    for batch in reading.batches(len(numbers), load, list(blank.values()), finish, 1, stored.in_flight):
        example = {key: value[0] for key, value in batch.items() if stream.labels or key != "label"}
        if example.pop("intact"):
            yield example


def _pad(examples: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """A batch of ``examples``, filled with black and ``IGNORE``."""
    missing = batch_size - len(examples)
    batch: dict[str, Any] = {"mask": np.arange(batch_size) < len(examples)}
    for key in examples[0]:
        if key == "name":
            batch[key] = [example[key].decode() for example in examples] + [""] * missing
            continue
        values = np.stack([example[key] for example in examples])
        fill = IGNORE if key == "label" else 0
        batch[key] = np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1), constant_values=fill)
    return batch
