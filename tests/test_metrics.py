"""Confusion matrix and scores against scikit-learn, and counts beyond what an int32 holds."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from fada_jax.classes import IGNORE, get_class_set, label_table
from fada_jax.evaluation import metrics


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


@pytest.fixture(scope="module")
def official():
    """Cityscapes' own pixel-level evaluation."""
    reason = "cityscapesScripts is not installed: pip install --no-deps cityscapesScripts pyquaternion"
    return pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason=reason)


def test_scores_are_those_of_cityscapes_own_evaluation(official, tmp_path):
    """On the same files: raw ids in PNGs with the official names, void and absent classes among them."""
    class_set = get_class_set("cityscapes19")
    table = label_table("cityscapes", class_set)
    raw = {int(index): i for i, index in enumerate(table) if index != IGNORE}
    rng = np.random.default_rng(0)
    count, pairs = metrics.empty_confusion(19), []
    for i in range(3):
        name = f"aachen_{i:06d}_000019"
        ids = [x for x in range(34) if x != 31]  # No train in the labels, and none predicted.
        truth = rng.choice(ids, (4, 6)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        noise = rng.choice([k for k in range(19) if k != 16], truth.shape)
        prediction = np.where((rng.random(truth.shape) < 0.6) & (table[truth] != IGNORE), table[truth], noise)
        pairs.append((tmp_path / f"{name}_pred_labelIds.png", tmp_path / f"{name}_gtFine_labelIds.png"))
        Image.fromarray(np.vectorize(raw.get)(prediction).astype(np.uint8)).save(pairs[-1][0])
        Image.fromarray(truth).save(pairs[-1][1])
        count = metrics.add_confusion(count, table[truth][None], prediction[None], np.array([True]))
    result = metrics.scores(metrics.confusion_matrix(count), class_set)

    official.args.quiet, official.args.evalInstLevelScore, official.args.JSONOutput = True, False, False
    theirs = official.evaluateImgLists(*([str(pair[i]) for pair in pairs] for i in (0, 1)), official.args)
    for index, name in enumerate(class_set.names):
        score = theirs["classScores"][official.id2label[raw[index]].name]
        if name == "train":
            assert result["iou"][name] is None and np.isnan(score)
        else:
            assert result["iou"][name] == pytest.approx(100 * score, rel=1e-12)
    assert result["miou"] == pytest.approx(100 * theirs["averageScoreClasses"], rel=1e-12)
    matrix = np.asarray(theirs["confMatrix"])[np.ix_(*[list(raw.values())] * 2)]
    np.testing.assert_array_equal(metrics.confusion_matrix(count), matrix[np.ix_(*[np.argsort(list(raw))] * 2)])


def test_class_tables_are_cityscapes_own(official):
    class_set = get_class_set("cityscapes19")
    table = label_table("cityscapes", class_set)
    for label in official.labels:
        if label.id >= 0:
            assert table[label.id] == label.trainId
            if label.trainId != IGNORE:
                assert label.name.endswith(class_set.names[label.trainId])  # "traffic light" is "light" here.
                assert tuple(class_set.palette()[label.trainId]) == label.color
