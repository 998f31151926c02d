"""CLAN: two classifiers that must differ, and the more they do at a pixel, the more the pixel is aligned.

Luo et al., "Taking a Closer Look at Domain Shift: Category-level Adversaries for Semantics Consistent Domain
Adaptation" (CVPR 2019), and its release, with d = 1 - progress:
L_G = L_seg(z1) + L_seg(z2) + 0.02 d (cos(w1, w2) + 1) + lambda d mean((0.4 + lambda_local (1 - cos(p1, p2))) L_adv).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.flatten_util
import jax.numpy as jnp

from fada_jax.classes import IGNORE
from fada_jax.methods.adaptsegnet import DISCRIMINATORS, PATCH, SOURCE, TARGET, domain_loss, patch_discriminator
from fada_jax.methods.alternating import Alternating, mean, probabilities
from fada_jax.methods.interface import States, TrainingSpec
from fada_jax.models import Outputs, resize_align_corners
from fada_jax.ranges import NonNegative, Share
from fada_jax.training.alternation import Losses, Networks, View


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the angle between the last axes of two arrays."""
    # PyTorch's cosine similarity bounds each norm by 1e-8, too.
    norms = [jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x), axis=-1)), 1e-8) for x in (a, b)]
    return jnp.sum(a * b, axis=-1) / (norms[0] * norms[1])


@dataclasses.dataclass(frozen=True)
class Clan(Alternating):
    """``model.heads`` 'two', whose sum predicts.

    Attributes:
      weight_discrepancy: weight of the classifiers' likeness; twice of it counts.
      local: lambda_local, weight of a pixel's disagreement; 10 for SYNTHIA in the release.
      everywhere: what a pixel weighs without any.
      warmup: share of the steps before pixels are weighed.
      focal: exponent of (1 - p) in L_seg, 2 in the release ("CrossEntropy2d"); 0 is the cross entropy.
    """

    weight_discrepancy: NonNegative = 0.01
    local: NonNegative = 40.0
    everywhere: NonNegative = 0.4
    warmup: Share = 0.05
    focal: NonNegative = 0.0
    heads: ClassVar[tuple[str, ...]] = ("two",)
    least_size: ClassVar[int] = PATCH

    def networks(self, rng: jax.Array, spec: TrainingSpec, outputs: Outputs) -> States:
        del outputs
        return {DISCRIMINATORS[0]: patch_discriminator(rng, spec, spec.model.num_classes)}

    def penalty(self, params: Any, progress: jax.Array) -> jax.Array:
        weights = (jax.flatten_util.ravel_pytree(params[name])[0] for name in ("classifier", "second_classifier"))
        return 2 * self.weight_discrepancy * (1 - progress) * (cosine(*weights) + 1)

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        one, two = view.outputs.logits
        read = probabilities(one + two, view.size, self.temperature)
        answers = resize_align_corners(networks[DISCRIMINATORS[0]](read), view.size)[..., 0]
        if view.labels is not None:
            loss_d = view.share * mean(domain_loss(answers, SOURCE))
            loss_seg = self.segmentation(view, view.labels, spec, (1.0, 1.0))
            return Losses(loss_seg, loss_d, {"loss_seg": loss_seg, "loss_d": loss_d})
        p1, p2 = (probabilities(logits, view.size, self.temperature) for logits in (one, two))
        weighed = self.everywhere + self.local * (1 - cosine(p1, p2))
        weight = jnp.where(view.progress > self.warmup, weighed, 1.0)
        loss_adv = view.share * mean(weight * domain_loss(answers, SOURCE))
        loss_d = view.share * mean(weight * domain_loss(answers, TARGET))
        damped = self.lambda_adv * (1 - view.progress) * loss_adv
        return Losses(damped, loss_d, {"loss_adv": loss_adv, "loss_d": loss_d})

    def segmentation(self, view: View, labels: jax.Array, spec: TrainingSpec, weights: Sequence[float]) -> jax.Array:
        if not self.focal:
            return super().segmentation(view, labels, spec, weights)
        total: Any = 0.0
        for logits, weight in zip(view.outputs.logits, weights, strict=True):
            p = probabilities(logits, view.size, self.temperature)
            one_hot = jnp.arange(p.shape[-1]) == labels[..., None].astype(jnp.int32)
            picked = jnp.sum(jnp.where(one_hot, p, 0.0), axis=-1)
            picked = jnp.where(labels != IGNORE, picked, 1.0)
            total += weight * jnp.sum(-((1 - picked) ** self.focal) * jnp.log(jnp.maximum(picked, 1e-30)))
        return total / view.labelled
