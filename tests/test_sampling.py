"""Which image comes when, against a plain simulation of the released sampler and against the weights themselves."""

import functools
import itertools
import math
import os
import random as pyrandom
import threading
import time

import numpy as np
import pytest
import raw_trees
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fada_jax import config as schema
from fada_jax.classes import get_class_set
from fada_jax.configs import gta5_to_cityscapes
from fada_jax.input_pipeline import conversion, sampling, streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.stages import data

CITYSCAPES = get_class_set("cityscapes19")


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
    for draw in (sampling.balanced_run, functools.partial(sampling.rare_run, temperature=0.05), sampling.mined_run):
        order = draw(counts, [seed, run])
        assert order.shape == (sampling.RUN,) and order.dtype == np.int64
        assert 0 <= order.min() and order.max() < len(counts)
        np.testing.assert_array_equal(order, draw(counts, [seed, run]))
        assert (order != draw(counts, [seed, run + 1])).any()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 200), key=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))
def test_a_uniform_run_holds_every_image_once(count, key):
    assert sorted(sampling.uniform_run(count, key)) == list(range(count))
    assert sampling.run_length("uniform", count) == count


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


def released_run(holds, random, bias=1.01):
    """3,000 images in the released order: each is drawn through a class, the rarer so far the likelier.

    Args:
      holds: for each class the numbers of the images that hold it.
      random: ``random.Random``.
      bias: what is added to a class's share before the logarithm.
    """
    classes_of = {}
    for k, images in enumerate(holds):
        for image in images:
            classes_of.setdefault(image, []).append(k)
    files = [random.sample(images, len(images)) for images in holds]
    next_file, seen, order = [0] * len(holds), [0] * len(holds), []
    for _ in range(3000):
        total = sum(seen) or 1
        weights = [1 / math.log(bias + n / total) if images else 0 for n, images in zip(seen, holds, strict=True)]
        k = random.choices(range(len(holds)), weights)[0]
        if next_file[k] == len(files[k]):
            random.shuffle(files[k])
            next_file[k] = 0
        image = files[k][next_file[k]]
        next_file[k] += 1
        order.append(image)
        for c in classes_of[image]:
            seen[c] += 1
    return order


# The share of images that hold each class: as in driving scenes, a few in all and a few in hardly any; one in none.
TAILS = {
    "long": [1.0, 0.8, 0.3, 0.1, 0.03, 0.01, 0.0],
    "two groups": [0.95, 0.95, 0.95, 0.02, 0.02],
    "one each": None,
}


def skewed(tail):
    """bool [300, K]: which image holds which class."""
    random = np.random.default_rng(0)
    if TAILS[tail] is None:  # Nine in ten images hold the first class, and no image holds two.
        return np.eye(4, dtype=bool)[np.repeat(np.arange(4), (270, 20, 7, 3))]
    shares = np.array(TAILS[tail])
    holds = random.random((300, len(shares))) < shares
    holds[:3, shares > 0] = True
    return holds


RUNS = 40


def class_shares(draw, holds, runs):
    """The share of images that hold each class in each of ``runs`` independent runs, [runs, K]."""
    return np.array([holds[draw(run)].mean(0) for run in range(runs)])


def differing(a, b):
    """The least p of Welch's t-tests of the means over runs, one a class, times the number of classes (Bonferroni).

    Runs are independent of one another, draws within a run are not, so that a run is what is counted. Classes whose
    share is the same in every run of both have to agree exactly.
    """
    varies = (np.ptp(a, axis=0) > 0) | (np.ptp(b, axis=0) > 0)
    np.testing.assert_array_equal(a[0, ~varies], b[0, ~varies])
    return scipy.stats.ttest_ind(a[:, varies], b[:, varies], equal_var=False).pvalue.min() * varies.sum()


@pytest.mark.parametrize("tail", TAILS)
def test_balanced_draws_agree_with_a_simulation_of_the_released_sampler(tail):
    holds = skewed(tail)
    images = [np.flatnonzero(column).tolist() for column in holds.T]
    ours = class_shares(lambda run: sampling.balanced_run(holds * 9, [7, run]), holds, RUNS)
    theirs = class_shares(lambda run: released_run(images, pyrandom.Random(run)), holds, RUNS)
    assert differing(ours, theirs) > 1e-3, (ours.mean(0), theirs.mean(0))
    # The test tells the released weights from flatter ones, and from none. Where every image holds one class, any
    # weights that fall with its share balance the classes.
    if tail != "one each":
        flatter = class_shares(lambda run: released_run(images, pyrandom.Random(run), bias=1.1), holds, RUNS)
        assert differing(ours, flatter) < 1e-6, (ours.mean(0), flatter.mean(0))
    uniform = class_shares(lambda run: np.random.default_rng(run).integers(0, len(holds), 3000), holds, RUNS)
    assert differing(ours, uniform) < 1e-6
    # The rarest class comes 5 times as often as its share of the images.
    rarest = holds.mean(0).argsort()[(holds.mean(0) == 0).sum()]
    assert ours.mean(0)[rarest] > 5 * holds[:, rarest].mean()


def test_the_images_of_a_class_come_as_often_as_in_the_simulation():
    holds = skewed("long")
    images = [np.flatnonzero(column).tolist() for column in holds.T]
    counts = [
        np.bincount(np.concatenate([draw(run) for run in range(8)]), minlength=len(holds))
        for draw in (
            lambda run: sampling.balanced_run(holds * 9, [8, run]),
            lambda run: released_run(images, pyrandom.Random(100 + run)),
        )
    ]
    assert scipy.stats.pearsonr(*counts).statistic > 0.9
    # Every image is drawn, though the three that hold all classes come far more often.
    assert min(counts[0]) > 0 and counts[0][:3].min() > 5 * np.median(counts[0])


def test_rare_draws_follow_the_softmax():
    classes = np.repeat(np.arange(3), (60, 30, 10))
    counts = np.eye(4, dtype=np.int64)[classes] * 5
    drawn = sum(np.bincount(classes[sampling.rare_run(counts, [2, r], 0.5)], minlength=3) for r in range(8))
    weights = np.exp((1 - np.array([0.6, 0.3, 0.1])) / 0.5)
    assert scipy.stats.chisquare(drawn, drawn.sum() * weights / weights.sum()).pvalue > 1e-4


def test_mined_draws_hold_the_three_rarest_classes_four_times_in_five():
    classes = np.repeat(np.arange(5), (40, 30, 20, 9, 1))
    counts = np.eye(6, dtype=np.int64)[classes] * 5
    counts[:, 0] += 100
    drawn = sum(np.bincount(sampling.mined_run(counts, [3, r]), minlength=100) for r in range(8))
    rare = np.isin(classes, (2, 3, 4))
    expected = np.where(rare, 0.8 / rare.sum(), 0) + 0.2 / 100
    assert scipy.stats.chisquare(drawn, drawn.sum() * expected).pvalue > 1e-4


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("sampling")
    conversion.convert(conversion.Conversion("gta5", raw_trees.gta5(root / "raw", 7)), root)
    return root


@pytest.mark.parametrize("kind", sampling.KINDS)
def test_threads_that_ask_for_a_run_together_compute_it_once(data_dir, monkeypatch, kind):
    computed, order = [], getattr(sampling, f"{kind}_run")

    def slow(first, key, *rest):
        computed.append(key[-1])
        time.sleep(0.02)  # Time for the others to ask meanwhile.
        return order(first, key, *rest)

    monkeypatch.setattr(sampling, f"{kind}_run", slow)
    stream = Stream("gta5", "train", (64, 36), sampling=kind)
    sampler = streams._sampler(stream, CITYSCAPES, streams._open(data_dir, stream), 3)
    threads, results = 16, {}
    for run in (0, 1, 2):
        together = threading.Barrier(threads)

        def ask(i, run=run, together=together):
            together.wait()
            results[run, i] = sampler(run)

        workers = [threading.Thread(target=ask, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert computed == [0, 1, 2] and len(results) == 3 * threads
    for (run, _), found in results.items():
        np.testing.assert_array_equal(found, results[run, 0])
    # A run and the next are read side by side at their boundary.
    sampler(1), sampler(2), sampler(1)
    assert computed == [0, 1, 2]


def test_a_stream_computes_each_run_once(data_dir, monkeypatch):
    computed, order, seed = [], sampling.uniform_run, 987_654

    def counting(count, key):
        # A stream that another test left open still reads ahead: its seed is another.
        if key[0] == seed:
            computed.append(key[-1])
        return order(count, key)

    monkeypatch.setattr(sampling, "uniform_run", counting)
    # Two runs are kept: more threads than a run has images would need more of them.
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    stream = Stream("gta5", "train", (64, 36))
    batches = streams.train_batches(data_dir, stream, class_set=CITYSCAPES, batch_size=4, seed=seed)
    list(itertools.islice(batches, 14))  # 56 images are 8 runs; what is read ahead belongs to later ones.
    batches.close()
    assert sorted(computed) == list(range(len(computed))) and len(computed) >= 8
    computed.clear()
    streams.batch_names(data_dir, stream, class_set=CITYSCAPES, batch_size=14, seed=seed, step=1)
    assert computed == [2, 3]


def test_source_and_target_of_one_split_draw_different_images(data_dir):
    config = gta5_to_cityscapes.get_config("stage=adaptation")
    config.target.dataset = "gta5"
    config.source.sampling = "uniform"
    names = {}
    for role, stream in data.streams(schema.read(config)).items():
        options = {"class_set": CITYSCAPES, "batch_size": 7, "seed": 0}
        names[role] = [streams.batch_names(data_dir, stream, step=step, **options) for step in range(20)]
    # Each epoch holds every image, in one of 5,040 orders.
    assert all(sorted(a) == sorted(b) for a, b in zip(names["source"], names["target"], strict=True))
    assert sum(a == b for a, b in zip(names["source"], names["target"], strict=True)) <= 1
    pairs = np.mean([a == b for a, b in zip(*(itertools.chain(*x) for x in names.values()), strict=True)])
    assert pairs < 0.4  # By chance 1 in 7.
