"""Fine-grained adversarial domain adaptation (FADA) for semantic segmentation in JAX.

The names in ``__all__`` are the public interface and keep their meaning within a major version. Everything else is
internal: use it, read it, and expect it to change.
"""

import sys
from typing import TYPE_CHECKING, Any

from fada_jax.errors import UserError, missing_extra

if TYPE_CHECKING:
    from fada_jax.api import train_stage
    from fada_jax.classes import ClassSet
    from fada_jax.evaluation.predictor import Predictor
    from fada_jax.loading import load

__version__ = "0.1.0"
__all__ = ["ClassSet", "Predictor", "UserError", "__version__", "load", "train_stage"]

if sys.argv[:1] == ["-m"]:
    # `python -m fada_jax.COMMAND` is looking for the command: a signal finds its handler from here on.
    from fada_jax import as_command  # noqa: F401

_HOMES = {
    "ClassSet": "classes",
    "Predictor": "evaluation.predictor",
    "load": "loading",
    "train_stage": "api",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: ``import fada_jax`` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if reason := missing_extra(error):
            raise UserError(f"fada_jax.{name}: {reason}") from error
        raise
