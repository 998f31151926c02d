"""Adversarial methods, one file each: what the discriminator reads, and what class knowledge a pixel gives it.

Everything else is shared: L_seg, the two domain losses over ``[a; 0]`` and ``[0; a]`` (equations 5 and 6), the
alternating step, D's convolutions. A new method is a frozen dataclass of the form of ``Method`` in a file of its own, a
line in ``METHODS`` and its name in ``configs/base.py``; its fields are keys of ``config.knowledge``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax

from fada_jax.methods.binary import DomainLabels
from fada_jax.methods.entropy import Entropy
from fada_jax.methods.fine_grained import HardLabels, SoftLabels
from fada_jax.methods.output_space import OutputSpace


class Method(Protocol):
    """What distinguishes one adversarial method from another; hashable, so that it can be static under ``jax.jit``."""

    @property
    def temperature(self) -> float:
        """T, divides the classifier's logits, in L_seg too."""

    def num_outputs(self, num_classes: int) -> int:
        """Channels of the discriminator: the first half stands for the source, the second for the target."""

    def discriminator_input(self, logits: jax.Array, features: jax.Array) -> jax.Array:
        """What D reads, [N, h, w, C], from logits [N, h, w, K] and features; L_adv reaches G through it."""

    def class_knowledge(self, logits: jax.Array) -> jax.Array:
        """Class knowledge ``a`` of each pixel, gradient stopped; all zeros where a pixel shall not count.

        Args:
          logits: float32 [N, H, W, K].

        Returns:
          float32 [N, H, W, num_outputs(K) / 2].
        """


# By ``config.method``. What is no key here (control, source_only, oracle) trains without a discriminator.
METHODS: Mapping[str, type[Method]] = {
    "fada": SoftLabels,
    "hard": HardLabels,
    "binary": DomainLabels,
    "output_space": OutputSpace,
    "entropy": Entropy,
}
