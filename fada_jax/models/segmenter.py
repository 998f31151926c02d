"""The segmentation network G = C o F (DeepLabV2) and the fine-grained discriminator D of the paper's section 3.2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp

from fada_jax.models import layers
from fada_jax.models.convolution import compute_dtype
from fada_jax.models.resnet import RESNETS, WIDTHS, ResNet
from fada_jax.models.vgg import VGG16
from fada_jax.ranges import Positive, Rates, Widths

BACKBONES = (*RESNETS, "vgg16")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything that determines the shapes of G; it is stored in checkpoints."""

    backbone: str  # One of BACKBONES.
    num_classes: int  # K.
    # Self-distillation from GTA5 trains batch norm; every other released stage keeps it frozen.
    norm: Literal["frozen", "live", "group"] = "frozen"
    stage_sizes: Widths = ()  # ResNet blocks per stage; empty: the backbone's own.
    widths: Widths = ()  # Channels per stage; empty: the backbone's own.
    stem_width: Positive = 64  # Channels of the ResNet stem.
    stem_pool: bool = True  # Max-pool after the ResNet stem.
    output_stride: Literal[4, 8, 16, 32] = 8  # Input pixels per feature pixel (ResNet).
    aspp_rates: Rates = (6, 12, 18, 24)  # Dilations of the classifier's parallel convolutions.
    # Compute type; 'auto' is bfloat16 on accelerators and float32 on CPUs. Parameters stay float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    remat: bool = False  # ResNet: compute the insides of blocks again in the backward pass instead of keeping them.


DTYPES: tuple[str, ...] = get_args(get_type_hints(ModelSpec)["dtype"])


def interchange(theirs: ModelSpec, ours: ModelSpec) -> list[tuple[str, Any, Any]]:
    """What two networks must agree in for the weights of one to serve the other: config key and both values.

    Frozen and live batch norm hold the same arrays, so that only group norm tells norms apart.
    """
    fields = ["backbone", "stage_sizes", "widths", "stem_width", "stem_pool", "output_stride", "aspp_rates"]
    if "group" in (theirs.norm, ours.norm):
        fields.append("norm")
    return [(f"model.{field}", getattr(theirs, field), getattr(ours, field)) for field in fields]


class AsppClassifier(nn.Module):
    """Classifier C of DeepLabV2: the sum of parallel 3x3 convolutions with growing dilation."""

    num_classes: int
    rates: Sequence[int] = (6, 12, 18, 24)
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits at feature resolution, float32 [N, h, w, K]."""
        total = 0.0
        for i, rate in enumerate(self.rates):
            branch = layers.Conv(
                self.num_classes,
                3,
                dilation=rate,
                use_bias=True,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.01),
                torch_bias=True,
                name=f"conv{i}",
            )
            total = total + branch(features).astype(jnp.float32)
        return total


def feature_extractor(spec: ModelSpec) -> ResNet | VGG16:
    """The module F of ``spec``, with the backbone's own sizes where ``spec`` names none."""
    dtype = jnp.dtype(compute_dtype(spec.dtype))
    if spec.backbone == "vgg16":
        widths = {"widths": spec.widths[:5], "fc_width": spec.widths[5]} if spec.widths else {}
        return VGG16(**widths, dtype=dtype)
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
        dtype=dtype,
    )


class Segmenter(nn.Module):
    """Feature extractor F followed by classifier C."""

    spec: ModelSpec

    def setup(self) -> None:
        self.feature_extractor = feature_extractor(self.spec)
        dtype = jnp.dtype(compute_dtype(self.spec.dtype))
        self.classifier = AsppClassifier(self.spec.num_classes, self.spec.aspp_rates, dtype)

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Logits and features at feature resolution.

        Args:
          images: normalised images, [N, H, W, 3].
          train: batch norm uses and updates batch statistics (only norm 'live' knows the difference).

        Returns:
          logits float32 [N, h, w, K], features [N, h, w, C] in the compute type.
        """
        features = self.feature_extractor(images, train)
        return self.classifier(features), features


class Discriminator(nn.Module):
    """Fine-grained discriminator D: 3x3 convolutions of 256, 128 and 2K channels, leaky ReLU 0.2 between.

    Output channels [0, K) stand for the source classes and [K, 2K) for the target classes; with ``num_outputs`` 2 it
    is the binary discriminator of equation 1.
    """

    num_outputs: int
    widths: Sequence[int] = (256, 128)
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits at feature resolution, float32 [N, h, w, num_outputs]."""
        x = features.astype(self.dtype)
        # The released code keeps PyTorch's defaults.
        options: dict[str, Any] = {"use_bias": True, "dtype": self.dtype, "torch_bias": True}
        options["kernel_init"] = layers.torch_kernel_init
        for i, width in enumerate(self.widths):
            x = nn.leaky_relu(layers.Conv(width, 3, name=f"conv{i}", **options)(x), 0.2)
        return layers.Conv(self.num_outputs, 3, name="head", **options)(x).astype(jnp.float32)
