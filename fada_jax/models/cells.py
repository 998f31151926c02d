"""Networks that see one cell at a time: chains of 1x1 convolutions, one chain a class, and the scores of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fada_jax.models import layers


class Pointwise(nn.Module):
    """1x1 convolutions with PyTorch's initial values, (leaky) ReLU and dropout behind all but the last.

    Attributes:
      widths: channels of the hidden ones.
      outputs: channels of the last.
      slope: of the leaky ReLU; 0: none.
      dropout: chance that a number is left out.
    """

    widths: Sequence[int]
    outputs: int
    slope: float = 0.0
    dropout: float = 0.0
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """[N, h, w, C] -> float32 [N, h, w, outputs]; ``keys`` of the images [N], for dropout."""
        x = x.astype(self.dtype)
        options: dict[str, Any] = {"use_bias": True, "dtype": self.dtype, "torch_bias": True}
        options["kernel_init"] = layers.torch_kernel_init
        for i, width in enumerate(self.widths):
            x = nn.leaky_relu(layers.Conv(width, 1, name=f"conv{i}", **options)(x), self.slope)
            if keys is not None and self.dropout:
                x = dropped(x, jax.vmap(jax.random.fold_in, (0, None))(keys, i), self.dropout)
        return layers.Conv(self.outputs, 1, name="head", **options)(x).astype(jnp.float32)


def dropped(x: jax.Array, keys: jax.Array, chance: float) -> jax.Array:
    """Dropout of [N, ...] with a key an image [N]: the same numbers, whoever works on the image."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - chance, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - chance), 0)


class ByClass(nn.Module):
    """As many ``Pointwise`` networks as classes, one after the other: their hidden channels never live together.

    The parameters are those of one with an axis of the classes in front.

    Attributes:
      classes: how many.
      widths, outputs, slope, dropout, dtype: of each.
    """

    classes: int
    widths: Sequence[int]
    outputs: int
    slope: float = 0.0
    dropout: float = 0.0
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """[N, h, w, C] -> float32 [classes, N, h, w, outputs]."""

        def one(network: Pointwise, carry: None, number: jax.Array) -> tuple[None, jax.Array]:
            own = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            return carry, network(x, own)

        network = Pointwise(self.widths, self.outputs, self.slope, self.dropout, self.dtype, name="each")
        scan = nn.scan(
            nn.remat(one, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.classes,
        )
        return scan(network, None, jnp.arange(self.classes))[1]
