"""CycleGAN: two translators between domains without pairs, each the way back of the other; CyCADA's pixel-level stage.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks" (ICCV 2017), section 3,
with the squared loss and the pool of section 4 and the identity loss of section 5.2; Hoffman et al., "CyCADA:
Cycle-Consistent Adversarial Domain Adaptation" (ICML 2018), section 3. With S for source and T for target:
L_G = E(D_T(G_T(s)) - 1)^2 + E(D_S(G_S(t)) - 1)^2 + lambda_cycle (|G_S(G_T(s)) - s| + |G_T(G_S(t)) - t|)
    + lambda_identity lambda_cycle (|G_T(t) - t| + |G_S(s) - s|) + lambda_semantic (L_sem(s) + L_sem(t));
L_D of each = (E(D(x) - 1)^2 + E D(pool(G(y)))^2) / 2. |x| is the mean over pixels and channels.
L_sem is the cross entropy of a frozen source model on a translated image, with what it says of the image before as the
label; CyCADA's authors left it out for GTA5.

Known of CyCADA's GTA5 stage: nine residual blocks and 70x70 patches, the weights and the pool that are the defaults
here, Adam 2e-4 with b1 0.5, crops of 400x400 pixels of images 1,024 wide, 20 epochs. Unverified: whether it had the
identity loss, which CycleGAN's release has by default (0.5) and its paper for paintings alone; whether it flipped; the
weight of L_sem; how its rate decayed. CycleGAN's own rate stays for 100 epochs and falls linearly, epoch by epoch, over
100 more; here it falls step by step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from fada_jax.errors import UserError
from fada_jax.methods import image_pool
from fada_jax.methods.alternating import mean
from fada_jax.methods.interface import Batch, Metrics, States, TrainingSpec
from fada_jax.models import (
    TranslationDiscriminator,
    TranslationGenerator,
    TranslationSpec,
    compute_dtype,
    height_width,
    resize_align_corners,
    signed,
    unsigned,
)
from fada_jax.preprocessing import normalise
from fada_jax.ranges import NonNegative, Positive, Whole
from fada_jax.training import optimizers, reduction, steps
from fada_jax.training.states import create_frozen, create_pair

DOMAINS = ("source", "target")
# The translators by where they lead: parameters of ``states["generator"]``, in the order of ``DOMAINS``.
TO_SOURCE, TO_TARGET = TRANSLATORS = ("to_source", "to_target")
DISCRIMINATORS, POOLS, SEGMENTER = "domain_discriminators", "pools", "segmenter"
# By domain: an image of it, or of each micro-batch.
Images = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class CycleGan:
    """Both translators are one TrainState, ``generator``; so are both discriminators.

    Attributes:
      source_size, target_size: (width, height) of the images that it trains on.
      lambda_cycle: weight of the cycle loss.
      lambda_identity: weight of the identity loss, as a share of ``lambda_cycle``.
      lambda_semantic: weight of the semantic loss, whose frozen model is that of ``config.init_from``.
      pool_size: translated images that are kept of each domain; 0: none.
      width: channels after a translator's first convolution.
      blocks: residual blocks of a translator.
    """

    source_size: tuple[Positive, Positive] = (400, 400)
    target_size: tuple[Positive, Positive] = (400, 400)
    lambda_cycle: NonNegative = 10.0
    lambda_identity: NonNegative = 0.0
    lambda_semantic: NonNegative = 0.0
    pool_size: Whole = 50
    width: Positive = 64
    blocks: Positive = 9
    streams: ClassVar[tuple[str, ...]] = DOMAINS
    # Pixels that a discriminator needs each way, and what a translator can halve twice.
    least_size: ClassVar[int] = 24
    size_multiple: ClassVar[int] = 4

    def translator(self, spec: TrainingSpec) -> TranslationSpec:
        """Shapes of each translator."""
        return TranslationSpec(self.width, self.blocks, spec.model.dtype)

    def init(self, rng: jax.Array, spec: TrainingSpec) -> States:
        keys = jax.random.split(rng, 5)
        discriminator = TranslationDiscriminator(spec.patch_width, jnp.dtype(compute_dtype(spec.model.dtype)))
        of_g, of_d = map(optimizers.discriminator_optimizer, (spec.generator_optimizer, spec.discriminator_optimizer))
        states: States = {
            "generator": create_pair(
                TranslationGenerator(self.translator(spec)), of_g, dict(zip(TRANSLATORS, keys[:2], strict=True))
            ),
            DISCRIMINATORS: create_pair(discriminator, of_d, dict(zip(DOMAINS, keys[2:4], strict=True))),
        }
        if self.pool_size:
            # What is translated into a domain has the size of the other one's images.
            sizes = zip(DOMAINS, (self.target_size, self.source_size), strict=True)
            states[POOLS] = {
                domain: image_pool.empty(self.pool_size, height, width) for domain, (width, height) in sizes
            }
        if self.lambda_semantic:
            states[SEGMENTER] = create_frozen(spec.model, keys[4])
        return states

    def step(
        self, states: States, batch: Batch, rng: jax.Array, progress: jax.Array, spec: TrainingSpec
    ) -> tuple[States, Metrics]:
        """One iteration in the release's order; see ``Method.step``.

        Both translators step with the discriminators constant. Then the discriminators step on the images and on what
        the pools give back for the same translations, which were made before the translators stepped.
        """
        del progress
        generator, discriminators = states["generator"], states[DISCRIMINATORS]
        images = {name: batch[name]["image"] for name in DOMAINS}
        segmenter = states.get(SEGMENTER)
        frozen = segmenter.variables if segmenter else {}
        applied = generator.apply_fn, discriminators.apply_fn, segmenter.apply_fn if segmenter else None
        networks = _Networks(self, spec, len(images["source"]), *applied)
        variables = generator.params, discriminators.params, frozen
        g_grads, metrics, fakes = reduction.over_devices(networks.generator_gradients, variables, images)
        shown, pools = self._pooled(states, fakes, rng)
        both = {"real": images, "fake": shown}
        d_grads, of_d = reduction.over_devices(networks.discriminator_gradients, discriminators.params, both)
        updated = {
            "generator": generator.apply_gradients(grads=g_grads),
            DISCRIMINATORS: discriminators.apply_gradients(grads=d_grads),
        }
        return {**states, **updated, **pools}, {**metrics, **of_d, "grad_norm": optax.tree.norm(g_grads)}

    def _pooled(self, states: States, fakes: Images, rng: jax.Array) -> tuple[Images, States]:
        """What the discriminators are shown for translations, and the pools after it."""
        if not self.pool_size:
            return fakes, {}
        shown, pools = {}, {}
        for number, domain in enumerate(DOMAINS):
            pool, made = states[POOLS][domain], fakes[domain]
            if pool["images"].shape[1:] != made.shape[1:]:
                here, there = (f"{width}x{height}" for height, width, _ in (made.shape[1:], pool["images"].shape[1:]))
                raise UserError(
                    f"translations into the {domain} are {here}, its pool keeps {there}: train on images of "
                    "config.source.size and config.target.size, or of their crops"
                )
            draws = image_pool.draw(jax.random.fold_in(rng, number), len(made), self.pool_size)
            pools[domain], shown[domain] = image_pool.query(pool, made, draws)
        return shown, {POOLS: pools}


@dataclasses.dataclass(frozen=True)
class _Networks:
    """What the losses of a step are made of; parameters are given to each function.

    Attributes:
      method, spec: of the step.
      count: images of each domain in the whole batch.
      translate, discriminate, segment: ``apply_fn`` of one translator, of one discriminator, and of the frozen model.
    """

    method: CycleGan
    spec: TrainingSpec
    count: int
    translate: Callable[..., jax.Array]
    discriminate: Callable[..., jax.Array]
    segment: Callable[..., Any] | None

    def _answers(self, params: Any, domain: str, images: jax.Array) -> jax.Array:
        return self.discriminate({"params": params[domain]}, images)

    def generator_gradients(self, variables: Any, images: Images) -> tuple[Any, Metrics, Images]:
        """Gradients of both translators, metrics, and the translations by the domain that they are in."""
        params, d_params, frozen = variables

        def part(images: Images) -> tuple[Any, Images]:
            loss = functools.partial(self.generator_loss, d_params=d_params, frozen=frozen, images=images)
            grads, (metrics, fakes) = jax.grad(loss, has_aux=True)(params)
            return (grads, metrics), fakes

        (grads, metrics), fakes = _by_micro_batch(part, images, self.spec.accumulate_steps)
        grads = reduction.total(grads, self.spec.reduce_dtype)
        return grads, reduction.total(metrics), reduction.gathered(fakes)

    def generator_loss(self, params: Any, d_params: Any, frozen: Any, images: Images) -> tuple[jax.Array, Any]:
        """Of a micro-batch of uint8 images: its addend of L_G; the losses by name, and the translations."""
        share, method = len(images["source"]) / self.count, self.method
        real = {domain: signed(x) for domain, x in images.items()}

        def translate(x: jax.Array, name: str) -> jax.Array:
            return self.translate({"params": params[name]}, x)

        fakes = {"target": translate(real["source"], TO_TARGET), "source": translate(real["target"], TO_SOURCE)}
        back = {"source": translate(fakes["target"], TO_SOURCE), "target": translate(fakes["source"], TO_TARGET)}

        def distance(made: Images) -> jax.Array:
            return sum((mean(jnp.abs(made[domain] - real[domain])) for domain in DOMAINS), jnp.float32(0))

        answers = [self._answers(d_params, domain, fakes[domain]) for domain in DOMAINS]
        metrics = {
            "loss_adv": share * sum((mean(jnp.square(answer - 1)) for answer in answers), jnp.float32(0)),
            "loss_cycle": share * distance(back),
        }
        loss = metrics["loss_adv"] + method.lambda_cycle * metrics["loss_cycle"]
        if method.lambda_identity:
            same = {"source": translate(real["source"], TO_SOURCE), "target": translate(real["target"], TO_TARGET)}
            metrics["loss_identity"] = share * distance(same)
            loss += method.lambda_identity * method.lambda_cycle * metrics["loss_identity"]
        if method.lambda_semantic:
            pairs = ((real["source"], fakes["target"]), (real["target"], fakes["source"]))
            metrics["loss_semantic"] = share * sum((self._semantic(frozen, *pair) for pair in pairs), jnp.float32(0))
            loss += method.lambda_semantic * metrics["loss_semantic"]
        return loss, (metrics, fakes)

    def _semantic(self, frozen: Any, real: jax.Array, fake: jax.Array) -> jax.Array:
        """Cross entropy of the frozen model on translations, a mean over pixels; its labels are of the originals."""
        segment = self.segment
        assert segment is not None

        def logits(x: jax.Array) -> jax.Array:
            return segment(frozen, normalise(unsigned(x), self.spec.preprocessing), train=False)[0]

        before = resize_align_corners(jax.lax.stop_gradient(logits(real)), height_width(real))
        labels = jnp.argmax(before, axis=-1).astype(jnp.uint8)
        total, pixels = steps.segmentation_sums(logits(fake), labels, 1.0, self.spec.block_rows)
        return total / pixels

    def discriminator_gradients(self, params: Any, batch: Mapping[str, Images]) -> tuple[Any, Metrics]:
        """Gradients of both discriminators and ``loss_d``, the sum of their losses."""

        def loss(params: Any, batch: Mapping[str, Images]) -> jax.Array:
            share, total = len(batch["real"]["source"]) / self.count, jnp.float32(0)
            for domain in DOMAINS:
                on_real = self._answers(params, domain, signed(batch["real"][domain]))
                on_fake = self._answers(params, domain, batch["fake"][domain])
                total += 0.5 * share * (mean(jnp.square(on_real - 1)) + mean(jnp.square(on_fake)))
            return total

        def part(collections: Any, batch: Mapping[str, Images]) -> tuple[Any, Any]:
            return jax.value_and_grad(loss)(params, batch), collections

        (value, grads), _ = steps.accumulate(part, {}, batch, self.spec.accumulate_steps)
        return reduction.total(grads, self.spec.reduce_dtype), {"loss_d": reduction.total(value)}


def _by_micro_batch(part: Callable[[Any], tuple[Any, Any]], batch: Any, micro_batches: int) -> tuple[Any, Any]:
    """Sums of what ``part`` gives first over micro-batches, one after the other, and what it makes of each image."""
    if micro_batches == 1:
        return part(batch)

    def split(x: jax.Array) -> jax.Array:
        # As ``steps.accumulate`` does.
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def body(sums: Any, micro: Any) -> tuple[Any, Any]:
        added, made = part(micro)
        return jax.tree.map(jnp.add, sums, added), made

    micro = jax.tree.map(split, batch)
    shapes = jax.eval_shape(part, jax.tree.map(lambda x: x[0], micro))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, made = jax.lax.scan(body, zeros, micro)
    return sums, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), made)
