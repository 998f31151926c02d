"""A checkpoint of ours becomes a file for PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util

from fada_jax import config as schema
from fada_jax import files
from fada_jax.errors import UserError
from fada_jax.interop import safetensors_files, torch_files, torch_optimizers, torch_tables
from fada_jax.stages.program import create_states
from fada_jax.stages.workdirs import stage_workdir
from fada_jax.training import checkpoints


def export_sections(workdir: str | Path, checkpoint: str = "last") -> dict[str, Any]:
    """A checkpoint of ours as the dictionary that the released code saves, NumPy arrays for tensors.

    Further classifiers and discriminators are sections of their own.

    Raises:
      UserError: no such checkpoint, or a model that the released layout cannot hold.
    """
    workdir = stage_workdir(workdir)
    return _sections(workdir, checkpoints.load_model(workdir, checkpoint))


def _sections(workdir: Path, model: checkpoints.Model) -> dict[str, Any]:
    config, step = schema.stored(model.config, model.spec.num_classes), model.step
    shapes = jax.eval_shape(lambda: create_states(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    states = checkpoints.restore_states(workdir, step, shapes, jax.tree.map(lambda _: device, shapes))
    states = jax.device_get(states)
    sections: dict[str, Any] = {
        **torch_tables.export_generator(model.params, model.batch_stats, model.spec, step),
        **torch_optimizers.export_generator_optimizer(
            states["generator"].opt_state, model.spec, config.generator_optimizer, step
        ),
    }
    if "discriminator" in states:
        state, optimizer = states["discriminator"], config.discriminator_optimizer
        sections[torch_tables.DISCRIMINATOR] = torch_tables.export_discriminator(state.params)
        sections |= torch_optimizers.export_discriminator_optimizer(state.opt_state, state.params, optimizer, step)
    return {**sections, "iteration": step}


def export_file(workdir: str | Path, output: str | Path, checkpoint: str = "last") -> str:
    """Writes ``.pth`` or ``.safetensors`` whole or not at all; returns a summary for people.

    Raises:
      UserError: another suffix, somebody else's file, no such checkpoint, a model that the released layout cannot
        hold, or a full disk.
    """
    output = files.place(output, "--output")
    torch_files.check_output(output)
    folder = stage_workdir(workdir)
    model = checkpoints.load_model(folder, checkpoint)
    if output.suffix == ".pth" and not model.class_set:
        raise UserError(
            f"{workdir} holds a feature extractor alone, and the released layout needs a trained classifier: train a "
            "stage from it first, or export it to .safetensors"
        )
    if output.suffix == ".safetensors" and model.spec.norm == "group":
        tensors = traverse_util.flatten_dict({"params": model.params, "batch_stats": model.batch_stats}, sep=".")
    else:
        sections = _sections(folder, model)
        tensors = {f"{s}.{k}": v for s in torch_tables.SECTIONS for k, v in sections.get(s, {}).items()}
    if output.suffix == ".pth":
        torch_files.write_pth(output, sections)
    else:
        meta = dataclasses.replace(checkpoints.read_meta(folder, model.step), checkpoint_step=model.step)
        safetensors_files.write(output, tensors, meta.plain())
    return f"{len(tensors)} tensors of {workdir} written to {output}"
