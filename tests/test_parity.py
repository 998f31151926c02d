"""Our networks, steps and weight conversion against PyTorch."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import parity  # noqa: E402
import torch_reference as reference  # noqa: E402

import fada_jax  # noqa: E402
from fada_jax.errors import UserError  # noqa: E402
from fada_jax.interop import entries, torch_files, torch_optimizers, torch_tables  # noqa: E402
from fada_jax.models import ModelSpec, Segmenter  # noqa: E402
from fada_jax.models.segmenter import AsppClassifier  # noqa: E402

torch.set_num_threads(1)

# Below this level two float32 results differ by rounding alone, and the ratio of their errors means nothing.
ROUNDING = 1e-6


def check(rows: list[parity.Row]) -> None:
    """Within the limit, and at most three times as far from the truth as PyTorch's own float32."""
    assert rows
    failed = [row for row in rows if not row.ours <= min(row.limit, max(3 * row.torch32, ROUNDING))]
    assert not failed, "\n" + parity.markdown(failed)


@pytest.mark.parametrize("spec", [parity.RESNET101, parity.VGG16], ids=lambda spec: spec.backbone)
def test_logits_of_the_full_networks(spec):
    check(parity.measure_logits(spec, (65, 97)))


@pytest.mark.parametrize("spec", [parity.NARROW_BASIC, parity.NARROW_LIVE], ids=lambda s: f"{s.backbone}-{s.norm}")
def test_logits_of_other_blocks_and_norms(spec):
    check(parity.measure_logits(spec, (65, 97)))


def test_multi_scale_probabilities_at_label_size():
    check(parity.measure_multi_scale(parity.NARROW, (65, 97), (130, 194)))


def test_classifier_where_every_dilated_tap_meets_features():
    torch.manual_seed(0)
    classifier = reference.Classifier(6, 3).double()
    features = np.random.default_rng(0).normal(size=(1, 37, 53, 6)).astype(np.float32)
    x = torch.from_numpy(features).permute(0, 3, 1, 2).double().requires_grad_()
    weight = np.random.default_rng(1).normal(size=(1, 37, 53, 3)).astype(np.float32)
    z = classifier(x).permute(0, 2, 3, 1)
    (z * torch.from_numpy(weight)).sum().backward()
    params = {
        f"conv{i}": {
            "kernel": entries.from_torch(conv.weight.detach().numpy()),
            "bias": entries.from_torch(conv.bias.detach().numpy()),
        }
        for i, conv in enumerate(classifier.conv2d_list)
    }
    ours, pullback = jax.vjp(lambda p, f: AsppClassifier(3).apply({"params": p}, f), params, jnp.asarray(features))
    p_gradient, f_gradient = pullback(jnp.asarray(weight))
    # The weights were rounded to float32 on the way.
    assert parity.relative(ours, z.detach().numpy()) < 1e-6
    assert parity.relative(f_gradient, x.grad.permute(0, 2, 3, 1).numpy()) < 1e-6
    for i, conv in enumerate(classifier.conv2d_list):
        assert parity.relative(p_gradient[f"conv{i}"]["kernel"], entries.from_torch(conv.weight.grad.numpy())) < 1e-5


@pytest.mark.parametrize(
    ("spec", "kind"),
    [(parity.NARROW, "soft"), (parity.NARROW, "hard"), (parity.NARROW, "binary"), (parity.NARROW_VGG, "soft")],
    ids=lambda value: getattr(value, "backbone", value),
)
def test_losses_and_gradients_of_one_step(spec, kind):
    rows = parity.measure_gradients(spec, kind)
    names = " ".join(row.name for row in rows)
    for quantity in ("loss_seg", "loss_adv", "loss_d", "L_seg, F", "L_seg, C", "L_adv, F", "L_D, D"):
        assert quantity in names
    # A loss is one rounded number: PyTorch's may be exact by luck.
    check([row if "gradient" in row.name else dataclasses.replace(row, torch32=np.inf) for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("spec", [parity.RESNET101, parity.VGG16], ids=lambda spec: spec.backbone)
def test_gradients_of_the_full_networks_in_float64(spec):
    rows = parity.measure_gradients_in_float64(spec)
    assert len(rows) == 4
    # Far beyond the limit: what is left is rounding in float64.
    assert all(row.ours < 1e-12 for row in rows), parity.markdown(rows)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [parity.RESNET101, parity.VGG16], ids=lambda spec: spec.backbone)
def test_an_imported_release_predicts_as_pytorch_at_the_released_size(spec, tmp_path):
    nets, image = parity.networks(spec), parity.picture((1, 512, 1024), 3)
    # to_tensor normalises for ResNets; VGG-16 takes BGR, 0-255.
    x = parity.to_tensor(image, torch.float32)
    if spec.backbone == "vgg16":
        bgr = np.ascontiguousarray(image[..., ::-1], np.float32)
        x = (torch.from_numpy(bgr) - torch.tensor([103.939, 116.779, 123.68])).permute(0, 3, 1, 2)
    with torch.no_grad():
        scale = 6.0 / nets[1](nets[0](x)).std()  # Logits as sure as a trained network's.
        for conv in nets[1].conv2d_list:
            conv.weight.mul_(scale)
            conv.bias.mul_(scale)
        single, truth = (
            torch.softmax(reference.upsample(c(f(x.to(dtype))), (512, 1024)), 1)
            for (f, c, _), dtype in ((nets, torch.float32), (parity.double(nets), torch.float64))
        )
    sections = {"feature_extractor": nets[0].state_dict(), "classifier": nets[1].state_dict(), "iteration": 20_000}
    torch.save(sections, tmp_path / "released.pth")
    segment = fada_jax.load(tmp_path / "released.pth")
    assert (segment.dtype, segment.input_size) == ("float32", (1024, 512))
    truth = parity.nhwc(truth)
    ours, theirs = (np.abs(p - truth) for p in (segment.probabilities(image), parity.nhwc(single)))
    print(f"{spec.backbone}: ours {ours.max():.1e}, PyTorch float32 {theirs.max():.1e}, from PyTorch float64")
    assert np.quantile(ours, 0.999) <= 1e-5
    # Where one number is further off, PyTorch's own float32 is as far.
    assert ours.max() <= max(1e-5, theirs.max())


def test_knowledge_of_the_pictures_is_partly_clipped_and_partly_unsure():
    nets = parity.networks(parity.NARROW)
    source, _, target = parity.batches(0, 5)
    for images in (source, target):
        x = parity.to_tensor(images, torch.float32)
        confidence = torch.softmax(nets[1](nets[0](x)) / 1.8, 1).max(1).values
        assert 0.05 < (confidence > 0.9).float().mean() < 0.95


def test_ten_alternating_iterations():
    check(parity.measure_iterations(parity.NARROW, parity.SHORT, 10, (3, 10)))


def test_training_with_live_batch_norm():
    rows = parity.measure_supervised(parity.NARROW_LIVE, dataclasses.replace(parity.SHORT, lr=5e-4), 3)
    assert any("running statistics" in row.name for row in rows)
    check(rows)


SPECS = [
    *(
        ModelSpec(name, 19, norm=norm)
        for name in ("resnet18", "resnet34", "resnet50", "resnet101")
        for norm in ("frozen", "live")
    ),
    ModelSpec("vgg16", 13),
    ModelSpec("resnet50", 5, widths=(4, 8, 8, 4), stem_width=16, stem_pool=False, output_stride=8),
    ModelSpec("resnet18", 5, stage_sizes=(1, 2, 1, 1), widths=(4, 8, 8, 4), stem_width=4, output_stride=16),
    ModelSpec("resnet50", 5, stage_sizes=(1, 1, 2, 1), widths=(4, 4, 4, 4), stem_width=16, aspp_rates=(6, 12)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.backbone}-{spec.norm}-{len(spec.widths)}")
def test_table_covers_our_variables_exactly(spec):
    variables = jax.eval_shape(Segmenter(spec).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = jax.tree_util.tree_flatten_with_path({k: v for k, v in variables.items() if k != "folded"})[0]
    ours = {tuple(key.key for key in path): leaf.shape for path, leaf in flat}
    table = torch_tables.generator_table(spec)
    shapes = {e.path: (*e.shape[2:], e.shape[1], e.shape[0]) if len(e.shape) == 4 else e.shape for e in table}
    assert shapes == ours
    assert len({entry.name for entry in table}) == len(table) == len(ours)


def same(a: dict, b: dict) -> bool:
    """Equal keys in equal order with bit-identical arrays."""
    return list(a) == list(b) and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and a[key].tobytes() == b[key].tobytes()
        for key in a
    )


@pytest.mark.parametrize(
    "spec",
    [parity.RESNET101, parity.VGG16, parity.NARROW, parity.NARROW_BASIC, parity.NARROW_LIVE, parity.NARROW_VGG],
    ids=lambda spec: f"{spec.backbone}-{spec.norm}-{len(spec.widths)}",
)
def test_weights_survive_the_round_trip_bit_for_bit(spec):
    released = parity.checkpoint(parity.networks(spec))
    for counter in [key for key in released["feature_extractor"] if "tracked" in key]:
        released["feature_extractor"][counter] += 7
    params, batch_stats, report = torch_tables.import_generator(released, spec)
    exported = torch_tables.export_generator(params, batch_stats, spec, num_batches_tracked=7)
    assert same(exported["feature_extractor"], released["feature_extractor"])
    assert same(exported["classifier"], released["classifier"])
    count = len(released["feature_extractor"]) + len(released["classifier"])
    assert len(report.used) + len(report.dropped) == count and not report.initialised
    assert all(name.endswith("num_batches_tracked") for name in report.dropped)
    d_params, report = torch_tables.import_discriminator(
        released, 2 * spec.num_classes, released["classifier"]["conv2d_list.0.weight"].shape[1], parity.D_WIDTHS
    )
    assert same(torch_tables.export_discriminator(d_params), released["model_D"])
    assert len(report.used) == len(released["model_D"])


def with_prefix(released: dict) -> dict:
    return {section: {f"module.{key}": value for key, value in arrays.items()} for section, arrays in released.items()}


def test_multi_gpu_prefix_is_stripped():
    released = parity.checkpoint(parity.networks(parity.NARROW))
    plain = torch_tables.import_generator(released, parity.NARROW)
    prefixed = torch_tables.import_generator(with_prefix(released), parity.NARROW)
    assert jax.tree.all(jax.tree.map(np.array_equal, plain[:2], prefixed[:2]))
    torch_tables.import_discriminator(with_prefix(released), 10, 64, parity.D_WIDTHS)


def trained(iterations: int) -> parity.Pair:
    pair = parity.start(parity.NARROW, parity.SHORT)
    for index in range(iterations):
        parity.adversarial(pair, *parity.batches(index, 5))
    return pair


def optimizer_states(training: reference.Training) -> dict[str, dict]:
    """Optimizer sections of a released checkpoint, arrays for tensors."""
    names = ("optimizer_fea", "optimizer_cls", "optimizer_D")
    states = {name: getattr(training, name).state_dict() for name in names}
    return jax.tree.map(lambda x: x.numpy().copy() if isinstance(x, torch.Tensor) else x, states)


def test_training_continues_from_a_released_checkpoint_and_back():
    pair = trained(2)
    single = pair.single
    file = {**parity.checkpoint((single.f, single.c, single.d)), **optimizer_states(single), "iteration": 2}
    g_spec, d_spec = parity.specs_of(parity.SHORT)

    # Theirs -> ours: weights, momentum, moments and schedules of their run, in place of ours.
    params, _, _ = torch_tables.import_generator(file, parity.NARROW)
    d_params, _ = torch_tables.import_discriminator(file, 10, 64, parity.D_WIDTHS)
    fresh = parity.start(parity.NARROW, parity.SHORT)
    g_state = torch_optimizers.import_generator_optimizer(fresh.generator.opt_state, file, parity.NARROW, 2)
    d_state = torch_optimizers.import_discriminator_optimizer(fresh.discriminator.opt_state, file, d_params, 2)
    for mine, theirs in ((g_state, fresh.generator.opt_state), (d_state, fresh.discriminator.opt_state)):
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)

    # Ours -> theirs: the same arrays again, in a form that PyTorch accepts.
    exported = torch_optimizers.export_generator_optimizer(g_state, parity.NARROW, g_spec, 2)
    exported |= torch_optimizers.export_discriminator_optimizer(d_state, d_params, d_spec, 2)
    for name, state in exported.items():
        assert list(state["state"]) == list(file[name]["state"])
        for index, moments in state["state"].items():
            assert same(dict(sorted(moments.items())), dict(sorted(file[name]["state"][index].items())))
        optimizer = getattr(single, name)
        as_tensors = jax.tree.map(lambda x: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x, state)
        optimizer.load_state_dict(as_tensors)

    fresh.generator = fresh.generator.replace(params=params, opt_state=g_state)
    fresh.discriminator = fresh.discriminator.replace(params=d_params, opt_state=d_state)
    fresh.single = single
    before = parity.weights(fresh)[0]
    parity.adversarial(fresh, *parity.batches(2, 5))
    mine, theirs, _ = parity.weights(fresh)
    for section, limit in (("feature_extractor", 2e-3), ("classifier", 1e-3), ("model_D", 1e-3)):
        keys = [k for k in theirs[section] if np.any(theirs[section][k] != before[section][k])]
        updates = [[np.float64(x[section][k]) - before[section][k] for k in keys] for x in (mine, theirs)]
        assert parity.relative(*updates) < limit


def test_optimizer_before_its_first_step_has_no_moments():
    pair = trained(0)
    file = optimizer_states(pair.single)
    state = torch_optimizers.import_generator_optimizer(pair.generator.opt_state, file, parity.NARROW, 0)
    assert jax.tree.all(jax.tree.map(lambda x: not np.any(x), state))


def test_optimizer_of_another_network_is_refused():
    pair = trained(0)
    file = optimizer_states(pair.single)
    file["optimizer_fea"] = file["optimizer_cls"]
    with pytest.raises(UserError, match="feature_extractor has 8 tensors, the model"):
        torch_optimizers.import_generator_optimizer(pair.generator.opt_state, file, parity.NARROW, 0)
    with pytest.raises(UserError, match="no optimizer state optimizer_D"):
        torch_optimizers.import_discriminator_optimizer(pair.discriminator.opt_state, {}, pair.discriminator.params, 0)


def test_torchvision_resnet_fills_the_backbone_alone():
    spec = parity.NARROW
    released = parity.checkpoint(parity.networks(spec))["feature_extractor"]
    file = {key.removeprefix("backbone."): value for key, value in released.items()}
    file |= {"fc.weight": np.zeros((1000, 64), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
    initial = parity.generator_variables(parity.networks(spec, seed=1), spec)
    params, batch_stats, report = torch_tables.import_generator(file, spec, initial)
    np.testing.assert_array_equal(
        params["classifier"]["conv2"]["kernel"], initial["params"]["classifier"]["conv2"]["kernel"]
    )
    np.testing.assert_array_equal(
        batch_stats["feature_extractor"]["layer3_1"]["bn2"]["var"], released["backbone.layer3.1.bn2.running_var"]
    )
    assert sorted(report.dropped) == ["fc.weight", "feature_extractor.backbone.bn1.num_batches_tracked"]
    assert sorted(report.initialised) == sorted(
        f"classifier.conv2d_list.{i}.{x}" for i in range(4) for x in ("weight", "bias")
    )
    with pytest.raises(UserError, match=r"lacks classifier\.conv2d_list\.0\.weight"):
        torch_tables.import_generator(file, spec)


@pytest.mark.parametrize("heads", [(0, 3, 6), (1, 4)], ids=["torchvision", "caffe"])
def test_imagenet_vgg_fills_the_convolutions_alone(heads):
    spec = parity.NARROW_VGG
    # Indices of the convolutions in torchvision's features, pool4 and pool5 included.
    theirs = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    names = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
    rng = np.random.default_rng(0)
    file, channels = {}, 3
    for index, name in zip(theirs, names, strict=True):
        width = spec.widths[int(name[0]) - 1]
        file[f"features.{index}.weight"] = rng.normal(size=(width, channels, 3, 3)).astype(np.float32)
        file[f"features.{index}.bias"] = rng.normal(size=width).astype(np.float32)
        channels = width
    file |= {f"classifier.{i}.weight": np.zeros((7, 7), np.float32) for i in heads}
    initial = parity.generator_variables(parity.networks(spec), spec)
    params, batch_stats, report = torch_tables.import_generator(file, spec, initial)
    assert batch_stats == {}
    for index, name in zip(theirs, names, strict=True):
        kernel = params["feature_extractor"][f"conv{name}"]["kernel"]
        np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), file[f"features.{index}.weight"])
    assert {name.rsplit(".", 1)[0] for name in report.initialised} == {
        "feature_extractor.backbone.29",
        "feature_extractor.backbone.31",
        *(f"classifier.conv2d_list.{i}" for i in range(4)),
    }
    assert list(report.dropped) == [f"classifier.{i}.weight" for i in heads]


def test_imports_that_cannot_work_name_the_reason():
    spec = parity.NARROW
    released = parity.checkpoint(parity.networks(spec))

    def refused(match: str, spec: ModelSpec = spec, **sections) -> None:
        with pytest.raises(UserError, match=match):
            torch_tables.import_generator({**released, **sections}, spec)

    fea = released["feature_extractor"]
    key = "backbone.layer2.1.conv2.weight"
    refused(
        r"lacks feature_extractor\.backbone\.layer2\.1\.conv2\.weight",
        feature_extractor={k: v for k, v in fea.items() if k != key},
    )
    refused(r"holds feature_extractor\.backbone\.extra, unknown", feature_extractor={**fea, "backbone.extra": fea[key]})
    refused(rf"{key} has shape \(8, 8, 3, 2\)", feature_extractor={**fea, key: fea[key][..., :2]})
    refused(rf"{key} is not an array of floating-point", feature_extractor={**fea, key: fea[key].astype(np.int32)})
    refused("feature_extractor is no state dict", feature_extractor=fea[key])
    refused("a classifier of 5 classes cannot serve a model of 19", spec=dataclasses.replace(spec, num_classes=19))
    refused("holds a ResNet of 1-2-2-2 bottleneck blocks, the model vgg16 is a VGG-16", spec=parity.NARROW_VGG)
    vgg = parity.checkpoint(parity.networks(parity.NARROW_VGG))
    refused("holds a VGG-16, the model resnet50 is a ResNet of 1-2-2-2 bottleneck blocks", **vgg)
    refused("the model resnet101 is a ResNet of 3-4-23-3 bottleneck blocks", spec=parity.RESNET101)
    refused("1-2-2-2 basic blocks", spec=parity.NARROW_BASIC)
    with pytest.raises(UserError, match="no known backbone"):
        torch_tables.import_generator({"weight": fea[key]}, spec)
    with pytest.raises(UserError, match="no PyTorch counterpart"):
        torch_tables.generator_table(dataclasses.replace(spec, norm="group"))
    with pytest.raises(UserError, match="no section model_D"):
        torch_tables.import_discriminator({"feature_extractor": fea}, 10, 64)
    with pytest.raises(UserError, match=r"model_D\.cls1\.weight has shape \(5, 8, 3, 3\)"):
        torch_tables.import_discriminator(released, 38, 64, parity.D_WIDTHS)


def tensors(arrays: dict) -> dict:
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


def test_files_are_read_as_written(tmp_path):
    import safetensors.numpy

    released = parity.checkpoint(parity.networks(parity.NARROW))
    path = tmp_path / "model.pth"
    torch.save({**{name: tensors(arrays) for name, arrays in released.items()}, "iteration": 40_000}, path)
    old = tmp_path / "old.pth"  # As files were written before PyTorch 1.6.
    torch.save(torch.load(path, weights_only=True), old, _use_new_zipfile_serialization=False)
    for file in (torch_files.read_file(path), torch_files.read_file(old)):
        assert file["iteration"] == 40_000
        assert all(same(file[name], arrays) for name, arrays in released.items())
    flat = {f"{name}.{key}": value for name, arrays in released.items() for key, value in arrays.items()}
    safetensors.numpy.save_file(flat, tmp_path / "model.safetensors")
    nested = torch_files.read_file(tmp_path / "model.safetensors")
    for name, arrays in released.items():
        assert same(dict(sorted(nested[name].items())), dict(sorted(arrays.items())))


class Malicious:
    """Creates a file when a careless reader unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    good = tmp_path / "good.pth"
    torch.save(tensors(parity.checkpoint(parity.networks(parity.NARROW))["classifier"]), good)
    trap = tmp_path / "trap"
    torch.save({"feature_extractor": Malicious(str(trap))}, tmp_path / "code.pth")
    (tmp_path / "code.pkl").write_bytes(pickle.dumps(Malicious(str(trap))))
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("<html>404 not found</html>")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:100])
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("picture.txt", "no weights here")
    torch.save([1, 2], tmp_path / "list.pth")
    bad = ("code.pth", "code.pkl", "cut.pth", "empty.pth", "text.pth", "cut.safetensors", "archive.pth", "list.pth")
    for name in (*bad, "absent.pth"):
        with pytest.raises(UserError) as caught:
            torch_files.read_file(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not trap.exists()
