"""The examples of docs/extending.md: a method and a backbone of one's own train without touching the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from examples.own_backbone.plain import Plain, PlainSegmenter
from examples.own_method.joint import FeaturesAndClasses
from fada_jax.methods import Adversarial
from fada_jax.preprocessing import IMAGENET
from fada_jax.training import optimizers, steps
from fada_jax.training import states as train_states

BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8),
    "label": np.random.default_rng(1).integers(0, 5, (2, 32, 48), dtype=np.uint8),
}


def test_the_example_of_a_method_has_the_form_of_ours():
    method = FeaturesAndClasses(temperature=2.0)
    rng = np.random.default_rng(0)
    logits, features = (
        rng.normal(size=(1, 2, 3, 5)).astype(np.float32),
        rng.normal(size=(1, 2, 3, 4)).astype(np.float32),
    )
    read = method.discriminator_input(logits, features)
    np.testing.assert_allclose(read, np.concatenate([features, softmax(logits / 2, -1)], -1), atol=1e-6)
    knowledge = method.class_knowledge(jnp.asarray(logits))
    assert 2 * knowledge.shape[-1] == method.num_outputs(5)
    public = {name for name in dir(Adversarial) if not name.startswith("_")}
    assert {"temperature", "num_outputs", "discriminator_input", "class_knowledge"} <= set(dir(method)) & public


def test_the_example_of_a_backbone_keeps_its_contract():
    images = jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.float32)
    variables = jax.eval_shape(Plain().init, jax.random.key(0), images)
    features = jax.eval_shape(Plain().apply, variables, images)
    assert (features.shape, features.dtype) == ((2, 5, 7, 64), jnp.float32)


@pytest.mark.slow
def test_both_examples_train_together():
    model, method = PlainSegmenter(5), FeaturesAndClasses()
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    adam = optimizers.OptimizerSpec("adam", 2e-3, 100, weight_decay=0.0, classifier_multiplier=1.0)
    generator = train_states.TrainState.create(
        apply_fn=model.apply, params=params, tx=optimizers.generator_optimizer(adam)
    )
    discriminator = train_states.create_discriminator(2, 64 + 5, adam, jax.random.key(1), widths=(8, 8))
    step = jax.jit(
        lambda g, d: steps.adversarial_step(
            g, d, BATCH, {"image": BATCH["image"][:, ::-1]}, preprocessing=IMAGENET, method=method, lambda_adv=0.01
        )
    )
    losses = []
    for _ in range(30):
        generator, discriminator, metrics = step(generator, discriminator)
        losses.append(float(metrics["loss_seg"]))
        assert all(np.isfinite(value) for value in metrics.values())
    assert losses[-1] < losses[0] - 0.01
