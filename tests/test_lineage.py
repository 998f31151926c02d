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
import torch_reference  # noqa: E402
from commands import quick_jit  # noqa: E402
from parity import nhwc, relative  # noqa: E402

from fada_jax import config as schema  # noqa: E402
from fada_jax import convert_weights, distributed, preprocessing  # noqa: E402
from fada_jax.configs import gta5_to_cityscapes  # noqa: E402
from fada_jax.errors import UserError  # noqa: E402
from fada_jax.interop import exporting, lineage, reading, torch_tables  # noqa: E402
from fada_jax.models import ModelSpec, Segmenter  # noqa: E402
from fada_jax.stages import parents  # noqa: E402
from fada_jax.training import checkpoints, optimizers, states  # noqa: E402

K, LIMIT = 5, 1e-5
NARROW = {"stage_sizes": (1, 2, 2, 2), "widths": (8, 8, 12, 16), "stem_width": 8}
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
    # Of other images one activation among thousands may round to the other side of a ReLU: 1% of the gradient.
    net, x = network(spec).train(), images(size, seed=2)
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


# Files ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Headed(ModelSpec):
    heads: str = "one"


def headed(heads):
    return Headed(**dataclasses.asdict(SPEC) | {"heads": heads})


@pytest.mark.parametrize("heads", ["one", "levels", "two"])
def test_which_layer_is_which_head(heads):
    net, spec, x = network(SPEC, heads).eval(), headed(heads), images(SIZES[0])
    file = arrays(net)
    assert lineage.heads_in(file) == heads and lineage.heads_in({f"module.{k}": v for k, v in file.items()}) == heads
    with torch.no_grad():
        theirs = net(to_torch(x))
    params, batch_stats, report = torch_tables.import_generator(file, spec)
    assert len(report.used) + len(report.dropped) == len(file)
    main, other = (theirs, None) if heads == "one" else theirs[:: -1 if heads == "levels" else 1]
    names = {"one": ["classifier"], "levels": ["classifier", "auxiliary_classifier"]}
    for name, expected in zip(names.get(heads, ["classifier", "second_classifier"]), (main, other), strict=False):
        if name == "auxiliary_classifier":
            assert params[name]["conv0"]["kernel"].shape[2] == 48  # On layer3.
            continue
        taken = {"feature_extractor": params["feature_extractor"], "classifier": params[name]}
        logits, _ = quick_jit(Segmenter(SPEC).apply)({"params": taken, "batch_stats": batch_stats}, x)
        assert relative(logits, nhwc(expected)) < LIMIT
    back = lineage.from_sections(torch_tables.export_generator(params, batch_stats, spec), heads)
    assert list(back) == list(file)
    for key, value in file.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[key], value, strict=True)
    net.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in back.items()}, strict=True)
    with pytest.raises(UserError, match=r"unknown to the model|lacks"):
        torch_tables.import_generator(file, headed("one" if heads != "one" else "two"))


@pytest.mark.parametrize("numbered", [False, True])
def test_discriminators_of_patches_both_ways(numbered):
    torch.manual_seed(0)
    net = reference.PatchDiscriminator(K, 4)
    file = arrays(net)
    kernels = [*((4, 4, a, b) for a, b in ((K, 4), (4, 8), (8, 16), (16, 32))), (4, 4, 32, 1)]
    names = ("conv0", "conv1", "conv2", "conv3", "head")
    shapes = {
        name: {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in (("kernel", k), ("bias", k[3:]))}
        for name, k in zip(names, kernels, strict=True)
    }
    given = file
    if numbered:
        layers = ("conv1", "conv2", "conv3", "conv4", "classifier")
        given = {f"{2 * layers.index(k.split('.')[0])}.{k.split('.')[1]}": value for k, value in file.items()}
    params, report = torch_tables.import_discriminator_like(given, shapes, "model_D")
    assert len(report.used) == len(file)
    back = torch_tables.export_discriminator(params)
    assert list(back) == list(file)
    for key, value in file.items():
        np.testing.assert_array_equal(back[key], value, strict=True)
    x = images((70, 97), seed=3)[..., [0, 1, 2, 0, 1]]
    y = x
    for name in names:
        y = jax.lax.conv_general_dilated(
            y, params[name]["kernel"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = y + params[name]["bias"]
        y = y if name == "head" else jax.nn.leaky_relu(y, 0.2)
    assert relative(y, nhwc(net(to_torch(x)))) < LIMIT
    for change, problem in (
        (lambda d: d.pop("conv3.bias" if not numbered else "4.bias"), "lacks model_D.conv3.bias"),
        (lambda d: d.update({"conv9.bias": d[next(iter(d))]}), "unknown|lacks"),
        (lambda d: d.update({next(iter(d)): np.zeros((4, K, 3, 3), np.float32)}), "has shape"),
    ):
        changed = dict(given)
        change(changed)
        with pytest.raises(UserError, match=problem):
            torch_tables.import_discriminator_like(changed, shapes, "model_D")


def config_of(stage="source", **values):
    config = gta5_to_cityscapes.get_config(f"stage={stage},backbone=resnet50")
    sizes = {f"model.{name}": value for name, value in NARROW.items()}
    theirs = {"model.variant": "caffe", "model.norm": "statistics", "model.active_rates": 2}
    small = {"discriminator.widths": (6, 4), "eval.size": (64, 32), "multi_scale": (1.0,)}
    config.update_from_flattened_dict({**sizes, **theirs, **small, **values})
    config.preprocessing.update(dataclasses.asdict(preprocessing.LINEAGE))
    return schema.read(config)


@functools.cache
def gta5():
    net = reference.DeepLab(sizes=NARROW["stage_sizes"], widths=NARROW["widths"], stem=8, num_classes=19, branches=2)
    reference.randomise(net, to_torch(images((97, 113), seed=1)))
    return net.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_comes_in_and_goes_out_tensor_for_tensor(tmp_path, prefix):
    torch.save({prefix + key: value for key, value in gta5().state_dict().items()}, tmp_path / "GTA5_1.pth")
    d = torch_reference.PixelDiscriminator(64, 19, (6, 4))
    torch.save({prefix + key: value for key, value in d.state_dict().items()}, tmp_path / "GTA5_1_D.pth")
    summary = convert_weights.import_file(
        str(tmp_path / "GTA5_1.pth"),
        str(tmp_path / "w"),
        config=config_of("adaptation"),
        format="adaptsegnet",
        discriminators=lineage.DiscriminatorFiles(str(tmp_path / "GTA5_1_D.pth")),
    )
    assert "lineage, resnet50, class set cityscapes19" in summary and "   0 initialised" in summary
    model = checkpoints.load_model(tmp_path / "w")
    assert (model.preprocessing, model.spec.variant, model.spec.active_rates) == (preprocessing.LINEAGE, "caffe", 2)
    x = images(SIZES[1])
    with torch.no_grad():
        theirs = nhwc(gta5()(to_torch(x)))
    logits, _ = quick_jit(Segmenter(model.spec).apply)({"params": model.params, "batch_stats": model.batch_stats}, x)
    assert relative(logits, theirs) < LIMIT

    out, out_d = tmp_path / "out.pth", tmp_path / "out_D.pth"
    assert "discriminator was left" in exporting.export_file(tmp_path / "w", out)
    exporting.export_file(tmp_path / "w", out, "last", lineage.DiscriminatorFiles(str(out_d)))
    for net, path in ((gta5(), out), (d, out_d)):
        back, original = torch.load(path, weights_only=True), net.state_dict()
        assert list(back) == list(original)
        for key, value in original.items():
            assert key.endswith("num_batches_tracked") or torch.equal(back[key], value), key

    # Our own names carry the description along.
    exporting.export_file(tmp_path / "w", tmp_path / "own.safetensors")
    convert_weights.import_file(str(tmp_path / "own.safetensors"), str(tmp_path / "w2"))
    again = checkpoints.load_model(tmp_path / "w2")
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.batch_stats), (model.params, model.batch_stats))
    assert again.spec == model.spec


def test_the_initial_model_from_caffe_lends_its_backbone(tmp_path):
    head = reference.Head(64, 21)
    file = {f"Scale.{k}": v for k, v in gta5().state_dict().items() if not k.startswith("layer5.")}
    file |= {f"Scale.layer5.{k}": v for k, v in head.state_dict().items()}
    torch.save(file, tmp_path / "init.pth")
    summary = convert_weights.import_file(str(tmp_path / "init.pth"), str(tmp_path / "w"), config=config_of())
    assert "layer5 is of other classes and dropped" in summary and "8 initialised" in summary
    assert "layer5.conv2d_list.0.weight" in summary
    config = config_of(init_from=str(tmp_path / "w"), **{"model.norm": "live", "model.active_rates": 0})
    generator = parents.initial_states(config, distributed.make_mesh(1))["generator"]
    stored = arrays(gta5())
    extractor = generator.params["feature_extractor"]
    np.testing.assert_array_equal(extractor["bn1"]["scale"], stored["bn1.weight"])
    np.testing.assert_array_equal(extractor["conv1"]["kernel"].transpose(3, 2, 0, 1), stored["conv1.weight"])
    for norm in ("frozen", "statistics"):
        config = config_of(init_from=str(tmp_path / "w"), **{"model.norm": norm})
        generator = parents.initial_states(config, distributed.make_mesh(1))["generator"]
        stats = generator.collections["batch_stats"]["feature_extractor"]["bn1"]
        np.testing.assert_array_equal(stats["scale"], stored["bn1.weight"])
        assert ("folded" in generator.collections) == (norm == "frozen")


def test_models_move_between_the_kinds_of_batch_norm(tmp_path):
    torch.save(gta5().state_dict(), tmp_path / "in.pth")
    live = config_of(**{"model.norm": "live"})
    summary = convert_weights.import_file(str(tmp_path / "in.pth"), str(tmp_path / "w"), config=live)
    assert "batch norm: statistics in the file, live from now on" in summary
    config = config_of(init_from=str(tmp_path / "w"))
    generator = parents.initial_states(config, distributed.make_mesh(1))["generator"]
    stats = generator.collections["batch_stats"]["feature_extractor"]["layer4_1"]["bn3"]
    for name, key in (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
        np.testing.assert_array_equal(stats[name], arrays(gta5())[f"layer4.1.bn3.{key}"])
    assert "bn3" not in generator.params["feature_extractor"]["layer4_1"]


@pytest.mark.parametrize(
    ("change", "values", "format", "problem"),
    [
        (lambda f: f.pop("layer2.0.conv1.weight"), {}, "", "lacks feature_extractor.backbone.layer2.0.conv1.weight"),
        (lambda f: f.pop("layer5.conv2d_list.3.bias"), {}, "", "lacks classifier.conv2d_list.3.bias"),
        (lambda f: f.update({"layer7.weight": torch.zeros(2)}), {}, "", "layer7.weight, unknown"),
        (lambda f: f.update({"layer6.conv2d_list.0.bias": torch.zeros(2)}), {}, "", "layer6.conv2d_list.0.bias, unk"),
        (lambda f: f.update({"layer5.conv2d_list.0.bias": torch.zeros(16)}), {}, "", "16 classes"),
        (lambda f: f.update({"conv1.weight": torch.zeros(8, 3, 5, 5)}), {}, "", "has shape"),
        (lambda f: f.update({"Scale.conv1.weight": f["conv1.weight"]}), {}, "", "one tensor under two names"),
        (lambda f: None, {"model.variant": "torchvision"}, "", "model.variant is 'caffe'"),
        (lambda f: None, {}, "advent", "model.active_rates is 4, the config's is 2"),
        (lambda f: None, {}, "fada", "has the layout 'lineage', not 'fada'"),
        (lambda f: None, {}, "caffe_vgg", "has the layout 'lineage', not 'caffe_vgg'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, values, format, problem):
    file = dict(gta5().state_dict())
    change(file)
    torch.save(file, tmp_path / "in.pth")
    with pytest.raises(UserError, match=problem):
        convert_weights.import_file(
            str(tmp_path / "in.pth"), str(tmp_path / "w"), config=config_of(**values), format=format
        )
    assert not (tmp_path / "w").exists()


def test_a_file_without_a_config_needs_what_it_does_not_tell(tmp_path):
    file = {key: value.numpy() for key, value in reference.DeepLab(branches=2).state_dict().items()}
    with pytest.raises(UserError, match=r"--format=adaptsegnet .*--format=advent"):
        reading.released_model(file, "x.pth")
    model = convert_weights.released_config(reading.released_model(file, "x.pth", "adaptsegnet")).model
    assert (model.backbone, model.variant, model.norm, model.active_rates) == ("resnet101", "caffe", "statistics", 2)
    model = convert_weights.released_config(reading.released_model(file, "x.pth", "advent")).model
    assert model.active_branches == 4
    torch.save(gta5().state_dict(), tmp_path / "in.pth")
    with pytest.raises(UserError, match="import it first"):
        reading.read_model(tmp_path / "in.pth")


def test_fadas_files_do_not_pass_for_the_lineage(tmp_path):
    file = {"feature_extractor": {f"backbone.{k}": v for k, v in gta5().state_dict().items() if k[:6] != "layer5"}}
    file["classifier"] = gta5().layer5.state_dict()
    torch.save(file, tmp_path / "fada.pth")
    with pytest.raises(UserError, match=r"model.variant is 'torchvision', the config's is 'caffe'"):
        convert_weights.import_file(str(tmp_path / "fada.pth"), str(tmp_path / "w"), config=config_of())


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model.backbone": "vgg16", "model.variant": "caffe"}, "model.variant='caffe' needs a ResNet"),
        ({"model.active_rates": 5}, "active_rates=5 must be at most 4"),
        ({"discriminator_optimizer.lineage_repeats": True}, "discriminator_optimizer.lineage_repeats"),
        ({"generator_optimizer.lineage_repeats": True, "generator_optimizer.kind": "adam"}, "needs kind='sgd'"),
    ],
)
def test_options_that_do_not_fit_are_refused(values, problem):
    config = gta5_to_cityscapes.get_config("stage=source")
    config.update_from_flattened_dict(values)
    with pytest.raises(UserError, match=problem):
        schema.read(config)
