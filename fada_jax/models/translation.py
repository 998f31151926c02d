"""Networks of an image translator: CycleGAN's generator with residual blocks, and its discriminator of 70x70 patches.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks" (ICCV 2017), section 7.1
and its release: instance norms have neither parameters nor running statistics. A bias before such a norm, which takes
it away again, is left out here; the release has them, without any effect.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fada_jax.models import layers
from fada_jax.models.convolution import compute_dtype
from fada_jax.models.spec import TranslationSpec

# Of all convolutions; biases begin at 0.
_INIT = nn.initializers.normal(0.02)
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def signed(images: jax.Array) -> jax.Array:
    """What a translator works on: images of 0 to 255, of any type and shape, as float32 from -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1


def unsigned(x: jax.Array) -> jax.Array:
    """Inverse of ``signed``: float32 from 0 to 255, not rounded."""
    return (x.astype(jnp.float32) + 1) * 127.5


def instance_norm(x: jax.Array) -> jax.Array:
    """[N, H, W, C] with mean 0 and variance 1 of each channel of each image, in the type of ``x``."""

    def mean(x: jax.Array) -> jax.Array:
        # Axis by axis: XLA's CPU adds thousands of numbers one after the other.
        return x.mean(axis=2, keepdims=True).mean(axis=1, keepdims=True)

    centred = x.astype(jnp.float32)
    centred = centred - mean(centred)
    return (centred * jax.lax.rsqrt(mean(jnp.square(centred)) + 1e-5)).astype(x.dtype)


class _Conv(nn.Module):
    """A square convolution in XLA's own form, behind zeros or reflections of the image.

    Attributes:
      padding: pixels on each side.
      reflects: they are reflections.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 1
    reflects: bool = False
    use_bias: bool = False
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, (H + 2 padding - kernel_size) // stride + 1, ..., features]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", _INIT, shape, jnp.float32).astype(self.dtype)
        x, pad = x.astype(self.dtype), (self.padding, self.padding)
        if self.reflects:
            x, pad = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), mode="reflect"), (0, 0)
        strides = (self.stride, self.stride)
        x = jax.lax.conv_general_dilated(x, kernel, strides, (pad, pad), dimension_numbers=_DIMENSIONS)
        if self.use_bias:
            # Added in float32, so that its gradient is summed in float32 too.
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            x = (x.astype(jnp.float32) + bias).astype(self.dtype)
        return x


class _Upsampling(nn.Module):
    """A transposed 3x3 convolution, PyTorch's with stride 2, padding 1 and output padding 1."""

    features: int
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, 2 H, 2 W, features]; PyTorch's kernel is this one turned by half a circle."""
        kernel = self.param("kernel", _INIT, (3, 3, x.shape[-1], self.features), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 2), (1, 2)), lhs_dilation=(2, 2), dimension_numbers=_DIMENSIONS
        )


class _Block(nn.Module):
    """A residual block of two 3x3 convolutions; its sum has no activation."""

    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]."""
        options: dict[str, Any] = {"kernel_size": 3, "reflects": True, "dtype": self.dtype}
        y = instance_norm(_Conv(x.shape[-1], name="conv1", **options)(x))
        return x + instance_norm(_Conv(x.shape[-1], name="conv2", **options)(layers.relu(y)))


class TranslationGenerator(nn.Module):
    """c7s1-64, d128, d256, R256 nine times, u128, u64, c7s1-3, as the paper calls them, with ``spec``'s numbers."""

    spec: TranslationSpec

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Translated images.

        Args:
          images: [N, H, W, 3] of ``signed``; H and W are multiples of 4.

        Returns:
          float32 [N, H, W, 3] from -1 to 1.
        """
        width, dtype = self.spec.width, jnp.dtype(compute_dtype(self.spec.dtype))
        ends: dict[str, Any] = {"kernel_size": 7, "padding": 3, "reflects": True, "dtype": dtype}
        x = _Conv(width, name="first", **ends)(images)
        x = layers.relu(instance_norm(x))
        for i in (1, 2):
            down = _Conv(width * 2**i, 3, stride=2, dtype=dtype, name=f"down{i}")
            x = layers.relu(instance_norm(down(x)))
        for i in range(self.spec.blocks):
            x = _Block(dtype, name=f"block{i}")(x)
        for i in (1, 0):
            x = layers.relu(instance_norm(_Upsampling(width * 2**i, dtype, name=f"up{i}")(x)))
        x = _Conv(3, use_bias=True, name="last", **ends)(x)
        return jnp.tanh(x.astype(jnp.float32))


class TranslationDiscriminator(nn.Module):
    """PatchGAN: 4x4 convolutions C64, C128, C256 with stride 2, C512 and one channel with stride 1, leaky ReLU 0.2.

    Each answer sees 70x70 pixels. All but the first and the last convolution have instance norms.

    Attributes:
      width: channels after the first convolution; 2, 4 and 8 times as many follow.
    """

    width: int = 64
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, H, W, 3] of ``signed``, 24 pixels each way at least -> float32 [N, H // 8 - 2, W // 8 - 2, 1]."""
        x = images
        for i in range(4):
            stride = 2 if i < 3 else 1
            x = _Conv(self.width * 2**i, 4, stride, use_bias=not i, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.leaky_relu(instance_norm(x) if i else x, 0.2)
        return _Conv(1, 4, use_bias=True, dtype=self.dtype, name="head")(x).astype(jnp.float32)
