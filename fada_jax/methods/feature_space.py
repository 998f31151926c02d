"""Feature alignment with AdaptSegNet's discriminator: the row "Baseline (feat. only) [30]" of the paper's tables.

Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation" (CVPR 2018), whose number it is:
L_G = L_seg(s) + lambda L_adv(D(F(t) upsampled to the image)). ``binary`` is the same on FADA's own discriminator.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from fada_jax.methods.adaptsegnet import DISCRIMINATORS, AdaptSegNet
from fada_jax.methods.interface import TrainingSpec
from fada_jax.models import Outputs
from fada_jax.training.alternation import Networks, View


@dataclasses.dataclass(frozen=True)
class FeatureSpace(AdaptSegNet):
    """The discriminator reads the features before the classifier, as if upsampled to the image."""

    heads: ClassVar[tuple[str, ...]] = ("one",)

    def channels(self, spec: TrainingSpec, outputs: Outputs) -> int:
        del spec
        return outputs.features.shape[-1]

    def answers(self, networks: Networks, view: View) -> list[jax.Array]:
        return [networks[DISCRIMINATORS[0]](view.outputs.features, view.size)]
