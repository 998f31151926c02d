"""Image translators of a stage as stored: what a checkpoint holds where no segmenter was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fada_jax.errors import UserError
from fada_jax.methods.cyclegan import TRANSLATORS
from fada_jax.models import TranslationGenerator, TranslationSpec
from fada_jax.training import checkpoints
from fada_jax.training.states import abstract


@dataclasses.dataclass(frozen=True)
class Translator:
    """Both translators of a stage.

    Attributes:
      spec: their shapes.
      params: weights of each by name (``methods.cyclegan.TRANSLATORS``), on the host.
      config: the config that trained them, as a plain dict.
      step: of the checkpoint.
    """

    spec: TranslationSpec
    params: Any
    config: dict[str, Any]
    step: int

    @property
    def digest(self) -> str:
        """SHA-256 of all weights, as ``checkpoints.Model.digest``."""
        return checkpoints.digest_of(self.params)


def load_translator(workdir: str | Path, checkpoint: str = "last") -> Translator:
    """The translators of a stage.

    Args:
      workdir: of the stage.
      checkpoint: 'last' or a step.

    Raises:
      UserError: no such checkpoint, an unreadable one, or one of a segmenter.
    """
    step = checkpoints.resolve_step(workdir, checkpoint)
    meta, place = checkpoints.read_meta(workdir, step), checkpoints.directory(workdir) / str(step)
    if meta.translator is None:
        raise UserError(f"{place} holds a segmenter, not image translators: name the workdir of a translation stage")
    spec = meta.translator

    def create() -> Any:
        image = jnp.zeros((1, 32, 32, 3))
        return {name: TranslationGenerator(spec).init(jax.random.key(0), image)["params"] for name in TRANSLATORS}

    shapes = abstract(create, f"{place}: translator cannot be built")
    params = checkpoints.restore_weights(workdir, step, shapes)["params"]
    return Translator(spec, params, meta.config, step)
