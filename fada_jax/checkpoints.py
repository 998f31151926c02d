"""Checkpoints of a stage: ``workdir/checkpoints/<step>`` written by orbax, atomic and asynchronous.

Each holds three items: ``model`` (parameters and batch statistics), ``training`` (optimizer states, discriminator) and
``meta`` (JSON: config, class set, preprocessing, model), so that evaluation and prediction need nothing but a workdir.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import serialization

from fada_jax import __version__, classes, steps
from fada_jax.errors import UserError
from fada_jax.models import ModelSpec
from fada_jax.optim import OptimizerSpec
from fada_jax.preprocessing import Preprocessing

States = dict[str, steps.TrainState]
FORMAT = 1


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
    def variables(self) -> dict[str, Any]:
        """Collections for ``Segmenter(spec).apply``."""
        state = jax.eval_shape(lambda: steps.create_generator(self.spec, OptimizerSpec(), jax.random.key(0)))
        return steps.replace_weights(state, self.params, self.batch_stats).variables


def directory(workdir: str | Path) -> Path:
    """Folder of the checkpoints of a stage."""
    return Path(workdir).absolute() / "checkpoints"


def make_meta(
    config: Mapping[str, Any], spec: ModelSpec, preprocessing: Preprocessing, class_set: classes.ClassSet | None
) -> dict:
    """What a checkpoint says about itself, JSON types only."""
    meta = {
        "format": FORMAT,
        "fada_jax": __version__,
        "config": dict(config),
        "model": dataclasses.asdict(spec),
        "preprocessing": dataclasses.asdict(preprocessing),
        "class_set": dataclasses.asdict(class_set) if class_set else None,
    }
    return json.loads(json.dumps(meta))


def manager(workdir: str | Path, *, keep: int | None = None, background: bool = True) -> ocp.CheckpointManager:
    """Writer of a stage's checkpoints that keeps the last ``keep``; without ``background`` it needs no second copy."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=background)
    return ocp.CheckpointManager(directory(workdir), options=options)


def save(writer: ocp.CheckpointManager, step: int, states: States, meta: Mapping[str, Any]) -> None:
    """Writes the states after ``step`` steps; returns once they are copied off the device."""
    generator = states["generator"]
    model = {"params": generator.params, "batch_stats": generator.collections.get("batch_stats", {})}
    writer.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            training=ocp.args.StandardSave(_training_tree(states)),
            meta=ocp.args.JsonSave(dict(meta)),
        ),
    )


def _training_tree(states: States) -> dict:
    tree: dict = {"generator": {"opt_state": states["generator"].opt_state, "step": states["generator"].step}}
    if "discriminator" in states:
        d = states["discriminator"]
        tree["discriminator"] = {"params": d.params, "opt_state": d.opt_state, "step": d.step}
    return serialization.to_state_dict(tree)


def available_steps(workdir: str | Path) -> list[int]:
    """Steps of the complete checkpoints of a stage, ascending."""
    root = directory(workdir)
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def resolve_step(workdir: str | Path, checkpoint: str = "last") -> int:
    """The step that ``last`` or a number means in a workdir.

    Raises:
      UserError: no checkpoint there, or not this one.
    """
    steps_there = available_steps(workdir)
    if not steps_there:
        raise UserError(f"no checkpoint in {directory(workdir)}: train that stage first or correct the path")
    if checkpoint == "last":
        return steps_there[-1]
    if not checkpoint.isdigit() or int(checkpoint) not in steps_there:
        raise UserError(
            f"checkpoint {checkpoint!r} is not in {directory(workdir)}: last, best, all or one of {steps_there}"
        )
    return int(checkpoint)


def _restore(workdir: str | Path, step: int, item: str, args: Any) -> Any:
    path = directory(workdir) / str(step)
    try:
        with ocp.CheckpointManager(directory(workdir)) as reader:
            return reader.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:
        # orbax and tensorstore raise many types for missing, truncated or foreign files.
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


def load_model(workdir: str | Path, checkpoint: str = "last") -> Model:
    """A stage's segmenter with everything that belongs to it.

    Raises:
      UserError: no such or an unreadable checkpoint.
    """
    step = resolve_step(workdir, checkpoint)
    meta = read_meta(workdir, step)
    spec = ModelSpec(**{key: _tuples(value) for key, value in meta["model"].items()})
    preprocessing = Preprocessing(**{key: _tuples(value) for key, value in meta["preprocessing"].items()})
    state = jax.eval_shape(lambda: steps.create_generator(spec, OptimizerSpec(), jax.random.key(0)))
    abstract = _on_one_device({"params": state.params, "batch_stats": state.collections.get("batch_stats", {})})
    tree = jax.device_get(_restore(workdir, step, "model", ocp.args.StandardRestore(abstract)))
    return Model(spec, preprocessing, class_set(meta), tree["params"], tree["batch_stats"], meta["config"], step)


def _on_one_device(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def restore_states(workdir: str | Path, step: int, states: States, shardings: Any) -> States:
    """``states`` as they were after ``step`` steps; mesh and device count may have changed.

    Args:
      states: arrays or their shapes.
      shardings: where each array goes, of the same structure.
    """
    states = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), states, shardings
    )
    generator = states["generator"]
    tree = {"params": generator.params, "batch_stats": generator.collections.get("batch_stats", {})}
    model = _restore(workdir, step, "model", ocp.args.StandardRestore(tree))
    training = _restore(workdir, step, "training", ocp.args.StandardRestore(_training_tree(states)))
    restored = {}
    for name, state in states.items():
        fields = {key: serialization.from_state_dict(getattr(state, key), v) for key, v in training[name].items()}
        restored[name] = state.replace(**fields)
    restored["generator"] = steps.replace_weights(restored["generator"], model["params"], model["batch_stats"])
    return jax.device_put(restored, shardings)
