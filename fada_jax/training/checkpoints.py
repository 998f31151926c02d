"""Checkpoints of a stage: ``workdir/checkpoints/<step>`` written by orbax, atomic, asynchronous and with checksums.

Each holds three items: ``model`` (parameters and batch statistics), ``training`` (optimizer states, discriminator) and
``meta`` (JSON: config, class set, preprocessing, model, position in the data, library versions), so that evaluation and
prediction need nothing but a workdir. ``SHA256SUMS``, as ``sha256sum -c`` reads it, tells a damaged one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from jax.experimental import multihost_utils

from fada_jax import classes, distributed, documents, files, stored
from fada_jax.errors import UserError
from fada_jax.models import BACKBONES, ComputeType, ModelSpec
from fada_jax.models.convolution import inference_dtype
from fada_jax.preprocessing import Preprocessing
from fada_jax.storage import objects
from fada_jax.stored import Meta, Percent
from fada_jax.training import checksums, s3_arrays
from fada_jax.training.optimizers import OptimizerSpec
from fada_jax.training.states import TrainState, abstract, create_generator, replace_weights

# Pytrees by name; ``generator`` is the TrainState of G.
States = dict[str, Any]


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
        """SHA-256 of all weights, see ``digest_of``."""
        return digest_of({"params": self.params, "batch_stats": self.batch_stats})

    @property
    def variables(self) -> dict[str, Any]:
        """Collections for ``Segmenter(spec).apply``."""
        state = generator_shapes(self.spec, "model")
        return replace_weights(state, self.params, self.batch_stats).variables


def digest_of(tree: Any) -> str:
    """SHA-256 of arrays with their names, types and shapes: the same weights stored again have the same."""
    digest = hashlib.sha256()
    for path, x in jax.tree.leaves_with_path(tree):
        array = np.asarray(x)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def directory(workdir: str | Path) -> Path:
    """Folder of the checkpoints of a stage."""
    folder = files.place(workdir, "workdir").absolute() / checksums.FOLDER
    if str(folder).startswith("s3://"):
        s3_arrays.teach_orbax()
    return folder


def last_good(workdir: str | Path, log: Callable[[str], None]) -> int | None:
    """The last checkpoint of a stage whose files are as they were written; None: there is none at all.

    An imported model is a checkpoint at step 0. Damaged ones after the last good one are renamed to
    ``<step>.damaged``, and said so. In several processes all get the same answer.

    Raises:
      UserError: there are checkpoints, and all of them are damaged; they stay where they are.
    """
    good, problem = _NONE, ""
    if jax.process_index() == 0:
        damaged: dict[Path, str] = {}
        for step in reversed(available_steps(workdir)):
            path = directory(workdir) / str(step)
            if not (problem := checksums.damage(path)):
                good = step
                break
            damaged[path] = problem
        if damaged and good == _NONE:
            good = _ALL_DAMAGED
        for path, problem in damaged.items() if good >= 0 else ():
            aside = _free(path)
            _move(path, aside)
            log(f"checkpoint {path} is damaged ({problem}): kept as {aside.name}, the one before it is taken")
    step = int(multihost_utils.broadcast_one_to_all(np.int32(good)))
    if step == _ALL_DAMAGED:
        raise UserError(
            f"every checkpoint in {directory(workdir)} is damaged ({problem or 'see process 0'}): bring one back, or "
            "move the folder away to begin anew"
        )
    return step if step >= 0 else None


# What ``last_good`` tells the other processes instead of a step.
_NONE, _ALL_DAMAGED = -1, -2


def _free(path: Path) -> Path:
    """A name for a damaged checkpoint that nothing has."""
    names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
    return next(path.with_name(name) for name in names if not files.exists(path.with_name(name)))


def _move(path: Path, aside: Path) -> None:
    """Renames a checkpoint; in a bucket its objects are copied, once it is none any more."""
    if not files.is_object(path):
        os.replace(path, aside)
        return
    names = files.tree(path)
    (path / checksums.COMMITTED).unlink(missing_ok=True)
    for name in names:
        if name != checksums.COMMITTED:
            objects.copy(f"{path}/{name}", f"{aside}/{name}")
            (path / name).unlink(missing_ok=True)


def training_tree(states: States) -> dict[str, Any]:
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
    if files.is_object(root):
        names = (name.partition("/") for name in files.tree(root))
        return sorted(int(step) for step, _, name in names if name == checksums.COMMITTED and is_step(step))
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if is_step(path.name) and path.is_dir())


def is_step(name: str) -> bool:
    """Whether a name is that of a checkpoint: its step, as orbax writes it."""
    return bool(re.fullmatch("0|[1-9][0-9]{0,9}", name)) and int(name) < 2**31


def recorded_scores(workdir: str | Path) -> dict[int, float]:
    """mIoU in percent by step of the checkpoints that were scored while training."""
    paths = {step: directory(workdir) / str(step) / "metrics" / "metrics" for step in available_steps(workdir)}
    scored = {step: documents.read(file) for step, file in paths.items() if file.is_file()}
    return {step: documents.check(scores, _Scored, paths[step]).miou for step, scores in scored.items()}


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Scores that orbax keeps with a checkpoint."""

    miou: Percent


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
    if not is_step(checkpoint) or int(checkpoint) not in steps:
        raise UserError(f"checkpoint {checkpoint!r} is not in {directory(workdir)}: last, best or one of {steps}")
    return int(checkpoint)


def _checked(workdir: str | Path, step: int, item: str) -> Path:
    """The folder of an item of a checkpoint, whose files are as they were written.

    Raises:
      UserError: they are not, or the checkpoint is gone.
    """
    path = directory(workdir) / str(step)
    problem = checksums.damage(path, (item,))
    if problem and not path.exists():
        raise UserError(f"checkpoint {path} is gone: a run that keeps fewer has removed it, choose another")
    if problem:
        others = ", ".join(str(other) for other in available_steps(workdir) if other != step)
        raise UserError(f"checkpoint {path} is damaged ({problem}): choose another ({others or 'there is none'})")
    return path / item


def _restore(workdir: str | Path, step: int, item: str, tree: Any) -> Any:
    """Arrays of an item of a checkpoint, placed like those of ``tree``.

    Raises:
      UserError: it is damaged, or its arrays are not those of ``tree``.
    """
    path = _checked(workdir, step, item)
    try:
        handler, folder = ocp.StandardCheckpointHandler(), epath.Path(os.fspath(path))
        _refuse_other_arrays(path, handler.metadata(folder).tree, tree)
        handler.close()
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(folder.parent, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(tree)}))[
                item
            ]
    except _UNREADABLE as error:
        raise UserError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}") from error


# What orbax and tensorstore raise about files that are not theirs, or gone.
_UNREADABLE = (OSError, ValueError, KeyError)


def _refuse_other_arrays(path: Path, stored: Any, wanted: Any) -> None:
    """Refuses arrays of other names, shapes or types than ``wanted``."""

    def described(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
        leaves = jax.tree.leaves_with_path(serialization.to_state_dict(tree))
        return {jax.tree_util.keystr(key): (tuple(x.shape), str(np.dtype(x.dtype))) for key, x in leaves}

    found, needed = described(stored), described(wanted)
    for name in sorted(found.keys() | needed.keys()):
        if found.get(name) != needed.get(name):
            there, here = (
                f"{values[name][1]}{list(values[name][0])}" if name in values else "nothing"
                for values in (found, needed)
            )
            raise UserError(f"checkpoint {path}: {name} is {there}, the model that it describes needs {here}")


def read_meta(workdir: str | Path, step: int) -> Meta:
    """What a checkpoint says about itself.

    Raises:
      UserError: it is damaged, or does not fit this version.
    """
    path = _checked(workdir, step, "meta") / "metadata"
    meta = stored.meta(documents.read(path), path)
    if meta.next_batch not in (step, None):
        raise UserError(f"{path} is of step {meta.next_batch}, not of {step}: give the folder its name back")
    return meta


def load_model(workdir: str | Path, checkpoint: str = "last") -> Model:
    """A stage's segmenter with everything that belongs to it, in the compute type that it was trained in.

    Raises:
      UserError: no such or an unreadable checkpoint.
    """
    step = resolve_step(workdir, checkpoint)
    try:
        return _load(workdir, step)
    except UserError:
        # A run that keeps few checkpoints may have removed it meanwhile, and has a later one then.
        if checkpoint != "last" or resolve_step(workdir) == step:
            raise
        return load_model(workdir)


def _load(workdir: str | Path, step: int) -> Model:
    meta, place = read_meta(workdir, step), directory(workdir) / str(step)
    if meta.translator:
        raise UserError(
            f"{place} holds image translators, not a segmenter: scripts/translate_dataset.py translates data sets with "
            "them; name the workdir of another stage"
        )
    state = generator_shapes(meta.model, f"{place}: model")
    tree = restore_weights(workdir, step, state.params, state.collections.get("batch_stats", {}))
    return Model(meta.model, meta.preprocessing, meta.class_set, tree["params"], tree["batch_stats"], meta.config, step)


def restore_weights(workdir: str | Path, step: int, params: Any, batch_stats: Any = None) -> dict[str, Any]:
    """Weights of a checkpoint, of the names and shapes of ``params`` and ``batch_stats``, on the host.

    Raises:
      UserError: it is damaged, or holds others.
    """
    wanted = _on_one_device({"params": params, "batch_stats": batch_stats or {}})
    return jax.device_get(_restore(workdir, step, "model", wanted))


def generator_shapes(spec: ModelSpec, source: str) -> TrainState:
    """Shapes of the state of G, without any array.

    Raises:
      UserError: naming ``source``: no network can be built so.
    """
    if spec.backbone not in BACKBONES:
        raise UserError(f"{source}.backbone={spec.backbone!r} must be one of {', '.join(BACKBONES)}")
    return abstract(lambda: create_generator(spec, OptimizerSpec(), jax.random.key(0)), f"{source} cannot be built")


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
    model = _restore(workdir, step, "model", tree)
    training = _restore(workdir, step, "training", training_tree(states))
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
