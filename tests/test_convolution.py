"""Convolutions as a CPU runs them against XLA's own and, where PyTorch is installed, against PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import on_devices

from fada_jax import distributed
from fada_jax.models import ModelSpec, Segmenter
from fada_jax.models.convolution import convolve
from fada_jax.scripts.benchmarks.formulations import written_for

# Channels in and out, kernel, stride, dilation: each way that a gradient is taken on CPUs.
CASES = {
    "1x1": (6, 10, 1, 1, 1),
    "1x1, to many channels": (6, 30, 1, 1, 1),
    "1x1, to few channels": (30, 6, 1, 1, 1),
    "1x1, stride 2": (6, 10, 1, 2, 1),
    "3x3": (6, 10, 3, 1, 1),
    "3x3, dilation beyond the image": (6, 10, 3, 1, 24),
    "3x3, stride 2": (12, 10, 3, 2, 1),
    "3x3, stride 2, dilation 2": (12, 10, 3, 2, 2),
    "image": (3, 10, 7, 2, 1),
    "3x3, dilation 2": (6, 10, 3, 1, 2),
    "3x3, dilation 4": (6, 10, 3, 1, 4),
    "to few channels": (32, 3, 3, 1, 6),
}


def arrays(channels, features, k, stride, size=(13, 18)):
    rng = np.random.default_rng(0)
    outputs = [-(-n // stride) for n in size]
    return (
        rng.normal(size=(2, *size, channels)).astype(np.float32),
        rng.normal(size=(k, k, channels, features)).astype(np.float32),
        rng.normal(size=(2, *outputs, features)).astype(np.float32),
    )


def run(platform, x, kernel, weight, stride, dilation):
    """Result and both gradients, traced as ``platform`` runs them."""

    @jax.jit
    def both(x, kernel, weight):
        y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, dilation), x, kernel)
        return y, *pull(weight)

    with written_for(platform):
        return both(*(jnp.asarray(a) for a in (x, kernel, weight)))


@pytest.mark.parametrize("case", CASES)
def test_every_platform_computes_the_convolution_of_pytorch(case):
    torch = pytest.importorskip("torch")
    channels, features, k, stride, dilation = CASES[case]
    x, kernel, weight = arrays(channels, features, k, stride)
    images = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2).requires_grad_()
    weights = torch.from_numpy(kernel.astype(np.float64)).permute(3, 2, 0, 1).requires_grad_()
    y = torch.nn.functional.conv2d(images, weights, None, stride, dilation * (k // 2), dilation).permute(0, 2, 3, 1)
    (y * torch.from_numpy(weight)).sum().backward()
    truth = [y.detach(), images.grad.permute(0, 2, 3, 1), weights.grad.permute(2, 3, 1, 0)]
    for platform in ("cpu", "cuda", "tpu"):
        for value, expected in zip(run(platform, x, kernel, weight, stride, dilation), truth, strict=True):
            assert value.shape == expected.shape
            error = np.linalg.norm(value - expected.numpy()) / np.linalg.norm(expected)
            assert error < 1e-6, (platform, error)


def equations(platform, dilation=1):
    """Of the gradient with respect to a 3x3 kernel."""
    x, kernel, weight = arrays(6, 10, 3, 1)
    with written_for(platform):
        step = jax.make_jaxpr(jax.grad(lambda k: jnp.sum(convolve(jnp.asarray(x), k, 1, dilation) * weight)))(kernel)
    return step.eqns


def test_accelerators_get_the_convolution_of_xla():
    def primitives(platform):
        return [equation.primitive.name for equation in equations(platform)]

    for platform in ("cuda", "tpu"):
        assert primitives(platform).count("conv_general_dilated") == 2
        assert not {"dot_general", "optimization_barrier"} & set(primitives(platform))
    assert primitives("cpu").count("dot_general") == 9


def test_no_kernel_gradient_on_a_gpu_has_strides():
    # XLA's GPU compiler takes only convolutions without strides for the gradient that they are.
    def strides(platform):
        found = [
            e.params["window_strides"] for e in equations(platform, 2) if e.primitive.name == "conv_general_dilated"
        ]
        return set(found)

    assert strides("cuda") == {(1, 1)}
    assert strides("tpu") == {(1, 1), (2, 2)}


def test_every_platform_trains_the_same_network():
    """Logits, features and all gradients of a network with frozen batch norm, dilations and sizes that no 8 divides."""
    model = Segmenter(ModelSpec("resnet50", 3, "frozen", (1, 1, 2, 2), (4, 4, 8, 8), 8))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 65, 97, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    folded = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), variables["folded"])

    def run_as(platform):
        def loss(params):
            logits, features = model.apply({**variables, "folded": folded, "params": params}, images, train=True)
            return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.square(features)), (logits, features)

        with written_for(platform):
            return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    expected = run_as("cpu")
    for platform in ("cuda", "tpu"):
        for value, truth in zip(jax.tree.leaves(run_as(platform)), jax.tree.leaves(expected), strict=True):
            assert np.linalg.norm(value - truth) <= 1e-5 * np.linalg.norm(truth), platform


def split_over_rows():
    """Errors of both gradients of dilated convolutions on a GPU's mesh, where the rows of a device are no multiple."""
    x, kernel, weight = arrays(8, 10, 3, 1, (24, 20))
    errors = []
    for dilation in (2, 4):
        _, *expected = run("tpu", x, kernel, weight, 1, dilation)
        for spatial in (2, 4):
            mesh = distributed.make_mesh(4, 1, spatial)
            put = [jax.device_put(a, distributed.by_batch(mesh, 4)) for a in (x, weight)]
            _, *values = run("cuda", put[0], kernel, put[1], 1, dilation)
            errors += [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(values, expected, strict=True)]
    return errors


def split_over_rows_on_tpus():
    """Errors of the convolutions that TPUs compute in a form of their own, where devices share the rows."""
    errors = []
    for case in ("image", "to few channels"):
        channels, features, k, stride, dilation = CASES[case]
        x, kernel, weight = arrays(channels, features, k, stride, (24, 20))
        expected = run("", x, kernel, weight, stride, dilation)
        for spatial in (2, 4):
            mesh = distributed.make_mesh(4, 1, spatial)
            put = [jax.device_put(a, distributed.by_batch(mesh, 4)) for a in (x, weight)]
            values = run("tpu", put[0], kernel, put[1], stride, dilation)
            errors += [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(values, expected, strict=True)]
    return errors


def test_devices_that_share_rows_get_the_same_convolutions_on_tpus():
    assert max(on_devices(4, "test_convolution", "split_over_rows_on_tpus()")) < 1e-6


def test_devices_that_share_rows_get_the_same_gradients_on_gpus():
    errors = on_devices(4, "test_convolution", "split_over_rows()")
    assert len(errors) == 8 and max(errors) < 1e-5
