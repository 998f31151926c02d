"""tf.data streams from converted data sets: stateless augmentation, random access, resumable at any step.

Every random choice is a function of (seed, data set, split, position in the stream), so a stream that starts at step N
yields what an undisturbed one yields there, without replaying anything. Batches are uint8; normalisation belongs to the
accelerator.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image

from fada_jax import files, handovers
from fada_jax.classes import IGNORE, ClassSet, LabelEncoding, label_table
from fada_jax.errors import UserError
from fada_jax.input_pipeline import augmentation, builders, raw_datasets, sampling
from fada_jax.input_pipeline.stream import Stream

try:
    import cykooz_resizer
except ImportError:  # Some platforms have no wheel.
    cykooz_resizer = None

# JAX owns the accelerators.
tf.config.set_visible_devices([], "GPU")

_ENDLESS = np.iinfo(np.int64).max
# What a stream does with a record whose checksum differs.
ON_DAMAGE = ("fail", "skip")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Random access to the records of a split; ``skipped`` are the damaged ones that were met."""

    root: Path
    split: str
    shards: np.ndarray
    records: np.ndarray
    names: np.ndarray
    labelled: bool
    encoding: LabelEncoding
    skipped: set[int] = dataclasses.field(default_factory=set)

    def class_counts(self, table: np.ndarray) -> np.ndarray:
        """Pixels per image and class, int64 [N, K]; ``table`` maps raw ids to class indices."""
        classes = table[table != IGNORE]
        one_hot = table[:, None] == np.arange(classes.max() + 1)
        return np.load(builders.index_path(self.root, self.split))["counts"] @ one_hot.astype(np.int64)

    def read(self, i: int) -> dict[str, Any]:
        """Record ``i``: ``image`` and ``label`` as files' bytes, ``name``, ``size`` (height, width)."""
        payload = builders.read_payload(self.root, self.shards, self.records[i], i)
        features = tf.train.Example.FromString(payload).features.feature
        image, label, name = (features[key].bytes_list.value[0] for key in ("image", "label", "name"))
        size = tuple(features[key].int64_list.value[0] for key in ("height", "width"))
        return {"image": image, "label": label, "name": name.decode(), "size": size}

    def read_or_skip(self, i: int, on_damage: str) -> dict[str, Any] | None:
        """Record ``i``; None where it is damaged and ``on_damage`` is 'skip', which is said once a record."""
        try:
            return self.read(i)
        except builders.DamagedRecordError as error:
            if on_damage == "fail":
                raise UserError(f"{error}, or leave it out with --config.damaged_records=skip") from error
            if i not in self.skipped:
                self.skipped.add(i)
                print(f"skipped: {error} ({len(self.skipped)} of {self.split} so far)", file=sys.stderr)
            return None

    def read_usable(self, i: int, on_damage: str) -> dict[str, Any]:
        """Record ``i``, or the next that is not damaged where damaged ones are skipped."""
        for k in range(i, i + len(self.records)):
            record = self.read_or_skip(k % len(self.records), on_damage)
            if record is not None:
                return record
        raise UserError(f"{self.root}: every record of {self.split} is damaged; convert again with --overwrite")


def _open(data_dir: str | Path, stream: Stream) -> _Source:
    root = builders.folder(data_dir, stream.dataset, stream.city)
    path = builders.index_path(root, stream.split)
    if not path.is_file():
        splits = sorted(p.name.removesuffix("_index.npz") for p in root.glob("*_index.npz"))
        if splits:
            raise UserError(f"{root} has no split {stream.split!r}: one of {', '.join(splits)}")
        own = stream.dataset not in builders.BUILDERS
        which = f"--dataset=folder --name={stream.dataset} --class_map=MAP" if own else f"--dataset={stream.dataset}"
        raise UserError(
            f"{root} is not there: make it with python scripts/convert_dataset.py {which} --raw_dir=RAW "
            f"--data_dir={data_dir}" + (f" (ours are {', '.join(builders.BUILDERS)})" if own else "")
        )
    index = np.load(path)
    labelled = bool(index["counts"].any())
    return _Source(
        root,
        stream.split,
        index["shards"],
        index["records"],
        index["names"],
        labelled,
        builders.encoding(root, stream.dataset),
    )


def _table(stream: Stream, class_set: ClassSet, source: _Source) -> np.ndarray:
    """Raw id -> class index."""
    if not source.labelled:
        raise UserError(f"{stream.dataset}/{stream.split} in {source.root} has no labels")
    try:
        return label_table(stream.dataset, class_set, source.encoding)
    except ValueError as error:
        raise UserError(str(error)) from error


def num_examples(data_dir: str | Path, stream: Stream) -> int:
    """Images of a stream's split.

    Raises:
      UserError: the data set or the split is not there.
    """
    return len(_open(data_dir, stream).records)


def names(data_dir: str | Path, stream: Stream) -> list[str]:
    """Names of the images of a stream's split, in stored order.

    Raises:
      UserError: the data set or the split is not there.
    """
    return _open(data_dir, stream).names.tolist()


def class_counts(data_dir: str | Path, stream: Stream, class_set: ClassSet) -> np.ndarray | None:
    """Pixels per image and class of a split, int64 [N, K + 1] with ignored pixels last; None where it is unlabelled.

    Raises:
      UserError: missing data, or a class set that the labels cannot give.
    """
    source = _open(data_dir, stream)
    if not source.labelled:
        return None
    counts = source.class_counts(_table(stream, class_set, source))
    every = np.load(builders.index_path(source.root, source.split))["counts"].sum(1)
    return np.column_stack([counts, every - counts.sum(1)])


def examples(
    data_dir: str | Path, stream: Stream, class_set: ClassSet, numbers: Iterable[int]
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Stored images of a split by number, at their own size.

    Yields:
      uint8 [H, W, 3] and uint8 [H, W] of class indices and ``IGNORE``, None where unlabelled.

    Raises:
      UserError: missing data, or a damaged record.
    """
    source = _open(data_dir, stream)
    for i in numbers:
        record = source.read(int(i))
        label = None
        if source.labelled:
            label = _read_label(record["label"], _table(stream, class_set, source).tolist())
        yield _read_image(record["image"]), label


def check(data_dir: str | Path, stream: Stream, class_set: ClassSet) -> None:
    """Refuses a stream that cannot be read, before anything is written.

    Raises:
      UserError: missing data, no labels where they are needed, or a class set that the labels cannot give.
    """
    source = _open(data_dir, stream)
    if stream.labels and not stream.pseudo_labels:
        _table(stream, class_set, source)
    _sampler(stream, class_set, source, 0)


def _sampler(stream: Stream, class_set: ClassSet, source: _Source, seed: int) -> Callable[[int], np.ndarray]:
    """A function from the number of a run to its image numbers, int64 [``sampling.run_length``].

    It keeps the last runs. One thread computes a run while the others that need it wait for it.

    Raises:
      UserError: no such sampling, or one that needs labels on a stream without.
    """
    kind, stream_id = stream.sampling, _stream_id(stream)
    if kind not in sampling.KINDS:
        raise UserError(f"sampling={kind!r}: one of {', '.join(sampling.KINDS)}")
    if kind == "uniform":
        return _computed_once(lambda run: sampling.uniform_run(len(source.records), [seed, stream_id, run]))
    if not stream.labels:
        raise UserError(f"sampling={kind!r} needs labels: use 'uniform' for {stream.dataset}/{stream.split}")
    counts = source.class_counts(_table(stream, class_set, source))
    if kind == "balanced":
        return _computed_once(lambda run: sampling.balanced_run(counts, [seed, stream_id, run]))
    if stream.sampling_temperature <= 0:
        raise UserError(f"sampling_temperature={stream.sampling_temperature} must be positive")
    return _computed_once(lambda run: sampling.rare_run(counts, [seed, stream_id, run], stream.sampling_temperature))


def _computed_once(order: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    cached, lock = functools.lru_cache(2)(order), threading.Lock()

    def locked(run: int) -> np.ndarray:
        # The cache alone lets every thread that misses compute the run.
        with lock:
            return cached(run)

    return locked


def _stream_id(stream: Stream) -> int:
    # crc32, because Python's own hash differs from process to process.
    role = f"/{stream.role}" if stream.role else ""
    return zlib.crc32(f"{stream.dataset}/{stream.city}/{stream.split}{role}".encode())


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
) -> Iterator[dict[str, np.ndarray]]:
    """Endless training batches in the order of ``stream.sampling``, each image newly augmented.

    Args:
      data_dir: converted data.
      stream: what to read.
      class_set: classes of the labels.
      batch_size: global; each process yields its share, and all processes together the same batch for any number.
      seed: with the position in the stream it determines everything.
      start_step: first step; costs nothing beyond reading the index.
      damaged_records: one of ``ON_DAMAGE``; 'skip' takes the next intact record of the split instead.

    Returns:
      batches: ``image`` uint8 [n, H, W, 3] and, with labels, ``label`` uint8 [n, H, W] of class indices and ``IGNORE``.

    Raises:
      UserError: missing data, no labels, or a damaged record.
    """
    source = _open(data_dir, stream)
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    share = batch_size // process_count
    sampler, length = (
        _sampler(stream, class_set, source, seed),
        sampling.run_length(stream.sampling, len(source.records)),
    )
    pseudo = _PseudoLabels(stream.pseudo_labels) if stream.pseudo_labels else None
    if pseudo and damaged_records == "fail" and (missing := pseudo.missing(source.names.tolist())):
        raise UserError(
            f"{stream.pseudo_labels} has no label for {len(missing)} of {len(source.names)} images, for instance "
            f"{missing[0]}: delete it, the same command makes it again"
        )
    with_labels = stream.labels or pseudo is not None
    identity = np.arange(256, dtype=np.uint8)
    table = identity if pseudo or not with_labels else _table(stream, class_set, source)
    lookup = table.tolist()
    options, stream_id = stream.augment, _stream_id(stream)
    width, height = options.crop or stream.size
    note = handovers.recorder(stream=stream.role or "labelled", dataset=stream.dataset)

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        position = (start_step + i // share) * batch_size + process_index * share + i % share
        drawn = augmentation.draw(np.random.default_rng([seed, stream_id, position, 1]), options)
        record = source.read_usable(int(sampler(position // length)[position % length]), damaged_records)
        image, label = _decode_image(record["image"]), None
        if with_labels:
            file = pseudo.read(record["name"]) if pseudo else record["label"]
            label = _decode_label(file, lookup, stream.size, note)
        if options.jitters and options.jitter_first:
            note("jitter", size=handovers.size(image), strengths=options.strengths)
            image = augmentation.jitter(image, drawn)
        before, image = handovers.size(image), _shrink(image, stream.size)
        note("resize", before=before, after=handovers.size(image))
        pixels, classes = augmentation.geometry(
            image, label, drawn, options, jitter_now=options.jitters and not options.jitter_first, note=note
        )
        return pixels, np.zeros((0, 0), np.uint8) if classes is None else classes

    def finish(image: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        result = {"image": tf.ensure_shape(image, (height, width, 3))}
        if with_labels:
            result["label"] = tf.ensure_shape(label, (height, width))
        return result

    return _run(_ENDLESS, load, [tf.uint8, tf.uint8], finish, share)


def batch_names(
    data_dir: str | Path, stream: Stream, *, class_set: ClassSet, batch_size: int, seed: int, step: int
) -> list[str]:
    """Names of the images of one global batch of ``train_batches``, of all processes, without reading any.

    Raises:
      UserError: missing data.
    """
    source = _open(data_dir, stream)
    sampler = _sampler(stream, class_set, source, seed)
    length = sampling.run_length(stream.sampling, len(source.records))
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [str(source.names[sampler(position // length)[position % length]]) for position in positions]


def _run(
    count: int,
    load: Callable[[int], tuple[Any, ...]],
    types: list[tf.DType],
    finish: Callable[..., Any],
    batch_size: int,
) -> Iterator[Any]:
    """Batches of ``finish(*load(i))`` for i from 0 to ``count``, in order; an error of ours passes as itself.

    ``load`` reads in TensorFlow's threads, several images side by side: Pillow lets go of Python's lock.
    """
    failed: list[UserError] = []

    def load_one(i: np.ndarray) -> tuple[Any, ...]:
        try:
            return load(int(i))
        except UserError as error:
            failed.append(error)
            raise

    # Nothing here is Python that TensorFlow would have to translate, which took seconds a stream.
    @tf.autograph.experimental.do_not_convert
    def example(i: tf.Tensor) -> Any:
        return finish(*tf.numpy_function(load_one, [i], types, stateful=False))

    # The thread that would tune the parallelism takes a core now and then, and up to a minute to end.
    options = tf.data.Options()
    options.autotune.enabled = False
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    dataset = tf.data.Dataset.range(count).map(example, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options)
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError as error:
        raise failed[0] if failed else UserError(f"an image cannot be decoded: {error.message}") from error


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
      damaged_records: one of ``ON_DAMAGE``; 'skip' leaves them out.

    Yields:
      ``image`` uint8 [n, H, W, 3] at ``stream.size``, ``label`` uint8 [n, h, w] at the label's own size (labelled
      streams; in one process images of another label size start a new batch), ``mask`` bool [n] (False: padding,
      black and ``IGNORE``), ``size`` int32 [n, 2] (height and width of the stored image), ``name`` [n], ``number``
      int32 [n] (place in the split).

    Raises:
      UserError: missing data, no labels, a damaged record, a batch that the processes cannot share evenly, or labels of
        several sizes in several processes.
    """
    source = _open(data_dir, stream)
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    with_labels = stream.labels
    table = _table(stream, class_set, source) if with_labels else np.arange(256, dtype=np.uint8)
    lookup = table.tolist()
    numbers = np.arange(len(source.records), dtype=np.int32)
    if 0 < limit < len(numbers):
        numbers = numbers[np.arange(limit) * len(numbers) // limit]
    share, count = batch_size // process_count, len(numbers)
    batches = -(-count // batch_size)

    first = np.arange(batches)[:, None] * batch_size + process_index * share
    mine = (first + np.arange(share)).ravel()
    mine = numbers[mine[mine < count]]
    note = handovers.recorder(stream=stream.role or "tested", dataset=stream.dataset)

    def load(i: int) -> tuple[Any, ...]:
        record = source.read_or_skip(i, damaged_records)
        intact = record is not None
        if record is None:
            record = source.read_usable(i, damaged_records)
        label = _read_label(record["label"], lookup) if with_labels else np.zeros((0, 0), np.uint8)
        image = _read_image(record["image"], stream.size)
        note("resize", before=handovers.size(record["size"]), after=handovers.size(image))
        return (
            image,
            label,
            record["name"].encode(),
            np.array(record["size"], np.int32),
            np.int32(i),
            intact,
        )

    def finish(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(("image", "label", "name", "size", "number", "intact"), values, strict=True))

    def single(numbers: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        types = [tf.uint8, tf.uint8, tf.string, tf.int32, tf.int32, tf.bool]
        for batch in _run(len(numbers), lambda i: load(int(numbers[i])), types, finish, 1):
            example = {key: value[0] for key, value in batch.items() if with_labels or key != "label"}
            if example.pop("intact"):
                yield example

    waiting: list[dict[str, np.ndarray]] = []
    done, example = 0, None
    for example in single(mine):
        if waiting and with_labels and waiting[0]["label"].shape != example["label"].shape:
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
        if example is None:
            example = next(single(numbers))
        for _ in range(batches - done):
            yield {**_pad([example], share), "mask": np.zeros(share, bool)}


def _pad(examples: list[dict[str, np.ndarray]], batch_size: int) -> dict[str, Any]:
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


def _decode_image(data: bytes) -> Image.Image:
    """An image file decoded, RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _read_image(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file decoded and resized to (width, height) by Pillow, bicubic with antialiasing: uint8 [H, W, 3]."""
    return np.asarray(_fit(_decode_image(data), size, Image.Resampling.BICUBIC))


def _shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic with antialiasing; where it can the bicubic of Pillow 12 in an eighth of its time, within one grey level:
    the same passes, columns first."""
    if not cykooz_resizer or size[0] >= image.width or size[1] >= image.height:
        return _fit(image, size, Image.Resampling.BICUBIC)
    bicubic = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
    options, resizer = cykooz_resizer.ResizeOptions(resize_alg=bicubic), cykooz_resizer.Resizer()
    for step in ((size[0], image.height), size):
        resized = Image.new("RGB", step)
        resizer.resize_pil(image, resized, options)
        image = resized
    return image


def _decode_label(
    data: bytes, table: list[int], size: tuple[int, int] | None = None, note: Callable[..., None] = handovers.note
) -> Image.Image:
    """A label file decoded, resized to (width, height) by Pillow, nearest, and looked up."""
    with Image.open(io.BytesIO(data)) as image:
        label = _fit(image, size, Image.Resampling.NEAREST).point(table)
        if size:
            note("resize label", before=handovers.size(image), after=handovers.size(label))
        return label


def _read_label(data: bytes, table: list[int]) -> np.ndarray:
    """A label file decoded and looked up: uint8 [H, W]."""
    return np.asarray(_decode_label(data, table))


def _fit(image: Image.Image, size: tuple[int, int] | None, method: Image.Resampling) -> Image.Image:
    return image if size in (None, image.size) else image.resize(size, method)


def write_pseudo_labels(
    path: str | Path, items: Iterable[tuple[str, np.ndarray]], provenance: Mapping[str, Any] | None = None
) -> int:
    """Writes label maps by image name to one TFRecord file, whole or not at all.

    Args:
      path: file to write.
      items: (name, uint8 [h, w] of class indices and ``IGNORE``).
      provenance: what the labels were made of, in JSON types; the file begins with it.

    Returns:
      the number of maps.
    """
    count = 0
    with files.replacing(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        writer.write(_example(provenance=json.dumps(dict(provenance or {}), sort_keys=True).encode()))
        for name, label in items:
            writer.write(_example(name=name.encode(), label=raw_datasets.encode(Image.fromarray(label))))
            count += 1
    return count


def _example(**features: bytes) -> bytes:
    lists = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()


def _pseudo_label_records(path: str | Path) -> Iterator[tuple[int, bytes, Mapping[str, Any]]]:
    """Offset, payload and features of every record of a file of pseudo labels.

    Raises:
      UserError: it is not there, is another kind of file, or a record differs from its checksum.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of pseudo labels")
    offset = 0
    try:
        # TensorFlow's own reader compares both checksums of every record.
        for payload in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(payload).features.feature
            if "provenance" not in features and not {"name", "label"} <= set(features):
                raise UserError(f"{path} is no file of pseudo labels: delete it, the same command makes it again")
            yield offset + 12, payload, features
            offset += 12 + len(payload) + 4
    except (tf.errors.OpError, DecodeError) as error:
        raise UserError(f"{path} is damaged: delete it, the same command makes it again") from error


def pseudo_label_provenance(path: str | Path) -> dict[str, Any]:
    """What a file of ``write_pseudo_labels`` says its labels were made of; {} where an earlier version wrote it.

    Raises:
      UserError: it is not there or damaged.
    """
    for _, _, features in _pseudo_label_records(path):
        if "provenance" in features:
            return json.loads(features["provenance"].bytes_list.value[0])
        break
    return {}


class _PseudoLabels:
    """Label maps of ``write_pseudo_labels`` by name; only their places in the file are held in memory."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._places: dict[str, tuple[int, int, int]] = {}
        for offset, payload, features in _pseudo_label_records(path):
            if "provenance" in features:
                continue
            name = features["name"].bytes_list.value[0].decode()
            self._places[name] = (offset, len(payload), zlib.crc32(payload))

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that have no label."""
        return [name for name in names if name not in self._places]

    def read(self, name: str) -> bytes:
        if name not in self._places:
            raise UserError(f"{self._path} has no label for {name}: delete it, the same command makes it again")
        offset, length, crc = self._places[name]
        with self._path.open("rb") as file:
            payload = os.pread(file.fileno(), length, offset)
        if zlib.crc32(payload) != crc:
            raise UserError(f"{self._path}: the label of {name} is damaged: delete the file, it is made again")
        return tf.train.Example.FromString(payload).features.feature["label"].bytes_list.value[0]
