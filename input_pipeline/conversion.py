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
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from fada_jax import files, folders, images
from fada_jax.classes import ENCODINGS, parse_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import indexes, layouts, load_tensorflow, raw_files, records, workers
from fada_jax.input_pipeline.layouts import RawExample

tf = load_tensorflow()
# The command prints progress of its own.
tfds.disable_progress_bar()

# Of a stored image; formats and resizing know no larger ones.
_MAX_SIDE = 32_768
_REPORT = "# Files that fada-jax could not use, one a line."
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


def _no_progress(split: str, total: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    del split, total
    return contextlib.nullcontext(lambda done: None)


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


def report_path(data_dir: str | Path, dataset: str, city: str = "") -> Path:
    """Where a conversion lists the bad files that it met."""
    return files.place(data_dir) / f"{'_'.join(filter(None, (dataset, city)))}_errors.txt"


def convert(
    conversion: Conversion, data_dir: str | Path, progress: Progress = _no_progress
) -> tuple[Path, dict[str, int], list[str]]:
    """Converts a raw data set; what is at its place stays untouched until the new one is complete.

    Args:
      conversion: what to convert.
      data_dir: where data sets lie.
      progress: given a split and its images in all, a context that takes the number of images done.

    Returns:
      the folder, images per split, and the errors that were skipped.

    Raises:
      UserError: wrong raw folder, a place that is somebody else's or that another process writes to, or bad files (all
        of them listed in ``report_path``).
    """
    _check_resize(conversion.resize)
    raw_dir = files.place(conversion.raw_dir, "--raw_dir")
    splits = layouts.list_splits(conversion.dataset, raw_dir, conversion.city)
    raw = layouts.fingerprints(splits, raw_dir)
    beam, beam_options = _beam(conversion.beam) if conversion.beam else (None, None)
    final = records.folder(files.place(data_dir, "--data_dir").absolute(), conversion.stored_as, conversion.city)
    report = report_path(final.parents[2 if conversion.city else 1], conversion.stored_as, conversion.city)
    _check_places(final, report)
    with contextlib.ExitStack() as stack:
        stack.enter_context(tidied(final.parent))
        partial = stack.enter_context(folders.making(final, ours=records.is_ours))
        found, built = partial / ".errors", partial / ".built"
        sources = {
            split: _source(conversion, split, examples, found, beam, progress, stack)
            for split, examples in splits.items()
        }
        try:
            written = write_records(conversion, sources, built, beam_options)
        except Exception as error:
            _refuse_empty_splits(splits, found, report, error)
            raise
        bad = {split: _errors(found, split) for split in splits}
        errors = list(itertools.chain(*bad.values()))
        _write_report(report, errors)
        if errors and not conversion.skip_errors:
            raise UserError(f"{errors[0]} ({len(errors)} bad in all, listed in {report})")
        counts = {split: len(examples) - len(bad[split]) for split, examples in splits.items()}
        complete(written, partial, counts, _note(conversion, counts, len(errors), raw))
        shutil.rmtree(built)
        shutil.rmtree(found)
    return final, counts, errors


def _check_resize(size: tuple[int, int] | None) -> None:
    """Refuses sizes that memory should not be asked for."""
    if size and (max(size) > _MAX_SIDE or min(size) < 1 or size[0] * size[1] > images.MAX_PIXELS):
        raise UserError(
            f"--resize={size[0]}x{size[1]}: sides of 1 to {_MAX_SIDE} pixels, {images.MAX_PIXELS} pixels in all"
        )


def _check_places(final: Path, report: Path) -> None:
    """Refuses to write over what is somebody else's, or where nothing can be written."""
    if files.exists(report.parent) and not report.parent.is_dir():
        raise UserError(f"--data_dir={report.parent} is not a folder: name another")
    if files.exists(final) and folders.published(final) == final and not records.is_ours(final):
        others = records.strangers(final) if final.is_dir() else []
        what = f"holds {others[0]}, which" if others else "is there already and"
        raise UserError(f"{final} {what} was not made by a conversion: move it away or name another --data_dir")
    files.check_output(report)


@contextlib.contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """Removes again what was made of ``folder`` and the one above, where nothing came of it."""
    made = [place for place in (folder, folder.parent) if not place.exists()]
    try:
        yield
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # Something is in it.
                place.rmdir()


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
    found: Path,
    beam: Any,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> Any:
    """The keyed examples of a split, and a file in ``found`` for each bad one: an iterator, or a Beam transform."""
    dataset, class_map = conversion.stored_as, conversion.class_map
    ids = parse_class_map(class_map, dataset)[1] if class_map else ENCODINGS[dataset]
    read = functools.partial(
        raw_files.read_record, dataset, ids, resize=conversion.resize, encoding=conversion.encoding
    )
    errors = found / split
    errors.mkdir(parents=True)
    spread = 2**shuffle.HKEY_SIZE // len(examples)
    keyed = functools.partial(workers.keyed_example, read, errors, spread)
    if beam:
        return beam.Create(list(enumerate(examples))) | beam.Reshuffle() | beam.FlatMap(keyed)
    results = workers.in_order(keyed, enumerate(examples), conversion.workers)
    # Closed before an error is printed, whoever raises it: its line of progress ends then.
    return stack.enter_context(contextlib.closing(_counted(results, progress(split, len(examples)))))


def _counted(
    results: Iterator[list[Any]], progress: contextlib.AbstractContextManager[Callable[[int], None]]
) -> Generator[Any]:
    """Flattens, and reports how many lists have come."""
    with progress as show:
        for i, items in enumerate(results, start=1):
            yield from items
            show(i)


@dataclasses.dataclass(frozen=True)
class Written:
    """Shards in a folder, by split, without their index."""

    folder: Path
    shards: dict[str, list[str]]


def write_records(conversion: Conversion, sources: dict[str, Any], folder: Path, beam_options: Any = None) -> Written:
    """Writes the shards, and the files by which tensorflow-datasets knows them.

    Args:
      conversion: whose name, city and encoding count.
      sources: keyed examples by split, with the fields of ``raw_files.Record``, or Beam transforms that make them.
      folder: to write below.
      beam_options: of transforms.
    """
    dataset = conversion.stored_as
    options: dict[str, Any] = {"sources": sources, "encoding": conversion.encoding}
    if conversion.city:
        options["config"] = tfds.core.BuilderConfig(name=conversion.city, version=records.VERSION)
    # tensorflow-datasets names the folder and the shards after the class.
    builder_class = type(dataset, (_Builder,), {"__module__": __name__}, skip_registration=True)
    builder = builder_class(data_dir=str(folder), **options)
    download = tfds.download.DownloadConfig(try_download_gcs=False, beam_options=beam_options)
    with contextlib.redirect_stdout(io.StringIO()):  # It announces a download although nothing is downloaded.
        builder.download_and_prepare(download_config=download)
    names = {split: [Path(name).name for name in builder.info.splits[split].filenames] for split in sources}
    return Written(Path(builder.data_dir), names)


def complete(written: Written, folder: Path, counts: dict[str, int], note: dict[str, Any]) -> None:
    """Writes what readers need beside the shards, and moves all of it to ``folder``.

    Args:
      written: of ``write_records``.
      folder: that takes the files.
      counts: images by split.
      note: a ``stored.ConversionNote`` as JSON.

    Raises:
      UserError: other records were written than there should be.
    """
    for split, count in counts.items():
        _write_index(written.folder, split, written.shards[split], count)
    files.write_text(written.folder / "conversion.json", json.dumps(note, indent=2) + "\n")
    for path in written.folder.iterdir():
        os.replace(path, folder / path.name)


def _errors(found: Path, split: str) -> list[str]:
    """What is wrong with the bad examples of a split, in the raw order."""
    return [path.read_text(encoding="utf-8") for path in sorted((found / split).iterdir())]


def _refuse_empty_splits(splits: dict[str, list[RawExample]], found: Path, report: Path, cause: Exception) -> None:
    """Names the first split without a usable image, where that is the ``cause`` of a failed conversion."""
    for split, examples in splits.items():
        errors = _errors(found, split)
        if len(errors) == len(examples):
            _write_report(report, errors)
            raise UserError(
                f"{errors[0]}; no image of {split} can be used ({len(errors)} bad, listed in {report})"
            ) from cause


def _write_report(path: Path, errors: list[str]) -> None:
    """One error a line; no file where there is none."""
    if errors:
        files.write_text(path, "\n".join([_REPORT, *errors, ""]), ours=files.is_ours)
    elif files.is_ours(path):
        path.unlink()


def _scan(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of every record of a TFRecord file."""
    with path.open("rb") as file:
        while header := file.read(indexes.HEADER):
            length = struct.unpack("<Q", header[:8])[0]
            offset = file.tell()
            yield offset, file.read(length)
            file.seek(offset + length + indexes.FOOTER)


def _write_index(root: Path, split: str, shards: list[str], expected: int) -> None:
    """See ``indexes``."""
    places, names, counts = [], [], []
    for s, shard in enumerate(shards):
        for offset, payload in _scan(root / shard):
            feature = tf.train.Example.FromString(payload).features.feature
            places.append((s, offset, len(payload), zlib.crc32(payload)))
            names.append(feature["name"].bytes_list.value[0].decode())
            counts.append(np.array(feature["counts"].int64_list.value))
    if len(places) != expected:
        raise UserError(f"{root}: {len(places)} records of {split} were written, {expected} expected; convert again")
    indexes.write(root, split, shards, places, names, counts)


def _note(conversion: Conversion, counts: dict[str, int], skipped: int, raw: dict[str, str]) -> dict[str, Any]:
    """See ``stored.ConversionNote``."""
    values: dict[str, Any] = {"format": 2, "resize": conversion.resize, "encoding": conversion.encoding}
    return {**values, "images": counts, "skipped": skipped, "class_map": conversion.class_map, "raw": raw}
