"""The import and export command on files in the released and in torchvision's layout."""

import itertools
import pickle
import zipfile

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import parity  # noqa: E402
from commands import command_here, one_error  # noqa: E402

from fada_jax import (  # noqa: E402
    classes,
    convert_weights,
    distributed,
    preprocessing,
)
from fada_jax import config as schema  # noqa: E402
from fada_jax.configs import (  # noqa: E402
    camvid_day_to_dusk,
    cityscapes_to_crosscity,
    gta5_to_cityscapes,
    synthia_to_cityscapes,
)
from fada_jax.errors import UserError  # noqa: E402
from fada_jax.interop import exporting, model_card, reading, torch_tables  # noqa: E402
from fada_jax.models import BACKBONES, ModelSpec  # noqa: E402
from fada_jax.stages import parents  # noqa: E402
from fada_jax.training import checkpoints  # noqa: E402


def released(backbone="resnet101", num_classes=19, prefix=""):
    """A released adversarial checkpoint with optimizer states after one real step of each optimizer."""
    nets = parity.networks(ModelSpec(backbone, num_classes), d_widths=(256, 128))
    contents = {"iteration": 1000}
    for name, optimizer, net in zip(
        ("feature_extractor", "classifier", "model_D"), ("optimizer_fea", "optimizer_cls", "optimizer_D"), nets,
        strict=True,
    ):  # fmt: skip
        make = torch.optim.Adam if name == "model_D" else torch.optim.SGD
        options = {"betas": (0.9, 0.99)} if name == "model_D" else {"momentum": 0.9, "weight_decay": 5e-4}
        stepper = make(net.parameters(), lr=1e-4, **options)
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        stepper.step()
        contents[name] = {prefix + key: value for key, value in net.state_dict().items()}
        contents[optimizer] = stepper.state_dict()
    return contents


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(
    ("backbone", "prefix"),
    [pytest.param("resnet101", "module.", marks=pytest.mark.slow), ("resnet18", "module."), ("vgg16", "")],
)
def test_released_checkpoint_makes_the_round_trip_bit_for_bit(backbone, prefix, tmp_path):
    contents = released(backbone, prefix=prefix)
    torch.save(contents, tmp_path / "in.pth")
    summary = convert_weights.import_file(str(tmp_path / "in.pth"), str(tmp_path / "w"), format="fada")
    assert "class set cityscapes19" in summary and " 0 initialised" in summary
    assert "step 1000 of 40000" in summary and "not in the file" not in summary
    for name in ("G", "D"):
        assert f"optimizer of {name}: from the file, its schedule at step 1000" in summary
    model = checkpoints.load_model(tmp_path / "w")
    assert (model.step, model.class_set.name, model.spec.backbone) == (1000, "cityscapes19", backbone)
    assert model.preprocessing == (preprocessing.CAFFE if backbone == "vgg16" else preprocessing.IMAGENET)
    direct = reading.read_model(tmp_path / "in.pth")
    assert (direct.step, direct.class_set, direct.preprocessing) == (1000, model.class_set, model.preprocessing)
    jax.tree.map(np.testing.assert_array_equal, direct.params, model.params)

    exporting.export_file(tmp_path / "w", tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    nets = parity.networks(ModelSpec(backbone, 19), d_widths=(256, 128))
    for name, net in zip(("feature_extractor", "classifier", "model_D"), nets, strict=True):
        assert_same(back[name], {key.removeprefix("module."): value for key, value in contents[name].items()})
        net.load_state_dict(back[name], strict=True)
    assert back["iteration"] == 1000
    for name in ("optimizer_fea", "optimizer_cls", "optimizer_D"):
        for index, moments in contents[name]["state"].items():
            assert_same({k: v for k, v in back[name]["state"][index].items()}, dict(moments))

    exporting.export_file(tmp_path / "w", tmp_path / "out.safetensors")
    convert_weights.import_file(str(tmp_path / "out.safetensors"), str(tmp_path / "w2"))
    again = checkpoints.load_model(tmp_path / "w2")
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)


def names_of(spec, adversarial, prefix=""):
    """A released file in which every tensor has its shape, and no memory behind it."""
    file = {"iteration": 3, **({"model_D": {}} if adversarial else {})}
    for entry in torch_tables.generator_table(spec):
        array = np.broadcast_to(np.float32(1), entry.shape)
        file.setdefault(entry.section, {})[prefix + entry.key] = array
        if spec.norm == "live" and entry.key.endswith("running_var"):
            file[entry.section][prefix + entry.key.replace("running_var", "num_batches_tracked")] = np.int64(7)
    return file


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    "task", [gta5_to_cityscapes, synthia_to_cityscapes, cityscapes_to_crosscity, camvid_day_to_dusk]
)
def test_a_released_file_is_described_as_its_config_describes_it(task, backbone):
    for stage, norm in itertools.product(("source", "adaptation"), ("frozen", "live")):
        config = task.get_config(f"stage={stage},backbone={backbone}")
        if backbone != "vgg16":
            config.model.norm = norm
        class_set = classes.get_class_set(config.class_set)
        file = names_of(ModelSpec(backbone, class_set.num_classes, config.model.norm), stage == "adaptation", "module.")
        model = reading.released_model(file, "x.pth")
        assert convert_weights.released_config(model) == schema.read(config)
        described = model.describe(3)
        assert (described.spec, described.class_set) == (schema.read(config).model, class_set)
        assert described.preprocessing == schema.read(config).preprocessing
        assert reading.preprocessing_of(file, backbone, "x.pth") == schema.read(config).preprocessing
        plain = schema.read(config).plain()
        assert described.config["eval"] == {"size": plain["eval"]["size"]} and described.step == 3
        assert {key: plain[key] for key in ("task", "stage", "multi_scale")} == {
            key: value for key, value in described.config.items() if key != "eval"
        }
        card = model_card.model_card(checkpoints.Model(params={}, batch_stats={}, **vars(described)))
        assert f"| 0 | {class_set.names[0]} |" in card and "does not say how they were trained" in card


def torchvision_resnet18():
    net = parity.networks(ModelSpec("resnet18", 19, "live"))[0]
    return {
        **{key.removeprefix("backbone."): value for key, value in net.state_dict().items()},
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(1000),
    }


def test_imagenet_weights_start_a_stage_with_a_fresh_classifier(tmp_path):
    state_dict = torchvision_resnet18()
    torch.save(state_dict, tmp_path / "resnet18.pth")
    summary = convert_weights.import_file(str(tmp_path / "resnet18.pth"), str(tmp_path / "w"), format="torchvision")
    assert "feature extractor only" in summary and "fc.weight" in summary and "8 initialised" in summary
    # A classifier that nobody trained does not pass for a released one.
    with pytest.raises(UserError, match="holds a feature extractor alone"):
        exporting.export_file(tmp_path / "w", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
    for module, stage, norm in (
        (gta5_to_cityscapes, "source", "frozen"),
        (synthia_to_cityscapes, "source", "frozen"),
        (gta5_to_cityscapes, "self_distillation", "live"),
    ):
        config = module.get_config(f"backbone=resnet18,stage={stage}")
        config.init_from = str(tmp_path / "w")
        states = parents.initial_states(schema.read(config), distributed.make_mesh(1))
        g = states["generator"]
        kernel = np.asarray(g.params["feature_extractor"]["layer3_1"]["conv2"]["kernel"])
        np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state_dict["layer3.1.conv2.weight"])
        num_classes = {"gta5_to_cityscapes": 19, "synthia_to_cityscapes": 16}[config.task]
        assert g.params["classifier"]["conv0"]["kernel"].shape[-1] == num_classes
        scale = (g.params if norm == "live" else g.collections["batch_stats"])["feature_extractor"]["bn1"]["scale"]
        np.testing.assert_array_equal(scale, state_dict["bn1.weight"])
        if norm == "frozen":
            folded = g.collections["folded"]["feature_extractor"]["bn1"]["scale"]
            expected = state_dict["bn1.weight"] / torch.sqrt(state_dict["bn1.running_var"])
            np.testing.assert_allclose(folded, expected, rtol=1e-6)


def test_config_and_checkpoint_must_agree_on_the_preprocessing(tmp_path):
    torch.save(torchvision_resnet18(), tmp_path / "resnet18.pth")
    convert_weights.import_file(str(tmp_path / "resnet18.pth"), str(tmp_path / "w"))
    config = gta5_to_cityscapes.get_config("backbone=resnet18")
    config.init_from = str(tmp_path / "w")
    config.preprocessing.channel_order = "BGR"
    with pytest.raises(UserError, match=r"preprocessing is .*'RGB'.*, this config's is .*'BGR'"):
        parents.initial_states(schema.read(config), distributed.make_mesh(1))


class Malicious:
    def __reduce__(self):
        return (print, ("THE CODE RAN",))


def test_bad_files_end_with_one_line_and_leave_nothing(tmp_path):
    good = torchvision_resnet18()
    torch.save(good, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as file:
        file.writestr("readme.txt", "no checkpoint")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"feature_extractor": Malicious()}))
    torch.save({k: v for k, v in good.items() if k != "layer2.0.conv1.weight"}, tmp_path / "missing.pth")
    torch.save({**good, "layer1.0.surprise": torch.zeros(3)}, tmp_path / "extra.pth")
    (tmp_path / "short.safetensors").write_bytes(b"\x01\x02")
    cases = [
        ("truncated.pth", "", "truncated.pth is no readable PyTorch checkpoint"),
        ("other.pth", "", "other.pth is no readable PyTorch checkpoint"),
        ("code.pth", "", "code.pth is no readable PyTorch checkpoint"),
        ("missing.pth", "", "lacks feature_extractor.backbone.layer2.0.conv1.weight"),
        ("extra.pth", "", "layer1.0.surprise"),
        ("short.safetensors", "", "short.safetensors is no readable safetensors file"),
        ("good.pth", "--format=fada", "has the layout 'torchvision'"),
        ("good.pth", "--format=caffe_vgg", "not a VGG-16"),
        ("good.pth", "--config=configs/gta5_to_cityscapes.py:backbone=vgg16", "the model vgg16 is a VGG-16"),
        ("good.pth", "--config=configs/gta5_to_cityscapes.py:backbone=resnet50", "3-4-6-3 bottleneck"),
        ("nowhere.pth", "", "no such file"),
    ]
    for name, flag, expected in cases:
        arguments = ["import", f"--input={tmp_path / name}", f"--output={tmp_path}/w", *filter(None, [flag])]
        status, output, stderr = command_here("-m", "fada_jax.convert_weights", *arguments)
        assert status == 1 and expected in one_error(stderr), (name, stderr[-2000:])
        assert "THE CODE RAN" not in output
        assert not (tmp_path / "w").exists()


def test_a_head_of_other_classes_is_refused(tmp_path):
    contents = released("vgg16", 16)
    torch.save(contents, tmp_path / "in.pth")
    config = gta5_to_cityscapes.get_config("backbone=vgg16")
    with pytest.raises(UserError, match="16 classes"):
        convert_weights.import_file(str(tmp_path / "in.pth"), str(tmp_path / "w"), config=schema.read(config))
    assert "class set synthia16" in convert_weights.import_file(str(tmp_path / "in.pth"), str(tmp_path / "w"))
