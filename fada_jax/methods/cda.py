"""CDA, curriculum domain adaptation: easy tasks are solved first, and predictions have to agree with their answers.

Zhang, David, Gong, "Curriculum Domain Adaptation for Semantic Segmentation of Urban Scenes" (ICCV 2017):
L = gamma L_seg(s) + (1 - gamma) [CE(d, g) of the image + mean over its landmarks of CE(its class, g of its pixels)],
means over target images. The easy tasks give d, the class distribution of the whole image, and landmarks, superpixels
with a class (``stages.easy_tasks``); g is what the network predicts of a set of pixels, the mean of (p / max_c p)^power
over them, normalised over classes. Images that are cropped keep the d of the whole image.

Unverified: gamma, that landmarks have the weight of the image's distribution, that they are averaged image by image,
and that the gradient goes through max_c p, too. The paper's power is 6, its release's 5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le

from fada_jax.classes import IGNORE
from fada_jax.methods.alternating import Alternating, mean
from fada_jax.methods.interface import TrainingSpec
from fada_jax.models import resize_align_corners
from fada_jax.ranges import Finite, Positive, Share
from fada_jax.training.alternation import Losses, Networks, View


def image_log_distribution(scores: jax.Array) -> jax.Array:
    """Logarithm of the class distribution g of images, float32 [N, K].

    Args:
      scores: ``power log(p / max_c p)`` of each pixel, float32 [N, H, W, K].
    """
    # Logarithms of sums: a class that no pixel has is far below what float32 holds at the power of 6.
    sums = jax.nn.logsumexp(jax.nn.logsumexp(scores, axis=2), axis=1)
    return jax.nn.log_softmax(sums)


def _row_by_row(
    reduce: Callable[..., jax.Array], values: jax.Array, numbers: jax.Array, count: int, empty: float
) -> jax.Array:
    """``reduce`` of the values of each number, [N, H, W] to [N, count], ``empty`` for numbers without pixels.

    A scatter's sums would depend on the order of threads on GPUs. At one row at a time, what stands in for it takes no
    memory.
    """

    def of_row(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        values, numbers = row
        return reduce(jnp.where(numbers[..., None] == jnp.arange(count), values[..., None], empty), axis=1)

    return reduce(jax.lax.map(of_row, (values.swapaxes(0, 1), numbers.swapaxes(0, 1))), axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def sums_by_number(values: jax.Array, numbers: jax.Array, count: int) -> jax.Array:
    """Sums of values float32 [N, H, W] over the pixels of each number below ``count``, float32 [N, count]."""
    return _row_by_row(jnp.sum, values, numbers, count, 0.0)


def _sums_forward(values: jax.Array, numbers: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    return sums_by_number(values, numbers, count), numbers


def _sums_backward(count: int, numbers: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _looked_up(gradient, numbers), None


sums_by_number.defvjp(_sums_forward, _sums_backward)


def _looked_up(values: jax.Array, numbers: jax.Array, other: float = 0) -> jax.Array:
    """Values [N, L] at numbers [N, H, W], ``other`` at those from L on."""
    table = jnp.pad(values, ((0, 0), (0, 256 - values.shape[1])), constant_values=other)
    return jax.vmap(lambda table, numbers: table[numbers])(table, numbers.astype(jnp.int32))


def landmark_losses(scores: jax.Array, numbers: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropies of the distributions g of landmarks towards their classes.

    Args:
      scores: as in ``image_log_distribution``.
      numbers: uint8 [N, H, W], the landmark that each pixel is in, 255 for none.
      classes: uint8 [N, L], of each landmark, 255 where there is none of this number.

    Returns:
      float32 [N, L], and bool [N, L]: whether the image has pixels of a landmark of this number; the loss is 0 else.
    """
    count, k = classes.shape[1], scores.shape[-1]
    wanted = _looked_up(classes, numbers, IGNORE)
    counted = jnp.where(wanted == IGNORE, IGNORE, numbers).astype(jnp.int32)
    of_class = jnp.sum(jnp.where(wanted[..., None] == jnp.arange(k), scores, 0.0), axis=-1)
    # At least 1 for each pixel, so that it says whether a landmark has any.
    total = sums_by_number(jnp.exp(scores).sum(axis=-1), counted, count)
    present = total > 0
    # Logarithms of sums, as above.
    most = _row_by_row(jnp.max, jax.lax.stop_gradient(of_class), counted, count, -jnp.inf)
    most = jnp.where(present, most, 0.0)
    own = sums_by_number(jnp.exp(of_class - _looked_up(most, counted)), counted, count)
    # The inner choice keeps the logarithm of what is not there out of the gradient.
    own, total = (jnp.where(present, x, 1.0) for x in (own, total))
    return jnp.where(present, jnp.log(total) - jnp.log(own) - most, 0.0), present


@dataclasses.dataclass(frozen=True)
class Cda(Alternating):
    """Curriculum domain adaptation; ``lambda_adv`` scales the target's part of the loss.

    Attributes:
      gamma: weight of L_seg; 1 - gamma is that of the target's part.
      power: K' of the prediction; the release's is 5.
      superpixels: about so many an image.
      landmarks_kept: share of the target's superpixels that are landmarks, the surest.
      source_images: that the easy tasks learn from, spread evenly over the split where it has more.
    """

    lambda_adv: float = 1.0
    gamma: Share = 0.5
    power: Annotated[Finite, Gt(0)] = 6.0
    superpixels: Annotated[int, Ge(1), Le(200)] = 100
    landmarks_kept: Annotated[float, Gt(0), Le(1)] = 0.6
    source_images: Positive = 300

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        del networks
        if view.labels is not None:
            loss_seg = self.segmentation(view, view.labels, spec, (1.0,))
            return Losses(self.gamma * loss_seg, 0.0, {"loss_seg": loss_seg})
        loss_image, loss_landmarks = self.target_losses(view.outputs.logits[0], view.size, view.estimates)
        metrics = {"loss_image": view.share * loss_image, "loss_landmarks": view.share * loss_landmarks}
        total = self.lambda_adv * (1 - self.gamma) * (metrics["loss_image"] + metrics["loss_landmarks"])
        return Losses(total, 0.0, metrics)

    def target_losses(
        self, logits: jax.Array, size: tuple[int, int], estimates: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Cross entropies of the images' distributions, and of their landmarks', each a mean over images.

        Args:
          logits: float32 [N, h, w, K].
          size: (H, W) that they are upsampled to.
          estimates: answers of the easy tasks: ``distribution`` float32 [N, K], ``landmark`` uint8 [N, H, W] and
            ``landmark_class`` uint8 [N, L] as in ``landmark_losses``.
        """
        z = resize_align_corners(logits, size)
        scores = (self.power / self.temperature) * (z - z.max(axis=-1, keepdims=True))
        of_images = -jnp.sum(estimates["distribution"] * image_log_distribution(scores), axis=-1)
        losses, present = landmark_losses(scores, estimates["landmark"], estimates["landmark_class"])
        of_landmarks = losses.sum(axis=-1) / jnp.maximum(present.sum(axis=-1), 1)
        return mean(of_images), mean(of_landmarks)
