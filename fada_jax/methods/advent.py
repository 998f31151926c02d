"""ADVENT: discriminators of patches tell the domain of the weighted self-information of the prediction.

Vu et al., "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation" (CVPR 2019), and
its release: AdaptSegNet's losses, with -p log p / log K in place of p.
"""

from __future__ import annotations

import dataclasses

import jax

from fada_jax.methods.adaptsegnet import AdaptSegNet
from fada_jax.methods.alternating import self_information


@dataclasses.dataclass(frozen=True)
class Advent(AdaptSegNet):
    """At one level, or at two with ``model.heads`` 'levels', as released."""

    def read(self, p: jax.Array) -> jax.Array:
        return self_information(p)
