"""Selection of pseudo labels against exact quantiles in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fada_jax.classes import IGNORE
from fada_jax.training import selection as sd

K = 4


def probabilities(seed, scale, shape=(3, 16, 20)):
    logits = np.random.default_rng(seed).normal([2, 1, 0, -1], scale, (*shape, K))
    return np.array(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))


def thresholds_of(p, keep, mask=None):
    """Of three batches of one image, as a pass over a split adds them up."""
    mask = np.ones(len(p), bool) if mask is None else mask

    def count(upper):
        counts = (sd.confidence_counts(p[i : i + 1], mask[i : i + 1], upper) for i in range(len(p)))
        return sum(np.asarray(x, np.int64) for x in counts)

    return sd.thresholds(sd.Selection(keep=keep), count)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.5, 3.0, 8.0]), keep=st.floats(0.05, 1.0))
def test_the_surest_share_of_each_predicted_class_is_labelled(seed, scale, keep):
    p = probabilities(seed, scale)
    thresholds = thresholds_of(p, keep)
    labels = np.asarray(sd.select(p, thresholds))
    argmax, confidence = p.argmax(-1), p.max(-1)
    for c in range(K):
        predicted = argmax == c
        if not predicted.any():
            assert thresholds[c] == 1
            continue
        kept = predicted & (labels == c)
        assert np.all((labels == c) <= predicted)
        assert np.all((labels[predicted] == c) | (labels[predicted] == IGNORE))
        rank = max(int(np.floor(keep * predicted.sum())), 1)
        exact = np.sort(confidence[predicted])[::-1][rank - 1]
        assert thresholds[c] == exact
        assert kept.sum() == np.sum(confidence[predicted] >= exact) >= rank


def test_nothing_is_left_out_as_released():
    p = probabilities(0, 3.0)
    every = np.zeros(K, np.float32)
    np.testing.assert_array_equal(jax.jit(lambda p: sd.select(p, every))(p), p.argmax(-1))
    assert not sd.Selection().needs_thresholds


def test_padding_does_not_count():
    p = probabilities(1, 3.0)
    p[2] = [0.0, 0.0, 0.0, 1.0]
    masked = thresholds_of(p, 0.5, np.array([True, True, False]))
    np.testing.assert_array_equal(masked, thresholds_of(p[:2], 0.5))
    assert thresholds_of(p, 0.5)[3] > masked[3]


def test_relative_labels_favour_classes_that_are_seldom_sure():
    p = probabilities(2, 1.0)
    thresholds = np.array([0.9, 0.6, 0.3, 0.2], np.float32)
    labels = np.asarray(sd.select(p, thresholds, relative=True))
    ratio = p.astype(np.float64) / thresholds
    expected = np.where(ratio.max(-1) >= 1, ratio.argmax(-1), IGNORE)
    close = np.abs(ratio.max(-1) - 1) < 1e-6
    np.testing.assert_array_equal(labels[~close], expected[~close])
    plain = np.asarray(sd.select(p, thresholds))
    assert np.sum(labels == 3) > np.sum(plain == 3) > 0


@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_more_is_kept_as_the_share_grows(keep):
    p = probabilities(3, 3.0)
    fewer = np.asarray(sd.select(p, thresholds_of(p, keep * 0.8)))
    more = np.asarray(sd.select(p, thresholds_of(p, keep)))
    assert np.sum(fewer != IGNORE) < np.sum(more != IGNORE)
    assert np.all((fewer == more) | (fewer == IGNORE))


def test_selection_compiles_with_the_thresholds_of_a_pass():
    p = probabilities(1, 3.0)
    thresholds = thresholds_of(p, 0.5)
    compiled = jax.jit(lambda p: sd.select(p, thresholds))(p)
    np.testing.assert_array_equal(compiled, sd.select(p, thresholds))
