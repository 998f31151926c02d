"""Layers against NumPy in float64 and, where PyTorch is installed, against PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fada_jax.models import ModelSpec, Segmenter, fold_batch_norm, layers, resize_align_corners

SIZES = [
    ((5, 7), (33, 49)),
    ((9, 13), (65, 97)),
    ((33, 49), (5, 7)),
    ((4, 4), (4, 4)),
    ((1, 3), (5, 1)),
    ((6, 2), (1, 9)),
]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_resize_is_linear_interpolation_with_aligned_corners(small, large):
    x = np.random.default_rng(0).normal(size=(2, *small, 3)).astype(np.float32)

    def along(values: np.ndarray, axis: int, size: int) -> np.ndarray:
        old = values.shape[axis]
        positions = np.linspace(0, old - 1, size) if size > 1 else np.zeros(1)
        return np.apply_along_axis(lambda v: np.interp(positions, np.arange(old), v), axis, values)

    expected = along(along(x.astype(np.float64), 1, large[0]), 2, large[1])
    np.testing.assert_allclose(resize_align_corners(jnp.asarray(x), large), expected, atol=1e-6)


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_resize_and_its_gradient_agree_with_pytorch(small, large):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=(2, *size, 3)).astype(np.float32) for size in (small, large))
    theirs = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2).requires_grad_()
    y = torch.nn.functional.interpolate(theirs, large, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    (y * torch.from_numpy(weight)).sum().backward()
    ours, pullback = jax.vjp(lambda x: resize_align_corners(x, large), jnp.asarray(x))
    np.testing.assert_allclose(ours, y.detach().numpy(), atol=1e-6)
    gradient = theirs.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(pullback(jnp.asarray(weight))[0], gradient, atol=1e-6 * np.abs(gradient).max())


def test_resize_keeps_the_corners_exactly():
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 2)).astype(np.float32)
    y = np.asarray(resize_align_corners(jnp.asarray(x), (64, 128)))
    np.testing.assert_array_equal(y[:, ::63, ::127], x[:, ::4, ::6])


def test_strided_convolution_pads_both_sides_like_pytorch():
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1).repeat(8, 2)
    conv = layers.Conv(1, 3, stride=2)
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    # Rows -1 and below are padding: the first output row sees rows 0 and 1 only.
    np.testing.assert_array_equal(conv.apply(ones, jnp.asarray(x))[0, :, 1, 0], 3 * np.array([1.0, 6.0, 12.0, 18.0]))


def test_the_end_of_a_block_is_the_relu_of_a_sum_and_has_its_gradient():
    x, y, weight = (np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)).reshape(3, 1, 5, 10, 10)
    value, pull = jax.vjp(layers.relu_of_sum, x, y)
    np.testing.assert_array_equal(value, np.maximum(x + y, 0))
    for gradient in pull(weight):
        np.testing.assert_array_equal(gradient, np.where(x + y > 0, weight, 0))


def test_max_pool_pads_with_minus_infinity():
    x = jnp.asarray(-np.arange(1.0, 26.0, dtype=np.float32).reshape(1, 5, 5, 1))
    expected = [[-1, -2, -4], [-6, -7, -9], [-16, -17, -19]]
    np.testing.assert_array_equal(layers.max_pool(x)[0, :, :, 0], expected)


def test_frozen_batch_norm_survives_denormal_variances():
    variance = np.array([1e-45, 1e-42, 1e-39, 1e-30, 1.0, 50.0], np.float32)
    stats = {
        "scale": np.array([1e-22, 1e-21, -1e-20, 1e-15, 0.7, 2.0], np.float32),
        "bias": np.linspace(-1, 1, 6, dtype=np.float32),
        "mean": np.array([0, 1e-23, 1e-21, 1e-16, 0.3, -4.0], np.float32),
        "var": variance,
    }
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 6)).astype(np.float32) * np.sqrt(variance)
    variables = {"batch_stats": stats, "folded": fold_batch_norm(stats)}
    y = np.asarray(jax.jit(layers.FrozenBatchNorm().apply)(variables, x))
    exact = {key: value.astype(np.float64) for key, value in stats.items()}
    scale = exact["scale"] / np.sqrt(exact["var"])
    expected = x.astype(np.float64) * scale + exact["bias"] - exact["mean"] * scale
    assert np.all(np.isfinite(y))
    assert np.all(variables["folded"]["scale"] != 0)
    # XLA flushes denormal inputs, which are 0 to every precision that matters after the bias.
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-6)


def test_frozen_batch_norm_has_no_epsilon_and_no_parameters():
    stats = {"scale": np.ones(1), "bias": np.zeros(1), "mean": np.zeros(1), "var": np.array([1e-6])}
    np.testing.assert_allclose(fold_batch_norm(stats)["scale"], 1e3, rtol=1e-6)
    assert "params" not in layers.FrozenBatchNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))


def test_live_batch_norm_normalises_with_the_batch_and_averages_the_unbiased_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (2, 3, 4, 5)).astype(np.float32)
    values = {name: rng.uniform(0.5, 2, 5).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    variables = {
        "params": {name: values[name] for name in ("scale", "bias")},
        "batch_stats": {name: values[name] for name in ("mean", "var")},
    }
    y, updated = layers.LiveBatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    flat = x.astype(np.float64).reshape(-1, 5)
    mean, var = flat.mean(0), flat.var(0)
    expected = (x - mean) / np.sqrt(var + 1e-5) * values["scale"] + values["bias"]
    np.testing.assert_allclose(y, expected, atol=3e-6)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * values["mean"] + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 * values["var"] + 0.1 * flat.var(0, ddof=1), rtol=1e-6)
    evaluated = layers.LiveBatchNorm().apply(variables, x)
    expected = (x - values["mean"]) / np.sqrt(values["var"] + 1e-5) * values["scale"] + values["bias"]
    np.testing.assert_allclose(evaluated, expected, atol=3e-6)


def _dilations(spec: ModelSpec) -> list[int]:
    """Dilations of all 3x3 convolutions of the feature extractor, in order."""
    model = Segmenter(spec)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x)[1])(variables, image)
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            for value in equation.params.values():
                if isinstance(value, tuple) and value and hasattr(value[-1], "jaxpr"):
                    value = value[-1]  # Of the forms for several platforms, the one that all others take.
                if hasattr(value, "jaxpr"):
                    walk(value.jaxpr)
            if equation.primitive.name == "conv_general_dilated" and equation.invars[1].aval.shape[:2] == (3, 3):
                found.append(equation.params["rhs_dilation"][0])

    walk(jaxpr.jaxpr)
    return found[: len(found) - len(spec.aspp_rates)]


def test_the_first_block_of_a_dilated_stage_keeps_the_previous_dilation():
    spec = ModelSpec("resnet50", 2, widths=(4, 4, 4, 4), stem_width=4)
    assert _dilations(spec) == [1] * 3 + [1] * 4 + [1] + [2] * 5 + [2, 4, 4]
    stride_16 = ModelSpec("resnet50", 2, widths=(4, 4, 4, 4), stem_width=4, output_stride=16)
    assert _dilations(stride_16) == [1] * 13 + [1, 2, 2]


def test_vgg_dilates_conv5_and_the_fully_connected_layers():
    spec = ModelSpec("vgg16", 2, widths=(4, 4, 4, 4, 4, 4))
    assert _dilations(spec) == [1] * 10 + [2] * 3 + [4] * 2
