"""A backbone of one's own: five convolutions, output stride 8, and the segmenter that puts the package's head on it."""

from __future__ import annotations

import flax.linen as nn
import jax

from fada_jax.models import layers
from fada_jax.models.segmenter import AsppClassifier


class Plain(nn.Module):
    """Three strided convolutions and two dilated ones, each followed by a group norm.

    Attributes:
      width: channels of the first convolution; the features have four times as many.
    """

    width: int = 16

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images [N, H, W, 3] -> features [N, ceil(H / 8), ceil(W / 8), 4 * width]."""
        x = images
        plan = ((1, 2, 1), (2, 2, 1), (4, 2, 1), (4, 1, 2), (4, 1, 4))
        for i, (factor, stride, dilation) in enumerate(plan, start=1):
            x = layers.Conv(factor * self.width, 3, stride=stride, dilation=dilation, name=f"conv{i}")(x)
            x = layers.relu(layers.GroupNorm(name=f"norm{i}")(x, train))
        return x


class PlainSegmenter(nn.Module):
    """``Plain`` under the classifier of DeepLabV2, with the call that every step of the package takes."""

    num_classes: int

    def setup(self) -> None:
        self.feature_extractor = Plain()
        self.classifier = AsppClassifier(self.num_classes, (1, 2, 4))

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Logits float32 [N, h, w, K] and features [N, h, w, C]."""
        features = self.feature_extractor(images, train)
        return self.classifier(features), features
