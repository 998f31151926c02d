"""Artifacts of ``fada_jax.export`` read back: as they were written, of parts that fit each other, or not at all."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from fada_jax import documents, files, folders, stored
from fada_jax.errors import UserError
from fada_jax.evaluation.predictor import Predictor
from fada_jax.interop import archives
from fada_jax.interop.stablehlo import CARD, DESCRIPTION, FUNCTIONS, SAVED_MODEL, WEIGHTS
from fada_jax.interop.tensors import check_tensors
from fada_jax.training import checksums

# What is read of an artifact.
_FILES = (DESCRIPTION, WEIGHTS, *(f"{name}.stablehlo" for name in FUNCTIONS))
# What the readers of NumPy and JAX raise about files that are not theirs.
_NO_ARRAYS = (*(OSError, EOFError, ValueError, KeyError, TypeError, MemoryError, RuntimeError), zipfile.BadZipFile)
_NO_FUNCTION = (
    *(struct.error, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError),
)
_LIMIT = 2**31
# Reads functions; and how long that may take, seconds.
_READ = """
import sys
from jax import export
for path in sys.argv[1:]:
    export.deserialize(bytearray(open(path, "rb").read())).mlir_module()
"""
_LONGEST = 300


def is_artifact(path: str | Path) -> bool:
    """Whether a folder holds a file of an artifact, be it damaged."""
    folder = folders.published(files.place(path))
    return any((folder / name).exists() for name in (DESCRIPTION, *_FILES[2:]))


def load_artifact(path: str | Path) -> Predictor:
    """A predictor that runs an artifact.

    Raises:
      UserError: a file of it is missing, damaged or not of this artifact.
    """
    with files.local_copy(folders.published(files.place(path))) as copy:
        return _load(copy)


def _load(path: Path) -> Predictor:
    described = _described(path)
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in described.platforms:
        raise UserError(
            f"{path} was exported for {', '.join(described.platforms)}, this is {platform}: export it again"
        )
    exported = {name: _function(path / f"{name}.stablehlo", platform) for name in FUNCTIONS}
    weights = _weights(path / WEIGHTS)
    for name, function in exported.items():
        _check_fit(path, name, function, weights, described.class_set.num_classes)
    calls = {name: jax.jit(function.call) for name, function in exported.items()}
    on_device = jax.device_put(weights)
    return Predictor(
        described.class_set,
        described.input_size,
        described.scales,
        described.checkpoint_step,
        described.dtype[platform],
        lambda batch, multi_scale: calls["multi_scale" if multi_scale else "probabilities"](on_device, batch),
        lambda batch: calls["features"](on_device, batch),
    )


def _described(path: Path) -> stored.Artifact:
    """What an artifact says about itself, once its files are known to be as they were written.

    Raises:
      UserError: they are not.
    """
    for name in _FILES:
        if not (path / name).exists():
            raise UserError(f"{path} is no whole artifact of fada_jax.export: {name} is missing")
    summed = (path / checksums.SUMS).exists()
    others = (SAVED_MODEL,) if (path / SAVED_MODEL).is_dir() else ()
    if summed and (problem := checksums.damage(path, (*_FILES, *others))):
        raise UserError(f"{path} is damaged ({problem}): export it again")
    values = documents.read(path / DESCRIPTION)
    described = stored.artifact(values, path / DESCRIPTION)
    if summed and (problem := checksums.damage(path, (CARD,))):
        _say(f"{path}: {problem}; it decides nothing")
    if not summed:
        if values.get("format", 1) != 1:
            raise UserError(f"{path} is damaged ({checksums.SUMS} is missing): export it again")
        _check_apart(path)
        _say(f"{path} is of an earlier version, without checksums: damage to it may go unnoticed, export it again")
    return described


def _check_apart(path: Path) -> None:
    """Reads functions in a process of its own: wrong bytes may end it, and without checksums nothing else tells.

    Raises:
      UserError: one of them cannot be read.
    """
    for name in FUNCTIONS:
        file = path / f"{name}.stablehlo"
        if problem := files.special(file):
            raise UserError(f"{file} is {problem}")
    # Neither modules of the working directory nor an accelerator that is in use here.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    functions = [str(path.absolute() / f"{name}.stablehlo") for name in FUNCTIONS]
    command = [sys.executable, "-P", "-c", _READ, *functions]
    try:
        result = subprocess.run(command, capture_output=True, env=environment, timeout=_LONGEST, check=False)
        unread = result.returncode != 0
    except subprocess.TimeoutExpired:
        unread = True
    if unread:
        raise UserError(f"{path} is damaged: its functions cannot be read, export it again")


def _say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _function(path: Path, platform: str) -> export.Exported:
    """An exported function.

    Raises:
      UserError: it cannot be read, or is not for ``platform``.
    """
    data = files.read_bytes(path, _LIMIT)
    try:
        function = export.deserialize(bytearray(data))
        function.mlir_module()  # Otherwise it is read when it is called first.
    except _NO_FUNCTION as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no readable function of jax.export: {reason[:200]}: export it again") from error
    if platform not in function.platforms:
        raise UserError(f"{path} was exported for {', '.join(function.platforms)}, this is {platform}: export it again")
    return function


def _weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by name.

    Raises:
      UserError: it cannot be read.
    """
    if problem := files.special(path):
        raise UserError(f"{path} is {problem}")
    if problem := archives.problem(path):
        raise UserError(f"{path} cannot be read: {problem}")
    try:
        with np.load(path) as file:
            return dict(file)
    except _NO_ARRAYS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read: {reason}: export it again") from error


def _check_fit(path: Path, name: str, function: export.Exported, weights: Mapping[str, Any], classes: int) -> None:
    """Refuses a function that is not one of these weights and of uint8 images, or that gives something else.

    Raises:
      UserError: naming the file.
    """
    source = path / f"{name}.stablehlo"
    try:
        (wanted, images), _ = jax.tree.unflatten(function.in_tree, function.in_avals)
        shapes = {key: tuple(x.shape) for key, x in wanted.items()}
        types = {key: x.dtype for key, x in wanted.items()}
        (result,) = function.out_avals
        takes_images = (len(images.shape), images.shape[-1], images.dtype) == (4, 3, np.uint8)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{source} is no function of weights and images: export it again") from error
    try:
        check_tensors(weights, shapes)
    except UserError as error:
        raise UserError(f"{path / WEIGHTS} does not fit {source.name}: {error}") from error
    if other := [key for key in shapes if weights[key].dtype != types[key]]:
        raise UserError(f"{path / WEIGHTS} does not fit {source.name}: {other[0]} is of type {weights[other[0]].dtype}")
    at_size = name != "features"
    if not takes_images or len(result.shape) != 4 or (tuple(result.shape[:3]) == tuple(images.shape[:3])) != at_size:
        raise UserError(f"{source} is not the function {name!r} of an artifact: export it again")
    if at_size and result.shape[-1] != classes:
        raise UserError(f"{source} gives {result.shape[-1]} classes, {DESCRIPTION} names {classes}: export it again")
