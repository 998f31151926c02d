"""tensorflow-datasets builders that write raw data sets to sharded TFRecords, with an index for random access."""

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
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from fada_jax.classes import ENCODINGS, LabelEncoding, parse_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import raw_datasets, workers
from fada_jax.input_pipeline.raw_datasets import CITIES

VERSION = "1.0.0"
# Conversion reads local files only; without this tfds asks a cloud bucket for prepared data.
tfds.core.utils.gcs_utils._is_gcs_disabled = True
tfds.disable_progress_bar()
# tfds holds this much of a split in memory before it goes through 1,000 bucket files, one of which it sorts at a time.
shuffle.MAX_MEM_BUFFER_SIZE = 64 << 20
_KEYS = 2**shuffle.HKEY_SIZE


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One conversion.

    Attributes:
      dataset: key of ``raw_datasets.DATASETS``.
      raw_dir: folder of the raw data.
      city: Cross-City only.
      name: of the converted data set, where it is a user's own ('folder').
      class_map: what ``fada_jax.classes.read_class_map`` returns; a user's own data need one.
      workers: processes that read and check images.
      beam: pipeline options of Apache Beam, which then does it instead of those processes.
      resize: (width, height) to store at; None keeps the files' bytes.
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
    skip_errors: bool = False

    @property
    def stored_as(self) -> str:
        """Name of the data set under ``data_dir``, as configs call it."""
        return self.name or self.dataset


class DamagedRecordError(UserError):
    """A stored record whose bytes are not those that were written."""


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Stores image, label of raw ids (empty: unlabelled) with its pixels per id, name and size, in the raw order.

    ``sources`` gives for each split its (key, example) pairs, as an iterable or as a Beam transform that makes them.
    """

    VERSION = tfds.core.Version(VERSION)
    skip_registration = True

    def __init__(self, *, sources: dict[str, Any], **options: Any) -> None:
        self._sources = sources
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Tensor(shape=(), dtype=tf.string)
        number = tfds.features.Scalar(np.int32)
        counts = tfds.features.Tensor(shape=(256,), dtype=np.int64)
        features = {"image": text, "label": text, "counts": counts, "name": text, "height": number, "width": number}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True, description="Made for fada-jax."
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._sources}

    def _generate_examples(self, split: str) -> Any:
        return self._sources[split]


class Gta5(_Builder):
    """GTA5."""


class Synthia(_Builder):
    """SYNTHIA-RAND-CITYSCAPES."""


class Cityscapes(_Builder):
    """Cityscapes, fine annotations."""


class Crosscity(_Builder):
    """Cross-City (NTHU), one config a city."""

    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=city, version=VERSION) for city in CITIES)


class Camvid(_Builder):
    """CamVid as in the SegNet tutorial, by time of day."""


def builder_class(dataset: str) -> type[_Builder]:
    """The builder of a data set, ours or a user's own."""
    own = {"name": dataset, "__module__": __name__}
    return BUILDERS.get(dataset) or type(dataset, (_Builder,), own, skip_registration=True)


BUILDERS = {"gta5": Gta5, "synthia": Synthia, "cityscapes": Cityscapes, "crosscity": Crosscity, "camvid": Camvid}


def folder(data_dir: str | Path, dataset: str, city: str = "") -> Path:
    """Where a converted data set lies."""
    return Path(data_dir) / dataset / city / VERSION


def description(root: Path) -> dict[str, Any]:
    """What ``convert`` noted of a converted data set: ``resize``, ``images`` per split, ``skipped``, ``class_map``.

    Raises:
      UserError: it is of an earlier version, without a note.
    """
    path = root / "conversion.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: convert again with --overwrite")
    return json.loads(path.read_text())


def encoding(root: Path, dataset: str) -> LabelEncoding:
    """How the labels of a converted data set encode classes.

    Raises:
      UserError: a user's own data set without its class map.
    """
    if dataset in ENCODINGS:
        return ENCODINGS[dataset]
    return parse_class_map(description(root)["class_map"], root / "conversion.json")[1]


def index_path(root: Path, split: str) -> Path:
    """The random-access index of a split: ``records`` int64 [N, 4] (shard, offset, length, CRC-32), ``names``,
    ``shards`` and ``counts`` int64 [N, 256] (pixels per raw id)."""
    return root / f"{split}_index.npz"


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
    # What fails is raised to us; the traceback that Beam logs beside it would bury the one line about it.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    parsed = PipelineOptions(shlex.split(options))
    try:
        beam.runners.create_runner(parsed.view_as(StandardOptions).runner or "DirectRunner")
    except (ImportError, ValueError) as error:
        raise UserError(f"--beam={options}: {error}") from error
    return beam, parsed


def scan(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of every record of a TFRecord file."""
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0]
            offset = file.tell()
            yield offset, file.read(length)
            file.seek(offset + length + 4)


def _write_index(root: Path, split: str, shards: list[str], expected: int) -> None:
    records, names, counts = [], [], []
    for s, shard in enumerate(shards):
        for offset, payload in scan(root / shard):
            feature = tf.train.Example.FromString(payload).features.feature
            records.append((s, offset, len(payload), zlib.crc32(payload)))
            names.append(feature["name"].bytes_list.value[0].decode())
            counts.append(np.array(feature["counts"].int64_list.value))
    if len(records) != expected:
        raise UserError(f"{root}: {len(records)} records of {split} were written, {expected} expected; convert again")
    arrays = {"records": np.array(records, np.int64), "names": np.array(names), "shards": np.array(shards)}
    np.savez_compressed(index_path(root, split), counts=np.array(counts), **arrays)


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
    data_dir = Path(data_dir).absolute()
    dataset, city = conversion.stored_as, conversion.city
    splits = raw_datasets.DATASETS[conversion.dataset](Path(conversion.raw_dir), city)
    splits = {split: examples for split, examples in splits.items() if examples}
    ids = parse_class_map(conversion.class_map, dataset)[1] if conversion.class_map else ENCODINGS[dataset]
    title = "_".join(filter(None, (dataset, city)))
    partial, replaced = data_dir / f".{title}.partial", data_dir / f".{title}.replaced"
    final, report = folder(data_dir, dataset, city), data_dir / f"{title}_errors.txt"
    beam, beam_options = _beam(conversion.beam) if conversion.beam else (None, None)
    shutil.rmtree(partial, ignore_errors=True)
    if replaced.exists() and not final.exists():  # Killed between the two moves below.
        os.replace(replaced, final)
    read = functools.partial(raw_datasets.read_record, dataset, ids, resize=conversion.resize)

    def bad(split: str) -> list[str]:
        return [path.read_text() for path in sorted((partial / ".errors" / split).iterdir())]

    def source(split: str) -> Any:
        examples, errors = splits[split], partial / ".errors" / split
        errors.mkdir(parents=True)
        convert_one = functools.partial(workers.numbered_example, read, errors, _KEYS // len(examples))
        if beam:
            return beam.Create(list(enumerate(examples))) | beam.Reshuffle() | beam.FlatMap(convert_one)
        return _counted(
            workers.in_order(convert_one, enumerate(examples), conversion.workers),
            lambda done: progress(split, done, len(examples)),
        )

    try:
        options = {"config": city} if city else {}
        sources = {split: source(split) for split in splits}
        builder = builder_class(dataset)(sources=sources, data_dir=str(partial), **options)
        download = tfds.download.DownloadConfig(try_download_gcs=False, beam_options=beam_options)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # tfds announces a download that there is not.
                builder.download_and_prepare(download_config=download)
        except Exception as error:
            for split in splits:
                found = bad(split)
                if len(found) == len(splits[split]):
                    _write_report(report, found)
                    raise UserError(
                        f"{found[0]}; no image of {split} can be used ({len(found)} bad, listed in {report})"
                    ) from error
            raise
        errors = {split: bad(split) for split in splits}
        listed = list(itertools.chain(*errors.values()))
        _write_report(report, listed)
        if listed and not conversion.skip_errors:
            raise UserError(f"{listed[0]} ({len(listed)} bad in all, listed in {report})")
        made = Path(builder.data_dir)
        done = {split: len(examples) - len(errors[split]) for split, examples in splits.items()}
        for split, count in done.items():
            shards = [Path(name).name for name in builder.info.splits[split].filenames]
            _write_index(made, split, shards, count)
        note = {"resize": conversion.resize, "images": done, "skipped": len(listed), "class_map": conversion.class_map}
        (made / "conversion.json").write_text(json.dumps(note, indent=2) + "\n")
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():  # Moved away whole, so that no half data set is ever at its place.
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(final, replaced)
        os.replace(made, final)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final, done, listed


def _counted(found: Iterable[list[Any]], progress: Callable[[int], None]) -> Iterator[Any]:
    """Flattens, and reports how many lists there were."""
    for i, items in enumerate(found, start=1):
        yield from items
        progress(i)


def _write_report(path: Path, errors: list[str]) -> None:
    """One error a line; no file where there is none."""
    if errors:
        path.write_text("\n".join(errors) + "\n")
    else:
        path.unlink(missing_ok=True)


def verify(root: Path) -> dict[str, int]:
    """Re-reads a converted data set: every record's CRC, image and label.

    Returns:
      images per split.

    Raises:
      UserError: naming the shard and record that differ.
    """
    result = {}
    for path in sorted(root.glob("*_index.npz")):
        split = path.name.removesuffix("_index.npz")
        index = np.load(path)
        for i in range(len(index["records"])):
            payload = read_payload(root, index["shards"], index["records"][i], i)
            features = tf.train.Example.FromString(payload).features.feature
            label = features["label"].bytes_list.value[0]
            where = f"{root / str(index['shards'][index['records'][i][0]])}, record {i} of {split}"
            if features["name"].bytes_list.value[0].decode() != index["names"][i]:
                raise UserError(f"{where} is not the example of the index: convert again with --overwrite")
            with Image.open(io.BytesIO(features["image"].bytes_list.value[0])) as image:
                image.load()
            if label:
                with Image.open(io.BytesIO(label)) as ids:
                    counts = np.array(ids.histogram())
                if not np.array_equal(counts, index["counts"][i]) or ids.size != image.size:
                    raise UserError(f"{where} has other labels than were converted: convert again with --overwrite")
        result[split] = len(index["records"])
    return result


def read_payload(root: Path, shards: np.ndarray, record: np.ndarray, number: int) -> bytes:
    """The payload of one record, checked.

    Raises:
      DamagedRecordError: naming the shard and the record whose CRC differs.
      UserError: naming the shard that cannot be read.
    """
    shard, offset, length, crc = (int(x) for x in record)
    path = root / str(shards[shard])
    try:
        with path.open("rb") as file:
            payload = os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(payload) != length or zlib.crc32(payload) != crc:
        raise DamagedRecordError(
            f"{path}: record {number} is damaged (its checksum differs); convert again with --overwrite"
        )
    return payload
