"""CDA's easy tasks, solved once before training: class distributions of target images, and landmark superpixels.

The teacher is the source model. It sees both domains at the size that they are trained at, and what is fitted on the
source answers for the target; see ``training.curriculum``. All devices of all processes share the networks' work, each
process the superpixels of its own images, and the file holds what the first process finds.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fada_jax import distributed
from fada_jax.classes import IGNORE
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.evaluation import scoring
from fada_jax.input_pipeline import pseudo_labels as label_files
from fada_jax.input_pipeline import streams
from fada_jax.input_pipeline.label_maps import label_maps
from fada_jax.input_pipeline.pseudo_labels import Estimates
from fada_jax.input_pipeline.stream import Stream
from fada_jax.models import Segmenter
from fada_jax.preprocessing import normalise
from fada_jax.training import checkpoints, curriculum

Log = Callable[[str], None]


def _stream(config: Config, name: str) -> Stream:
    """Plain images of the config's stream, at the size that they are trained at."""
    return getattr(config, name).stream(labels=False, augment=False, role="teacher")


def provenance(config: Config, teacher: checkpoints.Model) -> dict[str, Any]:
    """All that decides the landmarks of a stage, in JSON types."""
    source, target = config.source, config.target
    looked_at = min(config.options["source_images"], streams.num_examples(config.data_dir, _stream(config, "source")))
    values = {
        "teacher": teacher.digest,
        "teacher_step": teacher.step,
        "classes": teacher.classes.names,
        "selection": {},
        "scales": (1.0,),
        "teacher_size": target.size,
        "label_size": target.size,
        "images": [target.dataset, target.city, target.split],
        "num_images": streams.num_examples(config.data_dir, _stream(config, "target")),
        "landmarks": {
            "source": [source.dataset, source.city, source.split],
            "source_size": source.size,
            "source_images": looked_at,
            "superpixels": config.options["superpixels"],
            "kept": config.options["landmarks_kept"],
        },
    }
    return json.loads(json.dumps(values))


class _Seen(NamedTuple):
    """What the teacher says of an image.

    Attributes:
      number: of the image in its split.
      feature: mean over the image, float32 [C].
      descriptors: of its superpixels, float32 [S, C].
      numbers: of these, int64 [S].
      packed: their map, uint8 [H, W], compressed: those of a split are kept.
    """

    number: int
    feature: np.ndarray
    descriptors: np.ndarray
    numbers: np.ndarray
    packed: bytes


class _Answer(NamedTuple):
    """What the easy tasks say of a target image; ``judged`` is of the superpixels ``numbers`` of ``packed``."""

    number: int
    distribution: np.ndarray
    judged: curriculum.Judged
    numbers: np.ndarray
    packed: bytes


def make_landmarks(
    config: Config,
    teacher: checkpoints.Model,
    path: Path,
    origin: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    log: Log,
) -> None:
    """Solves the easy tasks with ``teacher`` for the target training images; every process takes part.

    Args:
      config: of the stage.
      teacher: the source model.
      path: file to write.
      origin: ``provenance``, which goes into the file.
      mesh: that shares the work.
      log: receives what is done.

    Raises:
      UserError: a library or data are missing, or the source's superpixels are of fewer than two classes.
    """
    width, height = config.target.size
    see = functools.partial(_seen, config, checkpoints.in_dtype(teacher, "auto"), mesh)
    distribution, judge = _learnt(config, see, log)
    answers = [
        _Answer(x.number, distribution(x.feature[None])[0], judge(x.descriptors), x.numbers, x.packed)
        for x in see("target", 0)
    ]
    margins = np.concatenate([x.judged.margins for x in answers])
    least = curriculum.least_margin(margins, config.options["landmarks_kept"])
    if jax.process_index() == 0:
        names = streams.names(config.data_dir, _stream(config, "target"))
        items = ((names[x.number], *_landmarks(x, least, (height, width))) for x in answers)
        written = label_files.write(path, items, origin)
        kept = int(np.sum(margins >= least))
        log(
            f"solved the easy tasks for {written} target images with step {teacher.step} of {config.teacher_from}: "
            f"{kept:,} landmarks of {len(margins):,} superpixels, {path}"
        )
    multihost_utils.sync_global_devices("landmarks")


def _landmarks(answer: _Answer, least: float, size: tuple[int, int]) -> tuple[np.ndarray, Estimates]:
    """The map of an image's landmarks, uint8 [H, W], and what is said of it and them."""
    kept = answer.judged.margins >= least
    table = np.full(256, IGNORE, np.uint8)
    table[answer.numbers[kept]] = np.arange(kept.sum())
    numbers = np.frombuffer(zlib.decompress(answer.packed), np.uint8).reshape(size)
    return table[numbers], Estimates(answer.distribution, answer.judged.classes[kept].astype(np.uint8))


def _learnt(
    config: Config, see: Callable[[str, int], Iterable[_Seen]], log: Log
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], curriculum.Judged]]:
    """``curriculum.fit_distributions`` and ``fit_classes`` of images of the source."""
    stream, classes = config.source.stream(augment=False), config.classes
    images, limit = streams.num_examples(config.data_dir, stream), config.options["source_images"]
    log(f"easy tasks: learns from {min(images, limit):,} of {images:,} images of {stream.dataset}/{stream.split}")
    seen = list(see("source", limit))
    numbers = np.array([x.number for x in seen], np.int64)
    labels = label_maps(config.data_dir, stream, classes, numbers, config.damaged_records)
    features, shares, described, dominant = [], [], [], []
    for image, label in zip(seen, labels, strict=True):
        counts = np.bincount(label.ravel(), minlength=256)[: classes.num_classes]
        if counts.any():
            features.append(image.feature)
            shares.append(counts / counts.sum())
        superpixels = np.frombuffer(zlib.decompress(image.packed), np.uint8).reshape(label.shape)
        found = curriculum.dominant_classes(superpixels, label, classes.num_classes)[image.numbers]
        described.append(image.descriptors[found != IGNORE])
        dominant.append(found[found != IGNORE])
    if (kinds := len(np.unique(np.concatenate([[], *dominant])))) < 2:
        raise UserError(
            f"{stream.dataset}/{stream.split}: superpixels of the {len(seen)} images that the easy tasks learn from "
            f"are of {kinds} class(es), and a classifier needs two: raise config.options.source_images"
        )
    distribution = curriculum.fit_distributions(np.stack(features), np.stack(shares))
    return distribution, curriculum.fit_classes(np.concatenate(described), np.concatenate(dominant))


def _seen(config: Config, model: checkpoints.Model, mesh: jax.sharding.Mesh, name: str, limit: int) -> Iterator[_Seen]:
    """What ``model`` says of the images of a stream, of all or of ``limit`` evenly spread ones.

    Yields:
      the same in every process: each must take all.
    """
    batches = scoring.eval_batches(config, _stream(config, name), config.classes, mesh, limit)
    variables = jax.device_put(model.variables, distributed.replicated(mesh))
    apply: Callable[..., Any] = Segmenter(model.spec).apply

    @functools.partial(jax.jit, out_shardings=distributed.replicated(mesh))
    def look(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        _, features = apply(variables, normalise(batch["image"], model.preprocessing), train=False)
        means = features.astype(jnp.float32).mean(axis=(1, 2))
        described = curriculum.descriptors(features, batch["superpixel"])
        return batch["number"], batch["mask"], means, described, batch["superpixel"]

    for batch in _with_superpixels(batches, config.options["superpixels"]):
        for number, real, feature, described, superpixels in zip(
            *jax.device_get(look(variables, distributed.put_batch(batch, mesh))), strict=True
        ):
            if real:
                numbers = np.setdiff1d(superpixels, [IGNORE]).astype(np.int64)
                yield _Seen(int(number), feature, described[numbers], numbers, zlib.compress(superpixels.tobytes(), 1))


def _with_superpixels(batches: Iterable[Mapping[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Batches with ``superpixel`` uint8 [N, H, W], made by threads while devices and readers are at work."""
    threads = os.cpu_count() or 1
    waiting: collections.deque[tuple[Mapping[str, Any], list[futures.Future[np.ndarray]]]] = collections.deque()

    def made(image: np.ndarray, real: bool) -> np.ndarray:
        return curriculum.superpixels(image, count) if real else np.full(image.shape[:2], IGNORE, np.uint8)

    def first() -> dict[str, Any]:
        batch, results = waiting.popleft()
        maps = np.stack([result.result() for result in results])
        return {key: batch[key] for key in ("image", "number", "mask")} | {"superpixel": maps}

    with futures.ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            pairs = zip(batch["image"], batch["mask"], strict=True)
            waiting.append((batch, [pool.submit(made, image, bool(real)) for image, real in pairs]))
            if sum(len(results) for _, results in waiting) > threads:
                yield first()
        while waiting:
            yield first()
