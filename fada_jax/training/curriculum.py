"""The pieces of CDA's easy tasks: superpixels, what a network says of them, and two linear models fitted on the source.

The original takes features of networks that are trained elsewhere, linear spectral clustering, and a linear SVM (Zhang,
David, Gong, ICCV 2017). Here the features are the source model's own before its classifier, their mean over the image
or over a superpixel, and superpixels are SLIC's: scikit-image has no linear spectral clustering. Not said anywhere: how
strong either model is regularised, which a fifth of the images decides here. Unverified: that the surest superpixels
are those of the largest decision value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.classes import IGNORE
from fada_jax.errors import UserError, missing_extra

# Numbers of superpixels: below 255, which stands for none.
NUMBERS = IGNORE
# SLIC's: of distances in the image beside those of colours, and of the blur before.
_COMPACTNESS, _BLUR = 10.0, 1.0
# Inverse strengths of regularisation, of which the best on a fifth of the images is taken.
_STRENGTHS, _FOLDS = (1e-3, 1e-2, 1e-1, 1.0), 5
# Superpixels that this is tried with: an SVM of all takes minutes.
_TRIED = 5_000


def superpixels(image: np.ndarray, count: int) -> np.ndarray:
    """SLIC's superpixels of an image, uint8 [H, W]: numbers from 0, and 255 for what has none of 255 numbers.

    Args:
      image: uint8 [H, W, 3].
      count: about so many.

    Raises:
      UserError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise UserError(missing_extra(error) or str(error)) from error
    found = slic(image, n_segments=count, compactness=_COMPACTNESS, sigma=_BLUR, start_label=0, channel_axis=-1)
    return np.where(found < NUMBERS, found, IGNORE).astype(np.uint8)


def descriptors(features: jax.Array, numbers: jax.Array) -> jax.Array:
    """Mean features of superpixels, each pixel with those of its nearest place on the feature grid.

    Args:
      features: [N, h, w, C].
      numbers: of ``superpixels``, uint8 [N, H, W].

    Returns:
      float32 [N, 255, C]; 0 for numbers that an image does not have.
    """
    grid = features.shape[1:3]
    # As ``align_corners`` places them.
    rows, columns = (
        np.rint(np.linspace(0, low - 1, high)).astype(np.int32)
        for low, high in zip(grid, numbers.shape[1:3], strict=True)
    )
    places = jnp.asarray(rows[:, None] * grid[1] + columns)

    def of_image(features: jax.Array, numbers: jax.Array) -> jax.Array:
        # Whole numbers of pixels: their sums are exact in any order.
        counts = jnp.zeros((NUMBERS + 1, grid[0] * grid[1])).at[numbers.astype(jnp.int32), places].add(1.0)[:NUMBERS]
        sums = jnp.matmul(counts, features.reshape(-1, features.shape[-1]), precision=jax.lax.Precision.HIGHEST)
        return sums / jnp.maximum(counts.sum(axis=1, keepdims=True), 1.0)

    return jax.vmap(of_image)(features.astype(jnp.float32), numbers)


def dominant_classes(numbers: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """The class that most labelled pixels of each superpixel have, int64 [255].

    Args:
      numbers: of ``superpixels``, uint8 [H, W].
      label: uint8 [H, W] of class indices and ``IGNORE``.
      num_classes: K.

    Returns:
      ``IGNORE`` for numbers without pixels, and where more than half of the pixels are ignored.
    """
    pairs = numbers.astype(np.int64).ravel() * 256 + label.ravel()
    counts = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)[:NUMBERS]
    labelled = counts[:, :num_classes].sum(axis=1)
    usable = (labelled > 0) & (2 * labelled >= counts.sum(axis=1))
    return np.where(usable, counts[:, :num_classes].argmax(axis=1), IGNORE)


def _sklearn() -> tuple[Any, ...]:
    """Its scaler, regression, SVM, pipeline and warning.

    Raises:
      UserError: it is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise UserError(missing_extra(error) or str(error)) from error
    return StandardScaler, LogisticRegression, LinearSVC, make_pipeline, ConvergenceWarning


def _fitted(model: Any, x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
    with warnings.catch_warnings():
        # The last steps of an optimisation that goes on change little.
        warnings.simplefilter("ignore", _sklearn()[-1])
        return model.fit(x, y, **options)


def fit_distributions(features: np.ndarray, shares: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Multinomial logistic regression from features to class distributions.

    Args:
      features: float [n, C] of images.
      shares: of their labelled pixels by class, [n, K]; at least two classes have any.

    Returns:
      a function from features [m, C] to distributions float32 [m, K]; a class that no image has gets 0.

    Raises:
      UserError: scikit-learn is not installed.
    """
    scaler, regression = _sklearn()[:2]

    def fit(chosen: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
        # An image stands there once for each of its classes, and weighs by their shares.
        scale = scaler().fit(features[chosen])
        rows, classes = np.nonzero(shares[chosen])
        model = regression(C=strength, max_iter=1000)
        x = scale.transform(features[chosen])[rows]
        _fitted(model, x, classes, sample_weight=shares[chosen][rows, classes])

        def predict(features: np.ndarray) -> np.ndarray:
            found = np.zeros((len(features), shares.shape[1]), np.float32)
            found[:, model.classes_] = model.predict_proba(scale.transform(features))
            return found

        return predict

    def cross_entropy(strength: float) -> float:
        p = fit(np.flatnonzero(~held), strength)(features[held])
        return float(-np.sum(shares[held] * np.log(np.maximum(p, 1e-9))))

    everything, held = np.arange(len(features)), np.arange(len(features)) % _FOLDS == 0
    if np.count_nonzero(shares[~held].sum(axis=0)) < 2:  # Too few images to leave any out.
        return fit(everything, _STRENGTHS[-1])
    return fit(everything, min(_STRENGTHS, key=cross_entropy))


class Judged(NamedTuple):
    """What the SVM says of superpixels: their classes, int64 [m], and its decision values for these, float64 [m]."""

    classes: np.ndarray
    margins: np.ndarray


def fit_classes(descriptors: np.ndarray, classes: np.ndarray) -> Callable[[np.ndarray], Judged]:
    """A linear SVM, one class against all others, from descriptors of superpixels to their classes.

    Args:
      descriptors: float [n, C].
      classes: integer [n], at least two different ones.

    Returns:
      a function from descriptors [m, C].

    Raises:
      UserError: scikit-learn is not installed.
    """
    scaler, _, svm, pipeline, _ = _sklearn()

    def fit(x: np.ndarray, y: np.ndarray, strength: float) -> Any:
        return _fitted(pipeline(scaler(), svm(C=strength, max_iter=2000, random_state=0)), x, y)

    # The last ones are held out: neighbours are of one image.
    tried = np.linspace(0, len(classes) - 1, min(len(classes), _TRIED)).astype(np.int64)
    learnt, held = np.split(tried, [len(tried) - len(tried) // _FOLDS])

    def wrong(strength: float) -> float:
        found = fit(descriptors[learnt], classes[learnt], strength).predict(descriptors[held])
        return float(np.mean(found != classes[held]))

    testable = len(held) and len(np.unique(classes[learnt])) > 1
    model = fit(descriptors, classes, min(_STRENGTHS, key=wrong) if testable else _STRENGTHS[-1])

    def judge(descriptors: np.ndarray) -> Judged:
        values = model.decision_function(descriptors)
        if values.ndim == 1:  # Of two classes the second one's alone.
            values = np.stack([-values, values], axis=1)
        return Judged(model.classes_[values.argmax(axis=1)], values.max(axis=1))

    return judge


def least_margin(margins: np.ndarray, kept: float) -> float:
    """The decision value from which on superpixels are landmarks: that of rank floor(kept n), at least the first."""
    return float(np.sort(margins)[::-1][max(int(np.floor(kept * len(margins))), 1) - 1])
