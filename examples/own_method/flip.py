"""A whole method of one's own: the prediction of a target image shall not change when the image is mirrored.

To train with it from a config, see docs/extending.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fada_jax.methods.interface import Batch, Metrics, States, TrainingSpec
from fada_jax.preprocessing import normalise
from fada_jax.training import losses, steps
from fada_jax.training.states import create_generator


@dataclasses.dataclass(frozen=True)
class FlipConsistency:
    """L_seg on the source, and the squared distance of both predictions of the target, whose weight grows linearly.

    Attributes:
      consistency: weight at the end; a field that the config has no key for is a key of ``config.options``.
    """

    consistency: float = 1.0
    streams: ClassVar[tuple[str, ...]] = ("source", "target")

    def init(self, rng: jax.Array, spec: TrainingSpec) -> States:
        return {"generator": create_generator(spec.model, spec.generator_optimizer, rng)}

    def step(
        self, states: States, batch: Batch, rng: jax.Array, progress: jax.Array, spec: TrainingSpec
    ) -> tuple[States, Metrics]:
        generator = states["generator"]
        source, target = (normalise(batch[name]["image"], spec.preprocessing) for name in self.streams)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, _, collections = steps.forward(generator, params, generator.collections, source)
            sums = steps.segmentation_sums(logits, batch["source"]["label"], 1.0, spec.block_rows)
            seg = losses.mean(*sums)
            plain, mirrored = (
                jax.nn.softmax(steps.forward(generator, params, collections, images)[0])
                for images in (target, target[:, :, ::-1])
            )
            distance = jnp.mean(jnp.square(plain - mirrored[:, :, ::-1]))
            return seg + self.consistency * progress * distance, (seg, distance, collections)

        grads, (seg, distance, collections) = jax.grad(loss_fn, has_aux=True)(generator.params)
        generator = generator.apply_gradients(grads=grads, collections=collections)
        return {"generator": generator}, {"loss_seg": seg, "loss_flip": distance}
