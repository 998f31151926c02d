"""Files made to harm: claims of huge sizes, pickles with code in them, raw data with one mistake each."""

import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import raw_trees
from PIL import Image


def huge_png(bits=8, color=2, side=50_000):
    """A small file that claims ``side`` squared pixels."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, bits, color, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def make_bad_files(bad):
    bad.mkdir()
    for name, text in {
        "file": "x", "syntax.py": "def get_config(:\n", "broken.json": "{", "empty.png": "", "text.png": "hello",
        "empty.pth": "",
        "extra.py": "from configs import gta5_to_cityscapes as task\ndef get_config(arguments=''):\n"
                    "    config = task.get_config(arguments)\n    with config.unlocked():\n        config.nope = 1\n"
                    "    return config\n",
        "typed.py": "from configs import gta5_to_cityscapes as task\ndef get_config(arguments=''):\n"
                    "    config = task.get_config(arguments)\n    with config.ignore_type():\n"
                    "        config.log_every = '50'\n    return config\n",
        "twice.json": json.dumps({"classes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [1]}]}),
    }.items():  # fmt: skip
        (bad / name).write_text(text)
    picture = Image.fromarray(raw_trees.picture(0, 24, 48))
    picture.save(bad / "photo.png")
    (bad / "again").mkdir()
    picture.save(bad / "again" / "photo.png")
    (bad / "truncated.png").write_bytes((bad / "photo.png").read_bytes()[:-300])
    (bad / "folder.png").mkdir()
    (bad / "huge.png").write_bytes(huge_png())
    (bad / "loop.png").symlink_to(bad / "loop.png")
    Image.fromarray(np.ones((8, 8), np.float32)).save(bad / "float.tiff")
    with zipfile.ZipFile(bad / "zip.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"nothing")
    (bad / "code.pth").write_bytes(pickle.dumps(RunsCode(str(bad / "ran"))))
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (bad / "torn.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(7))
    (bad / "foreign.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    trees = (
        "missing",
        "values",
        "colours",
        "sizes",
        "huge_label",
        "huge_label16",
        "zero",
        "cut",
        "huge",
        "loop",
        "utf8",
    )
    for name in trees:
        root = raw_trees.gta5(bad / name, 3)
        image, label = (root / folder / "00003.png" for folder in ("images", "labels"))
        if name == "missing":
            label.unlink()
        elif name == "values":
            Image.fromarray(np.full((36, 64), 99, np.uint8)).save(label)
        elif name == "colours":
            Image.fromarray(raw_trees.picture(0, 36, 64)).save(label)
        elif name == "sizes":
            Image.fromarray(np.zeros((10, 10), np.uint8)).save(label)
        elif name in ("huge_label", "huge_label16"):
            label.write_bytes(huge_png(16 if "16" in name else 8, color=0))
        elif name == "zero":
            image.write_bytes(b"")
        elif name == "cut":
            image.write_bytes(image.read_bytes()[:-300])
        elif name == "huge":
            image.write_bytes(huge_png())
        elif name == "loop":
            image.unlink()
            image.symlink_to(image)
        else:
            os.rename(image, os.fsencode(image.parent) + b"/\xff\xfe.png")


class RunsCode:
    """A pickle of it makes a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)
