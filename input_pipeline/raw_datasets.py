"""Raw data sets as they lie on disk: which files belong to a split, and how each is read and checked.

A new layout is one function that lists its splits, one entry in ``DATASETS``, and its label ids in
``fada_jax/classes.py``; a user's own data come as ``folder`` with a class map. Only 16-bit labels need TensorFlow.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from fada_jax import handovers, images
from fada_jax.classes import LabelEncoding
from fada_jax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
CITIES = ("Rome", "Rio", "Tokyo", "Taipei")


def _dusk(first: int, last: int) -> tuple[str, ...]:
    """Names of CamVid's dusk frames, the sequence 0001TP, which is labelled at every 30th frame."""
    return tuple(f"0001TP_{number:06d}" for number in range(first, last + 1, 30))


# CamVid by day: split -> folder, and how the names of its sequences begin.
CAMVID_DAY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "train_day": ("train", ("0006R0_f", "0016E5_")),
    "val_day": ("val", ("0016E5_",)),
    "test_day": ("test", ("Seq05VD_f",)),
}
# CamVid at dusk: split -> folder, and its frames one by one, because scores of other frames are not comparable. What is
# reported is test_dusk. final_dusk, the other half of the public test frames, is for a last look when development is
# over: no setting is chosen and no number is reported on it before.
CAMVID_DUSK: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "train_dusk": ("train", _dusk(6690, 8520)),
    "test_dusk": ("test", _dusk(8550, 9450)),
    "final_dusk": ("test", _dusk(9480, 10380)),
}


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One image: its name in the records, its file, and the file of its label (None: unlabelled)."""

    name: str
    image: Path
    label: Path | None


@dataclasses.dataclass(frozen=True)
class Record:
    """What is stored of one example.

    Attributes:
      name: file stem, unique in its split.
      image: the file's bytes where it is a JPEG, else ``encode``'s.
      label: raw ids by ``encode``, empty where unlabelled.
      height, width: of the stored image.
      counts: pixels per raw id, int64 [256]; zeros where unlabelled.
    """

    name: str
    image: bytes
    label: bytes
    height: int
    width: int
    counts: np.ndarray


Splits = Mapping[str, list[RawExample]]


def _folder(folder: Path, what: str) -> Path:
    """``folder``, which must be there.

    Raises:
      UserError: it is not.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: {what}")
    return folder


def _files(folder: Path, what: str, recursive: bool = False) -> list[Path]:
    """Image files of a folder in name order.

    Raises:
      UserError: the folder is not there, or holds none.
    """
    _folder(folder, what)
    files = sorted(
        p for p in (folder.rglob("*") if recursive else folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES
    )
    if not files:
        raise UserError(f"{folder} holds no images: {what}")
    for path in files:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{folder} holds a file whose name is not UTF-8, {path.name!a}: rename it") from error
    return files


def gta5(root: Path, city: str = "") -> Splits:
    """``images/00001.png`` with ``labels/00001.png``."""
    what = "--raw_dir must be the folder that holds images/ and labels/"
    files, labels = _files(root / "images", what), _folder(root / "labels", what)
    return {"train": [RawExample(p.stem, p, labels / p.name) for p in files]}


def synthia(root: Path, city: str = "") -> Splits:
    """SYNTHIA-RAND-CITYSCAPES: ``RAND_CITYSCAPES/RGB`` with 16-bit ``RAND_CITYSCAPES/GT/LABELS``."""
    base = root / "RAND_CITYSCAPES"
    what = "--raw_dir must be the folder that holds RAND_CITYSCAPES/ with RGB/ and GT/LABELS/"
    files, labels = _files(base / "RGB", what), _folder(base / "GT" / "LABELS", what)
    return {"train": [RawExample(p.stem, p, labels / p.name) for p in files]}


def cityscapes(root: Path, city: str = "") -> Splits:
    """``leftImg8bit/<split>/<city>`` with ``gtFine/<split>/<city>``; the test split's dummy labels are left out."""
    splits, what = {}, "--raw_dir must be the folder that holds leftImg8bit/ and gtFine/"
    for split in ("train", "val", "test"):
        folder = root / "leftImg8bit" / split
        if split == "test" and not folder.is_dir():
            continue
        examples = []
        if split != "test":
            _folder(root / "gtFine" / split, what)
        for path in _files(folder, what, recursive=True):
            stem = path.stem.removesuffix("_leftImg8bit")
            label = root / "gtFine" / split / path.parent.name / f"{stem}_gtFine_labelIds.png"
            examples.append(RawExample(stem, path, None if split == "test" else label))
        splits[split] = examples
    return splits


def crosscity(root: Path, city: str = "") -> Splits:
    """``<City>/Images/Train`` without and ``<City>/Images/Test`` with ``<City>/Labels/Test/*_eval.png``."""
    what = f"--raw_dir must be the folder that holds {city}/"
    train = [RawExample(p.stem, p, None) for p in _files(root / city / "Images" / "Train", what)]
    labels = _folder(root / city / "Labels" / "Test", what)
    test = [RawExample(p.stem, p, labels / f"{p.stem}_eval.png") for p in _files(root / city / "Images" / "Test", what)]
    return {"train": train, "test": test}


def camvid(root: Path, city: str = "") -> Splits:
    """The SegNet tutorial's folders, split by time of day (``CAMVID_DAY``, ``CAMVID_DUSK``).

    Frames that a copy lacks are left out; a file that is no frame of these splits is refused.
    """
    splits: dict[str, list[RawExample]] = {split: [] for split in (*CAMVID_DAY, *CAMVID_DUSK)}
    what = "--raw_dir must be the folder that holds train/, trainannot/, val/, ..."
    for folder in ("train", "val", "test"):
        _folder(root / f"{folder}annot", what)
        for path in _files(root / folder, what):
            split = _camvid_split(folder, path.stem)
            if split is None:
                raise UserError(f"{path} is no frame of {folder}/ in CamVid's SegNet split: take it out of the folder")
            splits[split].append(RawExample(path.stem, path, root / f"{folder}annot" / path.name))
    return splits


def _camvid_split(folder: str, name: str) -> str | None:
    """The split that a frame in a folder of CamVid belongs to; None for a frame that belongs nowhere."""
    for split, (where, beginnings) in CAMVID_DAY.items():
        if where == folder and name.startswith(beginnings):
            return split
    for split, (where, names) in CAMVID_DUSK.items():
        if where == folder and name in names:
            return split
    return None


def folder(root: Path, city: str = "") -> Splits:
    """A user's own data: ``<split>/images/*`` with ``<split>/labels/*.png`` of the same stems, or unlabelled splits."""
    what = "--raw_dir must be the folder that holds <split>/images/ and, where labelled, <split>/labels/"
    splits = {}
    for split in sorted(p.name for p in root.iterdir() if (p / "images").is_dir()):
        labels = root / split / "labels"
        files = _files(root / split / "images", what)
        stems = collections.Counter(p.stem for p in files)
        for stem in (stem for stem, count in stems.items() if count > 1):
            raise UserError(
                f"{root / split / 'images'} holds several images called {stem!r}: one label cannot serve both"
            )
        splits[split] = [RawExample(p.stem, p, labels / f"{p.stem}.png" if labels.is_dir() else None) for p in files]
    if not splits:
        raise UserError(f"{root} holds no <split>/images/: {what}")
    return splits


# Data set -> function that lists its splits, given its root folder (and its city).
DATASETS: Mapping[str, Callable[[Path, str], Splits]] = {
    "gta5": gta5,
    "synthia": synthia,
    "cityscapes": cityscapes,
    "crosscity": crosscity,
    "camvid": camvid,
    "folder": folder,
}


def _png16_first_channel(data: bytes, path: Path) -> np.ndarray:
    """First channel of a 16-bit PNG, uint16 [H, W]; Pillow reads colour PNGs as 8 bits only."""
    width, height = struct.unpack(">II", data[16:24])
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"{path} is {width}x{height}: more than {Image.MAX_IMAGE_PIXELS} pixels are not read")
    tf = _tensorflow()
    try:
        return tf.io.decode_png(data, dtype=tf.uint16).numpy()[:, :, 0]
    except tf.errors.InvalidArgumentError as error:  # Its text names TensorFlow's internals.
        raise UserError(f"{path} is not a readable 16-bit PNG") from error


@functools.cache
def _tensorflow() -> Any:
    """TensorFlow on the CPU.

    Imported at the first 16-bit label and not with this module: worker processes that read 8-bit labels start without
    it, in a fraction of the time and of the memory.
    """
    import tensorflow as tf

    # JAX owns the accelerators. Where TensorFlow has begun to compute, its importer has decided already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return tf


def read_label(path: Path) -> np.ndarray:
    """Raw ids of a label file, uint8 [H, W]: palette and grey PNGs by value, 16-bit ones by their first channel.

    Raises:
      UserError: missing, unreadable, a colour picture, or ids beyond 255.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: every image needs its label")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    is_png = data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25
    if is_png:
        handovers.note("raw label", bits=data[24], colour=data[25])
    if is_png and data[24] == 16:
        ids = _png16_first_channel(data, path)
        if ids.max(initial=0) > 255:
            raise UserError(f"{path} holds the id {ids.max()}, beyond 255")
        return ids.astype(np.uint8)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "P"):
                raise UserError(f"{path} is a colour picture ({image.mode}), not a map of class ids")
            return np.array(image)
    except UserError:
        raise
    except Exception as error:  # As for images.
        raise UserError(f"{path} is not a readable label image ({images.describe(error)})") from error


def encode(image: Image.Image) -> bytes:
    """A grey or RGB image without loss: a TIFF of zstd, which decodes five times as fast as a PNG of the same size."""
    buffer = io.BytesIO()
    # Differences to the pixel on the left compress better than the pixels.
    image.save(buffer, "tiff", compression="zstd", tiffinfo={TiffImagePlugin.PREDICTOR: 2})
    return buffer.getvalue()


def read_record(
    dataset: str, encoding: LabelEncoding, example: RawExample, resize: tuple[int, int] | None = None
) -> Record:
    """Reads and checks one example.

    Args:
      dataset: its name, for errors.
      encoding: the label ids that it defines.
      example: its files.
      resize: (width, height) to store at: bicubic with antialiasing, labels nearest; None keeps the image's own size.

    Raises:
      UserError: naming the file that is missing, unreadable, of another size or with undefined ids.
    """
    try:
        data = example.image.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            # Others are stored as viewers show them.
            plain = image.mode in ("RGB", "L", "P") and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            kind, pixels = image.format if plain else "", images.to_rgb(image)
    except Exception as error:  # Pillow's decoders raise many types on damaged files.
        raise UserError(f"{example.image} is not a readable image ({images.describe(error)})") from error
    size, label, counts = pixels.size, None, np.zeros(256, np.int64)
    if example.label is not None:
        label = Image.fromarray(read_label(example.label))
        if label.size != size:
            raise UserError(
                f"{example.label} is {label.width}x{label.height}, its image {size[0]}x{size[1]}: "
                "leave it out with --on_error=skip"
            )
        counts = np.array(label.histogram(), np.int64)
        undefined = [i for i in np.flatnonzero(counts).tolist() if i not in encoding.defined]
        if undefined:
            raise UserError(f"{example.label} holds ids that {dataset} does not define: {undefined[:8]}")
    resized = resize is not None and size != resize
    if resized:
        pixels = pixels.resize(resize, Image.Resampling.BICUBIC)
    if resized or kind != "JPEG":
        data = encode(pixels)
    if resized and label is not None:
        label = label.resize(resize, Image.Resampling.NEAREST)
        counts = np.array(label.histogram(), np.int64)
    label_bytes = b"" if label is None else encode(label)
    handovers.note("stored", image=handovers.size(pixels), label=handovers.size(label) if label else "none")
    return Record(example.name, data, label_bytes, pixels.height, pixels.width, counts)
