"""Class Center Distance (equation 9): how dense the features of a class are beside its distance to other classes.

Features are sampled, the same pixels for every model: a fixed number of pixels for each class and image. Count, centre
and scatter of each class are merged image by image in float64 (Chan et al. 1979), so that memory does not grow with the
number of pixels.
"""

from __future__ import annotations

import dataclasses
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
    model: Model, examples: Iterable[tuple[np.ndarray, np.ndarray]], *, per_class: int = 20, seed: int = 0
) -> ClassMoments:
    """Moments of the features of a model over labelled images.

    Args:
      model: of ``checkpoints.load_model``.
      examples: images at the network's input size, uint8 [H, W, 3], and labels in the model's class set, uint8 [h, w].
      per_class: pixels of each class and image.
      seed: with the position of an image it determines its pixels.
    """
    apply: Callable[..., Any] = Segmenter(model.spec).apply
    num_classes = model.classes.num_classes
    variables = jax.device_put(model.variables)

    @jax.jit
    def extract(variables: Any, image: jax.Array, index: jax.Array) -> jax.Array:
        _, features = apply(variables, normalise(image[None], model.preprocessing))
        return features.reshape(-1, features.shape[-1])[index].astype(jnp.float32)

    moments = None
    for i, (image, label) in enumerate(examples):
        shape = jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, *image.shape), jnp.float32))[1].shape
        index, classes = sample_pixels(at_features(label, shape[1:3]), num_classes, per_class, [seed, i])
        block = class_moments(np.asarray(extract(variables, image, index)), classes, num_classes)
        moments = merge(moments or empty_moments(num_classes, shape[-1]), block)
    if moments is None:
        raise ValueError("no image to take features from")
    return moments
