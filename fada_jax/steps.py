"""The training steps as pure functions over TrainState: ``(state, batch) -> (state, metrics)``.

``supervised_step`` trains G on labels (source stage, self-distillation, the lambda = 0 control);
``adversarial_step`` is one alternating FADA iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training import train_state

from fada_jax import losses, optim
from fada_jax.classes import IGNORE
from fada_jax.methods import Method
from fada_jax.models import Discriminator, ModelSpec, Segmenter, fold_batch_norm
from fada_jax.pixels import pixel_sums
from fada_jax.preprocessing import Preprocessing, normalise

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(train_state.TrainState):
    """Flax's TrainState plus what the network holds beside its parameters.

    Attributes:
      collections: ``batch_stats`` and ``folded`` of the frozen or live batch norms; empty without them.
    """

    collections: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """All collections, as ``apply_fn`` takes them."""
        return {"params": self.params, **self.collections}


def create_generator(spec: ModelSpec, optimizer: optim.OptimizerSpec, rng: jax.Array) -> TrainState:
    """Freshly initialised G with its optimizer state; traceable, so ``jax.eval_shape`` gives its shapes."""
    model = Segmenter(spec)
    # Parameters do not depend on the image size: a small one keeps initialisation cheap.
    variables = dict(model.init(rng, jnp.zeros((1, 32, 32, 3))))
    params = variables.pop("params")
    return TrainState.create(
        apply_fn=model.apply, params=params, tx=optim.generator_optimizer(optimizer), collections=variables
    )


def create_discriminator(
    num_outputs: int,
    features: int,
    optimizer: optim.OptimizerSpec,
    rng: jax.Array,
    *,
    widths: tuple[int, ...] = (256, 128),
    dtype: str = "float32",
) -> TrainState:
    """Freshly initialised D for maps of ``features`` channels, with its optimizer state."""
    model = Discriminator(num_outputs, widths, jnp.dtype(dtype))
    params = model.init(rng, jnp.zeros((1, 8, 8, features)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optim.discriminator_optimizer(optimizer))


def replace_weights(state: TrainState, params: Any, batch_stats: Any) -> TrainState:
    """``state`` with the weights of a checkpoint and a fresh fold of its frozen batch norms; optimizer untouched."""
    collections = dict(state.collections)
    if "batch_stats" in collections:
        collections["batch_stats"] = batch_stats
    if "folded" in collections:
        collections["folded"] = fold_batch_norm(batch_stats)
    return state.replace(params=params, collections=collections)


def _forward(state: TrainState, params: Any, collections: Any, images: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Logits and features at feature resolution, and the collections with updated batch statistics."""
    (logits, features), updated = state.apply_fn(
        {"params": params, **collections}, images, train=True, mutable=["batch_stats"]
    )
    return logits, features, {**collections, **updated}


def _segmentation(
    logits: jax.Array, labels: jax.Array, temperature: float, block_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Sum of L_seg at the labels' size, and the labelled pixels."""

    def block(logits: Any, fixed: Any, labels: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
        del fixed
        total, count = losses.segmentation_sum(logits, jnp.where(inside, labels, IGNORE), temperature)
        return total[None], count

    sums, count = pixel_sums(block, logits, (), labels, labels.shape[1:3], block_rows)
    return sums[0], count


def _domains(
    d_logits: jax.Array,
    logits: jax.Array,
    method: Method,
    domains: tuple[int, ...],
    size: tuple[int, int],
    block_rows: int,
) -> tuple[jax.Array, jax.Array]:
    """Sums of the domain losses of ``domains`` at ``size``, and the pixels with class knowledge."""

    def block(d_logits: Any, logits: Any, pixels: Any, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
        del pixels
        sums, count = losses.domain_sums(d_logits, method.class_knowledge(logits) * inside[..., None])
        return sums[np.array(domains)], count

    return pixel_sums(block, d_logits, logits, (), size, block_rows)


def _after(images: jax.Array, tree: Any) -> jax.Array:
    """``images``, not before ``tree`` is computed: what uses them is scheduled behind it."""
    images, tree = jax.lax.optimization_barrier((images, tree))
    # The CPU compiler drops barriers. It keeps a comparison that only NaN can make true, and then the step is lost.
    probe = sum(x.ravel()[0] for x in jax.tree.leaves(tree))
    return images + (probe != probe).astype(images.dtype)


def _accumulate(
    part: Callable[[Any, Any], tuple[Any, Any]], collections: Any, batch: Any, micro_batches: int
) -> tuple[Any, Any]:
    """Sums of ``part(collections, batch) -> (sums, collections)`` over micro-batches, one after the other."""
    if micro_batches == 1:
        return part(collections, batch)

    def split(x: jax.Array) -> jax.Array:
        # Every micro-batch takes its images from all devices.
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def body(carry: Any, batch: Any) -> tuple[Any, None]:
        sums, collections = carry
        added, collections = part(collections, batch)
        return (jax.tree.map(jnp.add, sums, added), collections), None

    micro = jax.tree.map(split, batch)
    shapes = jax.eval_shape(part, collections, jax.tree.map(lambda x: x[0], micro))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(body, (zeros, collections), micro)[0]


def supervised_step(
    state: TrainState,
    batch: Batch,
    *,
    preprocessing: Preprocessing,
    temperature: float = 1.0,
    accumulate_steps: int = 1,
    block_rows: int = 0,
) -> tuple[TrainState, Metrics]:
    """One step of G on L_seg (equation 3).

    Args:
      state: G.
      batch: ``image`` uint8 [N, H, W, 3] and ``label`` uint8 [N, H', W'] with 255 ignored.
      preprocessing: input normalisation.
      temperature: divides the logits; T in the control that shares the adversarial stage's settings.
      accumulate_steps: micro-batches that N is worked through in; without live batch norm the result is the same.
      block_rows: rows of full-resolution pixels that a loss holds at a time, see ``pixels.pixel_sums``; 0: all.

    Returns:
      the updated state, and ``loss_seg``, ``grad_norm``.
    """

    def part(collections: Any, batch: Batch) -> tuple[Any, Any]:
        images = normalise(batch["image"], preprocessing)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, _, updated = _forward(state, params, collections, images)
            total, count = _segmentation(logits, batch["label"], temperature, block_rows)
            return total, (count, updated)

        (total, (count, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return (total, count, grads), updated

    (total, count, grads), collections = _accumulate(part, state.collections, batch, accumulate_steps)
    grads = jax.tree.map(lambda g: losses.mean(g, count), grads)
    state = state.apply_gradients(grads=grads, collections=collections)
    return state, {"loss_seg": losses.mean(total, count), "grad_norm": optax.tree.norm(grads)}


def adversarial_step(
    generator: TrainState,
    discriminator: TrainState,
    source: Batch,
    target: Batch,
    *,
    preprocessing: Preprocessing,
    method: Method,
    lambda_adv: float,
    accumulate_steps: int = 1,
    block_rows: int = 0,
) -> tuple[TrainState, TrainState, Metrics]:
    """One alternating iteration of FADA (section 3.2, order of the released code).

    G steps on ``L_seg + lambda_adv * L_adv`` with D constant; then D steps on ``L_D`` of the same, pre-update features
    with their gradient stopped. D's forward on the target features serves both L_adv and L_D. The target's forward
    waits for the source's backward, so that the activations of the two domains never live together.

    Args:
      generator: G.
      discriminator: D, with ``method.num_outputs(K)`` channels.
      source: ``image`` uint8 [N, H, W, 3], ``label`` uint8 [N, H, W].
      target: ``image`` uint8 [M, H', W', 3].
      preprocessing: input normalisation.
      method: what D reads and the class knowledge a; its temperature also divides the logits of L_seg.
      lambda_adv: weight of L_adv.
      accumulate_steps, block_rows: see ``supervised_step``.

    Returns:
      updated G and D, and ``loss_seg``, ``loss_adv``, ``loss_d``, ``grad_norm``.
    """

    def discriminate(d_params: Any, read: jax.Array, logits: jax.Array, domains: Any, size: Any) -> Any:
        d_logits = discriminator.apply_fn({"params": d_params}, read)
        return _domains(d_logits, logits, method, domains, size, block_rows)

    def part(collections: Any, batch: tuple[Batch, Batch]) -> tuple[Any, Any]:
        source, target = batch
        source_images = normalise(source["image"], preprocessing)

        def seg_loss(params: Any) -> tuple[jax.Array, Any]:
            logits, features, updated = _forward(generator, params, collections, source_images)
            total, count = _segmentation(logits, source["label"], method.temperature, block_rows)
            return total, (count, logits, method.discriminator_input(logits, features), updated)

        (seg, (seg_count, logits, read, collections_)), seg_grads = jax.value_and_grad(seg_loss, has_aux=True)(
            generator.params
        )
        on_source, pull, source_count = jax.vjp(
            lambda p: discriminate(p, read, logits, (0,), source_images.shape[1:3]),
            discriminator.params,
            has_aux=True,
        )
        (d_source_grads,) = pull(jnp.ones(1))

        target_images = normalise(_after(target["image"], (seg_grads, d_source_grads)), preprocessing)

        def extract(params: Any) -> tuple[jax.Array, Any]:
            logits, features, updated = _forward(generator, params, collections_, target_images)
            return method.discriminator_input(logits, features), (logits, updated)

        read, pull_read, (logits, updated) = jax.vjp(extract, generator.params, has_aux=True)
        # Each of the two losses of the target reaches one network: as source it moves F, as target D.
        on_target, pull, target_count = jax.vjp(
            lambda p, r: discriminate(p, r, logits, (0, 1), target_images.shape[1:3]),
            discriminator.params,
            read,
            has_aux=True,
        )
        (adv_grads,) = pull_read(pull(jnp.array([1.0, 0.0]))[1])
        d_target_grads = pull(jnp.array([0.0, 1.0]))[0]
        sums = {
            "seg": (seg, seg_grads, seg_count),
            "adv": (on_target[0], adv_grads, target_count),
            "d_source": (on_source[0], d_source_grads, source_count),
            "d_target": (on_target[1], d_target_grads, target_count),
        }
        return sums, updated

    sums, collections = _accumulate(part, generator.collections, (source, target), accumulate_steps)
    value, grads = {}, {}
    for name, (total, total_grads, count) in sums.items():
        value[name] = losses.mean(total, count)
        grads[name] = jax.tree.map(functools.partial(losses.mean, count=count), total_grads)
    g_grads = jax.tree.map(lambda seg, adv: seg + lambda_adv * adv, grads["seg"], grads["adv"])
    d_grads = jax.tree.map(lambda s, t: 0.5 * s + 0.5 * t, grads["d_source"], grads["d_target"])
    metrics = {
        "loss_seg": value["seg"],
        "loss_adv": value["adv"],
        "loss_d": 0.5 * value["d_source"] + 0.5 * value["d_target"],
        "grad_norm": optax.tree.norm(g_grads),
    }
    generator = generator.apply_gradients(grads=g_grads, collections=collections)
    discriminator = discriminator.apply_gradients(grads=d_grads)
    return generator, discriminator, metrics
