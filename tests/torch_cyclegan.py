"""CycleGAN's networks and iteration in PyTorch, written from their description alone; the gated stage of CyCADA, too.

The yardstick of ``test_translation.py``; it shares no code with ``fada_jax``. Every convolution before an instance norm
has a bias, as the release's have.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_systems import SOURCE, TARGET, System, Terms, View
from torch_systems_cells import two_class

Draws = tuple[Sequence[bool], Sequence[int]]


class Block(nn.Module):
    """Residual block with reflection padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for activation in (True, False):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)]
            layers += [nn.ReLU()] if activation else []
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def generator(width: int, blocks: int) -> nn.Sequential:
    """c7s1-w, d2w, d4w, R4w ..., u2w, uw, c7s1-3."""
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
    for channels in (2 * width, 4 * width):
        down = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        layers += [down, nn.InstanceNorm2d(channels), nn.ReLU()]
    layers += [Block(4 * width) for _ in range(blocks)]
    for channels in (2 * width, width):
        up = nn.ConvTranspose2d(2 * channels, channels, 3, stride=2, padding=1, output_padding=1)
        layers += [up, nn.InstanceNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


def discriminator(width: int) -> nn.Sequential:
    """C64-C128-C256-C512 and a last convolution to one channel."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for channels, stride in ((2 * width, 2), (4 * width, 2), (8 * width, 1)):
        conv = nn.Conv2d(channels // 2, channels, 4, stride=stride, padding=1)
        layers += [conv, nn.InstanceNorm2d(channels), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


class Pool:
    """Keeps translated images, and gives back old ones for half of the new ones once it is full."""

    def __init__(self, size: int) -> None:
        self.size, self.images = size, []

    def query(self, images: Tensor, draws: Draws) -> Tensor:
        given = []
        for image, exchange, place in zip(images, *draws, strict=True):
            if len(self.images) < self.size:
                self.images.append(image.clone())
                given.append(image)
            elif exchange:
                given.append(self.images[place])
                self.images[place] = image.clone()
            else:
                given.append(image)
        return torch.stack(given)


@dataclasses.dataclass
class CycleGan:
    """Both translators, both discriminators, their optimizers and pools.

    A is the source, B the target; ``to_b`` makes B of A. ``segment`` gives logits at the size of an image, and its
    weights stay.
    """

    to_b: nn.Module
    to_a: nn.Module
    of_a: nn.Module
    of_b: nn.Module
    pools: tuple[Pool, Pool]
    rate: float = 2e-4
    cycle: float = 10.0
    identity: float = 0.0
    semantic: float = 0.0
    segment: nn.Module | None = None

    def __post_init__(self) -> None:
        betas = (0.5, 0.999)
        both = itertools.chain(self.to_b.parameters(), self.to_a.parameters())
        self.optimizer_g = torch.optim.Adam(both, lr=self.rate, betas=betas)
        both = itertools.chain(self.of_a.parameters(), self.of_b.parameters())
        self.optimizer_d = torch.optim.Adam(both, lr=self.rate, betas=betas)

    def set_rate(self, rate: float) -> None:
        for optimizer in (self.optimizer_g, self.optimizer_d):
            optimizer.param_groups[0]["lr"] = rate

    def step(self, a: Tensor, b: Tensor, draws_a: Draws, draws_b: Draws) -> dict[str, float]:
        """One iteration on images from -1 to 1; draws are those of the pools of fake A and of fake B."""
        fake_b, fake_a = self.to_b(a), self.to_a(b)
        back_a, back_b = self.to_a(fake_b), self.to_b(fake_a)
        for d in (self.of_a, self.of_b):
            d.requires_grad_(False)
        self.optimizer_g.zero_grad()
        answers = self.of_b(fake_b), self.of_a(fake_a)
        losses = {"loss_adv": sum(F.mse_loss(x, torch.ones_like(x)) for x in answers)}
        losses["loss_cycle"] = F.l1_loss(back_a, a) + F.l1_loss(back_b, b)
        total = losses["loss_adv"] + self.cycle * losses["loss_cycle"]
        if self.identity:
            losses["loss_identity"] = F.l1_loss(self.to_b(b), b) + F.l1_loss(self.to_a(a), a)
            total = total + self.cycle * self.identity * losses["loss_identity"]
        if self.semantic:
            losses["loss_semantic"] = self.semantic_loss(a, fake_b) + self.semantic_loss(b, fake_a)
            total = total + self.semantic * losses["loss_semantic"]
        total.backward()
        self.optimizer_g.step()
        for d in (self.of_a, self.of_b):
            d.requires_grad_(True)
        self.optimizer_d.zero_grad()
        shown_b = self.pools[1].query(fake_b.detach(), draws_b)
        shown_a = self.pools[0].query(fake_a.detach(), draws_a)
        losses["loss_d"] = self.d_loss(self.of_b, b, shown_b) + self.d_loss(self.of_a, a, shown_a)
        losses["loss_d"].backward()
        self.optimizer_d.step()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def d_loss(self, d: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        on_real, on_fake = d(real), d(fake)
        return 0.5 * (F.mse_loss(on_real, torch.ones_like(on_real)) + F.mse_loss(on_fake, torch.zeros_like(on_fake)))

    def semantic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        assert self.segment is not None
        with torch.no_grad():
            labels = self.segment(real).argmax(1)
        return F.cross_entropy(self.segment(fake), labels)


class Cycada(System):
    """The feature-level stage while its gate is open: D reads each cell's scores, or the features before them."""

    def __init__(self, *arguments: object, reads: str = "scores") -> None:
        super().__init__(*arguments)
        self.reads = reads

    def answers(self, view: View) -> Tensor:
        read = view.features
        if self.reads == "scores":
            read = self.generator.c(view.features)
            read = read if view.features.requires_grad else read.detach()
        return self.discriminators[0](read)

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        adversarial = two_class(self.answers(target), SOURCE).mean()
        return {**self.segmentation(source, labels), "adv0": (self.options.lambda_adv, adversarial)}

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        return {
            "d0_source": (0.5, two_class(self.answers(source), SOURCE).mean()),
            "d0_target": (0.5, two_class(self.answers(target), TARGET).mean()),
        }
