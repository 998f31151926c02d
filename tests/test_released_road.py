"""Hand-overs between the stages that a miniature hides: sizes that differ, origins that change, types and paths."""

import dataclasses
import functools
import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees
import scipy.stats
import torch
from commands import command_here, on_devices, one_error

import fada_jax
from fada_jax import classes, distributed, loading
from fada_jax import config as schema
from fada_jax.configs import cityscapes_to_crosscity, gta5_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.evaluation import colour_matching, inference, predictor, scoring
from fada_jax.input_pipeline import conversion, streams
from fada_jax.input_pipeline.pseudo_labels import PseudoLabels
from fada_jax.interop import stablehlo
from fada_jax.models import Discriminator, Segmenter, compute_dtype
from fada_jax.stages import beginning, labelling, parents, program, recipe, run, workdirs
from fada_jax.stored import Parent
from fada_jax.training import checkpoints, losses, saving
from fada_jax.training import states as train_states
from fada_jax.training.optimizers import OptimizerSpec

NARROW = {
    "total_steps": 2, "batch_size": 4, "checkpoint_every": 1, "log_every": 1, "log_images": 0, "loss_block_rows": 0,
    "model.widths": (8, 8, 16, 16), "model.stage_sizes": (1, 1, 1, 1), "model.stem_width": 8,
    "discriminator.widths": (8, 8), "multi_scale": (0.7, 1.0), "source.size": (48, 27),
}  # fmt: skip


def config_of(arguments, data_dir="", **values):
    """A released config of a narrow network on raw_trees' images: cities of 64x32 that adaptation sees at 32x16."""
    config = gta5_to_cityscapes.get_config(arguments)
    sizes = {"target.size": (32, 16), "eval.size": (32, 16)}
    if config.stage == "self_distillation":
        sizes = {"target.size": (64, 32), "eval.size": (64, 32), "target.crop": (32, 16)}
    config.update_from_flattened_dict({**NARROW, **sizes, "data_dir": str(data_dir), **values})
    return config


def write_model(workdir, config, seed=0, step=2):
    """A workdir of random weights that disagree about most pixels."""
    states = jax.jit(lambda: program.create_states(schema.read(config)))()
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: rng.normal(0, 1.5 / np.sqrt(x.size / x.shape[-1]), x.shape).astype(np.float32),
        states["generator"].params,
    )
    states["generator"] = states["generator"].replace(params=params)
    meta = saving.make_meta(
        schema.read(config).plain(),
        schema.read(config).model,
        schema.read(config).preprocessing,
        classes.get_class_set(config.class_set),
    )
    with saving.writing(workdir, meta, wait=True) as save:
        save(step, states)
    return workdir


@pytest.fixture(scope="module", autouse=True)
def quick_compile():
    """What runs once or twice compiles for longer than it runs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("road")
    for name, make in (("gta5", raw_trees.gta5), ("cityscapes", raw_trees.cityscapes)):
        conversion.convert(conversion.Conversion(name, make(root / name)), root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def teacher(data_dir, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("teacher"), config_of("stage=adaptation", data_dir))


def label(config, workdir, stored=None, log=lambda line: None):
    """The pseudo labels of a stage by name, and their provenance."""
    workdir.mkdir(exist_ok=True)
    mesh = distributed.make_mesh()
    provenance = labelling.ensure_pseudo_labels(schema.read(config), workdir, stored, None, mesh, log)
    file = PseudoLabels(labelling.pseudo_label_file(schema.read(config), workdir))
    stream = schema.read(config).target.stream(labels=False, augment=False)
    labels = {}
    for name in streams.names(config.data_dir, stream):
        labels[name] = np.asarray(file.read(name))
    return labels, provenance


def test_the_teacher_labels_what_it_predicts_at_the_size_it_is_tested_at(data_dir, teacher, tmp_path):
    config = config_of("stage=self_distillation", data_dir, teacher_from=str(teacher), eval_batch_size=4)
    labels, provenance = label(config, tmp_path / "w")
    assert (provenance["teacher_size"], provenance["label_size"]) == ([32, 16], [64, 32])
    segment = fada_jax.load(teacher)
    assert segment.input_size == (32, 16) and len(labels) == 6
    stream = schema.read(config).target.stream(augment=False)
    class_set = classes.get_class_set("cityscapes19")
    images = streams.examples(data_dir, stream, class_set, range(6))
    same = [np.mean(labels[name] == segment(image)) for name, (image, _) in zip(labels, images, strict=True)]
    assert min(same) >= 0.999
    assert min(len(np.unique(x)) for x in labels.values()) > 2


def test_labels_of_another_teacher_or_selection_are_made_again(data_dir, teacher, tmp_path):
    config = config_of("stage=self_distillation", data_dir, teacher_from=str(teacher))
    first, made_from = label(config, tmp_path / "w")
    begun = types.SimpleNamespace(pseudo_labels=made_from)
    said = []
    again, _ = label(config, tmp_path / "w", log=said.append)
    assert not said and all(np.array_equal(first[name], again[name]) for name in first)
    other = write_model(tmp_path / "other", config_of("stage=adaptation", data_dir), seed=1)
    changes = {
        "teacher_from": {"teacher_from": str(other)},
        "selection": {"pseudo_labels.keep": 0.5},
        "label_size": {"target.size": (60, 30)},
    }
    for key, change in changes.items():
        changed = config_of("stage=self_distillation", data_dir, **{"teacher_from": str(teacher), **change})
        said.clear()
        labels, _ = label(changed, tmp_path / "w", log=said.append)
        assert any("made again" in line for line in said), key
        shapes_differ = labels["aachen_000000_000019"].shape != first["aachen_000000_000019"].shape
        assert shapes_differ or any((labels[name] != first[name]).any() for name in first), key
        # A student that has begun keeps its labels or is refused.
        with pytest.raises(UserError, match="does not hold the labels that"):
            label(config, tmp_path / "w", begun)
    (tmp_path / "w" / "pseudo_labels.tfrecord").unlink()
    restored, _ = label(config, tmp_path / "w", begun)
    assert all(np.array_equal(first[name], restored[name]) for name in first)
    (tmp_path / "w" / "pseudo_labels.tfrecord").unlink()
    with pytest.raises(UserError, match="cannot be made again as it was"):
        label(changed, tmp_path / "w", begun)


def test_a_stage_whose_origin_was_made_again_is_refused(data_dir, teacher, tmp_path):
    source = write_model(tmp_path / "source", config_of("stage=source", data_dir))
    config = config_of("stage=adaptation", data_dir, init_from=str(source), total_steps=1)
    said = []
    run.train(schema.read(config), tmp_path / "w", log=said.append)
    assert not any("random" in line for line in said)
    stored = beginning.check(schema.read(config), tmp_path / "w").meta
    assert stored.parents["init_from"] == Parent(2, checkpoints.load_model(source).digest)
    # The same weights elsewhere are the same.
    moved = source.rename(tmp_path / "moved")
    same = config_of("stage=adaptation", data_dir, init_from=str(moved), total_steps=1)
    beginning.check(schema.read(same), tmp_path / "w")
    write_model(tmp_path / "source", config_of("stage=source", data_dir), seed=7)
    with pytest.raises(UserError, match="other weights lie now"):
        beginning.check(schema.read(config), tmp_path / "w")


def test_a_stage_without_weights_says_that_it_starts_at_random(data_dir, tmp_path):
    said = []
    run.train(schema.read(config_of("stage=adaptation", data_dir, total_steps=1)), tmp_path / "w", log=said.append)
    assert sum("config.init_from is empty, so it starts from random weights" in line for line in said) == 1
    assert any(line.endswith("in float32") for line in said)


def test_batches_have_explicit_global_shapes():
    mesh = distributed.make_mesh(1)
    batch = {"image": np.zeros((4, 6, 8, 3), np.uint8), "label": np.zeros((4, 6, 8), np.uint8), "name": ["a"] * 4}
    placed = distributed.put_batch(batch, mesh)
    assert {key: x.shape for key, x in placed.items()} == {"image": (4, 6, 8, 3), "label": (4, 6, 8)}


def test_colour_statistics_do_not_depend_on_batches_or_devices():
    images = np.random.default_rng(0).integers(0, 256, (12, 9, 11, 3), dtype=np.uint8)
    found = []
    for sizes in ((12,), (5, 7), (1,) * 12):
        parts = np.split(images, np.cumsum(sizes)[:-1])
        found.append(colour_matching.colour_statistics({"image": x, "mask": np.ones(len(x), bool)} for x in parts))
    assert found[0] == found[1] == found[2]
    pixels = images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found[0].mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found[0].std, pixels.std(0), rtol=1e-9)


def matched_scores(workdir, data_dir):
    result = scoring.evaluate_stage(workdir, data_dir=data_dir, colour="global")
    return [result["num_images"], result["confusion"]]


def test_the_colour_matching_baseline_is_the_same_on_any_number_of_devices(data_dir, teacher, monkeypatch):
    one = matched_scores(str(teacher), str(data_dir))
    call = f"matched_scores({str(teacher)!r}, {str(data_dir)!r})"
    assert on_devices(3, "test_released_road", call) == json.loads(json.dumps(one))


def test_scoring_again_compiles_nothing(data_dir, teacher, monkeypatch):
    traced = []
    step = inference.evaluation_step

    def counted(*arguments, **options):
        traced.append(1)
        return step(*arguments, **options)

    monkeypatch.setattr(inference, "evaluation_step", counted)
    scoring.compiled_step.cache_clear()
    results = [scoring.evaluate_stage(teacher, data_dir=str(data_dir)) for _ in range(2)]
    config = config_of("stage=adaptation", data_dir)
    mesh = distributed.make_mesh()
    states = parents.initial_states(schema.read(config), mesh, checkpoints.load_model(teacher))
    with_own = scoring.validate(schema.read(config), states["generator"], 2, mesh)["miou"]
    # Validation in training runs the spec of the config; on a CPU that is the same network.
    assert len(traced) <= 2 and results[0] == results[1]
    assert with_own == pytest.approx(results[0]["miou"])
    before = len(traced)
    scoring.validate(schema.read(config), states["generator"], 2, mesh)["miou"]
    assert len(traced) == before
    scoring.compiled_step.cache_clear()


def test_pixels_are_counted_exactly_beyond_float32():
    side = 4097  # An odd square beyond 2**24.
    labels = jnp.zeros((1, side, side), jnp.uint8)
    _, count = jax.jit(losses.segmentation_sum)(jnp.zeros((1, side, side, 1)), labels)
    assert int(count) == side * side != int(np.float32(side * side))


@functools.cache
def fresh_vgg():
    config = gta5_to_cityscapes.get_config("backbone=vgg16,stage=adaptation")
    config.update_from_flattened_dict({"model.widths": (8, 8, 8, 8, 16, 64), "discriminator.widths": (64, 48)})
    states = jax.jit(lambda: program.create_states(schema.read(config)))()
    return jax.device_get({name: state.params for name, state in states.items()})


@pytest.mark.parametrize("name", ["classifier", "discriminator", "fc6", "fc7"])
def test_new_layers_start_as_pytorch_starts_them(name):
    params = fresh_vgg()
    generator = params["generator"]
    layers = {
        "classifier": [generator["classifier"][f"conv{i}"] for i in range(4)],
        "discriminator": [params["discriminator"][key] for key in ("conv0", "conv1", "head")],
        "fc6": [generator["feature_extractor"]["fc6"]],
        "fc7": [generator["feature_extractor"]["fc7"]],
    }[name]
    for layer in layers:
        height, width, inputs, outputs = layer["kernel"].shape
        theirs = torch.nn.Conv2d(inputs, outputs, height)
        bound = 1 / np.sqrt(height * width * inputs)
        assert layer["bias"].any() and np.abs(layer["bias"]).max() <= bound
        assert np.abs(theirs.bias.detach().numpy()).max() <= bound  # PyTorch's own agrees about the bound.
        assert scipy.stats.kstest(layer["bias"], scipy.stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
        if name == "classifier":
            assert layer["kernel"].std() == pytest.approx(0.01, rel=0.1)
        else:
            pvalue = scipy.stats.ks_2samp(layer["kernel"].ravel(), theirs.weight.detach().numpy().ravel()).pvalue
            assert pvalue > 1e-3 and np.abs(layer["kernel"]).max() <= bound


def test_auto_is_resolved_where_the_program_runs(data_dir, teacher, tmp_path):
    assert gta5_to_cityscapes.get_config().model.dtype == "auto" and compute_dtype("auto") == "float32"
    assert compute_dtype("auto", "gpu") == "bfloat16" and compute_dtype("float32", "gpu") == "float32"
    image = raw_trees.picture(0, 40, 70)
    expected = fada_jax.load(teacher, dtype="float32").probabilities(image)
    assert fada_jax.load(teacher).dtype == "float32"
    np.testing.assert_array_equal(fada_jax.load(teacher).probabilities(image), expected)
    # What an earlier version imported says bfloat16; a CPU has nothing to gain from it.
    model = checkpoints.load_model(teacher)
    half = dataclasses.replace(model, spec=dataclasses.replace(model.spec, dtype="bfloat16"))
    np.testing.assert_array_equal(predictor.from_model(half).probabilities(image), expected)
    rough = predictor.from_model(half, "bfloat16").probabilities(image)
    assert 1e-4 < np.abs(rough - expected).max() < 0.1
    with pytest.raises(UserError, match="dtype='float16'"):
        loading.load(teacher, dtype="float16")
    config = config_of("stage=adaptation", data_dir)
    other = config_of("stage=adaptation", data_dir, **{"model.dtype": "float32"})
    workdirs.refuse_other_config(schema.read(config).plain(), schema.read(other).plain(), tmp_path)
    other.model.dtype = "bfloat16"
    with pytest.raises(UserError, match=r"model\.dtype"):
        workdirs.refuse_other_config(schema.read(config).plain(), schema.read(other).plain(), tmp_path)


def test_an_artifact_holds_every_platforms_own_formulation(teacher, tmp_path):
    model = checkpoints.load_model(teacher)
    path = stablehlo.export_model(model, tmp_path / "artifact")
    text = jax.export.deserialize(bytearray((path / "probabilities.stablehlo").read_bytes())).mlir_module()
    # Three branches, of which the accelerators' compute in bfloat16.
    assert "stablehlo.case" in text and "bf16" in text
    assert json.loads((path / "model.json").read_text())["dtype"] == {
        "cpu": "float32",
        "cuda": "bfloat16",
        "tpu": "bfloat16",
    }
    image = raw_trees.picture(1, 33, 50)
    artifact = fada_jax.load(path)
    difference = np.abs(artifact.probabilities(image) - fada_jax.load(teacher).probabilities(image))
    assert artifact.dtype == "float32" and difference.max() < 2e-5
    with pytest.raises(UserError, match="export it again with --dtype=bfloat16"):
        fada_jax.load(path, dtype="bfloat16")
    whole = stablehlo.export_model(model, tmp_path / "float32", dtype="float32")
    text = jax.export.deserialize(bytearray((whole / "probabilities.stablehlo").read_bytes())).mlir_module()
    assert "bf16" not in text


TRAIN = ("-m", "fada_jax.train", "--config=configs/gta5_to_cityscapes.py:size=miniature")


@pytest.mark.parametrize(
    "arguments",
    [
        (*TRAIN, "--workdir=hdfs://host/run"),
        (*TRAIN, "--workdir=w", "--config.data_dir=hdfs://host/data"),
        (*TRAIN, "--workdir=w", "--config.init_from=az://container/w"),
        ("-m", "fada_jax.evaluate", "--workdir=hdfs://host/run"),
        ("-m", "fada_jax.predict", "--workdir=w", "--out=hdfs://host/out", "x.png"),
        ("-m", "fada_jax.predict", "--workdir=w", "--out=out", "hdfs://host/x.png"),
        ("-m", "fada_jax.export", "--workdir=w", "--output=hdfs://host/a"),
        ("-m", "fada_jax.convert_weights", "import", "--input=https://host/r101.pth", "--output=w"),
        ("scripts/convert_dataset.py", "--dataset=gta5", "--raw_dir=hdfs://host/raw", "--data_dir=d"),
        ("scripts/run_recipe.py", "--config=configs/gta5_to_cityscapes.py", "--workdir=hdfs://host/run"),
    ],
)
def test_a_store_that_nothing_serves_is_refused_at_once(arguments):
    status, output, errors = command_here(*arguments)
    assert status == 1 and not output
    assert "is not supported, only local and mounted paths, gs:// and s3://" in one_error(errors)
    with pytest.raises(UserError, match="hdfs://host"):
        fada_jax.load("hdfs://host/run")
    with pytest.raises(UserError, match="write gs://BUCKET/NAME"):  # What pathlib makes of it.
        checkpoints.directory("gs:/bucket/run")


def test_arguments_of_a_config_given_as_keys_are_refused():
    for key, value in (("stage", "adaptation"), ("method", "binary"), ("size", "miniature")):
        status, _, errors = command_here(
            *TRAIN[:2], "--config=configs/gta5_to_cityscapes.py", f"--config.{key}={value}"
        )
        assert status == 1 and f"--config=configs/gta5_to_cityscapes.py:{key}={value}" in one_error(errors)


def test_a_lambda_on_the_command_line_is_not_the_controls(tmp_path):
    path, overrides = "configs/gta5_to_cityscapes.py:size=miniature", {"lambda_adv": 0.2}
    stages = recipe.configs(path, overrides, tmp_path)
    assert (stages["adaptation"].lambda_adv, stages["control"].lambda_adv) == (0.2, 0.0)


def test_deterministic_sets_xlas_flag(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    status, _, errors = command_here(*TRAIN, "--deterministic")
    assert status == 1 and "--workdir is missing" in one_error(errors)
    assert os.environ["XLA_FLAGS"].split() == ["--xla_gpu_deterministic_ops=true"]


def test_every_released_student_is_larger_than_its_teacher():
    """The sizes that a miniature hides, of every config that has them."""
    for module in (gta5_to_cityscapes, cityscapes_to_crosscity):
        adapted, student = (module.get_config(f"stage={stage}") for stage in ("adaptation", "self_distillation"))
        assert adapted.eval.size == (1024, 512) and student.target.size == student.eval.size == (2048, 1024)


def test_networks_take_auto(monkeypatch):
    spec = schema.read(gta5_to_cityscapes.get_config("size=miniature")).model
    state = train_states.create_generator(dataclasses.replace(spec, dtype="auto"), OptimizerSpec(), jax.random.key(0))
    apply_fn = Segmenter(dataclasses.replace(spec, dtype="auto")).apply
    shapes = jax.eval_shape(apply_fn, state.variables, jnp.zeros((1, 32, 32, 3)))
    assert shapes[1].dtype == jnp.float32
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    shapes = jax.eval_shape(lambda v, x: apply_fn(v, x), state.variables, jnp.zeros((1, 32, 32, 3)))
    assert (shapes[0].dtype, shapes[1].dtype) == (jnp.float32, jnp.bfloat16)
    assert Discriminator(4, (8, 8)).dtype == jnp.float32
