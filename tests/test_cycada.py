"""CyCADA's feature-level stage: beside PyTorch while its gate is open, and the gate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import on_devices, quick_jit
from test_all_systems import same, two_steps
from test_steps import make_batch

from fada_jax import config as schema
from fada_jax.methods import Cycada, TrainingSpec, cycada
from fada_jax.methods.fcn_wild import DISCRIMINATOR
from fada_jax.models import ModelSpec
from fada_jax.training.optimizers import OptimizerSpec

SGD = OptimizerSpec("sgd", 1e-2, 100, momentum=0.99)
MODEL = ModelSpec("resnet18", 5, "group", (1, 1, 1, 1), (8, 8, 8, 8), 8, True, 4, (1, 2))
SPEC = TrainingSpec(MODEL, generator_optimizer=SGD, discriminator_optimizer=SGD)


@functools.cache
def compiled(least_accuracy=0.6):
    method = Cycada(temperature=1.0, width=8, least_accuracy=least_accuracy)
    step = quick_jit(lambda states, batch, key: method.step(states, batch, key, jnp.float32(0), SPEC))
    return jax.jit(lambda: method.init(jax.random.key(0), SPEC))(), step


def batch(i):
    target = {"image": make_batch(10 + i, 2, 32, 32)["image"]}
    return {"source": make_batch(i, 2, 32, 32), "target": target}


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def with_past(states, accuracy, count=250):
    """States after ``count`` steps in which D had the accuracy."""
    past = jnp.full(cycada.WINDOW, accuracy, jnp.float32)
    return {**states, cycada.ACCURACIES: past, "generator": states["generator"].replace(step=jnp.int32(count))}


@pytest.mark.parametrize(("accuracy", "opens"), [(0.9, True), (0.3, False)])
def test_g_steps_only_while_d_is_good_enough(accuracy, opens):
    fresh, step = compiled()
    before = with_past(fresh, accuracy)
    after, metrics = step(before, batch(0), jax.random.key(1))
    assert float(metrics["generator_steps"]) == opens
    for part in ("params", "opt_state"):
        assert equal(getattr(after["generator"], part), getattr(before["generator"], part)) != opens
    # D learns, and steps are counted, all the same.
    assert not equal(after[DISCRIMINATOR].params, before[DISCRIMINATOR].params)
    assert int(after["generator"].step) == 251
    expected = np.full(cycada.WINDOW, accuracy, np.float32)
    expected[50] = metrics["accuracy"]
    np.testing.assert_array_equal(after[cycada.ACCURACIES], expected)


def test_the_gate_opens_above_the_mean_of_the_steps_that_were_made():
    states, step = compiled(0.5)
    told, opened = [], []
    for i in range(8):
        states, metrics = step(states, batch(i % 3), jax.random.key(i))
        told.append(float(metrics["accuracy"]))
        opened.append(bool(metrics["generator_steps"]))
    means = np.cumsum(told) / np.arange(1, 9)
    clear = np.abs(means - 0.5) > 1e-5
    assert clear.any() and all(np.array(opened)[clear] == (means > 0.5)[clear])
    np.testing.assert_allclose(states[cycada.ACCURACIES][:8], told)
    assert not states[cycada.ACCURACIES][8:].any()


def test_an_open_gate_changes_nothing_and_none_is_always_open():
    gated, always = compiled(), compiled(0.0)
    one, _ = gated[1](with_past(gated[0], 1.0), batch(0), jax.random.key(1))
    other, metrics = always[1](with_past(always[0], 0.0), batch(0), jax.random.key(1))
    assert equal(one["generator"].params, other["generator"].params) and metrics["generator_steps"] == 1


def test_accuracy_is_the_share_of_cells_that_d_tells():
    """Of a discriminator that says the same of every cell it is a half."""
    states, step = compiled()
    blind = jax.tree.map(jnp.zeros_like, states[DISCRIMINATOR].params)
    for bias in (-1.0, 1.0):
        blind["head"]["bias"] = jnp.array([0.0, bias])
        states = {**states, DISCRIMINATOR: states[DISCRIMINATOR].replace(params=blind)}
        _, metrics = step(states, batch(0), jax.random.key(0))
        assert float(metrics["accuracy"]) == pytest.approx(0.5)


@pytest.mark.slow
def test_two_devices_compute_what_one_does():
    same(two_steps("cycada"), on_devices(2, "test_all_systems", "two_steps('cycada', (2, 1, 1))"), 1e-5)


def test_its_own_settings_are_there():
    config = schema.load("configs/gta5_to_cityscapes.py:method=cycada,stage=adaptation", {})
    assert config.lambda_adv == 0.1 and config.training_method == Cycada(temperature=1.8)
    own = {"generator_optimizer.momentum": 0.99, "generator_optimizer.learning_rate": 1e-5}
    config = schema.load("configs/gta5_to_cityscapes.py:method=cycada,stage=adaptation", own)
    assert (config.generator_optimizer.momentum, config.generator_optimizer.learning_rate) == (0.99, 1e-5)


# Beside PyTorch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["scores", pytest.param("features", marks=pytest.mark.slow)])
def test_three_iterations_beside_pytorch(reads):
    pytest.importorskip("torch")
    import systems_cells
    import systems_networks as networks
    import torch
    import torch_cyclegan
    from systems_parity import CLASSES, Case
    from torch_systems import Options

    torch.set_num_threads(1)
    channels = CLASSES if reads == "scores" else systems_cells.CHANNELS
    width = systems_cells.WIDTH

    @dataclasses.dataclass(frozen=True)
    class CycadaCase(Case):
        def networks(self):
            torch.manual_seed(7)
            net = networks.pointwise(channels, (width, width // 2), 2)
            return networks.generator(), [systems_cells.with_dropout(net)]

        def ours_of(self, states):
            return {DISCRIMINATOR: ("D0",)}

    ours = (("width", width), ("reads", reads), ("least_accuracy", 0.0), ("lambda_adv", 0.1))
    build = functools.partial(torch_cyclegan.Cycada, reads=reads)
    case = CycadaCase("cycada", "cycada", build, Options(lambda_adv=0.1), ours, reads=(channels,))
    rows = systems_cells.measure(dataclasses.replace(case, sizes=systems_cells.SIZES))
    failed = [row for row in rows if not row.ours <= row.limit]
    assert not failed, "\n".join(map(str, failed))
    names = " ".join(row.name for row in rows)
    for text in ("loss_adv, iteration 3", "loss_d, iteration 3", "gradient of D0 with labels", "update of C"):
        assert text in names
