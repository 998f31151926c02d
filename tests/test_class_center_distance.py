"""Equation 9 against a brute force over all features in float64; sampling; and the features of a network."""

import jax
import numpy as np
import pytest
from commands import command_here, on_devices, one_error
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steps import SPEC

from fada_jax import classes, documents, stored
from fada_jax.errors import UserError
from fada_jax.evaluation import class_center_distance as ccd
from fada_jax.evaluation import predictor
from fada_jax.models import Segmenter
from fada_jax.preprocessing import IMAGENET, normalise
from fada_jax.reporting import ablation, figures
from fada_jax.scripts import ccd as command
from fada_jax.training import checkpoints

K = 5


def brute_force(features, labels, num_classes):
    """Equation 9, written down."""
    features = features.astype(np.float64)
    sets = {k: features[labels == k] for k in range(num_classes) if np.any(labels == k)}
    centers = {k: x.mean(0) for k, x in sets.items()}
    result = np.full(num_classes, np.nan)
    for i, x in sets.items():
        within = np.mean([np.sum((row - centers[i]) ** 2) for row in x])
        ratios = [within / np.sum((centers[i] - centers[j]) ** 2) for j in sets if j != i]
        result[i] = np.sum(ratios) / (len(sets) - 1)
    return result


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e4]), blocks=st.integers(1, 7))
def test_blocks_merge_to_the_exact_definition(seed, offset, blocks):
    """Far from the origin too, where sums of squares would cancel."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 4, classes.IGNORE], 200)  # Class 3 never occurs.
    features = offset + rng.normal(0, 1, (200, 6)) + 3 * rng.normal(0, 1, (256, 6))[labels]
    moments = ccd.empty_moments(K, 6)
    for x, y in zip(np.array_split(features, blocks), np.array_split(labels, blocks), strict=True):
        moments = ccd.merge(moments, ccd.class_moments(x, y, K))
    np.testing.assert_allclose(ccd.class_center_distance(moments), brute_force(features, labels, K), rtol=1e-9)
    assert np.isnan(ccd.class_center_distance(moments)[3])


def test_scale_and_shift_of_the_features_do_not_matter():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, 100)
    features = rng.normal(0, 1, (100, 3)) + labels[:, None]
    one, other = (ccd.class_center_distance(ccd.class_moments(x, labels, K)) for x in (features, 7 * features - 40))
    np.testing.assert_allclose(one, other, rtol=1e-9)
    dense = ccd.class_center_distance(ccd.class_moments(features + 9 * labels[:, None], labels, K))
    assert np.all(dense < one)


def test_a_class_alone_has_no_distance():
    assert np.isnan(ccd.class_center_distance(ccd.class_moments(np.ones((4, 2)), np.zeros(4, int), K))).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), per_class=st.integers(1, 30))
def test_pixels_are_drawn_by_class_without_repetition(seed, per_class):
    labels = np.random.default_rng(seed).choice([0, 1, 2, 4, classes.IGNORE], (8, 9), p=[0.5, 0.3, 0.05, 0.05, 0.1])
    index, drawn = ccd.sample_pixels(labels, K, per_class, seed)
    assert index.shape == drawn.shape == (K * per_class,)
    for k in range(K):
        pixels = index[drawn == k]
        assert len(pixels) == min(per_class, np.sum(labels == k)) == len(set(pixels))
        assert np.all(labels.ravel()[pixels] == k)
    again = ccd.sample_pixels(labels, K, per_class, seed)
    np.testing.assert_array_equal(again, (index, drawn))


def test_labels_are_read_where_the_feature_pixels_lie():
    rows, columns = np.meshgrid(np.arange(9), np.arange(13), indexing="ij")
    np.testing.assert_array_equal(ccd.at_features(rows, (3, 4)), [[0] * 4, [4] * 4, [8] * 4])
    np.testing.assert_array_equal(ccd.at_features(columns, (3, 4)), [[0, 4, 8, 12]] * 3)


def model_of_five(rng):
    """A network with random weights."""
    shapes = jax.eval_shape(Segmenter(SPEC).init, jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    class_set = classes.ClassSet("five", tuple("abcde"), ((0, 0, 0),) * 5)
    config = {"eval": {"size": (48, 32)}, "multi_scale": (1.0,)}
    return checkpoints.Model(SPEC, IMAGENET, class_set, params, {}, config, 1)


def measured_on_all_devices():
    """Probabilities of five images, also in windows, and scatters of classes: sums by image, and of all."""
    rng = np.random.default_rng(0)
    model = model_of_five(rng)
    images = rng.integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    segmenter = predictor.from_model(model)
    whole, windows = segmenter.probabilities(images), segmenter.probabilities(images[0], tile=(20, 20))
    labels = rng.integers(0, 5, (5, 16, 24), dtype=np.uint8)
    moments = ccd.measure(model, zip(images, labels, strict=True), per_class=7)
    return [whole[:, ::5, ::7].tolist(), windows[::5, ::7].tolist(), moments.scatter.tolist()]


def test_images_and_windows_are_shared_by_devices():
    one, three = (on_devices(count, "test_class_center_distance", "measured_on_all_devices()") for count in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_the_features_measured_are_those_of_the_network():
    """With every pixel drawn, the result is that of all features of all images."""
    rng = np.random.default_rng(0)
    model = model_of_five(rng)
    params, examples = (
        model.params,
        [
            (rng.integers(0, 256, (32, 48, 3), dtype=np.uint8), rng.integers(0, 4, (16, 24), dtype=np.uint8))
            for _ in range(3)
        ],
    )
    moments = ccd.measure(model, examples, per_class=10_000)
    features, labels = [], []
    for image, label in examples:
        _, x = jax.jit(Segmenter(SPEC).apply)({"params": params}, normalise(image[None], IMAGENET))
        features.append(np.asarray(x[0]).reshape(-1, x.shape[-1]))
        labels.append(ccd.at_features(label, x.shape[1:3]).ravel())
    expected = brute_force(np.concatenate(features), np.concatenate(labels), 5)
    np.testing.assert_allclose(ccd.class_center_distance(moments), expected, rtol=1e-4)
    few = ccd.measure(model, examples, per_class=7, seed=3)
    assert few.count.tolist() == [21, 21, 21, 21, 0]
    with pytest.raises(ValueError, match="no image"):
        ccd.merged([ccd.measure(model, [])])
    # What processes measure of neighbouring images is what one measures.
    parts = [ccd.measure(model, examples[i:j], per_class=7, seed=3, first=i) for i, j in ((0, 1), (1, 1), (1, 3))]
    together = ccd.merged(ccd.from_text(ccd.as_text(part)) for part in parts)
    np.testing.assert_array_equal(together.count, few.count)
    np.testing.assert_allclose(together.scatter, few.scatter, rtol=1e-12)


def test_systems_are_summed_up_over_seeds(tmp_path):
    """Mean and standard deviation as by hand; a class that a seed lacks counts for the others."""
    values = {"source": [(2.0, 1.0), (4.0, None)], "clan": [(1.0, 1.5), (1.5, 2.5)]}
    for seed in (0, 1):
        for name in values:
            (tmp_path / f"seed{seed}" / name / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "seed1_backup").mkdir()

    def distances(stage, *_):
        sky, road = values[stage.name][int(stage.parent.name[-1])]
        part = {"mean": sky, "ccd": {"sky": sky, "road": road}, "features": {}}
        return {"stage": str(stage), "checkpoint_step": 7, **dict.fromkeys(command.PARTS, part)}

    folders = command.folders_of(["clan", "source"], tmp_path)
    assert list(folders) == ["clan", "source"] and list(folders["clan"]) == [0, 1]
    rows = {
        name: command.over_seeds({seed: distances(folder) for seed, folder in own.items()})
        for name, own in folders.items()
    }
    both = rows["source"]["both"]
    assert both["mean"] == 3.0 and both["mean_sd"] == pytest.approx(2**0.5) and both["seeds"] == {"0": 2.0, "1": 4.0}
    assert both["ccd"] == {"sky": 3.0, "road": 1.0} and both["ccd_sd"] == {"sky": pytest.approx(2**0.5), "road": None}
    assert rows["clan"]["target"]["ccd"] == {"sky": 1.25, "road": 2.0}
    assert command.described("clan", rows["clan"]).startswith("clan: mean CCD both 1.250 ± 0.354, source")
    assert [command.label(name) for name in ("source", "clan", "adaptation", "mine")] == [
        "source only", *(["CLAN"] if ablation.is_row("systems", "clan") else ["clan"]), "F-Adv", "mine",
    ]  # fmt: skip
    documents.check({"stages": rows}, stored.Distances, "ccd.json")
    figure = figures.ccd_bars({name: row["both"] for name, row in rows.items()})
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["clan (mean 1.25 ± 0.35)", "source (mean 3.00 ± 1.41)"]


def test_systems_that_a_seed_lacks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no seed\*/"):
        command.folders_of(["source"], tmp_path)
    (tmp_path / "seed0" / "source" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "seed1").mkdir()
    with pytest.raises(UserError, match="seed1/source holds no checkpoint of source"):
        command.folders_of(["source"], tmp_path)
    with pytest.raises(UserError, match="--systems=a,a: each only once"):
        command.folders_of(["a", "a"], tmp_path)
    status, _, errors = command_here("scripts/ccd.py", f"--workdir={tmp_path}", "--systems=source", "x")
    assert status == 1 and "--systems names folders of every seed" in one_error(errors)
