"""Gives damaged files to the readers until time is up: each must be read or refused with one line, and run nothing.

  python tests/fuzz.py images --seconds=600     image and label readers
  python tests/fuzz.py weights --seconds=600    the importer of .pth and .safetensors
  python tests/fuzz.py checkpoints              likewise every format of tests/fuzz_formats.py

Hypothesis damages good files and files made to harm: bytes flipped, cut, copied, removed, and numbers set to extremes;
of a format whose structure is known also one field, array or record. An example that breaks a reader, or takes it
longer than half a minute, is made small and printed; every file that a run may have made or code that it may have
started is looked for.
"""

import argparse
import contextlib
import io
import logging
import pickle
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
import raw_trees
import safetensors.numpy
import torch
from bad_files import RunsCode
from fuzz_formats import FORMATS, copied, damaged_bytes
from hypothesis import strategies as st
from PIL import Image

from fada_jax import classes, convert_weights, images
from fada_jax.errors import UserError
from fada_jax.input_pipeline import layouts, raw_files
from fada_jax.interop import reading, torch_files, torch_tables
from fada_jax.models import ModelSpec


def image_files():
    """Good images and labels of every kind, by suffix."""
    color = Image.fromarray(raw_trees.picture(1, 12, 16))
    label = Image.fromarray(raw_trees.ids(1, 12, 16, 30))
    palette = label.copy()
    palette.putpalette(bytes(range(256)) * 3)
    alpha = color.copy()
    alpha.putalpha(label)
    kinds = [
        (color, "png"), (color, "jpeg"), (color, "bmp"), (color, "gif"), (color, "tiff"), (color, "webp"),
        (color.convert("CMYK"), "jpeg"), (alpha, "png"), (label, "png"), (palette, "png"), (label, "tiff"),
        (Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16)), "png"),
    ]  # fmt: skip
    files = []
    for image, kind in kinds:
        buffer = io.BytesIO()
        image.save(buffer, kind)
        files.append((f".{kind}", buffer.getvalue()))
    return [*files, (".png", raw_trees.png16(np.full((12, 16, 3), 7, np.uint16)))]


def weight_files(canary):
    """A small model as users bring it, and pickles with code in them, by suffix."""
    released = {"iteration": 3}
    for entry in torch_tables.generator_table(SPEC):
        released.setdefault(entry.section, {})[entry.key] = torch.ones(entry.shape)
    state = {key.removeprefix("backbone."): value for key, value in released["feature_extractor"].items()}
    files = []
    for contents in (state, released, RunsCode(canary), {"state_dict": RunsCode(canary)}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(contents, buffer, _use_new_zipfile_serialization=zipped)
            files.append((".pth", buffer.getvalue()))
    files.append((".pth", pickle.dumps(RunsCode(canary), protocol=2)))
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(RunsCode(canary), protocol=2))
            archive.writestr("archive/version", "3")
        files.append((".pth", buffer.getvalue()))
    sections = ("feature_extractor", "classifier")
    arrays = {f"{name}.{key}": value.numpy() for name in sections for key, value in released[name].items()}
    return [*files, (".safetensors", safetensors.numpy.save(arrays))]


# Seconds of computing that a reader may take.
PATIENCE = 30
SPEC = ModelSpec("resnet18", 19, "frozen", (1, 1, 1, 1), (4, 4, 4, 4), 4, True, 8, (1,))


@st.composite
def damaged(draw, files):
    """A file of ``files`` after one to six changes."""
    suffix, content = draw(st.sampled_from(files))
    return suffix, draw(damaged_bytes(content))


def read_images(path):
    """What prediction and conversion do with a file."""
    example = layouts.RawExample("x", path, None)
    for read in (
        lambda: images.read_image(path),
        lambda: raw_files.read_label(path),
        lambda: raw_files.read_record("gta5", classes.ENCODINGS["gta5"], example),
    ):
        _refuses_in_one_line(read)


def read_weights(path):
    """What the import does with a file before it initialises anything."""

    def read():
        file = torch_files.read_file(path)
        torch_tables.is_released(file)
        torch_tables.import_generator(file, SPEC)

    def guess():
        convert_weights.released_config(reading.released_model(torch_files.read_file(path), str(path)))

    _refuses_in_one_line(read)
    _refuses_in_one_line(guess)


def _refuses_in_one_line(read):
    """Whether a reader refuses what it is given; anything but one line is an error."""
    try:
        read()
    except UserError as error:
        assert str(error) and "\n" not in str(error), repr(str(error))
        return True
    return False


def fuzz(what, seconds, seed=0):
    """Damages files for ``seconds``; returns how many were tried and how many of them were refused."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        return (fuzz_format if what in FORMATS else fuzz_bytes)(what, Path(folder), time.monotonic() + seconds, seed)


def rounds(strategy, attempt, end, seed):
    """Draws from ``strategy`` for ``attempt`` until ``end``, each round from a seed of its own."""
    options = hypothesis.settings(
        max_examples=500, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    with contextlib.suppress(KeyboardInterrupt):  # How ``attempt`` says that the time is up.
        while time.monotonic() < end:
            hypothesis.seed(seed)(options(hypothesis.given(strategy)(attempt)))()
            seed += 1


def fuzz_format(what, folder, end, seed):
    """``fuzz`` for a format that knows its structure."""
    form, tried, refused = FORMATS[what], 0, 0
    (folder / "original").mkdir()
    original = form.make(folder / "original")
    form.read(copied(original, fresh(folder)))

    def attempt(data):
        nonlocal tried, refused
        if time.monotonic() > end:
            raise KeyboardInterrupt
        path = copied(original, fresh(folder))
        form.change(data.draw, path)
        with patience():
            refused += _refuses_in_one_line(lambda: form.read(path))
        tried += 1

    rounds(st.data(), attempt, end, seed)
    return tried, refused


@contextlib.contextmanager
def patience():
    """Ends what computes for longer than ``PATIENCE``, or waits ten times as long, with an error."""

    def too_long(*_):
        raise TimeoutError("the reader does not end")

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, too_long)
    signal.alarm(10 * PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def fresh(folder):
    """An empty folder to work in."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def fuzz_bytes(what, folder, end, seed):
    """``fuzz`` for files whose bytes are damaged."""
    tried, canary, work = 0, folder / "canary", fresh(folder)
    files = image_files() if what == "images" else weight_files(str(canary))
    read = read_images if what == "images" else read_weights

    def attempt(file):
        nonlocal tried
        if time.monotonic() > end:
            raise KeyboardInterrupt
        suffix, content = file
        path = work / f"file{suffix}"
        path.write_bytes(content)
        read(path)
        assert not canary.exists(), "code in the file was run"
        assert [p.name for p in work.iterdir()] == [path.name], "the reader left files behind"
        path.unlink()
        tried += 1

    for file in files:
        attempt(file)
    rounds(damaged(files), attempt, end, seed)
    return tried, None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["images", "weights", *FORMATS])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tried, refused = fuzz(options.what, options.seconds, options.seed)
    outcome = "each read or refused in one line"
    if refused is not None:
        outcome = f"{tried - refused} read, {refused} refused, each in one line"
    print(f"{options.what}: {tried} damaged files in {options.seconds:.0f} s, {outcome}")


if __name__ == "__main__":
    sys.exit(main())
