"""Every config builds, holds the released values, and refuses what does not exist."""

import importlib

import jax
import pytest

from fada_jax import classes
from fada_jax import config as schema
from fada_jax.configs import base
from fada_jax.errors import UserError
from fada_jax.methods.stages import STAGES
from fada_jax.stages import data, program, workdirs
from fada_jax.training import optimizers

# Of the stages that train no method of the default's.
METHODS = {"self_training": "cbst", "curriculum": "cda", "translation": "cyclegan"}
TASKS = ("gta5_to_cityscapes", "synthia_to_cityscapes", "cityscapes_to_crosscity", "camvid_day_to_dusk")


def load(task, arguments=""):
    return importlib.import_module(f"fada_jax.configs.{task}").get_config(arguments)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", ["backbone=resnet101", "backbone=vgg16", "size=miniature"])
def test_every_stage_builds_and_its_data_has_the_classes(task, stage, variant):
    config = schema.read(load(task, f"stage={stage},{variant},method={METHODS.get(stage, 'fada')}"))
    for stream in (config.source, config.target, config.eval):
        classes.label_table(stream.dataset, config.classes)
    assert config.model.num_classes == config.classes.num_classes
    assert ("target" in data.batch_shapes(config)) == (config.kind.parts == 2)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", base.SIZES)
def test_the_rate_never_reaches_zero(task, stage, size):
    config = schema.read(load(task, f"stage={stage},size={size},method={METHODS.get(stage, 'fada')}"))
    for network, spec in (("generator", config.generator_optimizer), ("discriminator", config.discriminator_optimizer)):
        schedule = optimizers.poly_schedule(spec.learning_rate, spec.schedule_steps, spec.power)
        assert float(schedule(config.total_steps - 1)) > 0
        if size == "released" and network == "generator" and stage != "translation":
            stop = (1 - config.total_steps / spec.schedule_steps) ** 0.9 * spec.learning_rate
            assert float(schedule(config.total_steps)) == pytest.approx(stop, rel=1e-5)


def test_released_values():
    source = load("gta5_to_cityscapes", "stage=source")
    adversarial = load("gta5_to_cityscapes", "stage=adaptation")
    distillation = load("gta5_to_cityscapes", "stage=self_distillation")
    assert [c.total_steps for c in (source, adversarial, distillation)] == [20_000, 40_000, 20_000]
    assert [c.generator_optimizer.schedule_steps for c in (source, adversarial)] == [31_250, 62_500]
    assert [c.generator_optimizer.learning_rate for c in (source, adversarial, distillation)] == [5e-4, 2.5e-4, 5e-4]
    assert [c.model.norm for c in (source, adversarial, distillation)] == ["frozen", "frozen", "live"]
    assert load("synthia_to_cityscapes", "stage=self_distillation").model.norm == "frozen"
    assert adversarial.lambda_adv == 0.001
    assert adversarial.knowledge.to_dict() == {"temperature": 1.8, "clip": 0.9, "threshold": 0.9}
    assert schema.read(adversarial).discriminator_optimizer == optimizers.OptimizerSpec(
        "adam", 1e-4, 62_500, 0.9, 0.0, 0.9, 0.9, 0.99, 1e-8, 1.0
    )
    assert (adversarial.source.brightness, adversarial.source.hue, adversarial.source.flip) == (0.5, 0.2, False)
    assert (source.source.brightness, distillation.target.scale) == (0.0, (0.5, 1.5))
    assert (adversarial.source.sampling, adversarial.target.sampling) == ("balanced", "uniform")
    assert load("gta5_to_cityscapes", "size=miniature").source.sampling == "uniform"
    assert load("gta5_to_cityscapes", "backbone=vgg16").preprocessing.channel_order == "BGR"


def test_the_released_step_traces_at_full_size():
    config = schema.read(load("gta5_to_cityscapes", "stage=adaptation"))
    states = jax.eval_shape(lambda: program.create_states(config))
    assert sum(x.size for x in jax.tree.leaves(states["generator"].params)) == 43_795_724
    new_states, metrics = jax.eval_shape(program.make_step(config), states, data.batch_shapes(config))
    assert jax.tree.structure(new_states) == jax.tree.structure(states)
    assert sorted(metrics) == ["grad_norm", "loss_adv", "loss_d", "loss_seg"]
    frozen = states["generator"].collections["batch_stats"]

    assert len(jax.tree.leaves(frozen)) == 4 * 104


@pytest.mark.parametrize(
    "arguments", ["stage=sources", "method=fadaa", "size=small", "backbone=resnet7", "stag=source", "stage"]
)
def test_unknown_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="config argument"):
        load("gta5_to_cityscapes", arguments)


def test_unknown_keys_are_refused():
    with pytest.raises(AttributeError, match="sead"):
        load("gta5_to_cityscapes").sead = 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 3),
        ("total_steps", -1),
        ("total_steps", 70_000),
        ("class_set", "cityscapes18"),
        ("model.norm", "batch"),
        ("method", "softer"),
        ("method", "control"),
        ("source.size", (1280, 0)),
        ("lambda_adv", -0.1),
    ],
)
def test_impossible_values_are_refused_by_name(key, value):
    config = load("gta5_to_cityscapes", "stage=adaptation")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=key.split(".")[-1] if key != "total_steps" else "total_steps"):
        schema.read(config)


def test_another_config_in_a_workdir_is_refused_with_both_values():
    old, new = load("gta5_to_cityscapes"), load("gta5_to_cityscapes")
    new.log_every = 7
    workdirs.refuse_other_config(schema.read(old).plain(), schema.read(new).plain(), "W")
    new.generator_optimizer.learning_rate = 1.0
    with pytest.raises(UserError, match=r"W belongs .*generator_optimizer.learning_rate: 0.0005 there, 1.0 now"):
        workdirs.refuse_other_config(schema.read(old).plain(), schema.read(new).plain(), "W")
