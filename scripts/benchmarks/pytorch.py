"""PyTorch's share of the benchmarks of the step and of inference: the same networks, iteration and views, tuned.

The modules are those of the parity tests. Here L_seg's backward comes before the target's forward, D sees the target's
features once for each loss that moves another network, batch norm is PyTorch's fused one, nothing waits for the device.
On GPUs: channels-last, autocast to bfloat16, TF32, torch.compile. On CPUs: PyTorch's own layout, which is faster there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fada_jax.models.resnet import RESNETS, WIDTHS
from fada_jax.preprocessing import IMAGENET
from fada_jax.scripts.benchmarks.timing import product_flops, resident_bytes, timed
from fada_jax.scripts.benchmarks.work import Work

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import torch_reference as reference


class FusedFrozenBatchNorm(reference.FrozenBatchNorm):
    """The same in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.0)


def networks(work: Work) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """F, C and D of ``work`` with random weights."""
    torch.manual_seed(0)
    if work.backbone == "vgg16":
        widths = (64, 128, 256, 512, 512, 1024)
        f, channels = reference.vgg_body(widths), widths[5]
    else:
        f = reference.ResNetBody(*RESNETS[work.backbone], WIDTHS, 64, FusedFrozenBatchNorm)
        channels = f.channels
    c = reference.Classifier(channels, work.classes)
    return f, c, reference.PixelDiscriminator(channels, work.classes)


def images(batch: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Random uint8 images [N, 3, H, W]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size[1], size[0]), generator=generator, dtype=torch.uint8).to(device)


def normalise(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    return (x.float() * IMAGENET.scale - mean) / std


def make_step(work: Work, device: torch.device, prepare: Callable[[Any], Any]) -> Callable[[], None]:
    """One adversarial iteration over random images."""
    s = reference.Settings()
    f, c, d = (prepare(network.to(device)) for network in networks(work))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=work.dtype == "bfloat16")
    training = reference.Training(f, c, d, s)
    source, target = images(work.batch, work.source, device), images(work.batch, work.target, device)
    labels = torch.randint(0, work.classes, (work.batch, work.source[1], work.source[0]), device=device)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    knowledge = (s.kind, s.temperature, s.clip, s.threshold)

    def maps(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = normalise(x).contiguous(memory_format=layout)
        with autocast:
            features = f(x)
            logits = c(features)
        logits = reference.upsample(logits.float(), x.shape[2:])
        return features, logits, reference.encoding(logits.detach(), *knowledge)

    def domain_loss(features: Tensor, a: Tensor, target_half: bool) -> Tensor:
        with autocast:
            d_logits = d(features)
        return reference.encoding_loss(reference.upsample(d_logits.float(), a.shape[2:]), a, target_half)

    def once() -> None:
        for optimizer, _ in training.optimizers():
            optimizer.zero_grad(set_to_none=True)
        f_s, z_s, a_s = maps(source)
        reference.segmentation_loss(z_s, labels, s.temperature).backward()
        f_s = f_s.detach()
        del z_s
        f_t, _, a_t = maps(target)
        d.requires_grad_(False)
        (s.lambda_adv * domain_loss(f_t, a_t, target_half=False)).backward()
        d.requires_grad_(True)
        (0.5 * domain_loss(f_s, a_s, target_half=False)).backward()
        (0.5 * domain_loss(f_t.detach(), a_t, target_half=True)).backward()
        for optimizer, _ in training.optimizers():
            optimizer.step()

    return once


def make_inference(work: Work, device: torch.device, prepare: Callable[[Any], Any]) -> Callable[[], None]:
    """Labels at the images' own size, over scales and flips."""
    f, c, _ = (prepare(network.to(device)) for network in networks(work))
    batch = images(work.batch, work.target, device)
    size = batch.shape[2:]
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=work.dtype == "bfloat16")

    @torch.inference_mode()
    def once() -> None:
        total: Any = 0.0
        x = normalise(batch)
        for scale in work.scales:
            scaled = reference.upsample(x, [int(n * scale) for n in size])
            for mirrored in (False, True) if work.flip else (False,):
                view = (scaled.flip(3) if mirrored else scaled).contiguous(memory_format=layout)
                with autocast:
                    logits = c(f(view))
                logits = logits.flip(3) if mirrored else logits
                total = total + F.softmax(reference.upsample(logits.float(), size), dim=1)
        total.argmax(dim=1)

    return once


def run(command: str, work: Work, warmup: int, repeats: int, cores: int) -> dict[str, Any]:
    """Times PyTorch in this process, as ``frameworks.run_jax`` times JAX."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accelerated = device.type == "cuda"
    if cores:
        torch.set_num_threads(cores)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True

    def prepare(network: torch.nn.Module) -> Any:
        if not accelerated:
            return network
        # PyTorch's annotations lack this form, which its documentation has.
        return torch.compile(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    def block_until_ready(_: Any) -> None:
        if accelerated:
            torch.cuda.synchronize()

    dtype = getattr(torch, work.dtype)
    product = product_flops(
        lambda n: torch.ones((n, n), dtype=dtype, device=device), lambda a: block_until_ready(a @ a), accelerated
    )
    began = time.perf_counter()
    call = (make_step if command == "step" else make_inference)(work, device, prepare)
    block_until_ready(call())
    compile_seconds = time.perf_counter() - began
    return {
        **timed(lambda: block_until_ready(call()), warmup, repeats),
        "compile_seconds": compile_seconds,
        "product_flops": product,
        "peak_bytes": torch.cuda.max_memory_allocated() if accelerated else resident_bytes(),
        "device": torch.cuda.get_device_name() if accelerated else "cpu",
        "version": f"torch {torch.__version__}",
    }
