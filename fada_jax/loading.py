"""Loads a segmenter from wherever it lies; needs neither TensorFlow nor anything else that only training needs."""

from __future__ import annotations

from pathlib import Path

from fada_jax import files
from fada_jax.errors import UserError
from fada_jax.evaluation import predictor
from fada_jax.interop import reading, stablehlo
from fada_jax.models import DTYPES, ComputeType
from fada_jax.stages.workdirs import stage_workdir
from fada_jax.training import checkpoints


def load(path: str | Path, *, checkpoint: str = "last", dtype: ComputeType = "auto") -> predictor.Predictor:
    """A segmenter, ready to be called on images.

    Args:
      path: the workdir of a stage or of a recipe (then its last stage), one checkpoint in it (``W/checkpoints/900``), a
        PyTorch checkpoint of the released layout or one that ``convert_weights export`` wrote (``.pth``,
        ``.safetensors``), or an artifact of ``fada_jax.export``.
      checkpoint: 'last' or a step, where the path is a workdir.
      dtype: compute type: 'float32', 'bfloat16', or 'auto', which is float32 on CPUs and what the model was trained
        with elsewhere. An artifact has its own.

    Raises:
      UserError: nothing of that kind is there, or it cannot be read.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: one of {', '.join(DTYPES)}")
    path = files.local(path)
    is_weight_file, is_artifact = path.suffix in (".pth", ".safetensors"), stablehlo.is_artifact(path)
    if checkpoint != "last" and (is_weight_file or is_artifact):
        raise UserError(f"checkpoint={checkpoint!r}: {path} holds one model alone, choose a workdir's checkpoint by it")
    if is_weight_file:
        return predictor.from_model(reading.read_model(path), dtype)
    if not path.is_dir():
        raise UserError(f"{path}: no such workdir, checkpoint, weight file or artifact")
    if is_artifact:
        artifact = stablehlo.load_artifact(path)
        if dtype not in ("auto", artifact.dtype):
            raise UserError(f"{path} computes in {artifact.dtype} here: export it again with --dtype={dtype}")
        return artifact
    if path.parent.name == checkpoints.directory("").name and path.name.isdigit():
        return predictor.from_model(checkpoints.load_model(path.parents[1], path.name), dtype)
    return predictor.from_model(checkpoints.load_model(stage_workdir(path), checkpoint), dtype)
