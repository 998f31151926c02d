"""The streams: stateless randomness, shares of processes, augmentation against Pillow and NumPy definitions."""

import colorsys
import functools
import itertools
import math
import random as pyrandom

import numpy as np
import pytest
import raw_trees
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fada_jax.classes import IGNORE, get_class_set
from fada_jax.errors import UserError
from input_pipeline import builders, pipeline, raw_datasets, sampling
from input_pipeline.pipeline import Augment, Stream

EVERYTHING = Augment(True, (0.5, 1.5), (48, 32), 0.5, 0.5, 0.5, 0.2)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    raw_trees.gta5(root / "raw", 7)
    builders.convert(builders.Conversion("gta5", root / "raw"), root)
    return root


def batches(data_dir, count, start_step=0, augment=EVERYTHING, sampling="uniform", **options):
    options = {"class_set": get_class_set("cityscapes19"), "batch_size": 4, "seed": 3, **options}
    stream = Stream("gta5", "train", (64, 36), augment=augment, sampling=sampling)
    found = pipeline.train_batches(data_dir, stream, start_step=start_step, **options)
    return list(itertools.islice(found, count))


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x["image"], y["image"])
        np.testing.assert_array_equal(x["label"], y["label"])


def test_a_resumed_stream_goes_on_with_the_same_batches(data_dir):
    whole = batches(data_dir, 6)
    assert_equal(whole[4:], batches(data_dir, 2, start_step=4))
    assert whole[0]["image"].shape == (4, 32, 48, 3) and whole[0]["image"].dtype == np.uint8
    assert (whole[0]["image"] != whole[1]["image"]).any()
    other = batches(data_dir, 1, seed=4)
    assert (whole[0]["image"] != other[0]["image"]).any()


def test_processes_share_a_batch(data_dir):
    whole = batches(data_dir, 3)
    parts = [batches(data_dir, 3, process_index=i, process_count=2) for i in range(2)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
    assert_equal(whole, joined)
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        batches(data_dir, 1, process_count=3)


def test_every_epoch_holds_every_image_once(data_dir):
    seen = [b["image"][i].tobytes() for b in batches(data_dir, 7, augment=Augment(), batch_size=2) for i in range(2)]
    assert len(set(seen[:7])) == 7 and set(seen[:7]) == set(seen[7:])
    assert seen[:7] != seen[7:]


def test_evaluation_counts_every_image_once_and_pads(data_dir):
    stream = Stream("gta5", "train", (32, 18))
    found = list(pipeline.eval_batches(data_dir, stream, class_set=get_class_set("cityscapes19"), batch_size=4))
    assert [b["mask"].tolist() for b in found] == [[True] * 4, [True] * 3 + [False]]
    assert [n for b in found for n in b["name"]] == [f"{i:05d}" for i in range(1, 8)] + [""]
    assert found[0]["image"].shape == (4, 18, 32, 3) and found[0]["label"].shape == (4, 36, 64)
    assert (found[1]["label"][3] == IGNORE).all() and not found[1]["image"][3].any()
    assert found[0]["size"].tolist() == [[36, 64]] * 4


def bicubic(array, size, axis):
    """One pass of antialiased bicubic resizing (a = -0.5) in float64, clipped to [0, 255]."""
    ratio = array.shape[axis] / size
    stretch = max(ratio, 1.0)
    x = np.abs((np.arange(size)[:, None] + 0.5) * ratio - np.arange(array.shape[axis])[None] - 0.5) / stretch
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights /= weights.sum(1, keepdims=True)
    return np.clip(np.moveaxis(np.tensordot(weights, array, (1, axis)), 0, axis), 0, 255)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.tuples(*[st.integers(2, 90)] * 4))
def test_resizing_is_antialiased_bicubic_and_nearest(seed, sizes):
    height, width, new_height, new_width = sizes
    image = raw_trees.picture(seed, height, width)
    exact = [
        bicubic(bicubic(image.astype(float), new_width, 1), new_height, 0),
        bicubic(bicubic(image.astype(float), new_height, 0), new_width, 1),
    ]
    got = pipeline._resize_image(tf.constant(image), (new_width, new_height)).numpy()
    assert got.dtype == np.uint8 and got.shape == (new_height, new_width, 3)
    # Grey levels are rounded after each pass, of which either may come first.
    assert min(np.abs(got - x).max() for x in exact) <= 1.3
    label = raw_trees.ids(seed, height, width, 19)
    got = pipeline._resize_label(tf.constant(label[..., None]), (new_width, new_height)).numpy()[..., 0]
    # A centre that falls between two pixels may take either.
    rows, columns = (
        [np.clip(np.floor((np.arange(new) + 0.5) * old / new + side), 0, old - 1).astype(int) for side in (-1e-9, 1e-9)]
        for new, old in ((new_height, height), (new_width, width))
    )
    assert np.any([got == label[r][:, c] for r in rows for c in columns], axis=0).all()


@pytest.mark.skipif(pipeline.cykooz_resizer is None, reason="cykooz-resizer has no wheel for this platform")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.tuples(*[st.integers(9, 300)] * 2), share=st.tuples(*[st.floats(0.1, 1)] * 2))
def test_training_images_shrink_as_in_pillow(seed, sizes, share):
    size = tuple(max(1, int(x * s)) for x, s in zip(sizes, share, strict=True))
    noise = np.random.default_rng(seed).integers(0, 256, (*sizes[::-1], 3), np.uint8)
    for array in (raw_trees.picture(seed, *sizes[::-1]), noise):
        image = Image.fromarray(array)
        got = pipeline._read_image(raw_datasets.encode(image), size, training=True).astype(int)
        # Pillow 13 passes over the rows first where that is less work; 12 never does.
        expected = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
        difference = np.abs(got - np.asarray(expected.resize(size, Image.Resampling.BICUBIC)))
        # Halves may be rounded either way after each pass; on pure noise that adds up once in 100,000 values.
        assert difference.max() <= 1 or ((difference > 1).mean() < 1e-4 and difference.max() == 2)


@settings(max_examples=15, deadline=None)
@given(
    key=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
    scale=st.tuples(st.floats(0.7, 1.0), st.floats(1.0, 1.5)),
    crop=st.tuples(st.integers(20, 90), st.integers(20, 60)),
)
def test_image_and_label_move_together(key, scale, crop):
    # Grey blocks that tell the class; bicubic edges are left out by comparing where the label is flat.
    label = np.kron(np.random.default_rng(key[0]).integers(0, 19, (3, 4), dtype=np.uint8), np.ones((12, 16), np.uint8))
    image = np.repeat((label * 12 + 10)[..., None], 3, -1)
    augmented, moved = pipeline.augment(
        tf.constant(image), tf.constant(label[..., None]), tf.constant(key, tf.int32), Augment(True, scale, crop)
    )
    augmented, moved = augmented.numpy()[..., 0].astype(int), moved.numpy()[..., 0]
    assert augmented.shape == moved.shape == (crop[1], crop[0])
    assert set(np.unique(moved)) <= set(range(19)) | {IGNORE}
    padded = moved == IGNORE
    assert (augmented[padded] == 0).all()
    interior = np.lib.stride_tricks.sliding_window_view(np.pad(moved, 3, mode="edge"), (7, 7))
    flat = (interior == moved[..., None, None]).all((2, 3)) & ~padded
    flat[:4], flat[-4:], flat[:, :4], flat[:, -4:] = False, False, False, False
    assert flat.any() or padded.mean() > 0.3
    assert (np.abs(augmented - (moved.astype(int) * 12 + 10))[flat] <= 1).all()


@settings(max_examples=15, deadline=None)
@given(
    key=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
    size=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    crop=st.tuples(st.integers(4, 50), st.integers(4, 50)),
    scale=st.sampled_from([None, (0.5, 1.5)]),
    strength=st.floats(0.1, 0.5),
)
def test_labels_follow_their_pixels_and_jitter_never_reaches_them(key, size, crop, scale, strength):
    random = np.random.default_rng(key)
    image = random.integers(1, 256, (*size, 3), dtype=np.uint8)
    table = np.append(random.permutation(19), [IGNORE] * 237).astype(np.uint8)
    label = table[image[..., :1] % 23]
    arguments = tf.constant(image), tf.constant(label), tf.constant(key, tf.int32)
    moved, labels = (x.numpy() for x in pipeline.augment(*arguments, Augment(True, scale, crop)))
    assert labels.shape == (crop[1], crop[0], 1) and set(np.unique(labels)) <= {*range(19), IGNORE}
    if scale is None:  # Without resizing every pixel still carries the label that it was given.
        padded = (moved == 0).all(-1)
        assert padded.sum() == max(crop[0] * crop[1] - min(crop[0], size[1]) * min(crop[1], size[0]), 0)
        np.testing.assert_array_equal(labels[~padded], table[moved[~padded][:, :1] % 23])
        assert (labels[padded] == IGNORE).all()
    strengths = {"brightness": strength, "contrast": strength, "saturation": strength, "hue": strength / 2}
    jittered, same = pipeline.augment(*arguments, Augment(True, scale, crop, **strengths))
    np.testing.assert_array_equal(labels, same)
    assert jittered.shape == moved.shape


@settings(max_examples=8, deadline=None)
@given(per_process=st.integers(1, 3), processes=st.integers(1, 5), seed=st.integers(0, 99), step=st.integers(0, 5000))
def test_any_number_of_processes_share_the_same_images(data_dir, per_process, processes, seed, step):
    options = {"batch_size": per_process * processes, "seed": seed, "start_step": step, "augment": Augment(flip=True)}
    (whole,) = batches(data_dir, 1, **options)
    parts = [batches(data_dir, 1, process_index=i, process_count=processes, **options)[0] for i in range(processes)]
    assert_equal([whole], [{key: np.concatenate([part[key] for part in parts]) for key in whole}])
    stream = Stream("gta5", "train", (32, 18))
    seen, lengths = [], set()
    for i in range(processes):
        found = list(
            pipeline.eval_batches(
                data_dir, stream, class_set=get_class_set("cityscapes19"), batch_size=per_process * processes,
                process_index=i, process_count=processes,
            )
        )  # fmt: skip
        lengths.add(len(found))
        seen += [name for b in found for name, real in zip(b["name"], b["mask"], strict=True) if real]
        assert all(len(b["mask"]) == per_process for b in found)
    assert sorted(seen) == [f"{i:05d}" for i in range(1, 8)] and len(lengths) == 1


def test_jitter_factors_are_uniform_in_torchvisions_range():
    grey = tf.fill((2, 2, 3), tf.constant(100, tf.uint8))
    jitter = tf.function(lambda key: pipeline.augment(grey, None, key, Augment(brightness=0.5))[0][0, 0, 0])
    levels = np.array([jitter(tf.constant([i, 7], tf.int32)).numpy() for i in range(400)])
    assert levels.min() >= 50 and levels.max() <= 150
    assert scipy.stats.kstest(levels, scipy.stats.uniform(50, 100).cdf).pvalue > 1e-4


def test_jitter_leaves_labels_and_its_parts_follow_torchvisions_definition():
    image = raw_trees.picture(0, 20, 30)
    label = raw_trees.ids(0, 20, 30, 19)[..., None]
    options = Augment(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    results = []
    for i in range(4):
        changed, same = pipeline.augment(tf.constant(image), tf.constant(label), tf.constant([i, 1], tf.int32), options)
        np.testing.assert_array_equal(same, label)
        results.append(changed.numpy())
    assert len({r.tobytes() for r in results}) == 4
    x = image / 255.0
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    close = {"atol": 2e-6}
    np.testing.assert_allclose(pipeline.adjust_brightness(np.float32(x), 1.4), np.clip(1.4 * x, 0, 1), **close)
    expected = np.clip(0.6 * x + 0.4 * grey.mean(), 0, 1)
    np.testing.assert_allclose(pipeline.adjust_contrast(np.float32(x), 0.6), expected, **close)
    expected = np.clip(1.5 * x - 0.5 * grey, 0, 1)
    np.testing.assert_allclose(pipeline.adjust_saturation(np.float32(x), 1.5), expected, **close)
    hsv = [colorsys.rgb_to_hsv(*p) for p in x.reshape(-1, 3)]
    expected = np.reshape([colorsys.hsv_to_rgb((h + 0.15) % 1, s, v) for h, s, v in hsv], x.shape)
    np.testing.assert_allclose(tf.image.adjust_hue(np.float32(x), 0.15), expected, atol=1e-5)


def test_pseudo_labels_replace_the_labels(data_dir, tmp_path):
    maps = {f"{i:05d}": np.full((18, 32), i, np.uint8) for i in range(1, 8)}
    assert pipeline.write_pseudo_labels(tmp_path / "p.tfrecord", maps.items()) == 7
    stream = Stream("gta5", "train", (64, 36), labels=False, pseudo_labels=str(tmp_path / "p.tfrecord"))
    options = {"class_set": get_class_set("cityscapes19"), "batch_size": 7, "seed": 0}
    batch = next(pipeline.train_batches(data_dir, stream, **options))
    assert batch["label"].shape == (7, 36, 64)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        np.testing.assert_array_equal(image, raw_trees.picture(label[0, 0], 36, 64))
    pipeline.write_pseudo_labels(tmp_path / "p.tfrecord", list(maps.items())[:3])
    with pytest.raises(UserError, match="has no label for"):
        next(pipeline.train_batches(data_dir, stream, **options))


def class_counts(seed, images=40, classes=6):
    """Pixels per image and class; the last class is in no image, every image holds another."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 500, (images, classes)) * (random.random((images, classes)) < 0.3)
    counts[np.arange(images), random.integers(0, classes - 1, images)] += 10
    counts[:, -1] = 0
    return counts


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), run=st.integers(0, 10**6))
def test_runs_depend_on_their_key_alone(seed, run):
    counts = class_counts(seed)
    for draw in (sampling.balanced_run, functools.partial(sampling.rare_run, temperature=0.05)):
        order = draw(counts, [seed, run])
        assert order.shape == (sampling.RUN,) and order.dtype == np.int64
        assert 0 <= order.min() and order.max() < len(counts)
        np.testing.assert_array_equal(order, draw(counts, [seed, run]))
        assert (order != draw(counts, [seed, run + 1])).any()


def test_balanced_draws_follow_the_released_weights():
    # One class an image tells which class was drawn; class sizes differ 40-fold.
    classes = np.repeat(np.arange(4), (80, 40, 20, 2))
    counts = np.eye(5, dtype=np.int64)[classes] * 7
    excess, variance = np.zeros(5), np.zeros(5)
    for run in range(6):
        order, drawn = sampling.balanced_run(counts, [1, run]), np.zeros(5)
        for image in order:
            share = drawn / max(drawn.sum(), 1)
            weights = np.where(np.arange(5) < 4, 1 / np.log(1.01 + share), 0)
            probability = weights / weights.sum()
            drawn[classes[image]] += 1
            excess += np.eye(5)[classes[image]] - probability
            variance += probability * (1 - probability)
        # Every image of a class comes before any comes again.
        for k in range(4):
            times = np.bincount(order, minlength=len(classes))[classes == k]
            assert times.max() - times.min() <= 1
    assert (np.abs(excess[:4]) < 4 * np.sqrt(variance[:4])).all() and excess[4] == 0


def released_run(holds, random):
    """One run of the released sampler in plain Python: class by weight, next image of its shuffled file list."""
    files = {k: random.sample(range(len(holds)), len(holds)) for k in range(len(holds[0]))}
    files = {k: [i for i in order if holds[i][k]] for k, order in files.items()}
    seen, queues = [0] * len(holds[0]), {k: [] for k in files}
    order = []
    for _ in range(sampling.RUN):
        total = max(sum(seen), 1)
        known = [k for k in files if files[k]]
        k = random.choices(known, [1 / math.log(1.01 + seen[k] / total) for k in known])[0]
        queues[k] = queues[k] or list(files[k])
        image = queues[k].pop(0)
        order.append(image)
        seen = [n + bool(h) for n, h in zip(seen, holds[image], strict=True)]
    return order


def test_balanced_draws_agree_with_a_simulation_of_the_released_sampler():
    # A long tail as in driving scenes: road in every image, a train in one of a hundred; several classes an image.
    random = np.random.default_rng(0)
    holds = random.random((300, 6)) < np.array([1.0, 0.8, 0.3, 0.1, 0.03, 0.01])
    holds[:3, 5] = True
    shares = {}
    for name, draw in (
        ("ours", lambda run: sampling.balanced_run(holds * 9, [7, run])),
        ("released", lambda run: released_run(holds.tolist(), pyrandom.Random(run))),
    ):
        shares[name] = np.array([holds[draw(run)].mean(0) for run in range(6)])
    error = np.sqrt(sum(x.var(0, ddof=1) for x in shares.values()) / 6)
    difference = np.abs(shares["ours"].mean(0) - shares["released"].mean(0))
    assert (difference <= 5 * error + 1e-3).all(), (shares, error)
    # And that is far from uniform: the rarest class comes 5 times as often as its share of the images.
    assert shares["ours"].mean(0)[5] > 5 * holds[:, 5].mean()


def test_rare_draws_follow_the_softmax():
    classes = np.repeat(np.arange(3), (60, 30, 10))
    counts = np.eye(4, dtype=np.int64)[classes] * 5
    drawn = sum(np.bincount(classes[sampling.rare_run(counts, [2, r], 0.5)], minlength=3) for r in range(8))
    weights = np.exp((1 - np.array([0.6, 0.3, 0.1])) / 0.5)
    expected = drawn.sum() * weights / weights.sum()
    assert ((drawn - expected) ** 2 / expected).sum() < 18.4  # Chi-square, 2 degrees of freedom, p = 1e-4.


@pytest.mark.parametrize("kind", sampling.KINDS)
def test_every_sampling_resumes_at_step_1000_and_is_shared(data_dir, kind):
    found = {"sampling": kind, "augment": Augment(flip=True)}
    whole = batches(data_dir, 1002, **found)
    assert_equal(whole[1000:], batches(data_dir, 2, start_step=1000, **found))
    parts = [batches(data_dir, 2, start_step=1000, process_index=i, process_count=4, **found) for i in range(4)]
    joined = [{k: np.concatenate([p[k] for p in share]) for k in share[0]} for share in zip(*parts, strict=True)]
    assert_equal(whole[1000:], joined)


def test_sampling_by_class_prefers_images_with_rare_classes(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw", 12)
    for i in range(1, 13):
        label = np.full((36, 64), 7 if i > 1 else 33, np.uint8)  # Road everywhere; one image of a bicycle.
        Image.fromarray(label).save(raw / "labels" / f"{i:05d}.png")
    builders.convert(builders.Conversion("gta5", raw), tmp_path)
    share = {}
    for kind in sampling.KINDS:
        labels = np.concatenate([b["label"] for b in batches(tmp_path, 60, sampling=kind, augment=Augment())])
        share[kind] = (labels == 18).mean()
    assert share["uniform"] == pytest.approx(1 / 12) and share["balanced"] > 0.35 and share["rare"] > 0.9


def test_sampling_that_cannot_be_is_refused(data_dir):
    with pytest.raises(UserError, match="sampling='classes': one of uniform, balanced, rare"):
        pipeline.check(data_dir, Stream("gta5", "train", (64, 36), sampling="classes"), get_class_set("cityscapes19"))
    with pytest.raises(UserError, match="sampling='rare' needs labels"):
        pipeline.check(
            data_dir, Stream("gta5", "train", (64, 36), sampling="rare", labels=False), get_class_set("cityscapes19")
        )
    with pytest.raises(UserError, match="sampling_temperature=0"):
        stream = Stream("gta5", "train", (64, 36), sampling="rare", sampling_temperature=0)
        pipeline.check(data_dir, stream, get_class_set("cityscapes19"))
