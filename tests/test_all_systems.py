"""What holds for every system that adapts: meshes, micro-batches, resume, bfloat16, without a line of its own."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import on_devices, quick_jit
from test_steps import make_batch

from fada_jax import config as schema
from fada_jax import distributed
from fada_jax.configs import base
from fada_jax.errors import UserError
from fada_jax.methods import SYSTEMS, Prepared, TrainingSpec, options_of
from fada_jax.models import ModelSpec
from fada_jax.stages import parents, recipe, run
from fada_jax.training import checkpoints
from fada_jax.training.optimizers import OptimizerSpec
from fada_jax.training.states import TrainState

ADAPTING = [name for name, system in SYSTEMS.items() if system.adapts]
# Those that look at the source first are resumed in tests/test_cells.py.
RESUMED = [name for name in ADAPTING if not isinstance(SYSTEMS[name].method(), Prepared)]
# The others are slow.
QUICK = ("clan",)


def quick(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


MESHES = {"data 2": (2, 1, 1), "data 4": (4, 1, 1), "fsdp 2": (4, 2, 1), "spatial 2": (4, 1, 2)}
SGD = OptimizerSpec("sgd", 1e-2, 100)


def target_part(name, batch, num_classes):
    """What a system reads of a target batch: images, and labels or the answers of easy tasks where a stage has them."""
    stage = SYSTEMS[name].stage
    if stage != "curriculum":
        return batch if stage == "self_training" else {"image": batch["image"]}
    count, _, width = batch["label"].shape
    classes = np.full((count, 255), 255, np.uint8)
    classes[:, :12] = np.arange(count)[:, None] % num_classes
    columns = np.arange(width) // 8 * 2
    return {
        "image": batch["image"],
        # Landmarks of 8x8 pixels or more, some of them without a class, and pixels of none.
        "landmark": np.where(batch["label"] == 255, 255, columns + np.arange(count)[:, None, None] % 2).astype(
            np.uint8
        ),
        "distribution": np.random.default_rng(0).dirichlet(np.ones(num_classes), count).astype(np.float32),
        "landmark_class": classes,
    }


def two_steps(name, mesh=(1, 1, 1), dtype="float32", accumulate_steps=1):
    """Parameters of every network and metrics after two steps, as flat lists by name."""
    mesh, system = distributed.make_mesh(*mesh), SYSTEMS[name]
    model = ModelSpec("resnet18", 5, "group", (1, 1, 1, 1), (16, 16, 32, 64), 16, True, 4, (1, 2))
    model = dataclasses.replace(model, heads=system.heads, dtype=dtype)
    spec = TrainingSpec(
        model, generator_optimizer=SGD, discriminator_optimizer=SGD, discriminator_widths=(32, 16), patch_width=8,
        accumulate_steps=accumulate_steps,
    )  # fmt: skip
    method = system.method(**({"width": 16} if hasattr(system.method(), "width") else {}))
    states = jax.jit(lambda: method.init(jax.random.key(0), spec))()
    states, step = placed_step(
        mesh, states, lambda states, batch, progress: method.step(states, batch, jax.random.key(7), progress, spec)
    )
    for i in range(2):
        source, target = make_batch(i), make_batch(10 + i, height=48)
        batch = {"source": source, "target": target_part(name, target, 5)}
        batch = {key: distributed.put_batch(part, mesh) for key, part in batch.items()}
        states, metrics = step(states, batch, jnp.float32(0.5 * i))
    return flat(states, metrics)


def flat(states, metrics):
    """Parameters of every network, other states and metrics, as flat lists by name."""
    parts = {key: state.params if isinstance(state, TrainState) else state for key, state in states.items()}
    return {
        key: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(part)]).tolist()
        for key, part in {**parts, "metrics": metrics}.items()
    }


def placed_step(mesh, states, step):
    """States on the mesh, and a pure step compiled for it."""
    placed = distributed.by_size(mesh, states)
    compiled = quick_jit(step, out_shardings=(placed, distributed.replicated(mesh)))
    return jax.device_put(states, placed), distributed.on_mesh(mesh, compiled)


def same(one, other, limit):
    assert one.keys() == other.keys()
    for key, expected in one.items():
        error = np.linalg.norm(np.subtract(other[key], expected)) / max(np.linalg.norm(expected), 1e-30)
        assert error < limit, (key, error)


@pytest.fixture(scope="module")
def sharded():
    cases = {(name, mesh): (name, shape) for name in ADAPTING for mesh, shape in MESHES.items()}
    named = {f"{name}, {mesh}": case for (name, mesh), case in cases.items()}
    return on_devices(4, "test_all_systems", f"{{k: two_steps(*v) for k, v in {named}.items()}}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ADAPTING)
def test_every_mesh_computes_what_one_device_does(name, sharded):
    one = two_steps(name)
    for mesh in MESHES:
        same(one, sharded[f"{name}, {mesh}"], 1e-5)


@pytest.mark.parametrize("name", quick(ADAPTING))
def test_micro_batches_change_nothing_and_bfloat16_little(name):
    one = two_steps(name)
    same(one, two_steps(name, accumulate_steps=2), 1e-5)
    half = two_steps(name, dtype="bfloat16")
    assert half.keys() == one.keys() and all(np.isfinite(part).all() for part in half.values())
    same({"generator": one["generator"]}, {"generator": half["generator"]}, 0.02)


def tiny_config(name, **values):
    config = base.get_config(base.parse(f"stage={SYSTEMS[name].stage},method={name},size=miniature"))
    config.task, config.options = "tiny", options_of(name)
    base.miniature(config)
    config.source, config.target, config.eval = (base.stream("x", "x", (48, 32)) for _ in range(3))
    config.model.update(widths=(8, 8, 8, 8), stem_width=8)
    config.discriminator.update(widths=(8, 8), patch_width=4)
    config.update(batch_size=4, total_steps=4, checkpoint_every=2, log_every=1, **values)
    return schema.read(config)


def batches(name):
    for i in range(4):
        source, target = make_batch(i, 2), make_batch(10 + i, 2)
        yield {"source": source, "target": target_part(name, target, 19)}


@pytest.mark.parametrize("name", quick(RESUMED))
def test_resumed_it_ends_bit_for_bit_where_it_would_have(name, tmp_path):
    config = tiny_config(name)
    whole = run.train(config, tmp_path / "whole", batches=batches(name))
    with pytest.raises(UserError, match="the input ended after 3 of 4 steps"):
        run.train(config, tmp_path / "resumed", batches=itertools.islice(batches(name), 3))
    assert checkpoints.available_steps(tmp_path / "resumed") == [2]
    resumed = run.train(config, tmp_path / "resumed", batches=batches(name))
    assert checkpoints.available_steps(tmp_path / "resumed") == [2, 4]
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", base.LINEAGE)
@pytest.mark.parametrize("task", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
def test_a_release_of_the_lineage_is_its_own(name, task):
    """The facts of docs/systems.md: nothing of FADA's settings is left where the lineage has another."""
    config = schema.load(f"configs/{task}.py:method={name},stage=adaptation,fidelity=released", {})
    steps, schedule, branches = base.LINEAGE[name]
    assert (config.total_steps, config.batch_size, config.knowledge.temperature) == (steps, 2, 1.0)
    assert (config.model.variant, config.model.norm, config.model.active_rates) == ("caffe", "statistics", branches)
    two_levels = name in ("adaptsegnet_multi", "minent", "advent")
    assert config.model.heads == ("levels" if two_levels else "two" if name == "clan" else "one")
    assert config.preprocessing.channel_order == "BGR" and config.preprocessing.scale == 1.0
    for optimizer in (config.generator_optimizer, config.discriminator_optimizer):
        assert optimizer.schedule_steps == schedule and optimizer.warmup_steps == (5_000 if name == "clan" else 0)
    assert config.generator_optimizer.lineage_repeats and config.lambda_adv == 0.001
    assert config.source.sampling == "uniform" and config.source.brightness == 0 and config.source.size[0] == 1280
    if name == "clan":
        assert config.options["focal"] == 2 and config.options["local"] == (10 if "synthia" in task else 40)
    stages = recipe.configs(f"configs/{task}.py:method={name},fidelity=released", {}, Path("w"))
    assert list(stages) == ["adaptation"] and stages["adaptation"].init_from == ""


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("method=clan,size=miniature", "these releases have size=released, backbone=resnet101"),
        ("method=clan,backbone=vgg16", "these releases have size=released, backbone=resnet101"),
        ("method=crosscity", "known of method fada, .*clan"),
    ],
)
def test_a_release_that_is_not_known_is_refused(arguments, problem):
    with pytest.raises(ValueError, match=f"config argument fidelity=released: {problem}"):
        schema.load(f"configs/gta5_to_cityscapes.py:fidelity=released,{arguments}", {})


def test_heads_that_nothing_trains_are_refused():
    for text, heads, problem in (
        ("method=clan,stage=adaptation", "one", "method=clan trains 'two'"),
        ("method=fada,stage=adaptation", "levels", "method=fada trains 'one'"),
        ("stage=source", "two", "stage=source trains 'one'"),
    ):
        with pytest.raises(UserError, match=f"config.model.heads='{heads}': {problem}"):
            schema.load(f"configs/gta5_to_cityscapes.py:{text}", {"model.heads": heads})


def test_classifiers_are_added_and_left_out_between_stages():
    """Of a stage that starts from another's weights: new ones are fresh, and two that predict together become one."""
    kernel = np.arange(3.0)
    two = {"feature_extractor": 1, "classifier": {"k": kernel}, "second_classifier": {"k": 2 * kernel}}
    one = parents._with_heads(two, {"feature_extractor": 0, "classifier": {"k": kernel}})
    assert one.keys() == {"feature_extractor", "classifier"}
    np.testing.assert_array_equal(one["classifier"]["k"], 3 * kernel)
    fresh = {"feature_extractor": 0, "classifier": 0, "auxiliary_classifier": {"k": -kernel}}
    levels = parents._with_heads({"feature_extractor": 1, "classifier": 2}, fresh)
    assert levels == {"feature_extractor": 1, "classifier": 2, "auxiliary_classifier": fresh["auxiliary_classifier"]}
