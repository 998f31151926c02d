"""Narrow PyTorch networks for ``test_systems.py``, and their tensors beside those of our states."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import parity
import torch
import torch.nn.functional as F
import torch_reference as reference
from torch import Tensor, nn

from fada_jax.interop import entries

WIDTHS = (4, 8, 16, 32)
SPEC = dataclasses.replace(parity.NARROW, stage_sizes=(1, 1, 1, 1))


class Generator(nn.Module):
    """The network of the parity tests, with a second head on layer4 or on layer3 if asked for."""

    def __init__(
        self, f: reference.FeatureExtractor, c: reference.Classifier, second: nn.Module | None, at: int
    ) -> None:
        super().__init__()
        self.f, self.c, self.second, self.at = f, c, second, at
        # What a system trains together with it.
        self.patch_head: nn.Module | None = None

    @property
    def heads(self) -> list[nn.Module]:
        return [self.c] if self.second is None else [self.c, self.second]

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        body = self.f.backbone
        x = F.max_pool2d(F.relu(body.bn1(body.conv1(x))), 3, stride=2, padding=1)
        third = body.layer3(body.layer2(body.layer1(x)))
        features = body.layer4(third)
        logits = [self.c(features)]
        if self.second is not None:
            logits.append(self.second(features if self.at == 4 else third))
        return logits, features


def patch_discriminator(channels: int, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Five 4x4 convolutions, stride 2, padding 1, leaky ReLU 0.2 between.

    It has an opinion: with one that knows nothing, what source and target ask of it cancels but for rounding.
    """
    sizes = [channels, *widths, 1]
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        modules += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    net = nn.Sequential(*modules[:-1])
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2.0)
        net[-1].bias.add_(1.5)
    return net


def pointwise(channels: int, widths: Sequence[int], outputs: int, slope: float = 0.0) -> nn.Sequential:
    """1x1 convolutions, (leaky) ReLU between; with an opinion, as ``patch_discriminator``."""
    modules: list[nn.Module] = []
    for inputs, width in itertools.pairwise([channels, *widths, outputs]):
        modules += [nn.Conv2d(inputs, width, 1), nn.LeakyReLU(slope)]
    net = nn.Sequential(*modules[:-1])
    with torch.no_grad():
        net[-1].bias[0] += 1.5
    return net


def generator(at: int = 0, seed: int = 0) -> Generator:
    """``at``: the stage that a second head reads, 3 or 4; 0: none. Logits are sure at some pixels, unsure at others."""
    f, c, _ = parity.networks(SPEC, seed=seed)
    with torch.no_grad():
        # Surer logits at T = 1 make the gradient of the self-information a matter of the forward pass's rounding.
        for weight in c.parameters():
            weight.mul_(0.5)
    net = Generator(f, c, None, at)
    if at:
        torch.manual_seed(seed + 1)
        channels = (4 * SPEC.widths[at - 1],)[0]
        net.second = reference.Classifier(channels, SPEC.num_classes)
        with torch.no_grad():
            logits = net(parity.to_tensor(parity.picture((2, 73, 89), seed), torch.float32))[0]
            for weight in net.second.parameters():
                weight.mul_(1.0 / logits[1].std())
    return net


def conv_names(params: Mapping) -> list[str]:
    """Convolutions of a plain chain in their order: ``conv0``, ``conv1``, ..., ``head``."""
    return sorted(params, key=lambda name: (not name.startswith("conv"), name))


def chain_from_torch(net: nn.Module, params: Mapping, dtype: str) -> dict:
    """Our parameters of a chain of convolutions, in the shapes of ``params``."""
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    found: dict = {}
    for name, conv in zip(conv_names(params), convs, strict=True):
        found[name] = {
            "kernel": entries.from_torch(conv.weight.detach().numpy()).astype(dtype),
            "bias": entries.from_torch(conv.bias.detach().numpy()).astype(dtype),
        }
        for key, value in found[name].items():
            assert value.shape == params[name][key].shape, (name, key)
    return found


def chain_to_torch(params: Mapping) -> list[np.ndarray]:
    """Tensors of a chain of convolutions in PyTorch's layout and in the order of ``parameters()``."""
    return [entries.to_torch(params[name][key]) for name in conv_names(params) for key in ("kernel", "bias")]


def tensors(nets: Mapping[str, nn.Module], gradient: bool = False) -> dict[str, list[np.ndarray]]:
    """All parameters of each network, or their gradients (0 where none came)."""
    return {
        name: [
            (torch.zeros_like(w) if gradient and w.grad is None else w.grad if gradient else w).detach().numpy().copy()
            for w in net.parameters()
        ]
        for name, net in nets.items()
    }


def parts(net: Generator, discriminators: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """Networks by the names that errors are reported under."""
    found: dict[str, Any] = {"F": net.f, "C": net.c}
    if net.second is not None:
        found["C2"] = net.second
    if net.patch_head is not None:
        found["H"] = net.patch_head
    return {**found, **{f"D{i}": d for i, d in enumerate(discriminators)}}


def double(modules: Any) -> Any:
    """The same in float64."""
    return copy.deepcopy(modules).double()
