"""FDA: the source in the target's low frequencies, and an entropy of the target that spares what is sure already.

Yang and Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation" (CVPR 2020), and its release:
L = L_seg(s in the amplitudes of t) + lambda mean((H^2 + 1e-8)^eta), H = -sum_c p log p / log K, with lambda 0.005 and
eta 2. The swap is ``config.fourier_beta``, 0.01 here, which any system's source may have; the printed numbers are
means of three networks with 0.01, 0.05 and 0.09 (``evaluate --ensemble``), trained once more on their labels.
"""

from __future__ import annotations

import dataclasses

from fada_jax.methods.alternating import Alternating, mean, probabilities, self_information
from fada_jax.methods.interface import TrainingSpec
from fada_jax.ranges import Divisor
from fada_jax.training.alternation import Losses, Networks, View


@dataclasses.dataclass(frozen=True)
class Fda(Alternating):
    """Without a discriminator; ``lambda_adv`` is the weight of the penalty.

    Attributes:
      eta: exponent of the penalty ("Charbonnier").
    """

    eta: Divisor = 2.0

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        del networks
        if view.labels is not None:
            return self.supervised(view, view.labels, spec)
        p = probabilities(view.outputs.logits[0], view.size, self.temperature)
        entropy = self_information(p).sum(axis=-1)
        penalty = view.share * mean((entropy**2 + 1e-8) ** self.eta)
        return Losses(self.lambda_adv * penalty, 0.0, {"loss_adv": penalty})
