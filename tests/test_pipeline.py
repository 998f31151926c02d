"""The streams: stateless randomness, shares of processes, resizing against its definition, files of pseudo labels."""

import dataclasses
import io
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import raw_trees
import tensorflow as tf
from commands import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fada_jax.classes import IGNORE, get_class_set
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, decoding, indexes, pseudo_labels, sampling, streams
from fada_jax.input_pipeline.augmentation import Augment
from fada_jax.input_pipeline.encoding import encode_tiff
from fada_jax.input_pipeline.pseudo_labels import PseudoLabels
from fada_jax.input_pipeline.stream import Stream

CITYSCAPES = get_class_set("cityscapes19")
EVERYTHING = Augment(True, (0.5, 1.5), (48, 32), 0.5, 0.5, 0.5, 0.2)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    raw_trees.gta5(root / "raw", 7)
    conversion.convert(conversion.Conversion("gta5", root / "raw"), root)
    return root


def batches(data_dir, count, start_step=0, augment=EVERYTHING, sampling="uniform", **options):
    options = {"class_set": CITYSCAPES, "batch_size": 4, "seed": 3, **options}
    stream = Stream("gta5", "train", (64, 36), augment=augment, sampling=sampling)
    found = streams.train_batches(data_dir, stream, start_step=start_step, **options)
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
    found = list(streams.eval_batches(data_dir, stream, class_set=CITYSCAPES, batch_size=4))
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
    got = decoding.fitted(Image.fromarray(image), (new_width, new_height))
    assert got.dtype == np.uint8 and got.shape == (new_height, new_width, 3)
    # Grey levels are rounded after each pass, of which either may come first.
    assert min(np.abs(got - x).max() for x in exact) <= 1.3
    label = raw_trees.ids(seed, height, width, 19)
    file = encode_tiff(Image.fromarray(label))
    got = np.asarray(decoding.look_up(Image.open(io.BytesIO(file)), list(range(256)), (new_width, new_height)))
    # A centre that falls between two pixels may take either.
    rows, columns = (
        [np.clip(np.floor((np.arange(new) + 0.5) * old / new + side), 0, old - 1).astype(int) for side in (-1e-9, 1e-9)]
        for new, old in ((new_height, height), (new_width, width))
    )
    assert np.any([got == label[r][:, c] for r in rows for c in columns], axis=0).all()


@pytest.mark.skipif(decoding.cykooz_resizer is None, reason="cykooz-resizer has no wheel for this platform")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.tuples(*[st.integers(9, 300)] * 2), share=st.tuples(*[st.floats(0.1, 1)] * 2))
def test_training_images_shrink_as_in_pillow(seed, sizes, share):
    size = tuple(max(1, int(x * s)) for x, s in zip(sizes, share, strict=True))
    noise = np.random.default_rng(seed).integers(0, 256, (*sizes[::-1], 3), np.uint8)
    for array in (raw_trees.picture(seed, *sizes[::-1]), noise):
        image = Image.fromarray(array)
        got = np.asarray(decoding.shrink(image, size)).astype(int)
        # Pillow 13 passes over the rows first where that is less work; 12 never does.
        expected = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
        difference = np.abs(got - np.asarray(expected.resize(size, Image.Resampling.BICUBIC)))
        # Halves may be rounded either way after each pass; that adds up a few times in a million values.
        assert difference.max() <= 2 and (difference > 1).sum() <= 4 + 1e-4 * difference.size


@settings(max_examples=8, deadline=None)
@given(per_process=st.integers(1, 3), processes=st.integers(1, 5), seed=st.integers(0, 99), step=st.integers(0, 5000))
def test_any_number_of_processes_share_the_same_images(data_dir, per_process, processes, seed, step):
    options = {"batch_size": per_process * processes, "seed": seed, "start_step": step, "augment": Augment(flip=True)}
    (whole,) = batches(data_dir, 1, **options)
    parts = [batches(data_dir, 1, process_index=i, process_count=processes, **options)[0] for i in range(processes)]
    assert_equal([whole], [{key: np.concatenate([part[key] for part in parts]) for key in whole}])


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Number of images -> folder of a data set with as many."""
    root = tmp_path_factory.mktemp("splits")
    for count in (1, 2, 5, 11):
        raw = raw_trees.gta5(root / f"raw{count}", count)
        conversion.convert(conversion.Conversion("gta5", raw), root / f"{count}")
    return {count: root / f"{count}" for count in (1, 2, 5, 11)}


@settings(max_examples=25, deadline=None)
@given(
    count=st.sampled_from([1, 2, 5, 11]),
    limit=st.integers(0, 13),
    share=st.integers(1, 4),
    processes=st.integers(1, 4),
    labels=st.booleans(),
)
def test_every_process_evaluates_its_share_and_every_image_once(splits, count, limit, share, processes, labels):
    stream, batch_size = Stream("gta5", "train", (32, 18), labels=labels), share * processes
    options = {"class_set": CITYSCAPES, "batch_size": batch_size, "limit": limit, "process_count": processes}
    parts = [list(streams.eval_batches(splits[count], stream, process_index=i, **options)) for i in range(processes)]
    wanted = count if limit in (0, *range(count, 14)) else limit
    assert {len(part) for part in parts} == {math.ceil(wanted / batch_size)}
    numbers = []
    for batch in itertools.chain(*zip(*parts, strict=True)):
        assert {len(values) for values in batch.values()} == {share} and ("label" in batch) == labels
        for i in np.flatnonzero(batch["mask"]):
            number = int(batch["number"][i])
            numbers.append(number)
            assert batch["name"][i] == f"{number + 1:05d}" and batch["size"][i].tolist() == [36, 64]
            stored = Image.fromarray(raw_trees.picture(number + 1, 36, 64))
            np.testing.assert_array_equal(batch["image"][i], stored.resize((32, 18), Image.Resampling.BICUBIC))
    # In the order of the split: batch by batch, in each the processes one after the other.
    assert numbers == sorted(set(numbers)) and len(numbers) == wanted
    # Evenly spread: an image stands for as many as any other, or for one more.
    gaps = np.diff([*numbers, count])
    assert numbers[0] == 0 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("batch_size", "processes"), [(10, 4), (1, 2), (3, 2), (0, 1)])
def test_a_batch_that_the_processes_cannot_share_is_refused(data_dir, batch_size, processes):
    stream = Stream("gta5", "train", (32, 18))
    for i in range(processes):
        found = streams.eval_batches(
            data_dir, stream, class_set=CITYSCAPES, batch_size=batch_size, process_index=i, process_count=processes
        )
        with pytest.raises(UserError, match=f"a batch of {batch_size} cannot be shared by {processes} processes"):
            next(found)


PROVENANCE = {
    **{
        "teacher": "a1b2" * 16,
        "teacher_step": 7,
        "scales": [0.7, 1.0],
        "classes": [f"Stra\u00dfe {i}" for i in range(19)],
    },
    **{"selection": {"keep": 0.5, "relative": False}, "teacher_size": [64, 32], "label_size": [32, 18]},
    **{"images": ["gta5", "", "train"], "num_images": 7},
}


def label_file(path, count=7):
    """A file of labels for the first ``count`` images, all pixels of each in the class of its number."""
    maps = {f"{i:05d}": np.full((18, 32), i, np.uint8) for i in range(1, count + 1)}
    assert pseudo_labels.write(path, maps.items(), PROVENANCE) == count
    return Stream("gta5", "train", (64, 36), labels=False, pseudo_labels=str(path))


def first_batch(data_dir, stream, **options):
    return next(streams.train_batches(data_dir, stream, class_set=CITYSCAPES, batch_size=7, seed=0, **options))


def test_pseudo_labels_replace_the_labels(data_dir, tmp_path):
    batch = first_batch(data_dir, label_file(tmp_path / "p.tfrecord"))
    assert batch["label"].shape == (7, 36, 64)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        np.testing.assert_array_equal(image, raw_trees.picture(label[0, 0], 36, 64))


def test_pseudo_labels_say_what_is_rare(data_dir, tmp_path):
    """Images are drawn by the classes of their pseudo labels, as by those of labels."""
    stream = label_file(tmp_path / "p.tfrecord")
    names = [f"{i:05d}" for i in range(1, 8)]
    counts = pseudo_labels.PseudoLabels(stream.pseudo_labels, 19).class_counts([*names, "absent"], 19)
    np.testing.assert_array_equal(counts[:7], np.eye(19, dtype=np.int64)[1:8] * 18 * 32)
    assert not counts[7].any()
    mined = dataclasses.replace(stream, sampling="mined")
    drawn = streams.batch_names(data_dir, mined, class_set=CITYSCAPES, batch_size=2_000, seed=0, step=0)
    shares = [drawn.count(name) / 2_000 for name in names]
    np.testing.assert_allclose(shares, [0.8 / 3 + 0.2 / 7] * 3 + [0.2 / 7] * 4, atol=0.03)
    with pytest.raises(UserError, match="sampling='mined' needs labels: use 'uniform' for gta5/train"):
        streams.check(data_dir, dataclasses.replace(mined, pseudo_labels=""), CITYSCAPES)


def test_equal_pseudo_labels_are_equal_files_in_every_process(tmp_path):
    code = (
        "import sys, numpy\nfrom fada_jax.input_pipeline import pseudo_labels\n"
        "pseudo_labels.write(sys.argv[1], [(str(i), numpy.full((8, 9), i, numpy.uint8)) for i in range(9)])"
    )
    paths = [tmp_path / str(i) for i in range(4)]
    for path in paths:
        subprocess.run([sys.executable, "-c", code, path], check=True, env=environment(), capture_output=True)
    assert len({path.read_bytes() for path in paths}) == 1


def test_a_stream_is_described_without_tensorflow():
    modules = "augmentation, decoding, encoding, layouts, raw_files, sampling, stream, workers"
    code = f"import sys\nfrom fada_jax.input_pipeline import {modules}\nprint('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_pseudo_labels_say_what_they_were_made_of(data_dir, tmp_path):
    path = tmp_path / "p.tfrecord"
    label_file(path)
    assert pseudo_labels.provenance(path) == PROVENANCE
    pseudo_labels.write(path, [])
    assert pseudo_labels.provenance(path) == {}
    # Files of earlier versions begin with a label.
    stream = label_file(path)
    _, *records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    assert pseudo_labels.provenance(path) == {}
    assert sorted(first_batch(data_dir, stream)["label"][:, 0, 0]) == list(range(1, 8))


def test_images_without_pseudo_labels_are_refused_unless_damaged_ones_are_skipped(data_dir, tmp_path):
    stream = label_file(tmp_path / "p.tfrecord", 5)
    with pytest.raises(UserError, match="has no label for 2 of 7 images, for instance 00006: delete it"):
        first_batch(data_dir, stream)
    # The teacher left damaged images out, and so does the student; that they are intact is found out on the way.
    with pytest.raises(UserError, match=r"has no label for 0000[67]: delete it"):
        first_batch(data_dir, stream, damaged_records="skip")


def test_skipped_images_need_no_pseudo_labels(tmp_path):
    conversion.convert(conversion.Conversion("gta5", raw_trees.gta5(tmp_path / "raw", 7)), tmp_path)
    stream = label_file(tmp_path / "p.tfrecord", 5)
    (shard,) = (tmp_path / "gta5").rglob("*.tfrecord*")
    content = bytearray(shard.read_bytes())
    for number in (5, 6):  # 00006 and 00007.
        _, offset, length, _ = np.load(indexes.path(shard.parent, "train"))["records"][number]
        content[offset + length // 2] ^= 1
    shard.write_bytes(content)
    labels = first_batch(tmp_path, stream, damaged_records="skip")["label"]
    assert set(np.unique(labels)) == set(range(1, 6))


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "p.tfrecord"
    return label_file(path), path, path.read_bytes()


def refuse(data_dir, stream, message):
    """Training ends with one error about the file, and its provenance is given as it was or not at all."""
    with pytest.raises(UserError, match=message) as caught:
        first_batch(data_dir, stream)
    assert str(caught.value).startswith(stream.pseudo_labels) and "\n" not in str(caught.value)
    try:
        assert pseudo_labels.provenance(stream.pseudo_labels) in (PROVENANCE, {})
    except UserError as error:
        assert str(error).startswith(stream.pseudo_labels)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_a_file_of_pseudo_labels_is_noticed(data_dir, labels_file, data):
    stream, path, content = labels_file
    place = data.draw(st.integers(0, len(content) - 1), "place")
    bits = data.draw(st.integers(1, 255), "bits")
    path.write_bytes(content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :])
    refuse(data_dir, stream, "is damaged: delete it")


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_truncated_file_of_pseudo_labels_is_noticed(data_dir, labels_file, data):
    stream, path, content = labels_file
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), "length")])
    # Cut between two records, the file is whole but lacks labels.
    refuse(data_dir, stream, "is damaged: delete it|has no label for . of 7 images")


def test_a_file_of_pseudo_labels_cut_between_records_is_noticed(data_dir, labels_file):
    stream, path, content = labels_file
    path.write_bytes(content)
    lengths = [len(record) + 16 for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    for i in range(len(lengths)):
        path.write_bytes(content[: sum(lengths[:i])])
        refuse(data_dir, stream, "has no label for . of 7 images")


def test_other_files_are_no_pseudo_labels(data_dir, tmp_path):
    stream = label_file(tmp_path / "p.tfrecord")
    path = tmp_path / "p.tfrecord"
    picture = encode_tiff(Image.fromarray(raw_trees.picture(0, 20, 30)))
    for content in (b"", b"hello\n", b"{}" * 100, picture, bytes(1000)):
        path.write_bytes(content)
        refuse(data_dir, stream, "is damaged: delete it|has no label for 7 of 7 images")
    other = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
    example = tf.train.Example(features=tf.train.Features(feature={"step": other})).SerializeToString()
    for record in (b"hello", b"", example):
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(record)
        refuse(data_dir, stream, "is damaged: delete it|is no file of pseudo labels")
    path.unlink()
    refuse(data_dir, stream, "no such file of pseudo labels")


def test_pseudo_labels_that_are_damaged_while_they_are_used_are_noticed(tmp_path):
    stream, path = label_file(tmp_path / "p.tfrecord"), tmp_path / "p.tfrecord"
    labels, content = PseudoLabels(stream.pseudo_labels), path.read_bytes()
    place = content.index(b"00003")
    path.write_bytes(content[:place] + b"9" + content[place + 1 :])
    assert np.asarray(labels.read("00002")).max() == 2
    with pytest.raises(UserError, match="the label of 00003 is damaged"):
        labels.read("00003")


@pytest.mark.parametrize("kind", sampling.KINDS)
def test_every_sampling_resumes_at_step_1000_and_is_shared(data_dir, kind):
    found = {"sampling": kind, "augment": Augment(flip=True), "process_count": 4}
    parts = [batches(data_dir, 2, start_step=1000, process_index=i, **found) for i in range(4)]
    undisturbed = batches(data_dir, 1002, process_index=2, **found)
    assert_equal(undisturbed[1000:], parts[2])
    joined = [{k: np.concatenate([p[k] for p in share]) for k in share[0]} for share in zip(*parts, strict=True)]
    assert_equal(batches(data_dir, 2, start_step=1000, **{**found, "process_count": 1}), joined)


def test_sampling_by_class_prefers_images_with_rare_classes(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw", 12)
    for i in range(1, 13):
        label = np.full((36, 64), 7 if i > 1 else 33, np.uint8)  # Road everywhere; one image of a bicycle.
        Image.fromarray(label).save(raw / "labels" / f"{i:05d}.png")
    conversion.convert(conversion.Conversion("gta5", raw), tmp_path)
    share = {}
    for kind in sampling.KINDS:
        labels = np.concatenate([b["label"] for b in batches(tmp_path, 60, sampling=kind, augment=Augment())])
        share[kind] = (labels == 18).mean()
    assert share["uniform"] == pytest.approx(1 / 12) and share["balanced"] > 0.35 and share["rare"] > 0.9


def test_sampling_that_cannot_be_is_refused(data_dir):
    with pytest.raises(UserError, match="sampling='classes': one of uniform, balanced, rare"):
        streams.check(data_dir, Stream("gta5", "train", (64, 36), sampling="classes"), CITYSCAPES)
    with pytest.raises(UserError, match="sampling='rare' needs labels"):
        streams.check(data_dir, Stream("gta5", "train", (64, 36), sampling="rare", labels=False), CITYSCAPES)
    with pytest.raises(UserError, match="sampling_temperature=0"):
        stream = Stream("gta5", "train", (64, 36), sampling="rare", sampling_temperature=0)
        streams.check(data_dir, stream, CITYSCAPES)
