"""The released networks, losses and alternating iteration of FADA in PyTorch, written from their description.

It is the yardstick of the parity tests and shares no code with ``fada_jax``. State dicts have the released keys. All of
it runs in float32 or, after ``.double()``, in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = 255


class FrozenBatchNorm(nn.Module):
    """Constants only, no epsilon."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * self.running_var.rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)


class Residual(nn.Module):
    """Bottleneck with the stride on the 3x3, or basic block of two 3x3."""

    def __init__(
        self, kind: str, inputs: int, width: int, stride: int, dilation: int, norm: type[nn.Module], first: bool
    ) -> None:
        super().__init__()
        self.convs = 3 if kind == "bottleneck" else 2
        outputs = width * (4 if kind == "bottleneck" else 1)
        if kind == "bottleneck":
            self.conv1, self.bn1 = _conv(inputs, width, 1), norm(width)
            self.conv2, self.bn2 = _conv(width, width, 3, stride, dilation), norm(width)
            self.conv3, self.bn3 = _conv(width, outputs, 1), norm(outputs)
        else:
            self.conv1, self.bn1 = _conv(inputs, width, 3, stride, dilation), norm(width)
            self.conv2, self.bn2 = _conv(width, width, 3, 1, dilation), norm(width)
        self.downsample = None
        if first and (stride > 1 or inputs != outputs):
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.convs == 3:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNetBody(nn.Module):
    """torchvision's ResNet without its head; the strides of layer3 and layer4 are replaced by dilation."""

    def __init__(
        self, kind: str, sizes: Sequence[int], widths: Sequence[int], stem: int, norm: type[nn.Module]
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), norm(stem)
        inputs = stem
        # (stride, dilation of the first block, dilation of the others) of each stage.
        plan = ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4))
        for stage, (stride, first, rest) in enumerate(plan):
            blocks = []
            for i in range(sizes[stage]):
                step, dilation = (stride, first) if i == 0 else (1, rest)
                blocks.append(Residual(kind, inputs, widths[stage], step, dilation, norm, i == 0))
                inputs = widths[stage] * (4 if kind == "bottleneck" else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = inputs

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def vgg_body(widths: Sequence[int]) -> nn.Sequential:
    """VGG-16 ``features`` without pool4 and pool5, conv5 dilated by 2, then fc6 and fc7 dilated by 4."""
    modules: list[nn.Module] = []
    inputs = 3
    for block, (count, pool) in enumerate(((2, True), (2, True), (3, True), (3, False), (3, False))):
        for _ in range(count):
            modules += [_conv(inputs, widths[block], 3, dilation=2 if block == 4 else 1, bias=True), nn.ReLU()]
            inputs = widths[block]
        if pool:
            modules.append(nn.MaxPool2d(2, 2))
    for _ in ("fc6", "fc7"):
        modules += [_conv(inputs, widths[5], 3, dilation=4, bias=True), nn.ReLU()]
        inputs = widths[5]
    return nn.Sequential(*modules)


class FeatureExtractor(nn.Module):
    """F."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


class Classifier(nn.Module):
    """C: ASPP of DeepLabV2."""

    def __init__(self, channels: int, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(_conv(channels, num_classes, 3, dilation=r, bias=True) for r in rates)
        for conv in self.conv2d_list:
            nn.init.normal_(conv.weight, 0.0, 0.01)

    def forward(self, features: Tensor) -> Tensor:
        return sum(conv(features) for conv in self.conv2d_list)


class PixelDiscriminator(nn.Module):
    """D: ``half`` source channels, then ``half`` target channels."""

    def __init__(self, channels: int, half: int, widths: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        self.D = nn.Sequential(
            _conv(channels, widths[0], 3, bias=True),
            nn.LeakyReLU(0.2),
            _conv(widths[0], widths[1], 3, bias=True),
            nn.LeakyReLU(0.2),
        )
        self.cls1 = _conv(widths[1], half, 3, bias=True)
        self.cls2 = _conv(widths[1], half, 3, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        y = self.D(features)
        return torch.cat((self.cls1(y), self.cls2(y)), dim=1)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def segmentation_loss(z: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean cross entropy over labelled pixels; 0 without any."""
    total = F.cross_entropy(z / temperature, labels.long(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def encoding(z: Tensor, kind: str, temperature: float, clip: float, threshold: float) -> Tensor:
    """Class knowledge a, [N, K, H, W] ([N, 1, H, W] when binary)."""
    with torch.no_grad():
        p = F.softmax(z / temperature, dim=1)
        if kind == "binary":
            return torch.ones_like(p[:, :1])
        if kind == "soft":
            return p.clamp(max=clip)
        confidence, winner = p.max(dim=1)
        one_hot = F.one_hot(winner, p.shape[1]).permute(0, 3, 1, 2).to(p.dtype)
        return one_hot * (confidence >= threshold)[:, None]


def encoding_loss(d_logits: Tensor, a: Tensor, target_half: bool) -> Tensor:
    """Cross entropy against [a; 0] or [0; a], averaged over the pixels that have knowledge."""
    nothing = torch.zeros_like(a)
    full = torch.cat((nothing, a) if target_half else (a, nothing), dim=1)
    per_pixel = -(full * F.log_softmax(d_logits, dim=1)).sum(dim=1)
    return per_pixel.sum() / (a.sum(dim=1) > 0).sum().clamp(min=1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Released settings of the adversarial stage; ``steps`` is the length of the poly decay."""

    lr: float = 2.5e-4
    lr_d: float = 1e-4
    steps: int = 62_500
    power: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 1.8
    kind: str = "soft"
    clip: float = 0.9
    threshold: float = 0.9
    lambda_adv: float = 0.001


class Training:
    """The three networks with their optimizers and the number of finished iterations."""

    def __init__(self, f: nn.Module, c: nn.Module, d: nn.Module | None, settings: Settings) -> None:
        self.f, self.c, self.d, self.settings, self.iteration = f, c, d, settings, 0
        sgd = {"momentum": 0.9, "weight_decay": settings.weight_decay}
        self.optimizer_fea = torch.optim.SGD(f.parameters(), lr=settings.lr, **sgd)
        self.optimizer_cls = torch.optim.SGD(c.parameters(), lr=settings.lr * 10, **sgd)
        if d is not None:
            self.optimizer_D = torch.optim.Adam(d.parameters(), lr=settings.lr_d, betas=(0.9, 0.99))

    def optimizers(self) -> Iterator[tuple[torch.optim.Optimizer, float]]:
        """Optimizers with their base rates."""
        yield self.optimizer_fea, self.settings.lr
        yield self.optimizer_cls, self.settings.lr * 10
        if self.d is not None:
            yield self.optimizer_D, self.settings.lr_d

    def _begin(self) -> None:
        decay = (1 - self.iteration / self.settings.steps) ** self.settings.power
        for optimizer, rate in self.optimizers():
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate * decay
        self.iteration += 1

    def supervised(self, x: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, float]:
        """One step of F and C on labels."""
        self._begin()
        loss = segmentation_loss(upsample(self.c(self.f(x)), labels.shape[1:]), labels, temperature)
        loss.backward()
        self.optimizer_fea.step()
        self.optimizer_cls.step()
        return {"loss_seg": loss.item()}

    def adversarial(self, x_s: Tensor, labels: Tensor, x_t: Tensor) -> dict[str, float]:
        """One alternating iteration: F and C against a constant D, then D on the features from before that step."""
        s = self.settings
        self._begin()
        f_s = self.f(x_s)
        z_s = upsample(self.c(f_s), labels.shape[1:])
        f_t = self.f(x_t)
        z_t = upsample(self.c(f_t), x_t.shape[2:])
        knowledge = (s.kind, s.temperature, s.clip, s.threshold)
        a_s, a_t = encoding(z_s, *knowledge), encoding(z_t, *knowledge)
        loss_seg = segmentation_loss(z_s, labels, s.temperature)
        loss_adv = encoding_loss(upsample(self.d(f_t), x_t.shape[2:]), a_t, target_half=False)
        (loss_seg + s.lambda_adv * loss_adv).backward()
        self.optimizer_fea.step()
        self.optimizer_cls.step()
        # What L_adv left on D is thrown away.
        self.optimizer_D.zero_grad()
        d_s = upsample(self.d(f_s.detach()), x_s.shape[2:])
        d_t = upsample(self.d(f_t.detach()), x_t.shape[2:])
        loss_d = 0.5 * encoding_loss(d_s, a_s, target_half=False) + 0.5 * encoding_loss(d_t, a_t, target_half=True)
        loss_d.backward()
        self.optimizer_D.step()
        return {"loss_seg": loss_seg.item(), "loss_adv": loss_adv.item(), "loss_d": loss_d.item()}


def randomise(
    f: FeatureExtractor, c: Classifier, seed: int, image: Tensor, gain: float, residual: tuple[float, float]
) -> None:
    """Weights with the statistics of a trained network.

    Channels get gains of up to ``exp(gain)``, which the normalisation after them undoes: running variances are far from
    1, as in ImageNet networks, while activations stay near 1. ``residual`` is the range of the scale at the end of a
    residual branch. The classifier is scaled to logits that are sure at some pixels and unsure at others.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: Sequence[int], low: float, high: float) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def calibrate(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0]
        norm.running_mean.copy_(x.mean((0, 2, 3)) + 0.1 * x.std((0, 2, 3)) * uniform(norm.bias.shape, -1, 1))
        norm.running_var.copy_(x.var((0, 2, 3)) * uniform(norm.bias.shape, 0.7, 1.4) + 1e-6)

    hooks = []
    with torch.no_grad():
        ends = [m.bn3 if m.convs == 3 else m.bn2 for m in f.modules() if isinstance(m, Residual)]
        has_norm = any(isinstance(m, FrozenBatchNorm | nn.BatchNorm2d) for m in f.modules())
        for module in f.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    module.bias.copy_(uniform(module.bias.shape, -0.1, 0.1))
                if has_norm:
                    module.weight.mul_(torch.exp(uniform((module.out_channels, 1, 1, 1), -gain, gain)))
            elif isinstance(module, FrozenBatchNorm | nn.BatchNorm2d):
                module.weight.copy_(uniform(module.bias.shape, *(residual if module in ends else (0.5, 1.5))))
                module.bias.copy_(uniform(module.bias.shape, -0.3, 0.3))
                hooks.append(module.register_forward_pre_hook(calibrate))
        training = f.training
        f.eval()
        features = f(image)
        for hook in hooks:
            hook.remove()
        f.train(training)
        for conv in c.conv2d_list:
            nn.init.normal_(conv.weight, 0.0, 0.01, generator=generator)
            conv.bias.copy_(uniform(conv.bias.shape, -0.1, 0.1))
        scale = 6.0 / c(features).std()
        for conv in c.conv2d_list:
            conv.weight.mul_(scale)
            conv.bias.mul_(scale)
