"""Translated images: whole ones of any size, with either translator of a pair."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax import distributed
from fada_jax.evaluation.translators import Translator
from fada_jax.models import TranslationGenerator, TranslationSpec, signed, unsigned

# Translators halve images twice.
_MULTIPLE = 4


def translate(spec: TranslationSpec, params: Any, images: jax.Array) -> jax.Array:
    """Translations of images of any size of 8 pixels or more each way, reflected to a multiple of 4 for the while.

    Args:
      spec: of the translator.
      params: of one translator.
      images: uint8 [N, H, W, 3].

    Returns:
      uint8 [N, H, W, 3].
    """
    height, width = images.shape[1:3]
    missing = [(0, -side % _MULTIPLE) for side in (height, width)]
    padded = jnp.pad(signed(images), ((0, 0), *missing, (0, 0)), mode="reflect")
    made: Any = TranslationGenerator(spec).apply({"params": params}, padded)
    return jnp.rint(unsigned(made[:, :height, :width])).astype(jnp.uint8)


def translated(
    translator: Translator, name: str, images: Iterable[np.ndarray], mesh: jax.sharding.Mesh, per_device: int = 1
) -> Iterator[np.ndarray]:
    """Translations of images of one size, one after the other.

    Args:
      translator: both of a pair.
      name: of the translator, its key in ``translator.params``.
      images: uint8 [H, W, 3] each.
      mesh: whose devices share the images.
      per_device: images that a device works on at a time.

    Yields:
      uint8 [H, W, 3] for each.
    """
    params = jax.device_put(translator.params[name], distributed.replicated(mesh))
    run: Callable[..., Any] = jax.jit(
        functools.partial(translate, translator.spec), out_shardings=distributed.replicated(mesh)
    )
    count, iterator = per_device * mesh.size, iter(images)
    place = distributed.by_batch(mesh, 1) if distributed.batch_parts(mesh) > 1 else distributed.replicated(mesh)
    while batch := list(itertools.islice(iterator, count)):
        # The last batch is filled up: one more program would take longer.
        filled = np.stack(batch + [batch[-1]] * (count - len(batch)))
        yield from np.asarray(jax.device_get(run(params, jax.device_put(filled, place))))[: len(batch)]
