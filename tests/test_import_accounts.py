"""An import leaves nothing open: every array of every state is the file's or freshly initialised, or it is refused."""

import functools
import json

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

import torch_reference as reference  # noqa: E402

from fada_jax import config as schema  # noqa: E402
from fada_jax import (  # noqa: E402
    convert_weights,
    distributed,
)
from fada_jax.configs import gta5_to_cityscapes  # noqa: E402
from fada_jax.errors import UserError  # noqa: E402
from fada_jax.interop import exporting, importing, reading  # noqa: E402
from fada_jax.stages import (  # noqa: E402
    parents,
    program,
    run,
)
from fada_jax.training import checkpoints, saving  # noqa: E402

K, STEP = 19, 7
COUNTERS = (optax.ScaleByScheduleState, optax.ScaleByAdamState)
D_WIDTHS, RATES = (6, 4), (1, 2)
RESNET = {"model.widths": (4, 4, 6, 8), "model.stage_sizes": (1, 1, 1, 1), "model.stem_width": 4}
VGG = {"model.widths": (4, 4, 4, 4, 6, 8)}
NARROW = {"model.aspp_rates": RATES, "discriminator.widths": D_WIDTHS, "eval.size": (64, 32), "multi_scale": (1.0,)}
CONFIGS = {
    "source": ("stage=source,backbone=resnet18", RESNET),
    "source, adam": ("stage=source,backbone=resnet18", {**RESNET, "generator_optimizer.kind": "adam"}),
    "fada": ("stage=adaptation,backbone=resnet18", RESNET),
    "binary": ("stage=adaptation,backbone=resnet18,method=binary", RESNET),
    "control": ("stage=adaptation,backbone=resnet18,method=control", RESNET),
    "distillation, live": ("stage=self_distillation,backbone=resnet18", RESNET),
    "fada, group": ("stage=adaptation,backbone=resnet18", {**RESNET, "model.norm": "group"}),
    "vgg source": ("stage=source,backbone=vgg16", VGG),
    "vgg fada": ("stage=adaptation,backbone=vgg16", VGG),
}


def make_config(name, **values):
    arguments, overrides = CONFIGS[name]
    config = gta5_to_cityscapes.get_config(arguments)
    config.update_from_flattened_dict({**NARROW, **overrides, **values})
    return schema.read(config)


# Files --------------------------------------------------------------------------------------------------------------


def networks(vgg=False, half=K, norm=reference.FrozenBatchNorm):
    """F, C and D of the released code in which no two tensors are alike."""
    if vgg:
        body = reference.vgg_body(VGG["model.widths"])
    else:
        body = reference.ResNetBody("basic", (1, 1, 1, 1), RESNET["model.widths"], 4, norm)
    nets = (
        reference.FeatureExtractor(body),
        reference.Classifier(8, K, RATES),
        reference.PixelDiscriminator(8, half, D_WIDTHS),
    )
    generator = torch.Generator().manual_seed(1)
    for net in nets:
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -1.0
                tensor.uniform_(low, 1.0, generator=generator)
    return nets


def released(nets, *, optimizers=("optimizer_fea", "optimizer_cls", "optimizer_D"), sgd=True, prefix="", **sections):
    """A checkpoint of the released code after one step of each optimizer."""
    contents = {}
    generator = torch.Generator().manual_seed(2)
    for name, optimizer, net in zip(
        ("feature_extractor", "classifier", "model_D"), ("optimizer_fea", "optimizer_cls", "optimizer_D"), nets,
        strict=False,
    ):  # fmt: skip
        if sgd and name != "model_D":
            stepper = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        else:
            stepper = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
        for parameter in net.parameters():
            parameter.grad = torch.rand(parameter.shape, generator=generator) - 0.5
        stepper.step()
        contents[name] = {prefix + key: value.clone() for key, value in net.state_dict().items()}
        if optimizer in optimizers:
            contents[optimizer] = stepper.state_dict()
    return {**contents, "iteration": STEP, **sections}


def torchvision(vgg=False):
    """An ImageNet model's own state dict."""
    state = networks(vgg, norm=torch.nn.BatchNorm2d)[0].state_dict()
    if not vgg:
        body = {key.removeprefix("backbone."): value for key, value in state.items()}
        return {**body, "fc.weight": torch.rand(10, 8), "fc.bias": torch.rand(10)}
    features = {}
    for key, value in state.items():
        _, index, kind = key.split(".")
        if int(index) < 29:  # fc6 and fc7 are FADA's own; torchvision counts pool4.
            features[f"features.{int(index) + (int(index) >= 23)}.{kind}"] = value
    return {**features, "classifier.0.weight": torch.rand(3, 3)}


def without(contents, *names):
    return {name: value for name, value in contents.items() if name not in names}


def pth_files():
    """Contents of every .pth file by the name of its kind."""
    half = released(networks()[:2], optimizers=("optimizer_fea",), epoch=3)
    half["optimizer_D"] = released(networks())["optimizer_D"]
    return {
        "torchvision": torchvision(),
        "caffe vgg": torchvision(vgg=True),
        "source": released(networks()[:2]),
        "source, adam": released(networks()[:2], sgd=False),
        "source, weights alone": without(released(networks()[:2], optimizers=()), "iteration"),
        "adaptation": released(networks()),
        "adversarial, no optimizers": released(networks(), optimizers=()),
        "adversarial, module.": released(networks(), prefix="module."),
        "adversarial, binary": released(networks(half=1)),
        "half of its optimizers": half,
        "live": released(networks(norm=torch.nn.BatchNorm2d)[:2]),
        "vgg": released(networks(vgg=True)),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Path of a file of every kind."""
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for name, contents in pth_files().items():
        paths[name] = folder / f"{name}.pth"
        torch.save(contents, paths[name])
    # What we export: the released layout in both kinds of file, and our own names where that cannot hold the model.
    convert_weights.import_file(str(paths["adaptation"]), str(folder / "w"), config=make_config("fada"))
    config = make_config("fada, group")
    meta = saving.make_meta(
        config.plain(), config.model, config.preprocessing,
        config.classes,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    random = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), fresh_states("fada, group"))
    with saving.writing(folder / "group", meta, wait=True) as save:
        save(3, random)
    for name, workdir in (("ours.pth", "w"), ("ours.safetensors", "w"), ("own.safetensors", "group")):
        exporting.export_file(folder / workdir, folder / name)
        paths[name] = folder / name
    return paths


# Which configs take which file ----------------------------------------------------------------------------------------

FROZEN = ("source", "fada", "binary", "control")
TAKEN = {
    "torchvision": (*FROZEN, "source, adam", "distillation, live"),
    "caffe vgg": ("vgg source", "vgg fada"),
    "source": FROZEN,
    "source, adam": ("source, adam",),
    "source, weights alone": (*FROZEN, "source, adam", "distillation, live"),
    "adaptation": ("source", "fada", "control"),
    "adversarial, no optimizers": ("source", "source, adam", "fada", "control", "distillation, live"),
    "adversarial, module.": ("source", "fada", "control"),
    "adversarial, binary": ("source", "binary", "control"),
    "half of its optimizers": FROZEN,
    "live": ("distillation, live",),
    "vgg": ("vgg source", "vgg fada"),
    "ours.pth": ("source", "fada", "control"),
    "ours.safetensors": ("source", "source, adam", "fada", "control", "distillation, live"),
    "own.safetensors": ("fada, group",),
}


# What a state may hold ------------------------------------------------------------------------------------------------


@functools.cache
def fresh_states(name):
    """The states that a run of a config begins with."""
    return parents.initial_states(make_config(name), distributed.make_mesh(1))


def in_our_layout(tensor):
    array = np.asarray(tensor, np.float32)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def key_of(array):
    array = np.ascontiguousarray(array)
    return array.shape, array.tobytes()


def file_tensors(path):
    """Every floating-point tensor of a file in our layout: contents -> its name; D's two heads as our one."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        flat = load_file(path)
        # Ours is NHWC already.
        arrays = {n: x if n.startswith(("params.", "batch_stats.")) else in_our_layout(x) for n, x in flat.items()}
    else:
        contents = torch.load(path, weights_only=True)
        arrays = {}
        for keys, value in jax.tree.leaves_with_path(contents, is_leaf=lambda x: isinstance(x, torch.Tensor)):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                name = ".".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in keys)
                if not name.endswith(".step"):
                    arrays[name.replace(".module.", ".")] = in_our_layout(value)
    heads = [("model_D.cls1.weight", "model_D.cls2.weight"), ("model_D.cls1.bias", "model_D.cls2.bias")]
    for slot in ("exp_avg", "exp_avg_sq"):
        heads += [(f"optimizer_D.state.{i}.{slot}", f"optimizer_D.state.{i + 2}.{slot}") for i in (4, 5)]
    for first, second in heads:
        if first in arrays:
            arrays[first] = np.concatenate([arrays.pop(first), arrays.pop(second)], axis=-1)
    named = {key_of(array): name for name, array in arrays.items()}
    assert len(named) == len(arrays)
    return named


def group_of(path):
    """What the report calls the part of the states that an array belongs to, where it can be fresh."""
    network, field, *rest = path
    if field == "opt_state":
        section = next((key for key in rest if key in ("feature_extractor", "classifier")), None)
        return {"feature_extractor": "F", "classifier": "C", None: "D"}[section]
    return "discriminator" if network == "discriminator" else next((k for k in rest if k in ("fc6", "fc7")), rest[0])


def named_leaves(states):
    """(network, field, keys...) -> array, of weights, statistics and optimizer states; schedules and steps apart."""
    leaves, counts = {}, {}
    for network, state in states.items():
        fields = {"params": state.params, "opt_state": state.opt_state, "step": state.step}
        fields["batch_stats"] = state.collections.get("batch_stats", {})
        parts = jax.tree.leaves(state.opt_state, is_leaf=lambda part: isinstance(part, COUNTERS))
        counts[network] = {kind: [int(part.count) for part in parts if isinstance(part, kind)] for kind in COUNTERS}
        for path, leaf in jax.tree.leaves_with_path(fields):
            keys = tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path)
            if keys[-1] not in ("count", "step"):
                leaves[(network, *keys)] = np.asarray(leaf)
    return leaves, counts


def restored(workdir, config):
    """The states of an imported workdir, as a run that goes on there reads them."""
    (step,) = checkpoints.available_steps(workdir)
    shapes = jax.eval_shape(lambda: program.create_states(config))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return step, checkpoints.restore_states(workdir, step, shapes, jax.tree.map(lambda _: device, shapes))


@pytest.mark.parametrize("kind", TAKEN)
def test_every_array_is_the_files_or_fresh_and_said_so(kind, files, tmp_path):
    tensors, taken = file_tensors(files[kind]), []
    for name in CONFIGS:
        config, workdir = make_config(name), tmp_path / name
        options = {"format": "caffe_vgg" if kind == "caffe vgg" else "", "config": config}
        try:
            report = convert_weights.import_file(str(files[kind]), str(workdir), **options)
        except UserError as error:
            assert "\n" not in str(error) and str(files[kind]) in str(error)
            assert not workdir.exists()
            continue
        taken.append(name)
        step, states = restored(workdir, config)
        begins = kind in ("torchvision", "caffe vgg", "source, weights alone") or kind.endswith("safetensors")
        assert step == (0 if begins else STEP)
        check_account(step, states, fresh_states(name), tensors, report)
    assert taken == [name for name in CONFIGS if name in TAKEN[kind]]


def check_account(step, states, fresh, tensors, report):
    leaves, counts = named_leaves(states)
    fresh_leaves, _ = named_leaves(fresh)
    assert leaves.keys() == fresh_leaves.keys()
    used, anew = set(), set()
    for path, leaf in leaves.items():
        assert np.any(leaf) or path[1] == "opt_state" or path[-1] != "kernel", path
        if name := tensors.get(key_of(leaf)):
            used.add(name)
        else:
            assert leaf.tobytes() == fresh_leaves[path].tobytes(), path
            anew.add(group_of(path))

    # The report says what is fresh, and of nothing else.
    lines = {"discriminator": "discriminator", "classifier": "classifier"}
    lines |= {name: f"optimizer of {name}" for name in ("G", "F", "C", "D")}
    if {"F", "C"} <= anew:
        anew = anew - {"F", "C"} | {"G"}
    if "fc6" in anew:
        lines["classifier"] = "classifier, fc6 and fc7"
        anew -= {"fc6", "fc7"}
    zeros = f"not in the file, starts from zero moments, its schedule at step {step}"
    said = [line.strip() for line in report.splitlines() if "not in the file" in line]
    for group in anew:
        (line,) = (line for line in said if line.startswith(f"{lines[group]}: "))
        assert zeros in line if group in "GFCD" else "not in the file, freshly initialised" in line
    assert len(said) == len(anew)

    # Every tensor of the file is used, or said to be left there.
    left = report.partition("sections left in the file: ")[2].partition("\n")[0].split(", ")
    dropped = next(line for line in report.splitlines() if " dropped" in line)
    for name in tensors.values():
        section = name.partition(".")[0]
        assert (name in used) + (section in left) + (name in dropped) == 1, (name, report)

    # Steps and schedules stand at the iteration; Adam counts the steps behind its moments.
    for network, state in states.items():
        assert int(state.step) == step
        schedules, adams = (set(counts[network][kind]) for kind in COUNTERS)
        assert schedules == {step} and adams <= {int(not anew & set("G" if network == "generator" else "D"))}
    if "folded" in states["generator"].collections:
        stats, folded = (states["generator"].collections[name] for name in ("batch_stats", "folded"))
        stats, folded = (x["feature_extractor"]["bn1"] for x in (stats, folded))
        np.testing.assert_allclose(folded["scale"], stats["scale"] / np.sqrt(stats["var"]), rtol=1e-6)


def test_a_file_is_read_without_a_workdir_tensor_by_tensor(files):
    for kind in ("ours.safetensors", "own.safetensors"):
        model, tensors = reading.read_model(files[kind]), file_tensors(files[kind])
        names = [tensors[key_of(x)] for x in jax.tree.leaves((model.params, model.batch_stats))]
        assert sorted(names) == sorted(name for name in tensors.values() if not name.startswith("model_D"))
        assert model.step == (3 if kind == "own.safetensors" else STEP)


def test_what_surrounds_a_state_dict_is_named(tmp_path):
    contents = {"state_dict": torchvision(), "epoch": 90, "optimizer": {"state": {}}}
    torch.save(contents, tmp_path / "in.pth")
    report = convert_weights.import_file(
        str(tmp_path / "in.pth"), str(tmp_path / "w"), config=make_config("source")
    )  # fmt: skip
    assert "sections left in the file: epoch, optimizer" in report
    assert "step 0: the file names no iteration" in report


def test_the_report_says_more_where_more_must_be_known(files, tmp_path, monkeypatch):
    def report(kind, name, **values):
        workdir = tmp_path / f"{kind}, {name}, {values}"
        return convert_weights.import_file(str(files[kind]), str(workdir), config=make_config(name, **values))

    # A file says nothing about its stage: a discriminator that begins in the middle of one may be a mistake.
    assert "name that workdir in config.init_from" in report("source", "fada")
    assert "init_from" not in report("torchvision", "fada")
    assert "batch norm: frozen in the file, live from now on" in report("source, weights alone", "distillation, live")
    assert "step 7 of 40000" in report("adaptation", "fada")
    assert "its weights are of step 7" in report("ours.safetensors", "fada")
    finished = report("adaptation", "fada", total_steps=STEP)
    assert f"step {STEP} of {STEP}: finished" in finished
    with pytest.raises(UserError, match=r"iteration 7 is beyond config.total_steps=6.*leave out --config"):
        report("adaptation", "fada", total_steps=6)
    # Without --config it is read off the file, to evaluate it.
    monkeypatch.setattr(
        reading, "released_model", lambda file, path, *_: None
    )  # It knows no network as narrow as this.
    short = make_config("fada", total_steps=6)
    beyond = importing.import_file(str(files["adaptation"]), str(tmp_path / "beyond"), lambda model: short)
    assert "step 7 is beyond config.total_steps=6" in beyond and "not to train on" in beyond
    assert checkpoints.load_model(tmp_path / "beyond").step == STEP


def set_moment(contents, optimizer, index, slot, value):
    state = dict(contents[optimizer]["state"])
    state[index] = {**state[index], slot: value}
    return {**contents, optimizer: {**contents[optimizer], "state": state}}


def without_moment(contents, optimizer, index):
    state = {i: slots for i, slots in contents[optimizer]["state"].items() if i != index}
    return {**contents, optimizer: {**contents[optimizer], "state": state}}


def test_a_tensor_without_a_step_has_zero_moments_and_that_is_said(tmp_path):
    torch.save(without_moment(released(networks()), "optimizer_fea", 0), tmp_path / "in.pth")
    report = convert_weights.import_file(str(tmp_path / "in.pth"), str(tmp_path / "w"), config=make_config("fada"))
    assert "optimizer of G: from the file, zero moments for the 1 tensors that had no step yet" in report


BAD_ITERATIONS = ([3], -1, 7.0, True, None, float("nan"), 2**40, "abc\ndef", torch.tensor([1, 2]), torch.tensor(7.0))
BAD_CHECKPOINTS = {
    "weight that is not finite": (
        lambda c: c["classifier"].update({"conv2d_list.1.bias": torch.full((K,), torch.nan)}), "holds a NaN",
    ),
    "moment that is not finite": (
        lambda c: set_moment(c, "optimizer_cls", 0, "momentum_buffer", torch.full((K, 8, 3, 3), torch.inf)),
        "momentum_buffer of classifier.conv2d_list.0.weight holds a NaN or an infinity",
    ),
    "weight that is a list": (
        lambda c: c["classifier"].update({"conv2d_list.1.bias": [1.0]}), "conv2d_list.1.bias is a list, not a tensor",
    ),
    "moment that is a number": (
        lambda c: set_moment(c, "optimizer_D", 1, "exp_avg", 3.5), "exp_avg of model_D.D.0.bias is a float, not",
    ),
    "moment of another shape": (
        lambda c: set_moment(c, "optimizer_D", 1, "exp_avg", torch.zeros(2)), r"exp_avg of model_D.D.0.bias has shape",
    ),
    "moment that is missing": (
        lambda c: set_moment(c, "optimizer_D", 1, "exp_avg", None), "optimizer_D keeps exp_avg_sq, step, which is no",
    ),
    "moment that is not known": (
        lambda c: set_moment(c, "optimizer_D", 1, "max_exp_avg_sq", torch.zeros(6)), "optimizer_D keeps .*max_exp",
    ),
    "tensor that Adam has not moved": (
        lambda c: without_moment(c, "optimizer_D", 1), "model_D has parameters with different step counts",
    ),
    "step that is no number": (
        lambda c: set_moment(c, "optimizer_D", 1, "step", "first"), "step count that is no number",
    ),
    "optimizer that is none": (lambda c: {**c, "optimizer_fea": {"state": 1, "param_groups": 2}}, "no optimizer state"),
    "optimizer of nothing": (lambda c: {**c, "optimizer_cls": None}, "no optimizer state optimizer_cls"),
    **{f"iteration {n}": (lambda c, n=n: {**c, "iteration": n}, "its iteration is .*, not a whole number of steps")
       for n in BAD_ITERATIONS},
}  # fmt: skip


def test_checkpoints_that_cannot_be_true_are_refused(tmp_path):
    for what, (change, expected) in BAD_CHECKPOINTS.items():
        contents = released(networks())
        torch.save(change(contents) or contents, tmp_path / "in.pth")
        with pytest.raises(UserError, match=expected) as caught:
            convert_weights.import_file(str(tmp_path / "in.pth"), str(tmp_path / "w"), config=make_config("fada"))
        assert str(caught.value).startswith(f"{tmp_path}/in.pth: ") and "\n" not in str(caught.value), what
        assert not (tmp_path / "w").exists()


def test_a_model_of_ours_must_be_whole_and_described(files, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "in.safetensors"
    with safe_open(files["own.safetensors"], "np") as file:
        meta = json.loads(file.metadata()["fada_jax"])
    tensors = load_file(files["own.safetensors"])
    name = "params.classifier.conv0.kernel"
    model = {**meta["model"], "num_classes": 5}
    cases = [
        (without(tensors, name), meta, f"lacks {name}"),
        ({**tensors, "params.classifier.conv0": tensors[name]}, meta, "params.classifier.conv0, unknown to the model"),
        ({**tensors, name: tensors[name][:1]}, meta, rf"{name} has shape \(1, 3, 8, 19\)"),
        ({**tensors, name: tensors[name].astype(np.int32)}, meta, f"{name} is not an array of floating-point"),
        ({**tensors, name: tensors[name] * np.nan}, meta, f"{name} holds a NaN"),
        (tensors, without(meta, "model"), "model is missing"),
        (tensors, without(meta, "checkpoint_step"), "checkpoint_step is missing"),
        (tensors, {**meta, "model": model}, "its model has 5 classes, its class set 'cityscapes19' 19"),
        (tensors, "{", "its metadata is not JSON"),
        (tensors, None, "does not say which model it holds: export it again"),
        ({key.removeprefix("params."): x for key, x in tensors.items()}, meta, "do not have the names that export"),
    ]
    for arrays, described, expected in cases:
        text = described if isinstance(described, str) else json.dumps(described)
        save_file(arrays, path, {"fada_jax": text} if described else None)
        for read in (
            lambda: convert_weights.import_file(str(path), str(tmp_path / "w"), config=make_config("fada, group")),
            lambda: reading.read_model(path),
        ):
            with pytest.raises(UserError, match=expected) as caught:
                read()
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "w").exists()
    # A config of another model is refused where no shape would tell, and one that this version cannot use.
    with pytest.raises(UserError, match=r"model.aspp_rates is \(1, 2\), the config's is \(1, 3\)"):
        config = make_config("fada, group", **{"model.aspp_rates": (1, 3)})
        convert_weights.import_file(str(files["own.safetensors"]), str(tmp_path / "w"), config=config)
    save_file(tensors, path, {"fada_jax": json.dumps({**meta, "config": without(meta["config"], "seed")})})
    with pytest.raises(UserError, match=r"the config in it cannot be used \(config.seed is missing.*--config"):
        convert_weights.import_file(str(path), str(tmp_path / "w"))


@pytest.fixture
def quick_compile():
    """A test's two steps compile for longer than they run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def batches(adversarial):
    """Random batches of one image a stream, for ever."""
    rng = np.random.default_rng(0)
    while True:
        source, target = (rng.integers(0, 256, (1, 32, 32, 3), np.uint8) for _ in range(2))
        batch = {"source": {"image": source, "label": rng.integers(0, K, (1, 32, 32)).astype(np.uint8)}}
        yield {**batch, "target": {"image": target}} if adversarial else batch


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("torchvision", "source"),
        ("own.safetensors", "fada, group"),
        pytest.param("adaptation", "fada", marks=pytest.mark.slow),
    ],
)
def test_training_in_an_imported_workdir_begins_with_the_imported_states(kind, name, files, tmp_path):
    adversarial = name != "source"
    begin = STEP if kind == "adaptation" else 0
    # Without a learning rate the weights stay what they were when training began.
    still = {f"{network}_optimizer.learning_rate": 0.0 for network in ("generator", "discriminator")}
    config = make_config(
        name, total_steps=begin + 2, batch_size=2 if adversarial else 1, log_every=1, checkpoint_every=1, log_images=0,
        num_devices=1, **still,
    )  # fmt: skip
    convert_weights.import_file(str(files[kind]), str(tmp_path), config=config)
    imported, logged = restored(tmp_path, config)[1], []
    states = run.train(config, tmp_path, batches=batches(adversarial), log=logged.append)
    assert any(f"steps {begin} to {begin + 2}" in line for line in logged)
    assert checkpoints.available_steps(tmp_path) == [begin, begin + 1, begin + 2]
    for network, state in states.items():
        assert int(state.step) == begin + 2
        jax.tree.map(np.testing.assert_array_equal, state.params, imported[network].params)
    tensors = file_tensors(files[kind])
    extractor = states["generator"].params["feature_extractor"]
    assert key_of(np.asarray(extractor["conv1"]["kernel"])) in tensors
