"""How images are stored: what TensorFlow and tensorflow-datasets make of the records, beside our own readers."""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import raw_trees
import tensorflow as tf
import tensorflow_datasets as tfds
from commands import command, command_here, one_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fada_jax.classes import ENCODINGS, IGNORE, get_class_set, parse_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, layouts, raw_files, records, streams
from fada_jax.input_pipeline.stream import Stream

CLASS_MAP = {"name": "mine", "classes": [{"name": f"c{i}", "ids": [i]} for i in range(4)]}
# TensorFlow undoes a JPEG's cosine transform in coarser arithmetic than Pillow, unless asked.
JPEG_LEVELS = 20


def convert(root, encoding, **options):
    """A labelled split of JPEG and PNG files in turn and an unlabelled one; returns where they are stored."""
    raw_trees.folder(root / "raw", "train", 4, raw_trees.ids(3, 20, 30, 4))
    raw_trees.folder(root / "raw", "bare", 3, None)
    request = conversion.Conversion(
        "folder", root / "raw", name="own", class_map=CLASS_MAP, encoding=encoding, **options
    )
    return conversion.convert(request, root / "data")[0]


def ours(root, split):
    """Images and labels by our own reader; classes are raw ids here."""
    class_set, _ = parse_class_map(CLASS_MAP, root)
    return list(streams.examples(root / "data", Stream("own", split, (30, 20)), class_set, range(3)))


def plain_examples(shards):
    """Images and labels by tf.data and TensorFlow's decoders alone."""
    features = {key: tf.io.FixedLenFeature((), tf.string) for key in ("image", "label")}
    for record in tf.data.TFRecordDataset([str(shard) for shard in shards]):
        example = tf.io.parse_single_example(record, features)
        image = tf.io.decode_image(example["image"], channels=3)
        yield image.numpy(), tf.io.decode_png(example["label"], channels=1).numpy()


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_tensorflow_decodes_the_records_without_us(tmp_path, encoding):
    root = convert(tmp_path, encoding)
    for split in ("train", "bare"):
        expected, raw = ours(tmp_path, split), tmp_path / "raw" / split
        ready = tfds.builder_from_directory(root).as_dataset(split=split)
        by_tfds = [(example["image"].numpy(), example["label"].numpy()) for example in ready]
        by_tf = list(plain_examples(sorted(root.glob(f"own-{split}.tfrecord*"))))
        for i, (image, label) in enumerate(expected):
            is_png = (raw / "images" / f"street_{i}.png").is_file()
            for other_image, other_label in (by_tfds[i], by_tf[i]):
                difference = np.abs(other_image.astype(int) - image)
                assert difference.max() <= (0 if is_png and encoding == "png" else JPEG_LEVELS)
                assert difference.mean() < 3
                ids = np.full((20, 30), IGNORE) if label is None else label
                np.testing.assert_array_equal(other_label[..., 0], ids)
        assert (expected[0][1] is None) == (split == "bare")
    assert records.verify(root) == {"bare": 3, "train": 4}


def test_tensorflow_decodes_a_jpeg_as_pillow_does_if_asked(tmp_path):
    convert(tmp_path, "png")
    kept = records.open_split(tmp_path / "data", "own", "train").read(0)["image"]
    image = tf.io.decode_jpeg(kept, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(image, ours(tmp_path, "train")[0][0])


@pytest.mark.parametrize(
    ("encoding", "kinds"),
    [("png", ("JPEG", "PNG")), ("jpeg", ("JPEG", "JPEG")), ("tiff", ("JPEG", "TIFF"))],
)
def test_files_that_need_no_encoding_are_kept_byte_for_byte(tmp_path, encoding, kinds):
    convert(tmp_path, encoding)
    stored = records.open_split(tmp_path / "data", "own", "train")
    for i, kind in enumerate(kinds):
        image = stored.read(i)["image"]
        (file,) = (tmp_path / "raw" / "train" / "images").glob(f"street_{i}.*")
        assert Image.open(io.BytesIO(image)).format == kind
        assert (image == file.read_bytes()) == (file.suffix[1:].upper() in (kind, "JPG"))
        pixels = np.asarray(Image.open(file).convert("RGB"))
        lossless = file.suffix == ".jpg" or encoding != "jpeg"
        difference = np.abs(ours(tmp_path, "train")[i][0].astype(int) - pixels)
        assert difference.max() == 0 if lossless else 0 < difference.mean() < 3


def test_resized_images_are_encoded_anew(tmp_path):
    convert(tmp_path, "png", resize=(15, 10))
    stored = records.open_split(tmp_path / "data", "own", "train")
    for i, suffix in enumerate(("jpg", "png")):
        record = stored.read(i)
        raw = Image.open(tmp_path / "raw" / "train" / "images" / f"street_{i}.{suffix}")
        assert Image.open(io.BytesIO(record["image"])).format == "PNG" and record["size"] == (10, 15)
        found = tf.io.decode_png(record["image"]).numpy()
        np.testing.assert_array_equal(found, raw.resize((15, 10), Image.Resampling.BICUBIC))


def odd_images():
    """Pictures that decoders show in different ways, by name."""
    color, grey = Image.fromarray(raw_trees.picture(1, 12, 16)), Image.fromarray(raw_trees.ids(1, 12, 16, 30))
    alpha, turned = color.copy(), Image.Exif()
    alpha.putalpha(grey)
    turned[0x0112] = 6
    grey16 = Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) << 8)
    return {
        "alpha.png": (alpha, {}),
        "grey.png": (grey, {}),
        "grey16.png": (grey16, {}),
        "palette.png": (color.quantize(9), {}),
        "palette_with_hole.png": (color.quantize(9), {"transparency": 3}),
        "rgb_with_hole.png": (color, {"transparency": (1, 2, 3)}),
        "turned.png": (color, {"exif": turned}),
        "grey.jpg": (grey, {}),
        "cmyk.jpg": (color.convert("CMYK"), {}),
        "turned.jpg": (color, {"exif": turned}),
    }


@pytest.mark.parametrize("name", [*odd_images(), "rgb16.png"])
def test_tensorflow_shows_odd_files_as_viewers_do(tmp_path, name):
    path = tmp_path / name
    if name == "rgb16.png":
        path.write_bytes(raw_trees.png16(np.random.default_rng(0).integers(0, 65536, (12, 16, 3), dtype=np.uint16)))
    else:
        image, options = odd_images()[name]
        image.save(path, **options)
    example = layouts.RawExample("x", path, None)
    records_by = {
        kind: raw_files.read_record("gta5", ENCODINGS["gta5"], example, None, kind) for kind in ("png", "tiff")
    }
    image = tf.io.decode_image(records_by["png"].image, channels=3).numpy()
    expected = np.asarray(Image.open(io.BytesIO(records_by["tiff"].image)).convert("RGB"))
    assert image.shape == (*expected.shape[:2], 3) == (records_by["png"].height, records_by["png"].width, 3)
    assert np.abs(image.astype(int) - expected).max() <= (JPEG_LEVELS if name == "grey.jpg" else 0)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_is_kept_of_damaged_files_can_be_decoded(data):
    with io.BytesIO() as buffer, tempfile.TemporaryDirectory() as folder:
        Image.fromarray(raw_trees.picture(1, 12, 16)).save(buffer, "png")
        content, path = bytearray(buffer.getvalue()), Path(folder) / "x.png"
        for _ in range(data.draw(st.integers(1, 2))):
            # Most damage that Pillow lets pass is near the end.
            place = len(content) - data.draw(
                st.one_of(st.integers(1, min(20, len(content))), st.integers(1, len(content)))
            )
            if data.draw(st.booleans()):
                content[place] ^= data.draw(st.integers(1, 255))
            else:
                del content[place:]
            assume(content)
        path.write_bytes(content)
        try:
            record = raw_files.read_record("gta5", ENCODINGS["gta5"], layouts.RawExample("x", path, None))
        except UserError:
            return
        expected = np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB"))
        np.testing.assert_array_equal(tf.io.decode_image(record.image, channels=3), expected)


def test_records_of_the_version_before_are_read(tmp_path):
    root = convert(tmp_path, "tiff")
    before = ours(tmp_path, "train")
    note = json.loads((root / "conversion.json").read_text())
    assert note.pop("encoding") == "tiff" and note.pop("format") == 2 and list(note.pop("raw")) == ["bare", "train"]
    (root / "conversion.json").write_text(json.dumps(note))
    assert records.description(root).encoding == "tiff" and records.verify(root) == {"bare": 3, "train": 4}
    assert records.open_split(tmp_path / "data", "own", "bare").read(0)["label"] == b""
    for (image, label), (same_image, same_label) in zip(before, ours(tmp_path, "train"), strict=True):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(label, same_label)


def test_every_lossless_encoding_trains_on_the_same_pixels(tmp_path):
    raw, batches = raw_trees.gta5(tmp_path / "raw", 5), {}
    for encoding in ("png", "tiff"):
        conversion.convert(conversion.Conversion("gta5", raw, encoding=encoding), tmp_path / encoding)
        stream = Stream("gta5", "train", (48, 30), sampling="balanced")
        options = {"class_set": get_class_set("cityscapes19"), "batch_size": 5, "seed": 0}
        batches[encoding] = next(streams.train_batches(tmp_path / encoding, stream, **options))
    for key, values in batches["png"].items():
        np.testing.assert_array_equal(values, batches["tiff"][key])


def test_the_command_says_what_is_lost_and_tells_another_encoding(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw", 2)
    arguments = ("scripts/convert_dataset.py", "--workers=1", "--dataset=gta5", f"--raw_dir={raw}")
    arguments = (*arguments, f"--data_dir={tmp_path}/data")
    output = command(*arguments, "--encoding=jpeg", "--verify")
    assert "all other images LOSE detail, as JPEGs of quality 95" in output and "verified (train 2)" in output
    # Without the flag a stored data set is taken as it is.
    assert command_here(*arguments)[0] == 0
    status, _, errors = command_here(*arguments, "--encoding=png")
    assert status == 1 and "holds gta5 as jpeg, not as png: --overwrite" in one_error(errors)
