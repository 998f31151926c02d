"""Artifacts that run without this package: StableHLO functions, weights, classes and a model card in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from fada_jax import __version__, files, folders, stored
from fada_jax.errors import UserError
from fada_jax.evaluation import inference
from fada_jax.interop import outputs
from fada_jax.interop.model_card import model_card
from fada_jax.interop.pillow_resize import resize_like_pillow
from fada_jax.models import ComputeType, Segmenter, convolution
from fada_jax.models.layers import interpolate
from fada_jax.preprocessing import normalise
from fada_jax.training import checkpoints, checksums

# As ``jax.export`` calls them.
PLATFORMS = ("cpu", "cuda", "tpu")
FUNCTIONS = ("probabilities", "multi_scale", "features")
DESCRIPTION, WEIGHTS, CARD, SAVED_MODEL = "model.json", "weights.npz", "README.md", "tensorflow"
FORMAT: Literal[2] = 2

Function = Callable[[dict[str, jax.Array], jax.Array], jax.Array]


def upsample_to_any(x: jax.Array, size: tuple[Any, Any]) -> jax.Array:
    """``models.resize_align_corners`` to a symbolic size: its weights are computed when the function runs."""

    def weights(size_in: int, size_out: Any) -> jax.Array:
        steps = jnp.maximum(jnp.asarray(size_out, jnp.float64) - 1, 1)
        position = jnp.arange(size_out) * ((size_in - 1) / steps)
        low = jnp.minimum(jnp.floor(position), size_in - 1)
        fraction, index = position - low, jnp.arange(size_in, dtype=jnp.float64)
        high = jnp.minimum(low + 1, size_in - 1)
        at = lambda place, value: jnp.where(index == place[:, None], value[:, None], 0.0)  # noqa: E731
        return (at(low, 1 - fraction) + at(high, fraction)).astype(jnp.float32)

    return interpolate(x, weights(x.shape[1], size[0]), weights(x.shape[2], size[1]))


def functions(model: checkpoints.Model, dtype: ComputeType = "auto") -> dict[str, Function]:
    """The exported functions by name, each of the flat weights and of uint8 RGB images [N, H, W, 3] of any size.

    On every platform layers have its formulation (``models.convolution.by_platform``) and its compute type.
    """
    on = {platform: _functions(checkpoints.in_dtype(model, dtype, platform)) for platform in PLATFORMS}
    if len({_dtype_on(platform, model, dtype) for platform in PLATFORMS}) == 1:
        return on["cpu"]

    def everywhere(name: str) -> Function:
        return lambda weights, images: convolution.by_platform(
            weights, images, default=on["tpu"][name], cpu=on["cpu"][name], cuda=on["cuda"][name]
        )

    return {name: everywhere(name) for name in FUNCTIONS}


def _functions(model: checkpoints.Model) -> dict[str, Function]:
    apply_fn: Callable[..., Any] = Segmenter(model.spec).apply
    input_size = tuple(model.config["eval"]["size"])

    def probabilities(weights: Any, images: jax.Array, scales: tuple[float, ...], flip: bool) -> jax.Array:
        views = inference.view_logits(
            apply_fn,
            traverse_util.unflatten_dict(weights, sep="/"),
            resize_like_pillow(images, input_size),
            preprocessing=model.preprocessing,
            scales=scales,
            flip=flip,
        )
        return inference.mean_probabilities(views, (images.shape[1], images.shape[2]), upsample_to_any)

    def features(weights: Any, images: jax.Array) -> jax.Array:
        resized = normalise(resize_like_pillow(images, input_size), model.preprocessing)
        return apply_fn(traverse_util.unflatten_dict(weights, sep="/"), resized, train=False)[1].astype(jnp.float32)

    return {
        "probabilities": functools.partial(probabilities, scales=inference.SINGLE_SCALE, flip=False),
        "multi_scale": functools.partial(probabilities, scales=tuple(model.config["multi_scale"]), flip=True),
        "features": features,
    }


def _serialise(fn: Callable[..., jax.Array], weights: dict[str, np.ndarray]) -> bytes:
    n, h, w = export.symbolic_shape("n, h, w")
    shapes = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in weights.items()}
    # Names and lines of source files are those of this machine.
    with jax.enable_x64(True), _option("jax_traceback_in_locations_limit", 0):
        exported = export.export(jax.jit(fn), platforms=PLATFORMS)(
            shapes, jax.ShapeDtypeStruct((n, h, w, 3), jnp.uint8)
        )
    return bytes(exported.serialize())


@contextlib.contextmanager
def _option(name: str, value: Any) -> Iterator[None]:
    """Sets an option of JAX that has no context of its own."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def export_model(
    model: checkpoints.Model, output: str | Path, *, tensorflow: bool = False, dtype: ComputeType = "auto"
) -> Path:
    """Writes the artifact, whole or not at all.

    Args:
      model: of ``checkpoints.load_model``.
      output: folder to make.
      dtype: compute type, see ``models.convolution.inference_dtype``.
      tensorflow: add a SavedModel under ``tensorflow/``.

    Raises:
      UserError: the weights have no classifier, the folder is there or cannot be written, or TensorFlow is not
        installed.
    """
    output = files.place(output, "--output").absolute()
    if not model.class_set:
        raise UserError("these weights have no classifier to export")
    if tensorflow:
        _tensorflow()
    with outputs.disk(output), folders.making(output) as partial:
        _write(model, partial, dtype)
        if tensorflow:
            _write_saved_model(model, partial / SAVED_MODEL, dtype)
        checksums.write(partial)
    return output


def _write(model: checkpoints.Model, folder: Path, dtype: ComputeType) -> None:
    """Writes all of an artifact but its checksums and the SavedModel."""
    weights = _weights(model)
    for name, fn in functions(model, dtype).items():
        (folder / f"{name}.stablehlo").write_bytes(_serialise(fn, weights))
    np.savez(folder / WEIGHTS, **weights)
    described = stored.Artifact(
        FORMAT,
        __version__,
        model.classes,
        model.preprocessing,
        tuple(model.config["eval"]["size"]),
        tuple(model.config["multi_scale"]),
        model.spec,
        model.step,
        PLATFORMS,
        {platform: _dtype_on(platform, model, dtype) for platform in PLATFORMS},
    )
    text = json.dumps(dataclasses.asdict(described), indent=2) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    (folder / CARD).write_text(model_card(model), encoding="utf-8")


def _weights(model: checkpoints.Model) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(dict(model.variables), sep="/")
    return {key: np.asarray(value) for key, value in flat.items()}


def _dtype_on(platform: str, model: checkpoints.Model, dtype: ComputeType) -> ComputeType:
    return convolution.inference_dtype(model.spec.dtype, dtype, platform)


def _tensorflow() -> tuple[Any, Any]:
    """TensorFlow and jax2tf.

    Raises:
      UserError: not installed.
    """
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError as error:
        raise UserError(f"--tensorflow: a SavedModel needs TensorFlow and jax2tf ({error})") from error
    return tf, jax2tf


def _write_saved_model(model: checkpoints.Model, path: Path, dtype: ComputeType) -> None:
    tf, jax2tf = _tensorflow()
    fn = functions(model, dtype)["probabilities"]
    module = tf.Module()
    module.weights = {key: tf.Variable(value, trainable=False) for key, value in _weights(model).items()}
    with jax.enable_x64(True):
        converted = jax2tf.convert(
            lambda weights, images: fn(weights, images), polymorphic_shapes=[None, "(n, h, w, 3)"], with_gradient=False
        )
        module.probabilities = tf.function(
            lambda images: converted(module.weights, images),
            autograph=False,
            input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "images")],
        )
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.probabilities})
