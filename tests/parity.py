"""Measures our networks and training steps against ``torch_reference``: shared by the tests and the table in the docs.

The reference in float64 is the truth; beside our float32 error stands that of PyTorch's own float32 run.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_reference as reference

from fada_jax.evaluation import inference
from fada_jax.interop import torch_optimizers, torch_tables
from fada_jax.methods import DomainLabels, HardLabels, Method, SoftLabels
from fada_jax.models import Discriminator, ModelSpec, Segmenter, fold_batch_norm, resize_align_corners
from fada_jax.models.resnet import RESNETS, WIDTHS
from fada_jax.preprocessing import IMAGENET, normalise
from fada_jax.training import optimizers, steps
from fada_jax.training import states as train_states

RESNET101 = ModelSpec("resnet101", 19)
VGG16 = ModelSpec("vgg16", 19)
NARROW = ModelSpec("resnet50", 5, stage_sizes=(1, 2, 2, 2), widths=(8, 8, 16, 16), stem_width=8)
NARROW_BASIC = dataclasses.replace(NARROW, backbone="resnet18")
NARROW_LIVE = dataclasses.replace(NARROW, norm="live")
NARROW_VGG = ModelSpec("vgg16", 5, widths=(8, 8, 16, 16, 16, 24))
D_WIDTHS = (16, 8)

LOGITS, LOSS, GRADIENT, UPDATE, PROBABILITIES = 3e-6, 1e-6, 1e-5, 1e-3, 1e-5


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured quantity: our error and PyTorch's float32 error against PyTorch in float64, and our limit."""

    name: str
    ours: float
    torch32: float
    limit: float


def relative(value: Any, truth: Any) -> float:
    """``norm(value - truth) / norm(truth)`` over arrays or lists of arrays, in float64."""
    value, truth = (x if isinstance(x, list) else [x] for x in (value, truth))
    pairs = [(np.asarray(v, np.float64), np.asarray(t, np.float64)) for v, t in zip(value, truth, strict=True)]
    error = sum(np.sum((v - t) ** 2) for v, t in pairs)
    return float(np.sqrt(error / sum(np.sum(t**2) for _, t in pairs)))


def picture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth random uint8 images [N, H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (shape[0], shape[1] // 8 + 2, shape[2] // 8 + 2, 3))
    smooth = np.asarray(resize_align_corners(coarse, shape[1:3]))
    return np.clip(smooth + rng.normal(0, 20, (*shape, 3)), 0, 255).astype(np.uint8)


def label(shape: tuple[int, ...], num_classes: int, seed: int) -> np.ndarray:
    """Random blocks of labels, uint8 [N, H, W], a fifth of them ignored."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes, (shape[0], shape[1] // 4 + 1, shape[2] // 4 + 1))
    coarse[rng.random(coarse.shape) < 0.2] = reference.IGNORE
    return coarse.repeat(4, 1).repeat(4, 2)[:, : shape[1], : shape[2]].astype(np.uint8)


def to_tensor(images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normalised network input [N, 3, H, W] from uint8 images, in the reference's own arithmetic."""
    mean, std = (torch.tensor(v, dtype=dtype) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = torch.from_numpy(np.ascontiguousarray(images)).to(dtype) / 255
    return ((x - mean) / std).permute(0, 3, 1, 2).contiguous()


Networks = tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]


@functools.lru_cache(maxsize=2)
def _networks(spec: ModelSpec, half: int, d_widths: tuple[int, ...], seed: int) -> Networks:
    torch.manual_seed(seed)
    if spec.backbone == "vgg16":
        body = reference.vgg_body(spec.widths or (64, 128, 256, 512, 512, 1024))
        channels = spec.widths[5] if spec.widths else 1024
    else:
        kind, sizes = RESNETS[spec.backbone]
        norm = {"frozen": reference.FrozenBatchNorm, "live": torch.nn.BatchNorm2d}[spec.norm]
        widths = spec.widths or WIDTHS
        body = reference.ResNetBody(kind, spec.stage_sizes or sizes, widths, spec.stem_width, norm)
        channels = body.channels
    f, c = reference.FeatureExtractor(body), reference.Classifier(channels, spec.num_classes)
    d = reference.PixelDiscriminator(channels, half, d_widths)
    # Residual branches of a trained deep network are weak; strong ones would amplify rounding over 33 blocks.
    gain, residual = (1.0, (0.2, 0.7)) if spec.widths else (3.0, (0.05, 0.2))
    reference.randomise(f, c, seed, to_tensor(picture((2, 73, 89), seed), torch.float32), gain, residual)
    return f, c, d


def networks(spec: ModelSpec, half: int = 0, d_widths: tuple[int, ...] = D_WIDTHS, seed: int = 0) -> Networks:
    """The reference's F, C and D for ``spec`` in float32; ``half``: channels per domain, by default the classes."""
    return copy.deepcopy(_networks(spec, half or spec.num_classes, d_widths, seed))


def double(nets: Iterable[torch.nn.Module]) -> Networks:
    """The same networks in float64."""
    return tuple(copy.deepcopy(net).double() for net in nets)


def state_dict(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """Tensors of a torch module as fresh arrays."""
    return {key: value.detach().numpy().copy() for key, value in net.state_dict().items()}


def checkpoint(nets: Networks) -> dict[str, dict[str, np.ndarray]]:
    """The weight sections of a released checkpoint."""
    return dict(zip(("feature_extractor", "classifier", "model_D"), map(state_dict, nets), strict=True))


def generator_variables(nets: Networks, spec: ModelSpec) -> dict[str, Any]:
    """Our variables of G with the reference's weights."""
    params, batch_stats, _ = torch_tables.import_generator(checkpoint(nets), spec)
    params, batch_stats = jax.tree.map(lambda x: x.astype(spec.dtype), (params, batch_stats))
    folded = fold_batch_norm(batch_stats) if batch_stats and spec.norm == "frozen" else {}
    collections = {"batch_stats": batch_stats, "folded": folded}
    return {"params": params, **{name: value for name, value in collections.items() if value}}


def discriminator_params(nets: Networks, dtype: str = "float32") -> dict[str, Any]:
    """Our parameters of D with the reference's weights."""
    d = nets[2]
    widths = (d.D[0].out_channels, d.D[2].out_channels)
    shape = (2 * d.cls1.out_channels, d.D[0].in_channels, widths)
    return jax.tree.map(lambda x: x.astype(dtype), torch_tables.import_discriminator(checkpoint(nets), *shape)[0])


def nhwc(x: torch.Tensor) -> np.ndarray:
    """[N, C, H, W] tensor as an [N, H, W, C] array."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def measure_logits(spec: ModelSpec, size: tuple[int, int]) -> list[Row]:
    """Logits of G and of D, upsampled to the image, in evaluation mode."""
    nets = networks(spec, d_widths=(256, 128))
    images = picture((1, *size), 1)

    def run(f: Any, c: Any, d: Any, dtype: torch.dtype) -> list[np.ndarray]:
        with torch.no_grad():
            features = f.eval()(to_tensor(images, dtype))
            return [nhwc(reference.upsample(x, size)) for x in (c(features), d(features))]

    def forward(variables: Any, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, features = Segmenter(spec).apply(variables, normalise(images, IMAGENET))
        d_logits = Discriminator(2 * spec.num_classes).apply({"params": params}, features)
        return resize_align_corners(logits, size), resize_align_corners(d_logits, size)

    ours = jax.jit(forward)(generator_variables(nets, spec), discriminator_params(nets), images)
    truth, single = run(*double(nets), torch.float64), run(*nets, torch.float32)
    return [
        Row(f"{spec.backbone} logits of {name}", relative(o, t), relative(s, t), LOGITS)
        for name, o, s, t in zip(("G", "D"), ours, single, truth, strict=True)
    ]


def measure_multi_scale(spec: ModelSpec, size: tuple[int, int], label_size: tuple[int, int]) -> list[Row]:
    """Probabilities at the label's size, averaged over scales and flips."""
    nets = networks(spec)
    images = picture((1, *size), 1)

    def run(f: Any, c: Any, dtype: torch.dtype) -> np.ndarray:
        x, views = to_tensor(images, dtype), []
        with torch.no_grad():
            for scale in inference.MULTI_SCALE:
                scaled = reference.upsample(x, [int(n * scale) for n in size])
                for flip in (lambda v: v, lambda v: v.flip(-1)):
                    logits = flip(c(f.eval()(flip(scaled))))
                    views.append(torch.softmax(reference.upsample(logits, label_size), 1))
        return nhwc(torch.stack(views).mean(0))

    ours = jax.jit(
        functools.partial(
            inference.class_probabilities,
            Segmenter(spec).apply,
            preprocessing=IMAGENET,
            size=label_size,
            scales=inference.MULTI_SCALE,
            flip=True,
        )
    )(generator_variables(nets, spec), images)
    truth, single = run(*double(nets)[:2], torch.float64), run(*nets[:2], torch.float32)
    name = f"{spec.backbone} probabilities, 3 scales, flipped, at label size"
    return [Row(name, *_errors(ours, single, truth), PROBABILITIES)]


@dataclasses.dataclass
class Pair:
    """Our training and the reference's in float64 and float32, started from the same weights."""

    spec: ModelSpec
    nets: Networks
    truth: reference.Training
    single: reference.Training
    generator: train_states.TrainState
    discriminator: train_states.TrainState
    method: Method
    lambda_adv: float


def specs_of(settings: reference.Settings) -> tuple[optimizers.OptimizerSpec, optimizers.OptimizerSpec]:
    """Our optimizers of G and D with the reference's settings."""
    common = {"schedule_steps": settings.steps, "power": settings.power}
    sgd = optimizers.OptimizerSpec("sgd", settings.lr, weight_decay=settings.weight_decay, **common)
    return sgd, optimizers.OptimizerSpec("adam", settings.lr_d, weight_decay=0.0, **common)


def method_of(settings: reference.Settings) -> Method:
    """Our method with the reference's settings."""
    if settings.kind == "soft":
        return SoftLabels(temperature=settings.temperature, clip=settings.clip)
    if settings.kind == "hard":
        return HardLabels(temperature=settings.temperature, threshold=settings.threshold)
    return DomainLabels(settings.temperature)


@functools.lru_cache
def _static(
    spec: ModelSpec, num_outputs: int, g_optimizer: optimizers.OptimizerSpec, d_optimizer: optimizers.OptimizerSpec
) -> dict[str, dict[str, Any]]:
    # The same objects for the same settings, so that a step compiles once.
    d_model = Discriminator(num_outputs, D_WIDTHS, jnp.dtype(spec.dtype))
    return {
        "g": {"apply_fn": Segmenter(spec).apply, "tx": optimizers.generator_optimizer(g_optimizer)},
        "d": {"apply_fn": d_model.apply, "tx": optimizers.discriminator_optimizer(d_optimizer)},
    }


def start(spec: ModelSpec, settings: reference.Settings) -> Pair:
    """Both trainings before their first step."""
    nets = networks(spec, half=1 if settings.kind == "binary" else 0)
    static = _static(spec, 2 * nets[2].cls1.out_channels, *specs_of(settings))
    variables = generator_variables(nets, spec)
    params = variables.pop("params")
    generator = train_states.TrainState.create(params=params, collections=variables, **static["g"])
    discriminator = train_states.TrainState.create(params=discriminator_params(nets, spec.dtype), **static["d"])
    method = method_of(settings)
    truth = reference.Training(*double(nets), settings)
    single = reference.Training(*copy.deepcopy(nets), settings)
    return Pair(spec, nets, truth, single, generator, discriminator, method, settings.lambda_adv)


@functools.partial(jax.jit, static_argnames=("method",))
def _adversarial(generator: Any, discriminator: Any, source: Any, target: Any, method: Any, lambda_adv: Any) -> Any:
    return steps.adversarial_step(
        generator,
        discriminator,
        source,
        target,
        preprocessing=IMAGENET,
        method=method,
        lambda_adv=lambda_adv,
    )


@jax.jit
def _supervised(generator: Any, batch: Any) -> Any:
    return steps.supervised_step(generator, batch, preprocessing=IMAGENET)


def batches(index: int, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source images, their labels, and target images of another size; 2 + 2."""
    source, target = (2, 49, 65), (2, 57, 41)
    return picture(source, 10 * index + 1), label(source, num_classes, 10 * index + 2), picture(target, 10 * index + 3)


def adversarial(pair: Pair, source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> list[Row]:
    """One alternating iteration of all three trainings, in place; rows for the losses."""
    ours = (pair.generator, pair.discriminator, {"image": source, "label": labels}, {"image": target})
    pair.generator, pair.discriminator, metrics = _adversarial(*ours, pair.method, pair.lambda_adv)
    y = torch.from_numpy(labels)
    truth = pair.truth.adversarial(to_tensor(source), y, to_tensor(target))
    single = pair.single.adversarial(to_tensor(source, torch.float32), y, to_tensor(target, torch.float32))
    return [
        Row(
            f"{pair.spec.backbone} {name} ({pair.truth.settings.kind})",
            *_errors(metrics[name], single[name], value),
            LOSS,
        )
        for name, value in truth.items()
        if value
    ]


def supervised(pair: Pair, images: np.ndarray, labels: np.ndarray) -> None:
    """One supervised step of all three trainings, in place."""
    pair.generator, _ = _supervised(pair.generator, {"image": images, "label": labels})
    y = torch.from_numpy(labels)
    pair.truth.supervised(to_tensor(images), y)
    pair.single.supervised(to_tensor(images, torch.float32), y)


def _errors(ours: Any, single: Any, truth: Any) -> tuple[float, float]:
    return relative(ours, truth), relative(single, truth)


def slots(pair: Pair) -> dict[str, tuple[dict, dict, dict]]:
    """Moments of each network by name, in PyTorch's layout: ours, PyTorch's float32, PyTorch's float64."""
    g_optimizer, d_optimizer = specs_of(pair.truth.settings)
    ours = torch_optimizers.export_generator_optimizer(pair.generator.opt_state, pair.spec, g_optimizer, 0)
    ours |= torch_optimizers.export_discriminator_optimizer(
        pair.discriminator.opt_state, pair.discriminator.params, d_optimizer, 0
    )
    found = {}
    for name, slot_names in (
        ("optimizer_fea", ("momentum_buffer",)),
        ("optimizer_cls", ("momentum_buffer",)),
        ("optimizer_D", ("exp_avg", "exp_avg_sq")),
    ):
        theirs = [getattr(t, name).state_dict()["state"] for t in (pair.single, pair.truth)]
        for slot in slot_names:
            found[f"{name}.{slot}"] = tuple(
                {i: np.asarray(m[slot]) for i, m in states.items()} for states in (ours[name]["state"], *theirs)
            )
    return found


def weights(pair: Pair) -> tuple[dict, dict, dict]:
    """Sections of weights: ours, PyTorch's float32, PyTorch's float64."""
    stats = pair.generator.collections.get("batch_stats", {})
    ours = torch_tables.export_generator(pair.generator.params, stats, pair.spec)
    ours["model_D"] = torch_tables.export_discriminator(pair.discriminator.params)
    return ours, *(checkpoint((t.f, t.c, t.d)) for t in (pair.single, pair.truth))


def measure_gradients(spec: ModelSpec, kind: str) -> list[Row]:
    """Gradients of L_seg, L_adv and L_D, read off the moments after one step without decay; worst tensor of each."""
    rows = []
    source, labels, target = batches(0, spec.num_classes)
    for loss, y, lambda_adv in (
        ("L_seg", labels, 0.0),
        ("L_adv", np.full_like(labels, reference.IGNORE), 1.0),
    ):
        pair = start(spec, reference.Settings(kind=kind, weight_decay=0.0, lambda_adv=lambda_adv))
        losses = adversarial(pair, source, y, target)
        rows += [] if lambda_adv else losses
        for name, (ours, single, truth) in slots(pair).items():
            # D's gradient is taken where L_adv is strong: none of it may reach D.
            if "D" in name and (not lambda_adv or "sq" in name):
                continue
            errors = []
            for i, gradient in truth.items():
                if np.any(gradient):
                    errors.append(_errors(ours[i], single[i], gradient))
                elif np.any(ours[i]):
                    errors.append((np.inf, 0.0))
            if errors:
                what = "L_D, D" if "D" in name else f"{loss}, {'F' if 'fea' in name else 'C'}"
                rows.append(
                    Row(f"{spec.backbone} gradient of {what} ({kind})", *map(max, zip(*errors, strict=True)), GRADIENT)
                )
    return rows


def measure_iterations(spec: ModelSpec, settings: reference.Settings, count: int, report: Iterable[int]) -> list[Row]:
    """``count`` alternating iterations; errors over the cumulative update of each network after those in ``report``."""
    pair = start(spec, settings)
    rows = []
    for index in range(count):
        adversarial(pair, *batches(index, spec.num_classes))
        if index + 1 in report:
            rows += _training_rows(pair, f"{spec.backbone}, {index + 1} iterations")
    return rows


def measure_supervised(spec: ModelSpec, settings: reference.Settings, count: int) -> list[Row]:
    """``count`` supervised steps with live batch norm: weights, momentum and running statistics."""
    pair = start(spec, settings)
    for index in range(count):
        supervised(pair, *batches(index, spec.num_classes)[:2])
    return [row for row in _training_rows(pair, f"{spec.backbone} live BN, {count} steps") if "D" not in row.name]


def _training_rows(pair: Pair, title: str) -> list[Row]:
    before = checkpoint(pair.nets)
    ours, single, truth = weights(pair)
    rows = []

    def add(name: str, section: str, keep: Callable[[str], bool]) -> None:
        keys = [key for key in truth[section] if keep(key) and np.any(truth[section][key] != before[section][key])]
        if keys:
            o, s, t = (
                [x[section][key] - before[section][key].astype(np.float64) for key in keys]
                for x in (ours, single, truth)
            )
            rows.append(Row(f"{title}: update of {name}", *_errors(o, s, t), UPDATE))

    def running(key: str) -> bool:
        return "running" in key

    def parameter(key: str) -> bool:
        return not running(key) and "tracked" not in key

    for name, section in (("F", "feature_extractor"), ("C", "classifier"), ("D", "model_D")):
        add(name, section, parameter)
    add("running statistics", "feature_extractor", running)
    for name, (o, s, t) in slots(pair).items():
        if t:
            rows.append(Row(f"{title}: {name}", *_errors(*(list(x.values()) for x in (o, s, t))), UPDATE))
    return rows


def measure_gradients_in_float64(spec: ModelSpec) -> list[Row]:
    """``measure_gradients`` of soft labels with all of ours in float64 too, see ``parity_float64.py``."""
    command = [sys.executable, str(Path(__file__).with_name("parity_float64.py")), spec.backbone]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [Row(**row) for row in json.loads(output.splitlines()[-1])]


# Ten iterations span the same part of the poly decay as the released 40,000 of 62,500.
SHORT = reference.Settings(steps=16)


def measure_all() -> list[Row]:
    """Every row of the table."""
    rows = [row for spec in (RESNET101, VGG16) for row in measure_logits(spec, (65, 97))]
    rows += measure_multi_scale(RESNET101, (65, 97), (130, 194))
    for spec, kind in ((NARROW, "soft"), (NARROW, "hard"), (NARROW, "binary"), (NARROW_VGG, "soft")):
        rows += measure_gradients(spec, kind)
    for spec in (RESNET101, VGG16):
        rows += measure_gradients_in_float64(spec)
    rows += measure_iterations(NARROW, SHORT, 10, (3, 10))
    rows += measure_supervised(NARROW_LIVE, dataclasses.replace(SHORT, lr=5e-4), 3)
    return rows


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table."""
    lines = ["| quantity | ours | PyTorch float32 | ratio | limit |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        ratio = row.ours / row.torch32 if row.torch32 else float("inf")
        lines.append(f"| {row.name} | {row.ours:.1e} | {row.torch32:.1e} | {ratio:.2f} | {row.limit:.0e} |")
    return "\n".join(lines)
