"""Jitted inference: class probabilities at the label's own size, over scales and flips, in one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fada_jax import handovers
from fada_jax.evaluation import metrics
from fada_jax.models import ModelSpec, Segmenter, resize_align_corners
from fada_jax.preprocessing import Preprocessing, normalise

SINGLE_SCALE: tuple[float, ...] = (1.0,)
MULTI_SCALE: tuple[float, ...] = (0.7, 1.0, 1.3)


def class_probabilities(
    apply_fn: Callable[..., Any],
    variables: Any,
    images: jax.Array,
    *,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    scales: tuple[float, ...] = SINGLE_SCALE,
    flip: bool = False,
) -> jax.Array:
    """Mean of the softmax over scales, each also flipped, taken at ``size`` (multi-scale testing of the released code).

    Args:
      apply_fn: ``Segmenter.apply``.
      variables: its collections.
      images: uint8 RGB [N, H, W, 3] at the network's input size, scale 1.
      preprocessing: input normalisation.
      size: (H, W) of the result; the label's or the image's own size.
      scales: factors on the input size.
      flip: average with the mirrored image at each scale.

    Returns:
      float32 [N, *size, K], summing to 1 over K.
    """
    return mean_probabilities(
        view_logits(apply_fn, variables, images, preprocessing=preprocessing, scales=scales, flip=flip), size
    )


def view_logits(
    apply_fn: Callable[..., Any],
    variables: Any,
    images: jax.Array,
    *,
    preprocessing: Preprocessing,
    scales: tuple[float, ...],
    flip: bool,
) -> list[jax.Array]:
    """Logits at feature resolution of every scale, each also flipped (and flipped back), float32 [N, h, w, K]."""
    x = normalise(images, preprocessing)
    views: list[jax.Array] = []

    def logits_of(view: jax.Array) -> jax.Array:
        if views:
            # One view after the other: XLA's GPU compiler else joins products of views of one size, in copies of both.
            view, _ = jax.lax.optimization_barrier((view, views[-1]))
        return apply_fn(variables, view, train=False)[0]

    for scale in scales:
        scaled = resize_align_corners(x, (int(x.shape[1] * scale), int(x.shape[2] * scale)))
        handovers.note("view", scale=scale, before=handovers.size(x.shape[1:]), after=handovers.size(scaled.shape[1:]))
        views.append(logits_of(scaled))
        if flip:
            views.append(logits_of(scaled[:, :, ::-1])[:, :, ::-1])
    return views


def mean_probabilities(
    views: Sequence[jax.Array],
    size: tuple[int, int],
    upsample: Callable[[jax.Array, Any], jax.Array] = resize_align_corners,
) -> jax.Array:
    """Mean over views of the softmax of their logits, upsampled to ``size``: float32 [N, *size, K]."""
    total: Any = sum(jax.nn.softmax(upsample(logits, size)) for logits in views)
    return total / len(views)


class Member(NamedTuple):
    """A network of an ensemble; hashable.

    Attributes:
      spec: its shapes.
      preprocessing: input normalisation.
      scales: factors on its input size.
      image: key of the batch that holds the images at its input size.
    """

    spec: ModelSpec
    preprocessing: Preprocessing
    scales: tuple[float, ...] = SINGLE_SCALE
    image: str = "image"


def ensemble_probabilities(
    members: Sequence[Member], variables: Sequence[Any], batch: Any, *, size: tuple[int, int], flip: bool
) -> jax.Array:
    """Mean over networks of their ``class_probabilities``, one network after the other: float32 [N, *size, K].

    Args:
      members: the networks.
      variables: weights of each.
      batch: images of each by its ``image``, uint8 RGB [N, H, W, 3].
      size: see ``class_probabilities``.
      flip: see ``class_probabilities``.
    """
    total: Any = None
    for member, weights in zip(members, variables, strict=True):
        images = batch[member.image]
        if total is not None:  # The buffers of one network are free before the next one runs.
            images, total = jax.lax.optimization_barrier((images, total))
        own = class_probabilities(
            Segmenter(member.spec).apply,
            weights,
            images,
            preprocessing=member.preprocessing,
            size=size,
            scales=member.scales,
            flip=flip,
        )
        total = own if total is None else total + own
    return total / len(members)


def ensemble_step(
    count: tuple[Any, jax.Array], variables: Sequence[Any], batch: Any, *, members: Sequence[Member], flip: bool
) -> tuple[Any, jax.Array]:
    """``evaluation_step`` of several networks; see ``ensemble_probabilities``."""
    size = batch["label"].shape[1:3]
    return _counted(count, ensemble_probabilities(members, variables, batch, size=size, flip=flip), batch)


def _counted(count: tuple[Any, jax.Array], probabilities: jax.Array, batch: Any) -> tuple[Any, jax.Array]:
    confusion, images = count
    confusion = metrics.add_confusion(confusion, batch["label"], jnp.argmax(probabilities, axis=-1), batch["mask"])
    return confusion, images + jnp.sum(batch["mask"], dtype=jnp.int32)


def evaluation_step(
    count: tuple[Any, jax.Array],
    variables: Any,
    batch: Any,
    *,
    apply_fn: Callable[..., Any],
    preprocessing: Preprocessing,
    scales: tuple[float, ...],
    flip: bool,
) -> tuple[Any, jax.Array]:
    """Adds a batch to the counts of pixels and of images; nothing leaves the device.

    Args:
      count: of ``metrics.empty_confusion``, and the number of images, int32.
      variables: weights.
      batch: ``image``, ``label`` at its own size, ``mask``.
      apply_fn, preprocessing, scales, flip: see ``class_probabilities``.
    """
    probabilities = class_probabilities(
        apply_fn,
        variables,
        batch["image"],
        preprocessing=preprocessing,
        size=batch["label"].shape[1:3],
        scales=scales,
        flip=flip,
    )
    return _counted(count, probabilities, batch)
