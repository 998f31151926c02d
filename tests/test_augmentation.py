"""Training input against the released one, written independently in ``released_transforms``: pixels, labels and network
input of every stage; and what chance decides, against its distribution."""

import colorsys
import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import raw_trees
import released_transforms as released
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fada_jax import config as schema
from fada_jax.classes import IGNORE, get_class_set
from fada_jax.configs import gta5_to_cityscapes, synthia_to_cityscapes
from fada_jax.input_pipeline import augmentation, conversion, decoding, pseudo_labels, streams
from fada_jax.input_pipeline.augmentation import Augment
from fada_jax.input_pipeline.stream import Stream
from fada_jax.preprocessing import CAFFE, IMAGENET, normalise
from fada_jax.scripts.benchmarks import jitter as benchmark
from fada_jax.stages import data

SEEDS = st.integers(0, 2**32 - 1)
# Where images and labels of a data set lie, and their names.
LAYOUTS = {
    "gta5": ("images/{}.png", "labels/{}.png", "{:05d}"),
    "synthia": ("RAND_CITYSCAPES/RGB/{}.png", "RAND_CITYSCAPES/GT/LABELS/{}.png", "{:07d}"),
    "cityscapes": (
        "leftImg8bit/train/aachen/{}_leftImg8bit.png",
        "gtFine/train/aachen/{}_gtFine_labelIds.png",
        "aachen_{:06d}_000019",
    ),
}


def street(seed, width, height):
    """A picture with smooth parts, noise, saturated parts and parts without colour, uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    image = raw_trees.picture(seed, height, width).astype(int)
    image += random.integers(-20, 21, image.shape) * (random.random((height, width, 1)) < 0.5)
    for colour in ((255, 0, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255), (0, 0, 0)):
        y, x = random.integers(0, height), random.integers(0, width)
        image[y : y + height // 5, x : x + width // 5] = colour
    return np.clip(image, 0, 255).astype(np.uint8)


def convert(root, **sizes):
    """Writes and converts the training images of each data set in ``sizes`` (width, height).

    Returns:
      data set -> name -> the image and its label of raw ids.
    """
    raw = {dataset: {} for dataset in sizes}
    for dataset, (image_path, label_path, name) in ((key, LAYOUTS[key]) for key in sizes):
        folder = raw_trees.cityscapes(root / dataset) if dataset == "cityscapes" else root / dataset
        if dataset == "cityscapes":  # Its other splits have to be there.
            for path in [*folder.glob("*/train/*/*")]:
                path.unlink()
        for i, (width, height) in enumerate(sizes[dataset]):
            seed = 100 * len(raw) + i
            image, ids = (
                street(seed, width, height),
                raw_trees.ids(seed, height, width, 23 if dataset == "synthia" else 34),
            )
            files = [folder / path.format(name.format(i)) for path in (image_path, label_path)]
            for file in files:
                file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(files[0], compress_level=1)
            if dataset == "synthia":
                files[1].write_bytes(raw_trees.png16(ids[..., None].repeat(3, -1).astype(np.uint16)))
            else:
                Image.fromarray(ids).save(files[1], compress_level=1)
            raw[dataset][name.format(i)] = image, ids
        conversion.convert(conversion.Conversion(dataset, folder), root / "data")
    return raw


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder and contents of data sets whose images have no side of the network's size."""
    root = tmp_path_factory.mktemp("small")
    sizes = {"gta5": [(61, 37)] * 4 + [(73, 41)], "synthia": [(64, 38)] * 3, "cityscapes": [(64, 32)] * 5}
    return root, convert(root, **sizes)


def configured(task, arguments, root, overrides):
    """The released config of a task with a few values of its own."""
    config = task.get_config(arguments)
    config.update_from_flattened_dict({"data_dir": str(root / "data"), "seed": 5, **overrides})
    return config


def write_pseudo_labels(path, names, size):
    """A file of pseudo labels of random classes, and what it holds."""
    maps = {name: raw_trees.ids(900 + i, size[1], size[0], 20) for i, name in enumerate(names)}
    maps = {name: np.where(ids == 19, IGNORE, ids).astype(np.uint8) for name, ids in maps.items()}
    pseudo_labels.write(path, maps.items())
    return maps


def read(config, which, *, start_step=0, steps=2, pseudo_labels=""):
    """Name, draw, image and label of every example of a stage's stream."""
    settled = schema.read(config)
    stream, size = data.streams(settled, pseudo_labels)[which], data.stream_batch_size(settled)
    options = {"class_set": get_class_set(config.class_set), "batch_size": size, "seed": config.seed}
    batches = streams.train_batches(config.data_dir, stream, start_step=start_step, **options)
    for step, batch in zip(range(start_step, start_step + steps), batches, strict=False):
        names = streams.batch_names(config.data_dir, stream, step=step, **options)
        for i, (name, image) in enumerate(zip(names, batch["image"], strict=True)):
            key = [config.seed, streams._stream_id(stream), step * size + i, 1]
            drawn = augmentation.draw(np.random.default_rng(key), stream.augment)
            yield name, drawn, image, batch["label"][i] if "label" in batch else None


def check_against_released(config, which, raw, *, pseudo=None, **options):
    """Compares a stage's stream with the released code's images, labels and network input.

    Returns:
      the draws.
    """
    stream, draws = config.target if which == "target" or pseudo else config.source, []
    size, table = tuple(stream.size), released.SYNTHIA16 if "synthia" in config.task else released.CITYSCAPES19
    for name, drawn, image, label in read(config, which, **options):
        stored, ids = raw[stream.dataset][name]
        shrinks = decoding.cykooz_resizer and size[0] < stored.shape[1] and size[1] < stored.shape[0]
        resize = {"resize": released.resize_columns_first} if shrinks else {}
        if pseudo:
            jitter = config.model.backbone != "vgg16"
            expected, labels = released.self_distillation(stored, pseudo[name], tuple(stream.crop), drawn, jitter)
        elif which == "target":
            expected, labels = released.unlabelled(stored, size, **resize), None
        else:
            jitter = drawn if config.stage == "adaptation" else None
            expected, labels = released.labelled(stored, released.classes(ids, table), size, jitter, **resize)
        np.testing.assert_array_equal(label, labels)
        # cykooz-resizer rounds a half now and then the other way, in each of two passes.
        levels = 1 if shrinks else 0
        difference = np.abs(image.astype(int) - expected)
        assert image.dtype == np.uint8
        assert difference.max() <= 2 * levels and (difference > levels).mean() < 1e-5
        caffe = config.model.backbone == "vgg16"
        wanted = (released.caffe_normalised if caffe else released.to_tensor_normalised)(expected)
        # A few roundings of float32, at 255 and at 255 / 255 / 0.224.
        tolerance = 3e-5 + 2 * levels if caffe else 2e-6 + 2 * levels / 255 / 0.224
        np.testing.assert_allclose(normalise(image, schema.read(config).preprocessing), wanted, rtol=0, atol=tolerance)
        draws.append(drawn)
    return draws


@pytest.mark.parametrize("resizer", ["installed", "pillow"])
@pytest.mark.parametrize("backbone", ["resnet101", "vgg16"])
@pytest.mark.parametrize(
    ("task", "size"),
    [(gta5_to_cityscapes, (44, 26)), (gta5_to_cityscapes, (80, 26)), (synthia_to_cityscapes, (64, 38))],
    ids=["gta5", "gta5, wider", "synthia"],
)
def test_source_and_adversarial_input_is_that_of_the_released_code(small, monkeypatch, task, size, backbone, resizer):
    root, raw = small
    if resizer == "pillow":
        monkeypatch.setattr(decoding, "cykooz_resizer", None)
    overrides = {"source.size": size, "target.size": (31, 17), "batch_size": 6}
    source = configured(task, f"stage=source,backbone={backbone}", root, overrides)
    check_against_released(source, "source", raw, steps=1)
    adversarial = configured(task, f"stage=adaptation,backbone={backbone}", root, overrides)
    draws = check_against_released(adversarial, "source", raw, start_step=3)
    assert len({drawn.order for drawn in draws}) > 1
    check_against_released(adversarial, "target", raw, start_step=3)


@pytest.mark.parametrize(
    ("backbone", "crop"),
    [("resnet101", (40, 22)), ("resnet101", (64, 32)), ("resnet101", (70, 60)), ("vgg16", (40, 22))],
)
def test_self_distillation_input_is_that_of_the_released_code(small, tmp_path, backbone, crop):
    root, raw = small
    size = (64, 32)
    overrides = {"target.size": size, "target.crop": crop}
    config = configured(gta5_to_cityscapes, f"stage=self_distillation,backbone={backbone}", root, overrides)
    pseudo = write_pseudo_labels(tmp_path / "p.tfrecord", raw["cityscapes"], size)
    draws = check_against_released(
        config, "source", raw, pseudo=pseudo, pseudo_labels=str(tmp_path / "p.tfrecord"), steps=3
    )
    assert len({drawn.flip for drawn in draws}) == 2
    # Some are padded on both axes, some are cut, unless no scale makes them as large as the crop.
    spare = [min(int(64 * drawn.scale) - crop[0], int(32 * drawn.scale) - crop[1]) for drawn in draws]
    assert min(spare) < 0 and (max(spare) > 0 or crop == (70, 60))


def test_input_at_the_released_sizes_is_that_of_the_released_code(tmp_path):
    raw = convert(tmp_path, gta5=[(1914, 1052)], synthia=[(1280, 760)], cityscapes=[(2048, 1024)])
    for task in (gta5_to_cityscapes, synthia_to_cityscapes):
        adversarial = configured(task, "stage=adaptation", tmp_path, {"batch_size": 2})
        check_against_released(adversarial, "source", raw, steps=1)
    check_against_released(adversarial, "target", raw, steps=1)
    source = configured(gta5_to_cityscapes, "stage=source", tmp_path, {"batch_size": 1})
    check_against_released(source, "source", raw, steps=1)
    distilled = configured(gta5_to_cityscapes, "stage=self_distillation", tmp_path, {"batch_size": 2})
    pseudo = write_pseudo_labels(tmp_path / "p.tfrecord", raw["cityscapes"], (2048, 1024))
    path = str(tmp_path / "p.tfrecord")
    check_against_released(distilled, "source", raw, pseudo=pseudo, pseudo_labels=path, steps=1)


def test_jitter_after_cropping_changes_the_pixels_that_the_crop_keeps(small, tmp_path):
    root, raw = small
    overrides = {"target.size": (64, 32), "target.crop": (40, 40), "target.jitter_first": False}
    config = configured(gta5_to_cityscapes, "stage=self_distillation", root, overrides)
    pseudo = write_pseudo_labels(tmp_path / "p.tfrecord", raw["cityscapes"], (64, 32))
    for name, drawn, image, label in read(config, "source", pseudo_labels=str(tmp_path / "p.tfrecord")):
        stored, _ = raw["cityscapes"][name]
        size = int(64 * drawn.scale), int(32 * drawn.scale)
        scaled, labels = released.resize(stored, size), released.resize_label(pseudo[name], size)
        inside = np.zeros(labels.shape, np.uint8)
        cropped, kept = released.random_crop(scaled, inside, (40, 40), drawn.position)
        rows, columns = (kept == 0).any(1), (kept == 0).any(0)
        jittered = cropped.copy()
        jittered[np.ix_(rows, columns)] = released.color_jitter(cropped[np.ix_(rows, columns)], drawn)
        _, labels = released.random_crop(scaled, labels, (40, 40), drawn.position)
        expected = released.random_flip(jittered, labels, drawn)
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(label, expected[1])


def test_what_jitter_after_cropping_changes_is_measured_on_the_same_draws(small, monkeypatch):
    root, _ = small
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    stream = Stream("cityscapes", "train", (64, 32), labels=False)
    results = {}
    for name, brightness in (("source", 0.0), ("camvid", 0.5)):
        options = Augment(True, (0.5, 1.5), (40, 40), brightness)
        results[name] = benchmark.measure(root / "data", dataclasses.replace(stream, augment=options), 6, seed=1)
    assert results["source"]["max"] == 0 < results["camvid"]["mean"] < results["camvid"]["max"]
    assert all(row["released"] > 0 and row["late"] > 0 for row in results.values())
    assert benchmark.table(results).count("->") == 2


def test_every_grey_level_reaches_the_network_as_in_the_released_code():
    levels = np.arange(256, dtype=np.uint8)
    images = np.stack([levels, levels[::-1], np.roll(levels, 77)], -1)[None, None]
    for values, exact, close in (
        (IMAGENET, released.to_tensor_normalised(images), 2e-6),
        (CAFFE, released.caffe_normalised(images), 3e-5),
    ):
        found = np.asarray(normalise(images, values))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=0, atol=close)


# Colours.


@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    factors=st.tuples(*[st.one_of(st.floats(0, 2), st.sampled_from([0.0, 0.5, 1.0]))] * 3),
    turns=st.floats(-0.5, 0.5).filter(bool),
    order=st.permutations(range(4)),
)
def test_jitter_is_torchvisions_on_pillow(seed, size, factors, turns, order):
    image = street(seed, *size)
    drawn = augmentation.Draw(*factors, hue=turns, order=tuple(order))
    found = np.asarray(augmentation.jitter(Image.fromarray(image), drawn))
    np.testing.assert_array_equal(found, released.color_jitter(image, drawn))


@pytest.mark.parametrize("turns", [-0.5, -0.2, -1 / 255, -1e-3, 1e-3, 0.0123, 0.2, 0.5])
def test_hue_moves_every_colour_as_torchvision_does(turns):
    # Every seventeenth level of each channel, and its neighbours.
    levels = np.unique(np.clip(np.arange(0, 256, 17)[:, None] + [-1, 0, 1], 0, 255))
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).astype(np.uint8).reshape(len(levels), -1, 3)
    found = np.asarray(augmentation.shift_hue(Image.fromarray(colours), turns))
    np.testing.assert_array_equal(found, released.hue(colours, turns))
    # And that is a turn of the hue: value stays, grey stays, the rest within what 8 bits of hue and saturation hide.
    np.testing.assert_array_equal(found.max(-1), colours.max(-1))
    grey = np.ptp(colours, axis=-1) == 0
    np.testing.assert_array_equal(found[grey], colours[grey])


@pytest.mark.parametrize("factor", [0.5, 0.85, 1.0, 1.3, 1.5])
def test_each_operation_follows_its_definition_on_real_numbers(factor):
    image = street(3, 40, 30)
    x = image / 255.0
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    for kind, degenerate in (("brightness", 0.0), ("contrast", grey.mean()), ("saturation", grey)):
        found = augmentation.jitter(Image.fromarray(image), augmentation.Draw(**{kind: factor}))
        exact = np.clip(factor * x + (1 - factor) * degenerate, 0, 1) * 255
        # Cut off after the blend; grey and its mean are rounded before it.
        assert np.abs(np.asarray(found) - exact).max() < 1.3, kind
    turns = 0.3 * (factor - 1)
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3)]
    exact = np.reshape([colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in hsv], x.shape) * 255
    found = np.asarray(augmentation.shift_hue(Image.fromarray(image), turns))
    # A level of hue is 1/255 of the circle, on which a channel moves by up to 6 levels.
    assert np.abs(found - exact).max() < 13 and np.abs(found - exact).mean() < 2


def test_a_hue_of_zero_changes_nothing():
    # torchvision leaves the operation out: 8-bit HSV and back would move colours by several levels.
    image = street(0, 30, 20)
    drawn = augmentation.draw(np.random.default_rng(0), Augment(brightness=0.5))
    expected = released.brightness(image, drawn.brightness)
    np.testing.assert_array_equal(np.asarray(augmentation.jitter(Image.fromarray(image), drawn)), expected)


# What chance decides.

STRENGTH = st.floats(0, 1.5)
OPTIONS = st.builds(
    Augment,
    flip=st.booleans(),
    scale=st.one_of(st.none(), st.tuples(st.floats(0.1, 1), st.floats(1, 2))),
    crop=st.one_of(st.none(), st.tuples(st.integers(1, 50), st.integers(1, 50))),
    brightness=STRENGTH,
    contrast=STRENGTH,
    saturation=STRENGTH,
    hue=st.floats(0, 0.5),
    jitter_first=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, options=OPTIONS)
@example(0, Augment())
def test_draws_stay_in_their_ranges_and_use_up_the_same_numbers(seed, options):
    random, other = np.random.default_rng(seed), np.random.default_rng(seed)
    drawn, neutral = augmentation.draw(random, options), augmentation.draw(other, Augment())
    assert random.bit_generator.state == other.bit_generator.state
    assert (neutral.order, neutral.position) == (drawn.order, drawn.position)
    assert neutral == augmentation.Draw(order=drawn.order, position=drawn.position)
    for kind in ("brightness", "contrast", "saturation"):
        strength = getattr(options, kind)
        assert max(0, 1 - strength) <= getattr(drawn, kind) <= 1 + strength
    assert -options.hue <= drawn.hue <= options.hue
    low, high = options.scale or (1, 1)
    assert low <= drawn.scale <= high
    assert sorted(drawn.order) == [0, 1, 2, 3]
    assert all(0 <= share < 1 for share in drawn.position)
    assert options.flip or not drawn.flip
    # What one option draws does not depend on the others.
    alone = augmentation.draw(np.random.default_rng(seed), dataclasses.replace(Augment(), scale=options.scale))
    assert alone.scale == drawn.scale


def draws(count, options):
    """As a stream draws for its first positions."""
    return [augmentation.draw(np.random.default_rng([3, 7, position, 1]), options) for position in range(count)]


def test_draws_are_uniform_and_independent():
    drawn = draws(3000, Augment(True, (0.5, 1.5), (9, 9), 0.5, 0.4, 1.2, 0.2))
    ranges = {"brightness": (0.5, 1.5), "contrast": (0.6, 1.4), "saturation": (0, 2.2), "hue": (-0.2, 0.2)}
    values = {key: [getattr(d, key) for d in drawn] for key in (*ranges, "scale")}
    ranges |= {"scale": (0.5, 1.5), "row": (0, 1), "column": (0, 1)}
    values |= {"row": [d.position[0] for d in drawn], "column": [d.position[1] for d in drawn]}
    for key, (low, high) in ranges.items():
        assert scipy.stats.kstest(values[key], scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4, key
    orders = [sum(d.order == order for d in drawn) for order in itertools.permutations(range(4))]
    assert scipy.stats.chisquare(orders).pvalue > 1e-4
    flips = [d.flip for d in drawn]
    assert scipy.stats.binomtest(sum(flips), len(flips)).pvalue > 1e-4
    # Neither of one another nor of the position before.
    table = np.array([*values.values(), flips, [d.order.index(3) for d in drawn]], float)
    correlations = np.corrcoef(np.concatenate([table[:, 1:], table[:, :-1]]))
    pairs = correlations[np.triu_indices_from(correlations, 1)]
    assert np.abs(pairs).max() < scipy.stats.norm.isf(1e-4 / len(pairs)) / math.sqrt(len(drawn))


# Geometry.


def move(image, label, drawn, options, **arguments):
    return augmentation.geometry(Image.fromarray(image), Image.fromarray(label), drawn, options, **arguments)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    strength=st.floats(0.1, 0.5),
)
def test_labels_follow_their_pixels_and_padding_is_never_jittered(seed, size, crop, strength):
    random = np.random.default_rng(seed)
    image = random.integers(1, 256, (*size, 3), dtype=np.uint8)
    table = np.append(random.permutation(19), [IGNORE] * 237).astype(np.uint8)
    options = Augment(True, None, crop, strength, strength, strength, strength / 2)
    drawn = augmentation.draw(random, options)
    moved, labels = move(image, table[image[..., 0] % 23], drawn, options)
    assert moved.shape == (crop[1], crop[0], 3) and labels.shape == (crop[1], crop[0])
    padded = (moved == 0).all(-1)
    assert padded.sum() == crop[0] * crop[1] - min(crop[0], size[1]) * min(crop[1], size[0])
    np.testing.assert_array_equal(labels[~padded], table[moved[~padded][:, 0] % 23])
    assert (labels[padded] == IGNORE).all()
    # What is kept is one block of the image.
    rows, columns = np.flatnonzero(~padded.all(1)), np.flatnonzero(~padded.all(0))
    assert len(rows) == min(crop[1], size[0]) and len(columns) == min(crop[0], size[1])
    kept = moved[np.ix_(rows, columns)]
    jittered, same = move(image, table[image[..., 0] % 23], drawn, options, jitter_now=True)
    np.testing.assert_array_equal(same, labels)
    assert not jittered[padded].any()
    upright = kept[:, ::-1] if drawn.flip else kept
    expected = released.color_jitter(upright, drawn)
    np.testing.assert_array_equal(jittered[np.ix_(rows, columns)], expected[:, ::-1] if drawn.flip else expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    scale=st.tuples(st.floats(0.7, 1.0), st.floats(1.0, 1.5)),
    crop=st.tuples(st.integers(20, 90), st.integers(20, 60)),
)
def test_image_and_label_move_together(seed, scale, crop):
    # Grey blocks that tell the class; bicubic edges are left out by comparing where the label is flat.
    random = np.random.default_rng(seed)
    label = np.kron(random.integers(0, 19, (3, 4), dtype=np.uint8), np.ones((12, 16), np.uint8))
    image = np.repeat((label * 12 + 10)[..., None], 3, -1)
    options = Augment(True, scale, crop)
    moved, labels = move(image, label, augmentation.draw(random, options), options)
    levels = moved[..., 0].astype(int)
    assert levels.shape == labels.shape == (crop[1], crop[0])
    assert set(np.unique(labels)) <= set(range(19)) | {IGNORE}
    padded = labels == IGNORE
    assert (levels[padded] == 0).all()
    interior = np.lib.stride_tricks.sliding_window_view(np.pad(labels, 3, mode="edge"), (7, 7))
    flat = (interior == labels[..., None, None]).all((2, 3)) & ~padded
    flat[:4], flat[-4:], flat[:, :4], flat[:, -4:] = False, False, False, False
    assert flat.any() or padded.mean() > 0.3
    assert (np.abs(levels - (labels.astype(int) * 12 + 10))[flat] <= 1).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.floats(0.3, 1.7),
    position=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    flip=st.booleans(),
)
def test_geometry_is_the_released_one(seed, size, crop, scale, position, flip):
    random = np.random.default_rng(seed)
    image, label = street(seed, *size), random.integers(0, 19, size[::-1], dtype=np.uint8)
    drawn = augmentation.Draw(scale=scale, position=position, flip=flip)
    scaled = tuple(max(1, int(length * scale)) for length in size)
    expected = released.random_crop(
        released.resize(image, scaled), released.resize_label(label, scaled), crop, position
    )
    found = move(image, label, drawn, Augment(True, (0.3, 1.7), crop))
    for ours, theirs in zip(found, released.random_flip(*expected, SimpleNamespace(flip=flip)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(5, 6), (14, 6), (5, 15), (13, 15)], ids=lambda size: "{}x{}".format(*size))
def test_crops_begin_anywhere_equally_often(size):
    crop = (10, 9)
    image = np.arange(1, size[0] * size[1] + 1, dtype=np.uint8).reshape(size[::-1])[..., None].repeat(3, -1)
    places = {}
    for drawn in draws(2500, Augment(crop=crop)):
        moved, labels = move(image, image[..., 0], drawn, Augment(crop=crop))
        y, x = np.argwhere(labels != IGNORE)[0]
        # Where the first pixel that is kept lies in the crop, and where it lay in the image.
        place = (y, x, int(moved[y, x, 0]))
        places[place] = places.get(place, 0) + 1
    assert len(places) == math.prod(abs(a - b) + 1 for a, b in zip(size, crop, strict=True))
    assert scipy.stats.chisquare(list(places.values())).pvalue > 1e-4


def test_images_without_labels_move_as_those_with_them():
    options = Augment(True, (0.5, 1.5), (20, 30))
    image = street(1, 25, 20)
    for drawn in draws(10, options):
        moved, labels = augmentation.geometry(Image.fromarray(image), None, drawn, options)
        np.testing.assert_array_equal(moved, move(image, image[..., 0], drawn, options)[0])
        assert labels is None
