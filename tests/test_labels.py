"""Raw labels are exact class ids or refused, whatever the file claims; raw files that are none are never opened."""

import io
import os
import socket
import struct

import numpy as np
import pytest
import raw_trees
from bad_files import huge_png
from PIL import Image
from raw_trees import chunk, grey_png

from fada_jax.classes import ENCODINGS, LabelEncoding
from fada_jax.errors import UserError
from fada_jax.input_pipeline import layouts, raw_files

ANY = LabelEncoding({1: "a"}, frozenset(range(256)))
ORIENTATIONS = range(1, 9)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ids(count, height=9, width=13):
    return np.random.default_rng(count).integers(0, count, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("color", [0, 3], ids=["grey", "palette"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_any_depth_are_read_by_value(bits, color, tmp_path):
    label, path = ids(min(2**bits, 85)), tmp_path / "x.png"
    path.write_bytes(grey_png(label, bits, color))
    np.testing.assert_array_equal(raw_files.read_label(path), label)
    # What a pixel looks like says nothing about its id.
    path.write_bytes(grey_png(label, bits, color, chunk(b"gAMA", struct.pack(">I", 45455))))
    np.testing.assert_array_equal(raw_files.read_label(path), label)


REFUSED = {
    "JPEG": (saved(Image.fromarray(ids(3)), "jpeg"), "it is no PNG"),
    "lossless WebP": (saved(Image.fromarray(ids(3)), "webp", lossless=True), "it is no PNG"),
    "GIF": (saved(Image.fromarray(ids(3)), "gif"), "it is no PNG"),
    "TIFF": (saved(Image.fromarray(ids(3)), "tiff"), "it is no PNG"),
    "nothing": (b"", "it is no PNG"),
    "text": (b"hello", "it is no PNG"),
    "grey with alpha": (saved(Image.fromarray(ids(3)).convert("LA"), "png"), "transparent pixels (LA)"),
    "colours with alpha": (saved(Image.fromarray(ids(3)).convert("RGBA"), "png"), "transparent pixels (RGBA)"),
    "colours": (saved(Image.fromarray(ids(3)).convert("RGB"), "png"), "is a colour picture (RGB)"),
    "16-bit colours": (raw_trees.png16(np.ones((4, 5, 3), np.uint16)), "is a colour picture (RGB)"),
    "16-bit grey with alpha": (raw_trees.png16(np.ones((4, 5, 2), np.uint16)), "transparent pixels (LA)"),
    "animation": (
        saved(Image.fromarray(ids(3)), "png", save_all=True, append_images=[Image.fromarray(ids(2))]), "an animation",
    ),
    "cut short": (grey_png(ids(3), 8)[:-20], "it is cut short"),
    "fewer rows than it says": (
        grey_png(ids(3), 8).replace(struct.pack(">II", 13, 9), struct.pack(">II", 13, 90)), "'IHDR' is damaged",
    ),
    "depth that there is not": (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 3, 0, 0, 0, 0)) + chunk(b"IEND", b""),
        "its header says 3x3 pixels of 3 bits",
    ),
    "no width": (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 3, 8, 0, 0, 0, 0)) + chunk(b"IEND", b""),
        "its header says 0x3",
    ),
    "no pixels": (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 8, 0, 0, 0, 0)) + chunk(b"IEND", b""),
        "not a readable label image",
    ),
    "no header": (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), "does not begin with a header"),
    "more pixels than memory": (huge_png(8, 0), "50000x50000, which exceeds limits"),
    "more 16-bit pixels than memory": (huge_png(16, 0), "50000x50000, which exceeds limits"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_map_of_ids_is_refused(name, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(REFUSED[name][0])
    with pytest.raises(UserError) as error:
        raw_files.read_label(path)
    assert str(error.value).startswith(str(path)) and REFUSED[name][1] in str(error.value)
    assert "\n" not in str(error.value)


def test_each_flipped_bit_of_a_label_is_noticed(tmp_path):
    content, path = grey_png(ids(5, 20, 30), 8), tmp_path / "x.png"
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"x.png is not a readable label image"):
            raw_files.read_label(path)


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


# Where viewers find the first pixel of each orientation's row and column: EXIF 2.3, section 4.6.4.
SHOWN = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_image_and_label_are_turned_alike(orientation, bits, tmp_path):
    pixels, label = raw_trees.picture(1, 12, 16), ids(200, 12, 16)
    image_path, label_path = tmp_path / "x.png", tmp_path / "label.png"
    Image.fromarray(pixels).save(image_path, **oriented(orientation))
    stored = Image.fromarray(label if bits == 8 else label.astype(np.uint16))
    stored.save(label_path, **oriented(orientation))
    record = raw_files.read_record("x", ANY, layouts.RawExample("x", image_path, label_path))
    np.testing.assert_array_equal(Image.open(io.BytesIO(record.image)), SHOWN[orientation](pixels))
    np.testing.assert_array_equal(Image.open(io.BytesIO(record.label)), SHOWN[orientation](label))
    assert (record.height, record.width) == SHOWN[orientation](label).shape
    for other in set(ORIENTATIONS) - {orientation}:
        stored.save(label_path, **oriented(other))
        with pytest.raises(UserError, match=f"orientation {other} and {orientation}") as error:
            raw_files.read_record("x", ANY, layouts.RawExample("x", image_path, label_path))
        assert str(image_path) in str(error.value) and str(label_path) in str(error.value)


def test_an_orientation_that_there_is_not_turns_nothing(tmp_path):
    paths = tmp_path / "x.png", tmp_path / "label.png"
    for path, orientation in zip(paths, (0, 9), strict=True):
        Image.fromarray(ids(4)).save(path, **oriented(orientation))
    record = raw_files.read_record("x", ANY, layouts.RawExample("x", *paths))
    np.testing.assert_array_equal(Image.open(io.BytesIO(record.label)), ids(4))


def special_file(path, kind):
    """Makes what must not be opened; returns what keeps it."""
    if kind == "socket":
        # Its path may have 100 bytes.
        keeper, here = socket.socket(socket.AF_UNIX), os.getcwd()
        os.chdir(path.parent)
        keeper.bind(path.name)
        os.chdir(here)
        return keeper
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to(path.with_name("nothing"))
    return None


@pytest.mark.parametrize("which", ["images", "labels"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is a named pipe, not a file"),
        ("socket", "is a socket, not a file"),
        ("device", "is a device, not a file"),
        ("folder", "Is a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("link to nothing", "cannot be read"),
    ],
)
def test_what_is_no_file_is_refused_before_it_is_opened(kind, message, which, tmp_path):
    root = raw_trees.gta5(tmp_path, 2)
    path = root / which / "00002.png"
    path.unlink()
    keeper = special_file(path, kind)
    good, bad = layouts.list_splits("gta5", root)["train"]
    assert raw_files.read_record("gta5", ENCODINGS["gta5"], good).name == "00001"
    with pytest.raises(UserError) as error:
        raw_files.read_record("gta5", ENCODINGS["gta5"], bad)
    assert str(error.value).startswith(f"{path} is not a readable") and message in str(error.value)
    del keeper


IMAGES = {
    "PostScript, a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known"),
    "flipped bit": (grey_png(ids(3), 8)[:60] + b"\x55" + grey_png(ids(3), 8)[61:], "is damaged"),
    "without an end": (grey_png(ids(3), 8)[:-12], "it is cut short"),
    "larger than memory": (huge_png(), "exceeds limits"),
    "JPEG of 60000x60000": (
        saved(Image.fromarray(ids(3)), "jpeg").replace(struct.pack(">HH", 9, 13), b"\xea\x60\xea\x60"), "exceeds limit",
    ),
    "32-bit": (saved(Image.fromarray(np.ones((4, 4), np.float32)), "tiff"), "save it with 8 or 16 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_bad_images_are_named(name, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(IMAGES[name][0])
    with pytest.raises(UserError) as error:
        raw_files.read_record("x", ANY, layouts.RawExample("x", path, None))
    assert str(error.value).startswith(str(path)) and IMAGES[name][1] in str(error.value)


def test_a_picture_may_be_of_another_format_than_it_is_called(tmp_path):
    pixels = raw_trees.picture(1, 12, 16)
    for kind in ("bmp", "tiff", "ppm", "webp", "mpo"):
        path = tmp_path / f"{kind}.png"
        options = {"webp": {"lossless": True}, "mpo": {"save_all": True, "quality": 100, "subsampling": 0}}.get(
            kind, {}
        )
        Image.fromarray(pixels).save(path, kind, **options)
        record = raw_files.read_record("x", ANY, layouts.RawExample("x", path, None))
        stored = np.asarray(Image.open(io.BytesIO(record.image)), int)
        assert np.abs(stored - pixels).max() <= (20 if kind == "mpo" else 0)


def test_hidden_files_are_no_images(tmp_path):
    root = raw_trees.gta5(tmp_path, 2)
    for name in (".DS_Store", "._00001.png", ".00001.png.aB3x", "Thumbs.db", "notes.txt"):
        (root / "images" / name).write_bytes(b"x")
    assert [example.name for example in layouts.list_splits("gta5", root)["train"]] == ["00001", "00002"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a\nb.png",), r"line break or the like in its name, 'a\\nb.png'"),
        (("a\x1b[31m.png",), "line break or the like"),
        (("a\u2028b.png",), "line break or the like"),
        (("a.png", "a.jpg"), "several images called 'a'"),
    ],
)
def test_names_that_cannot_be_are_refused(names, message, tmp_path):
    root = raw_trees.gta5(tmp_path, 1)
    for name in names:
        (root / "images" / name).write_bytes((root / "images" / "00001.png").read_bytes())
    with pytest.raises(UserError, match=message) as error:
        layouts.list_splits("gta5", root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["all", "a b", "train.v2", "-", "a" * 101])
def test_splits_that_cannot_be_are_refused(split, tmp_path):
    raw_trees.folder(tmp_path, split, 1, None)
    with pytest.raises(UserError) as error:
        layouts.list_splits("folder", tmp_path)
    assert f"{tmp_path / split}: " in str(error.value)


def test_other_files_have_another_fingerprint(tmp_path):
    root = raw_trees.gta5(tmp_path, 3)

    def fingerprint():
        return layouts.fingerprint(layouts.list_splits("gta5", root)["train"])

    seen = {fingerprint()}
    assert fingerprint() in seen
    label = root / "labels" / "00002.png"
    changes = [
        lambda: label.write_bytes(label.read_bytes() + b"\0"),
        lambda: label.unlink(),
        lambda: (root / "images" / "00003.png").rename(root / "images" / "00004.png"),
        lambda: (root / "images" / "00004.png").unlink(),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        seen.add(fingerprint())
        assert len(seen) == number
