"""``.safetensors`` files: their header is checked before anything else of them is read.

No other module imports safetensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fada_jax import __version__, documents, files
from fada_jax.documents import STRICT
from fada_jax.errors import UserError
from fada_jax.interop import outputs
from fada_jax.ranges import Whole

# Key of the metadata under which a checkpoint's own description travels.
METADATA = "fada_jax"
# Bytes of the header's length, and what the format allows it to be.
_PREFIX, _LONGEST = 8, 100_000_000
_TYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the header says about a tensor."""

    __pydantic_config__: ClassVar = STRICT
    dtype: str
    shape: tuple[Whole, ...]
    data_offsets: tuple[Whole, Whole]


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about itself and its tensors."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Entry]


def library(purpose: str) -> Any:
    """The library.

    Raises:
      UserError: it is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f"{purpose} needs safetensors: pip install 'fada-jax[torch]'") from error
    return safetensors


def header(path: Path) -> Header:
    """The header of a file.

    Raises:
      UserError: naming the path: it cannot be read, or is no header.
    """
    try:
        if problem := files.special(path):
            raise UserError(f"{path} is {problem}")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_PREFIX), "little")
            size = path.stat().st_size
            if size < _PREFIX or length > min(_LONGEST, size - _PREFIX):
                raise UserError(f"{path} is no readable safetensors file: a header of {length} bytes in {size}")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    source = f"{path} is no readable safetensors file"
    values = documents.check(documents.parse(text, source, what="in its header"), dict[str, Any], source)
    metadata = documents.check(values.pop("__metadata__", None) or {}, dict[str, str], f"{source}: __metadata__")
    return Header(metadata, documents.check(values, dict[str, Entry], source))


def read(path: Path) -> dict[str, Any]:
    """Arrays by name; those of sections under the section's name (``feature_extractor``).

    Raises:
      UserError: a damaged file, a type that is not read, or names that contradict each other.
    """
    safetensors = library(f"reading {path}")
    for name, entry in header(path).tensors.items():
        if entry.dtype not in _TYPES:
            raise UserError(f"{path}: {name} is of type {entry.dtype}, which is not read: save it as F32")
    try:
        flat = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is no readable safetensors file: {error}") from error
    # torchvision's VGG has tensors 'classifier.N': only files with a feature extractor or a D have sections.
    if not any(key.startswith(("feature_extractor.", "model_D.")) for key in flat):
        return flat
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, rest = key.partition(".")
        if not dot:
            nested[key] = value
        elif section in flat:
            raise UserError(f"{path}: {section} is a tensor, and {key} lies below it: one of them is wrong")
        else:
            nested.setdefault(section, {})[rest] = value
    return nested


def read_metadata(path: Path) -> str | None:
    """The text that ``write`` has put into a file; None in any other file."""
    return header(path).metadata.get(METADATA) or None


def is_ours(path: Path) -> bool:
    """Whether ``write``, of this or of an earlier version, has made a file."""
    try:
        return path.is_file() and METADATA in header(path).metadata
    except (OSError, UserError):
        return False


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes arrays by name, and metadata of JSON types.

    Raises:
      UserError: somebody else's file lies there, or it cannot be written.
    """
    safetensors = library("writing .safetensors")
    contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    about = {"made_by": f"fada-jax {__version__}", METADATA: json.dumps(metadata)}
    with outputs.disk(path, safetensors.SafetensorError), files.replacing(path, ours=is_ours) as partial:
        safetensors.numpy.save_file(contiguous, partial, about)
