"""Self-training: ST, CBST and CRST, a teacher's sure labels of the target beside the source's, anew each round.

Zou et al., "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training" (ECCV 2018) and
"Confidence Regularized Self-Training" (ICCV 2019), and their releases: over the N labelled pixels of both domains
L = 1 / N (sum_{n in s} CE_n + lambda sum_{n in t} CE_n), lambda 1, and in CRST's MRKLD + a / N sum_{n in t} -1/K sum_c
log p_nc. Rounds are the recipe's (``config.rounds``), and which pixels are labelled is ``config.pseudo_labels``: ST
takes one threshold, CBST and CRST one a class.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fada_jax.classes import IGNORE
from fada_jax.methods.alternating import Alternating
from fada_jax.methods.interface import TrainingSpec
from fada_jax.models import resize_align_corners
from fada_jax.ranges import NonNegative
from fada_jax.training.alternation import Losses, Networks, View


def kl_to_uniform(logits: jax.Array, labels: jax.Array, temperature: float) -> jax.Array:
    """Sum over the labelled pixels of ``-1/K sum_c log p_c``, which is least where all classes are alike.

    Args:
      logits: float32 [N, h, w, K].
      labels: uint8 [N, H, W] that they are upsampled to.
      temperature: divides the logits.
    """
    log_p = jax.nn.log_softmax(resize_align_corners(logits, (labels.shape[1], labels.shape[2])) / temperature)
    return -jnp.sum(jnp.where(labels != IGNORE, log_p.mean(axis=-1), 0.0))


@dataclasses.dataclass(frozen=True)
class SelfTraining(Alternating):
    """ST and CBST; nothing is aligned, and ``lambda_adv`` is the weight of the target's pixels."""

    lambda_adv: float = 1.0

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        del networks
        assert view.labels is not None
        loss = self.segmentation(view, view.labels, spec, (1.0,))
        if view.is_source:
            return Losses(loss, 0.0, {"loss_seg": loss})
        total = self.lambda_adv * loss
        # Of all pixels of target images, those with a label.
        labelled = view.share * jnp.mean(jnp.float32(view.labels != IGNORE))
        metrics = {"loss_target": loss, "labelled": labelled}
        if weight := self.regulariser():
            metrics["loss_confidence"] = kl_to_uniform(view.outputs.logits[0], view.labels, self.temperature)
            metrics["loss_confidence"] /= view.labelled
            total += weight * metrics["loss_confidence"]
        return Losses(total, 0.0, metrics)

    def regulariser(self) -> float:
        """Weight of CRST's term."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class Crst(SelfTraining):
    """With model regularisation, MRKLD.

    Attributes:
      mrkld: a; the paper has 0.1, which enters twice in the release, where it is 0.01 in effect.
    """

    mrkld: NonNegative = 0.01

    def regulariser(self) -> float:
        return self.mrkld
