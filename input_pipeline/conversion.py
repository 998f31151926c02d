"""Raw data sets to sharded TFRecords, written by tensorflow-datasets, with an index for random access."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import os
import shlex
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from fada_jax.classes import ENCODINGS, parse_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import layouts, load_tensorflow, raw_files, records, workers
from fada_jax.input_pipeline.layouts import RawExample

tf = load_tensorflow()
# The command prints progress of its own.
tfds.disable_progress_bar()


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One conversion.

    Attributes:
      dataset: key of ``layouts.DATASETS``.
      raw_dir: folder of the raw data.
      city: Cross-City only.
      name: of the converted data set, where it is a user's own ('folder').
      class_map: what ``fada_jax.classes.read_class_map`` returns; a user's own data need one.
      workers: processes that read and check images.
      beam: pipeline options of Apache Beam, which then does it instead of those processes.
      resize: (width, height) to store at; None keeps the images' own size.
      encoding: one of ``encoding.ENCODINGS``; TensorFlow and tensorflow-datasets decode all but 'tiff'.
      skip_errors: leave bad examples out and count them, instead of failing.
    """

    dataset: str
    raw_dir: Path
    city: str = ""
    name: str = ""
    class_map: dict[str, Any] | None = None
    workers: int = 1
    beam: str = ""
    resize: tuple[int, int] | None = None
    encoding: str = "png"
    skip_errors: bool = False

    @property
    def stored_as(self) -> str:
        """Name of the data set under ``data_dir``, as configs call it."""
        return self.name or self.dataset


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Stores image, label of raw ids with its pixels per id (none: unlabelled), name and size, in the raw order.

    ``sources`` gives for each split its (key, example) pairs, as an iterable or as a Beam transform that makes them.
    """

    VERSION = tfds.core.Version(records.VERSION)
    skip_registration = True

    def __init__(self, *, sources: dict[str, Any], encoding: str, **options: Any) -> None:
        self._sources, self._encoding = sources, encoding
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        text, number = tfds.features.Tensor(shape=(), dtype=tf.string), tfds.features.Scalar(np.int32)
        counts = tfds.features.Tensor(shape=(256,), dtype=np.int64)
        features = {"image": text, "label": text, "counts": counts, "name": text, "height": number, "width": number}
        if self._encoding != "tiff":  # Which no TensorFlow op decodes.
            features["image"] = tfds.features.Image(shape=(None, None, 3), encoding_format=self._encoding)
            features["label"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True, description="Made for fada-jax."
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._sources}

    def _generate_examples(self, split: str) -> Any:
        return self._sources[split]


def convert(
    conversion: Conversion, data_dir: str | Path, progress: Callable[[str, int, int], None] = lambda *_: None
) -> tuple[Path, dict[str, int], list[str]]:
    """Converts a raw data set; what is at its place stays untouched until the new one is complete.

    Args:
      progress: called with the split, the images done and the images in all.

    Returns:
      the folder, images per split, and the errors that were skipped.

    Raises:
      UserError: wrong raw folder, or bad files (all of them listed in ``<data_dir>/<dataset>_errors.txt``).
    """
    data_dir, dataset = Path(data_dir).absolute(), conversion.stored_as
    splits = layouts.DATASETS[conversion.dataset](Path(conversion.raw_dir), conversion.city)
    splits = {split: examples for split, examples in splits.items() if examples}
    title = "_".join(filter(None, (dataset, conversion.city)))
    partial, replaced = data_dir / f".{title}.partial", data_dir / f".{title}.replaced"
    final, report = records.folder(data_dir, dataset, conversion.city), data_dir / f"{title}_errors.txt"
    beam, beam_options = _beam(conversion.beam) if conversion.beam else (None, None)
    shutil.rmtree(partial, ignore_errors=True)
    if replaced.exists() and not final.exists():  # Killed between the two moves of ``_replace``.
        os.replace(replaced, final)
    try:
        sources = {split: _source(conversion, split, splits[split], partial, beam, progress) for split in splits}
        try:
            builder = _write_records(conversion, sources, partial, beam_options)
        except Exception as error:
            _refuse_empty_splits(splits, partial, report, error)
            raise
        bad = {split: _errors(partial, split) for split in splits}
        errors = list(itertools.chain(*bad.values()))
        _write_report(report, errors)
        if errors and not conversion.skip_errors:
            raise UserError(f"{errors[0]} ({len(errors)} bad in all, listed in {report})")
        root = Path(builder.data_dir)
        counts = {split: len(examples) - len(bad[split]) for split, examples in splits.items()}
        for split, count in counts.items():
            shards = [Path(name).name for name in builder.info.splits[split].filenames]
            _write_index(root, split, shards, count)
        note: dict[str, Any] = {"resize": conversion.resize, "encoding": conversion.encoding, "images": counts}
        note |= {"skipped": len(errors), "class_map": conversion.class_map}
        (root / "conversion.json").write_text(json.dumps(note, indent=2) + "\n")
        _replace(root, final, replaced)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final, counts, errors


def _beam(options: str) -> tuple[Any, Any]:
    """The module apache_beam, and its pipeline options.

    Raises:
      UserError: it is not installed, or there is no such runner.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    except ImportError as error:
        raise UserError("--beam needs Apache Beam, in an environment of its own: see docs/data.md") from error
    # Beam logs a traceback beside the error that it raises, which would bury its one line.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    parsed = PipelineOptions(shlex.split(options))
    try:
        beam.runners.create_runner(parsed.view_as(StandardOptions).runner or "DirectRunner")
    except (ImportError, ValueError) as error:
        raise UserError(f"--beam={options}: {error}") from error
    return beam, parsed


def _source(
    conversion: Conversion,
    split: str,
    examples: list[RawExample],
    partial: Path,
    beam: Any,
    progress: Callable[[str, int, int], None],
) -> Any:
    """The keyed examples of a split, and a file in ``partial`` for each bad one: an iterator, or a Beam transform."""
    dataset, class_map = conversion.stored_as, conversion.class_map
    ids = parse_class_map(class_map, dataset)[1] if class_map else ENCODINGS[dataset]
    read = functools.partial(
        raw_files.read_record, dataset, ids, resize=conversion.resize, encoding=conversion.encoding
    )
    errors = partial / ".errors" / split
    errors.mkdir(parents=True)
    spread = 2**shuffle.HKEY_SIZE // len(examples)
    keyed = functools.partial(workers.keyed_example, read, errors, spread)
    if beam:
        return beam.Create(list(enumerate(examples))) | beam.Reshuffle() | beam.FlatMap(keyed)
    results = workers.in_order(keyed, enumerate(examples), conversion.workers)
    return _counted(results, lambda done: progress(split, done, len(examples)))


def _counted(results: Iterable[list[Any]], progress: Callable[[int], None]) -> Iterator[Any]:
    """Flattens, and reports how many lists have come."""
    for i, items in enumerate(results, start=1):
        yield from items
        progress(i)


def _write_records(conversion: Conversion, sources: dict[str, Any], partial: Path, beam_options: Any) -> _Builder:
    """Writes the shards, and the files by which tensorflow-datasets knows them."""
    dataset = conversion.stored_as
    options: dict[str, Any] = {"sources": sources, "encoding": conversion.encoding}
    if conversion.city:
        options["config"] = tfds.core.BuilderConfig(name=conversion.city, version=records.VERSION)
    # tensorflow-datasets names the folder and the shards after the class.
    builder_class = type(dataset, (_Builder,), {"__module__": __name__}, skip_registration=True)
    builder = builder_class(data_dir=str(partial), **options)
    download = tfds.download.DownloadConfig(try_download_gcs=False, beam_options=beam_options)
    with contextlib.redirect_stdout(io.StringIO()):  # It announces a download although nothing is downloaded.
        builder.download_and_prepare(download_config=download)
    return builder


def _errors(partial: Path, split: str) -> list[str]:
    """What is wrong with the bad examples of a split, in the raw order."""
    return [path.read_text() for path in sorted((partial / ".errors" / split).iterdir())]


def _refuse_empty_splits(splits: dict[str, list[RawExample]], partial: Path, report: Path, cause: Exception) -> None:
    """Names the first split without a usable image, where that is the ``cause`` of a failed conversion."""
    for split, examples in splits.items():
        errors = _errors(partial, split)
        if len(errors) == len(examples):
            _write_report(report, errors)
            raise UserError(
                f"{errors[0]}; no image of {split} can be used ({len(errors)} bad, listed in {report})"
            ) from cause


def _write_report(path: Path, errors: list[str]) -> None:
    """One error a line; no file where there is none."""
    if errors:
        path.write_text("\n".join(errors) + "\n")
    else:
        path.unlink(missing_ok=True)


def _scan(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of every record of a TFRecord file."""
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0]
            offset = file.tell()
            yield offset, file.read(length)
            file.seek(offset + length + 4)


def _write_index(root: Path, split: str, shards: list[str], expected: int) -> None:
    """See ``records.index_path``."""
    places, names, counts = [], [], []
    for s, shard in enumerate(shards):
        for offset, payload in _scan(root / shard):
            feature = tf.train.Example.FromString(payload).features.feature
            places.append((s, offset, len(payload), zlib.crc32(payload)))
            names.append(feature["name"].bytes_list.value[0].decode())
            counts.append(np.array(feature["counts"].int64_list.value))
    if len(places) != expected:
        raise UserError(f"{root}: {len(places)} records of {split} were written, {expected} expected; convert again")
    np.savez_compressed(
        records.index_path(root, split),
        counts=np.array(counts),
        records=np.array(places, np.int64),
        names=np.array(names),
        shards=np.array(shards),
    )


def _replace(root: Path, final: Path, replaced: Path) -> None:
    """Moves a complete data set to its place; an earlier one is moved away whole, so that no half one is ever there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(final, replaced)
    os.replace(root, final)
    shutil.rmtree(replaced, ignore_errors=True)
