"""Class Center Distance (equation 9): how dense the features of a class are beside its distance to other classes.

Features are sampled, the same pixels for every model: a fixed number of pixels for each class and image. Count, centre
and scatter of each class are merged image by image in float64 (Chan et al. 1979), so that memory does not grow with the
number of pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.classes import IGNORE
from fada_jax.models import Segmenter
from fada_jax.preprocessing import normalise
from fada_jax.training.checkpoints import Model


@dataclasses.dataclass(frozen=True)
class ClassMoments:
    """Features of each class so far.

    Attributes:
      count: int64 [K].
      center: mean feature, float64 [K, C]; 0 where there is none.
      scatter: sum of squared distances to the center, float64 [K].
    """

    count: np.ndarray
    center: np.ndarray
    scatter: np.ndarray


def empty_moments(num_classes: int, channels: int) -> ClassMoments:
    """No features yet."""
    return ClassMoments(np.zeros(num_classes, np.int64), np.zeros((num_classes, channels)), np.zeros(num_classes))


def class_moments(features: np.ndarray, labels: np.ndarray, num_classes: int) -> ClassMoments:
    """Moments of one block of features.

    Args:
      features: float [M, C].
      labels: integer [M]; values of no class do not count.
      num_classes: K.
    """
    result = empty_moments(num_classes, features.shape[1])
    for k in np.unique(labels[(labels >= 0) & (labels < num_classes)]):
        x = features[labels == k].astype(np.float64)
        result.count[k], result.center[k] = len(x), x.mean(0)
        result.scatter[k] = np.square(x - result.center[k]).sum()
    return result


def merge(a: ClassMoments, b: ClassMoments) -> ClassMoments:
    """Moments of both sets of features."""
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    delta = b.center - a.center
    scatter = a.scatter + b.scatter + np.square(delta).sum(1) * a.count * share
    return ClassMoments(count, a.center + delta * share[:, None], scatter)


def class_center_distance(moments: ClassMoments) -> np.ndarray:
    """CCD of each class (equation 9), float64 [K]; NaN for a class without features, which counts for no other either.

    Low values mean dense, well separated classes.
    """
    present = np.flatnonzero(moments.count)
    result = np.full(len(moments.count), np.nan)
    within = moments.scatter[present] / moments.count[present]
    between = np.square(moments.center[present, None] - moments.center[None, present]).sum(-1)
    np.fill_diagonal(between, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        result[present] = np.where(len(present) > 1, (within[:, None] / between).sum(1) / (len(present) - 1), np.nan)
    return result


def sample_pixels(labels: np.ndarray, num_classes: int, per_class: int, seed: Any) -> tuple[np.ndarray, np.ndarray]:
    """At most ``per_class`` pixels of each class, drawn without replacement.

    Args:
      labels: integer [h, w].
      num_classes: K.
      per_class: pixels wanted of each class.
      seed: of ``np.random.default_rng``.

    Returns:
      flat pixel index int32 [K * per_class], and its class, or ``IGNORE`` where the image has no more pixels of it.
    """
    flat = labels.ravel()
    order = np.random.default_rng(seed).permutation(flat.size)
    index, classes = np.zeros((num_classes, per_class), np.int32), np.full((num_classes, per_class), IGNORE, np.int32)
    shuffled = flat[order]
    for k in range(num_classes):
        chosen = order[np.flatnonzero(shuffled == k)[:per_class]]
        index[k, : len(chosen)], classes[k, : len(chosen)] = chosen, k
    return index.ravel(), classes.ravel()


def at_features(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels at the centres of the feature pixels, as ``align_corners`` places them: integer [h, w] of [H, W]."""
    rows, columns = (
        np.rint(np.linspace(0, high - 1, low)).astype(np.int64) for low, high in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def measure(
    model: Model,
    examples: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    per_class: int = 20,
    seed: int = 0,
    first: int = 0,
) -> ClassMoments:
    """Moments of the features of a model over labelled images; all devices of the process share them.

    Args:
      model: of ``checkpoints.load_model``.
      examples: images at the network's input size, uint8 [H, W, 3], and labels in the model's class set, uint8 [h, w].
      per_class: pixels of each class and image.
      seed: with the position of an image it determines its pixels.
      first: position of the first image, where other processes have those before it.

    Returns:
      the moments; of no class and no channel where there is no image.
    """
    apply: Callable[..., Any] = Segmenter(model.spec).apply
    num_classes, devices = model.classes.num_classes, jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    split = jax.NamedSharding(mesh, jax.P("data"))
    variables = jax.device_put(model.variables, jax.NamedSharding(mesh, jax.P()))

    @jax.jit
    def extract(variables: Any, images: jax.Array, index: jax.Array) -> jax.Array:
        _, features = apply(variables, normalise(images, model.preprocessing))
        chosen = jax.vmap(lambda x, i: x.reshape(-1, x.shape[-1])[i])(features, index)
        return chosen.astype(jnp.float32)

    moments, iterator, position = empty_moments(0, 0), iter(examples), first
    while block := list(itertools.islice(iterator, len(devices))):
        images = np.stack([image for image, _ in block])
        shape = jax.eval_shape(apply, variables, jax.ShapeDtypeStruct(images.shape, jnp.float32))[1].shape
        chosen = [
            sample_pixels(at_features(label, shape[1:3]), num_classes, per_class, [seed, i])
            for i, (_, label) in enumerate(block, start=position)
        ]
        fill = [(0, len(devices) - len(block))]
        index = np.pad(np.stack([index for index, _ in chosen]), [*fill, (0, 0)])
        images = np.pad(images, [*fill, (0, 0), (0, 0), (0, 0)])
        features = np.asarray(extract(variables, *jax.device_put((images, index), split)))
        moments = moments if len(moments.count) else empty_moments(num_classes, shape[-1])
        for x, (_, classes) in zip(features, chosen, strict=False):
            moments = merge(moments, class_moments(x, classes, num_classes))
        position += len(block)
    return moments


def merged(parts: Iterable[ClassMoments]) -> ClassMoments:
    """Moments of the features of all processes, in their order.

    Raises:
      ValueError: none of them had an image.
    """
    moments = [part for part in parts if len(part.count)]
    if not moments:
        raise ValueError("no image to take features from")
    return functools.reduce(merge, moments)


def as_text(moments: ClassMoments) -> str:
    """For another process, to the last bit."""
    return json.dumps([moments.count.tolist(), moments.center.tolist(), moments.scatter.tolist()])


def from_text(text: str) -> ClassMoments:
    """What ``as_text`` was given."""
    count, center, scatter = json.loads(text)
    return ClassMoments(np.array(count, np.int64), np.array(center, np.float64), np.array(scatter, np.float64))
