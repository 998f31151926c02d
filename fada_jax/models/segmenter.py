"""The segmentation network G = C o F (DeepLabV2) and the fine-grained discriminator D of the paper's section 3.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fada_jax.errors import UserError
from fada_jax.models import layers, resnet, vgg
from fada_jax.models.convolution import compute_dtype
from fada_jax.models.resnet import RESNETS
from fada_jax.models.spec import ModelSpec


class AsppClassifier(nn.Module):
    """Classifier C of DeepLabV2: the sum of parallel 3x3 convolutions with growing dilation.

    Attributes:
      active: the first so many convolutions take part, the others have parameters alone; 0: all take part.
    """

    num_classes: int
    rates: Sequence[int] = (6, 12, 18, 24)
    dtype: layers.Dtype = jnp.float32
    active: int = 0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits at feature resolution, float32 [N, h, w, K]."""
        total: Any = 0.0
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
            if i < (self.active or len(self.rates)):
                total = total + branch(features).astype(jnp.float32)
            elif self.is_initializing():
                branch(features)
        return total


class Backbone(NamedTuple):
    """A feature extractor F.

    Attributes:
      build: the module of a spec, with the backbone's own sizes where the spec names none.
      widths: how many numbers ``ModelSpec.widths`` and ``stage_sizes`` have, unless none.
      remat: whether it knows ``ModelSpec.remat``.
      levels: whether it knows ``ModelSpec.heads`` 'levels'.
    """

    build: Callable[[ModelSpec], nn.Module]
    widths: int = 4
    remat: bool = False
    levels: bool = False


BACKBONES: Mapping[str, Backbone] = {
    **dict.fromkeys(RESNETS, Backbone(resnet.build, remat=True, levels=True)),
    "vgg16": Backbone(vgg.build, widths=6),
}


def feature_extractor(spec: ModelSpec) -> nn.Module:
    """The module F of ``spec``."""
    return BACKBONES[spec.backbone].build(spec)


class Segmenter(nn.Module):
    """Feature extractor F followed by classifier C."""

    spec: ModelSpec

    def setup(self) -> None:
        self.feature_extractor = feature_extractor(self.spec)
        dtype = jnp.dtype(compute_dtype(self.spec.dtype))
        options = self.spec.num_classes, self.spec.aspp_rates, dtype, self.spec.active_rates
        self.classifier = AsppClassifier(*options)
        if self.spec.heads == "levels":
            self.auxiliary_classifier = AsppClassifier(*options)
        if self.spec.heads == "two":
            self.second_classifier = AsppClassifier(*options)

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Logits and features at feature resolution.

        Args:
          images: normalised images, [N, H, W, 3].
          train: batch norm uses and updates batch statistics (only norm 'live' knows the difference).

        Returns:
          logits float32 [N, h, w, K], those of two classifiers added, features [N, h, w, C] in the compute type.
        """
        if self.spec.heads == "levels" and self.is_initializing():
            self.outputs(images, train)
        features = self.feature_extractor(images, train)
        logits = self.classifier(features)
        return (logits + self.second_classifier(features) if self.spec.heads == "two" else logits), features

    def outputs(self, images: jax.Array, train: bool = False) -> Outputs:
        """What every classifier gives, of images as in ``__call__``."""
        if self.spec.heads == "levels":
            third, features = self.feature_extractor.levels(images, train)
            return Outputs(features, (self.classifier(features), self.auxiliary_classifier(third)))
        features = self.feature_extractor(images, train)
        heads = [self.classifier, *([self.second_classifier] if self.spec.heads == "two" else [])]
        return Outputs(features, tuple(head(features) for head in heads))


class Outputs(NamedTuple):
    """What the classifiers of a segmenter give at feature resolution.

    Attributes:
      features: [N, h, w, C] in the compute type.
      logits: float32 [N, h, w, K] of each classifier: the main one, then the auxiliary or the second one.
    """

    features: jax.Array
    logits: tuple[jax.Array, ...]


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


class PatchDiscriminator(nn.Module):
    """AdaptSegNet's discriminator: five 4x4 convolutions with stride 2 and padding 1, leaky ReLU 0.2 between.

    It answers for overlapping patches of maps at the size of the image. Maps of feature resolution that are linear in
    what it reads need no upsampling before: see ``size``.

    Attributes:
      width: channels after the first convolution; 2, 4 and 8 times as many follow.
    """

    width: int = 64
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        """Logits of the patches.

        Args:
          maps: [N, H, W, C].
          size: (H', W'): the maps count as upsampled to it (``align_corners=True``), and the first convolution is
            taken of that without making it: 2,048 channels at the size of the image are gigabytes.

        Returns:
          float32 [N, h, w, 1], where h is H (or H') halved five times, each time rounded down.

        Raises:
          UserError: the image is too small for a patch.
        """
        height, width = size or maps.shape[1:3]
        if min(height, width) < 32:
            raise UserError(
                f"images of {width}x{height} pixels are too small for a discriminator of patches: config.source.size "
                "and config.target.size, or their crops, must be at least 32 each way"
            )
        x = maps.astype(self.dtype)
        for i in range(5):
            name, channels = (f"conv{i}", self.width * 2**i) if i < 4 else ("head", 1)
            x = layers.PatchConv(channels, dtype=self.dtype, name=name)(x, None if i else size)
            x = nn.leaky_relu(x, 0.2) if i < 4 else x
        return x.astype(jnp.float32)
