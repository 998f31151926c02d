"""VGG-16 feature extractor of DeepLab: output stride 8, dilated conv5, fc6 and fc7 as dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fada_jax.models import layers
from fada_jax.models.convolution import compute_dtype
from fada_jax.models.spec import ModelSpec

# Convolutions per block, and whether the block is followed by a 2x2 max-pool (pool4 and pool5 are left out).
BLOCKS = ((2, True), (2, True), (3, True), (3, False), (3, False))


class VGG16(nn.Module):
    """13 convolutions of VGG-16 without normalisation, then fc6 and fc7 as 3x3 convolutions with dilation 4.

    Attributes:
      widths: channels of the five blocks.
      fc_width: channels of fc6 and fc7, and so of the features.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 512)
    fc_width: int = 1024
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Features of normalised images: [N, H, W, 3] -> [N, floor(H / 8), floor(W / 8), fc_width]."""
        del train
        x = x.astype(self.dtype)
        for block, ((convs, pool), width) in enumerate(zip(BLOCKS, self.widths, strict=True), start=1):
            for i in range(1, convs + 1):
                dilation = 2 if block == 5 else 1
                name = f"conv{block}_{i}"
                x = layers.Conv(width, 3, dilation=dilation, use_bias=True, dtype=self.dtype, name=name)(x)
                x = layers.relu(x)
            if pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        for name in ("fc6", "fc7"):
            # No ImageNet weights have these layers: the released code keeps PyTorch's defaults.
            conv = layers.Conv(
                self.fc_width,
                3,
                dilation=4,
                use_bias=True,
                dtype=self.dtype,
                kernel_init=layers.torch_kernel_init,
                torch_bias=True,
                name=name,
            )
            x = layers.relu(conv(x))
        return x


def build(spec: ModelSpec) -> VGG16:
    """The VGG-16 of a spec, with its own sizes where the spec names none."""
    dtype = jnp.dtype(compute_dtype(spec.dtype))
    return VGG16(spec.widths[:5], spec.widths[5], dtype) if spec.widths else VGG16(dtype=dtype)
