"""Layers that PyTorch's defaults make different from Flax's: padding, normalisation, align_corners resizing."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.models.convolution import axes_by_hand, by_platform, convolve

Dtype = Any

# PyTorch's default for the kernel of a convolution: uniform in +-1 / sqrt(fan_in), which has variance 1 / (3 fan_in).
torch_kernel_init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for the bias of a convolution: uniform in +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """A square convolution with PyTorch's symmetric padding ``dilation * (kernel_size - 1) / 2``.

    Flax's 'SAME' pads only at the end for stride 2 on even sizes, which shifts every feature by a pixel against
    weights trained in PyTorch.

    Attributes:
      torch_bias: the bias starts at PyTorch's default instead of zero, as in the released code's own layers.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    torch_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), features] for odd kernel sizes.

        Args:
          x: input.
          scale: float32 [features], multiplies the result, by way of the kernel.
        """
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if scale is not None:
            kernel = kernel * scale
        x = convolve(x.astype(self.dtype), kernel, self.stride, self.dilation)
        if self.use_bias:
            fan_in = math.prod(shape[:-1])
            bias_init = torch_bias_init(fan_in) if self.torch_bias else nn.initializers.zeros_init()
            # Added in float32, so that its gradient is summed in float32 too.
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            x = (x.astype(jnp.float32) + bias).astype(self.dtype)
        return x


class PatchConv(nn.Module):
    """A 4x4 convolution with stride 2, padding 1 and a bias, with PyTorch's initial values."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        """[N, H, W, C] -> [N, floor(H / 2), floor(W / 2), features].

        Args:
          x: input.
          size: (H', W'): the result is that of ``x`` upsampled to it with corner pixels aligned.
        """
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", torch_kernel_init, shape, jnp.float32)
        bias = self.param("bias", torch_bias_init(math.prod(shape[:-1])), (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if size is None:
            dimensions = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=dimensions)
        else:
            y = _upsampled_patches(x, kernel, size)
        return (y.astype(jnp.float32) + bias).astype(self.dtype)


def _upsampled_patches(x: jax.Array, kernel: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A 4x4 convolution with stride 2 and padding 1 of [N, h, w, C] upsampled to (H, W): [N, H // 2, W // 2, D].

    Upsampling acts on places and the kernel on channels: for each tap the channels come first, at the low resolution,
    and then only the places that the stride keeps.
    """

    def sampled(low: int, high: int) -> list[np.ndarray]:
        padded = np.pad(interpolation_matrix(low, high), ((1, 2), (0, 0)))
        return [padded[tap : tap + 2 * (high // 2) : 2].astype(x.dtype) for tap in range(4)]

    rows, columns = sampled(x.shape[1], size[0]), sampled(x.shape[2], size[1])
    total: Any = 0.0
    for i, row in enumerate(rows):
        # The four columns of a row of the kernel share its upsampled rows.
        taps = jnp.einsum("nhwc,tcd->nhtwd", x, kernel[i])
        taps = jnp.einsum("oh,nhtwd->notwd", row, taps, precision=jax.lax.Precision.HIGHEST)
        total = total + jnp.einsum(
            "tpw,notwd->nopd",
            np.stack(columns),
            taps,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
    return total.astype(x.dtype)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """``max(x, 0)`` whose gradient is read off the output, which the next layer holds anyway: no mask is stored."""
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


def _relu_gradient(y: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of a ReLU with output ``y``."""
    return by_platform(
        y,
        gradient,
        # XLA rewrites relu(x) > 0 to x > 0, and a GPU then writes x beside the output; it does not rewrite != 0.
        default=lambda y, gradient: jnp.where(y != 0, gradient, 0),
        cpu=lambda y, gradient: jnp.where(y > 0, gradient, 0),
    )


relu.defvjp(_relu_forward, lambda y, gradient: (_relu_gradient(y, gradient),))


@jax.custom_vjp
def relu_of_sum(x: jax.Array, y: jax.Array) -> jax.Array:
    """``relu(x + y)``.

    XLA on CPUs computes a maximum with a constant again in every use, and so the end of each residual block along with
    those of all blocks before it. It does not do so for a sum of two arrays; there it is ``-y + y`` where ``x + y`` is
    negative, which is as exact.
    """
    return by_platform(x, y, default=lambda x, y: jnp.maximum(x + y, 0), cpu=lambda x, y: jnp.maximum(x, -y) + y)


def _relu_of_sum_forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    z = relu_of_sum(x, y)
    return z, z


relu_of_sum.defvjp(_relu_of_sum_forward, lambda z, gradient: (_relu_gradient(z, gradient),) * 2)


def max_pool(x: jax.Array, *, round_up: bool = False) -> jax.Array:
    """3x3 max pooling with stride 2 and padding 1 (ResNet's stem): [N, H, W, C] -> [N, ceil(H / 2), ..., C].

    Args:
      x: input.
      round_up: as in Caffe, whose last window may hold one pixel alone: H // 2 + 1 rows.
    """
    height, width = ((1, 2 - size % 2 if round_up else 1) for size in x.shape[1:3])
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=[height, width])


class FrozenBatchNorm(nn.Module):
    """``y = x * scale + bias`` with constants folded from four frozen tensors, without epsilon (released code).

    The four tensors live in ``batch_stats`` (``scale``, ``bias``, ``mean``, ``var``) so that they can be exported
    unchanged; what the network applies lives in the collection ``folded`` and is made by ``fold_batch_norm`` in NumPy,
    because XLA flushes the denormal variances that trained networks contain to zero.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def constants(self, features: int) -> tuple[jax.Array, jax.Array]:
        """Scale and bias, float32 [features]."""
        shape = (features,)
        for name, value in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0)):
            self.variable("batch_stats", name, jnp.full, shape, value, jnp.float32)
        scale = self.variable("folded", "scale", jnp.ones, shape, jnp.float32).value
        bias = self.variable("folded", "bias", jnp.zeros, shape, jnp.float32).value
        return scale, bias

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        scale, bias = self.constants(x.shape[-1])
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)


class LiveBatchNorm(nn.Module):
    """Trainable batch norm with PyTorch's running statistics (momentum 0.1, unbiased running variance).

    Statistics are taken over the global batch, also where each device works on images of its own.
    """

    dtype: Dtype = jnp.float32
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shape = (x.shape[-1],)
        scale, bias = self._affine(shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if train:
            x32 = x.astype(jnp.float32)
            mean = _mean_over_batch(x32)
            var = _mean_over_batch(jnp.square(x32 - mean))
            if not self.is_initializing():
                count = x.size // x.shape[-1] * jax.lax.axis_size(axes_by_hand())
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        # In float32, so that the gradients of scale and bias are summed in float32 too.
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)

    def _affine(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Scale and bias, float32 [C]."""
        scale = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        return scale, self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)


class StatisticsBatchNorm(LiveBatchNorm):
    """``LiveBatchNorm`` whose scale and bias are constants in ``batch_stats`` (AdaptSegNet and its lineage)."""

    def _affine(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        values = (("scale", 1.0), ("bias", 0.0))
        scale, bias = (self.variable("batch_stats", k, jnp.full, shape, v, jnp.float32).value for k, v in values)
        return scale, bias


def _mean_over_batch(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [C], over the images of all devices."""
    axes = axes_by_hand()
    mean = jnp.mean(x, axis=(0, 1, 2))
    return jax.lax.pmean(mean, axes) if axes else mean


class GroupNorm(nn.Module):
    """Group norm with groups of at least 8 channels: for training from random initialisation with small batches."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        groups = max(1, min(32, x.shape[-1] // 8))
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=self.dtype, name="norm")(x)


_NORMS: dict[str, type[nn.Module]] = {
    "frozen": FrozenBatchNorm,
    "live": LiveBatchNorm,
    "statistics": StatisticsBatchNorm,
    "group": GroupNorm,
}


def norm_layer(kind: str, dtype: Dtype) -> functools.partial:
    """Constructor of a normalisation: 'frozen', 'live' or 'statistics' batch norm, or 'group' norm."""
    return functools.partial(_NORMS[kind], dtype=dtype)


def convolve_and_normalise(conv: Conv, norm: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    """``norm(conv(x))``; the scale of a frozen batch norm goes into the kernel.

    What is left, a bias and a ReLU, GPUs add while they write the convolution's result, and the gradient of the sum is
    that of the result: both save passes over the activations, which take as long as the convolutions themselves.
    """
    if isinstance(norm, FrozenBatchNorm):
        scale, bias = norm.constants(conv.features)
        return conv(x, scale) + bias.astype(norm.dtype)
    return norm(conv(x), train)


def fold_batch_norm(batch_stats: Any) -> dict:
    """The ``folded`` collection of every frozen batch norm in ``batch_stats``, computed in NumPy float32.

    Args:
      batch_stats: nested dict whose leaf dicts hold ``scale``, ``bias``, ``mean`` and ``var``, float32 [C].

    Returns:
      The same nesting with ``scale = weight / sqrt(var)`` and ``bias = bias - mean * scale``.
    """
    if "var" in batch_stats:
        weight, bias, mean, var = (np.asarray(batch_stats[k], np.float32) for k in ("scale", "bias", "mean", "var"))
        scale = weight * (np.float32(1.0) / np.sqrt(var))
        return {"scale": scale, "bias": bias - mean * scale}
    return {key: fold_batch_norm(value) for key, value in batch_stats.items()}


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights of 1-D linear interpolation with ``align_corners=True``, float32 [size_out, size_in].

    Built in float64: PyTorch's own float32 positions are off by up to 6e-5 at 1280 pixels.
    """
    if size_out == 1 or size_in == 1:
        position: np.ndarray = np.zeros(size_out)
    else:
        position = np.arange(size_out) * ((size_in - 1) / (size_out - 1))
    low = np.minimum(np.floor(position).astype(int), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    fraction = position - low
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out), low), 1.0 - fraction)
    np.add.at(matrix, (np.arange(size_out), high), fraction)
    return matrix.astype(np.float32)


def pooling_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights of adaptive average pooling, float32 [size_out, size_in].

    As in PyTorch a cell goes from ``floor(i size_in / size_out)`` to ``ceil((i + 1) size_in / size_out)``.
    """
    cells = np.arange(size_out)
    first, last = cells * size_in // size_out, -(-(cells + 1) * size_in // size_out)
    places = np.arange(size_in)
    inside = (places >= first[:, None]) & (places < last[:, None])
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Adaptive average pooling of [N, H, W, C] to ``size`` = (h, w), float32, as two matrix products."""
    return interpolate(x, pooling_matrix(x.shape[1], size[0]), pooling_matrix(x.shape[2], size[1]))


def height_width(images: jax.Array) -> tuple[int, int]:
    """(H, W) of [N, H, W] or [N, H, W, C]."""
    return images.shape[1], images.shape[2]


def resize_align_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize of [N, h, w, C] to ``size`` = (H, W), corner pixels aligned, float32.

    Written as two matrix products, so that forward and gradient run at matrix speed without gathers or scatters.
    """
    if x.shape[1:3] == tuple(size):
        return x.astype(jnp.float32)
    rows = interpolation_matrix(x.shape[1], size[0])
    columns = interpolation_matrix(x.shape[2], size[1])
    return interpolate(x, rows, columns)


def interpolate(x: jax.Array, rows: Any, columns: Any) -> jax.Array:
    """[N, h, w, C] with the weights of its rows [H, h] and columns [W, w] -> float32 [N, H, W, C]."""
    x = x.astype(jnp.float32)
    x = jnp.einsum("oh,nhwc->nowc", rows, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("pw,nowc->nopc", columns, x, precision=jax.lax.Precision.HIGHEST)
