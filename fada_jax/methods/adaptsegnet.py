"""AdaptSegNet: a discriminator of patches tells the domain of the prediction, at one level or at two.

Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation" (CVPR 2018), and its release:
L_G = L_seg(s) + 0.1 L_seg,aux(s) + lambda L_adv(t) + 0.2 lambda L_adv,aux(t); L_D of each level is halved.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fada_jax.methods.alternating import Alternating, mean, of_levels, probabilities
from fada_jax.methods.interface import States, TrainingSpec
from fada_jax.models import Outputs, compute_dtype
from fada_jax.ranges import NonNegative
from fada_jax.training.alternation import Losses, Networks, View
from fada_jax.training.states import create_patch_discriminator

Gan = Literal["bce", "ls"]
# By classifier: of the main one, and of the auxiliary one on layer3.
# Pixels each way that a patch discriminator needs.
PATCH = 32
DISCRIMINATORS = ("patch_discriminator", "auxiliary_patch_discriminator")
SOURCE, TARGET = 0.0, 1.0


def domain_loss(answers: jax.Array, domain: float, gan: Gan = "bce") -> jax.Array:
    """Loss of each answer of a discriminator, float32, where it should have said ``domain``.

    Args:
      answers: logits.
      domain: ``SOURCE`` or ``TARGET``.
      gan: 'bce' is the binary cross entropy of their sigmoid, 'ls' their squared distance (LS-GAN).
    """
    answers = answers.astype(jnp.float32)
    return jnp.square(answers - domain) if gan == "ls" else jax.nn.softplus(answers) - domain * answers


def patch_discriminator(rng: jax.Array, spec: TrainingSpec, channels: int) -> Any:
    """The state of a fresh one of maps of so many channels."""
    dtype = compute_dtype(spec.model.dtype)
    return create_patch_discriminator(channels, spec.discriminator_optimizer, rng, width=spec.patch_width, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class AdaptSegNet(Alternating):
    """``model.heads`` 'one' is the single level, 'levels' the multi-level form.

    Attributes:
      auxiliary_seg: weight of L_seg of the auxiliary classifier.
      auxiliary_adv: weight of its L_adv, as a share of ``lambda_adv``.
      gan: 'bce', or 'ls' for the LS-GAN form, whose lambda is 0.01 in the release.
    """

    auxiliary_seg: NonNegative = 0.1
    auxiliary_adv: NonNegative = 0.2
    gan: Gan = "bce"
    heads: ClassVar[tuple[str, ...]] = ("one", "levels")
    least_size: ClassVar[int] = PATCH

    def channels(self, spec: TrainingSpec, outputs: Outputs) -> int:
        """Of what a discriminator reads."""
        del outputs
        return spec.model.num_classes

    def answers(self, networks: Networks, view: View) -> list[jax.Array]:
        """What the discriminator of each classifier says of its prediction at the size of the image."""
        return [
            networks[name](self.read(probabilities(logits, view.size, self.temperature)))
            for name, logits in zip(DISCRIMINATORS, view.outputs.logits, strict=False)
        ]

    def read(self, p: jax.Array) -> jax.Array:
        """What a discriminator reads of class probabilities [N, H, W, K]."""
        return p

    def networks(self, rng: jax.Array, spec: TrainingSpec, outputs: Outputs) -> States:
        names = DISCRIMINATORS[: len(outputs.logits)]
        channels = self.channels(spec, outputs)
        keys = jax.random.split(rng, len(names))
        return {name: patch_discriminator(key, spec, channels) for name, key in zip(names, keys, strict=True)}

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        answers, domain = self.answers(networks, view), SOURCE if view.is_source else TARGET
        # A half, since a discriminator has two domains.
        told = (mean(domain_loss(answer, domain, self.gan)) for answer in answers)
        loss_d = 0.5 * view.share * sum(told, jnp.float32(0))
        if view.labels is not None:
            loss_seg = self.segmentation(view, view.labels, spec, (1.0, self.auxiliary_seg))
            return Losses(loss_seg, loss_d, {"loss_seg": loss_seg, "loss_d": loss_d})
        towards_source = [mean(domain_loss(answer, SOURCE, self.gan)) for answer in answers]
        loss_adv = view.share * of_levels(towards_source, self.auxiliary_adv)
        return Losses(self.lambda_adv * loss_adv, loss_d, {"loss_adv": loss_adv, "loss_d": loss_d})
