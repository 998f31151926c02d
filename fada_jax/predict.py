"""Segments images: label, colour and overlay PNGs at each image's own size.

  python -m fada_jax.predict --workdir=W --out=DIR street.png photos/*.jpg
  python -m fada_jax.predict --workdir=W --out=DIR --multi_scale --save_probabilities street.png

For x.png it writes x_label.png (8-bit class indices), x_color.png, x_overlay.png and, if asked, x_probabilities.npy
(float32 [H, W, K], summing to 1 over K).
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from fada_jax import checkpoints, cli, images, inference
from fada_jax.errors import UserError
from fada_jax.evaluate import stage_workdir
from fada_jax.models import Segmenter


@functools.lru_cache(maxsize=8)
def _compiled(spec: Any, preprocessing: Any, size: tuple[int, int], scales: tuple[float, ...], flip: bool) -> Any:
    apply_fn = Segmenter(spec).apply
    return jax.jit(
        functools.partial(
            inference.class_probabilities,
            apply_fn,
            preprocessing=preprocessing,
            size=size,
            scales=scales,
            flip=flip,
        )
    )


def predict(model: checkpoints.Model, image: np.ndarray, *, multi_scale: bool = False) -> np.ndarray:
    """Class probabilities of one image at its own size.

    Args:
      model: of ``checkpoints.load_model``.
      image: uint8 RGB [H, W, 3], any size.
      multi_scale: average over the config's scales, each also flipped.

    Returns:
      float32 [H, W, K], summing to 1 over K.
    """
    scales = tuple(model.config["multi_scale"]) if multi_scale else inference.SINGLE_SCALE
    run = _compiled(model.spec, model.preprocessing, image.shape[:2], scales, multi_scale)
    resized = images.resize_image(image, tuple(model.config["eval"]["size"]))
    return np.asarray(run(model.variables, resized[None])[0])


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if not arguments:
        raise UserError("no image given: name one or more image files")
    model = checkpoints.load_model(stage_workdir(options.workdir), options.checkpoint)
    class_set = model.class_set
    if not class_set:
        raise UserError(f"{options.workdir}: these weights have no classifier to predict with")
    out = Path(options.out)
    stems = [Path(path).stem for path in arguments]
    repeated = {stem for stem in stems if stems.count(stem) > 1}
    if repeated:
        raise UserError(f"several images are called {min(repeated)!r}: their outputs would overwrite each other")
    loaded = [images.read_image(path) for path in arguments]
    out.mkdir(parents=True, exist_ok=True)
    for i, (stem, image) in enumerate(zip(stems, loaded, strict=True), start=1):
        probabilities = predict(model, image, multi_scale=options.multi_scale)
        label = probabilities.argmax(-1).astype(np.uint8)
        color = images.colorize(label, class_set)
        Image.fromarray(label).save(out / f"{stem}_label.png")
        Image.fromarray(color).save(out / f"{stem}_color.png")
        overlay = np.rint(0.5 * image + 0.5 * color).astype(np.uint8)
        Image.fromarray(overlay).save(out / f"{stem}_overlay.png")
        if options.save_probabilities:
            np.save(out / f"{stem}_probabilities.npy", probabilities)
        print(f"\r{i}/{len(stems)} images", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{len(stems)} image(s), {class_set.num_classes} classes ({class_set.name}), written to {out}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a stage or of a recipe.")
    flags.DEFINE_string("out", None, "Folder for the predictions.")
    flags.DEFINE_string("checkpoint", "last", "last or a step.")
    flags.DEFINE_bool("multi_scale", False, "Average over the config's scales, each also flipped.")
    flags.DEFINE_bool("save_probabilities", False, "Also write float32 class probabilities as .npy.")
    flags.mark_flags_as_required(["workdir", "out"])
    cli.run(main)
