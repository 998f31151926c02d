"""The swap of amplitudes beside NumPy's whole transform, FDA's penalty and MaxSquare beside PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import parity  # noqa: E402
import systems_networks  # noqa: E402

from fada_jax.methods import SYSTEMS, TrainingSpec  # noqa: E402
from fada_jax.models import Outputs  # noqa: E402
from fada_jax.training import fourier  # noqa: E402
from fada_jax.training.alternation import View  # noqa: E402


def by_numpy(source, target, beta):
    """FDA with whole transforms and shifts, as its release describes it; float64 [H, W, C] of one size."""
    fft_s, fft_t = (np.fft.fft2(x.astype(np.float64), axes=(0, 1)) for x in (source, target))
    amplitude, phase = np.fft.fftshift(np.abs(fft_s), axes=(0, 1)), np.angle(fft_s)
    wanted = np.fft.fftshift(np.abs(fft_t), axes=(0, 1))
    h, w = source.shape[:2]
    b = int(np.floor(min(h, w) * beta))
    rows, columns = slice(h // 2 - b, h // 2 + b + 1), slice(w // 2 - b, w // 2 + b + 1)
    amplitude[rows, columns] = wanted[rows, columns]
    return np.fft.ifft2(np.fft.ifftshift(amplitude, axes=(0, 1)) * np.exp(1j * phase), axes=(0, 1)).real


@pytest.mark.parametrize("beta", [0.01, 0.05, 0.09])
@pytest.mark.parametrize("size", [(64, 128), (73, 97), (72, 95), (360, 641)], ids=str)
def test_the_swap_is_numpys(size, beta):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 90, size[1])[:, None]
    source, target = (rng.integers(0, 166, (2, *size, 3)) + shade for shade in (0, ramp))
    source, target = source.astype(np.uint8), target.astype(np.uint8)
    swapped = jax.jit(fourier.swap_amplitudes, static_argnums=2)(source, target, beta)
    expected = np.stack([by_numpy(*pair, beta) for pair in zip(source, target, strict=True)])
    assert swapped.dtype == jnp.float32
    np.testing.assert_allclose(swapped, expected, atol=1e-4 * 255)
    assert np.abs(expected - source).max() > 10


def test_amplitudes_of_an_image_of_another_size_are_those_of_its_scene():
    """A target drawn twice as large gives what it gives as it is."""
    y, x = np.mgrid[0:48, 0:80] / 16
    scene = 100 + 60 * np.sin(y)[..., None] * np.cos(x)[..., None] * np.ones(3)
    source = np.random.default_rng(1).integers(0, 256, (1, 48, 80, 3)).astype(np.uint8)
    large = np.asarray(jax.image.resize(jnp.asarray(scene), (96, 160, 3), "linear"))
    one, two = (np.asarray(fourier.swap_amplitudes(source, x[None], 0.05)) for x in (scene, large))
    np.testing.assert_allclose(two, one, atol=2.0)
    assert np.abs(one - source).max() > 10


def test_an_image_swapped_with_itself_stays_and_a_black_one_takes_the_mean():
    image = np.random.default_rng(2).integers(0, 256, (2, 33, 40, 3)).astype(np.uint8)
    np.testing.assert_allclose(fourier.swap_amplitudes(image, image, 0.09), image, atol=1e-3)
    black = np.zeros((1, 33, 40, 3), np.uint8)
    lit = np.asarray(fourier.swap_amplitudes(black, image[:1], 0.01))
    np.testing.assert_allclose(lit, np.broadcast_to(image[:1].mean((1, 2), keepdims=True), lit.shape), atol=1e-3)


def test_no_swap_is_no_change():
    batch = {"source": {"image": np.zeros((1, 8, 8, 3), np.uint8)}}
    assert fourier.restyled(batch, 0.0) is batch


def theirs(name, logits, temperature):
    """Loss of the target, without its weight, from the facts."""
    p = torch.softmax(
        torch.nn.functional.interpolate(logits, (49, 65), mode="bilinear", align_corners=True) / temperature, 1
    )
    images, classes = p.shape[:2]
    if name == "fda":
        entropy = -(p * torch.log(p + 1e-30)).sum(1) / np.log(classes)
        return ((entropy**2 + 1e-8) ** 2).mean()
    if name == "maxsquare":
        return -(p**2).mean(1).mean() / 2
    total = 0.0
    for image in p:
        counts = torch.bincount(image.argmax(0).ravel(), minlength=classes)
        for c in range(classes):
            weight = 1 / max(float(counts[c]) ** 0.2 * (49 * 65) ** 0.8, 1.0)
            total = total - weight * (image[:, image.argmax(0) == c] ** 2).sum()
    return total / (2 * images * classes)


@pytest.mark.parametrize("temperature", [1.0, 1.8])
@pytest.mark.parametrize(
    ("name", "options"), [("fda", {}), ("maxsquare", {"image_wise": False}), ("maxsquare weighed", {})]
)
def test_losses_of_the_target_are_pytorchs(name, options, temperature):
    z = np.random.default_rng(3).normal(0, 2, (2, 5, 7, 6)).astype(np.float32)
    method = SYSTEMS[name.split()[0]].method(temperature=temperature, **options)
    spec = TrainingSpec(systems_networks.SPEC)

    def ours(logits):
        outputs = Outputs(logits=(logits,), features=logits)
        zero = jnp.float32(0)
        view = View("target", outputs, None, (49, 65), 1.0, zero, zero, jnp.int32(0), None, {})
        return method.losses(view, {}, spec).metrics["loss_adv"]

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(z))
    logits = torch.from_numpy(z).double().permute(0, 3, 1, 2).requires_grad_()
    loss = theirs(name, logits, temperature)
    loss.backward()
    assert parity.relative(value, loss.item()) < 1e-6
    assert parity.relative(gradient, logits.grad.permute(0, 2, 3, 1).numpy()) < 1e-5
