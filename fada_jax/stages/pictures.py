"""Pictures of what a stage has learnt, for its logs at every checkpoint: predictions, or translated images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax import distributed, images
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.evaluation import inference
from fada_jax.evaluation.translation import translate
from fada_jax.input_pipeline import streams
from fada_jax.methods import CycleGan
from fada_jax.methods.cyclegan import TO_TARGET
from fada_jax.models import Segmenter, height_width

# From the variables of ``states["generator"]`` to uint8 [H, W, 3]; every process must call it.
Picture = Callable[[Any], np.ndarray]


def tag(config: Config) -> str:
    """What TensorBoard calls the pictures of a stage."""
    return "translations/source_images" if config.kind.translates else "predictions/target_images"


def at_checkpoints(config: Config, mesh: jax.sharding.Mesh, log: Callable[[str], None]) -> Picture | None:
    """The first images of the target above their predictions, or of the source above their translations.

    Args:
      config: of the stage.
      mesh: of the training states.
      log: told why there is none.

    Returns:
      None where no images are wanted or the data set is not there.
    """
    if not config.log_images:
        return None
    domain = "source" if config.kind.translates else "target"
    stream, class_set = getattr(config, domain).stream(labels=False, augment=False, role="pictures"), config.classes
    try:
        streams.check(config.data_dir, stream, class_set)
    except UserError as error:
        log(f"TensorBoard gets no {domain} images: {error}")
        return None
    batches = streams.eval_batches(config.data_dir, stream, class_set=class_set, batch_size=1)
    shown = np.concatenate([batch["image"] for batch in itertools.islice(batches, config.log_images)])
    below = _translations(config, mesh) if config.kind.translates else _predictions(config, mesh)

    def picture(variables: Any) -> np.ndarray:
        placed = (jax.device_put(image[None], distributed.replicated(mesh)) for image in shown)
        return np.hstack([np.vstack([i, below(variables, x)]) for i, x in zip(shown, placed, strict=True)])

    return picture


def _predictions(config: Config, mesh: jax.sharding.Mesh) -> Callable[[Any, jax.Array], np.ndarray]:
    """Coloured predictions of one image [1, H, W, 3]."""

    @functools.partial(jax.jit, out_shardings=distributed.replicated(mesh))
    def predict(variables: Any, image: jax.Array) -> jax.Array:
        probabilities = inference.class_probabilities(
            Segmenter(config.model).apply,
            variables,
            image,
            preprocessing=config.preprocessing,
            size=height_width(image),
        )
        return jnp.argmax(probabilities, axis=-1).astype(jnp.uint8)

    return lambda variables, image: images.colorize(jax.device_get(predict(variables, image))[0], config.classes)


def _translations(config: Config, mesh: jax.sharding.Mesh) -> Callable[[Any, jax.Array], np.ndarray]:
    """The translation into the target of one image [1, H, W, 3]."""
    method = config.training_method
    assert isinstance(method, CycleGan)
    spec = method.translator(config.training_spec)

    @functools.partial(jax.jit, out_shardings=distributed.replicated(mesh))
    def run(variables: Any, image: jax.Array) -> jax.Array:
        return translate(spec, variables["params"][TO_TARGET], image)

    return lambda variables, image: jax.device_get(run(variables, image))[0]
