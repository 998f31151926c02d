"""FCNs in the wild: a discriminator of single cells is confused, and classes keep the sizes that the source has.

Hoffman et al., "FCNs in the Wild: Pixel-level Adversarial and Constraint-based Adaptation" (2016), on the features
before the classifier, fc7 of VGG-16: L_G = L_seg(s) + lambda ramp (L_D + L_inverse) / 2 + lambda_constraint L_size(t).
L_D and L_inverse are two-class cross entropies of both domains, towards the own and towards the other one, and each is
the mean of the two. Unverified, since the paper says nothing of them: what slack costs, and that L_size weighs 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.methods.alternating import Alternating, mean
from fada_jax.methods.interface import States, TrainingSpec
from fada_jax.models import Outputs, Pointwise, compute_dtype, interpolate, interpolation_matrix
from fada_jax.ranges import NonNegative, Positive, Share
from fada_jax.training import constraints, optimizers
from fada_jax.training.alternation import Losses, Networks, View
from fada_jax.training.states import create_network

DISCRIMINATOR = "domain_discriminator"
# The grid of the constraint: every fourth pixel of an image.
_GRID = 4
# A class is judged present from this share of its usual least size on; classes above ``_LARGE`` get a part of the
# gradient.
_PRESENT, _LARGE, _PART = 0.1, 0.1, 0.1
_QUANTILE = 0.1


def domain_losses(answers: jax.Array, view: View) -> tuple[jax.Array, jax.Array]:
    """Cross entropies of answers [..., 2] towards the view's domain, and towards the other, each [...]."""
    log_p = jax.nn.log_softmax(answers.astype(jnp.float32))
    own = 0 if view.is_source else 1
    return -log_p[..., own], -log_p[..., 1 - own]


def ramp(step: jax.Array, steps: int) -> jax.Array:
    """``2 / (1 + exp(-10 step / steps)) - 1``: 0 at first, 0.99 after half of the steps; 0 before step 0."""
    return jnp.tanh(5 * jnp.maximum(step, 0).astype(jnp.float32) / steps)


def class_sizes(shares: np.ndarray) -> dict[str, np.ndarray]:
    """Of the shares of pixels [images, K]: ``low``, ``mean`` and ``high``, float32 [K], over images that hold a class.

    Low and high are the values that a tenth of the images is below and above; all are 0 where no image holds a class.
    """
    sizes = np.zeros((3, shares.shape[1]))
    for number, column in enumerate(shares.T):
        if (held := column[column > 0]).size:
            sizes[:, number] = np.quantile(held, _QUANTILE), held.mean(), np.quantile(held, 1 - _QUANTILE)
    return dict(zip(("low", "mean", "high"), sizes.astype(np.float32), strict=True))


@dataclasses.dataclass(frozen=True)
class FcnWild(Alternating):
    """Domain confusion of single cells with bounds on the sizes of classes.

    Attributes:
      width: hidden channels of D.
      dropout: of D.
      ramp_steps: of the ramp of ``lambda_adv``.
      lambda_constraint: weight of the loss that bounds the sizes of classes; 0: none.
      slack: what a unit below a lower bound costs, in nats a pixel.
    """

    width: Positive = 1024
    dropout: Share = 0.5
    ramp_steps: Positive = 1200
    lambda_constraint: NonNegative = 1.0
    slack: NonNegative = constraints.HARD

    def networks(self, rng: jax.Array, spec: TrainingSpec, outputs: Outputs) -> States:
        dtype = jnp.dtype(compute_dtype(spec.model.dtype))
        module = Pointwise((self.width, self.width), 2, dropout=self.dropout, dtype=dtype)
        tx = optimizers.discriminator_optimizer(spec.discriminator_optimizer)
        return {DISCRIMINATOR: create_network(module, tx, rng, outputs.features.shape[-1])}

    def statistics(self, spec: TrainingSpec) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(("low", "mean", "high"), (spec.model.num_classes,))

    def prepare(self, labels: Iterator[np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
        """``class_sizes`` of the shares of all pixels, ignored ones among them."""
        shares = [np.bincount(label.ravel(), minlength=256)[:num_classes] / label.size for label in labels]
        return class_sizes(np.reshape(shares, (-1, num_classes)))

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        answers = networks[DISCRIMINATOR](view.outputs.features, view.keys)
        own, other = (0.5 * view.share * mean(loss) for loss in domain_losses(answers, view))
        confusion = (own + other) / 2
        total = self.lambda_adv * ramp(view.step, self.ramp_steps) * confusion
        metrics = {"loss_adv": confusion, "loss_d": own}
        if view.labels is not None:
            metrics["loss_seg"] = self.segmentation(view, view.labels, spec, (1.0,))
            return Losses(total + metrics["loss_seg"], own, metrics)
        if self.lambda_constraint:
            metrics["loss_size"] = view.share * self.size_loss(view)
            total += self.lambda_constraint * metrics["loss_size"]
        return Losses(total, own, metrics)

    def size_loss(self, view: View) -> jax.Array:
        """Cross entropy of the nearest prediction within the bounds, whose gradient at ``z / T`` is ``p - q``."""
        z = view.outputs.logits[0]
        rows, columns = (interpolation_matrix(*n)[::_GRID] for n in zip(z.shape[1:3], view.size, strict=True))
        z = interpolate(z, rows, columns) / self.temperature
        log_p, known = jax.nn.log_softmax(z), view.statistics
        weight = jnp.where(known["low"] > _LARGE, _PART, 1.0)

        def wanted(log_p: jax.Array) -> jax.Array:
            present = (jnp.exp(log_p).mean((0, 1)) > _PRESENT * known["low"]) & (known["high"] > 0)
            bounds = constraints.Bounds(known["mean"], known["high"], present)
            return constraints.nearest(log_p, bounds, self.slack)

        q = jax.vmap(wanted)(jax.lax.stop_gradient(log_p))
        cross_entropy = -mean(jnp.sum(q * log_p, axis=-1))
        slope = jax.lax.stop_gradient(weight * (jnp.exp(log_p) - q))
        sloped = mean(jnp.sum(slope * z, axis=-1))
        # The value of the one and the gradient of the other.
        return sloped + jax.lax.stop_gradient(cross_entropy - sloped)
