"""Weight files, ``.pth`` and ``.safetensors``, read and written whole, as NumPy arrays.

No other module imports PyTorch. Code inside a pickle is never run.
"""

from __future__ import annotations

import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fada_jax import __version__, files
from fada_jax.errors import UserError
from fada_jax.interop import archives, outputs, safetensors_files
from fada_jax.interop.tensors import printable

SUFFIXES = (".pth", ".safetensors")
# Levels of dictionaries and lists in a file; an optimizer's state has five.
_DEPTH = 32
# Bytes that tensors may take in memory for each byte of their file: float16 becomes float32, and some may be shared.
_GROWTH = 8
# What PyTorch raises about damaged and foreign files.
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, MemoryError),
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
)


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{purpose} needs PyTorch: pip install 'fada-jax[torch]'") from error
    return torch


def read_file(path: str | Path) -> dict[str, Any]:
    """Contents of a ``.pth`` or ``.safetensors`` file with NumPy arrays for tensors.

    A safetensors file is flat: its keys carry the section as a prefix (``feature_extractor.backbone.conv1.weight``).

    Raises:
      UserError: no such file, another suffix, a damaged file, one that is no dictionary of tensors, or PyTorch is not
        installed.
    """
    path = files.place(path)
    try:
        problem = files.special(path) or ("a folder, not a file" if path.is_dir() else "")
        found = path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(str(path))} cannot be read: {error}") from error
    if problem:
        raise UserError(f"{path} is {problem}")
    if not found:
        raise UserError(f"no such file: {path}")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: the name of a weight file ends in {' or '.join(SUFFIXES)}: rename it by what it is")
    with files.local_copy(path) as copy:
        return safetensors_files.read(copy) if path.suffix == ".safetensors" else _read_pth(copy)


def _read_pth(path: Path) -> dict[str, Any]:
    torch = _torch(f"reading {path}")
    try:
        # Files from before PyTorch 1.6 are no archives and cannot be mapped.
        mapped = archives.is_archive(path)
        if mapped and (problem := archives.problem(path)):
            raise UserError(f"{path} is no readable PyTorch checkpoint: {problem}")
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith("Weights only load failed"):
            reason = "it is damaged or holds more than tensors, and code in a file is never run; save its state dict"
        raise UserError(f"{path} is no readable PyTorch checkpoint: {reason}") from error
    if not isinstance(contents, Mapping):
        raise UserError(f"{path} holds a {type(contents).__name__}, not a dictionary of tensors")
    return _Arrays(torch, path).convert(contents, (), 0)


class _Arrays:
    """Converts the contents of a file; what they share, in tensors or containers, stays shared."""

    def __init__(self, torch: Any, path: Path):
        self._torch, self._path = torch, path
        self._done: dict[int, Any] = {}
        self._left = _GROWTH * path.stat().st_size

    def convert(self, value: Any, keys: tuple[Any, ...], depth: int) -> Any:
        """``value`` with arrays for tensors; ``keys`` lead to it.

        Raises:
          UserError: a tensor that has no array, or containers that are too deep or hold themselves.
        """
        if not isinstance(value, self._torch.Tensor | Mapping | list | tuple):
            return value
        if id(value) not in self._done:
            # A container that holds itself is met again before it is done.
            if depth > _DEPTH:
                raise self._error(keys[:3], f"is nested more than {_DEPTH} levels deep or holds itself")
            self._done[id(value)] = self._converted(value, keys, depth + 1)
        return self._done[id(value)]

    def _converted(self, value: Any, keys: tuple[Any, ...], depth: int) -> Any:
        if isinstance(value, Mapping):
            return {key: self.convert(item, (*keys, key), depth) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = (self.convert(item, (*keys, i), depth) for i, item in enumerate(value))
            return tuple(items) if isinstance(value, tuple) else list(items)
        return self._array(value.detach(), keys)

    def _array(self, tensor: Any, keys: tuple[Any, ...]) -> np.ndarray:
        if problem := _unreadable(self._torch, tensor):
            raise self._error(keys, f"{problem}: save it as a plain float32 tensor")
        self._left -= tensor.numel() * tensor.element_size()
        if self._left < 0:
            raise UserError(f"{self._path}: its tensors are larger than the file by far")
        half = tensor.dtype in (self._torch.float16, self._torch.bfloat16)  # NumPy has no bfloat16.
        return (tensor.float() if half else tensor).numpy()

    def _error(self, keys: tuple[Any, ...], problem: str) -> UserError:
        return UserError(f"{self._path}: {'.'.join(map(printable, keys))} {problem}")


def _unreadable(torch: Any, tensor: Any) -> str:
    """Why a tensor has no NumPy array; '' where it has one."""
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8)
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device.type!r}, without values"
    if tensor.is_quantized:
        return "is quantised"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "is sparse"
    if tensor.dtype not in (*plain, torch.int8, torch.int16, torch.int32, torch.int64):
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}, which is not read"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "repeats the same values, as expand does"
    return ""


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, or must not be, before the work that goes into it.

    Raises:
      UserError: another suffix than ``.pth`` or ``.safetensors``, somebody else's file, a place that cannot be written,
        or the library that writes it is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output={path}: must end in {' or '.join(SUFFIXES)}")
    as_pth = path.suffix == ".pth"
    files.check_output(path, "--output", ours=files.is_ours if as_pth else safetensors_files.is_ours)
    (_torch if as_pth else safetensors_files.library)(f"writing {path.suffix}")


def write_pth(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes nested dictionaries, whose NumPy arrays become tensors.

    Raises:
      UserError: somebody else's file lies there, or it cannot be written.
    """
    torch = _torch("writing .pth")
    tensors = _map(lambda x: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x, contents)
    with outputs.disk(path, RuntimeError), files.replacing(path, ours=files.is_ours) as partial:
        # PyTorch writes the name of a path into the file.
        with partial.open("wb") as file:
            torch.save(tensors, file)
        # Where no reader of PyTorch looks, and files.is_ours does.
        with zipfile.ZipFile(partial, "a") as archive:
            archive.comment = f"fada-jax {__version__}".encode()


def _map(convert: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with every leaf of its dictionaries, lists and tuples converted."""
    if isinstance(value, Mapping):
        return {key: _map(convert, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(convert, item) for item in value)
    return convert(value)
