"""Block-wise sums over upsampled maps against upsampling everything first; micro-batches against the whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steps import SPEC, make_batch, make_states

from fada_jax.classes import IGNORE
from fada_jax.methods import SYSTEMS, HardLabels, SoftLabels
from fada_jax.models import Segmenter, resize_align_corners
from fada_jax.models.layers import interpolation_matrix
from fada_jax.preprocessing import IMAGENET
from fada_jax.training import losses, steps

K = 3


def norm_error(value, truth):
    value, truth = (np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(t)]) for t in (value, truth))
    return np.linalg.norm(value - truth) / np.linalg.norm(truth)


@settings(max_examples=12, deadline=None)
@given(
    low=st.tuples(st.integers(1, 7), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    rows=st.integers(0, 45),
    seed=st.integers(0, 1000),
)
def test_segmentation_in_blocks_is_segmentation_at_full_size(low, size, rows, seed):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(0, 2, (2, *low, K)), jnp.float32)
    labels = rng.integers(0, K, (2, *size), dtype=np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORE
    labels[0, 0, 0] = 1

    def plain(z):
        # In float64: one float32 sum over all pixels is off by as much as the blocks may be.
        rows, columns = (interpolation_matrix(a, b) for a, b in zip(z.shape[1:3], size, strict=True))
        log_p = jax.nn.log_softmax(jnp.einsum("oh,pw,nhwc->nopc", rows, columns, z) / 1.8)
        valid = labels != IGNORE
        return -jnp.take_along_axis(log_p, np.where(valid, labels, 0)[..., None], axis=-1)[valid].mean()

    def blocks(z):
        return losses.mean(*steps.segmentation_sums(z, jnp.asarray(labels), 1.8, rows))

    with jax.enable_x64(True):
        expected, expected_gradient = jax.value_and_grad(plain)(jnp.asarray(logits, jnp.float64))
    loss, gradient = quick_jit(jax.value_and_grad(blocks))(logits)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    assert norm_error(gradient, expected_gradient) < 2e-6
    np.testing.assert_allclose(quick_jit(blocks)(logits), expected, rtol=2e-6)  # Without a gradient too.


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 24])
@pytest.mark.parametrize("name", ["fada", "hard", "binary"])
def test_both_domain_losses_in_blocks(name, rows):
    rng = np.random.default_rng(0)
    method = HardLabels(threshold=0.6) if name == "hard" else SYSTEMS[name].method()
    size = (24, 17)
    logits = jnp.asarray(rng.normal(0, 4, (2, 5, 4, K)), jnp.float32)
    d_logits = jnp.asarray(rng.normal(0, 2, (2, 5, 4, method.num_outputs(K))), jnp.float32)

    def plain(d):
        a = method.class_knowledge(resize_align_corners(logits, size))
        return jnp.stack([losses.domain_loss(resize_align_corners(d, size), a, domain) for domain in (0, 1)])

    def blocks(d, z):
        sums, count = steps.domain_sums(d, z, method, (0, 1), size, rows)
        return sums / count

    np.testing.assert_allclose(blocks(d_logits, logits), plain(d_logits), rtol=2e-6)
    expected = quick_jit(jax.jacrev(plain))(d_logits)
    gradient, through_knowledge = quick_jit(jax.jacrev(blocks, argnums=(0, 1)))(d_logits, logits)
    for got, wanted in zip(gradient, expected, strict=True):
        assert norm_error(got, wanted) < 2e-6
    assert not np.any(through_knowledge)


@functools.cache
def step_of_whole_batch(method):
    """Inputs, function and result of an adversarial step."""
    source, target = make_batch(0), make_batch(1, height=24)
    source["label"][1] = IGNORE  # Micro-batches with different numbers of labelled pixels.
    inputs = (*make_states(), source, target)
    step = functools.partial(steps.adversarial_step, preprocessing=IMAGENET, method=method, lambda_adv=0.5)
    return inputs, step, quick_jit(step)(*inputs)


@pytest.mark.parametrize(
    ("method", "micro_batches"), [(SoftLabels(), 2), (SoftLabels(), 4), (HardLabels(threshold=0.25), 2)]
)
def test_micro_batches_equal_the_whole_batch(method, micro_batches):
    inputs, step, whole = step_of_whole_batch(method)
    parts = quick_jit(functools.partial(step, accumulate_steps=micro_batches, block_rows=8))(*inputs)
    for name, value in whole[2].items():
        np.testing.assert_allclose(parts[2][name], value, rtol=1e-5)
    # Adam's moments after one step are the gradients.
    assert norm_error(parts[0].opt_state, whole[0].opt_state) < 1e-5
    assert norm_error(parts[1].opt_state, whole[1].opt_state) < 1e-5


def test_recomputed_blocks_give_the_same_step():
    batch = make_batch(0)
    results = []
    for remat in (False, True):
        generator, _ = make_states("live")
        spec = dataclasses.replace(SPEC, norm="live", remat=remat)
        generator = generator.replace(apply_fn=Segmenter(spec).apply)
        step = quick_jit(functools.partial(steps.supervised_step, preprocessing=IMAGENET))
        results.append(step(generator, batch)[0])
    assert norm_error(results[1].opt_state, results[0].opt_state) < 1e-5
    assert norm_error(results[1].collections, results[0].collections) < 1e-5
