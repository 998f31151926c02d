"""A teacher's labels of the target: made by all devices, in a file that says where they come from.

The teacher sees the images at the size that it is tested at, and its softmax is upsampled to the size of the student's
images, as released.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fada_jax import distributed, files, handovers
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.evaluation import inference, scoring
from fada_jax.input_pipeline import pseudo_labels as label_files
from fada_jax.input_pipeline import streams
from fada_jax.input_pipeline.label_maps import label_maps
from fada_jax.input_pipeline.stream import Stream
from fada_jax.models import Segmenter
from fada_jax.stages import easy_tasks, statistics
from fada_jax.stages.parents import load_teacher
from fada_jax.stored import Meta
from fada_jax.training import checkpoints, selection


def pseudo_label_file(config: Config, workdir: Path) -> str:
    """Where a stage keeps what its teacher saw; '' in stages without one."""
    return str(workdir / "pseudo_labels.tfrecord") if config.kind.pseudo_labels else ""


def provenance(config: Config, teacher: checkpoints.Model) -> dict[str, Any]:
    """All that decides the pseudo labels of a stage, in JSON types."""
    if config.kind.labels == "landmarks":
        return easy_tasks.provenance(config, teacher)
    values = {
        "teacher": teacher.digest,
        "teacher_step": teacher.step,
        "classes": teacher.classes.names,
        "selection": _named(config.pseudo_labels),
        "scales": config.multi_scale if config.pseudo_labels.multi_scale else (1.0,),
        "teacher_size": teacher.config["eval"]["size"],
        "label_size": config.target.size,
        "images": [config.target.dataset, config.target.city, config.target.split],
        "num_images": streams.num_examples(config.data_dir, _teacher_stream(config, teacher)),
    }
    if config.pseudo_labels.spatial_prior:
        values["prior"] = [config.source.dataset, config.source.city, config.source.split]
    return json.loads(json.dumps(values))


# Keys of a selection that earlier versions did not have: where they say nothing they do not stand in a provenance, so
# that labels of then are still those of now.
_ADDED = ("balanced", "cap", "spatial_prior")


def _named(chosen: selection.Selection) -> dict[str, Any]:
    """What a provenance says of the selection."""
    plain = dataclasses.asdict(selection.Selection())
    return {key: x for key, x in dataclasses.asdict(chosen).items() if key not in _ADDED or x != plain[key]}


def _teacher_stream(config: Config, teacher: checkpoints.Model) -> Stream:
    stream = config.target.stream(labels=False, augment=False, role="teacher")
    return dataclasses.replace(stream, size=tuple(teacher.config["eval"]["size"]))


def ensure_pseudo_labels(
    config: Config,
    workdir: Path,
    meta: Meta | None,
    teacher: checkpoints.Model | None,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Sees to it that the file of pseudo labels exists and holds the labels that the stage is to learn.

    Args:
      config: of the stage.
      workdir: of the stage.
      meta: of the checkpoint that training goes on from; None where it begins.
      teacher: if it is loaded already.
      mesh: that shares the work.
      log: receives what is done.

    Returns:
      provenance of the labels.

    Raises:
      UserError: the stage has begun with other labels, or there is no teacher to make them.
    """
    path, begun_with = files.place(pseudo_label_file(config, workdir)), meta.pseudo_labels if meta else None
    in_file = label_files.provenance(path) if path.exists() else None
    if begun_with is not None and in_file is not None:
        if in_file != begun_with:
            raise UserError(
                f"{path} does not hold the labels that {workdir} was trained on "
                f"({_differing(begun_with, in_file)}): put the old file back or use another --workdir"
            )
        return in_file
    if meta and in_file == {}:
        log(f"{path} is of an earlier version, which did not write down where its labels came from")
        return in_file
    teacher = teacher or load_teacher(config)
    wanted = provenance(config, teacher)
    if begun_with and wanted != begun_with:
        raise UserError(
            f"{path} is gone and cannot be made again as it was ({_differing(begun_with, wanted)}): "
            "use another --workdir"
        )
    if in_file != wanted:
        if in_file is not None:
            log(f"{path} holds other labels ({_differing(in_file, wanted)}): they are made again")
        with handovers.within(stage="pseudo labels"):
            (width, height), count = wanted["label_size"], wanted["num_images"]
            what, most = "landmarks" if wanted.get("landmarks") else "labels", count * width * height / 1e6
            log(f"{what} of {count:,} images of {width}x{height}: at most {most:,.0f} MB in {path}")
            make = easy_tasks.make_landmarks if config.kind.labels == "landmarks" else make_pseudo_labels
            make(config, teacher, path, wanted, mesh, log)
    return wanted


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Keys of two provenances that differ, with both values where they are short."""
    if not before:
        return "of an earlier version, which did not write down where its labels came from"
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    shown = (f"{key}: {str(before.get(key))[:40]} there, {str(now.get(key))[:40]} wanted" for key in keys)
    return "; ".join(shown)


def make_pseudo_labels(
    config: Config,
    teacher: checkpoints.Model,
    path: Path,
    origin: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    log: Callable[[str], None],
) -> None:
    """Labels the target training images with ``teacher`` in the file ``path``; every process takes part.

    Args:
      config: of the stage.
      teacher: the model that labels.
      path: file to write.
      origin: ``provenance``, which goes into the file.
      mesh: that shares the work.
      log: receives what is done.
    """
    stream, (width, height) = _teacher_stream(config, teacher), config.target.size
    teacher = checkpoints.in_dtype(teacher, "auto")
    labelled = pseudo_labels(
        teacher,
        functools.partial(scoring.eval_batches, config, stream, teacher.classes, mesh),
        streams.names(config.data_dir, stream),
        size=config.target.size[::-1],
        mesh=mesh,
        chosen=config.pseudo_labels,
        prior=_prior(config, log) if config.pseudo_labels.spatial_prior else None,
        scales=config.multi_scale,
        log=log,
    )
    if jax.process_index():
        collections.deque(labelled, maxlen=0)
    else:
        count = label_files.write(path, labelled, origin)
        sizes = "{}x{}, seen at {}x{}".format(width, height, *stream.size)
        log(f"labelled {count} target images ({sizes}) with step {teacher.step} of {config.teacher_from}: {path}")
    multihost_utils.sync_global_devices("pseudo labels")


def _prior(config: Config, log: Callable[[str], None]) -> np.ndarray:
    """``selection.spatial_prior`` of the source at the size of the pseudo labels, the same in every process."""
    stream = dataclasses.replace(config.source.stream(), size=config.target.size)
    numbers = statistics.spread_numbers(config, stream, log)
    labels = label_maps(config.data_dir, stream, config.classes, numbers, config.damaged_records)
    return multihost_utils.broadcast_one_to_all(selection.spatial_prior(labels, config.classes.num_classes))


def pseudo_labels(
    model: checkpoints.Model,
    read: Callable[[], Iterable[Mapping[str, Any]]],
    names: Sequence[str],
    *,
    size: tuple[int, int],
    mesh: jax.sharding.Mesh,
    chosen: selection.Selection = selection.Selection(),
    prior: np.ndarray | None = None,
    scales: tuple[float, ...] = inference.MULTI_SCALE,
    log: Callable[[str], None] = print,
) -> Iterator[tuple[str, np.ndarray]]:
    """Labels of every image by name, uint8 [H, W]; all devices of all processes share the work.

    Args:
      model: the teacher.
      read: starts one pass over this process's share of batches with ``image`` uint8 [N, h, w, 3] at the size that the
        teacher is tested at, ``number`` int32 [N] and ``mask`` bool [N]; called thrice where thresholds are needed.
      names: of the images, by number.
      size: (H, W) of the labels, which the teacher's softmax is upsampled to.
      mesh: that splits the batches.
      chosen: which pixels are labelled.
      prior: float32 [H, W, K] that probabilities are multiplied by.
      scales: of multi-scale testing.
      log: receives the thresholds.

    Yields:
      the same in every process: each must take all.
    """
    softmax = functools.partial(
        inference.class_probabilities,
        Segmenter(model.spec).apply,
        preprocessing=model.preprocessing,
        size=size,
        scales=scales if chosen.multi_scale else inference.SINGLE_SCALE,
        flip=chosen.multi_scale,
    )
    variables, prior = jax.device_put((model.variables, prior), distributed.replicated(mesh))

    def probabilities(given: Any, images: jax.Array) -> jax.Array:
        variables, prior = given
        return softmax(variables, images) if prior is None else softmax(variables, images) * prior

    batches = functools.partial(_placed, read, handovers.size(size), mesh)
    thresholds = np.zeros(model.classes.num_classes, np.float32)
    if chosen.needs_thresholds:
        thresholds = _thresholds(probabilities, (variables, prior), batches, chosen, mesh)
        named = zip(model.classes.names, thresholds, strict=True)
        log("confidence thresholds: " + ", ".join(f"{name} {value:.3f}" for name, value in named))

    @functools.partial(jax.jit, out_shardings=distributed.replicated(mesh))
    def label(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        labels = selection.select(probabilities(variables, batch["image"]), thresholds, relative=chosen.relative)
        return labels, batch["number"], batch["mask"]

    for batch in batches():
        labels, numbers, mask = jax.device_get(label((variables, prior), batch))
        yield from ((names[number], x) for x, number, real in zip(labels, numbers, mask, strict=True) if real)


def _placed(
    read: Callable[[], Iterable[Mapping[str, Any]]], size: str, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, jax.Array]]:
    """One pass over what the teacher sees, on the devices."""
    for batch in read():
        handovers.note("teacher", input=handovers.size(batch["image"].shape[1:3]), labels=size)
        yield distributed.put_batch({key: batch[key] for key in ("image", "number", "mask")}, mesh)


def _thresholds(
    probabilities: Callable[..., jax.Array],
    variables: Any,
    batches: Callable[[], Iterable[Mapping[str, jax.Array]]],
    chosen: selection.Selection,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """``selection.thresholds`` over two passes, float32 [K]."""
    count = jax.jit(
        lambda variables, images, mask, upper: selection.confidence_counts(
            probabilities(variables, images), mask, upper
        ),
        out_shardings=distributed.replicated(mesh),
    )

    def counted(upper: np.ndarray | None) -> np.ndarray:
        total = np.zeros((), np.int64)
        for batch in batches():
            total = total + np.asarray(count(variables, batch["image"], batch["mask"], upper))
        return total

    return selection.thresholds(chosen, counted)
