"""The networks and the optimizer of AdaptSegNet's lineage in PyTorch, written from their description.

AdaptSegNet, CLAN and ADVENT share a Caffe-style ResNet, heads called ``layer5`` and ``layer6``, batch norm with frozen
scale and bias but live statistics, patch discriminators, and an SGD whose list names parameters several times. Nothing
here shares code with ``fada_jax``. Sizes are narrow where a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATES = (6, 12, 18, 24)


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, affine=True)
    for parameter in norm.parameters():
        parameter.requires_grad = False
    return norm


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with the stride on the first 1x1."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, stride=stride, bias=False), _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = _norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), _norm(4 * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class Basic(nn.Module):
    """Two 3x3 with the stride on the first."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = _norm(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class Head(nn.Module):
    """ASPP; with ``branches`` the loop returns after so many of the convolutions, as AdaptSegNet's does after two."""

    def __init__(self, channels: int, num_classes: int, rates: Sequence[int] = RATES, branches: int = 0) -> None:
        super().__init__()
        self.branches = branches or len(rates)
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate, bias=True) for rate in rates
        )
        for conv in self.conv2d_list:
            conv.weight.data.normal_(0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2d_list[0](x)
        for i in range(1, self.branches):
            out = out + self.conv2d_list[i](x)
        return out


class DeepLab(nn.Module):
    """G.

    ``heads`` 'one': ``layer5`` on layer4. 'levels' (AdaptSegNet, ADVENT): ``layer5`` on layer3 is auxiliary, ``layer6``
    on layer4 is the main one. 'two' (CLAN): both on layer4.
    """

    def __init__(
        self,
        kind: str = "bottleneck",
        sizes: Sequence[int] = (3, 4, 23, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: int = 64,
        num_classes: int = 19,
        heads: str = "one",
        branches: int = 0,
        rates: Sequence[int] = RATES,
        strides: Sequence[int] = (1, 2, 1, 1),
        dilations: Sequence[int] = (1, 1, 2, 4),
    ) -> None:
        super().__init__()
        self.heads = heads
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), _norm(stem)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        block, growth = {"bottleneck": (Bottleneck, 4), "basic": (Basic, 1)}[kind]
        inputs, outputs = stem, []
        for i in range(4):
            blocks = []
            for number in range(sizes[i]):
                stride, downsample = strides[i] if number == 0 else 1, None
                if number == 0 and (stride != 1 or inputs != widths[i] * growth):
                    downsample = nn.Sequential(
                        nn.Conv2d(inputs, widths[i] * growth, 1, stride=stride, bias=False), _norm(widths[i] * growth)
                    )
                blocks.append(block(inputs, widths[i], stride, dilations[i], downsample))
                inputs = widths[i] * growth
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            outputs.append(inputs)
        self.layer5 = Head(outputs[2 if heads == "levels" else 3], num_classes, rates, branches)
        if heads != "one":
            self.layer6 = Head(outputs[3], num_classes, rates, branches)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of layer3 and layer4."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        middle = self.layer3(self.layer2(self.layer1(x)))
        return middle, self.layer4(middle)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle, last = self.features(x)
        if self.heads == "one":
            return self.layer5(last)
        return self.layer5(middle if self.heads == "levels" else last), self.layer6(last)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Trainable parameters of the backbone, each as often as there are modules around it."""
        for part in (self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4):
            for module in part.modules():
                yield from (parameter for parameter in module.parameters() if parameter.requires_grad)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the heads, each once."""
        yield from self.layer5.parameters()
        if self.heads != "one":
            yield from self.layer6.parameters()


class PatchDiscriminator(nn.Module):
    """D: five 4x4 convolutions of stride 2, one logit for each patch."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, 4, stride=2, padding=1)
        self.classifier = nn.Conv2d(8 * width, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(conv(x), 0.2)
        return self.classifier(x)


class RepeatingSGD:
    """SGD as PyTorch 0.4 steps through its list: parameters that it names again are stepped again.

    Today's ``torch.optim.SGD`` looks momentum up before its first step, where every mention then starts its own.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[nn.Parameter], float]], momentum: float, decay: float) -> None:
        self.groups, self.momentum, self.decay = groups, momentum, decay
        self.buffers: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of every mention; ``rate``: of a group with multiplier 1."""
        for parameters, multiplier in self.groups:
            for parameter in parameters:
                if parameter.grad is None:
                    continue
                direction = parameter.grad + self.decay * parameter
                buffer = self.buffers.setdefault(id(parameter), torch.zeros_like(parameter))
                buffer.mul_(self.momentum).add_(direction)
                parameter.sub_(rate * multiplier * buffer)


def rate(base: float, step: int, steps: int, power: float = 0.9, warmup: int = 0) -> float:
    """Learning rate of a step: CLAN's linear warm-up, then the poly decay by absolute step."""
    return base * step / warmup if step < warmup else base * (1 - step / steps) ** power


def randomise(net: DeepLab, images: Tensor, seed: int = 0) -> None:
    """Weights whose activations stay near 1, running statistics near those of ``images``, logits of several units."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: Sequence[int], low: float, high: float) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def calibrate(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        x, shape = inputs[0], norm.bias.shape
        norm.running_mean.copy_(x.mean((0, 2, 3)) + 0.1 * x.std((0, 2, 3)) * uniform(shape, -1, 1))
        norm.running_var.copy_(x.var((0, 2, 3)) * uniform(shape, 0.7, 1.4) + 1e-3)

    with torch.no_grad():
        hooks = []
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.bias.shape, 0.4, 1.0))
                module.bias.copy_(uniform(module.bias.shape, -0.3, 0.3))
                hooks.append(module.register_forward_pre_hook(calibrate))
        net.eval()(images)
        for hook in hooks:
            hook.remove()
        for head in (net.layer5, getattr(net, "layer6", None)):
            for conv in head.conv2d_list if head else ():
                conv.weight.mul_(0.3)
                conv.bias.copy_(uniform(conv.bias.shape, -0.1, 0.1))
