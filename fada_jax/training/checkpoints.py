"""Checkpoints of a stage: ``workdir/checkpoints/<step>`` written by orbax, atomic, asynchronous and with checksums.

Each holds three items: ``model`` (parameters and batch statistics), ``training`` (optimizer states, discriminator) and
``meta`` (JSON: config, class set, preprocessing, model, position in the data, library versions), so that evaluation and
prediction need nothing but a workdir. ``SHA256SUMS``, as ``sha256sum -c`` reads it, tells a damaged one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from fada_jax import __version__, classes, distributed, files
from fada_jax.errors import UserError, storage_fault
from fada_jax.models import ComputeType, ModelSpec, compute_dtype
from fada_jax.models.convolution import inference_dtype
from fada_jax.preprocessing import Preprocessing
from fada_jax.training import checksums
from fada_jax.training.optimizers import OptimizerSpec
from fada_jax.training.states import TrainState, create_generator, replace_weights

# Pytrees by name; ``generator`` is the TrainState of G.
States = dict[str, Any]
FORMAT = 1
# What decides the last bits of a result.
_LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow"),
    *("tensorflow", "tensorflow-cpu"),
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A segmenter as stored.

    Attributes:
      spec: its shapes.
      preprocessing: input normalisation that belongs to the weights.
      class_set: classes it predicts; None where only the feature extractor was trained (ImageNet).
      params, batch_stats: weights, on the host.
      config: the config that trained it, as a plain dict.
      step: of the checkpoint.
    """

    spec: ModelSpec
    preprocessing: Preprocessing
    class_set: classes.ClassSet | None
    params: Any
    batch_stats: Any
    config: dict[str, Any]
    step: int

    @property
    def classes(self) -> classes.ClassSet:
        """``class_set``, for whom the model must have one.

        Raises:
          ValueError: only its feature extractor was trained.
        """
        if self.class_set is None:
            raise ValueError("the model has no classifier")
        return self.class_set

    @property
    def digest(self) -> str:
        """SHA-256 of all weights, with their names, types and shapes: the same weights stored again have the same."""
        digest = hashlib.sha256()
        for path, x in jax.tree.leaves_with_path({"params": self.params, "batch_stats": self.batch_stats}):
            array = np.asarray(x)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def variables(self) -> dict[str, Any]:
        """Collections for ``Segmenter(spec).apply``."""
        state = jax.eval_shape(lambda: create_generator(self.spec, OptimizerSpec(), jax.random.key(0)))
        return replace_weights(state, self.params, self.batch_stats).variables


def directory(workdir: str | Path) -> Path:
    """Folder of the checkpoints of a stage."""
    return files.local(workdir, "workdir").absolute() / checksums.FOLDER


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
) -> dict:
    """What a checkpoint says about itself, JSON types only.

    Args:
      config: that trains it, as a plain dict.
      spec, preprocessing, class_set: of the model.
      images: images of each stream of the batch, by name.
      **made_from: ``parents``, the weights that the stage began with, and ``pseudo_labels``, the provenance of its
        labels; see ``fada_jax.train``.
    """
    meta = {
        "format": FORMAT,
        "fada_jax": __version__,
        "versions": library_versions(),
        "config": dict(config),
        "model": dataclasses.asdict(spec),
        "preprocessing": dataclasses.asdict(preprocessing),
        "class_set": dataclasses.asdict(class_set) if class_set else None,
        "images": dict(images or {}),
        "compute_dtype": compute_dtype(spec.dtype),
        **made_from,
    }
    return json.loads(json.dumps(meta))


def last_good(workdir: str | Path, log: Callable[[str], None]) -> int | None:
    """The last checkpoint of a stage whose files are as they were written; None: there is none.

    An imported model is a checkpoint at step 0. Damaged ones after the last good one are renamed to
    ``<step>.damaged``, and said so. In several processes all get the same answer.
    """
    good = -1
    if jax.process_index() == 0:
        for step in reversed(available_steps(workdir)):
            path = directory(workdir) / str(step)
            problem = checksums.damage(path)
            if not problem:
                good = step
                break
            aside = path.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            log(f"checkpoint {path} is damaged ({problem}): kept as {aside.name}, the one before it is taken")
    step = int(multihost_utils.broadcast_one_to_all(np.int32(good)))
    return step if step >= 0 else None


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
    meta: Mapping[str, Any],
    *,
    keep: int | None = None,
    keep_every: int = 0,
    scored: bool = False,
    wait: bool = False,
) -> Iterator[Save]:
    """Opens the checkpoints of a stage for writing; all are complete when it closes.

    Args:
      workdir: of the stage.
      meta: of ``make_meta``.
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
        temporary_path_class=checksums.SummedPath,
    )
    with _storage(workdir):
        writer = ocp.CheckpointManager(directory(workdir), options=options)

    def save(step: int, states: States, scores: Mapping[str, float] | None = None) -> None:
        generator = states["generator"]
        model = {"params": generator.params, "batch_stats": generator.collections.get("batch_stats", {})}
        with _storage(workdir):
            writer.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(_training_tree(states)),
                    meta=ocp.args.JsonSave({**meta, "next_batch": step}),
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


@contextlib.contextmanager
def _storage(workdir: str | Path) -> Iterator[None]:
    """orbax and tensorstore raise many types where a disk is full, read-only or gone."""
    try:
        yield
    except Exception as error:
        good = available_steps(workdir)
        left = f"the last good one is {good[-1]}" if good else "there is none before it"
        reason = storage_fault(error) or " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"a checkpoint in {directory(workdir)} cannot be written ({reason}); {left}: make room or mend the disk "
            "and run the same command again"
        ) from error


def _training_tree(states: States) -> dict:
    """All of the states but the weights of G, which are the item ``model``, as nested dicts."""
    tree = {}
    for name, state in states.items():
        tree[name] = state
        if isinstance(state, TrainState):
            tree[name] = {"opt_state": state.opt_state, "step": state.step}
            if name != "generator":
                tree[name] |= {"params": state.params, **state.collections}
    return serialization.to_state_dict(tree)


def available_steps(workdir: str | Path) -> list[int]:
    """Steps of the complete checkpoints of a stage, ascending."""
    root = directory(workdir)
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def recorded_scores(workdir: str | Path) -> dict[int, float]:
    """mIoU in percent by step of the checkpoints that were scored while training."""
    paths = {step: directory(workdir) / str(step) / "metrics" / "metrics" for step in available_steps(workdir)}
    return {step: json.loads(file.read_text())["miou"] for step, file in paths.items() if file.is_file()}


def resolve_step(workdir: str | Path, checkpoint: str = "last") -> int:
    """The step that ``last``, ``best`` (by the scores recorded in training) or a number means in a workdir.

    Raises:
      UserError: no checkpoint there, or not this one.
    """
    steps = available_steps(workdir)
    if not steps:
        raise UserError(f"no checkpoint in {directory(workdir)}: train that stage first or correct the path")
    if checkpoint == "last":
        return steps[-1]
    if checkpoint == "best":
        scores = recorded_scores(workdir)
        if not scores:
            raise UserError(f"no checkpoint in {directory(workdir)} was scored while training (config.eval_every)")
        return max(scores, key=lambda step: (scores[step], step))
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        raise UserError(f"checkpoint {checkpoint!r} is not in {directory(workdir)}: last, best, all or one of {steps}")
    return int(checkpoint)


def _restore(workdir: str | Path, step: int, item: str, args: Any) -> Any:
    path = directory(workdir) / str(step)
    problem = checksums.damage(path, (item,))
    if problem:
        others = ", ".join(str(other) for other in available_steps(workdir) if other != step)
        raise UserError(f"checkpoint {path} is damaged ({problem}): choose another ({others or 'there is none'})")
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(path, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:
        # orbax and tensorstore raise many types for foreign files.
        raise UserError(f"checkpoint {path} cannot be read ({item}): {str(error).splitlines()[0]}") from error


def read_meta(workdir: str | Path, step: int) -> dict[str, Any]:
    """The ``meta`` item of a checkpoint."""
    return _restore(workdir, step, "meta", ocp.args.JsonRestore())


def class_set(meta: Mapping[str, Any]) -> classes.ClassSet | None:
    """The class set of a ``meta`` item; the first checkpoints held only the name of one."""
    stored = meta["class_set"]
    if isinstance(stored, str):
        return classes.get_class_set(stored) if stored else None
    return classes.ClassSet.from_dict(stored) if stored else None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def describe(meta: Mapping[str, Any]) -> tuple[ModelSpec, Preprocessing, classes.ClassSet | None]:
    """Network, preprocessing and classes of a ``meta`` item."""
    spec = ModelSpec(**{key: _tuples(value) for key, value in meta["model"].items()})
    preprocessing = Preprocessing(**{key: _tuples(value) for key, value in meta["preprocessing"].items()})
    return spec, preprocessing, class_set(meta)


def load_model(workdir: str | Path, checkpoint: str = "last") -> Model:
    """A stage's segmenter with everything that belongs to it, in the compute type that it was trained in.

    Raises:
      UserError: no such or an unreadable checkpoint.
    """
    step = resolve_step(workdir, checkpoint)
    meta = read_meta(workdir, step)
    spec, preprocessing, predicted = describe(meta)
    state = jax.eval_shape(lambda: create_generator(spec, OptimizerSpec(), jax.random.key(0)))
    abstract = _on_one_device({"params": state.params, "batch_stats": state.collections.get("batch_stats", {})})
    tree = jax.device_get(_restore(workdir, step, "model", ocp.args.StandardRestore(abstract)))
    return Model(spec, preprocessing, predicted, tree["params"], tree["batch_stats"], meta["config"], step)


def in_dtype(model: Model, dtype: ComputeType, platform: str = "") -> Model:
    """``model`` with the compute type to run it in, see ``models.convolution.inference_dtype``."""
    spec = dataclasses.replace(model.spec, dtype=inference_dtype(model.spec.dtype, dtype, platform))
    return dataclasses.replace(model, spec=spec)


def _on_one_device(tree: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return distributed.placed(tree, jax.tree.map(lambda x: device, tree))


def restore_states(workdir: str | Path, step: int, states: States, shardings: Any) -> States:
    """``states`` as they were after ``step`` steps; mesh and device count may have changed.

    Args:
      states: arrays or their shapes.
      shardings: where each array goes, of the same structure.
    """
    states = distributed.placed(states, shardings)
    generator = states["generator"]
    tree = {"params": generator.params, "batch_stats": generator.collections.get("batch_stats", {})}
    model = _restore(workdir, step, "model", ocp.args.StandardRestore(tree))
    training = _restore(workdir, step, "training", ocp.args.StandardRestore(_training_tree(states)))
    restored = {name: _restored(state, training[name]) for name, state in states.items()}
    restored["generator"] = replace_weights(restored["generator"], model["params"], model["batch_stats"])
    return jax.device_put(restored, shardings)


def _restored(state: Any, tree: Any) -> Any:
    if not isinstance(state, TrainState):
        return serialization.from_state_dict(state, tree)
    fields = {key: serialization.from_state_dict(getattr(state, key), tree[key]) for key in tree if hasattr(state, key)}
    collections = dict(state.collections)
    for key in tree.keys() & collections:
        collections[key] = serialization.from_state_dict(collections[key], tree[key])
    return state.replace(**fields, collections=collections)
