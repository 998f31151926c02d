"""The public interface: load a segmenter from wherever it lies, and train a stage on any iterator of batches.

``import fada_jax`` gives these names. Everything else in the package may change with any release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fada_jax import config as schema
from fada_jax import files
from fada_jax.errors import UserError
from fada_jax.evaluation import predictor
from fada_jax.interop import reading, stablehlo
from fada_jax.models import DTYPES, ComputeType
from fada_jax.stages import run
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
    if path.suffix in (".pth", ".safetensors"):
        return predictor.from_model(reading.read_model(path), dtype)
    if not path.is_dir():
        raise UserError(f"{path}: no such workdir, checkpoint, weight file or artifact")
    if stablehlo.is_artifact(path):
        artifact = stablehlo.load_artifact(path)
        if dtype not in ("auto", artifact.dtype):
            raise UserError(f"{path} computes in {artifact.dtype} here: export it again with --dtype={dtype}")
        return artifact
    if path.parent.name == checkpoints.directory("").name and path.name.isdigit():
        return predictor.from_model(checkpoints.load_model(path.parents[1], path.name), dtype)
    return predictor.from_model(checkpoints.load_model(stage_workdir(path), checkpoint), dtype)


def train_stage(
    config: schema.Experiment,
    workdir: str | Path,
    batches: Iterable[Mapping[str, Any]] | None = None,
    *,
    log: Callable[[str], None] = print,
) -> predictor.Predictor:
    """Trains one stage (source, adaptation or self_distillation) and returns the model that it ends with.

    Args:
      config: of ``configs/``; ``config.init_from`` names the workdir of the stage before.
      workdir: receives checkpoints and logs; the same call goes on where it stopped.
      batches: one batch a step, from step 0 on, instead of the config's data sets: ``{"source": {"image", "label"}}``,
        in the adaptation stage also ``"target": {"image"}``; images uint8 [n, H, W, 3], labels uint8 [n, H, W] with
        255 ignored. In the adaptation stage n is half of ``config.batch_size``, else all of it. For self-distillation
        the labels are those that the adapted model gives to target images.
      log: receives the progress lines.

    Raises:
      UserError: anything that the caller can mend; the message says how.
    """
    run.train(schema.read(config), workdir, batches=batches, log=log)
    return load(workdir)
