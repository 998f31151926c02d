"""ResNet feature extractors, weight-compatible with torchvision, dilated to a chosen output stride."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fada_jax.models import layers
from fada_jax.models.convolution import compute_dtype
from fada_jax.models.spec import ModelSpec

# Backbone -> block, blocks per stage.
RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}
# Inner width of each stage.
WIDTHS = (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Geometry of one of the four stages.

    Attributes:
      blocks: number of blocks.
      width: inner width of each block.
      stride: of the first block.
      first_dilation: of the first block.
      dilation: of the other blocks.
      project: whether the first block's shortcut is a 1x1 convolution.
    """

    blocks: int
    width: int
    stride: int
    first_dilation: int
    dilation: int
    project: bool


def convolutions(block: str, width: int) -> tuple[tuple[int, int], ...]:
    """Features and kernel size of each convolution of a block; ``width``: its inner width."""
    return {"basic": ((width, 3), (width, 3)), "bottleneck": ((width, 1), (width, 3), (4 * width, 1))}[block]


class Block(nn.Module):
    """One residual block: two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 (bottleneck).

    The stride is that of the first 3x3 (torchvision) or of the first convolution (caffe).
    """

    kind: str
    width: int
    stride: int
    dilation: int
    project: bool
    norm: str
    dtype: layers.Dtype
    variant: str = "torchvision"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = layers.norm_layer(self.norm, self.dtype)
        plan = convolutions(self.kind, self.width)
        y, remaining_stride = x, self.stride
        for i, (features, kernel) in enumerate(plan, start=1):
            stride = 1
            # torchvision's basic block knows no dilation; here both of its 3x3 have the stage's.
            dilation = self.dilation if kernel == 3 else 1
            if kernel == 3 or self.variant == "caffe":
                stride, remaining_stride = remaining_stride, 1
            conv = layers.Conv(features, kernel, stride, dilation, dtype=self.dtype, name=f"conv{i}")
            y = layers.convolve_and_normalise(conv, norm(name=f"bn{i}"), y, train)
            if i < len(plan):
                y = layers.relu(y)
        if self.project:
            conv = layers.Conv(features, 1, stride=self.stride, dtype=self.dtype, name="downsample_conv")
            x = layers.convolve_and_normalise(conv, norm(name="downsample_bn"), x, train)
        return layers.relu_of_sum(x, y)


class ResNet(nn.Module):
    """Stem and four stages; strides beyond ``output_stride`` become dilations.

    torchvision's rule for a dilated stage: its first block still uses the previous stage's dilation, so at output
    stride 8 layer3 has dilations 1, 2, 2, ... and layer4 has 2, 4, 4. The Caffe networks of AdaptSegNet's lineage use
    the stage's own from its first block on, 2, 2, 2, ... and 4, 4, 4; they stride in the first convolution of a block,
    and their max-pool rounds up.

    Attributes:
      block: 'basic' or 'bottleneck' (output width four times ``widths``).
      stage_sizes: blocks in each stage.
      widths: inner width of each stage.
      stem_width: channels of the 7x7 stem.
      stem_pool: max-pool after the stem; small images are better off without it.
      output_stride: input pixels per feature pixel.
      norm: see ``layers.norm_layer``.
      remat: keep only the blocks' outputs for the backward pass and compute their insides again.
      variant: 'torchvision' or 'caffe'.
    """

    block: str
    stage_sizes: Sequence[int]
    widths: Sequence[int] = WIDTHS
    stem_width: int = 64
    stem_pool: bool = True
    output_stride: int = 8
    norm: str = "frozen"
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    variant: str = "torchvision"

    @nn.nowrap
    def stages(self) -> Iterator[Stage]:
        """The four stages in order."""
        inputs, reached, dilation = self.stem_width, 4 if self.stem_pool else 2, 1
        for i, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            stride, first_dilation = 2 if i else 1, dilation
            if reached * stride > self.output_stride:
                dilation, stride = dilation * stride, 1
                if self.variant == "caffe":
                    first_dilation = dilation
            reached *= stride
            outputs = convolutions(self.block, width)[-1][0]
            yield Stage(blocks, width, stride, first_dilation, dilation, stride != 1 or inputs != outputs)
            inputs = outputs

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Features of normalised images: [N, H, W, 3] -> [N, ceil(H / output_stride), ..., channels].

        Caffe's max-pool makes one row and one column more of an even number.
        """
        return self.levels(x, train)[1]

    @nn.compact
    def levels(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """What the third and the fourth stage give, of images as in ``__call__``."""
        x = x.astype(self.dtype)
        conv = layers.Conv(self.stem_width, 7, stride=2, dtype=self.dtype, name="conv1")
        norm = layers.norm_layer(self.norm, self.dtype)(name="bn1")
        x = layers.relu(layers.convolve_and_normalise(conv, norm, x, train))
        if self.stem_pool:
            x = layers.max_pool(x, round_up=self.variant == "caffe")
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for number, stage in enumerate(self.stages(), start=1):
            for i in range(stage.blocks):
                x = block(
                    kind=self.block,
                    width=stage.width,
                    stride=1 if i else stage.stride,
                    dilation=stage.dilation if i else stage.first_dilation,
                    project=stage.project and not i,
                    norm=self.norm,
                    dtype=self.dtype,
                    variant=self.variant,
                    name=f"layer{number}_{i}",
                )(x, train)
            if number == 3:
                third = x
        return third, x


def build(spec: ModelSpec) -> ResNet:
    """The ResNet of a spec, with torchvision's sizes where it names none."""
    block, stage_sizes = RESNETS[spec.backbone]
    return ResNet(
        block=block,
        stage_sizes=spec.stage_sizes or stage_sizes,
        widths=spec.widths or WIDTHS,
        stem_width=spec.stem_width,
        stem_pool=spec.stem_pool,
        output_stride=spec.output_stride,
        norm=spec.norm,
        remat=spec.remat,
        dtype=jnp.dtype(compute_dtype(spec.dtype)),
        variant=spec.variant,
    )
