"""Losses and iterations of systems beside FADA in PyTorch, written from their description alone.

The yardstick of ``test_systems.py``; it shares no code with ``fada_jax``. A generator is any module that returns
``(logits, features)`` of a normalised image at feature resolution: ``logits`` is a list, the main head first, then an
auxiliary or second one. What ends on pixels is upsampled bilinearly with corners aligned. Domain labels are 0 for
source and 1 for target. FCNs in the wild, Cross-City and AdaptPatch are in ``torch_systems_cells.py``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = 255
SOURCE, TARGET = 0.0, 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of all these systems, as released.

    ``temperature`` divides logits in every softmax and in the segmentation loss. ``auxiliary_adv`` is the share of
    ``lambda_adv`` that the auxiliary level has.
    """

    temperature: float = 1.0
    lambda_adv: float = 0.001
    auxiliary_seg: float = 0.1
    auxiliary_adv: float = 0.2
    gan: str = "bce"  # Or "ls": mean squared error, released with lambda_adv 0.01.
    segmentation: str = "cross_entropy"  # Or "focal".
    gamma: float = 2.0
    lambda_weight: float = 0.01
    lambda_local: float = 40.0
    epsilon: float = 0.4
    warm_up: float = 0.05


class View(NamedTuple):
    """What the generator says of a batch: logits upsampled to the images, and features as they are."""

    logits: list[Tensor]
    features: Tensor
    size: tuple[int, ...]

    def detach(self) -> View:
        return View([z.detach() for z in self.logits], self.features.detach(), self.size)


# Losses by name with the weights that they have in the total.
Terms = dict[str, tuple[float, Tensor]]


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def look(generator: nn.Module, x: Tensor) -> View:
    """One forward pass."""
    logits, features = generator(x)
    size = tuple(x.shape[2:])
    return View([upsample(z, size) for z in logits], features, size)


def segmentation_loss(z: Tensor, labels: Tensor, options: Options) -> Tensor:
    """Mean over labelled pixels of ``-log p``, or of the focal ``-(1 - p)^gamma log p``; 0 without any."""
    log_p = F.log_softmax(z / options.temperature, dim=1)
    labelled = labels != IGNORE
    index = torch.where(labelled, labels.long(), 0)
    log_p = log_p.gather(1, index[:, None])[:, 0]
    loss = -log_p
    if options.segmentation == "focal":
        loss = loss * (1 - log_p.exp()) ** options.gamma
    return torch.where(labelled, loss, 0).sum() / labelled.sum().clamp(min=1)


def probabilities(z: Tensor, options: Options) -> Tensor:
    return F.softmax(z / options.temperature, dim=1)


def self_information(p: Tensor) -> Tensor:
    """``-p log2(p + 1e-30) / log2 K`` of each class; it sums to the entropy, 0 to 1."""
    return -p * torch.log2(p + 1e-30) / math.log2(p.shape[1])


def domain_loss(d_logits: Tensor, domain: float, gan: str) -> Tensor:
    """How far D's answers are from ``domain``, mean over all of them."""
    wanted = torch.full_like(d_logits, domain)
    if gan == "ls":
        return ((d_logits - wanted) ** 2).mean()
    return F.binary_cross_entropy_with_logits(d_logits, wanted)


class System:
    """The source's segmentation loss of one or two heads; a subclass adds what it learns from the target.

    ``levels`` heads are used, each weighted as the options say.
    """

    def __init__(
        self, generator: nn.Module, discriminators: Sequence[nn.Module], options: Options, levels: int = 1
    ) -> None:
        self.generator, self.discriminators = generator, nn.ModuleList(discriminators)
        self.options, self.levels = options, levels

    def share(self, level: int, auxiliary: float) -> float:
        return 1.0 if level == 0 else auxiliary

    def segmentation(self, source: View, labels: Tensor) -> Terms:
        return {
            f"seg{level}": (
                self.share(level, self.options.auxiliary_seg),
                segmentation_loss(upsample(source.logits[level], labels.shape[1:]), labels, self.options),
            )
            for level in range(self.levels)
        }

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        """All losses of G, D being constant."""
        raise NotImplementedError

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        """All losses of the discriminators on detached predictions."""
        raise NotImplementedError


class MinEnt(System):
    """ADVENT's direct form: the target's normalised entropy."""

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        terms = self.segmentation(source, labels)
        for level in range(self.levels):
            weight = self.options.lambda_adv * self.share(level, self.options.auxiliary_adv)
            entropy = self_information(probabilities(target.logits[level], self.options)).sum(1)
            terms[f"entropy{level}"] = (weight, entropy.mean())
        return terms

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        return {}


class AdaptSegNet(System):
    """A discriminator a level reads the softmax of the upsampled logits."""

    def reads(self, view: View, level: int) -> Tensor:
        return probabilities(view.logits[level], self.options)

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        terms = self.segmentation(source, labels)
        for level in range(self.levels):
            weight = self.options.lambda_adv * self.share(level, self.options.auxiliary_adv)
            answer = self.discriminators[level](self.reads(target, level))
            terms[f"adv{level}"] = (weight, domain_loss(answer, SOURCE, self.options.gan))
        return terms

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        return {
            f"d{level}_{name}": (
                0.5,
                domain_loss(self.discriminators[level](self.reads(view, level)), domain, self.options.gan),
            )
            for level in range(self.levels)
            for name, view, domain in (("source", source, SOURCE), ("target", target, TARGET))
        }


class FeatureSpace(AdaptSegNet):
    """The discriminator reads the features before the classifier, upsampled to the image."""

    def reads(self, view: View, level: int) -> Tensor:
        return upsample(view.features, view.size)


class Advent(AdaptSegNet):
    """A discriminator a level reads the weighted self-information."""

    def reads(self, view: View, level: int) -> Tensor:
        return self_information(super().reads(view, level))


class Clan(System):
    """Two classifiers whose agreement weights the adversarial loss of each pixel.

    The generator has ``heads``: the modules of both classifiers.
    """

    def answer(self, view: View) -> Tensor:
        """D's answer at the size of the image."""
        p = probabilities(view.logits[0] + view.logits[1], self.options)
        return upsample(self.discriminators[0](p), view.size)

    def target_loss(self, target: View, domain: float, progress: float) -> Tensor:
        """Plain during the warm-up; then more where the two classifiers disagree."""
        answer = self.answer(target)
        loss = F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain), reduction="none")
        if progress < self.options.warm_up:
            return loss.mean()
        p1, p2 = (probabilities(z, self.options) for z in target.logits)
        cosine = (p1 * p2).sum(1) / (p1.norm(dim=1) * p2.norm(dim=1))
        return (self.options.epsilon * loss + self.options.lambda_local * loss * (1 - cosine)[:, None]).mean()

    def weight_discrepancy(self) -> Tensor:
        """``cos(w1, w2) + 1`` over all parameters of each classifier in one vector."""
        w1, w2 = (torch.cat([w.flatten() for w in head.parameters()]) for head in self.generator.heads)
        return (w1 * w2).sum() / (w1.norm() * w2.norm()) + 1

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        options, damping = self.options, 1 - progress
        terms: Terms = {
            f"seg{i}": (1.0, segmentation_loss(upsample(source.logits[i], labels.shape[1:]), labels, options))
            for i in (0, 1)
        }
        terms["adv0"] = (options.lambda_adv * damping, self.target_loss(target, SOURCE, progress))
        terms["weights"] = (options.lambda_weight * 2 * damping, self.weight_discrepancy())
        return terms

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        return {
            "d0_source": (1.0, domain_loss(self.answer(source), SOURCE, "bce")),
            "d0_target": (1.0, self.target_loss(target, TARGET, progress)),
        }


def total(terms: Mapping[str, tuple[float, Tensor]]) -> Tensor:
    return sum(weight * loss for weight, loss in terms.values())


class Schedule(NamedTuple):
    """Poly decay of all rates over ``steps``."""

    steps: int
    power: float = 0.9

    def factor(self, iteration: int) -> float:
        return (1 - iteration / self.steps) ** self.power


class Training:
    """A system with the optimizers of G and of the discriminators, and the number of finished iterations.

    Rates decay from those that the optimizers come with.
    """

    def __init__(
        self,
        system: System,
        generator_optimizers: Sequence[torch.optim.Optimizer],
        discriminator_optimizers: Sequence[torch.optim.Optimizer],
        schedule: Schedule,
    ) -> None:
        self.system, self.schedule, self.iteration = system, schedule, 0
        self.generator_optimizers, self.discriminator_optimizers = generator_optimizers, discriminator_optimizers
        self.rates = [(group, group["lr"]) for o in self.optimizers() for group in o.param_groups]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [*self.generator_optimizers, *self.discriminator_optimizers]

    def gradients(self, x_s: Tensor, labels: Tensor, x_t: Tensor, progress: float) -> dict[str, tuple[float, float]]:
        """Leaves the gradients of one iteration on all networks, those of the discriminators of their own losses.

        Everything is computed with the weights from before the iteration, the source's forward pass first. Returns
        each loss beside its weight.
        """
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        source = look(self.system.generator, x_s)
        target = look(self.system.generator, x_t)
        self.system.discriminators.requires_grad_(False)
        terms = self.system.generator_terms(source, labels, target, progress)
        total(terms).backward()
        self.system.discriminators.requires_grad_(True)
        of_d = self.system.discriminator_terms(source.detach(), target.detach(), progress)
        if of_d:
            total(of_d).backward()
        return {name: (weight, float(loss.detach())) for name, (weight, loss) in {**terms, **of_d}.items()}

    def step(self, x_s: Tensor, labels: Tensor, x_t: Tensor, progress: float) -> dict[str, tuple[float, float]]:
        """One iteration; returns each loss beside its weight."""
        for group, rate in self.rates:
            group["lr"] = rate * self.schedule.factor(self.iteration)
        losses = self.gradients(x_s, labels, x_t, progress)
        for optimizer in self.optimizers():
            optimizer.step()
        self.iteration += 1
        return losses
