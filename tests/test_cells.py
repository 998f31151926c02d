"""FCNs in the wild, Cross-City, AdaptPatch: their pieces, losses against PyTorch, and statistics of a stage."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from commands import on_devices, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import make_data
from test_bad_inputs import tiny_config
from test_steps import ADAM, SPEC, make_batch

from fada_jax import config as schema
from fada_jax.configs import gta5_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.input_pipeline import streams
from fada_jax.methods import SYSTEMS, TrainingSpec, adaptpatch, crosscity, fcn_wild
from fada_jax.models import ByClass, Outputs, Pointwise, pool
from fada_jax.stages import data, run, statistics
from fada_jax.training import checkpoints, constraints
from fada_jax.training.alternation import View

K = SPEC.num_classes
NARROW = {
    "fcn_wild": {"width": 8, "ramp_steps": 20},
    "crosscity": {"width": 8, "ramp_steps": 20, "class_start_steps": 0},
    "adaptpatch": {"patch_height": 8, "patch_width": 16, "clusters": 6, "head_width": 8, "warmup_steps": 0},
}
SYSTEM = pytest.mark.parametrize("name", NARROW)
QUICK_FIRST = ["fcn_wild", *(pytest.param(name, marks=pytest.mark.slow) for name in list(NARROW)[1:])]


def method_of(name, **options):
    return SYSTEMS[name].method(temperature=1.8, lambda_adv=0.1, **{**NARROW[name], **options})


def spec_of(accumulate_steps=1):
    return TrainingSpec(
        SPEC, generator_optimizer=ADAM, discriminator_optimizer=ADAM, patch_width=4, accumulate_steps=accumulate_steps
    )


# ---- Constraints


def tilt(p, multipliers):
    q = p * np.exp(multipliers - multipliers.max())
    return q / q.sum(axis=1, keepdims=True)


def nearest_by_scipy(p, lower, upper, slack):
    """Minimises the dual over multipliers of lower and of upper bounds, in float64."""
    count = p.shape[1]

    def negative_dual(multipliers):
        low, high = multipliers[:count], multipliers[count:]
        shift = low - high
        log_sum = np.log((p * np.exp(shift - shift.max())).sum(axis=1)) + shift.max()
        share = tilt(p, shift).mean(axis=0)
        return high @ upper - low @ lower + log_sum.mean(), np.concatenate((share - lower, upper - share))

    bounds, found = [(0, slack)] * count + [(0, constraints.HARD)] * count, np.zeros(2 * count)
    options = {"maxiter": 20_000, "maxfun": 10**6, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 40}
    for _ in range(4):  # Its line search gives up now and then.
        found = scipy.optimize.minimize(
            negative_dual, found, jac=True, bounds=bounds, method="L-BFGS-B", options=options
        ).x
    return tilt(p, found[:count] - found[count:])


jitted_nearest = jax.jit(constraints.nearest, static_argnums=2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.sampled_from([2, 3, 5, 7]),
    sure=st.sampled_from([0.3, 1.0, 3.0, 6.0]),
    room=st.sampled_from([0.5, 0.9, 1.2, 2.0]),
    slack=st.sampled_from([1.0, 10.0, 100.0]),
)
def test_the_nearest_distribution_is_that_of_scipy(seed, classes, sure, room, slack):
    """Also where no distribution is within the bounds."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(12, 16, classes)) * sure + rng.normal(size=classes) * 2
    log_p = np.asarray(jax.nn.log_softmax(z.astype(np.float32)))
    middle = rng.dirichlet(np.ones(classes)) * room
    lower, upper = ((middle * rng.uniform(*ends, classes)).astype(np.float32) for ends in ((0.1, 0.9), (1.0, 1.5)))
    bounds = constraints.Bounds(lower, upper, np.ones(classes, bool))
    q = np.asarray(jitted_nearest(log_p, bounds, slack)).reshape(-1, classes)
    p = np.exp(log_p.astype(np.float64)).reshape(-1, classes)
    expected = nearest_by_scipy(p / p.sum(1, keepdims=True), lower.astype(float), upper.astype(float), slack)
    assert np.abs(q - expected).max() <= 1e-5


def test_absent_classes_get_nothing_and_without_any_the_prediction_stays():
    log_p = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 4)), jnp.float32))
    bounds = constraints.Bounds(jnp.zeros(4), jnp.ones(4), jnp.array([True, False, True, True]))
    q, p = np.array(jitted_nearest(log_p, bounds, 100.0)), np.array(jnp.exp(log_p))
    assert not q[..., 1].any()
    p[..., 1] = 0
    np.testing.assert_allclose(q, p / p.sum(-1, keepdims=True), atol=1e-6)
    none = bounds._replace(present=jnp.zeros(4, bool), upper=jnp.zeros(4))
    np.testing.assert_allclose(jitted_nearest(log_p, none, 100.0), jnp.exp(log_p), atol=1e-6)


def test_class_sizes_are_those_of_the_images_that_hold_a_class():
    shares = np.array([[0.5, 0.0, 0.0], [0.3, 0.2, 0.0], [0.1, 0.4, 0.0]])
    sizes = fcn_wild.class_sizes(shares)
    np.testing.assert_allclose(sizes["mean"], [0.3, 0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(sizes["low"], [0.14, 0.22, 0.0], rtol=1e-6)
    np.testing.assert_allclose(sizes["high"], [0.46, 0.38, 0.0], rtol=1e-6)


# ---- Cells and patches


@pytest.mark.parametrize(("size", "cells"), [((48, 64), (6, 8)), ((73, 89), (10, 12)), ((41, 65), (5, 8))])
def test_pooling_is_that_of_pytorch(size, cells):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), cells)
    np.testing.assert_allclose(pool(x, cells), expected.permute(0, 2, 3, 1), atol=1e-6)


def test_histograms_count_the_labelled_pixels_of_each_quarter():
    labels = make_batch(0, 2, 32, 48)["label"]
    labels[0, :4, :8] = 255  # A whole quarter.
    found = np.asarray(adaptpatch.histograms(labels, K, (4, 3)))
    assert found.shape == (2, 4, 3, 4 * K)
    for n, row, column, quarter in np.ndindex(2, 4, 3, 4):
        top, left = row * 8 + quarter // 2 * 4, column * 16 + quarter % 2 * 8
        values = labels[n, top : top + 4, left : left + 8]
        counts = np.bincount(values[values != 255], minlength=K)
        expected = counts / max(counts.sum(), 1)
        np.testing.assert_allclose(found[n, row, column, quarter * K : (quarter + 1) * K], expected, atol=1e-6)


def test_patches_belong_to_the_cluster_of_k_means():
    method = method_of("adaptpatch")
    labels = [make_batch(seed, 1, 32, 48)["label"][0] // 2 * 2 for seed in range(8)]
    centres = method.prepare(iter(labels), K)["centres"]
    assert centres.shape == (6, 4 * K)
    points = np.asarray(adaptpatch.histograms(np.stack(labels), K, (4, 3)))
    distances = np.square(points[..., None, :] - centres).sum(-1)
    found = np.asarray(adaptpatch.nearest_cluster(points, centres.astype(np.float32)))
    np.testing.assert_array_equal(found, distances.argmin(-1))
    # The centres are the means of what belongs to them.
    for number in range(6):
        np.testing.assert_allclose(points[found == number].mean(0), centres[number], atol=1e-3)


def test_fewer_patches_than_clusters_are_refused():
    with pytest.raises(UserError, match=r"config.options.clusters=50: the source has 24 patches"):
        method_of("adaptpatch", clusters=50).prepare(iter([make_batch(0, 1)["label"][0]] * 2), K)


def test_class_wise_networks_are_as_many_networks():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    together, alone = ByClass(4, (8, 8), 2, dropout=0.5), Pointwise((8, 8), 2, dropout=0.5)
    params = together.init(jax.random.key(0), x)["params"]
    keys = jax.random.split(jax.random.key(1), 2)
    found = together.apply({"params": params}, x, keys)
    kernels = params["each"]["conv0"]["kernel"]
    assert kernels.shape == (4, 1, 1, 3, 8) and len(np.unique(kernels)) == kernels.size
    for number in range(4):
        own = jax.tree.map(lambda w, number=number: w[number], params["each"])
        expected = alone.apply({"params": own}, x, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        np.testing.assert_allclose(found[number], expected, atol=1e-6)


def test_without_scikit_learn_its_extra_is_named(monkeypatch):
    class Hiding:
        def find_spec(self, name, path=None, target=None):
            if name == "sklearn":
                raise ModuleNotFoundError("No module named 'sklearn'", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hiding(), *sys.meta_path])
    with pytest.raises(UserError, match=r"pip install 'fada-jax\[systems\]'"):
        method_of("adaptpatch").prepare(iter([]), K)


# ---- Losses against PyTorch

SIZES = {"source": (48, 64), "target": (64, 48)}
N, CHANNELS, STEP, STEPS = 2, 6, 7, 64


def random_views():
    """Labels, and features and logits by domain."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.repeat(rng.integers(0, K, (N, 12, 16)), 4, 1), 4, 2).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    given = {}
    for name, (height, width) in SIZES.items():
        shape = (N, height // 8, width // 8)
        logits = rng.normal(size=(*shape, K)) * 2
        given[name] = (rng.normal(size=(*shape, CHANNELS)).astype(np.float32), logits.astype(np.float32))
    return labels, given


def our_losses(method, networks, known, labels, params, given):
    """Losses of G and of the discriminators, over both domains."""
    total = np.zeros(2)
    for name, (features, logits) in given.items():
        view = View(
            outputs=Outputs(features, (logits,)),
            labels=labels if name == "source" else None,
            size=SIZES[name],
            share=1.0,
            labelled=jnp.sum(labels != 255).astype(jnp.float32),
            progress=jnp.float32(STEP / STEPS),
            step=jnp.int32(STEP),
            keys=jax.random.split(jax.random.key(0), N),
            statistics=known,
        )
        called = {key: functools.partial(net.apply, {"params": params[key]}) for key, net in networks.items()}
        said = method.losses(view, called, spec_of())
        total = total + jnp.stack([jnp.float32(said.generator), jnp.float32(said.discriminators)])
    return total


def chain(torch, params, slope=0.0):
    """The PyTorch module of ``Pointwise``."""
    modules = []
    for name in sorted(params, key=lambda name: (name == "head", name)):
        kernel, bias = (torch.from_numpy(np.array(params[name][key])) for key in ("kernel", "bias"))
        conv = torch.nn.Conv2d(*kernel.shape[2:], 1)
        conv.weight.data, conv.bias.data = kernel.permute(3, 2, 0, 1).contiguous(), bias
        modules += [conv, torch.nn.LeakyReLU(slope) if slope else torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def patch_net(torch, params):
    """The PyTorch module of ``PatchDiscriminator``."""
    modules = []
    for name in ("conv0", "conv1", "conv2", "conv3", "head"):
        kernel, bias = (torch.from_numpy(np.array(params[name][key])) for key in ("kernel", "bias"))
        conv = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 4, stride=2, padding=1)
        conv.weight.data, conv.bias.data = kernel.permute(3, 2, 0, 1).contiguous(), bias
        modules += [conv, torch.nn.LeakyReLU(0.2)]
    return torch.nn.Sequential(*modules[:-1])


def their_system(torch, name, method, params, known, labels):
    """The reference with the same networks."""
    import torch_systems_cells as theirs

    options = theirs.CellOptions(
        temperature=1.8,
        lambda_adv=0.1,
        ramp=20 / STEPS,
        class_start=NARROW["crosscity"]["class_start_steps"] / STEPS,
        warm_up=0.0,
        lambda_patch=0.1,
    )
    if name == "fcn_wild":
        sizes = theirs.ClassSizes(*(np.asarray(known[key], np.float64) for key in ("low", "mean", "high")))
        return theirs.FcnWild(None, [chain(torch, params[fcn_wild.DISCRIMINATOR])], options, sizes)
    if name == "crosscity":
        every = params[crosscity.CLASS_DISCRIMINATORS]["each"]
        by_class = [chain(torch, jax.tree.map(lambda w, k=k: w[k], every)) for k in range(K)]
        system = theirs.CrossCity(None, [chain(torch, params[fcn_wild.DISCRIMINATOR]), *by_class], options)
        system.labels = torch.from_numpy(labels)
        return system
    head = theirs.PatchHead(K, 8, 6)
    head.convs = chain(torch, params[adaptpatch.HEAD])
    generator = torch.nn.Module()
    generator.patch_head = head
    nets = [
        patch_net(torch, params["patch_discriminator"]),
        chain(torch, params[adaptpatch.CLUSTER_DISCRIMINATOR], 0.2),
    ]
    return theirs.AdaptPatch(generator, nets, options, np.asarray(known["centres"]), (8, 16))


@pytest.mark.slow  # Whole iterations in tests/test_systems.py have them, too.
@pytest.mark.parametrize("name", QUICK_FIRST)
def test_losses_and_gradients_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("torch_systems")
    options = {"dropout": 0.0} if name != "adaptpatch" else {}
    method, (labels, given) = method_of(name, **options), random_views()
    outputs = Outputs(jnp.zeros((1, 6, 8, CHANNELS)), (jnp.zeros((1, 6, 8, K)),))
    states = method.networks(jax.random.key(0), spec_of(), outputs)
    params = {key: jax.tree.map(lambda x: np.asarray(x) * 2, state.params) for key, state in states.items()}
    modules = {key: dataclasses.replace(state.apply_fn.__self__) for key, state in states.items()}
    known = method.prepare(iter(labels), K) if isinstance(method, statistics.Prepared) else {}
    known = {key: jnp.asarray(x, jnp.float32) for key, x in known.items()}

    losses = functools.partial(our_losses, method, modules, known, labels)

    @quick_jit
    def gradients(params, given):
        values, pullback = jax.vjp(losses, params, given)
        return values, pullback(jnp.array([1.0, 0.0])), pullback(jnp.array([0.0, 1.0]))

    (g, d), (of_networks, of_given), (of_discriminators, _) = gradients(params, given)

    # ---- Theirs
    leaves = {
        key: [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().requires_grad_() for x in pair]
        for key, pair in given.items()
    }
    views = {
        key: reference.View([reference.upsample(logits, SIZES[key])], features, SIZES[key])
        for key, (features, logits) in leaves.items()
    }
    system = their_system(torch, name, method, params, known, labels)
    terms = system.generator_terms(views["source"], torch.from_numpy(labels), views["target"], STEP / STEPS)
    expected = reference.total(terms)
    expected.backward()
    for key, pair in leaves.items():
        for ours, leaf in zip(of_given[key], pair, strict=True):
            expected_gradient = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
            gradient = np.asarray(ours).transpose(0, 3, 1, 2)
            scale = max(np.abs(expected_gradient).max(), 1e-12)
            assert np.abs(gradient - expected_gradient).max() / scale < 2e-5, (key, leaf.shape)
    assert float(g) == pytest.approx(float(expected.detach()), rel=1e-5)
    if name == "adaptpatch":
        ours = of_networks[adaptpatch.HEAD]["conv0"]["kernel"]
        theirs = system.generator.patch_head.convs[0].weight.grad.numpy().transpose(2, 3, 1, 0)
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    system.discriminators.zero_grad()
    of_d = reference.total(system.discriminator_terms(views["source"].detach(), views["target"].detach(), STEP / STEPS))
    of_d.backward()
    assert float(d) == pytest.approx(float(of_d.detach()), rel=1e-5)
    first = next(key for key in params if "discriminator" in key)
    ours = np.asarray(of_discriminators[first]["conv0"]["kernel"])
    theirs = system.discriminators[0][0].weight.grad.numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    if name == "crosscity":
        ours = np.asarray(of_discriminators[crosscity.CLASS_DISCRIMINATORS]["each"]["conv1"]["kernel"])
        theirs = np.stack([net[2].weight.grad.numpy().transpose(2, 3, 1, 0) for net in system.discriminators[1:]])
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


# ---- Steps


@functools.cache
def stepped(name, accumulate_steps=1):
    """States and metrics after two steps on the same batch."""
    method, spec = method_of(name), spec_of(accumulate_steps)
    source, target = make_batch(0, 4), make_batch(1, 4, height=40)
    batch = {"source": source, "target": {"image": target["image"]}}
    states = quick_jit(lambda: method.init(jax.random.key(0), spec))()
    if isinstance(method, statistics.Prepared):
        found = method.prepare(iter(source["label"]), K)
        states["statistics"] = {key: jnp.asarray(x, jnp.float32) for key, x in found.items()}
    step = quick_jit(functools.partial(method.step, spec=spec))
    for number in range(2):
        states, metrics = step(states, batch, jax.random.key(number), jnp.float32(0.5))
    return states, metrics


def numbers(states, metrics):
    """All parameters and metrics by path, as lists."""
    params = {name: state.params for name, state in states.items() if name != "statistics"}
    leaves = jax.tree.leaves_with_path({"params": params, "metrics": metrics})
    return {jax.tree_util.keystr(path): np.ravel(x).tolist() for path, x in leaves}


def differing(one, other):
    """Largest relative difference of any array."""
    assert one.keys() == other.keys()
    pairs = [(np.array(one[key]), np.array(other[key])) for key in one]
    assert all(np.isfinite(x).all() for pair in pairs for x in pair)
    return max(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6) for a, b in pairs)


@functools.cache
def plain(name):
    return numbers(*stepped(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK_FIRST)
def test_micro_batches_do_not_change_a_step(name):
    """Dropout draws with it: its keys are those of the images."""
    assert differing(plain(name), numbers(*stepped(name, accumulate_steps=2))) < 1e-3


@pytest.mark.parametrize("name", QUICK_FIRST)
def test_every_network_learns(name):
    method, spec = method_of(name), spec_of()
    start = quick_jit(lambda: method.init(jax.random.key(0), spec))()
    after, metrics = stepped(name)
    assert all(np.isfinite(x) for x in metrics.values())
    for network, state in start.items():
        if network != "statistics":
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after[network].params)
            assert max(jax.tree.leaves(moved)) > 1e-4, network


def on_a_mesh(name):
    from fada_jax import distributed

    mesh = distributed.make_mesh(2)
    with jax.set_mesh(mesh):
        return numbers(*stepped(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_wild", "crosscity"])
def test_two_devices_do_what_one_does(name):
    assert differing(plain(name), on_devices(2, "test_cells", f"on_a_mesh({name!r})")) < 1e-3


def test_nothing_but_segmentation_and_clusters_is_learnt_before_the_warm_up():
    method, spec = method_of("adaptpatch", warmup_steps=10), spec_of()
    source, target = make_batch(0, 2), make_batch(1, 2)
    states = quick_jit(lambda: method.init(jax.random.key(0), spec))()
    states["statistics"] = {"centres": jnp.asarray(method.prepare(iter(source["label"]), K)["centres"], jnp.float32)}
    step = quick_jit(functools.partial(method.step, spec=spec))
    batch = {"source": source, "target": {"image": target["image"]}}
    after, metrics = step(states, batch, jax.random.key(0), jnp.float32(0.5))
    assert metrics["loss_adv"] == metrics["loss_patch"] == metrics["loss_d"] == 0 < metrics["loss_clusters"]
    for network in ("patch_discriminator", adaptpatch.CLUSTER_DISCRIMINATOR):
        jax.tree.map(np.testing.assert_array_equal, states[network].params, after[network].params)


# ---- Statistics in a stage


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("cells"))


def config_of(name, data_dir, **values):
    config = gta5_to_cityscapes.get_config(f"size=miniature,stage=adaptation,method={name}")
    for stream in ("source", "target", "eval"):
        config[stream].size = (48, 32)  # The least that the discriminator of patches halves five times.
    config.model.update(widths=(8, 8, 8, 8), stem_width=8)
    config.discriminator.patch_width = 4
    config.options.update(NARROW[name])
    config.update(
        data_dir=str(data_dir), total_steps=2, checkpoint_every=1, batch_size=4, log_every=1, log_images=0,
        num_devices=1, **values,
    )  # fmt: skip
    return schema.read(config)


@pytest.mark.parametrize("name", ["fcn_wild", pytest.param("adaptpatch", marks=pytest.mark.slow)])
def test_a_stage_prepares_once_and_goes_on_bit_for_bit(name, data_dir, tmp_path):
    config, said = config_of(name, data_dir), []
    whole = run.train(config, tmp_path / "whole", log=said.append)
    assert sum("looks at the labels of" in line for line in said) == 1
    prepared = jax.tree.map(np.asarray, whole["statistics"])
    assert all(np.any(x) for x in prepared.values())
    stream = data.streams(config)["source"]
    images = streams.num_examples(data_dir, stream)
    labels = list(statistics.label_maps(data_dir, stream, config.classes, np.arange(images)))
    assert labels[0].shape == (32, 48) and labels[0].dtype == np.uint8
    expected = config.training_method.prepare(iter(labels), 19)
    for key, value in prepared.items():
        np.testing.assert_array_equal(value, np.float32(expected[key]))

    # The second step again, from the checkpoint of the first; the data set is not looked at again.
    for folder in ("checkpoints/2",):
        path = tmp_path / "whole" / folder
        path.rename(tmp_path / "aside")
    assert checkpoints.available_steps(tmp_path / "whole") == [1]
    said.clear()
    resumed = run.train(config, tmp_path / "whole", log=said.append)
    assert not any("looks at the labels" in line for line in said)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(whole), jax.tree.leaves(resumed))


@pytest.mark.parametrize("name", ["fcn_wild", "adaptpatch"])
def test_batches_alone_are_refused_by_name(name, data_dir, tmp_path):
    with pytest.raises(UserError, match=rf"config.method='{name}' looks at the labels of the source"):
        run.train(config_of(name, data_dir), tmp_path / "w", batches=[], log=lambda line: None)
    assert not (tmp_path / "w").exists()


def test_a_large_split_is_sampled_evenly(data_dir, monkeypatch):
    monkeypatch.setattr(statistics, "MOST", 3)
    config, said, seen = config_of("fcn_wild", data_dir), [], []

    def maps(data_dir, stream, class_set, numbers, damaged_records):
        seen.extend(numbers.tolist())
        return iter([np.zeros((4, 4), np.uint8)] * len(numbers))

    monkeypatch.setattr(statistics, "label_maps", maps)
    fresh = {"statistics": {key: jnp.zeros(19) for key in ("low", "mean", "high")}}
    found = statistics.with_statistics(config, fresh, said.append)
    count = streams.num_examples(data_dir, data.streams(config)["source"])
    assert seen == [0, count // 3, 2 * count // 3] and f"3 of {count} images of gta5" in said[0]
    assert float(found["statistics"]["mean"][0]) == 1.0


def test_miniature_options_count_in_steps_of_its_own():
    options = gta5_to_cityscapes.get_config("size=miniature,stage=adaptation,method=crosscity").options
    assert (options.ramp_steps, options.class_start_steps, options.width) == (22, 18, 32)
    assert tiny_config().options.to_dict() == {}
