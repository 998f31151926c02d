"""Losses, knowledge and schedules against plain NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fada_jax.classes import IGNORE
from fada_jax.methods import SYSTEMS, Adversarial, DomainLabels, Entropy, HardLabels, OutputSpace, SoftLabels
from fada_jax.training import losses, optimizers

K = 4
SHAPE = (2, 5, 7)

# FADA and its relatives; the others are in tests/test_systems.py and tests/test_cells.py.
ADAPTING = [name for name, system in SYSTEMS.items() if issubclass(system.method, Adversarial)]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (*SHAPE, K)).astype(np.float32)


@pytest.fixture
def d_logits() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 2, (*SHAPE, 2 * K)).astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, K, SHAPE)
    labels[rng.random(SHAPE) < 0.4] = IGNORE
    return labels.astype(np.uint8)


@pytest.mark.parametrize("temperature", [1.0, 1.8])
def test_segmentation_loss_is_the_mean_over_labelled_pixels(logits, labels, temperature):
    p = softmax(logits.astype(np.float64) / temperature)
    picked = [-np.log(p[i][labels[i]]) for i in np.ndindex(SHAPE) if labels[i] != IGNORE]
    loss = losses.segmentation_loss(jnp.asarray(logits), jnp.asarray(labels), temperature)
    np.testing.assert_allclose(loss, np.mean(picked), rtol=1e-6)


def test_segmentation_loss_without_labels_is_zero_with_zero_gradient(logits):
    labels = jnp.full(SHAPE, IGNORE, jnp.uint8)
    loss, gradient = jax.value_and_grad(losses.segmentation_loss)(jnp.asarray(logits), labels)
    assert loss == 0
    assert np.all(np.asarray(gradient) == 0)


def test_ignored_pixels_get_no_gradient_and_do_not_matter(logits, labels):
    gradient = jax.grad(losses.segmentation_loss)(jnp.asarray(logits), jnp.asarray(labels))
    assert np.all(np.asarray(gradient)[labels == IGNORE] == 0)
    assert np.all(np.any(np.asarray(gradient)[labels != IGNORE] != 0, axis=-1))
    wild = np.where((labels == IGNORE)[..., None], np.float32(1e4), logits)
    assert losses.segmentation_loss(jnp.asarray(wild), labels) == losses.segmentation_loss(jnp.asarray(logits), labels)


@pytest.mark.parametrize("clip", [0.7, 0.9, 1.0])
def test_soft_knowledge_is_clipped_and_not_renormalised(logits, clip):
    a = SoftLabels(temperature=1.8, clip=clip).class_knowledge(jnp.asarray(logits))
    p = softmax(logits.astype(np.float64) / 1.8)
    assert 0.05 < np.mean(p.max(-1) > 0.7) < 0.95
    np.testing.assert_allclose(a, np.minimum(p, clip), atol=1e-6)


def test_hard_knowledge_is_one_hot_of_sure_pixels(logits):
    a = HardLabels(temperature=1.8, threshold=0.9).class_knowledge(jnp.asarray(logits))
    p = softmax(logits.astype(np.float64) / 1.8)
    expected = np.eye(K)[p.argmax(-1)] * (p.max(-1, keepdims=True) >= 0.9)
    assert 0 < expected.sum() < np.prod(SHAPE)
    np.testing.assert_array_equal(a, expected)


@pytest.mark.parametrize("method", [DomainLabels(), OutputSpace(), Entropy()])
def test_binary_knowledge_is_the_domain_alone(logits, method):
    np.testing.assert_array_equal(method.class_knowledge(jnp.asarray(logits)), np.ones((*SHAPE, 1)))


@pytest.mark.parametrize("name", ADAPTING)
def test_the_discriminator_reads_features_or_class_probabilities(logits, name):
    features = jnp.asarray(np.random.default_rng(4).normal(size=(*SHAPE, 6)), jnp.bfloat16)
    read = SYSTEMS[name].method().discriminator_input(jnp.asarray(logits), features)
    p = softmax(logits.astype(np.float64) / 1.8)
    if name == "output_space":
        np.testing.assert_allclose(read, p, atol=1e-6)
    elif name == "entropy":
        np.testing.assert_allclose(read, -p * np.log(p) / np.log(K), atol=1e-6)
    else:
        assert read is features


def test_defaults_are_the_released_settings():
    assert SoftLabels() == SoftLabels(temperature=1.8, clip=0.9)
    assert HardLabels() == HardLabels(temperature=1.8, threshold=0.9)
    spec = optimizers.OptimizerSpec()
    assert (spec.power, spec.momentum, spec.weight_decay, spec.classifier_multiplier) == (0.9, 0.9, 5e-4, 10.0)
    assert (spec.b1, spec.b2, spec.eps) == (0.9, 0.99, 1e-8)


@pytest.mark.parametrize("name", ADAPTING)
def test_knowledge_has_no_gradient(logits, name):
    method = SYSTEMS[name].method()
    weight = jnp.asarray(np.random.default_rng(3).normal(size=(*SHAPE, method.num_outputs(K) // 2)))
    gradient = jax.grad(lambda z: jnp.sum(weight * method.class_knowledge(z)))(jnp.asarray(logits))
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("domain", [0, 1])
@pytest.mark.parametrize("name", ADAPTING)
def test_domain_loss_is_the_cross_entropy_of_its_half(logits, d_logits, name, domain):
    a = SYSTEMS[name].method().class_knowledge(jnp.asarray(logits))
    k = a.shape[-1]
    z = d_logits[..., : 2 * k]
    a64 = np.asarray(a, np.float64)
    zeros = np.zeros_like(a64)
    encoding = np.concatenate([zeros, a64] if domain else [a64, zeros], -1)
    per_pixel = -(encoding * np.log(softmax(z.astype(np.float64)))).sum(-1)
    expected = per_pixel[a64.sum(-1) > 0].mean()
    np.testing.assert_allclose(losses.domain_loss(jnp.asarray(z), a, domain), expected, rtol=1e-6)


def test_domain_loss_without_sure_pixels_is_zero_with_zero_gradient(d_logits):
    loss, gradient = jax.value_and_grad(losses.domain_loss)(jnp.asarray(d_logits), jnp.zeros((*SHAPE, K)), 0)
    assert loss == 0
    assert np.all(np.asarray(gradient) == 0)


def test_domain_loss_rejects_a_discriminator_of_another_class_count(d_logits):
    with pytest.raises(ValueError, match="8 outputs, knowledge of 3 classes needs 6"):
        losses.domain_loss(jnp.asarray(d_logits), jnp.ones((*SHAPE, 3)), 0)


def test_poly_schedule_stops_before_its_end():
    spec = optimizers.OptimizerSpec(learning_rate=2.5e-4, schedule_steps=62_500)
    schedule = optimizers.poly_schedule(spec.learning_rate, spec.schedule_steps, spec.power)
    for step in (0, 1, 20_000, 40_000, 60_000):
        np.testing.assert_allclose(schedule(step), 2.5e-4 * (1 - step / 62_500) ** 0.9, rtol=1e-5)
    assert schedule(40_000) > 9e-5
    assert schedule(70_000) == 0


def test_sgd_decays_before_momentum_and_the_classifier_learns_ten_times_faster():
    spec = optimizers.OptimizerSpec(learning_rate=0.1, schedule_steps=10, weight_decay=0.5)
    rng = np.random.default_rng(0)
    start = {"feature_extractor": {"w": rng.normal(size=3)}, "classifier": {"w": rng.normal(size=3)}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    optimizer = optimizers.generator_optimizer(spec)
    state = optimizer.init(params)
    momentum = {name: np.zeros(3) for name in start}
    for step in range(3):
        gradients = {name: {"w": rng.normal(size=3)} for name in start}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, params)
        params = optax.apply_updates(params, updates)
        for name, rate in (("feature_extractor", 0.1), ("classifier", 1.0)):
            w = start[name]["w"]
            momentum[name] = 0.9 * momentum[name] + gradients[name]["w"] + 0.5 * w
            start[name]["w"] = w - rate * (1 - step / 10) ** 0.9 * momentum[name]
    for name in start:
        np.testing.assert_allclose(params[name]["w"], start[name]["w"], rtol=1e-5)
