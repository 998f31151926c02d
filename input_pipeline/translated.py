"""A converted split with other images: every image translated, labels as they were, as a data set of its own.

It is read like any other. What its raw ids mean stands in its class map, as for a user's own data, so that
``config.source.dataset=NAME`` trains every method on it with the class set of the original.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tensorflow_datasets.core import shuffle

from fada_jax import files, folders
from fada_jax.classes import ENCODINGS, class_map_of
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, decoding, records
from fada_jax.input_pipeline.encoding import encode_image, encode_label
from fada_jax.input_pipeline.records import Records

A = TypeVar("A")
B = TypeVar("B")
Progress = conversion.Progress
# Images of the size that the translator works at, uint8 [H, W, 3], to their translations, one after the other.
Translate = Callable[[Iterator[np.ndarray]], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Translation:
    """One translated data set.

    Attributes:
      dataset, split, city: converted images to translate.
      name: of the new data set, as configs call it.
      size: (width, height) that images are resized to for the translator; the stored ones have the size of the labels.
      translator, translator_step: SHA-256 of its weights, and their step.
      out_dir: where the new data set goes; '': where the others are.
      encoding: 'png', 'jpeg' or 'tiff' of the new images; '': that of the data set.
      workers: threads that decode and encode.
    """

    dataset: str
    split: str
    name: str
    size: tuple[int, int]
    translator: str
    translator_step: int
    city: str = ""
    out_dir: str = ""
    encoding: str = ""
    workers: int = 1


def check(translation: Translation, data_dir: str | Path) -> tuple[Records, Path]:
    """Refuses what can be refused before anything is translated.

    Returns:
      the records to translate, and the folder to make.

    Raises:
      UserError: a name that cannot be or is taken, or no such split.
    """
    name = translation.name
    if not re.fullmatch("[a-z][a-z0-9_]{0,63}", name) or name in ENCODINGS:
        raise UserError(f"--name={name}: name the new data set in small letters, digits and _, unlike ours")
    final = records.folder(files.place(translation.out_dir or data_dir, "--data_dir").absolute(), name)
    if files.exists(final):
        raise UserError(f"{final} is there already: choose another --name, or move it away")
    return records.open_split(data_dir, translation.dataset, translation.split, translation.city), final


def write(translation: Translation, data_dir: str | Path, translate: Translate, progress: Progress) -> tuple[Path, int]:
    """Writes a translated data set, which appears at its place only when it is complete.

    Args:
      translation: what to write.
      data_dir: where data sets lie.
      translate: see ``Translate``.
      progress: given a split and its images in all, a context that takes the number of images done.

    Returns:
      the folder, and the number of images.

    Raises:
      UserError: as ``check``, a damaged record, or a place that cannot be written.
    """
    stored, final = check(translation, data_dir)
    noted = records.description(stored.root)
    encoding, count = translation.encoding or noted.encoding, len(stored.records)
    own = translation.dataset not in ENCODINGS
    class_map = records.class_map(stored.root) if own else class_map_of(translation.dataset)
    request = conversion.Conversion(
        "folder", stored.root, name=translation.name, class_map=class_map, encoding=encoding
    )
    origin = {
        "translator": translation.translator,
        "translator_step": translation.translator_step,
        "size": list(translation.size),
        "images": [translation.dataset, translation.city, translation.split],
    }
    note: dict[str, Any] = {
        "format": 2,
        "resize": noted.resize,
        "encoding": encoding,
        "images": {translation.split: count},
    }
    note |= {"skipped": 0, "class_map": class_map, "raw": {}, "translated": origin}
    with contextlib.ExitStack() as stack:
        stack.enter_context(conversion.tidied(final.parent))
        partial = stack.enter_context(folders.making(final))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(translation.workers))
        show = stack.enter_context(progress(translation.split, count))
        made = _examples(stored, translation, (noted.encoding, encoding), translate, pool, show)
        examples = stack.enter_context(contextlib.closing(made))
        written = conversion.write_records(request, {translation.split: examples}, partial / ".built")
        conversion.complete(written, partial, {translation.split: count}, note)
        shutil.rmtree(partial / ".built")
    return final, count


def _examples(
    stored: Records,
    translation: Translation,
    encodings: tuple[str, str],
    translate: Translate,
    pool: concurrent.futures.Executor,
    show: Callable[[int], None],
) -> Generator[tuple[int, dict[str, Any]]]:
    """Keyed examples in stored order, as they are written; ``encodings``: of the original and of the new data set."""
    raw_counts, waiting = stored.raw_counts(), collections.deque[tuple[int, dict[str, Any]]]()
    depth = 2 * translation.workers

    def load(i: int) -> tuple[int, dict[str, Any], np.ndarray]:
        record = stored.read(i)
        return i, record, np.array(decoding.shrink(decoding.stored_image(record), translation.size))

    def images() -> Iterator[np.ndarray]:
        for i, record, image in _ahead(pool, load, range(len(stored.records)), depth):
            waiting.append((i, record))
            yield image

    def encode(item: tuple[int, dict[str, Any], np.ndarray]) -> tuple[int, dict[str, Any]]:
        i, record, made = item
        height, width = record["size"]
        image = Image.fromarray(made)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        values = {"image": encode_image(image, encodings[1]), "label": _label(record, *encodings)}
        return i, {**values, "name": record["name"], "height": height, "width": width, "counts": raw_counts[i]}

    spread = 2**shuffle.HKEY_SIZE // len(stored.records)
    translated = ((*waiting.popleft(), made) for made in translate(images()))
    for done, (i, example) in enumerate(_ahead(pool, encode, translated, depth), start=1):
        yield i * spread, example
        show(done)


def _label(record: dict[str, Any], before: str, now: str) -> bytes:
    """The label's own bytes, unless the new data set stores labels in another way."""
    if (before == "tiff") == (now == "tiff"):
        return record["label"]
    if not record["label"]:  # Unlabelled, of a data set of TIFFs.
        height, width = record["size"]
        return encode_label(Image.new("L", (width, height), 255), now)
    return encode_label(decoding.stored_label(record), now)


def _ahead(pool: concurrent.futures.Executor, fn: Callable[[A], B], items: Iterable[A], depth: int) -> Iterator[B]:
    """``map(fn, items)`` in order, of which ``depth`` are worked on ahead of their use."""
    futures: collections.deque[concurrent.futures.Future[B]] = collections.deque()
    for item in items:
        futures.append(pool.submit(fn, item))
        if len(futures) > depth:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()
