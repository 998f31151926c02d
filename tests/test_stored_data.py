"""Converted data and pseudo labels that are not as they were written: one line that names the file, never a guess."""

import dataclasses
import io
import json
import os
import shutil
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import raw_trees
import tensorflow as tf
from PIL import Image

from fada_jax import files
from fada_jax.classes import get_class_set, parse_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, encoding, indexes, memory, pseudo_labels, records, streams
from fada_jax.input_pipeline.pseudo_labels import PseudoLabels
from fada_jax.input_pipeline.stream import Stream

CITYSCAPES = get_class_set("cityscapes19")
STREAM = Stream("gta5", "train", (64, 36))
CLASS_MAP = {"name": "mine", "classes": [{"name": "a", "ids": [1, 2]}, {"name": "b", "ids": [3]}], "ignored_ids": [0]}
MOVED = {**CLASS_MAP, "classes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [2, 3]}]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A converted data set that nobody changes."""
    root = tmp_path_factory.mktemp("whole")
    conversion.convert(conversion.Conversion("gta5", raw_trees.gta5(root / "raw", 6)), root / "data")
    return root


@pytest.fixture
def data_dir(whole, tmp_path):
    shutil.copytree(whole / "data", tmp_path / "data")
    return tmp_path / "data"


def root_of(data_dir, dataset="gta5"):
    return records.folder(data_dir, dataset)


def arrays(data_dir):
    with np.load(indexes.path(root_of(data_dir), "train")) as index:
        return dict(index)


def write_index(data_dir, **values):
    np.savez_compressed(indexes.path(root_of(data_dir), "train"), **values)


def read_all(data_dir):
    """Everything that training reads of the data set."""
    stream = dataclasses.replace(STREAM, sampling="balanced")
    streams.check(data_dir, stream, CITYSCAPES)
    return next(streams.train_batches(data_dir, stream, class_set=CITYSCAPES, batch_size=6, seed=0))


def refused(call, *parts):
    """The one line that ``call`` is refused with; all of ``parts`` stand in it."""
    with pytest.raises(UserError) as error:
        call()
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value), str(error.value)
    return str(error.value)


# Index ---------------------------------------------------------------------------------------------------------------


def changed(place, value):
    def change(array):
        array = array.copy()
        array[place] = value
        return array

    return change


INDEX_CHANGES = {
    "shard that there is not": ("records", changed((2, 0), 7)),
    "negative shard": ("records", changed((2, 0), -1)),
    "offset": ("records", changed((2, 1), 99)),
    "negative offset": ("records", changed((0, 1), -12)),
    "length": ("records", changed((2, 2), 2**60)),
    "negative length": ("records", changed((2, 2), -5)),
    "checksum": ("records", changed((2, 3), -1)),
    "records as fractions": ("records", lambda x: x.astype(np.float64)),
    "records of another byte order": ("records", lambda x: x.astype(">i8")),
    "records by columns": ("records", np.asfortranarray),
    "records of three numbers": ("records", lambda x: x[:, :3]),
    "records in one row": ("records", lambda x: x.ravel()),
    "no dimension": ("records", lambda x: np.int64(3)),
    "no records": ("records", lambda x: x[:0]),
    "fewer records": ("records", lambda x: x[:5]),
    "more records than bytes": ("records", lambda x: np.zeros((500_000, 4), np.int64)),
    "objects": ("names", lambda x: np.array([{}] * 6, object)),
    "names in bytes": ("names", lambda x: x.astype("S")),
    "a name twice": ("names", changed(3, "00001")),
    "an empty name": ("names", changed(3, "")),
    "long names": ("names", lambda x: x.astype("U2000")),
    "text that is none": ("names", lambda x: np.full((6, 5), 0x7FFFFFFF, np.uint32).view("U5").ravel()),
    "negative counts": ("counts", changed((1, 7), -1)),
    "huge counts": ("counts", changed((1, 7), 2**62)),
    "counts of some": ("counts", changed(1, 0)),
    "counts of 255 ids": ("counts", lambda x: x[:, :255]),
    "other pixels": ("counts", lambda x: x * 2),
    "shard above": ("shards", lambda x: np.array([f"../1.0.0/{x[0]}"])),
    "shard elsewhere": ("shards", lambda x: np.array(["/dev/zero"])),
    "shard that is a folder": ("shards", lambda x: np.array(["."])),
    "missing shard": ("shards", lambda x: np.array(["gta5-train.tfrecord-00001-of-00001"])),
    "shard that is the note": ("shards", lambda x: np.array(["conversion.json"])),
    "shard twice": ("shards", lambda x: np.concatenate([x, x])),
    "no shards": ("shards", lambda x: x[:0]),
}


@pytest.mark.parametrize("name", INDEX_CHANGES)
def test_an_index_that_cannot_be_is_refused(name, data_dir):
    key, change = INDEX_CHANGES[name]
    values = arrays(data_dir)
    with np.errstate(all="ignore"):
        write_index(data_dir, **{**values, key: change(values[key])})
    refused(lambda: read_all(data_dir), "convert again with --overwrite", str(root_of(data_dir)))
    refused(lambda: records.verify(root_of(data_dir)), "convert again with --overwrite")


@pytest.mark.parametrize("key", ["records", "names", "shards", "counts"])
def test_an_index_lacks_no_array(key, data_dir):
    values = arrays(data_dir)
    del values[key]
    write_index(data_dir, **values)
    refused(lambda: read_all(data_dir), "train_index.npz is damaged", key)


def bomb(shape):
    """An index whose records claim a shape and inflate to 200 MB of zeros."""
    header, archive = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("records.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(200):
                member.write(bytes(2**20))
    return archive.getvalue()


@pytest.mark.parametrize("shape", [(2**60, 4), (2**40, 4), (6, 4), (-1, 4), (6, 2**62)])
def test_a_claim_of_size_is_compared_before_memory_is_taken(shape, data_dir):
    path = indexes.path(root_of(data_dir), "train")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(io.BytesIO(bomb(shape))) as other:
        members = {name: archive.read(name) for name in archive.namelist()}
        with other.open("records.npy") as file:
            members["records.npy"] = file.read()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(lambda: read_all(data_dir), "train_index.npz is damaged")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x93NUMPY\x01\x00", b"PK\x05\x06" + bytes(18), bytes(1000)])
def test_another_file_is_no_index(content, data_dir):
    indexes.path(root_of(data_dir), "train").write_bytes(content)
    refused(lambda: read_all(data_dir), "train_index.npz is damaged", "convert again with --overwrite")


def test_no_cut_and_no_flipped_bit_of_an_index_passes_unnoticed(data_dir):
    path, rng = indexes.path(root_of(data_dir), "train"), np.random.default_rng(0)
    content, before = path.read_bytes(), indexes.read(root_of(data_dir), "train")
    damaged = [content[:length] for length in rng.integers(0, len(content), 100)]
    for place in rng.integers(0, 8 * len(content), 300):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        try:
            found = indexes.read(root_of(data_dir), "train")
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        # A date or the like in the archive.
        for field in dataclasses.fields(before):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(before, field.name))


@pytest.mark.parametrize("place", ["index", "shard", "note"])
def test_a_pipe_in_a_data_set_is_not_opened(place, data_dir):
    root = root_of(data_dir)
    path = {"index": indexes.path(root, "train"), "shard": next(root.glob("*.tfrecord*"))}.get(place)
    if place == "note":
        own_data(data_dir)
        root = root_of(data_dir, "own")
        path = root / "conversion.json"
    path.unlink()
    os.mkfifo(path)
    if place == "note":
        refused(lambda: records.open_split(data_dir, "own", "train"), "is a named pipe, not a file")
    else:
        refused(lambda: read_all(data_dir), "is a named pipe, not a file")


# Records -------------------------------------------------------------------------------------------------------------


def replace_record(data_dir, number, payload):
    """Puts a payload in a record's place, with the checksums of a record that was written so."""
    values, root = arrays(data_dir), root_of(data_dir)
    (shard,) = root.glob("*.tfrecord*")
    payloads = list(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
    payloads[number] = payload(payloads[number])
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for data in payloads:
            writer.write(data)
    lengths = np.array([len(data) for data in payloads])
    places = np.column_stack([0 * lengths, 12 + np.cumsum(lengths + 16) - lengths - 16, lengths])
    write_index(data_dir, **{**values, "records": np.column_stack([places, [zlib.crc32(data) for data in payloads]])})


def with_feature(key, kind, value):
    def change(payload):
        example = tf.train.Example.FromString(payload)
        example.features.feature[key].Clear()
        if kind:
            getattr(example.features.feature[key], kind).value.extend(value)
        else:
            del example.features.feature[key]
        return example.SerializeToString()

    return change


def picture(height, width, mode="RGB"):
    return encoding.encode_tiff(Image.fromarray(raw_trees.picture(0, height, width)).convert(mode))


RECORD_CHANGES = {
    "no example": (lambda payload: b"hello", "is no image of a conversion"),
    "nothing in it": (lambda payload: b"", "is damaged"),
    "no image": (with_feature("image", None, ()), "is no image of a conversion"),
    "image of another type": (with_feature("image", "int64_list", [1]), "is no image of a conversion"),
    "no height": (with_feature("height", None, ()), "is no image of a conversion"),
    "another height": (with_feature("height", "int64_list", [35]), "is not the image of the index"),
    "another name": (with_feature("name", "bytes_list", [b"x"]), "is not the image of the index"),
    "name that is no text": (with_feature("name", "bytes_list", [b"\xff"]), "is no image of a conversion"),
    "image of another size": (with_feature("image", "bytes_list", [picture(40, 64)]), "is 64x40, not 64x36"),
    "image that is none": (with_feature("image", "bytes_list", [b"hello"]), "cannot be decoded (of no known format)"),
    "image cut short": (with_feature("image", "bytes_list", [picture(36, 64)[:-100]]), "cannot be decoded"),
    "label of another size": (with_feature("label", "bytes_list", [picture(18, 32, "L")]), "is 32x18, not 64x36"),
    "label in colours": (with_feature("label", "bytes_list", [picture(36, 64)]), "is no map of ids (RGB)"),
    "label that is none": (with_feature("label", "bytes_list", [b""]), "cannot be decoded"),
}


@pytest.mark.parametrize("name", RECORD_CHANGES)
def test_a_record_that_cannot_be_is_named(name, data_dir):
    payload, message = RECORD_CHANGES[name]
    replace_record(data_dir, 3, payload)
    message = message if name != "nothing in it" else "train_index.npz is damaged"
    place = "convert again" if name == "nothing in it" else "record 3"
    refused(lambda: read_all(data_dir), message, place, "convert again with --overwrite")
    refused(lambda: records.verify(root_of(data_dir)), message, place)


def test_a_batch_that_memory_cannot_hold_says_so(data_dir, monkeypatch):
    def too_much(*_):
        raise MemoryError

    expected = ("6 images of 64x36 pixels do not fit in memory", "config.batch_size", "crop")
    monkeypatch.setattr(memory, "available", lambda: 3 * 6 * 64 * 36 * 4 - 1)
    refused(lambda: read_all(data_dir), *expected)
    monkeypatch.setattr(memory, "available", lambda: 3 * 6 * 64 * 36 * 4)
    assert len(read_all(data_dir)["image"]) == 6
    monkeypatch.setattr(streams.reading, "batches", too_much)
    refused(lambda: read_all(data_dir), *expected)


# Notes ---------------------------------------------------------------------------------------------------------------


def own_data(data_dir, name="own"):
    raw = raw_trees.folder(Path(data_dir).parent / "own", "train", 2, raw_trees.ids(0, 20, 30, 4))
    request = conversion.Conversion("folder", raw, name=name, class_map=CLASS_MAP)
    return conversion.convert(request, data_dir)[0]


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    return own_data(tmp_path_factory.mktemp("noted") / "data")


NOTES = {
    "another format": ({"format": 99}, "format=99 is unknown to this version"),
    "format in text": ({"format": "2"}, "format='2' is unknown"),
    "unknown field": ({"evil": 1}, "evil is unknown"),
    "resize": ({"resize": [0, 1]}, "resize[0]=0 must be at least 1"),
    "encoding": ({"encoding": "gif"}, "encoding='gif' must be one of png, jpeg, tiff"),
    "no images": ({"images": {"train": 0}}, "images.train=0 must be at least 1"),
    "digest": ({"raw": {"train": "x"}}, "raw.train='x'"),
    "skipped": ({"skipped": 1.5}, "skipped=1.5 must be of type int"),
    "class map": ({"class_map": [1]}, "class_map=(1,)"),
    "no class map": ({"class_map": None}, "class_map is missing"),
    "class map that is none": ({"class_map": {"classes": []}}, "class map"),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_note_that_cannot_be_is_refused_by_field(name, noted):
    change, message = NOTES[name]
    path, text = noted / "conversion.json", (noted / "conversion.json").read_text()
    try:
        path.write_text(json.dumps({**json.loads(text), **change}))
        refused(lambda: records.open_split(noted.parents[1], "own", "train"), message, str(path))
    finally:
        path.write_text(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"x": NaN}', "[" * 100_000, "\udcff"])
def test_another_file_is_no_note(text, noted):
    path, before = noted / "conversion.json", (noted / "conversion.json").read_text()
    try:
        path.write_bytes(text.encode(errors="surrogateescape"))
        refused(lambda: records.open_split(noted.parents[1], "own", "train"), str(path))
    finally:
        path.write_text(before)


def test_notes_of_earlier_versions_are_read(noted):
    path, text = noted / "conversion.json", (noted / "conversion.json").read_text()
    before = {key: value for key, value in json.loads(text).items() if key not in ("format", "raw", "encoding")}
    try:
        path.write_text(json.dumps(before))
        note = records.description(noted)
        assert (note.encoding, note.raw, note.images) == ("tiff", {}, {"train": 2})
    finally:
        path.write_text(text)


def test_a_class_map_whose_ids_have_moved_is_refused(noted):
    stream, class_set = Stream("own", "train", (30, 20)), parse_class_map(CLASS_MAP, "map")[0]
    data_dir = noted.parents[1]
    for allowed in (None, CLASS_MAP, {**CLASS_MAP, "classes": CLASS_MAP["classes"][::-1]}, {**MOVED, "name": "other"}):
        streams.check(data_dir, stream, class_set, allowed)
    streams.check(data_dir, dataclasses.replace(stream, labels=False), class_set, MOVED)
    for other in (MOVED, {**CLASS_MAP, "ignored_ids": []}):
        refused(
            lambda other=other: streams.check(data_dir, stream, class_set, other),
            f"{noted} was converted with another class map called 'mine'", "convert again with --overwrite",
        )  # fmt: skip


# What belongs to whom ------------------------------------------------------------------------------------------------


def convert(raw, data_dir, **options):
    return conversion.convert(conversion.Conversion("gta5", raw, **options), data_dir)


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


OTHERS = {
    "file among the records": ("gta5/1.0.0/notes.txt", "holds notes.txt, which was not made by a conversion"),
    "folder among the records": ("gta5/1.0.0/mine/x", "holds mine, which was not made by a conversion"),
    "list of that name": ("gta5_errors.txt", "gta5_errors.txt is there already and was not made by fada-jax"),
    "folder of the partial's name": ("gta5/.1.0.0.partial/x", "is in the way and was not made by fada-jax"),
    "folder of the replaced's name": ("gta5/.1.0.0.replaced/x", "is in the way and was not made by fada-jax"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_conversion_touches_nothing_of_others(name, whole, data_dir):
    path, message = OTHERS[name]
    (data_dir / path).parent.mkdir(exist_ok=True)
    (data_dir / path).write_text("mine")
    before = snapshot(data_dir)
    refused(lambda: convert(whole / "raw", data_dir), message)
    assert snapshot(data_dir) == before


def test_what_is_no_data_set_is_not_replaced(whole, tmp_path):
    for place in ("a", "b", "c"):
        (tmp_path / place / "gta5").mkdir(parents=True)
    (tmp_path / "a" / "gta5" / "1.0.0").write_text("mine")
    (tmp_path / "b" / "gta5" / "1.0.0").mkdir()
    (tmp_path / "c" / "gta5" / "1.0.0").symlink_to(tmp_path / "b")
    for place in ("a", "b", "c"):
        refused(lambda place=place: convert(whole / "raw", tmp_path / place), "was not made by a conversion")
    (tmp_path / "file").write_text("mine")
    refused(lambda: convert(whole / "raw", tmp_path / "file"), f"--data_dir={tmp_path / 'file'} is not a folder")
    refused(lambda: convert(whole / "raw", tmp_path / "file" / "x"), "cannot be written")
    assert (tmp_path / "a" / "gta5" / "1.0.0").read_text() == "mine"


def test_files_of_the_system_are_in_nobodys_way(whole, data_dir):
    for name in (".DS_Store", "._x", "Thumbs.db", ".nfs0001"):
        (root_of(data_dir) / name).write_bytes(b"x")
    read_all(data_dir)
    convert(whole / "raw", data_dir)
    assert not (root_of(data_dir) / ".DS_Store").exists() and read_all(data_dir)


def test_a_list_of_bad_files_is_replaced_and_removed_where_it_is_ours(tmp_path):
    raw, report = raw_trees.gta5(tmp_path / "raw", 2), tmp_path / "data" / "gta5_errors.txt"
    label = raw / "labels" / "00002.png"
    content = label.read_bytes()
    for bad in (b"", b"x"):
        label.write_bytes(bad)
        refused(lambda: convert(raw, tmp_path / "data"), "00002.png", f"1 bad in all, listed in {report}")
        assert files.is_ours(report) and str(label) in report.read_text()
        assert [path.name for path in (tmp_path / "data").iterdir()] == [report.name]
    label.write_bytes(content)
    convert(raw, tmp_path / "data")
    assert not report.exists()


@pytest.mark.parametrize("size", [(100_000, 100_000), (40_000, 1), (0, 5), (20_000, 20_000), (-5, 5)])
def test_sizes_that_memory_cannot_hold_are_refused(size, whole, tmp_path):
    refused(lambda: convert(whole / "raw", tmp_path / "data", resize=size), f"--resize={size[0]}x{size[1]}: sides of")
    assert not (tmp_path / "data").exists()


def test_one_process_at_a_time_converts_a_data_set(whole, data_dir, tmp_path):
    """The second is refused at once, the first is not disturbed; other data sets do not wait."""
    reached, go = threading.Event(), threading.Event()

    class Waiting:
        def __enter__(self):
            return self.done

        def __exit__(self, *_):
            return None

        def done(self, count):
            if count == 1:
                reached.set()
                assert go.wait(60)

    request = conversion.Conversion("gta5", whole / "raw")
    first = threading.Thread(target=lambda: conversion.convert(request, data_dir, lambda *_: Waiting()))
    before = snapshot(root_of(data_dir))
    first.start()
    try:
        assert reached.wait(60)
        refused(lambda: convert(whole / "raw", data_dir), f"{root_of(data_dir)} is being made by another process")
        own_data(data_dir)
        assert snapshot(root_of(data_dir)) == before
    finally:
        go.set()
        first.join()
    assert records.verify(root_of(data_dir)) == {"train": 6}
    assert sorted(path.name for path in (data_dir / "gta5").iterdir()) == ["1.0.0"]


@pytest.mark.parametrize(
    "values",
    [
        ("../data/gta5", "train", ""), ("/etc", "train", ""), ("gta5/1.0.0", "train", ""), ("gta5", "../train", ""),
        ("gta5", "a/b", ""), ("gta5", "train", ".."), ("..", "train", ""), ("", "train", ""), ("gta5\0", "train", ""),
    ],
)  # fmt: skip
def test_a_path_is_no_name(values, data_dir):
    refused(lambda: records.open_split(data_dir, *values), "can be no name: names are made of")


# Pseudo labels -------------------------------------------------------------------------------------------------------

ORIGIN = {
    **{"teacher": "0" * 64, "teacher_step": 7, "scales": [1.0], "classes": list(CITYSCAPES.names)},
    **{"selection": {"keep": 0.5}, "teacher_size": [64, 32], "label_size": [32, 18]},
    **{"images": ["gta5", "", "train"], "num_images": 6},
}
BEFORE = Path(__file__).parent / "stored_before"


def labels(count=6):
    return [(f"{i:05d}", np.full((18, 32), i, np.uint8)) for i in range(1, count + 1)]


def use(path, data_dir):
    """Everything that training reads of a file of pseudo labels."""
    pseudo_labels.provenance(path)
    stream = dataclasses.replace(STREAM, labels=False, pseudo_labels=str(path))
    return next(streams.train_batches(data_dir, stream, class_set=CITYSCAPES, batch_size=6, seed=0))


def test_no_flipped_bit_of_pseudo_labels_is_trained_on(whole, tmp_path):
    path, rng = tmp_path / "p.tfrecord", np.random.default_rng(1)
    pseudo_labels.write(path, labels(), ORIGIN)
    content = path.read_bytes()
    for place in rng.choice(8 * len(content), 300, replace=False):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        refused(lambda: PseudoLabels(path), str(path), "delete it, the same command makes it again")


def test_cut_and_scattered_damage_of_pseudo_labels_is_named(whole, tmp_path):
    path = tmp_path / "p.tfrecord"
    pseudo_labels.write(path, labels(), ORIGIN)
    content = path.read_bytes()
    scattered = bytearray(content)
    scattered[50::500] = bytes(byte ^ 0x55 for byte in scattered[50::500])
    for damaged in (content[: len(content) // 2], bytes(scattered), content + b"x", content + content[:30]):
        path.write_bytes(damaged)
        refused(lambda: use(path, whole / "data"), f"{path} is damaged: delete it")


def rewritten(path, change):
    """The file after ``change`` of its examples, with checksums of TFRecords that are right."""
    examples = [tf.train.Example.FromString(x) for x in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in change(examples):
            writer.write(example.SerializeToString())


def set_feature(number, key, value):
    def change(examples):
        examples[number].features.feature[key].Clear()
        if value is None:
            del examples[number].features.feature[key]
        else:
            examples[number].features.feature[key].bytes_list.value.append(value)
        return examples

    return change


def of(**values):
    return json.dumps({**ORIGIN, **values}).encode()


LABEL_CHANGES = {
    "label that was not written": (set_feature(2, "label", picture(18, 32, "L")), "the checksum of record 2 differs"),
    "name that was not written": (set_feature(2, "name", b"00009"), "the checksum of record 2 differs"),
    "no digest": (set_feature(2, "sha256", None), "the checksum of record 2 differs"),
    "format of a later version": (set_feature(0, "format", b"3"), "format '3' is unknown to this version"),
    "an image twice": (lambda examples: [*examples, examples[1]], "record 7 is no label of an image of its own"),
    "no name": (set_feature(2, "name", b""), "record 2 is no label of an image of its own"),
    "no label": (set_feature(2, "label", None), "is no file of pseudo labels"),
    "origin that is no JSON": (set_feature(0, "provenance", b"{"), "does not say what its labels are"),
    "origin that is a list": (set_feature(0, "provenance", b"[]"), "must be"),
    "origin with NaN": (set_feature(0, "provenance", b'{"teacher_step": NaN}'), "does not say"),
    "origin of depth": (set_feature(0, "provenance", b"[" * 10**5), "does not say"),
    "step in text": (set_feature(0, "provenance", of(teacher_step="7")), "teacher_step='7'"),
    "unknown field": (set_feature(0, "provenance", of(evil=1)), "evil is unknown"),
    "teacher": (set_feature(0, "provenance", of(teacher="a")), "teacher='a'"),
    "size": (set_feature(0, "provenance", of(label_size=[64, 36])), "is 32x18, not 64x36"),
    "fewer classes": (set_feature(0, "provenance", of(classes=["road", "sky"])), "of 2 classes"),
}


@pytest.mark.parametrize("name", LABEL_CHANGES)
def test_pseudo_labels_that_cannot_be_are_refused(name, whole, tmp_path):
    change, message = LABEL_CHANGES[name]
    path = tmp_path / "p.tfrecord"
    pseudo_labels.write(path, labels(), ORIGIN)
    rewritten(path, change)
    refused(lambda: use(path, whole / "data"), message, str(path), "delete it")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((18, 32), 19, np.uint8), "holds 19, of 19 classes"),
        (np.full((18, 32), 254, np.uint8), "holds 254, of 19 classes"),
        (np.zeros((36, 64), np.uint8), "is 64x36, not 32x18"),
        (np.zeros((18, 32, 3), np.uint8), "is no map of classes (RGB)"),
    ],
)
def test_labels_of_no_class_are_refused(label, message, whole, tmp_path):
    path = tmp_path / "p.tfrecord"
    pseudo_labels.write(path, [*labels(5), ("00006", label)], ORIGIN)
    refused(lambda: use(path, whole / "data"), message, f"{path}: the label of 00006")


def test_pseudo_labels_of_earlier_versions_are_read(whole):
    """Files that versions before wrote: with and without what their labels were made of."""
    for name, origin in (("pseudo_labels_dbe317b.tfrecord", ORIGIN), ("pseudo_labels_52b5984.tfrecord", {})):
        assert pseudo_labels.provenance(BEFORE / name) == origin
        batch = use(BEFORE / name, whole / "data")
        assert sorted(batch["label"][:, 0, 0]) == [1, 2, 3, 4, 5, 6]
