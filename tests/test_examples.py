"""The examples of docs/extending.md: a method and a backbone of one's own train without touching the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import quick_jit

from examples.own_backbone.plain import Plain, PlainSegmenter
from examples.own_method.flip import FlipConsistency
from fada_jax.methods import DomainLabels, TrainingSpec
from fada_jax.models import ModelSpec
from fada_jax.preprocessing import IMAGENET
from fada_jax.training import optimizers, steps
from fada_jax.training import states as train_states

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
BATCH = {
    "source": {"image": IMAGES, "label": np.broadcast_to(np.uint8(np.arange(48) // 24), (2, 32, 48))},
    "target": {"image": IMAGES[:, ::-1]},
}


SPEC = TrainingSpec(
    ModelSpec("resnet18", 5, "group", (1, 1, 1, 1), (8, 8, 16, 16), 8, True, 4, (1, 2)),
    generator_optimizer=optimizers.OptimizerSpec("adam", 2e-3, 100, weight_decay=0.0, classifier_multiplier=1.0),
)


def test_the_example_of_a_method_learns_both_of_its_losses():
    method = FlipConsistency()
    states = jax.jit(lambda: method.init(jax.random.key(0), SPEC))()
    step = quick_jit(lambda states: method.step(states, BATCH, jax.random.key(0), jnp.float32(1.0), SPEC))
    history = []
    for _ in range(20):
        states, metrics = step(states)
        history.append(metrics)
    assert float(history[-1]["loss_seg"]) < 0.9 * float(history[0]["loss_seg"])
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())


def test_a_mirrored_image_costs_a_symmetric_network_nothing():
    """Without a single pixel that differs from its mirror image the distance is 0, to rounding."""
    method = FlipConsistency()
    states = jax.jit(lambda: method.init(jax.random.key(0), SPEC))()
    constant = {name: {**part, "image": np.full_like(part["image"], 7)} for name, part in BATCH.items()}
    _, metrics = quick_jit(lambda s: method.step(s, constant, jax.random.key(0), jnp.float32(1.0), SPEC))(states)
    _, other = quick_jit(lambda s: method.step(s, BATCH, jax.random.key(0), jnp.float32(1.0), SPEC))(states)
    assert float(metrics["loss_flip"]) < float(other["loss_flip"])


def test_the_example_of_a_backbone_keeps_its_contract():
    images = jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.float32)
    variables = jax.eval_shape(Plain().init, jax.random.key(0), images)
    features = jax.eval_shape(Plain().apply, variables, images)
    assert (features.shape, features.dtype) == ((2, 5, 7, 64), jnp.float32)


@pytest.mark.slow
def test_the_backbone_trains_under_an_adversarial_method():
    model, method = PlainSegmenter(5), DomainLabels()
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    adam = SPEC.generator_optimizer
    generator = train_states.TrainState.create(
        apply_fn=model.apply, params=params, tx=optimizers.generator_optimizer(adam)
    )
    discriminator = train_states.create_discriminator(2, 64, adam, jax.random.key(1), widths=(8, 8))
    step = jax.jit(
        lambda g, d: steps.adversarial_step(
            g, d, BATCH["source"], BATCH["target"], preprocessing=IMAGENET, method=method, lambda_adv=0.01
        )
    )
    losses = []
    for _ in range(30):
        generator, discriminator, metrics = step(generator, discriminator)
        losses.append(float(metrics["loss_seg"]))
        assert all(np.isfinite(value) for value in metrics.values())
    assert losses[-1] < losses[0]
