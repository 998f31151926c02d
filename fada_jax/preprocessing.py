"""Input normalisation that belongs to a set of weights and travels with them in every checkpoint."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from fada_jax.documents import STRICT
from fada_jax.ranges import Channels, Divisor, Divisors


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """``(channels in order * scale - mean) / std`` of uint8 RGB images."""

    __pydantic_config__: ClassVar = STRICT
    channel_order: Literal["RGB", "BGR"] = "RGB"  # The order that the network expects.
    scale: Divisor = 1.0 / 255.0  # Applied to 0-255 values first: 1/255 for networks trained on 0-1, 1 for 0-255.
    mean: Channels = (0.485, 0.456, 0.406)  # In the network's order and range.
    std: Divisors = (0.229, 0.224, 0.225)  # Likewise.


IMAGENET = Preprocessing()
CAFFE = Preprocessing("BGR", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
# AdaptSegNet and its lineage.
LINEAGE = Preprocessing("BGR", 1.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0))


def normalise(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Network input from images: uint8 or float 0-255 RGB [N, H, W, 3] -> float32 [N, H, W, 3]."""
    x = images.astype(jnp.float32)
    if preprocessing.channel_order == "BGR":
        x = x[..., ::-1]
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return (x * preprocessing.scale - mean) / std
