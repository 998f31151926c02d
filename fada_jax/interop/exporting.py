"""A checkpoint of ours becomes a file for PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fada_jax import config as schema
from fada_jax import files
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.interop import lineage, safetensors_files, torch_files, torch_optimizers, torch_tables
from fada_jax.interop.entries import DISCRIMINATOR, SECTIONS
from fada_jax.interop.lineage import DiscriminatorFiles
from fada_jax.stages.program import create_states
from fada_jax.stages.workdirs import stage_workdir
from fada_jax.training import checkpoints


def export_sections(workdir: str | Path, checkpoint: str = "last") -> dict[str, Any]:
    """A checkpoint of ours as the dictionary that the released code saves, NumPy arrays for tensors.

    Raises:
      UserError: no such checkpoint, or a model that the released layout cannot hold.
    """
    workdir = stage_workdir(workdir)
    return _sections(workdir, checkpoints.load_model(workdir, checkpoint))


def _states(workdir: Path, config: Config, step: int) -> checkpoints.States:
    """States of a checkpoint, on the host."""
    shapes = jax.eval_shape(lambda: create_states(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.device_get(checkpoints.restore_states(workdir, step, shapes, jax.tree.map(lambda _: device, shapes)))


def _sections(workdir: Path, model: checkpoints.Model) -> dict[str, Any]:
    config, step = schema.stored(model.config, model.spec.num_classes), model.step
    table = torch_tables.export_generator(model.params, model.batch_stats, model.spec, step)
    states = _states(workdir, config, step)
    opt_state, optimizer = states["generator"].opt_state, config.generator_optimizer
    sections: dict[str, Any] = {
        **table,
        **torch_optimizers.export_generator_optimizer(opt_state, model.spec, optimizer, step),
    }
    for name in states:
        if lineage.DISCRIMINATORS.get(name) == DISCRIMINATOR:
            state, optimizer = states[name], config.discriminator_optimizer
            sections[DISCRIMINATOR] = torch_tables.export_discriminator(state.params)
            sections |= torch_optimizers.export_discriminator_optimizer(state.opt_state, state.params, optimizer, step)
    return {**sections, "iteration": step}


def _own_names(model: checkpoints.Model) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict({"params": model.params, "batch_stats": model.batch_stats}, sep=".")


def export_file(
    workdir: str | Path,
    output: str | Path,
    checkpoint: str = "last",
    discriminators: DiscriminatorFiles = lineage.NONE,
) -> str:
    """Writes ``.pth`` or ``.safetensors`` whole or not at all; returns a summary for people.

    Args:
      workdir: of a stage or of a recipe.
      output: file to write.
      checkpoint: 'last' or a step.
      discriminators: ``.pth`` files to write beside a ``.pth`` of the Caffe variant, which holds G alone.

    Raises:
      UserError: another suffix, somebody else's file, no such checkpoint, a model that no layout of PyTorch's can hold,
        or a full disk.
    """
    output = files.place(output, "--output")
    torch_files.check_output(output)
    folder = stage_workdir(workdir)
    model = checkpoints.load_model(folder, checkpoint)
    as_pth, released = output.suffix == ".pth", torch_tables.fits_released(model.spec)
    if as_pth and not model.class_set:
        raise UserError(
            f"{workdir} holds a feature extractor alone, and the released layout needs a trained classifier: train a "
            "stage from it first, or export it to .safetensors"
        )
    if discriminators.by_section and (released or not as_pth):
        raise UserError("only a .pth of the Caffe variant has its discriminators in further files: leave them out")
    if as_pth and not released:
        return "\n".join(_write_lineage(folder, model, output, discriminators.by_section))
    if not released:
        tensors = _own_names(model)
    else:
        sections = _sections(folder, model)
        tensors = {f"{s}.{k}": v for s in SECTIONS for k, v in sections.get(s, {}).items()}
    if as_pth:
        torch_files.write_pth(output, sections)
    else:
        meta = dataclasses.replace(checkpoints.read_meta(folder, model.step), checkpoint_step=model.step)
        safetensors_files.write(output, tensors, meta.plain())
    return f"{len(tensors)} tensors of {workdir} written to {output}"


def _write_lineage(
    workdir: Path, model: checkpoints.Model, output: Path, discriminators: Mapping[str, str]
) -> Iterator[str]:
    """Writes G as AdaptSegNet does, and discriminators by section into files of their own; says so line by line."""
    sections = torch_tables.export_generator(model.params, model.batch_stats, model.spec, model.step)
    if model.spec.variant != "caffe":
        raise UserError(f"{workdir}: no PyTorch code has this network, see its model.*: export it to .safetensors")
    config = schema.stored(model.config, model.spec.num_classes)
    shapes = jax.eval_shape(lambda: create_states(config))
    held = {lineage.DISCRIMINATORS[name]: name for name in shapes if name in lineage.DISCRIMINATORS}
    for section, path in discriminators.items():
        if section not in held:
            raise UserError(f"{workdir} holds no discriminator for {path}: leave it out")
        if files.place(path).suffix != ".pth":
            raise UserError(f"{path}: a discriminator's file ends in .pth")
        torch_files.check_output(files.place(path))
    contents = lineage.from_sections(sections, model.spec.heads)
    states = _states(workdir, config, model.step) if discriminators else {}
    torch_files.write_pth(output, contents)
    yield f"{len(contents)} tensors of {workdir} written to {output}"
    for section, name in held.items():
        if section in discriminators:
            tensors = torch_tables.export_discriminator(states[name].params)
            torch_files.write_pth(files.place(discriminators[section]), tensors)
            yield f"{len(tensors)} tensors of its {name} written to {discriminators[section]}"
        else:
            yield f"its {name} was left: name a file for it"
    yield "its optimizers and its step were left: this layout has no place for them"
