"""ResNet feature extractors, weight-compatible with torchvision, dilated to a chosen output stride."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fada_jax.models import layers

# Depth -> (block, blocks per stage).
DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}


class Block(nn.Module):
    """One residual block: two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 with the stride on the 3x3 (bottleneck)."""

    kind: str
    width: int
    stride: int
    dilation: int
    project: bool
    norm: str
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = layers.norm_layer(self.norm, self.dtype)
        out = self.width * (4 if self.kind == "bottleneck" else 1)
        spatial = {"stride": self.stride, "dilation": self.dilation}
        if self.kind == "bottleneck":
            plan = ((self.width, 1, {}), (self.width, 3, spatial), (out, 1, {}))
        else:
            # torchvision's basic block knows no dilation; both 3x3 follow the rule of the stage here.
            plan = ((self.width, 3, spatial), (out, 3, {"dilation": self.dilation}))
        y = x
        for i, (features, kernel, options) in enumerate(plan, start=1):
            conv = layers.Conv(features, kernel, dtype=self.dtype, name=f"conv{i}", **options)
            y = layers.convolve_and_normalise(conv, norm(name=f"bn{i}"), y, train)
            if i < len(plan):
                y = layers.relu(y)
        if self.project:
            conv = layers.Conv(out, 1, stride=self.stride, dtype=self.dtype, name="downsample_conv")
            x = layers.convolve_and_normalise(conv, norm(name="downsample_bn"), x, train)
        return layers.relu_of_sum(x, y)


class ResNet(nn.Module):
    """Stem and four stages; strides beyond ``output_stride`` become dilations.

    torchvision's rule for a dilated stage: its first block still uses the previous stage's dilation, so at output
    stride 8 layer3 has dilations 1, 2, 2, ... and layer4 has 2, 4, 4.

    Attributes:
      block: 'basic' or 'bottleneck' (output width four times ``widths``).
      stage_sizes: blocks in each stage.
      widths: inner width of each stage.
      stem_width: channels of the 7x7 stem.
      stem_pool: max-pool after the stem; small images are better off without it.
      output_stride: input pixels per feature pixel.
      norm: see ``layers.norm_layer``.
      remat: keep only the blocks' outputs for the backward pass and compute their insides again.
    """

    block: str
    stage_sizes: Sequence[int]
    widths: Sequence[int] = (64, 128, 256, 512)
    stem_width: int = 64
    stem_pool: bool = True
    output_stride: int = 8
    norm: str = "frozen"
    remat: bool = False
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Features of normalised images: [N, H, W, 3] -> [N, ceil(H / output_stride), ..., channels]."""
        x = x.astype(self.dtype)
        conv = layers.Conv(self.stem_width, 7, stride=2, dtype=self.dtype, name="conv1")
        norm = layers.norm_layer(self.norm, self.dtype)(name="bn1")
        x = layers.relu(layers.convolve_and_normalise(conv, norm, x, train))
        reached = 2
        if self.stem_pool:
            x = layers.max_pool(x)
            reached = 4
        dilation = 1
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        expansion = 4 if self.block == "bottleneck" else 1
        for stage, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True), start=1):
            stride, previous = (1 if stage == 1 else 2), dilation
            if reached * stride > self.output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            for i in range(blocks):
                first = i == 0
                x = block(
                    kind=self.block,
                    width=width,
                    stride=stride if first else 1,
                    dilation=previous if first else dilation,
                    project=first and (stride != 1 or x.shape[-1] != width * expansion),
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"layer{stage}_{i}",
                )(x, train)
        return x
