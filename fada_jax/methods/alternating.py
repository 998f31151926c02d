"""What every system but FADA's own family shares: losses of two domains over G and further networks, one iteration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fada_jax.methods.interface import Batch, Metrics, States, TrainingSpec
from fada_jax.models import Outputs, resize_align_corners
from fada_jax.training import steps
from fada_jax.training.alternation import Alternation, Losses, Networks, View
from fada_jax.training.states import create_generator, generator_outputs


def probabilities(logits: jax.Array, size: tuple[int, int], temperature: float = 1.0) -> jax.Array:
    """``softmax(z / T)`` of logits upsampled to ``size``, float32 [N, H, W, K]."""
    return jax.nn.softmax(resize_align_corners(logits, size) / temperature)


def self_information(p: jax.Array) -> jax.Array:
    """``-p log p / log K`` of each class (ADVENT), which sums over them to the entropy, 0 to 1."""
    return -p * jnp.log(p + 1e-30) / jnp.log(float(p.shape[-1]))


def mean(x: jax.Array) -> jax.Array:
    """Mean of all elements, axis by axis from the last one.

    XLA's CPU adds some thousand elements one after the other, and where they are alike every sum is rounded alike: the
    mean of a map that a device holds was off by 1e-5.
    """
    for _ in range(x.ndim):
        x = x.mean(axis=-1)
    return x


def of_levels(losses: Sequence[jax.Array], auxiliary: float) -> jax.Array:
    """The loss of the main classifier and, where there is an auxiliary one, so much of its loss."""
    weighted = zip((1.0, auxiliary), losses, strict=False)
    return sum((weight * loss for weight, loss in weighted), jnp.float32(0))


@dataclasses.dataclass(frozen=True)
class Alternating:
    """A system by its losses; a subclass says what they are.

    Attributes:
      temperature: T, divides the classifiers' logits, in L_seg too; 1 in the releases of all of these.
      lambda_adv: weight of the loss that adapts.
    """

    temperature: float = 1.0
    lambda_adv: float = 0.001
    streams: ClassVar[tuple[str, ...]] = ("source", "target")
    # Values of ``model.heads`` that it can be trained with; the first is its own.
    heads: ClassVar[tuple[str, ...]] = ("one",)
    # Pixels that images must have each way.
    least_size: ClassVar[int] = 1
    # Networks that are trained together with G; all others are discriminators.
    partners: ClassVar[tuple[str, ...]] = ()

    def networks(self, rng: jax.Array, spec: TrainingSpec, outputs: Outputs) -> States:
        """Freshly initialised networks beside G, whose outputs have these shapes."""
        del rng, spec, outputs
        return {}

    def statistics(self, spec: TrainingSpec) -> Mapping[str, tuple[int, ...]]:
        """Shapes of what ``prepare`` finds out about the source, float32, by name."""
        del spec
        return {}

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        """Of one domain of a micro-batch."""
        raise NotImplementedError

    def penalty(self, params: Any, progress: jax.Array) -> jax.Array:
        """Loss of G's parameters alone, of those that have one."""
        raise NotImplementedError

    def segmentation(self, view: View, labels: jax.Array, spec: TrainingSpec, weights: Sequence[float]) -> jax.Array:
        """Sum of L_seg of the classifiers with their weights, each a mean over the labelled pixels."""
        total: Any = 0.0
        for logits, weight in zip(view.outputs.logits, weights, strict=False):
            total += weight * steps.segmentation_sums(logits, labels, self.temperature, spec.block_rows)[0]
        return total / view.labelled

    def supervised(
        self, view: View, labels: jax.Array, spec: TrainingSpec, weights: Sequence[float] = (1.0,)
    ) -> Losses:
        """Of the source in a system without discriminators: L_seg alone."""
        loss_seg = self.segmentation(view, labels, spec, weights)
        return Losses(loss_seg, 0.0, {"loss_seg": loss_seg})

    def init(self, rng: jax.Array, spec: TrainingSpec) -> States:
        g_key, others_key = jax.random.split(rng)
        generator = create_generator(spec.model, spec.generator_optimizer, g_key)
        states = {"generator": generator, **self.networks(others_key, spec, generator_outputs(generator))}
        if shapes := self.statistics(spec):
            states["statistics"] = {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}
        return states

    def step(
        self, states: States, batch: Batch, rng: jax.Array, progress: jax.Array, spec: TrainingSpec
    ) -> tuple[States, Metrics]:
        plan = Alternation(
            lambda view, networks: self.losses(view, networks, spec),
            spec.preprocessing,
            self.partners,
            None if type(self).penalty is Alternating.penalty else self.penalty,
            spec.accumulate_steps,
            spec.reduce_dtype,
        )
        return plan.step(states, batch, rng, progress, states.get("statistics"))
