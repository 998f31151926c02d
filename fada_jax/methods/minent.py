"""MinEnt, the direct form of ADVENT: the entropy of the target's prediction is minimised, without a discriminator.

Vu et al., "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation" (CVPR 2019), and
its release: L = L_seg(s) + 0.1 L_seg,aux(s) + lambda H(t) + 0.2 lambda H_aux(t), H = mean of -sum_c p log p / log K.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from fada_jax.methods.alternating import Alternating, mean, of_levels, probabilities, self_information
from fada_jax.methods.interface import TrainingSpec
from fada_jax.ranges import NonNegative
from fada_jax.training.alternation import Losses, Networks, View


@dataclasses.dataclass(frozen=True)
class MinEnt(Alternating):
    """At one level, or at two with ``model.heads`` 'levels', as released.

    Attributes:
      auxiliary_seg: weight of L_seg of the auxiliary classifier.
      auxiliary_adv: weight of its entropy, as a share of ``lambda_adv``.
    """

    auxiliary_seg: NonNegative = 0.1
    auxiliary_adv: NonNegative = 0.2
    heads: ClassVar[tuple[str, ...]] = ("one", "levels")

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        del networks
        if view.labels is not None:
            return self.supervised(view, view.labels, spec, (1.0, self.auxiliary_seg))
        entropies = [
            mean(self_information(probabilities(logits, view.size, self.temperature)).sum(axis=-1))
            for logits in view.outputs.logits
        ]
        entropy = view.share * of_levels(entropies, self.auxiliary_adv)
        return Losses(self.lambda_adv * entropy, 0.0, {"loss_adv": entropy})
