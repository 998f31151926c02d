"""The adversarial step, the same iteration written plainly, and inference, as the benchmarks run them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import linen as nn

from fada_jax.evaluation import inference
from fada_jax.methods import Batch, Metrics, States
from fada_jax.models import Segmenter, height_width, layers, resize_align_corners
from fada_jax.preprocessing import IMAGENET, normalise
from fada_jax.scripts.benchmarks.formulations import written_for
from fada_jax.scripts.benchmarks.work import Work
from fada_jax.training import losses


def our_step(work: Work, states: States, batch: Batch) -> tuple[States, Metrics]:
    """The project's step."""
    # Ramps are at their middle: nothing is left out.
    return work.system.step(states, batch, jax.random.key(0), jnp.float32(0.5), work.training)


def plain_step(work: Work, states: States, batch: Batch) -> tuple[States, Metrics]:
    """FADA's iteration as one would write it down.

    All maps are at full size, with one loss for each network, Flax's ReLU, and XLA's convolutions, each with its
    normalisation after it. The yardstick of memory and, in the tests, of the result.
    """
    with (
        written_for("none in particular"),
        mock.patch.object(layers, "relu", nn.relu),
        mock.patch.object(layers, "relu_of_sum", lambda x, y: nn.relu(x + y)),
        mock.patch.object(layers, "convolve_and_normalise", lambda conv, norm, x, train: norm(conv(x), train)),
    ):
        return _plain_step(work, states, batch)


def _plain_step(work: Work, states: States, batch: Batch) -> tuple[States, Metrics]:
    generator, discriminator = states["generator"], states["discriminator"]
    method: Any = work.system
    source, target = batch["source"], batch["target"]
    x_s, x_t = (normalise(domain["image"], IMAGENET) for domain in (source, target))

    def forward(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, features = generator.apply_fn({"params": params, **generator.collections}, images, train=True)
        return resize_align_corners(logits, height_width(images)), features

    def discriminate(params: Any, features: jax.Array, images: jax.Array) -> jax.Array:
        return resize_align_corners(discriminator.apply_fn({"params": params}, features), height_width(images))

    def g_loss(params: Any) -> tuple[jax.Array, Any]:
        z_s, f_s = forward(params, x_s)
        z_t, f_t = forward(params, x_t)
        seg = losses.segmentation_loss(z_s, source["label"], method.temperature)
        adv = losses.domain_loss(discriminate(discriminator.params, f_t, x_t), method.class_knowledge(z_t), 0)
        return seg + method.lambda_adv * adv, (seg, adv, z_s, f_s, z_t, f_t)

    def d_loss(params: Any, z_s: Any, f_s: Any, z_t: Any, f_t: Any) -> jax.Array:
        on_source = losses.domain_loss(discriminate(params, f_s, x_s), method.class_knowledge(z_s), 0)
        on_target = losses.domain_loss(discriminate(params, f_t, x_t), method.class_knowledge(z_t), 1)
        return 0.5 * on_source + 0.5 * on_target

    (_, (seg, adv, *maps)), g_grads = jax.value_and_grad(g_loss, has_aux=True)(generator.params)
    d, d_grads = jax.value_and_grad(d_loss)(discriminator.params, *maps)
    metrics = {"loss_seg": seg, "loss_adv": adv, "loss_d": d}
    generator = generator.apply_gradients(grads=g_grads)
    return {"generator": generator, "discriminator": discriminator.apply_gradients(grads=d_grads)}, metrics


STEPS = {"ours": our_step, "plain": plain_step}


def our_inference(work: Work, variables: Any, images: jax.Array) -> jax.Array:
    """Labels at the images' own size."""
    probabilities = inference.class_probabilities(
        Segmenter(work.spec).apply,
        variables,
        images,
        preprocessing=IMAGENET,
        size=height_width(images),
        scales=work.scales,
        flip=work.flip,
    )
    return jnp.argmax(probabilities, axis=-1).astype(jnp.uint8)
