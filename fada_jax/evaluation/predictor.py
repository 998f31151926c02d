"""A segmenter as its user meets it: images of any size in, labels, probabilities or features out."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax import handovers, images
from fada_jax.classes import IGNORE, ClassSet
from fada_jax.errors import UserError
from fada_jax.evaluation import inference, metrics
from fada_jax.models import ComputeType, Segmenter, compute_dtype
from fada_jax.preprocessing import normalise
from fada_jax.training import checkpoints

Image = np.ndarray | str | Path
# Share of a window that its neighbours may see too.
MOST_OVERLAP = 0.9


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Calls a segmentation network on images of any size; made by ``fada_jax.load``.

    An image is an array, uint8 RGB [H, W, 3], a batch of equal sizes [N, H, W, 3], or the path of an image file; a
    batch gives results with the leading axis N. The network sees each image resized to ``input_size``, as in training
    and in the released code; results are at the image's own size.

    Options of every call:
      multi_scale: average over ``scales``, each also flipped, instead of the plain image.
      tile: (width, height) of windows in the image's own pixels, for images that do not fit into memory whole or that
        ``input_size`` would shrink too much. Every window is treated as an image of its own, so choose windows that
        show about what a training image shows. None: the image as a whole.
      overlap: share of a window that its neighbours see too, 0 to 0.9; there results fade from one to the next.

    Attributes:
      class_set: names and colours of the K classes; labels are their indices.
      input_size: (width, height) that the network sees.
      scales: of multi-scale testing.
      step: training step of the weights.
      dtype: compute type.
      run_probabilities: (uint8 [N, H, W, 3], multi_scale) -> float32 [N, H, W, K], on the device.
      run_features: uint8 [N, H, W, 3] -> [N, h, w, C], on the device.
      devices: that share a batch of several images, or the windows of an image.
    """

    class_set: ClassSet
    input_size: tuple[int, int]
    scales: tuple[float, ...]
    step: int
    dtype: str
    run_probabilities: Callable[[np.ndarray, bool], jax.Array] = dataclasses.field(repr=False)
    run_features: Callable[[np.ndarray], jax.Array] = dataclasses.field(repr=False)
    devices: int = 1

    def __call__(
        self, image: Image, *, multi_scale: bool = False, tile: tuple[int, int] | None = None, overlap: float = 0.25
    ) -> np.ndarray:
        """Labels: the most probable class of every pixel, uint8 [H, W] or [N, H, W].

        Tiled, no more than the probabilities of one row of windows is in memory.

        Raises:
          ValueError: not uint8 RGB, or an option that cannot be.
          UserError: a path that holds no readable image.
        """
        tile = checked_options(multi_scale, tile, overlap)
        batch, single = as_batch(image)
        if tile is None:
            labels = np.asarray(jnp.argmax(self.run_probabilities(batch, multi_scale), axis=-1), np.uint8)
        else:
            strips = (self._strips(x, multi_scale, tile, overlap) for x in batch)
            labels = np.stack([np.vstack([strip.argmax(-1).astype(np.uint8) for strip in x]) for x in strips])
        return labels[0] if single else labels

    def probabilities(
        self, image: Image, *, multi_scale: bool = False, tile: tuple[int, int] | None = None, overlap: float = 0.25
    ) -> np.ndarray:
        """Class probabilities, float32 [H, W, K] or [N, H, W, K], summing to 1 over K; raises as ``__call__``."""
        tile = checked_options(multi_scale, tile, overlap)
        batch, single = as_batch(image)
        if tile is None:
            result = np.asarray(self.run_probabilities(batch, multi_scale))
        else:
            result = np.stack([np.vstack(list(self._strips(x, multi_scale, tile, overlap))) for x in batch])
        return result[0] if single else result

    def features(self, image: Image) -> np.ndarray:
        """Features F(x) at the network's resolution, float32 [h, w, C] or [N, h, w, C]."""
        batch, single = as_batch(image)
        result = np.asarray(self.run_features(batch), np.float32)
        return result[0] if single else result

    def score(self, samples: Iterable[tuple[Image, Any]], **options: Any) -> dict[str, Any]:
        """IoU and accuracy over labelled images, as ``fada_jax.evaluate`` reports them.

        Args:
          samples: an image and its label, whole numbers [H, W] of the image's size: indices of this class set, or 255
            for what does not count. Both may be batches, [N, H, W, 3] and [N, H, W].
          **options: of ``__call__``.

        Returns:
          ``miou``, ``iou`` by class, ``accuracy`` in percent (``miou_13`` where the set has one), ``num_images``.

        Raises:
          ValueError: naming the sample: no pair, a label of another size than its image's, of another type than whole
            numbers, or with a value that is neither a class nor 255; or no sample at all.
          UserError: a path that holds no readable image.
        """
        count, number = metrics.empty_confusion(self.class_set.num_classes), 0
        for i, sample in enumerate(samples):
            if not isinstance(sample, tuple | list) or len(sample) != 2:
                raise ValueError(f"sample {i} must be an image and its label, not {type(sample).__name__}")
            batch, single = as_batch(sample[0])
            shape = batch.shape[1:3] if single else batch.shape[:3]
            labels = checked_label(sample[1], shape, self.class_set, i).reshape(batch.shape[:3])
            predicted = jnp.asarray(self(batch, **options))
            count = metrics.add_confusion(count, jnp.asarray(labels), predicted, jnp.ones(len(batch), bool))
            number += len(batch)
        if not number:
            raise ValueError("no sample to score")
        return {**metrics.scores(metrics.confusion_matrix(count), self.class_set), "num_images": number}

    def _strips(
        self, image: np.ndarray, multi_scale: bool, tile: tuple[int, int], overlap: float
    ) -> Iterator[np.ndarray]:
        return tiled_strips(
            lambda windows: self.run_probabilities(windows, multi_scale), image, tile, overlap, together=self.devices
        )


def checked_options(multi_scale: Any, tile: Any, overlap: Any) -> tuple[int, int] | None:
    """``tile`` as a pair of plain integers, or None.

    Raises:
      ValueError: an option of ``Predictor`` that cannot be.
    """
    if not isinstance(multi_scale, bool | np.bool_):
        raise ValueError(f"multi_scale={multi_scale!r} must be True or False")
    number = float(overlap) if isinstance(overlap, numbers.Real) and not isinstance(overlap, bool) else math.nan
    if not 0 <= number <= MOST_OVERLAP:
        raise ValueError(f"overlap={overlap!r} must be a number from 0 to {MOST_OVERLAP}")
    if tile is None:
        return None
    try:
        if not isinstance(tile, tuple | list | np.ndarray) or any(isinstance(side, bool) for side in tile):
            raise TypeError
        width, height = map(operator.index, tile)
    except (TypeError, ValueError):
        width = height = 0
    if min(width, height) < 1:
        raise ValueError(f"tile={tile!r} must be (width, height), whole numbers of at least 1")
    return width, height


def checked_label(label: Any, shape: tuple[int, ...], class_set: ClassSet, number: int) -> np.ndarray:
    """The label of sample ``number`` as uint8 of the given shape; raises as ``Predictor.score`` says."""
    array = np.asarray(label)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"the label of sample {number} must hold whole numbers (uint8), not {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"sample {number}: label {list(array.shape)} and image {list(shape)} differ in size")
    values = np.unique(array)
    strange = values[(values != IGNORE) & ((values < 0) | (values >= class_set.num_classes))]
    if len(strange):
        raise ValueError(
            f"the label of sample {number} holds {strange[0]}, which is no class of {class_set.name} (0 to "
            f"{class_set.num_classes - 1}): pixels that do not count must be {IGNORE}"
        )
    return array.astype(np.uint8)


def as_batch(image: Image) -> tuple[np.ndarray, bool]:
    """An image, a batch or a path as uint8 [N, H, W, 3], and whether it is a single image.

    Raises:
      ValueError: an array of another kind.
      UserError: no readable image at the path.
    """
    if isinstance(image, str | Path):
        return images.read_image(image)[None], True
    try:
        array = np.asarray(image)
    except ValueError as error:  # Nested lists of several lengths.
        raise ValueError("images must be uint8 RGB [H, W, 3] or [N, H, W, 3], not lists of several lengths") from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"images must be uint8 RGB [H, W, 3] or [N, H, W, 3], not {array.dtype} {list(array.shape)}")
    return (array[None], True) if array.ndim == 3 else (array, False)


def _windows(length: int, size: int, overlap: float) -> list[int]:
    """Starts of equally spaced windows of ``size`` that cover ``length`` with at least ``overlap`` between them."""
    count = 1 + math.ceil((length - size) / max(1, int(size * (1 - overlap))))
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]


def _fade(size: int) -> np.ndarray:
    """Weights of a window along one axis: largest in its middle, positive everywhere, float32 [size]."""
    i = np.arange(size)
    return np.minimum(i + 1, size - i).astype(np.float32)


def tiled_strips(
    run: Callable[[np.ndarray], Any], image: np.ndarray, tile: tuple[int, int], overlap: float, *, together: int = 1
) -> Iterator[np.ndarray]:
    """Probabilities of an image from overlapping windows, top to bottom, a strip of finished rows at a time.

    Args:
      run: uint8 [n, h, w, 3] -> float32 [n, h, w, K].
      image: uint8 [H, W, 3]; it may be a memory map.
      tile: (width, height) of the windows, see ``checked_options``; larger than the image, the image is one window.
      overlap: see ``Predictor``.
      together: windows that ``run`` gets at once, at most.

    Yields:
      float32 [rows, W, K]; the rows of all strips are those of the image.
    """
    height, width = min(tile[1], image.shape[0]), min(tile[0], image.shape[1])
    tops, lefts = (_windows(n, size, overlap) for n, size in zip(image.shape, (height, width), strict=False))
    weight = _fade(height)[:, None] * _fade(width)
    total: Any = None
    for top, following in zip(tops, [*tops[1:], image.shape[0]], strict=True):
        for left, probabilities in _at_windows(run, image[top : top + height], lefts, width, together):
            if total is None:
                total = np.zeros((height, image.shape[1], probabilities.shape[-1]), np.float32)
                weights = np.zeros((height, image.shape[1], 1), np.float32)
            total[:, left : left + width] += probabilities * weight[..., None]
            weights[:, left : left + width] += weight[..., None]
        done = following - top
        yield total[:done] / weights[:done]
        # What the next row of windows shares with this one moves up.
        for array in (total, weights):
            array[: -done or None] = array[done:]
            array[height - done :] = 0


def _at_windows(
    run: Callable[[np.ndarray], Any], rows: np.ndarray, lefts: list[int], width: int, together: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The starts of a row's windows, each with its probabilities [h, width, K]."""
    for i in range(0, len(lefts), together):
        starts = lefts[i : i + together]
        yield from zip(starts, np.asarray(run(np.stack([rows[:, x : x + width] for x in starts]))), strict=True)


def from_model(model: checkpoints.Model, dtype: ComputeType = "auto") -> Predictor:
    """A predictor that runs a checkpoint's weights on this process's devices: one image on the first, several on all.

    Args:
      model: the checkpoint.
      dtype: compute type, see ``models.convolution.inference_dtype``.

    Raises:
      UserError: the weights have no classifier.
    """
    model = checkpoints.in_dtype(model, dtype)
    if not model.class_set:
        raise UserError("these weights have no classifier to predict with")
    apply_fn: Callable[..., Any] = Segmenter(model.spec).apply
    input_size, scales = tuple(model.config["eval"]["size"]), tuple(model.config["multi_scale"])
    spread = _spreader(model.variables)

    # The network is compiled once; only this last part again for every size of image.
    upsample = jax.jit(inference.mean_probabilities, static_argnames="size")

    @functools.partial(jax.jit, static_argnames=("scales", "flip"))
    def logits(variables: Any, batch: jax.Array, scales: tuple[float, ...], flip: bool) -> list[jax.Array]:
        return inference.view_logits(
            apply_fn, variables, batch, preprocessing=model.preprocessing, scales=scales, flip=flip
        )

    @jax.jit
    def features(variables: Any, batch: jax.Array) -> jax.Array:
        return apply_fn(variables, normalise(batch, model.preprocessing), train=False)[1]

    def resized(batch: np.ndarray) -> np.ndarray:
        result = np.stack([images.resize_image(image, input_size) for image in batch])
        handovers.note("prediction", image=handovers.size(batch.shape[1:3]), input=handovers.size(result.shape[1:3]))
        return result

    def run_probabilities(batch: np.ndarray, multi_scale: bool) -> jax.Array:
        views = logits(*spread(resized(batch)), scales if multi_scale else inference.SINGLE_SCALE, multi_scale)
        return upsample(views, batch.shape[1:3])[: len(batch)]

    return Predictor(
        model.class_set,
        input_size,
        scales,
        model.step,
        compute_dtype(model.spec.dtype),
        run_probabilities,
        lambda batch: features(*spread(resized(batch)))[: len(batch)],
        len(jax.local_devices()),
    )


def _spreader(variables: Any) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """A function from a batch to the weights and the batch where they meet: filled with black up to all devices."""
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    single = jax.device_put(variables, devices[0])

    @functools.cache
    def everywhere() -> Any:
        return jax.device_put(single, jax.NamedSharding(mesh, jax.P()))

    def spread(batch: np.ndarray) -> tuple[Any, Any]:
        if min(len(batch), len(devices)) == 1:
            return single, batch
        filled = np.pad(batch, [(0, -len(batch) % len(devices)), (0, 0), (0, 0), (0, 0)])
        return everywhere(), jax.device_put(filled, jax.NamedSharding(mesh, jax.P("data")))

    return spread
