"""The shared parts of training steps as pure functions over TrainState: ``(state, batch) -> (state, metrics)``.

``supervised_step`` trains G on labels; ``adversarial_step`` is one alternating iteration of G and D. Methods are made
of them (``fada_jax.methods``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fada_jax.classes import IGNORE
from fada_jax.models import height_width
from fada_jax.preprocessing import Preprocessing, normalise
from fada_jax.training import losses, reduction
from fada_jax.training.pixels import pixel_sums
from fada_jax.training.states import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Alignment(Protocol):
    """What distinguishes one adversarial method from another, see ``methods.adversarial``."""

    @property
    def temperature(self) -> float:
        """Divides the logits of L_seg."""

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        """What D reads, [N, h, w, C]."""

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        """Class knowledge of each pixel, float32 [N, H, W, outputs of D / 2]."""


def forward(state: TrainState, params: Any, collections: Any, images: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Logits and features at feature resolution, and the collections with updated batch statistics."""
    (logits, features), updated = state.apply_fn(
        {"params": params, **collections}, images, train=True, mutable=["batch_stats"]
    )
    return logits, features, {**collections, **updated}


def segmentation_sums(
    logits: jax.Array, labels: jax.Array, temperature: float, block_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Sum of L_seg at the labels' size, and the labelled pixels."""

    def block(logits: Any, fixed: Any, labels: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
        del fixed
        total, count = losses.segmentation_sum(logits, jnp.where(inside, labels, IGNORE), temperature)
        return total[None], count

    sums, count = pixel_sums(block, logits, (), labels, height_width(labels), block_rows)
    return sums[0], count


def domain_sums(
    d_logits: jax.Array,
    logits: jax.Array,
    method: Alignment,
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


def after(images: jax.Array, tree: Any) -> jax.Array:
    """``images``, not before ``tree`` is computed: what uses them is scheduled behind it."""
    images, tree = jax.lax.optimization_barrier((images, tree))
    # XLA's CPU compiler drops barriers, not a comparison that only NaN makes true; with NaN the step is void anyway.
    probe = sum(x.ravel()[0] for x in jax.tree.leaves(tree))
    return images + (probe != probe).astype(images.dtype)


def accumulate(
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
    reduce_dtype: reduction.ReduceType = "float32",
) -> tuple[TrainState, Metrics]:
    """One step of G on L_seg (equation 3).

    Args:
      state: G.
      batch: ``image`` uint8 [N, H, W, 3] and ``label`` uint8 [N, H', W'] with 255 ignored.
      preprocessing: input normalisation.
      temperature: divides the logits; T in the control that shares the adversarial stage's settings.
      accumulate_steps: micro-batches that N is worked through in; without live batch norm the result is the same.
      block_rows: rows of full-resolution pixels that a loss holds at a time, see ``pixels.pixel_sums``; 0: all.
      reduce_dtype: of the gradient while devices sum it.

    Returns:
      the updated state, and ``loss_seg``, ``grad_norm``.
    """

    def sums(variables: Any, batch: Batch) -> tuple[Any, jax.Array, Any]:
        params, collections = variables

        def part(collections: Any, batch: Batch) -> tuple[Any, Any]:
            images = normalise(batch["image"], preprocessing)

            def loss_fn(params: Any) -> tuple[jax.Array, Any]:
                logits, _, updated = forward(state, params, collections, images)
                total, count = segmentation_sums(logits, batch["label"], temperature, block_rows)
                return total, (count, updated)

            (total, (count, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            return (total, count, grads), updated

        (total, count, grads), collections = accumulate(part, collections, batch, accumulate_steps)
        total, count = reduction.total((total, count))
        grads = jax.tree.map(lambda g: losses.mean(g, count), grads)
        return reduction.total(grads, reduce_dtype), losses.mean(total, count), collections

    grads, loss, collections = reduction.over_devices(sums, (state.params, state.collections), batch)
    state = state.apply_gradients(grads=grads, collections=collections)
    return state, {"loss_seg": loss, "grad_norm": optax.tree.norm(grads)}


class _Alternation(NamedTuple):
    """What one alternating iteration is made of; see ``adversarial_step``."""

    generator: TrainState
    discriminator: TrainState
    preprocessing: Preprocessing
    method: Alignment
    block_rows: int
    lambda_adv: float
    accumulate_steps: int
    reduce_dtype: reduction.ReduceType

    def domain_sums(
        self, d_params: Any, d_input: jax.Array, logits: jax.Array, domains: tuple[int, ...], size: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Sums of the domain losses of D with parameters ``d_params`` at ``size``, and the pixels that count."""
        d_logits = self.discriminator.apply_fn({"params": d_params}, d_input)
        return domain_sums(d_logits, logits, self.method, domains, size, self.block_rows)

    def source_sums(self, collections: Any, batch: Batch) -> tuple[dict[str, tuple], Any]:
        """Sum, gradient and pixels of L_seg and of D's loss on the source, and the updated collections."""
        images = normalise(batch["image"], self.preprocessing)

        def seg_loss(params: Any) -> tuple[jax.Array, Any]:
            logits, features, updated = forward(self.generator, params, collections, images)
            total, count = segmentation_sums(logits, batch["label"], self.method.temperature, self.block_rows)
            return total, (count, logits, self.method.discriminator_input(logits, features), updated)

        (seg, (seg_count, logits, d_input, updated)), seg_grads = jax.value_and_grad(seg_loss, has_aux=True)(
            self.generator.params
        )
        d_loss, pullback, count = jax.vjp(
            lambda d_params: self.domain_sums(d_params, d_input, logits, (0,), height_width(images)),
            self.discriminator.params,
            has_aux=True,
        )
        (d_grads,) = pullback(jnp.ones(1))
        return {"seg": (seg, seg_grads, seg_count), "d_source": (d_loss[0], d_grads, count)}, updated

    def target_sums(self, collections: Any, images: jax.Array) -> tuple[dict[str, tuple], Any]:
        """Sum, gradient and pixels of L_adv and of D's loss on the target, and the updated collections."""
        images = normalise(images, self.preprocessing)

        def extract(params: Any) -> tuple[jax.Array, Any]:
            logits, features, updated = forward(self.generator, params, collections, images)
            return self.method.discriminator_input(logits, features), (logits, updated)

        d_input, input_pullback, (logits, updated) = jax.vjp(extract, self.generator.params, has_aux=True)
        # One forward of D serves both losses: the loss towards source updates G, the loss towards target updates D.
        losses_of_d, pullback, count = jax.vjp(
            lambda d_params, d_input: self.domain_sums(d_params, d_input, logits, (0, 1), height_width(images)),
            self.discriminator.params,
            d_input,
            has_aux=True,
        )
        (adv_grads,) = input_pullback(pullback(jnp.array([1.0, 0.0]))[1])
        d_grads = pullback(jnp.array([0.0, 1.0]))[0]
        return {"adv": (losses_of_d[0], adv_grads, count), "d_target": (losses_of_d[1], d_grads, count)}, updated

    def sums(self, collections: Any, batch: tuple[Batch, Batch]) -> tuple[dict[str, tuple], Any]:
        """Both domains of a (micro-)batch, the source first."""
        source, target = batch
        sums, collections = self.source_sums(collections, source)
        source_grads = sums["seg"][1], sums["d_source"][1]
        target_sums, collections = self.target_sums(collections, after(target["image"], source_grads))
        return {**sums, **target_sums}, collections

    def gradients(self, variables: Any, batch: tuple[Batch, Batch]) -> tuple[Any, Any, dict[str, jax.Array], Any]:
        """Gradients of G and of D, the means of the losses by name, and the updated collections."""
        params, collections, d_params = variables
        networks = self.generator.replace(params=params), self.discriminator.replace(params=d_params)
        here = self._replace(generator=networks[0], discriminator=networks[1])
        sums, collections = accumulate(here.sums, collections, batch, self.accumulate_steps)
        # With all counts known first, each device weighs the domains itself, and one sum serves both.
        counts = reduction.total({name: count for name, (_, _, count) in sums.items()})
        totals = reduction.total({name: total for name, (total, _, _) in sums.items()})
        grads = {
            name: jax.tree.map(functools.partial(losses.mean, count=counts[name]), total_grads)
            for name, (_, total_grads, _) in sums.items()
        }
        g_grads = jax.tree.map(lambda seg, adv: seg + self.lambda_adv * adv, grads["seg"], grads["adv"])
        d_grads = jax.tree.map(lambda s, t: 0.5 * s + 0.5 * t, grads["d_source"], grads["d_target"])
        g_grads, d_grads = reduction.total((g_grads, d_grads), self.reduce_dtype)
        return g_grads, d_grads, {name: losses.mean(totals[name], counts[name]) for name in sums}, collections


def adversarial_step(
    generator: TrainState,
    discriminator: TrainState,
    source: Batch,
    target: Batch,
    *,
    preprocessing: Preprocessing,
    method: Alignment,
    lambda_adv: float,
    accumulate_steps: int = 1,
    block_rows: int = 0,
    reduce_dtype: reduction.ReduceType = "float32",
) -> tuple[TrainState, TrainState, Metrics]:
    """One alternating iteration of FADA (section 3.2, order of the released code).

    G steps on ``L_seg + lambda_adv * L_adv`` with D constant; then D steps on ``L_D`` of the same, pre-update features
    with their gradient stopped. The target's forward waits for the source's backward, so that the activations of the
    two domains never live together.

    Args:
      generator: G.
      discriminator: D, with ``method.num_outputs(K)`` channels.
      source: ``image`` uint8 [N, H, W, 3], ``label`` uint8 [N, H, W].
      target: ``image`` uint8 [M, H', W', 3].
      preprocessing: input normalisation.
      method: what D reads and the class knowledge a; its temperature also divides the logits of L_seg.
      lambda_adv: weight of L_adv.
      accumulate_steps, block_rows, reduce_dtype: see ``supervised_step``.

    Returns:
      updated G and D, and ``loss_seg``, ``loss_adv``, ``loss_d``, ``grad_norm``.
    """
    alternation = _Alternation(
        generator, discriminator, preprocessing, method, block_rows, lambda_adv, accumulate_steps, reduce_dtype
    )
    variables = generator.params, generator.collections, discriminator.params
    g_grads, d_grads, value, collections = reduction.over_devices(alternation.gradients, variables, (source, target))
    metrics = {
        "loss_seg": value["seg"],
        "loss_adv": value["adv"],
        "loss_d": 0.5 * value["d_source"] + 0.5 * value["d_target"],
        "grad_norm": optax.tree.norm(g_grads),
    }
    generator = generator.apply_gradients(grads=g_grads, collections=collections)
    discriminator = discriminator.apply_gradients(grads=d_grads)
    return generator, discriminator, metrics
