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
    together = _together(workdirs, data_dir, split, dataset)
    models = [checkpoints.in_dtype(one.model, dtype) for one in together]
    configs, scored = [one.config for one in together], [one.stream for one in together]
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
        "models": [one.described(computed) for one, computed in zip(together, dtypes, strict=True)],
        "dtype": ", ".join(dict.fromkeys(dtypes)),
        "dataset": scored[0].dataset,
        "split": scored[0].split,
    }


@dataclasses.dataclass(frozen=True)
class _One:
    """A stage of an ensemble: its model, its config and the images that it is scored on."""

    workdir: Path
    model: checkpoints.Model
    config: schema.Config
    stream: Stream

    def described(self, dtype: str) -> dict[str, Any]:
        """For the scores, with the type that it was computed in."""
        step, digest = self.model.step, self.model.digest
        return {"workdir": str(self.workdir), "checkpoint_step": step, "dtype": dtype, "digest": digest}


def _together(workdirs: Sequence[Path], data_dir: str, split: str, dataset: str) -> list[_One]:
    """The stages, with what the flags replace; refuses those that do not fit together."""
    result = []
    for workdir in workdirs:
        model = checkpoints.load_model(workdir)
        if not model.class_set:
            raise UserError(f"{workdir}: these weights have no classifier to evaluate")
        config = schema.stored(model.config, model.spec.num_classes)
        config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
        images = dataclasses.replace(
            config.eval, dataset=dataset or config.eval.dataset, split=split or config.eval.split
        )
        result.append(_One(workdir, model, config, images.stream(augment=False)))
        _refuse_other(result[0], result[-1])
    return result


def _refuse_other(first: _One, other: _One) -> None:
    """Refuses a network that cannot be averaged with the first one on its images.

    Raises:
      UserError: naming what differs, with both values.
    """
    both = (first, other)
    pairs: dict[str, list[Any]] = {
        "class set": [one.model.classes.name for one in both],
        "classes": [one.model.classes.names for one in both],
        "dataset": [one.stream.dataset for one in both],
        "split": [one.stream.split for one in both],
        "city": [one.stream.city for one in both],
        "data_dir (--data_dir names one for all)": [str(files.place(one.config.data_dir).absolute()) for one in both],
    }
    for name, (wanted, own) in pairs.items():
        if wanted != own:
            raise UserError(
                f"--ensemble: {other.workdir} has another {name}, {own!r}, than {first.workdir}, {wanted!r}"
            )


def _batches(
    config: schema.Config, sizes: Mapping[str, Stream], model: checkpoints.Model, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, Any]]:
    """Batches of ``scoring.eval_batches`` that hold the images at every size, by its key."""
    read = [scoring.eval_batches(config, stream, model.classes, mesh) for stream in sizes.values()]
    for parts in zip(*read, strict=True):
        yield {**parts[0], **{key: part["image"] for key, part in zip(sizes, parts, strict=True)}}
