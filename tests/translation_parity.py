"""Measures our translators and their step against ``torch_cyclegan``: shared by the tests in float32 and in float64."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import parity
import systems_networks as networks
import torch
import torch.nn.functional as F
import torch_cyclegan as theirs
from systems_parity import difference, recording, worst

from fada_jax.methods import CycleGan, TrainingSpec, cyclegan, image_pool
from fada_jax.models import ModelSpec, TranslationDiscriminator, TranslationGenerator, TranslationSpec
from fada_jax.preprocessing import IMAGENET
from fada_jax.training.optimizers import OptimizerSpec

WIDTH, BLOCKS, D_WIDTH = 4, 2, 4
ITERATIONS, CONSTANT, SCHEDULE, RATE = 3, 1, 4, 2e-4
POOL = 3
SIZES = {"source": (2, 40, 32), "target": (2, 32, 48)}
SEED = 20
# Options of ours and of theirs.
CASES: Mapping[str, tuple[dict[str, float], dict[str, float]]] = {
    "released": ({}, {}),
    "identity": ({"lambda_identity": 0.5}, {"identity": 0.5}),
    "semantic": ({"lambda_semantic": 1.0}, {"semantic": 1.0}),
}
NETS = ("to_target", "to_source", "D source", "D target")


def initial(seed: int = 3) -> dict[str, torch.nn.Module]:
    """Networks by ``NETS`` in float32, with weights that are larger than the release's at first."""
    torch.manual_seed(seed)
    made = {name: theirs.generator(WIDTH, BLOCKS) for name in NETS[:2]}
    return {**made, **{name: theirs.discriminator(D_WIDTH) for name in NETS[2:]}}


def paths(name: str, blocks: int) -> list[tuple[str, ...]]:
    """Our convolutions in the order of theirs."""
    if name.startswith("D"):
        return [("conv0",), ("conv1",), ("conv2",), ("conv3",), ("head",)]
    body = [(f"block{i}", conv) for i in range(blocks) for conv in ("conv1", "conv2")]
    return [("first",), ("down1",), ("down2",), *body, ("up1",), ("up0",), ("last",)]


def _layout(conv: torch.nn.Module, weight: np.ndarray) -> np.ndarray:
    """A kernel of theirs as ours."""
    if isinstance(conv, torch.nn.ConvTranspose2d):
        return weight.transpose(2, 3, 0, 1)[::-1, ::-1]
    return weight.transpose(2, 3, 1, 0)


def ours_of(name: str, net: torch.nn.Module, shapes: Any, *, blocks: int = BLOCKS, gradient: bool = False) -> Any:
    """Parameters or gradients of theirs in our tree; biases that an instance norm takes away have no place in it."""
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    tree = jax.tree.map(lambda x: None, shapes)
    for path, conv in zip(paths(name, blocks), convs, strict=True):
        node = functools.reduce(lambda node, key: node[key], path, tree)
        for key in node:
            tensor = conv.weight if key == "kernel" else conv.bias
            array = (tensor.grad if gradient else tensor).detach().numpy().copy()
            node[key] = _layout(conv, array) if key == "kernel" else array
    assert jax.tree.map(np.shape, tree) == jax.tree.map(lambda x: x.shape, shapes)
    return tree


class Measured(NamedTuple):
    """Losses of each iteration, gradients of the first, and updates over all."""

    losses: list[dict[str, Any]]
    gradients: dict[str, list[np.ndarray]]
    updates: dict[str, list[np.ndarray]]


def method(case: str) -> CycleGan:
    sizes = {f"{name}_size": (width, height) for name, (_, height, width) in SIZES.items()}
    return CycleGan(**sizes, width=WIDTH, blocks=BLOCKS, pool_size=POOL, **CASES[case][0])


def spec(dtype: str = "float32") -> TrainingSpec:
    optimizer = OptimizerSpec(
        "adam", RATE, SCHEDULE, power=1.0, weight_decay=0.0, b1=0.5, b2=0.999, constant_steps=CONSTANT
    )
    model = ModelSpec(**{**vars(networks.SPEC), "dtype": dtype})
    return TrainingSpec(model, IMAGENET, optimizer, optimizer, patch_width=D_WIDTH)


def batch(index: int) -> dict[str, np.ndarray]:
    return {name: parity.picture(shape, SEED + 10 * index + i) for i, (name, shape) in enumerate(SIZES.items())}


def draws(index: int) -> dict[str, theirs.Draws]:
    """What our step draws in iteration ``index``, as plain numbers."""
    found = {}
    for number, name in enumerate(SIZES):
        drawn = image_pool.draw(jax.random.fold_in(jax.random.key(index), number), SIZES[name][0], POOL)
        found[name] = ([bool(x) for x in drawn.exchange], [int(x) for x in drawn.place])
    return found


class Segment(torch.nn.Module):
    """A frozen segmenter on images from -1 to 1; logits at the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = networks.generator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v, dtype=x.dtype)[:, None, None] for v in (IMAGENET.mean, IMAGENET.std))
        logits = self.net(((x + 1) / 2 - mean) / std)[0][0]
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)


def run_theirs(case: str, dtype: torch.dtype) -> Measured:
    nets = {name: net.to(dtype) for name, net in copy.deepcopy(initial()).items()}
    shapes = net_shapes()

    def tensors(**options: Any) -> dict[str, list[np.ndarray]]:
        return {name: jax.tree.leaves(ours_of(name, net, shapes[name], **options)) for name, net in nets.items()}

    before = tensors()
    to_b, to_a, of_a, of_b = (nets[name] for name in NETS)
    segment = Segment().to(dtype) if case == "semantic" else None
    pools = theirs.Pool(POOL), theirs.Pool(POOL)
    training = theirs.CycleGan(to_b, to_a, of_a, of_b, pools, RATE, segment=segment, **CASES[case][1])
    losses = []
    for index in range(ITERATIONS):
        training.set_rate(RATE * (1 - max(0, index - CONSTANT) / (SCHEDULE - CONSTANT)))
        images = {
            name: torch.from_numpy(x).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1 for name, x in batch(index).items()
        }
        drawn = draws(index)
        losses.append(training.step(images["source"], images["target"], drawn["source"], drawn["target"]))
        if not index:
            gradients = tensors(gradient=True)
    return Measured(losses, gradients, difference(tensors(), before))


def net_shapes() -> dict[str, Any]:
    image = jnp.zeros((1, 32, 32, 3))
    g = jax.eval_shape(TranslationGenerator(TranslationSpec(WIDTH, BLOCKS)).init, jax.random.key(0), image)["params"]
    d = jax.eval_shape(TranslationDiscriminator(D_WIDTH).init, jax.random.key(0), image)["params"]
    return dict(zip(NETS, (g, g, d, d), strict=True))


def our_states(case: str, dtype: str) -> dict[str, Any]:
    """States of the method's own making with PyTorch's weights, and optimizers that keep the gradient."""
    states = dict(jax.eval_shape(functools.partial(method(case).init, spec=spec(dtype)), jax.random.key(0)))
    nets, shapes = initial(), net_shapes()
    trees = {
        name: jax.tree.map(lambda x: np.asarray(x, dtype), ours_of(name, nets[name], shapes[name])) for name in NETS
    }
    params = {
        "generator": {"to_target": trees["to_target"], "to_source": trees["to_source"]},
        cyclegan.DISCRIMINATORS: {"source": trees["D source"], "target": trees["D target"]},
    }
    count = jnp.int32 if dtype == "float32" else jnp.int64
    for name, tree in params.items():
        tx = recording(states[name].tx)
        opt_state = jax.tree.map(lambda x: x.astype(count) if x.dtype == jnp.int32 else x, tx.init(tree))
        states[name] = states[name].replace(params=tree, tx=tx, opt_state=opt_state, step=jnp.int32(0))
    states[cyclegan.POOLS] = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), states[cyclegan.POOLS])
    if cyclegan.SEGMENTER in states:
        g = networks.generator()
        model = spec(dtype).model
        variables = parity.generator_variables((g.f, g.c, parity.networks(networks.SPEC)[2]), model)
        variables = jax.tree.map(lambda x: np.asarray(x, dtype), variables)
        frozen = {"params": variables.pop("params"), "collections": variables, "step": jnp.int32(0)}
        states[cyclegan.SEGMENTER] = states[cyclegan.SEGMENTER].replace(**frozen)
    return states


def our_tensors(states: Mapping[str, Any], of: Any) -> dict[str, list[np.ndarray]]:
    g, d = (of(states[name]) for name in ("generator", cyclegan.DISCRIMINATORS))
    trees = (g["to_target"], g["to_source"], d["source"], d["target"])
    return {name: [np.array(x) for x in jax.tree.leaves(tree)] for name, tree in zip(NETS, trees, strict=True)}


def run_ours(case: str, dtype: str = "float32") -> Measured:
    step = jax.jit(functools.partial(method(case).step, spec=spec(dtype)))
    start = states = our_states(case, dtype)
    losses = []
    for index in range(ITERATIONS):
        images = {name: {"image": x} for name, x in batch(index).items()}
        states, metrics = step(states, images, jax.random.key(index), jnp.float32(0))
        losses.append({key: float(value) for key, value in metrics.items()})
        if not index:
            gradients = our_tensors(states, lambda state: state.opt_state[0])
    after, before = (our_tensors(s, lambda state: state.params) for s in (states, start))
    return Measured(losses, gradients, difference(after, before))


def measure(case: str, dtype: str = "float32") -> list[parity.Row]:
    """Ours in ``dtype`` and PyTorch's float32 against PyTorch's float64."""
    ours, single, truth = run_ours(case, dtype), run_theirs(case, torch.float32), run_theirs(case, torch.float64)
    rows = []
    for i in range(ITERATIONS):
        for key, value in truth.losses[i].items():
            errors = [worst([x], [value]) for x in (ours.losses[i][key], single.losses[i][key])]
            rows.append(parity.Row(f"{case}: {key}, iteration {i + 1}", *errors, parity.LOSS))
    for net in NETS:
        errors = [worst(run.gradients[net], truth.gradients[net]) for run in (ours, single)]
        rows.append(parity.Row(f"{case}: gradient of {net}", *errors, parity.GRADIENT))
        errors = [parity.relative(run.updates[net], truth.updates[net]) for run in (ours, single)]
        rows.append(parity.Row(f"{case}: update of {net}", *errors, parity.UPDATE))
    return rows


def measure_networks(seeds: Sequence[int] = (0,)) -> list[parity.Row]:
    """One forward pass of each network at the released number of blocks, at sizes that are no power of 2."""
    rows = []
    for seed in seeds:
        torch.manual_seed(seed)
        nets = {"translator": theirs.generator(8, 9), "D": theirs.discriminator(8)}
        image = parity.picture((2, 44, 52), seed)
        x = torch.from_numpy(image).permute(0, 3, 1, 2).double() / 127.5 - 1
        ours = {"translator": TranslationGenerator(TranslationSpec(8, 9)), "D": TranslationDiscriminator(8)}
        for name, net in nets.items():
            signed = jnp.asarray(image, jnp.float32) / 127.5 - 1
            shapes = jax.eval_shape(ours[name].init, jax.random.key(0), signed)["params"]
            tree = ours_of(name, net, shapes, blocks=9)
            value = ours[name].apply({"params": tree}, signed)
            single = net(x.float())
            truth = parity.nhwc(copy.deepcopy(net).double()(x))
            errors = [parity.relative(np.asarray(v), truth) for v in (value, parity.nhwc(single))]
            rows.append(parity.Row(f"{name}, seed {seed}", *errors, parity.LOGITS))
    return rows
