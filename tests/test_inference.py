"""Multi-scale and flipped inference against a plain NumPy formulation, and colour matching against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from fada_jax.evaluation import colour_matching, inference, metrics
from fada_jax.models import ModelSpec
from fada_jax.models.layers import interpolation_matrix
from fada_jax.preprocessing import IMAGENET
from fada_jax.training import optimizers
from fada_jax.training import states as train_states

SPEC = ModelSpec("resnet18", 5, "group", (1, 1, 1, 1), (8, 8, 16, 16), 8, True, 4, (1, 2))
STATE = train_states.create_generator(SPEC, optimizers.OptimizerSpec(), jax.random.key(0))
# Logits of a fresh classifier are nearly equal; larger ones make the softmax matter.
STATE = STATE.replace(params=jax.tree.map(lambda p: p * 3, STATE.params))
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 37, 53, 3), dtype=np.uint8)


def _probabilities(images, **options):
    return np.asarray(
        inference.class_probabilities(
            STATE.apply_fn, STATE.variables, images, preprocessing=IMAGENET, size=(41, 60), **options
        )
    )


def _resize(x, size):
    rows, columns = (interpolation_matrix(n, m).astype(np.float64) for n, m in zip(x.shape[1:3], size, strict=True))
    return np.einsum("oh,pw,nhwc->nopc", rows, columns, np.asarray(x, np.float64))


def test_multi_scale_is_the_mean_of_softmax_over_scales_and_flips():
    x = (IMAGES / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    views = []
    for scale in (0.7, 1.0, 1.3):
        scaled = _resize(x, (int(37 * scale), int(53 * scale)))
        for mirror in (slice(None), slice(None, None, -1)):
            logits = STATE.apply_fn(STATE.variables, jnp.asarray(scaled[:, :, mirror], jnp.float32), train=False)[0]
            views.append(softmax(_resize(np.asarray(logits)[:, :, mirror], (41, 60)), axis=-1))
    got = _probabilities(IMAGES, scales=inference.MULTI_SCALE, flip=True)
    assert got.std() > 0.01
    np.testing.assert_allclose(got, np.mean(views, 0), atol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)


def test_flipped_inference_is_mirror_equivariant():
    np.testing.assert_allclose(
        _probabilities(IMAGES[:, :, ::-1], flip=True), _probabilities(IMAGES, flip=True)[:, :, ::-1], atol=1e-6
    )


def test_evaluation_leaves_padding_out():
    labels = np.zeros((2, 41, 60), np.uint8)
    counts = [
        inference.evaluation_step(
            (metrics.empty_confusion(5), np.int32(0)),
            STATE.variables,
            {"image": IMAGES, "label": labels, "mask": np.array([True, second])},
            apply_fn=STATE.apply_fn,
            preprocessing=IMAGENET,
            scales=(1.0,),
            flip=False,
        )
        for second in (False, True)
    ]
    one, two = (metrics.confusion_matrix(c).sum() for c, _ in counts)
    assert (one, two) == (41 * 60, 2 * 41 * 60)
    assert [int(images) for _, images in counts] == [1, 2]


@pytest.mark.parametrize("mode", colour_matching.MODES)
def test_colour_matching_reaches_the_source_statistics(mode):
    rng = np.random.default_rng(1)
    source = rng.normal((120, 110, 100), (20, 25, 15), (4, 32, 32, 3)).clip(0, 255).astype(np.uint8)
    target = rng.normal((60, 80, 70), (10, 12, 14), (4, 32, 32, 3)).clip(0, 255).astype(np.uint8)
    padded = np.concatenate([target, np.zeros_like(target[:1])])
    mask = np.array([True] * 4 + [False])
    wanted = colour_matching.colour_statistics([{"image": source, "mask": np.ones(4, bool)}])
    np.testing.assert_allclose(wanted.mean, source.reshape(-1, 3).mean(0))
    np.testing.assert_allclose(wanted.std, source.reshape(-1, 3).std(0))
    own = colour_matching.colour_statistics([{"image": padded, "mask": mask}])
    matched = colour_matching.matcher(mode, wanted, own)({"image": target, "name": "x"})
    assert matched["name"] == "x" and matched["image"].dtype == np.uint8
    per = matched["image"].reshape(-1, 3) if mode == "global" else matched["image"][0].reshape(-1, 3)
    np.testing.assert_allclose(per.mean(0), wanted.mean, atol=0.5)
    np.testing.assert_allclose(per.std(0), wanted.std, atol=0.5)
