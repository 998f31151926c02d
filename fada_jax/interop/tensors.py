"""Tensors that come from elsewhere against those that a model needs."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fada_jax.errors import UserError

_LARGEST = np.finfo(np.float32).max
# Variances of batch norm, in the released layout and in ours.
_VARIANCES = (".running_var", ".var", "/var")


def check_tensors(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses tensors that are not exactly those of a model.

    Args:
      tensors: by name.
      shapes: that the model needs, by name.

    Raises:
      UserError: naming what is missing, unknown, of another shape, not floating-point, not finite, or no variance.
    """
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise UserError(f"the file lacks {first(missing)}")
    unknown = [name for name in tensors if name not in shapes]
    if unknown:
        raise UserError(f"the file holds {first(unknown)}, unknown to the model")
    for name, shape in shapes.items():
        check_tensor(name, tensors[name], shape)
        if name.endswith(_VARIANCES) and (tensors[name] < 0).any():
            raise UserError(f"{name} holds a negative variance: the file is damaged")


def check_tensor(name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape, or one that is not floating-point or not finite in float32.

    Raises:
      UserError: naming the tensor.
    """
    if not isinstance(tensor, np.ndarray | np.generic):
        raise UserError(f"{name} is a {type(tensor).__name__}, not a tensor")
    if tensor.shape != shape:
        hint = ""
        if name.startswith("classifier.") and tensor.shape[:1] != shape[:1]:
            classes = tensor.shape[0] if tensor.shape else 0
            hint = f": a classifier of {classes} classes cannot serve a model of {shape[0]}"
        raise UserError(f"{name} has shape {tensor.shape} in the file, the model needs {shape}{hint}")
    if not np.issubdtype(tensor.dtype, np.floating):
        raise UserError(f"{name} is not an array of floating-point numbers, but of {tensor.dtype}")
    if not (np.abs(tensor) <= _LARGEST).all():
        raise UserError(f"{name} holds a NaN or an infinity: take a checkpoint from before the run broke")


def first(names: Iterable[Any], count: int = 3) -> str:
    """Some of the names of a file, for people: the first ones, each cut where it is long."""
    names = list(names)
    shown = ", ".join(name if len(name) <= 120 else f"{name[:117]}..." for name in map(printable, names[:count]))
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


def printable(name: Any) -> str:
    """A key of a file on one line."""
    text = name if isinstance(name, str) else f"<{type(name).__name__}>" if isinstance(name, tuple) else str(name)
    return "".join(x if x.isprintable() else "?" for x in itertools.islice(text, 1000))


def shown(value: Any) -> str:
    """A value of a file on one line: bounded, however it is nested."""
    try:
        return " ".join(reprlib.repr(value)[:60].split())
    except ValueError:  # Python writes no number of thousands of digits.
        return f"<{type(value).__name__}>"
