"""Writes an adapted model as an artifact that runs without this package: StableHLO, weights, classes and a model card.

  python -m fada_jax.export --workdir=W --output=DIR
  python -m fada_jax.export --workdir=W/adversarial --checkpoint=900 --output=DIR --tensorflow

DIR receives probabilities.stablehlo, multi_scale.stablehlo and features.stablehlo (functions of the weights and of
uint8 RGB images [N, H, W, 3], any N, H and W, with preprocessing and resizing inside), weights.npz, model.json
(classes, colours, preprocessing) and README.md, the model card with the four lines that run it. --tensorflow adds a
SavedModel made with jax2tf. For PyTorch see fada_jax.convert_weights.
"""

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
import PIL
from absl import flags
from flax import traverse_util
from jax import export

from fada_jax import __version__, checkpoints, cli, files, inference
from fada_jax.classes import ClassSet
from fada_jax.errors import UserError
from fada_jax.evaluate import stage_workdir
from fada_jax.models import Segmenter, convolution
from fada_jax.models.layers import interpolate
from fada_jax.predictor import Predictor
from fada_jax.preprocessing import normalise

PLATFORMS = ("cpu", "cuda", "tpu")
FUNCTIONS = ("probabilities", "multi_scale", "features")
FORMAT = 1
# Pillow keeps the weights of a resize as integers of this many fractional bits.
_PILLOW_BITS = 22


def pillow_weights(size_in: Any, size_out: int) -> jax.Array:
    """Pillow's bicubic weights with antialiasing, in units of 2**-22 as Pillow rounds them, float64 [out, in].

    Args:
      size_in: pixels of the image; may be symbolic.
      size_out: pixels wanted.
    """
    scale = jnp.asarray(size_in, jnp.float64) / size_out
    stretch = jnp.maximum(scale, 1.0)
    center = (jnp.arange(size_out) + 0.5) * scale
    first = jnp.maximum(jnp.trunc(center - 2.0 * stretch + 0.5), 0.0)
    last = jnp.minimum(jnp.trunc(center + 2.0 * stretch + 0.5), jnp.asarray(size_in, jnp.float64))
    x = jnp.arange(size_in, dtype=jnp.float64)
    t = jnp.abs((x - center[:, None] + 0.5) * (1.0 / stretch))
    # Keys' cubic with a = -0.5.
    weights = jnp.where(t < 1, (1.5 * t - 2.5) * t * t + 1, jnp.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0))
    weights = jnp.where((x >= first[:, None]) & (x < last[:, None]), weights, 0.0)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return jnp.trunc(weights * 2**_PILLOW_BITS + jnp.where(weights < 0, -0.5, 0.5))


def _begins_with_rows(height: jax.Array, width: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Whether Pillow resizes along the height first; rounding in between makes the order show."""
    if int(PIL.__version__.partition(".")[0]) < 13:
        return (height > 100 * width) & (height > size[1])
    return height - size[1] > 2 * jnp.maximum(width - size[0], 0)


def resize_like_pillow(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bicubic resize with antialiasing, equal to the installed Pillow's in every bit: two passes, rounded to uint8.

    Needs float64 (``jax.enable_x64``), in which the products of pixels and integer weights are exact.

    Args:
      images: uint8 [N, H, W, 3]; N, H and W may be symbolic.
      size: (width, height).
    """
    height, width = images.shape[1:3]

    def resize(x: jax.Array, axis: int) -> jax.Array:
        equation = {1: "oh,nhwc->nowc", 2: "ow,nhwc->nhoc"}[axis]
        weights = pillow_weights(x.shape[axis], size[2 - axis])
        x = jnp.einsum(equation, weights, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.clip(jnp.floor((x + 2 ** (_PILLOW_BITS - 1)) * 2.0**-_PILLOW_BITS), 0, 255)

    rows_first = _begins_with_rows(jnp.asarray(height), jnp.asarray(width), size)
    x = images.astype(jnp.float64)
    x = jax.lax.cond(rows_first, lambda x: resize(resize(x, 1), 2), lambda x: resize(resize(x, 2), 1), x)
    return x.astype(jnp.uint8)


def upsample_to_any(x: jax.Array, size: tuple[Any, Any]) -> jax.Array:
    """``models.resize_align_corners`` to a symbolic size: its weights are computed when the function runs."""

    def weights(size_in: int, size_out: Any) -> jax.Array:
        steps = jnp.maximum(jnp.asarray(size_out, jnp.float64) - 1, 1)
        position = jnp.arange(size_out) * ((size_in - 1) / steps)
        low = jnp.minimum(jnp.floor(position), size_in - 1)
        fraction, index = position - low, jnp.arange(size_in, dtype=jnp.float64)
        high = jnp.minimum(low + 1, size_in - 1)
        at = lambda where, value: jnp.where(index == where[:, None], value[:, None], 0.0)  # noqa: E731
        return (at(low, 1 - fraction) + at(high, fraction)).astype(jnp.float32)

    return interpolate(x, weights(x.shape[1], size[0]), weights(x.shape[2], size[1]))


Function = Callable[[dict[str, jax.Array], jax.Array], jax.Array]


def functions(model: checkpoints.Model, dtype: str = "auto") -> dict[str, Function]:
    """The exported functions by name, each of the flat weights and of uint8 RGB images [N, H, W, 3] of any size.

    Every platform that they run on has its own formulation of the layers and its own compute type, see
    ``models.convolution``; which of them runs is decided there.
    """

    def on(platform: str, name: str) -> Function:
        def fn(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
            with convolution.written_for(platform):
                return _functions(checkpoints.in_dtype(model, dtype))[name](weights, images)

        return fn

    def everywhere(name: str) -> Function:
        return lambda weights, images: jax.lax.platform_dependent(
            weights, images, cpu=on("cpu", name), cuda=on("gpu", name), tpu=on("tpu", name)
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


def _classes(model: checkpoints.Model) -> ClassSet:
    if not model.class_set:
        raise UserError("these weights have no classifier to export")
    return model.class_set


def _flat_weights(model: checkpoints.Model) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(dict(model.variables), sep="/")
    return {key: np.asarray(value) for key, value in flat.items()}


def _serialise(fn: Callable[..., jax.Array], weights: dict[str, np.ndarray]) -> bytes:
    n, h, w = export.symbolic_shape("n, h, w")
    shapes = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in weights.items()}
    with jax.enable_x64(True):
        exported = export.export(jax.jit(fn), platforms=PLATFORMS)(
            shapes, jax.ShapeDtypeStruct((n, h, w, 3), jnp.uint8)
        )
    return bytes(exported.serialize())


def model_card(model: checkpoints.Model) -> str:
    """A README for the artifact: what it is, how to run it, what it was trained on, and its limits."""
    config, class_set = model.config, _classes(model)
    spec, size = model.spec, "x".join(map(str, config["eval"]["size"]))
    source, target = (f"{config[k]['dataset']}/{config[k]['split']}" for k in ("source", "target"))
    start = config["init_from"] or "random initialisation"
    rows = "\n".join(f"| {i} | {name} |" for i, name in enumerate(class_set.names))
    return f"""# {config["task"]}: {spec.backbone}, {class_set.num_classes} classes ({class_set.name})

Semantic segmentation by FADA (Classes Matter: A Fine-grained Adversarial Approach to Cross-domain Semantic
Segmentation, ECCV 2020), trained with fada-jax {__version__}.

## Run it

Needs `pip install jax flatbuffers` (JAX reads exported functions with flatbuffers) and nothing else.

```python
import jax, numpy as np
weights = dict(np.load("weights.npz"))
probabilities = jax.export.deserialize(bytearray(open("probabilities.stablehlo", "rb").read())).call
p = probabilities(weights, images)  # uint8 RGB [N, H, W, 3] -> float32 [N, H, W, {class_set.num_classes}]
```

Images may have any size: resizing to {size}, normalisation, and upsampling of the result to the image's size are
inside. Every new combination of N, H and W compiles once. `multi_scale.stablehlo` averages over the scales
{config["multi_scale"]}, each also flipped; `features.stablehlo` gives the features. With fada-jax installed,
`fada_jax.load("this folder")` does all that.

## Classes

| label | class |
| ---: | --- |
{rows}

## Training

| | |
| --- | --- |
| stage, method | {config["stage"]}, {config["method"]} |
| source (labelled) | {source} |
| target (no labels) | {target if config["stage"] != "source" else "none"} |
| step, seed | {model.step}, {config["seed"]} |
| starts from | {start} |
| network | {spec.backbone}, norm {spec.norm}, output stride {spec.output_stride}, {spec.dtype} |

## Limits

It knows these classes only and gives one of them to every pixel. It was adapted to images like the target's without
their labels: measure it on labelled images of your own before you rely on it; probabilities are not calibrated. The
licences of the data it was trained on may restrict what it may be used for.
"""


def export_model(
    model: checkpoints.Model, output: str | Path, *, tensorflow: bool = False, dtype: str = "auto"
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
    class_set = _classes(model)
    if output.exists():
        raise UserError(f"--output={output} exists already: choose another folder or remove it")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = _flat_weights(model)
    for name, fn in functions(model, dtype).items():
        (partial / f"{name}.stablehlo").write_bytes(_serialise(fn, weights))
    np.savez(partial / "weights.npz", allow_pickle=False, **weights)
    description = {
        "format": FORMAT,
        "fada_jax": __version__,
        "class_set": dataclasses.asdict(class_set),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "input_size": list(model.config["eval"]["size"]),
        "scales": list(model.config["multi_scale"]),
        "model": dataclasses.asdict(model.spec),
        "checkpoint_step": model.step,
        "platforms": list(PLATFORMS),
        "dtype": {name: _dtype_on(name, model, dtype) for name in PLATFORMS},
    }
    (partial / "model.json").write_text(json.dumps(description, indent=2) + "\n")
    (partial / "README.md").write_text(model_card(model))
    if tensorflow:
        _write_saved_model(model, weights, partial / "tensorflow", dtype)
    os.replace(partial, output)
    return output


def _dtype_on(platform: str, model: checkpoints.Model, dtype: str) -> str:
    with convolution.written_for("gpu" if platform == "cuda" else platform):
        return convolution.inference_dtype(model.spec.dtype, dtype)


def _write_saved_model(model: checkpoints.Model, weights: dict[str, np.ndarray], path: Path, dtype: str) -> None:
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
        platform = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        # Artifacts of earlier versions compute in one type everywhere.
        dtype = description["dtype"][platform] if "dtype" in description else description["model"]["dtype"]
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


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    model = checkpoints.load_model(stage_workdir(options.workdir), options.checkpoint)
    output = export_model(model, files.local(options.output), tensorflow=options.tensorflow, dtype=options.dtype)
    for path in sorted(output.iterdir()):
        print(f"  {path.name}")
    print(f"step {model.step} of {options.workdir}, {_classes(model).num_classes} classes, written to {output}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a stage or of a recipe.")
    flags.DEFINE_string("output", None, "Folder to make.")
    flags.DEFINE_string("checkpoint", "last", "last or a step.")
    cli.define_dtype()
    flags.DEFINE_bool("tensorflow", False, "Also write a TensorFlow SavedModel.")
    flags.mark_flags_as_required(["workdir", "output"])
    cli.run(main)
