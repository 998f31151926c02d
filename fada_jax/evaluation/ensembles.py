"""Scores of several networks together: the mean of their class probabilities, as multi-scale testing has of scales."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fada_jax import config as schema
from fada_jax import distributed, files
from fada_jax.errors import UserError
from fada_jax.evaluation import inference, scoring
from fada_jax.input_pipeline import streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.models import ComputeType, compute_dtype
from fada_jax.training import checkpoints


@functools.lru_cache(16)
def compiled_step(members: tuple[inference.Member, ...], flip: bool, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """``inference.ensemble_step`` of networks on a mesh, jitted: compiled once for every size of labels."""
    step = functools.partial(inference.ensemble_step, members=members, flip=flip)
    return jax.jit(step, donate_argnums=0, out_shardings=distributed.replicated(mesh))


def evaluate_stages(
    workdirs: Sequence[Path],
    *,
    multi_scale: bool = False,
    data_dir: str = "",
    split: str = "",
    dataset: str = "",
    dtype: ComputeType = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Scores the last checkpoints of stages together, on the target that they share.

    Networks, preprocessing and input sizes may differ; every network sees the images at its own size.

    Args:
      workdirs: of the stages.
      multi_scale, data_dir, split, dataset, dtype, progress: as ``scoring.evaluate_stage``; the scales are each
        config's own.

    Returns:
      as ``scoring.evaluate_stage``, but ``models`` (``workdir``, ``checkpoint_step``, ``dtype`` and ``digest`` of
      each) in place of ``checkpoint_step``.

    Raises:
      UserError: other classes or other data, or weights without a classifier.
    """
    loaded = [checkpoints.load_model(workdir) for workdir in workdirs]
    digests = [model.digest for model in loaded]
    models = [checkpoints.in_dtype(model, dtype) for model in loaded]
    configs = [schema.stored(model.config, model.spec.num_classes) for model in models]
    if data_dir:
        configs = [dataclasses.replace(config, data_dir=data_dir) for config in configs]
    scored = [
        dataclasses.replace(
            config.eval, dataset=dataset or config.eval.dataset, split=split or config.eval.split
        ).stream(augment=False)
        for config in configs
    ]
    for other in range(1, len(models)):
        _refuse_other(workdirs, models, configs, scored, other)

    keys = {size: f"image{i or ''}" for i, size in enumerate(dict.fromkeys(stream.size for stream in scored))}
    members = tuple(
        inference.Member(
            model.spec,
            model.preprocessing,
            config.multi_scale if multi_scale else inference.SINGLE_SCALE,
            keys[stream.size],
        )
        for model, config, stream in zip(models, configs, scored, strict=True)
    )
    mesh, total = distributed.make_mesh(), streams.num_examples(configs[0].data_dir, scored[0])
    sizes = {keys[stream.size]: stream for stream in reversed(scored)}
    result = scoring.count_scores(
        compiled_step(members, multi_scale, mesh),
        jax.device_put([model.variables for model in models], distributed.replicated(mesh)),
        _batches(configs[0], sizes, models[0], mesh),
        models[0].classes,
        mesh,
        images=tuple(keys.values()),
        progress=lambda done: progress(min(done * distributed.readers(mesh)[1], total), total),
        noted={"dataset": scored[0].dataset, "scales": members[0].scales, "flip": multi_scale},
    )
    dtypes = [compute_dtype(model.spec.dtype) for model in models]
    return {
        **result,
        "multi_scale": multi_scale,
        "models": [
            {"workdir": str(workdir), "checkpoint_step": model.step, "dtype": computed, "digest": digest}
            for workdir, model, computed, digest in zip(workdirs, models, dtypes, digests, strict=True)
        ],
        "dtype": ", ".join(dict.fromkeys(dtypes)),
        "dataset": scored[0].dataset,
        "split": scored[0].split,
    }


def _refuse_other(
    workdirs: Sequence[Path],
    models: Sequence[checkpoints.Model],
    configs: Sequence[schema.Config],
    scored: Sequence[Stream],
    other: int,
) -> None:
    """Refuses a network that cannot be averaged with the first one on its images.

    Raises:
      UserError: naming what differs, with both values.
    """
    for i in (0, other):
        if not models[i].class_set:
            raise UserError(f"{workdirs[i]}: these weights have no classifier to evaluate")
    pairs: dict[str, list[Any]] = {
        "class set": [models[i].classes.name for i in (0, other)],
        "classes": [models[i].classes.names for i in (0, other)],
        "dataset": [scored[i].dataset for i in (0, other)],
        "split": [scored[i].split for i in (0, other)],
        "city": [scored[i].city for i in (0, other)],
        "data_dir (--data_dir names one for all)": [
            str(files.place(configs[i].data_dir).absolute()) for i in (0, other)
        ],
    }
    for name, (first, own) in pairs.items():
        if first != own:
            raise UserError(f"--ensemble: {workdirs[other]} has another {name}, {own!r}, than {workdirs[0]}, {first!r}")


def _batches(
    config: schema.Config, sizes: Mapping[str, Stream], model: checkpoints.Model, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, Any]]:
    """Batches of ``scoring.eval_batches`` that hold the images at every size, by its key."""
    read = [scoring.eval_batches(config, stream, model.classes, mesh) for stream in sizes.values()]
    for parts in zip(*read, strict=True):
        yield {**parts[0], **{key: part["image"] for key, part in zip(sizes, parts, strict=True)}}
