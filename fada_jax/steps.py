"""The training steps as pure functions over TrainState: ``(state, batch) -> (state, metrics)``.

``supervised_step`` trains G on labels (source stage, self-distillation, the lambda = 0 control);
``adversarial_step`` is one alternating FADA iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state

from fada_jax import losses, optim
from fada_jax.models import Discriminator, ModelSpec, Segmenter, fold_batch_norm, resize_align_corners
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
    """Freshly initialised D for feature maps of ``features`` channels, with its optimizer state."""
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


def _forward(
    state: TrainState, params: Any, collections: Any, images: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array, Any]:
    """Logits at ``size``, features, and the collections with updated batch statistics."""
    (logits, features), updated = state.apply_fn(
        {"params": params, **collections}, images, train=True, mutable=["batch_stats"]
    )
    return resize_align_corners(logits, size), features, {**collections, **updated}


def supervised_step(
    state: TrainState, batch: Batch, *, preprocessing: Preprocessing, temperature: float = 1.0
) -> tuple[TrainState, Metrics]:
    """One step of G on L_seg (equation 3).

    Args:
      state: G.
      batch: ``image`` uint8 [N, H, W, 3] and ``label`` uint8 [N, H', W'] with 255 ignored.
      preprocessing: input normalisation.
      temperature: divides the logits; T in the control that shares the adversarial stage's settings.

    Returns:
      the updated state, and ``loss_seg``, ``grad_norm``.
    """
    images = normalise(batch["image"], preprocessing)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, _, collections = _forward(state, params, state.collections, images, batch["label"].shape[1:3])
        return losses.segmentation_loss(logits, batch["label"], temperature), collections

    (loss, collections), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, collections=collections)
    return state, {"loss_seg": loss, "grad_norm": optax.tree.norm(grads)}


def adversarial_step(
    generator: TrainState,
    discriminator: TrainState,
    source: Batch,
    target: Batch,
    *,
    preprocessing: Preprocessing,
    knowledge: losses.ClassKnowledge,
    lambda_adv: float,
) -> tuple[TrainState, TrainState, Metrics]:
    """One alternating iteration of FADA (section 3.2, order of the released code).

    G steps on ``L_seg + lambda_adv * L_adv`` with D constant; then D steps on ``L_D`` of the same, pre-update features
    with their gradient stopped. D's forward on the target features serves both L_adv and L_D.

    Args:
      generator: G.
      discriminator: D, with ``knowledge.num_outputs(K)`` channels.
      source: ``image`` uint8 [N, H, W, 3], ``label`` uint8 [N, H, W].
      target: ``image`` uint8 [M, H', W', 3].
      preprocessing: input normalisation.
      knowledge: form of the class knowledge a; its temperature also divides the logits of L_seg.
      lambda_adv: weight of L_adv.

    Returns:
      updated G and D, and ``loss_seg``, ``loss_adv``, ``loss_d``, ``grad_norm``.
    """
    source_images = normalise(source["image"], preprocessing)
    target_images = normalise(target["image"], preprocessing)

    def domain_logits(params: Any, features: jax.Array, size: tuple[int, int]) -> jax.Array:
        return resize_align_corners(discriminator.apply_fn({"params": params}, features), size)

    def generator_loss(params: Any) -> tuple[jax.Array, Any]:
        source_logits, source_features, collections = _forward(
            generator, params, generator.collections, source_images, source["label"].shape[1:3]
        )
        target_logits, target_features, collections = _forward(
            generator, params, collections, target_images, target_images.shape[1:3]
        )
        loss_seg = losses.segmentation_loss(source_logits, source["label"], knowledge.temperature)
        a_source = losses.class_knowledge(source_logits, knowledge)
        a_target = losses.class_knowledge(target_logits, knowledge)
        d_target = domain_logits(discriminator.params, target_features, target_images.shape[1:3])
        loss_adv = losses.domain_loss(d_target, a_target, domain=0)
        aux = (loss_seg, loss_adv, source_features, target_features, a_source, a_target, collections)
        return loss_seg + lambda_adv * loss_adv, aux

    (_, aux), grads = jax.value_and_grad(generator_loss, has_aux=True)(generator.params)
    loss_seg, loss_adv, source_features, target_features, a_source, a_target, collections = aux
    source_features, target_features = jax.lax.stop_gradient((source_features, target_features))

    def discriminator_loss(params: Any) -> jax.Array:
        d_source = domain_logits(params, source_features, source_images.shape[1:3])
        d_target = domain_logits(params, target_features, target_images.shape[1:3])
        on_source = losses.domain_loss(d_source, a_source, domain=0)
        on_target = losses.domain_loss(d_target, a_target, domain=1)
        return 0.5 * on_source + 0.5 * on_target

    loss_d, d_grads = jax.value_and_grad(discriminator_loss)(discriminator.params)
    metrics = {
        "loss_seg": loss_seg,
        "loss_adv": loss_adv,
        "loss_d": loss_d,
        "grad_norm": optax.tree.norm(grads),
    }
    generator = generator.apply_gradients(grads=grads, collections=collections)
    discriminator = discriminator.apply_gradients(grads=d_grads)
    return generator, discriminator, metrics
