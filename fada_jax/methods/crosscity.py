"""Cross-City: one discriminator of all cells, and one of each class that weighs a cell by how much of the class it has.

Chen et al., "No More Discrimination: Cross City Adaptation of Road Scene Segmenters" (ICCV 2017), and its public code:
L_G = L_seg(s) + lambda ramp (L_D + L_inverse) / 2 + lambda class_weight ramp' (the same of every class), as in
``fcn_wild``, where L of a class is the mean over images of sum_n Phi_n CE_n / (sum_n Phi_n + 5e-6). A cell is what
adaptive pooling makes a feature pixel, 8x8 pixels at output stride 8.

The paper's prior of static objects is left out: it needs pairs of street views at different times, and the public code
computes it and never uses it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fada_jax.methods.alternating import Alternating, mean, probabilities
from fada_jax.methods.fcn_wild import DISCRIMINATOR, domain_losses, ramp
from fada_jax.methods.interface import States, TrainingSpec
from fada_jax.models import ByClass, Outputs, Pointwise, compute_dtype, height_width, pool
from fada_jax.ranges import NonNegative, Positive, Share, Whole
from fada_jax.training import optimizers
from fada_jax.training.alternation import Losses, Networks, View
from fada_jax.training.states import create_network

CLASS_DISCRIMINATORS = "class_discriminators"


def label_shares(labels: jax.Array, num_classes: int, size: tuple[int, int]) -> jax.Array:
    """Share of each class among the pixels of each cell, float32 [N, h, w, K]; ignored ones count for no class."""
    return pool(labels[..., None].astype(jnp.int32) == jnp.arange(num_classes), size)


@dataclasses.dataclass(frozen=True)
class CrossCity(Alternating):
    """Global and class-wise alignment of cells; the class-wise discriminators learn from the first step on.

    Attributes:
      width: hidden channels of each discriminator.
      dropout: of each.
      ramp_steps: of the ramps.
      class_start_steps: steps before the class-wise loss counts, with a ramp of its own from there.
      class_weight: weight of the class-wise loss, as a share of ``lambda_adv``.
    """

    width: Positive = 1024
    dropout: Share = 0.5
    ramp_steps: Positive = 1200
    class_start_steps: Whole = 1000
    class_weight: NonNegative = 1.0

    def networks(self, rng: jax.Array, spec: TrainingSpec, outputs: Outputs) -> States:
        dtype, channels = jnp.dtype(compute_dtype(spec.model.dtype)), outputs.features.shape[-1]
        widths, tx = (self.width, self.width), optimizers.discriminator_optimizer(spec.discriminator_optimizer)
        everything = Pointwise(widths, 2, dropout=self.dropout, dtype=dtype)
        by_class = ByClass(spec.model.num_classes, widths, 2, dropout=self.dropout, dtype=dtype)
        one, other = jax.random.split(rng)
        return {
            DISCRIMINATOR: create_network(everything, tx, one, channels),
            CLASS_DISCRIMINATORS: create_network(by_class, tx, other, channels),
        }

    def knowledge(self, view: View) -> jax.Array:
        """Share of each class in each cell, float32 [N, h, w, K]: of its labels, or of its mean softmax."""
        logits = jax.lax.stop_gradient(view.outputs.logits[0])
        size = height_width(view.outputs.features)
        if view.labels is not None:
            return label_shares(view.labels, logits.shape[-1], size)
        return pool(probabilities(logits, view.size, self.temperature), size)

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        features = view.outputs.features
        answers = networks[DISCRIMINATOR](features, view.keys)
        own, other = (0.5 * view.share * mean(loss) for loss in domain_losses(answers, view))
        # [K, N, h, w]
        known = jnp.moveaxis(self.knowledge(view), -1, 0)
        class_keys = jax.vmap(jax.random.fold_in, (0, None))(view.keys, 2**16)
        by_class = domain_losses(networks[CLASS_DISCRIMINATORS](features, class_keys), view)
        weight = known / (jnp.sum(known, axis=(2, 3), keepdims=True) + 5e-6)
        class_own, class_other = (0.5 * view.share * jnp.sum(weight * loss, axis=(0, 2, 3)).mean() for loss in by_class)
        confusion, class_confusion = (own + other) / 2, (class_own + class_other) / 2
        late = ramp(view.step - self.class_start_steps, self.ramp_steps)
        weighted = ramp(view.step, self.ramp_steps) * confusion + self.class_weight * late * class_confusion
        metrics = {
            "loss_adv": confusion,
            "loss_adv_classes": class_confusion,
            "loss_d": own,
            "loss_d_classes": class_own,
        }
        total = self.lambda_adv * weighted
        if view.labels is not None:
            metrics["loss_seg"] = self.segmentation(view, view.labels, spec, (1.0,))
            total += metrics["loss_seg"]
        return Losses(total, own + class_own, metrics)
