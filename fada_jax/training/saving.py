"""Writing checkpoints: asynchronous, atomic, with checksums, and only the last and the best are kept."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from fada_jax import __version__, classes, files
from fada_jax.errors import UserError, storage_fault
from fada_jax.models import ModelSpec, compute_dtype
from fada_jax.preprocessing import Preprocessing
from fada_jax.stored import Meta
from fada_jax.training import checkpoints, checksums
from fada_jax.training.checkpoints import States

FORMAT: Literal[1] = 1
# What decides the last bits of a result.
_LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow"),
    *("tensorflow", "tensorflow-cpu"),
)


def library_versions() -> dict[str, str]:
    """Versions of what computes and stores a result."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def make_meta(
    config: Mapping[str, Any],
    spec: ModelSpec,
    preprocessing: Preprocessing,
    class_set: classes.ClassSet | None,
    images: Mapping[str, int] | None = None,
    **made_from: Any,
) -> Meta:
    """What a checkpoint says about itself.

    Args:
      config: that trains it, as a plain dict.
      spec, preprocessing, class_set: of the model.
      images: images of each stream of the batch, by name.
      **made_from: ``parents``, the weights that the stage began with, and ``pseudo_labels``, the provenance of its
        labels; see ``fada_jax.stages.run``.
    """
    return Meta(
        FORMAT,
        __version__,
        library_versions(),
        dict(config),
        spec,
        preprocessing,
        class_set,
        dict(images or {}),
        compute_dtype(spec.dtype),
        **made_from,
    )


def _miou(scores: Mapping[str, float]) -> float:
    return scores["miou"]


def _preserved(keep: int | None, keep_every: int) -> checkpoint_managers.PreservationPolicy:
    """The last ``keep``, the best by mIoU, and those at multiples of ``keep_every``."""
    best = checkpoint_managers.BestN(get_metric_fn=_miou, n=1, keep_checkpoints_without_metrics=False)
    policies = [checkpoint_managers.LatestN(n=keep), best]
    if keep_every:
        policies.append(checkpoint_managers.EveryNSteps(interval_steps=keep_every))
    return checkpoint_managers.AnyPreservationPolicy(policies)


Save = Callable[[int, States, Mapping[str, float] | None], None]


@contextlib.contextmanager
def writing(
    workdir: str | Path,
    meta: Meta,
    *,
    keep: int | None = None,
    keep_every: int = 0,
    scored: bool = False,
    wait: bool = False,
) -> Iterator[Save]:
    """Opens the checkpoints of a stage for writing; all are complete when it closes.

    Args:
      workdir: of the stage.
      meta: of ``make_meta``; each checkpoint adds its step.
      keep: the last ones that are kept; None: all.
      keep_every: every checkpoint at a multiple of these steps is kept, too; 0: none.
      scored: checkpoints may come with scores, and the best by ``miou`` is kept, too.
      wait: write each before going on, which needs no second copy of the states.

    Yields:
      ``save(step, states, scores)``, which returns once the states are copied off the device; ``scores`` is None or
      holds ``miou``.

    Raises:
      UserError: a checkpoint cannot be written; those before it stay.
    """
    options = ocp.CheckpointManagerOptions(
        best_fn=_miou if scored else None,  # Scores are written because of it; the policy decides what is kept.
        preservation_policy=_preserved(keep, keep_every),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=not wait,
        temporary_path_class=checksums.in_the_making(checkpoints.directory(workdir)),
    )
    with _storage(workdir):
        if files.is_object(checkpoints.directory(workdir)):  # On a disk orbax does so itself.
            clear_unfinished(workdir)
        writer = ocp.CheckpointManager(os.fspath(checkpoints.directory(workdir)), options=options)

    def save(step: int, states: States, scores: Mapping[str, float] | None = None) -> None:
        generator = states["generator"]
        model = {"params": generator.params, "batch_stats": generator.collections.get("batch_stats", {})}
        with _storage(workdir):
            writer.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(checkpoints.training_tree(states)),
                    meta=ocp.args.JsonSave(dataclasses.replace(meta, next_batch=step).plain()),
                ),
                metrics=dict(scores) if scores else None,
            )

    try:
        yield save
        with _storage(workdir):
            writer.wait_until_finished()
    finally:
        # An error that matters is being raised already.
        with contextlib.suppress(Exception):
            writer.close()


def clear_unfinished(workdir: str | Path) -> None:
    """Removes what a save left that did not come to its end."""
    root = checkpoints.directory(workdir)
    if jax.process_index():
        return
    if not files.is_object(root):
        for left in root.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        return
    steps = set(map(str, checkpoints.available_steps(workdir)))
    places = {name: name.partition("/")[0] for name in files.tree(root)}
    for name, step in places.items():
        if checkpoints.is_step(step) and step not in steps:
            (root / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _storage(workdir: str | Path) -> Iterator[None]:
    """Says in one line what the disk did, of which orbax and tensorstore raise many types; all else passes."""
    try:
        yield
    except Exception as error:
        reason = storage_fault(error) or (isinstance(error, OSError) and (error.strerror or str(error)))
        if not reason:
            raise
        good = checkpoints.available_steps(workdir)
        left = f"the last good one is {good[-1]}" if good else "there is none before it"
        raise UserError(
            f"a checkpoint in {checkpoints.directory(workdir)} cannot be written ({reason}); {left}: make room or mend "
            "the disk and run the same command again"
        ) from error
