"""Artifacts that run without this package: StableHLO functions, weights, classes and a model card in one folder."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from fada_jax import __version__
from fada_jax.classes import ClassSet
from fada_jax.errors import UserError
from fada_jax.evaluation import inference
from fada_jax.evaluation.predictor import Predictor
from fada_jax.interop.model_card import model_card
from fada_jax.interop.pillow_resize import resize_like_pillow
from fada_jax.models import ComputeType, Segmenter, convolution
from fada_jax.models.layers import interpolate
from fada_jax.preprocessing import normalise
from fada_jax.training import checkpoints

# As ``jax.export`` calls them.
PLATFORMS = ("cpu", "cuda", "tpu")
FUNCTIONS = ("probabilities", "multi_scale", "features")
FORMAT = 1

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
    with jax.enable_x64(True):
        exported = export.export(jax.jit(fn), platforms=PLATFORMS)(
            shapes, jax.ShapeDtypeStruct((n, h, w, 3), jnp.uint8)
        )
    return bytes(exported.serialize())


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
      UserError: the weights have no classifier, the folder exists, or TensorFlow is not installed.
    """
    output = Path(output).absolute()
    if not model.class_set:
        raise UserError("these weights have no classifier to export")
    if output.exists():
        raise UserError(f"--output={output} exists already: choose another folder or remove it")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    flat = traverse_util.flatten_dict(dict(model.variables), sep="/")
    weights: dict[str, Any] = {key: np.asarray(value) for key, value in flat.items()}
    for name, fn in functions(model, dtype).items():
        (partial / f"{name}.stablehlo").write_bytes(_serialise(fn, weights))
    np.savez(partial / "weights.npz", **weights)
    description = {
        "format": FORMAT,
        "fada_jax": __version__,
        "class_set": dataclasses.asdict(model.class_set),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "input_size": list(model.config["eval"]["size"]),
        "scales": list(model.config["multi_scale"]),
        "model": dataclasses.asdict(model.spec),
        "checkpoint_step": model.step,
        "platforms": list(PLATFORMS),
        "dtype": {platform: _dtype_on(platform, model, dtype) for platform in PLATFORMS},
    }
    (partial / "model.json").write_text(json.dumps(description, indent=2) + "\n")
    (partial / "README.md").write_text(model_card(model))
    if tensorflow:
        _write_saved_model(model, weights, partial / "tensorflow", dtype)
    os.replace(partial, output)
    return output


def _dtype_on(platform: str, model: checkpoints.Model, dtype: ComputeType) -> ComputeType:
    return convolution.inference_dtype(model.spec.dtype, dtype, platform)


def _write_saved_model(
    model: checkpoints.Model, weights: dict[str, np.ndarray], path: Path, dtype: ComputeType
) -> None:
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError as error:
        raise UserError(f"--tensorflow: a SavedModel needs TensorFlow and jax2tf ({error})") from error
    fn = functions(model, dtype)["probabilities"]
    module = tf.Module()
    module.weights = {key: tf.Variable(value, trainable=False) for key, value in weights.items()}
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


def is_artifact(path: str | Path) -> bool:
    """Whether a folder was written by ``export_model``."""
    return (Path(path) / "model.json").is_file()


def load_artifact(path: str | Path) -> Predictor:
    """A predictor that runs an artifact.

    Raises:
      UserError: a file of it is missing or damaged.
    """
    path = Path(path)
    try:
        description = json.loads((path / "model.json").read_text())
        class_set = ClassSet.from_dict(description["class_set"])
        with np.load(path / "weights.npz") as file:
            weights = jax.device_put(dict(file))
        calls = {
            name: jax.jit(export.deserialize(bytearray((path / f"{name}.stablehlo").read_bytes())).call)
            for name in FUNCTIONS
        }
        # Artifacts of earlier versions compute in one type everywhere.
        dtype = description["model"]["dtype"]
        if "dtype" in description:
            dtype = description["dtype"]["cuda" if jax.default_backend() == "gpu" else jax.default_backend()]
    except Exception as error:  # Damaged files raise a dozen unrelated types.
        raise UserError(f"{path} is no readable artifact of fada_jax.export: {str(error).splitlines()[0]}") from error
    return Predictor(
        class_set,
        tuple(description["input_size"]),
        tuple(description["scales"]),
        description["checkpoint_step"],
        dtype,
        lambda batch, multi_scale: calls["multi_scale" if multi_scale else "probabilities"](weights, batch),
        lambda batch: calls["features"](weights, batch),
    )
