"""Brings PyTorch weights here and takes ours back, accounting for every tensor and for every array of ours.

  python -m fada_jax.convert_weights import --input=resnet101.pth --output=W
  python -m fada_jax.convert_weights import --input=vgg16_caffe.pth --output=W --format=caffe_vgg
  python -m fada_jax.convert_weights import --input=g2c_adv.pth --output=W --format=fada
  python -m fada_jax.convert_weights export --workdir=W --output=model.pth
  python -m fada_jax.convert_weights export --workdir=W --output=model.safetensors

Import makes a workdir that --config.init_from, evaluate and predict take. Class set, backbone and batch norm are read
off the file; a .safetensors file that export wrote says all that itself, the classes of own data included. With
--config naming a stage, `fada_jax.train` with that config and --workdir goes on at the file's iteration, with its
optimizer states; a file of weights alone is at step 0. What a file lacks starts as in a fresh run of the config, and
the output says so; it also names the sections that stay in the file.

Export to .pth writes the layout of the released PyTorch code; .safetensors holds the same tensors flat, or our own
names where that layout cannot hold the model (group norm). For an artifact that runs without PyTorch and without this
package see fada_jax.export.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict

from fada_jax import checkpoints, classes, cli, preprocessing, settings, steps, torch_weights, train
from fada_jax.errors import UserError
from fada_jax.evaluate import stage_workdir
from fada_jax.models import ModelSpec, interchange
from fada_jax.optim import OptimizerSpec

FORMATS = ("fada", "torchvision", "caffe_vgg")
# Classes of a released classifier -> task whose config describes the model.
_TASKS = {
    19: "gta5_to_cityscapes",
    16: "synthia_to_cityscapes",
    13: "cityscapes_to_crosscity",
    11: "camvid_day_to_dusk",
}
# Blocks per stage and block type, as in the file -> backbone.
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}


def guess_format(file: Mapping[str, Any]) -> str:
    """'fada' for checkpoints of the released code, else 'torchvision'."""
    return "fada" if torch_weights.is_released(file) else "torchvision"


def guess_config(file: Mapping[str, Any], path: str) -> ConfigDict:
    """The released config of the model that a file holds, by its backbone, class count and sections.

    Raises:
      UserError: a backbone or class count that no config has.
    """
    names = torch_weights.generator_tensors(file)
    blocks = [m for m in (re.search(r"backbone\.layer(\d)\.(\d+)\.conv(\d)", name) for name in names) if m]
    sizes = tuple(len({m[2] for m in blocks if m[1] == str(stage)}) for stage in range(1, 5))
    backbone = _RESNETS.get((sizes, any(m[3] == "3" for m in blocks)), "")
    if not blocks and "feature_extractor.backbone.0.weight" in names:
        backbone = "vgg16"
    if not backbone:
        raise UserError(f"{path} holds no ResNet-18, -34, -50, -101 or VGG-16 that is known here")
    bias = names.get("classifier.conv2d_list.0.bias")
    num_classes = len(bias) if bias is not None else 19
    if num_classes not in _TASKS:
        raise UserError(f"{path}: its classifier has {num_classes} classes, known are {', '.join(map(str, _TASKS))}")
    stage = "adversarial" if "model_D" in file else "source"
    task = importlib.import_module(f"fada_jax.configs.{_TASKS[num_classes]}")
    config = task.get_config(f"stage={stage},backbone={backbone}")
    if torch_weights.is_released(file) and any(name.endswith("num_batches_tracked") for name in names):
        config.model.norm = "live"
    return config


@dataclasses.dataclass(frozen=True)
class Description:
    """What a ``.safetensors`` file of ``export_file`` says about its model; ``step`` is that of its weights."""

    spec: ModelSpec
    preprocessing: preprocessing.Preprocessing
    class_set: classes.ClassSet | None
    config: dict[str, Any]
    step: int


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of a file, and what of ours is not from it.

    Attributes:
      tensors: what became of every tensor.
      notes: lines for people on all that no tensor's name tells: the step, optimizers, the discriminator.
      left: sections that stay in the file.
    """

    tensors: torch_weights.Report
    notes: tuple[str, ...]
    left: tuple[str, ...]


def read_description(path: str | Path) -> Description | None:
    """What a file says about itself; None where it is not of ``export_file``.

    Raises:
      UserError: it cannot be understood.
    """
    meta = torch_weights.read_metadata(path)
    if meta is None:
        return None
    try:
        found = Description(*checkpoints.describe(meta), dict(meta["config"]), int(meta["checkpoint_step"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: what it says about its model cannot be understood ({type(error).__name__}: {error}): export it "
            "again with this version"
        ) from error
    if found.class_set and found.class_set.num_classes != found.spec.num_classes:
        raise UserError(
            f"{path}: its model has {found.spec.num_classes} classes, its class set {found.class_set.name!r} "
            f"{found.class_set.num_classes}: export it again"
        )
    return found


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Lets errors about the contents of a file begin with its path."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error


def _fresh(config: ConfigDict, parts: Collection[str]) -> dict[str, Any]:
    """Freshly initialised parameters as ``train.create_states`` makes them, of these parts alone.

    Args:
      parts: 'head' for what no ImageNet model holds (the classifier, and VGG's fc6 and fc7), 'discriminator'.
    """

    def create() -> dict[str, Any]:
        states = train.create_states(config)
        params = states["generator"].params
        extractor = {name: value for name, value in params["feature_extractor"].items() if name in ("fc6", "fc7")}
        made = {"head": {"params": {"feature_extractor": extractor, "classifier": params["classifier"]}}}
        if "discriminator" in states:
            made["discriminator"] = states["discriminator"].params
        return {name: made[name] for name in parts}

    if not parts:
        return {}
    # XLA drops what is not asked for. As in train.initial_states: what runs once is compiled in a hurry on CPUs.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.device_get(jax.jit(create, compiler_options=options)())


def is_own(file: Mapping[str, Any]) -> bool:
    """Whether a file holds our own names: a model that the released layout cannot hold (group norm)."""
    return any(str(key).startswith("params.") for key in file)


def import_own(file: Mapping[str, Any], spec: ModelSpec) -> tuple[Any, Any, torch_weights.Report]:
    """Parameters, batch statistics and report of a file with our own names.

    Raises:
      UserError: a tensor that is missing, unknown, of another shape, not floating-point or not finite.
    """
    state = jax.eval_shape(lambda: steps.create_generator(spec, OptimizerSpec(), jax.random.key(0)))
    variables = {"params": state.params, "batch_stats": state.collections.get("batch_stats", {})}
    wanted = traverse_util.flatten_dict(variables, sep=".")
    torch_weights.check_tensors(file, {name: x.shape for name, x in wanted.items()})
    arrays = {name: np.asarray(file[name], x.dtype) for name, x in wanted.items()}
    tree = traverse_util.unflatten_dict(arrays, sep=".")
    return tree["params"], tree.get("batch_stats", {}), torch_weights.Report(tuple(file), (), ())


def _import_generator(
    file: Mapping[str, Any], spec: ModelSpec, initial: Mapping[str, Any] | None = None
) -> tuple[Any, Any, torch_weights.Report]:
    """Parameters, batch statistics and report of G, whatever the layout."""
    if is_own(file):
        return import_own(file, spec)
    return torch_weights.import_generator(file, spec, initial)


def read_model(path: str | Path) -> checkpoints.Model:
    """The segmenter in a file of the released code or in one that ``export`` wrote, without a workdir.

    Raises:
      UserError: no such file, no trained classifier in it, or anything unexplained.
    """
    file, described = torch_weights.read_file(path), read_description(path)
    with _naming(path):
        _check_names(file, described)
        step = torch_weights.read_iteration(file)
        if described:
            found = described
        elif torch_weights.is_released(file):
            guessed = guess_config(file, str(path))
            class_set, own = classes.get_class_set(guessed.class_set), _preprocessing(file, guessed, str(path), "")
            plain = settings.plain(guessed)
            found = Description(settings.model_spec(guessed), own, class_set, plain, step or 0)
        else:
            found = None
        if found is None or found.class_set is None:
            raise UserError(f"{path} holds a feature extractor alone: import it and train a classifier first")
        params, batch_stats, _ = _import_generator(file, found.spec)
    return checkpoints.Model(
        found.spec, found.preprocessing, found.class_set, params, batch_stats, found.config, found.step
    )


def _preprocessing(file: Mapping[str, Any], config: ConfigDict, path: str, format: str) -> preprocessing.Preprocessing:
    """The preprocessing that weights of a file belong to.

    Raises:
      UserError: the file does not tell, or ``format`` contradicts it.
    """
    vgg, released = config.model.backbone == "vgg16", torch_weights.is_released(file)
    if format == "caffe_vgg" and not vgg:
        raise UserError(f"{path} holds {config.model.backbone}, not a VGG-16")
    if vgg and not format and not released:
        raise UserError(f"{path}: say --format=torchvision (RGB, 0-1) or --format=caffe_vgg (BGR, 0-255)")
    return preprocessing.CAFFE if vgg and format != "torchvision" else preprocessing.IMAGENET


def import_states(file: Mapping[str, Any], config: ConfigDict) -> tuple[checkpoints.States, int, Account]:
    """TrainStates of a config's stage from a file, with every array of them accounted for.

    Weights, moments and step are those of the file. What it lacks is what ``train.create_states`` makes of the config:
    parameters from its seed, zero moments. Every schedule stands at the file's iteration.

    Returns:
      the states, on the host; the iteration, 0 where the file has none; and the account.

    Raises:
      UserError: something in the file does not fit the config.
    """
    spec, has_head = settings.model_spec(config), torch_weights.is_released(file) or is_own(file)
    named = torch_weights.read_iteration(file) if torch_weights.is_released(file) else None
    iteration = named or 0
    if not is_own(file):
        torch_weights.check_backbone(file, spec)
    shapes = jax.eval_shape(functools.partial(train.create_states, config))
    left = _left_in_file(file, "discriminator" in shapes)
    notes = [_step_note(named, config)]
    # Only what the file lacks is ever initialised: the rest of a large model need not exist twice.
    lacking = [] if has_head else ["head"]
    if "discriminator" in shapes and "model_D" not in file:
        lacking.append("discriminator")
    fresh = {} if has_head else _fresh(config, lacking)

    state = _without_weights(shapes["generator"], iteration)
    params, batch_stats, report = _import_generator(file, spec, fresh.get("head"))
    opt_state = torch_weights.import_generator_optimizer(state.opt_state, file, spec, iteration)
    states = {"generator": steps.replace_weights(state, params, batch_stats).replace(opt_state=opt_state)}
    reports = [report]
    if has_head:
        fresh = _fresh(config, lacking)  # No sooner than the file is known to be good: it takes a while.
    else:
        new = "classifier, fc6 and fc7" if spec.backbone == "vgg16" else "classifier"
        notes.append(f"{new}: not in the file, freshly initialised")

    if "discriminator" in shapes:
        state, report = _discriminator(file, config, shapes["discriminator"], fresh.get("discriminator"), iteration)
        states["discriminator"] = state
        reports.append(report)
        if report.initialised:
            notes.append(_discriminator_note(iteration))

    _check_complete(states, shapes)
    notes += _optimizer_notes(file, left, states, iteration)
    tensors = torch_weights.Report(
        *(sum((getattr(report, kind) for report in reports), ()) for kind in ("used", "dropped", "initialised"))
    )
    return states, iteration, Account(tensors, tuple(notes), left)


def _discriminator(
    file: Mapping[str, Any], config: ConfigDict, shapes: steps.TrainState, fresh: Any, iteration: int
) -> tuple[steps.TrainState, torch_weights.Report]:
    """State of D and what became of its tensors; ``fresh``: its parameters where the file has none, else None."""
    state = _without_weights(shapes, iteration)
    outputs, features = state.params["head"]["kernel"].shape[-1], state.params["conv0"]["kernel"].shape[2]
    widths = tuple(config.discriminator.widths)
    if fresh is not None:
        names = tuple(entry.name for entry in torch_weights.discriminator_table(outputs, features, widths))
        return state.replace(params=fresh), torch_weights.Report((), (), names)
    params, report = torch_weights.import_discriminator(file, outputs, features, widths)
    opt_state = state.opt_state
    if "optimizer_D" in file:
        opt_state = torch_weights.import_discriminator_optimizer(opt_state, file, params, iteration)
    return state.replace(params=params, opt_state=opt_state), report


def _discriminator_note(iteration: int) -> str:
    """What to tell of a fresh discriminator."""
    note = "discriminator: not in the file, freshly initialised"
    if not iteration:
        return note
    return (
        f"{note} in the middle of the stage: to begin it with these weights, import them without --config and name "
        "that workdir in config.init_from"
    )


def _without_weights(state: steps.TrainState, iteration: int) -> steps.TrainState:
    """Shapes of weights, and the optimizer's first state, zeros as optax makes it, its schedules at ``iteration``."""
    opt_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state.opt_state)
    return state.replace(step=np.int32(iteration), opt_state=torch_weights.set_schedules(opt_state, iteration))


def _check_complete(states: checkpoints.States, shapes: checkpoints.States) -> None:
    """Whether every array is from the file or initialised; anything else is a defect here, not the user's mistake."""
    wanted = jax.tree.leaves(shapes)
    for (path, x), shape in zip(jax.tree.leaves_with_path(states), wanted, strict=True):
        if not isinstance(x, np.ndarray | np.generic) or (x.shape, x.dtype) != (shape.shape, shape.dtype):
            raise TypeError(f"{jax.tree_util.keystr(path)} was neither read nor initialised")


def _left_in_file(file: Mapping[str, Any], has_discriminator: bool) -> tuple[str, ...]:
    """Sections of a file that nothing is read from."""
    if is_own(file):
        return ()
    if not torch_weights.is_released(file):
        return tuple(str(key) for key in file if key != "state_dict") if "state_dict" in file else ()
    used = {"feature_extractor", "classifier", "optimizer_fea", "optimizer_cls", "iteration"}
    if has_discriminator and "model_D" in file:
        # A fresh discriminator cannot go on with the moments of another.
        used |= {"model_D", "optimizer_D"}
    return tuple(str(key) for key in file if key not in used)


def _step_note(named: int | None, config: ConfigDict) -> str:
    """Where training stands, for people; ``named``: the file's iteration."""
    total = config.total_steps
    if named is None:
        return "step 0: the file names no iteration"
    if named > total:
        return (
            f"step {named} is beyond config.total_steps={total}: the workdir is to evaluate, to predict, for init_from "
            "and for teacher_from, not to train on"
        )
    return f"step {named} of {total}" + (": finished" if named == total else "")


def _optimizer_notes(
    file: Mapping[str, Any], left: Collection[str], states: checkpoints.States, iteration: int
) -> Iterator[str]:
    """Where the state of each optimizer comes from, for people."""
    names = {section: name for section, name in torch_weights.OPTIMIZERS.items() if name in file and name not in left}
    moments = {section: torch_weights.read_moments(file, section) for section in names}
    g_sections = ("feature_extractor", "classifier")
    if len(moments.keys() & set(g_sections)) == 1:
        groups = {"F": g_sections[:1], "C": g_sections[1:]}
    else:
        groups = {"G": g_sections}
    if "discriminator" in states:
        groups["D"] = ("model_D",)
    for network, sections in groups.items():
        schedule = f"its schedule at step {iteration}"
        if sections[0] not in moments:
            yield f"optimizer of {network}: not in the file, starts from zero moments, {schedule}"
            continue
        untouched = sum(moments[section].untouched for section in sections)
        zeros = f", zero moments for the {untouched} tensors that had no step yet" if untouched else ""
        yield f"optimizer of {network}: from the file{zeros}, {schedule}"


def _check_names(file: Mapping[str, Any], described: Description | None) -> None:
    """Refuses a file of ``export_file`` that has lost its description or the names of its tensors.

    Raises:
      UserError: one of the two is not there.
    """
    if is_own(file) and not described:
        raise UserError("it does not say which model it holds: export it again")
    names_known = is_own(file) or torch_weights.is_released(file)
    if described and (not names_known or is_own(file) != (described.spec.norm == "group")):
        raise UserError("its tensors do not have the names that export gives them: export it again")


def _check_description(described: Description, config: ConfigDict) -> None:
    """Refuses a config of another model than the file's where no shape would tell.

    Raises:
      UserError: naming both values.
    """
    spec, class_set = settings.model_spec(config), classes.get_class_set(config.class_set)
    pairs = [("preprocessing", described.preprocessing, settings.preprocessing(config))]
    if described.class_set:
        pairs.append(("classes", described.class_set.names, class_set.names))
    pairs += interchange(described.spec, spec)
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise UserError(f"its {name} is {theirs!r}, the config's is {ours!r}: correct the config or leave it out")


def _norm_note(file: Mapping[str, Any], described: Description | None, config: ConfigDict) -> str:
    """Says where batch norm is live in the file and frozen in the config, or the other way round."""
    if config.model.backbone == "vgg16" or not torch_weights.is_released(file):
        return ""
    # Frozen batch norm keeps no counters.
    counters = any(name.endswith("num_batches_tracked") for name in torch_weights.generator_tensors(file))
    norm = described.spec.norm if described else ("live" if counters else "frozen")
    return f"batch norm: {norm} in the file, {config.model.norm} from now on" if norm != config.model.norm else ""


def _described_config(described: Description) -> ConfigDict:
    """The config that a file brings along.

    Raises:
      UserError: it does not fit this version.
    """
    config = ConfigDict(described.config)
    try:
        settings.check(config)
        for field in dataclasses.fields(ModelSpec):
            theirs, ours = (getattr(spec, field.name) for spec in (described.spec, settings.model_spec(config)))
            if theirs != ours and field.name not in ("dtype", "remat"):  # They change no array.
                raise UserError(f"its model.{field.name} is {ours!r}, its model's {theirs!r}")
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the config in it cannot be used ({error}): name one with --config") from error
    return config


def import_file(path: str, output: str, *, format: str = "", config: ConfigDict | None = None) -> str:
    """Writes the workdir ``output`` from a PyTorch file; returns what became of every tensor, for people.

    Args:
      path: ``.pth`` or ``.safetensors``.
      output: workdir to make.
      format: one of ``FORMATS``; '': read off the file.
      config: of the stage that goes on from the file; None: the file's own, or the released one of its model.

    Raises:
      UserError: anything unexplained in the file; nothing is written then.
    """
    if config is not None:
        settings.check(config)
    file, described = torch_weights.read_file(path), read_description(path)
    layout = "fada" if described else guess_format(file)
    if format and (format == "fada") != (layout == "fada"):
        raise UserError(f"{path} has the layout {layout!r}, not {format!r}")
    if checkpoints.available_steps(output):
        raise UserError(f"{output} holds checkpoints already: choose another --output")
    with _naming(path):
        _check_names(file, described)
        states, iteration, account, meta = _import(file, described, path, format, config)
    del file  # The states hold copies; both at once would be too much beside what writing takes.
    with checkpoints.writing(output, meta, wait=True) as save:
        save(iteration, states)
    predicts = meta["class_set"]["name"] if meta["class_set"] else "none (feature extractor only)"
    lines = [f"{path}: {layout}, {meta['model']['backbone']}, class set {predicts}"]
    for kind in ("used", "dropped", "initialised"):
        # Batch norm's counters say nothing about the weights; the names worth reading come first.
        names = sorted(getattr(account.tensors, kind), key=lambda name: name.endswith("num_batches_tracked"))
        shown = f": {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        lines.append(f"  {len(names):>4} {kind}" + (shown if kind != "used" and names else ""))
    lines += [f"  {note}" for note in account.notes]
    if account.left:
        lines.append(f"  sections left in the file: {', '.join(account.left)}")
    lines.append(f"written: {checkpoints.directory(output) / str(iteration)}")
    return "\n".join(lines)


def _import(
    file: Mapping[str, Any], described: Description | None, path: str, format: str, config: ConfigDict | None
) -> tuple[checkpoints.States, int, Account, dict[str, Any]]:
    """What ``import_states`` returns, and the ``meta`` of its checkpoint."""
    given = config is not None
    if not given:
        config = _described_config(described) if described else guess_config(file, path)
    elif described:
        _check_description(described, config)
    named = torch_weights.read_iteration(file) if torch_weights.is_released(file) else None
    if given and named is not None and named > config.total_steps:
        raise UserError(
            f"its iteration {named} is beyond config.total_steps={config.total_steps}, so that stage has nothing to go "
            "on with: leave out --config, then evaluate the workdir or name it in config.init_from"
        )
    states, iteration, account = import_states(file, config)
    own = described.preprocessing if described else _preprocessing(file, config, path, format)
    wanted = settings.preprocessing(config)
    if given and wanted != own:
        raise UserError(f"{path} belongs to preprocessing {own}, the config has {wanted}")
    extra = [_norm_note(file, described, config)]
    if described and named is None:
        extra.append(f"its weights are of step {described.step} of another workdir; this one begins at step 0")
    account = dataclasses.replace(account, notes=(*account.notes, *filter(None, extra)))
    with config.unlocked():
        config.preprocessing.update(dataclasses.asdict(own))
    if described:
        class_set = described.class_set
    else:
        class_set = classes.get_class_set(config.class_set) if torch_weights.is_released(file) else None
    meta = checkpoints.make_meta(settings.plain(config), settings.model_spec(config), own, class_set)
    return states, iteration, account, meta


def export_sections(workdir: str | Path, checkpoint: str = "last") -> dict[str, Any]:
    """A checkpoint of ours as the dictionary that the released code saves, NumPy arrays for tensors."""
    workdir = stage_workdir(workdir)
    model = checkpoints.load_model(workdir, checkpoint)
    config = ConfigDict(model.config)
    states = jax.eval_shape(lambda: train.create_states(config))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    states = checkpoints.restore_states(workdir, model.step, states, jax.tree.map(lambda _: sharding, states))
    states = jax.device_get(states)
    generator = states["generator"]
    g_spec = settings.optimizer_spec(config, "generator")
    contents: dict[str, Any] = {
        **torch_weights.export_generator(model.params, model.batch_stats, model.spec, model.step),
        **torch_weights.export_generator_optimizer(generator.opt_state, model.spec, g_spec, model.step),
    }
    if "discriminator" in states:
        d = states["discriminator"]
        d_spec = settings.optimizer_spec(config, "discriminator")
        contents["model_D"] = torch_weights.export_discriminator(d.params)
        contents |= torch_weights.export_discriminator_optimizer(d.opt_state, d.params, d_spec, model.step)
    return {**contents, "iteration": model.step}


def export_file(workdir: str | Path, output: str | Path, checkpoint: str = "last") -> str:
    """Writes ``.pth`` or ``.safetensors`` whole or not at all; returns a summary for people."""
    output = Path(output)
    if output.suffix not in (".pth", ".safetensors"):
        raise UserError(f"--output={output}: must end in .pth or .safetensors")
    partial = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        try:
            import safetensors.numpy
        except ImportError as error:
            raise UserError("writing .safetensors needs safetensors: pip install 'fada-jax[torch]'") from error
        folder = stage_workdir(workdir)
        model = checkpoints.load_model(folder, checkpoint)
        if model.spec.norm == "group":
            flat = traverse_util.flatten_dict({"params": model.params, "batch_stats": model.batch_stats}, sep=".")
        else:
            sections = export_sections(workdir, checkpoint)
            flat = {f"{s}.{k}": v for s in torch_weights.OPTIMIZERS for k, v in sections.get(s, {}).items()}
        meta = {**checkpoints.read_meta(folder, model.step), "checkpoint_step": model.step}
        safetensors.numpy.save_file(
            {key: np.ascontiguousarray(value) for key, value in flat.items()},
            partial,
            {torch_weights.METADATA: json.dumps(meta)},
        )
        count = len(flat)
    else:
        try:
            import torch
        except ImportError as error:
            raise UserError("writing .pth needs PyTorch: pip install 'fada-jax[torch]'") from error
        sections = export_sections(workdir, checkpoint)
        count = sum(len(sections.get(section, {})) for section in torch_weights.OPTIMIZERS)
        is_array = lambda x: isinstance(x, np.ndarray)  # noqa: E731
        tensors = jax.tree.map(lambda x: torch.from_numpy(x.copy()) if is_array(x) else x, sections)
        torch.save(tensors, partial)
    os.replace(partial, output)
    return f"{count} tensors of {workdir} written to {output}"


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    action = arguments[0] if len(arguments) == 1 else ""
    if action == "import":
        if not options.input or not options.output:
            raise UserError("import needs --input=FILE and --output=WORKDIR")
        config = cli.config()[0] if options["config"].value is not None else None
        print(import_file(options.input, options.output, format=options.format, config=config))
    elif action == "export":
        if not options.workdir or not options.output:
            raise UserError("export needs --workdir=W and --output=FILE.pth or FILE.safetensors")
        print(export_file(options.workdir, options.output, options.checkpoint))
    else:
        raise UserError(f"say what to do: import or export (got {' '.join(arguments) or 'nothing'})")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("input", "", "Import: .pth or .safetensors file.")
    flags.DEFINE_string("output", "", "Import: workdir to make. Export: .pth or .safetensors file.")
    flags.DEFINE_enum("format", "", ["", *FORMATS], "Import: layout of the file; default: read off it.")
    flags.DEFINE_string("workdir", "", "Export: folder of a stage or of a recipe.")
    flags.DEFINE_string("checkpoint", "last", "Export: last or a step.")
    cli.run(main)
