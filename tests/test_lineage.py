"""Networks, optimizer and files of AdaptSegNet's lineage against ``torch_lineage``."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

import torch_lineage as reference  # noqa: E402
from commands import quick_jit  # noqa: E402
from parity import nhwc, relative  # noqa: E402

from fada_jax.interop import torch_tables  # noqa: E402
from fada_jax.models import ModelSpec, Segmenter  # noqa: E402
from fada_jax.training import optimizers, states  # noqa: E402

K, LIMIT = 5, 1e-5
NARROW = {"stage_sizes": (1, 2, 2, 2), "widths": (8, 8, 16, 16), "stem_width": 8}
SPEC = ModelSpec("resnet50", K, "statistics", **NARROW, variant="caffe")
BASIC = dataclasses.replace(SPEC, backbone="resnet18", active_rates=2)
STRIDE_16 = dataclasses.replace(SPEC, output_stride=16, active_rates=1)
GEOMETRY = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}
# Odd and even numbers of rows, of the image and of what the max-pool sees.
SIZES = ((65, 83), (66, 80), (63, 78))
NETWORKS = {"bottleneck": SPEC, "basic, 2 branches": BASIC, "stride 16, 1 branch": STRIDE_16}


def images(size, count=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *size, 3)).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def network(spec, heads="one", seed=0):
    torch.manual_seed(seed)
    strides, dilations = GEOMETRY[spec.output_stride]
    net = reference.DeepLab(
        "basic" if spec.backbone == "resnet18" else "bottleneck",
        spec.stage_sizes,
        spec.widths,
        spec.stem_width,
        K,
        heads,
        spec.active_rates,
        spec.aspp_rates,
        strides,
        dilations,
    )
    reference.randomise(net, to_torch(images((97, 113), seed=1)), seed)
    return net


def arrays(net):
    return {key: value.detach().numpy().copy() for key, value in net.state_dict().items()}


def variables_of(net, spec):
    params, batch_stats, _ = torch_tables.import_generator(arrays(net), spec)
    return {"params": params, "batch_stats": batch_stats}


def gradients(net, spec):
    """PyTorch's gradients in our layout, 0 where it has none."""
    values = {key: np.zeros(value.shape, np.float32) for key, value in net.named_parameters()}
    values |= {key: p.grad.numpy() for key, p in net.named_parameters() if p.grad is not None}
    return torch_tables.import_generator({**arrays(net), **values}, spec)[0]


def worst(ours, theirs):
    """The largest relative error of an array."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(relative(a, b) for a, b in pairs if np.any(b))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_in_inference(name, size):
    spec = NETWORKS[name]
    net, x = network(spec).eval(), images(size)
    with torch.no_grad():
        theirs = nhwc(net(to_torch(x)))
    ours, _ = quick_jit(Segmenter(spec).apply)(variables_of(net, spec), x)
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) < LIMIT


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_takes_the_statistics_of_the_batch_and_keeps_scale_and_bias(name, size):
    spec = NETWORKS[name]
    net, x = network(spec).train(), images(size)
    variables = variables_of(net, spec)
    theirs = net(to_torch(x))
    weight = np.random.default_rng(5).normal(size=nhwc(theirs).shape).astype(np.float32)
    (theirs * to_torch(weight)).sum().backward()

    @quick_jit
    def step(params):
        def loss(params):
            taken = {**variables, "params": params}
            (logits, _), updated = Segmenter(spec).apply(taken, x, train=True, mutable=["batch_stats"])
            return jnp.sum(logits * weight), (logits, updated["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    grads, (logits, batch_stats) = step(variables["params"])
    assert relative(logits, nhwc(theirs)) < LIMIT
    expected = variables_of(net, spec)
    assert worst(batch_stats, expected["batch_stats"]) < LIMIT
    changed = batch_stats["feature_extractor"]["bn1"]
    before = variables["batch_stats"]["feature_extractor"]["bn1"]
    assert np.any(changed["mean"] != before["mean"]) and np.array_equal(changed["scale"], before["scale"])
    assert worst(grads, gradients(net, spec)) < LIMIT
    idle = [np.any(grads["classifier"][f"conv{i}"]["kernel"]) for i in range(4)]
    assert idle == [i < spec.active_branches for i in range(4)]


def sgd_steps(net, x, weights, spec, settings, repeats):
    """Three steps of PyTorch on a linear loss; returns the parameters after each in our layout."""
    named = list(net.backbone_parameters())
    if not repeats:
        named = list({id(p): p for p in named}.values())
    groups = [(named, 1.0), (list(net.head_parameters()), settings.classifier_multiplier)]
    optimizer = reference.RepeatingSGD(groups, settings.momentum, settings.weight_decay)
    for step, weight in enumerate(weights):
        net.zero_grad(set_to_none=True)
        (net(to_torch(x)) * to_torch(weight)).mean().backward()
        optimizer.step(
            reference.rate(settings.learning_rate, step, settings.schedule_steps, settings.power, settings.warmup_steps)
        )
        yield variables_of(net, spec)


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("name", ["bottleneck", "basic, 2 branches"])
def test_three_steps_of_sgd(name, repeats):
    spec, size = NETWORKS[name], SIZES[0]
    settings = optimizers.OptimizerSpec(
        learning_rate=0.02, schedule_steps=10, weight_decay=0.05, warmup_steps=2, lineage_repeats=repeats
    )
    net, x = network(spec).train(), images(size)
    variables = variables_of(net, spec)
    state = quick_jit(lambda: states.create_generator(spec, settings, jax.random.key(0)))()
    state = states.replace_weights(state, variables["params"], variables["batch_stats"])
    shape = states.output_shapes(state, x.shape)[0].shape
    weights = np.random.default_rng(5).normal(size=(3, *shape)).astype(np.float32)

    @quick_jit
    def step(state, weight):
        def loss(params):
            taken = {**state.variables, "params": params}
            (logits, _), updated = state.apply_fn(taken, x, train=True, mutable=["batch_stats"])
            return jnp.mean(logits * weight), updated

        grads, updated = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, collections={**state.collections, **updated})

    start = variables["params"]
    for weight, expected in zip(weights, sgd_steps(net, x, weights, spec, settings, repeats), strict=True):
        state = step(state, weight)
        assert worst(state.params, expected["params"]) < LIMIT
        assert worst(state.collections["batch_stats"], expected["batch_stats"]) < LIMIT
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, start)
    theirs = jax.tree.map(lambda a, b: np.asarray(a) - b, expected["params"], start)
    assert relative(jax.tree.leaves(moved), jax.tree.leaves(theirs)) < LIMIT
    for i in range(spec.active_branches, 4):
        np.testing.assert_array_equal(
            state.params["classifier"][f"conv{i}"]["kernel"], start["classifier"][f"conv{i}"]["kernel"]
        )


def test_parameters_are_named_as_often_as_the_optimizer_repeats_them():
    net = network(SPEC)
    names = {id(p): key for key, p in net.named_parameters()}
    counts = {}
    for parameter in net.backbone_parameters():
        counts[names[id(parameter)]] = counts.get(names[id(parameter)], 0) + 1
    assert counts["conv1.weight"] == 1 and counts["layer3.1.conv2.weight"] == 3
    assert counts["layer2.0.downsample.0.weight"] == 4
    for entry in torch_tables.generator_table(SPEC):
        if entry.trainable and entry.section == "feature_extractor":
            path = [jax.tree_util.DictKey(name) for name in entry.path[1:]]
            assert optimizers._repeats(path) == counts[entry.key.removeprefix("backbone.")], entry.key


def test_warm_up_rises_from_zero_and_decays_as_without_it():
    spec = optimizers.OptimizerSpec(learning_rate=0.3, schedule_steps=50, warmup_steps=10)
    plain = optimizers.poly_schedule(spec.learning_rate, spec.schedule_steps, spec.power)
    schedule = optimizers.warmed_up(plain, spec.learning_rate, spec.warmup_steps)
    for step in range(50):
        expected = reference.rate(0.3, step, 50, warmup=10)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert optimizers.warmed_up(plain, spec.learning_rate, 0) is plain


@functools.cache
def structure(**values):
    optimizer = optimizers.OptimizerSpec(**values)
    return jax.tree.structure(
        jax.eval_shape(lambda: states.create_generator(SPEC, optimizer, jax.random.key(0))).opt_state
    )


def test_options_leave_the_structure_of_the_optimizer_state():
    assert structure() == structure(lineage_repeats=True) == structure(warmup_steps=3)
    state = jax.eval_shape(
        lambda: optimizers.generator_optimizer(optimizers.OptimizerSpec()).init({"feature_extractor": {}})
    )
    assert any(isinstance(x, optax.TraceState) for x in state.inner_states["feature_extractor"].inner_state)
