"""Confusion matrix and scores against scikit-learn, and counts beyond what an int32 holds."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from fada_jax import metrics
from fada_jax.classes import IGNORE, get_class_set


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), ignored=st.floats(0, 0.9))
def test_confusion_agrees_with_scikit_learn(seed, ignored):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 11, (3, 6, 7)).astype(np.uint8)
    labels[rng.random(labels.shape) < ignored] = IGNORE
    predictions = rng.integers(0, 11, labels.shape)
    mask = np.array([True, False, True])
    count = metrics.add_confusion(metrics.empty_confusion(11), labels, jnp.asarray(predictions), jnp.asarray(mask))
    confusion = metrics.confusion_matrix(count)
    keep = (labels != IGNORE) & mask[:, None, None]
    y, p = labels[keep], predictions[keep]
    if not len(y):
        assert not confusion.any()
        return
    np.testing.assert_array_equal(confusion, confusion_matrix(y, p, labels=range(11)))
    result = metrics.scores(confusion, get_class_set("camvid11"))
    present = sorted(set(y) | set(p))
    assert result["miou"] == pytest.approx(100 * jaccard_score(y, p, labels=present, average="macro"))
    assert result["accuracy"] == pytest.approx(100 * accuracy_score(y, p))


def test_counts_stay_exact_beyond_int32():
    high, low = metrics.empty_confusion(2)
    start = 2**30 - 3
    count = (high + 5, low.at[0, 1].set(start))
    labels = np.zeros((1, 2, 4), np.uint8)
    count = metrics.add_confusion(count, labels, jnp.ones((1, 2, 4), jnp.int32), jnp.array([True]))
    assert metrics.confusion_matrix(count)[0, 1] == 5 * 2**30 + start + 8


def test_absent_classes_have_no_iou_and_the_subset_is_scored():
    class_set = get_class_set("synthia16")
    confusion = np.diag(np.arange(16))
    confusion[1, 2] = 1
    result = metrics.scores(confusion, class_set)
    assert result["iou"]["road"] is None
    iou = [result["iou"][name] for name in class_set.names]
    assert result["miou"] == pytest.approx(np.mean(iou[1:]))
    without = [i for n, i in zip(class_set.names, iou, strict=True) if n not in ("wall", "fence", "pole", "road")]
    assert result["miou_13"] == pytest.approx(np.mean(without))
    assert metrics.scores(np.zeros((16, 16)), class_set)["miou"] is None
