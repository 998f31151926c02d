"""One tensor of a PyTorch file beside the array of ours that it is: names, shapes and layouts, both ways.

Convolutions change from OIHW to HWIO; vectors stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fada_jax.errors import UserError
from fada_jax.interop.tensors import printable

# State dicts of a released checkpoint.
FEATURE_EXTRACTOR, CLASSIFIER, DISCRIMINATOR = SECTIONS = ("feature_extractor", "classifier", "model_D")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the released code.

    Attributes:
      section: state dict that holds it, one of ``SECTIONS``.
      key: its name there.
      path: collection and names of the array in our variables.
      shape: its shape in PyTorch.
      part: range of our output channels that it holds; None: all of them.
    """

    section: str
    key: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    part: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def trainable(self) -> bool:
        return self.path[0] == "params"


@dataclasses.dataclass(frozen=True)
class Report:
    """Names of tensors that were read from the file, left in the file, or kept from random initialisation."""

    used: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.used + other.used, self.dropped + other.dropped, self.initialised + other.initialised)


def convolution(
    section: str, key: str, path: Sequence[str], outputs: int, inputs: int, kernel: int, bias: bool
) -> Iterator[Entry]:
    yield Entry(section, f"{key}.weight", ("params", *path, "kernel"), (outputs, inputs, kernel, kernel))
    if bias:
        yield Entry(section, f"{key}.bias", ("params", *path, "bias"), (outputs,))


def from_torch(tensor: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours: OIHW to HWIO, vectors as they are; float32."""
    array = np.asarray(tensor, np.float32)
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def to_torch(array: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's: HWIO to OIHW, vectors as they are."""
    array = np.asarray(array)
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


def to_variables(entries: Iterable[Entry], tensors: Mapping[str, np.ndarray]) -> dict:
    """Nested variables from tensors by name; the parts of one array are joined along its outputs."""
    variables: dict = {}
    for entry in entries:
        node = variables
        for name in entry.path[:-1]:
            node = node.setdefault(name, {})
        parts = [node[entry.path[-1]]] if entry.part and entry.part[0] else []
        node[entry.path[-1]] = np.concatenate([*parts, from_torch(tensors[entry.name])], axis=-1)
    return variables


def to_tensor(entry: Entry, variables: Mapping) -> np.ndarray:
    """The tensor of ``entry`` in PyTorch's layout."""
    node: Any = variables
    for name in entry.path:
        node = node[name]
    array = np.asarray(node)
    return to_torch(array if entry.part is None else array[..., slice(*entry.part)])


def state_dict(tensors: Any, name: str) -> dict[str, Any]:
    """The state dict ``name`` without the prefix that training on several GPUs adds."""
    if not isinstance(tensors, Mapping):
        raise UserError(f"{name} is no state dict")
    plain = {printable(key).removeprefix("module."): value for key, value in tensors.items()}
    if len(plain) < len(tensors):
        raise UserError(f"{name} holds one tensor under two names, with and without 'module.' before it")
    return plain
