"""``.pth`` and ``.safetensors`` files, read and written whole, as NumPy arrays.

No other module imports PyTorch or safetensors. Code inside a pickle is never run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fada_jax import files
from fada_jax.errors import UserError

# Key of a .safetensors file's metadata under which a checkpoint's own description travels.
METADATA = "fada_jax"


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{purpose} needs PyTorch: pip install 'fada-jax[torch]'") from error
    return torch


def _safetensors(purpose: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f"{purpose} needs safetensors: pip install 'fada-jax[torch]'") from error
    return safetensors


def _map(convert: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with every leaf of its dictionaries, lists and tuples converted."""
    if isinstance(value, Mapping):
        return {key: _map(convert, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(convert, item) for item in value)
    return convert(value)


def read_file(path: str | Path) -> dict[str, Any]:
    """Contents of a ``.pth`` or ``.safetensors`` file with NumPy arrays for tensors.

    A safetensors file is flat: its keys carry the section as a prefix (``feature_extractor.backbone.conv1.weight``).

    Raises:
      UserError: no such file, a damaged file, one that is no dictionary of tensors, or PyTorch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)


def _read_pth(path: Path) -> dict[str, Any]:
    torch = _torch(f"reading {path}")
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # Damaged files raise a dozen unrelated types.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith("Weights only load failed"):
            reason = "it is damaged or holds more than tensors, and code in a file is never run; save its state dict"
        raise UserError(f"{path} is no readable PyTorch checkpoint: {reason}") from error
    if not isinstance(contents, Mapping):
        raise UserError(f"{path} holds a {type(contents).__name__}, not a dictionary of tensors")

    def convert(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        # NumPy has no bfloat16.
        return (value.float() if value.is_floating_point() and value.dtype != torch.float64 else value).numpy()

    return _map(convert, contents)


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _safetensors(f"reading {path}")
    try:
        flat = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no readable safetensors file: {error}") from error
    # torchvision's VGG has tensors 'classifier.N': only files with a feature extractor or a D have sections.
    if not any(key.startswith(("feature_extractor.", "model_D.")) for key in flat):
        return flat
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, rest = key.partition(".")
        if dot:
            nested.setdefault(section, {})[rest] = value
        else:
            nested[key] = value
    return nested


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """The metadata that ``write_safetensors`` has written into a file; None for any other file.

    Raises:
      UserError: it is not JSON.
    """
    if Path(path).suffix != ".safetensors":
        return None
    with _safetensors(f"reading {path}").safe_open(path, "np") as file:
        text = (file.metadata() or {}).get(METADATA)
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: what it says about its model is not JSON ({error}): export it again") from error


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, before the work that goes into it.

    Raises:
      UserError: another suffix than ``.pth`` or ``.safetensors``, or the library that writes it is not installed.
    """
    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"--output={path}: must end in .pth or .safetensors")
    library = _torch if path.suffix == ".pth" else _safetensors
    library(f"writing {path.suffix}")


def write_pth(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes nested dictionaries, whose NumPy arrays become tensors."""
    torch = _torch("writing .pth")
    tensors = _map(lambda x: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x, contents)
    # PyTorch writes the name of a path into the file.
    with files.replacing(path) as partial, partial.open("wb") as file:
        torch.save(tensors, file)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes arrays by name, and metadata of JSON types."""
    safetensors = _safetensors("writing .safetensors")
    contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    with files.replacing(path) as partial:
        safetensors.numpy.save_file(contiguous, partial, {METADATA: json.dumps(metadata)})


def check_tensors(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses tensors that are not exactly those of a model.

    Args:
      tensors: by name.
      shapes: that the model needs, by name.

    Raises:
      UserError: naming what is missing, unknown, of another shape, not floating-point or not finite.
    """
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise UserError(f"the file lacks {_first(missing)}")
    unknown = [name for name in tensors if name not in shapes]
    if unknown:
        raise UserError(f"the file holds {_first(unknown)}, unknown to the model")
    for name, shape in shapes.items():
        check_tensor(name, tensors[name], shape)


def check_tensor(name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape, or one that is not floating-point or not finite.

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
        raise UserError(f"{name} is not an array of floating-point numbers")
    if not np.isfinite(tensor).all():
        raise UserError(f"{name} holds a NaN or an infinity: take a checkpoint from before the run broke")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
