"""Square convolutions with PyTorch's padding, for each platform in the formulation that is fastest there.

- TPUs: XLA's own, except where few channels leave most lanes empty: the classifier, from many channels to few, is a
  product with all taps at once, forward and backward, and the image's convolution sees 2 x 2 pixels as one.
- GPUs: XLA's own, except for the kernel gradient of a dilated convolution, which XLA hands to cuDNN as a convolution
  with a kernel as large as the image. Here it is the gradient of plain convolutions over the d * d interleaved images.
- CPUs: XLA takes two to three times as long for a kernel gradient as for the convolution. Here the kernel gradient is a
  sum of matrix products over shifted arrays, and a convolution from many channels to few projects first, then shifts.

All formulations agree to rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fada_jax.models.spec import ComputeType

# Mesh axes that split a batch; see ``fada_jax.distributed``.
BATCH_AXES = ("data", "fsdp")


def axes_by_hand() -> tuple[str, ...]:
    """Mesh axes over which each device works on images of its own here, see ``training.reduction``."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in BATCH_AXES if axis in mesh.manual_axes)


def by_platform(*arguments: Any, default: Callable[..., Any], **own: Callable[..., Any]) -> Any:
    """``default(*arguments)`` or, where a platform has a formulation of its own, that one's equal result.

    Each program holds the formulation of the platform that it is compiled for; an exported one holds all.

    Args:
      *arguments: arrays.
      default: formulation of platforms that have none of their own.
      **own: by platform: 'cpu', 'cuda', 'tpu'.
    """
    own = {platform: function for platform, function in own.items() if function is not default}
    return jax.lax.platform_dependent(*arguments, default=default, **own) if own else default(*arguments)


def compute_dtype(name: ComputeType, platform: str = "") -> ComputeType:
    """The compute type that ``name`` means on a platform (empty: here): 'auto' is float32 on CPUs, else bfloat16."""
    if name != "auto":
        return name
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def inference_dtype(stored: ComputeType, asked: ComputeType, platform: str = "") -> ComputeType:
    """The compute type of a stored model.

    Args:
      stored: what it was trained with.
      asked: 'float32', 'bfloat16', or 'auto': what it was trained with on accelerators, and float32 on CPUs, which have
        nothing to gain from less.
      platform: that runs it; empty: the one here.
    """
    if asked != "auto":
        return asked
    return "float32" if (platform or jax.default_backend()) == "cpu" else compute_dtype(stored, platform)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolution with symmetric padding ``dilation * (k - 1) / 2``.

    A 1x1 convolution is computed as the matrix product that it is.

    Args:
      x: [N, H, W, C].
      kernel: [k, k, C, D] of the same type, or float32: then it is rounded to the type of ``x``, and its gradient is
        summed over devices in float32. k is odd.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), D].
    """
    if kernel.dtype != x.dtype:
        return _convolve_rounded(x, kernel, stride, dilation)
    return _convolve_here(x, kernel, stride, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_rounded(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    return _convolve_here(x, kernel.astype(x.dtype), stride, dilation)


def _rounded_forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> tuple[jax.Array, tuple]:
    return _convolve_rounded(x, kernel, stride, dilation), (x, kernel)


def _rounded_backward(stride: int, dilation: int, residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    rounded = kernel.astype(x.dtype)
    (d_x,) = jax.vjp(lambda x: _convolve_here(x, rounded, stride, dilation), x)[1](gradient)

    def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
        # The gradient of a linear map does not depend on where it is taken.
        at = jnp.zeros(kernel.shape, x.dtype)
        (d_kernel,) = jax.vjp(lambda kernel: _convolve_here(x, kernel, stride, dilation), at)[1](gradient)
        return d_kernel.astype(kernel.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names and mesh.shape[axis] > 1)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if axes_by_hand() or parts == 1 or x.shape[0] % parts:
        return d_x, kernel_gradient(x, gradient)
    # XLA by itself sums the devices' parts in the type of x. The 8 bits of bfloat16 lose small parts among hundreds
    # (tests/test_steps.py, test_small_parts_of_a_gradient_survive_the_sum_over_devices).
    summed = jax.shard_map(
        lambda x, gradient: jax.lax.psum(kernel_gradient(x, gradient), axes),
        mesh=mesh,
        in_specs=PartitionSpec(axes),
        out_specs=PartitionSpec(),
        axis_names=set(axes),
        check_vma=False,
    )
    return d_x, summed(x, gradient)


_convolve_rounded.defvjp(_rounded_forward, _rounded_backward)


def _convolve_here(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    if kernel.shape[0] == 1:
        return _convolve(x[:, ::stride, ::stride], kernel, 1, 1)
    return _convolve(x, kernel, stride, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _plain(x, kernel, stride, dilation)

    def by_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum("nhwc,cd->nhwd", x, kernel[0, 0])

    def projected(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _project_and_shift(x, kernel, dilation)

    def projected_exactly(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # Taps that were rounded to bfloat16 before they are summed would lose what XLA's convolution keeps.
        return _project_and_shift(x, kernel, dilation, jnp.float32).astype(x.dtype)

    if kernel.shape[0] == 1:
        # XLA's GPU compiler pads products whose number of rows is no multiple of 8, in copies of both sides.
        return by_platform(x, kernel, default=by_product, cuda=plain if x.size // x.shape[-1] % 8 else by_product)
    if _to_few_channels(kernel, stride):
        return by_platform(x, kernel, default=plain, cpu=projected, tpu=projected_exactly)
    return by_platform(
        x, kernel, default=plain, tpu=_pixels_folded if _of_an_image(kernel, stride, dilation) else plain
    )


def _plain(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    pad = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> tuple[jax.Array, tuple]:
    return _convolve(x, kernel, stride, dilation), (x, kernel)


def _backward(stride: int, dilation: int, residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    rows_fit = kernel.shape[0] == 1 and x.size // x.shape[-1] % 8 == 0

    def transposed(
        x: jax.Array, kernel: jax.Array, gradient: jax.Array, product: bool, folded: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """XLA's own gradients."""
        if product:
            convolve = lambda x, kernel: jnp.einsum("nhwc,cd->nhwd", x, kernel[0, 0])  # noqa: E731
        elif folded:
            convolve = _pixels_folded
        else:
            convolve = lambda x, kernel: _plain(x, kernel, stride, dilation)  # noqa: E731
        (d_x,) = jax.linear_transpose(lambda x: convolve(x, kernel), x)(gradient)
        (d_kernel,) = jax.linear_transpose(lambda kernel: convolve(x, kernel), kernel)(gradient)
        return d_x, d_kernel

    default = functools.partial(transposed, product=kernel.shape[0] == 1)
    cuda = functools.partial(transposed, product=rows_fit)
    if stride == 1 and dilation > 1:
        cuda = functools.partial(_dilated_backward, dilation=dilation)
    elif rows_fit == (kernel.shape[0] == 1):
        cuda = default
    cpu = functools.partial(_cpu_backward, stride=stride, dilation=dilation)
    tpu = default
    if _to_few_channels(kernel, stride):
        tpu = functools.partial(_projected_backward, dilation=dilation)
    elif _of_an_image(kernel, stride, dilation):
        tpu = functools.partial(transposed, product=False, folded=True)
    return by_platform(x, kernel, gradient, default=default, cpu=cpu, cuda=cuda, tpu=tpu)


_convolve.defvjp(_forward, _backward)


def _dilated_backward(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, dilation: int
) -> tuple[jax.Array, jax.Array]:
    (d_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, 1, dilation), x)(gradient)
    k, _, channels, features = kernel.shape
    if k * k * features <= channels:
        # In the classifier all taps of the gradient are narrower than the features: one product reads those once.
        taps = jnp.concatenate(_shifted(gradient, k, 1, dilation)[::-1], axis=-1)
        product = jnp.einsum("nhwc,nhwd->cd", x, taps)
        return d_x, product.reshape(channels, k, k, features).transpose(1, 2, 0, 3)
    x, gradient = _interleaved(x, dilation), _interleaved(gradient, dilation)
    (d_kernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel, 1, 1), kernel)(gradient)
    return d_x, d_kernel


def _interleaved(x: jax.Array, dilation: int) -> jax.Array:
    """Every ``dilation``-th row and column by itself: [N, H, W, C] -> [N * d * d, ceil(H / d), ceil(W / d), C].

    A convolution with dilation d of the whole is one without dilation of each.
    """
    height, width, channels = x.shape[1:]
    rows, columns = -(-height // dilation), -(-width // dilation)
    x = jnp.pad(x, ((0, 0), (0, rows * dilation - height), (0, columns * dilation - width), (0, 0)))
    # A reshape would do, but XLA's partitioner (jaxlib 0.10.2) gets it wrong for rows that devices share unevenly; see
    # test_devices_that_share_rows_get_the_same_gradients_on_gpus in tests/test_convolution.py.
    parts = [x[:, i::dilation, j::dilation] for i in range(dilation) for j in range(dilation)]
    return jnp.stack(parts, axis=1).reshape(-1, rows, columns, channels)


def _to_few_channels(kernel: jax.Array, stride: int) -> bool:
    """Whether all taps together have fewer output channels than the input has: the classifier on wide features."""
    k, _, channels, features = kernel.shape
    return k > 1 and stride == 1 and k * k * features <= channels


def _project_and_shift(x: jax.Array, kernel: jax.Array, dilation: int, dtype: Any = None) -> jax.Array:
    """The convolution as one product with all taps, of type ``dtype``, whose results are shifted and summed."""
    k, _, channels, features = kernel.shape
    every_tap = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    projected = jnp.einsum("nhwc,cd->nhwd", x, every_tap, preferred_element_type=dtype)
    taps = projected.reshape(*x.shape[:3], k, k, features)
    pad = dilation * (k - 1) // 2
    taps = jnp.pad(taps, ((0, 0), (pad, pad), (pad, pad), (0, 0), (0, 0), (0, 0)))
    height, width = x.shape[1:3]
    total: Any = sum(
        taps[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width, i, j]
        for i in range(k)
        for j in range(k)
    )
    return total


def _projected_backward(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, dilation: int
) -> tuple[jax.Array, jax.Array]:
    """Both gradients as one product each with all shifted taps of the gradient, which are narrower than the input."""
    k, _, channels, features = kernel.shape
    taps = _shifted(gradient, k, 1, dilation)
    mirrored = kernel[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, channels)
    d_x = jnp.einsum("nhwd,dc->nhwc", jnp.concatenate(taps, axis=-1), mirrored)
    product = jnp.einsum("nhwc,nhwd->cd", x, jnp.concatenate(taps[::-1], axis=-1))
    return d_x, product.reshape(channels, k, k, features).transpose(1, 2, 0, 3)


def _of_an_image(kernel: jax.Array, stride: int, dilation: int) -> bool:
    """Whether it is the first convolution, with stride 2 over the three colours."""
    return kernel.shape[0] > 1 and kernel.shape[2] < 8 and stride == 2 and dilation == 1


def _pixels_folded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with stride 2 as one with stride 1 over blocks of 2 x 2 pixels, which have four times the channels.

    The kernel of k taps becomes one of (k + 1) / 2 blocks, with zeros in the tap that it has too few.
    """
    k, _, channels, features = kernel.shape
    pad, blocks = (k - 1) // 2, (k + 1) // 2
    (top, bottom), (left, right) = ((pad, pad + n % 2) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    x = jnp.concatenate([x[:, i::2, j::2] for i in range(2) for j in range(2)], axis=-1)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(blocks, 2, blocks, 2, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, 4 * channels, features)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _cpu_backward(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, jax.Array]:
    k, channels = kernel.shape[1:3]
    d_kernel = _kernel_gradient(x, gradient, k, stride, dilation)
    if _to_few_channels(kernel, stride):
        mirrored = kernel[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, channels)
        shifted = jnp.concatenate(_shifted(gradient, k, 1, dilation), axis=-1)
        return jnp.einsum("nhwd,dc->nhwc", shifted, mirrored), d_kernel
    if k == 1:
        (d_x,) = jax.linear_transpose(lambda x: jnp.einsum("nhwc,cd->nhwd", x, kernel[0, 0]), x)(gradient)
    else:
        (d_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, stride, dilation), x)(gradient)
    return d_x, d_kernel


def _kernel_gradient(x: jax.Array, gradient: jax.Array, k: int, stride: int, dilation: int) -> jax.Array:
    """Gradient with respect to the kernel, [k, k, C, D]: one matrix product over all positions for each tap.

    Shifting the gradient against the whole input costs less than shifting the input, which a stride makes necessary. Of
    a 1x1 convolution the side with far fewer channels is moved, if there is one: the other may be a sum over residual
    blocks, all of which XLA would compute again for it.
    """
    channels, features = x.shape[-1], gradient.shape[-1]
    if k == 1 and channels <= 2 * features and features <= 2 * channels:
        return jnp.einsum("nhwc,nhwd->cd", x, gradient)[None, None]
    if stride == 1 and (k > 1 or channels < features):
        x = _channels_first(x)
        taps = _shifted(gradient, k, 1, dilation)[::-1]
        if k * k * features <= channels:
            product = _over_positions(x, jnp.concatenate(taps, axis=-1))
            return product.reshape(channels, k, k, features).transpose(1, 2, 0, 3)
        products = jnp.stack([_over_positions(x, tap) for tap in taps])
    elif channels < 8:
        # An image has so few channels that one product takes all taps.
        moved = [_channels_first(tap) for tap in _shifted(x, k, stride, dilation)]
        products = _over_positions(jnp.concatenate(moved), gradient)
    else:
        gradient = _channels_first(gradient)
        products = jnp.stack([_over_positions(gradient, tap).T for tap in _shifted(x, k, stride, dilation)])
    return products.reshape(k, k, channels, features)


def _over_positions(a: jax.Array, b: jax.Array) -> jax.Array:
    """[C, N, H, W] and [N, H, W, D] -> [C, D]."""
    return jax.lax.dot_general(a, b, (((1, 2, 3), (0, 1, 2)), ((), ())))


def _channels_first(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [C, N, H, W], really moved: products that transpose on the fly run at half the speed."""
    return jax.lax.optimization_barrier(x.transpose(3, 0, 1, 2))


def _shifted(x: jax.Array, k: int, stride: int, dilation: int) -> list[jax.Array]:
    """What each of the k * k taps of a convolution sees: [N, ceil(H / stride), ceil(W / stride), C] each."""
    pad = dilation * (k - 1) // 2
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(0, k * dilation, dilation)
        for j in range(0, k * dilation, dilation)
    ]
