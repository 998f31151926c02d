"""Trains one stage from Python, on any iterator of batches; needs the extra ``train``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fada_jax import config as schema
from fada_jax.evaluation import predictor
from fada_jax.loading import load
from fada_jax.stages import run


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
