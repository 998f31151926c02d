"""Loads a segmenter from wherever it lies; needs neither TensorFlow nor anything else that only training needs."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

from fada_jax import files
from fada_jax.errors import UserError
from fada_jax.evaluation import predictor
from fada_jax.interop import artifacts, reading
from fada_jax.interop.tensors import shown
from fada_jax.interop.torch_files import SUFFIXES
from fada_jax.models import DTYPES, ComputeType
from fada_jax.stages.workdirs import stage_workdir
from fada_jax.training import checkpoints


def load(
    path: str | Path, *, checkpoint: int | str | None = "last", dtype: ComputeType = "auto"
) -> predictor.Predictor:
    """A segmenter, ready to be called on images.

    Args:
      path: the workdir of a stage or of a recipe (then its last stage), one checkpoint in it (``W/checkpoints/900``), a
        PyTorch checkpoint of the released layout or one that ``convert_weights export`` wrote (``.pth``,
        ``.safetensors``), or an artifact of ``fada_jax.export``.
      checkpoint: a step, 'last' or 'best', where the path is a workdir; None: the last.
      dtype: compute type: 'float32', 'bfloat16', or 'auto', which is float32 on CPUs and what the model was trained
        with elsewhere. An artifact has its own.

    Raises:
      UserError: nothing of that kind is there, or it cannot be read.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: one of {', '.join(DTYPES)}")
    path, asked = files.place(path), _asked(checkpoint)
    kind = _kind(path)
    if asked != "last" and kind != "workdir":
        raise UserError(f"checkpoint={asked!r}: {path} holds one model alone, choose a workdir's checkpoint by it")
    if kind == "weights":
        return predictor.from_model(reading.read_model(path), dtype)
    if kind == "artifact":
        artifact = artifacts.load_artifact(path)
        if dtype not in ("auto", artifact.dtype):
            raise UserError(f"{path} computes in {artifact.dtype} here: export it again with --dtype={dtype}")
        return artifact
    if kind == "checkpoint":
        return predictor.from_model(checkpoints.load_model(path.absolute().parents[1], path.name), dtype)
    return predictor.from_model(checkpoints.load_model(stage_workdir(path), asked), dtype)


def _asked(checkpoint: Any) -> str:
    """A checkpoint as ``checkpoints.load_model`` takes it.

    Raises:
      UserError: neither a number nor a text.
    """
    if checkpoint is None:
        return "last"
    if isinstance(checkpoint, str):
        return checkpoint
    try:
        if not isinstance(checkpoint, bool):
            return str(operator.index(checkpoint))
    except (TypeError, ValueError):  # No whole number, or one of thousands of digits.
        pass
    raise UserError(f"checkpoint={shown(checkpoint)}: a step, 'last', 'best' or None")


def _kind(path: Path) -> str:
    """What lies at a path: 'weights', 'artifact', 'checkpoint' or 'workdir'.

    Raises:
      UserError: nothing that can be loaded.
    """
    try:
        if problem := files.special(path):
            raise UserError(f"{path} is {problem}")
        if path.is_dir():
            is_one = path.absolute().parent.name == checkpoints.directory("").name and checkpoints.is_step(path.name)
            return "artifact" if artifacts.is_artifact(path) else "checkpoint" if is_one else "workdir"
        found = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if path.suffix in SUFFIXES:
        return "weights"
    if found:
        raise UserError(f"{path}: the name of a weight file ends in {' or '.join(SUFFIXES)}: rename it by what it is")
    raise UserError(f"{path}: no such workdir, checkpoint, weight file or artifact")
