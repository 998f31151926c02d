"""Brings PyTorch weights here and takes ours back, accounting for every tensor.

  python -m fada_jax.convert_weights import --input=resnet101.pth --output=W
  python -m fada_jax.convert_weights import --input=vgg16_caffe.pth --output=W --format=caffe_vgg
  python -m fada_jax.convert_weights import --input=g2c_adv.pth --output=W --format=fada
  python -m fada_jax.convert_weights export --workdir=W --output=model.pth
  python -m fada_jax.convert_weights export --workdir=W --output=model.safetensors

Import makes a workdir that --config.init_from, evaluate and predict take. Class set, backbone and batch norm are read
off the file; a .safetensors file that export wrote says all that itself, the classes of own data included. With
--config naming a stage, optimizer states come along and `fada_jax.train` with that config and --workdir goes on at the
file's iteration. Export to .pth writes the layout of the released PyTorch code; .safetensors holds the same tensors
flat, or our own names where that layout cannot hold the model (group norm). For an artifact that runs without PyTorch
and without this package see fada_jax.export.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import re
from collections.abc import Mapping
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
    task = importlib.import_module(f"configs.{_TASKS[num_classes]}")
    config = task.get_config(f"stage={stage},backbone={backbone}")
    if torch_weights.is_released(file) and any(name.endswith("num_batches_tracked") for name in names):
        config.model.norm = "live"
    return config


def _fresh(config: ConfigDict) -> dict[str, Any]:
    """Freshly initialised parameters of what no ImageNet model holds: the classifier, and VGG's fc6 and fc7."""

    def create() -> dict[str, Any]:
        params = train.create_states(config)["generator"].params
        extractor = {name: value for name, value in params["feature_extractor"].items() if name in ("fc6", "fc7")}
        return {"params": {"feature_extractor": extractor, "classifier": params["classifier"]}}

    return jax.device_get(jax.jit(create)())


def is_own(file: Mapping[str, Any]) -> bool:
    """Whether a file holds our own names: a model that the released layout cannot hold (group norm)."""
    return any(key.startswith("params.") for key in file)


def import_own(file: Mapping[str, np.ndarray]) -> tuple[Any, Any, torch_weights.Report]:
    """Parameters, batch statistics and report of a file with our own names."""
    tree = traverse_util.unflatten_dict(dict(file), sep=".")
    return tree["params"], tree.get("batch_stats", {}), torch_weights.Report(tuple(file), (), ())


def read_model(path: str | Path) -> checkpoints.Model:
    """The segmenter in a file of the released code or in one that ``export`` wrote, without a workdir.

    Raises:
      UserError: no such file, no classifier in it, or anything unexplained.
    """
    file, meta = torch_weights.read_file(path), torch_weights.read_metadata(path)
    if meta:
        spec, own, class_set = checkpoints.describe(meta)
        config, step = meta["config"], meta["checkpoint_step"]
    elif torch_weights.is_released(file):
        guessed = guess_config(file, str(path))
        spec, own = settings.model_spec(guessed), _preprocessing(file, guessed, str(path), "")
        class_set, config = classes.get_class_set(guessed.class_set), settings.plain(guessed)
        step = int(file.get("iteration", 0))
    else:
        raise UserError(f"{path} holds a feature extractor alone: import it and train a classifier first")
    if is_own(file):
        params, batch_stats, _ = import_own(file)
    else:
        params, batch_stats, _ = torch_weights.import_generator(file, spec)
    return checkpoints.Model(spec, own, class_set, params, batch_stats, config, step)


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


def import_states(
    file: Mapping[str, Any], config: ConfigDict
) -> tuple[checkpoints.States, int, list[torch_weights.Report]]:
    """TrainStates of a config's stage with the weights, moments and iteration of a file.

    Returns:
      the states, the iteration, and what became of the tensors of G (and of D where the stage has one).
    """
    released, own = torch_weights.is_released(file), is_own(file)
    # Only what the file lacks is ever initialised: the rest of a large model need not exist twice. Every optimizer
    # starts from zeros.
    states = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(functools.partial(train.create_states, config))
    )
    generator, spec = states["generator"], settings.model_spec(config)
    if own:
        params, batch_stats, report = import_own(file)
    else:
        params, batch_stats, report = torch_weights.import_generator(file, spec, None if released else _fresh(config))
    iteration = int(file.get("iteration", 0)) if released else 0
    states["generator"] = steps.replace_weights(generator, params, batch_stats).replace(step=np.int32(iteration))
    reports = [report]
    if "optimizer_fea" in file:
        opt_state = torch_weights.import_generator_optimizer(generator.opt_state, file, spec, iteration)
        states["generator"] = states["generator"].replace(opt_state=opt_state)
    if "discriminator" in states and "model_D" in file:
        d = states["discriminator"]
        shape = d.params["conv0"]["kernel"].shape
        outputs = d.params["head"]["kernel"].shape[-1]
        widths = tuple(config.discriminator.widths)
        d_params, d_report = torch_weights.import_discriminator(file, outputs, shape[2], widths)
        d = d.replace(params=d_params, step=np.int32(iteration))
        if "optimizer_D" in file:
            d = d.replace(
                opt_state=torch_weights.import_discriminator_optimizer(d.opt_state, file, d_params, iteration)
            )
        states["discriminator"] = d
        reports.append(d_report)
    return states, iteration, reports


def import_file(path: str, output: str, *, format: str = "", config: ConfigDict | None = None) -> str:
    """Writes the workdir ``output`` from a PyTorch file; returns what became of every tensor, for people.

    Raises:
      UserError: anything unexplained in the file; nothing is written then.
    """
    file, meta = torch_weights.read_file(path), torch_weights.read_metadata(path)
    described = ConfigDict(meta["config"]) if meta else None
    found = "fada" if meta else guess_format(file)
    if format and (format == "fada") != (found == "fada"):
        raise UserError(f"{path} has the layout {found!r}, not {format!r}")
    given = config is not None
    config = config if given else described or guess_config(file, path)
    if checkpoints.available_steps(output):
        raise UserError(f"{output} holds checkpoints already: choose another --output")
    states, iteration, reports = import_states(file, config)
    own = settings.preprocessing(described) if described else _preprocessing(file, config, path, format)
    wanted = settings.preprocessing(config)
    if given and wanted != own:
        raise UserError(f"{path} belongs to preprocessing {own}, the config has {wanted}")
    with config.unlocked():
        config.preprocessing.update(dataclasses.asdict(own))
    class_set = checkpoints.class_set(meta) if meta else None
    if found == "fada" and not meta:
        class_set = classes.get_class_set(config.class_set)
    unread = [key for key in file if found == "fada" and key not in _known_sections() and not is_own(file)]
    del file  # The states hold copies; both at once would be too much beside what writing takes.
    meta = checkpoints.make_meta(settings.plain(config), settings.model_spec(config), own, class_set)
    with checkpoints.writing(output, meta, wait=True) as save:
        save(iteration, states)
    predicts = class_set.name if class_set else "none (feature extractor only)"
    lines = [f"{path}: {found}, {config.model.backbone}, class set {predicts}"]
    for kind in ("used", "dropped", "initialised"):
        names = [name for report in reports for name in getattr(report, kind)]
        # Batch norm's counters say nothing about the weights; the names worth reading come first.
        names.sort(key=lambda name: name.endswith("num_batches_tracked"))
        shown = f": {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        lines.append(f"  {len(names):>4} {kind}" + (shown if kind != "used" and names else ""))
    if unread:
        lines.append(f"  sections left in the file: {', '.join(map(str, unread))}")
    lines.append(f"written: {checkpoints.directory(output) / str(iteration)}")
    return "\n".join(lines)


def _known_sections() -> set[str]:
    return {*torch_weights.OPTIMIZERS, *torch_weights.OPTIMIZERS.values(), "iteration"}


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
