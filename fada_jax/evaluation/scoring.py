"""Scores of a model on a split: every image once, at the label's own size, on all devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax import config as schema
from fada_jax import distributed, handovers
from fada_jax.classes import ClassSet
from fada_jax.errors import UserError
from fada_jax.evaluation import colour_matching, inference, metrics
from fada_jax.input_pipeline import streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.models import ComputeType, ModelSpec, Segmenter, compute_dtype
from fada_jax.preprocessing import Preprocessing
from fada_jax.training import checkpoints
from fada_jax.training.states import TrainState


@functools.lru_cache(16)
def compiled_step(
    spec: ModelSpec, preprocessing: Preprocessing, scales: tuple[float, ...], flip: bool, mesh: jax.sharding.Mesh
) -> Callable[..., Any]:
    """``inference.evaluation_step`` of a network on a mesh, jitted: scored again, it is not compiled again."""
    step = functools.partial(
        inference.evaluation_step,
        apply_fn=Segmenter(spec).apply,
        preprocessing=preprocessing,
        scales=scales,
        flip=flip,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=distributed.replicated(mesh))


def evaluate(
    model: checkpoints.Model,
    batches: Iterable[Mapping[str, Any]],
    *,
    scales: tuple[float, ...] = inference.SINGLE_SCALE,
    flip: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    variables: Any = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Any]:
    """Scores a model on an iterator of batches; nothing leaves the device until the end.

    Args:
      model: of ``checkpoints.load_model``.
      batches: ``image`` uint8 [N, H, W, 3], ``label`` uint8 [N, h, w] in the model's class set, ``mask`` bool [N];
        N a multiple of the devices.
      scales, flip: see ``inference.class_probabilities``.
      mesh: devices that share a batch; None: all.
      variables: weights on the mesh that take the place of the model's.
      progress: called with the number of images that this process has handed over.

    Returns:
      scores of ``metrics.scores`` with ``confusion`` (nested list), ``num_images``, ``scored_at`` (label sizes).
    """
    mesh = mesh or distributed.make_mesh()
    step = compiled_step(model.spec, model.preprocessing, scales, flip, mesh)
    if variables is None:
        variables = jax.device_put(model.variables, distributed.replicated(mesh))
    noted = {"dataset": model.config["eval"]["dataset"], "scales": scales, "flip": flip}
    return count_scores(step, variables, batches, model.classes, mesh, progress=progress, noted=noted)


def count_scores(
    step: Callable[..., Any],
    variables: Any,
    batches: Iterable[Mapping[str, Any]],
    class_set: ClassSet,
    mesh: jax.sharding.Mesh,
    *,
    images: tuple[str, ...] = ("image",),
    progress: Callable[[int], None] = lambda images: None,
    noted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores of what a jitted step counts over batches; see ``evaluate``.

    Args:
      step: as ``inference.evaluation_step``: counts, variables and a batch to counts.
      variables: weights on the mesh.
      batches: see ``evaluate``.
      class_set: of the labels.
      mesh: devices that share a batch.
      images: keys of the batch that the step reads beside ``label`` and ``mask``.
      progress: see ``evaluate``.
      noted: of the hand-over of each batch.
    """
    zero = (metrics.empty_confusion(class_set.num_classes), jnp.zeros((), jnp.int32))
    count = jax.device_put(zero, distributed.replicated(mesh))
    done, sizes = 0, set()
    for batch in batches:
        if "label" not in batch:
            raise UserError("this split has no labels to score against: choose another with --split")
        sizes.add(f"{batch['label'].shape[2]}x{batch['label'].shape[1]}")
        handovers.note(
            "evaluation",
            **(noted or {}),
            input=handovers.size(batch[images[0]].shape[1:3]),
            scored=handovers.size(batch["label"].shape[1:3]),
        )
        count = step(count, variables, distributed.put_batch({k: batch[k] for k in (*images, "label", "mask")}, mesh))
        done += int(np.sum(batch["mask"]))
        progress(done)
    confusion, num_images = count
    if not int(num_images):
        raise UserError("no image to score in this split")
    confusion = metrics.confusion_matrix(confusion)
    if not confusion.any():
        raise UserError(f"no pixel of this split's labels has a class of {class_set.name}: nothing to score")
    return {
        **metrics.scores(confusion, class_set),
        "num_images": int(num_images),
        "class_set": class_set.name,
        "scored_at": ", ".join(sorted(sizes)),
        "confusion": confusion.tolist(),
    }


def evaluate_stage(
    workdir: str | Path,
    *,
    checkpoint: str = "last",
    multi_scale: bool = False,
    data_dir: str = "",
    split: str = "",
    dataset: str = "",
    colour: str = "",
    dtype: ComputeType = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Scores one checkpoint of a stage on the target it was configured for.

    Args:
      workdir: of a stage.
      checkpoint: 'last' or a step.
      multi_scale: the config's scales, each flipped, instead of the plain image.
      data_dir, split, dataset: replace the config's.
      colour: '' or a mode of ``colour_matching``: recolours the images to the source's statistics first.
      dtype: compute type, see ``models.convolution.inference_dtype``.
      progress: called with the number of images that all processes have handed over, and that of all images.

    Returns:
      the result of ``evaluate`` with ``multi_scale``, ``checkpoint_step``, ``dataset``, ``split``.
    """
    model = checkpoints.in_dtype(checkpoints.load_model(workdir, checkpoint), dtype)
    if not model.class_set:
        raise UserError(f"{workdir}: these weights have no classifier to evaluate")
    config = schema.stored(model.config, model.spec.num_classes)
    config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
    scored = dataclasses.replace(config.eval, dataset=dataset or config.eval.dataset, split=split or config.eval.split)
    stream = scored.stream(augment=False)
    total, mesh = streams.num_examples(config.data_dir, stream), distributed.make_mesh()
    images: Iterable[Mapping[str, Any]] = eval_batches(config, stream, model.class_set, mesh)
    if colour:
        images = map(_colour_matcher(config, model.class_set, colour), images)
    result = evaluate(
        model,
        images,
        scales=config.multi_scale if multi_scale else inference.SINGLE_SCALE,
        flip=multi_scale,
        mesh=mesh,
        progress=lambda done: progress(min(done * distributed.readers(mesh)[1], total), total),
    )
    return {
        **result,
        "multi_scale": multi_scale,
        "checkpoint_step": model.step,
        "dtype": compute_dtype(model.spec.dtype),
        "dataset": stream.dataset,
        "split": stream.split,
    }


def eval_batches(
    config: schema.Config, stream: Stream, class_set: ClassSet, mesh: jax.sharding.Mesh, limit: int = 0
) -> Iterator[dict[str, Any]]:
    """This process's share of the batches of a split for the devices of a mesh; ``limit`` as in the pipeline's."""
    reader, readers = distributed.readers(mesh)
    return streams.eval_batches(
        config.data_dir,
        stream,
        class_set=class_set,
        batch_size=config.eval_batch_size * mesh.size,
        limit=limit,
        process_index=reader,
        process_count=readers,
        damaged_records=config.damaged_records,
    )


def _colour_matcher(
    config: schema.Config, class_set: ClassSet, mode: str
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Recolours batches of the target to the source; whatever devices there are, the same images are looked at."""
    source, target = (
        colour_matching.colour_statistics(
            streams.eval_batches(
                config.data_dir,
                stream.stream(labels=False, augment=False, role="colours"),
                class_set=class_set,
                batch_size=1,
                limit=colour_matching.IMAGES,
                damaged_records=config.damaged_records,
            )
        )
        for stream in (config.source, config.target)
    )
    return colour_matching.matcher(mode, source, target)


def validate(config: schema.Config, generator: TrainState, step: int, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Scores of a stage in training on ``config.eval``, single scale.

    Raises:
      UserError: missing data, or a split without labels.
    """
    model = checkpoints.Model(config.model, config.preprocessing, config.classes, None, None, config.plain(), step)
    batches = eval_batches(config, config.eval.stream(augment=False), config.classes, mesh)
    return evaluate(model, batches, mesh=mesh, variables=generator.variables)
