"""Raw image and label files: each example is read, checked and encoded as it will be stored."""

from __future__ import annotations

import dataclasses
import io
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from fada_jax import handovers, images
from fada_jax.classes import IGNORE, LabelEncoding
from fada_jax.errors import UserError
from fada_jax.input_pipeline import load_tensorflow
from fada_jax.input_pipeline.encoding import encode_image, encode_label
from fada_jax.input_pipeline.layouts import RawExample


@dataclasses.dataclass(frozen=True)
class Record:
    """What is stored of one example.

    Attributes:
      name: file stem, unique in its split.
      image: the file's bytes where ``read_record`` keeps them, else ``encode_image``'s.
      label: raw ids by ``encode_label``; where unlabelled ``IGNORE`` in all pixels, or for 'tiff' empty.
      height, width: of the stored image.
      counts: pixels per raw id, int64 [256]; zeros where unlabelled.
    """

    name: str
    image: bytes
    label: bytes
    height: int
    width: int
    counts: np.ndarray


def _png16_first_channel(data: bytes, path: Path) -> np.ndarray:
    """First channel of a 16-bit PNG, uint16 [H, W]; Pillow reads colour PNGs as 8 bits only."""
    width, height = struct.unpack(">II", data[16:24])
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"{path} is {width}x{height}: more than {Image.MAX_IMAGE_PIXELS} pixels are not read")
    # Not at import: processes that read 8-bit labels start without it, in a fraction of the time and of the memory.
    tf = load_tensorflow()
    try:
        return tf.io.decode_png(data, dtype=tf.uint16).numpy()[:, :, 0]
    except tf.errors.InvalidArgumentError as error:  # Its text names TensorFlow's internals.
        raise UserError(f"{path} is not a readable 16-bit PNG") from error


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


def _may_keep(image: Image.Image, data: bytes, encoding: str) -> bool:
    """Whether every decoder shows a file as viewers do, so that its own bytes can be stored."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return False
    if encoding == "png" and image.format == "PNG":
        plain = image.mode in ("RGB", "L") and data[24] == 8 and "transparency" not in image.info
        return plain and _is_intact_png(data)
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def _is_intact_png(data: bytes) -> bool:
    """Whether all parts of a PNG are whole: Pillow shows some files that other decoders refuse."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
    except Exception:  # As for images.
        return False
    return data.endswith(b"\0\0\0\0IEND\xaeB`\x82")  # Which ``verify`` does not look at.


def _checked_label(dataset: str, ids: LabelEncoding, path: Path, size: tuple[int, int]) -> Image.Image:
    """The label of an image of ``size``; unsized and undefined ids are refused."""
    label = Image.fromarray(read_label(path))
    if label.size != size:
        raise UserError(
            f"{path} is {label.width}x{label.height}, its image {size[0]}x{size[1]}: leave it out with --on_error=skip"
        )
    undefined = [i for i, count in enumerate(label.histogram()) if count and i not in ids.defined]
    if undefined:
        raise UserError(f"{path} holds ids that {dataset} does not define: {undefined[:8]}")
    return label


def read_record(
    dataset: str,
    ids: LabelEncoding,
    example: RawExample,
    resize: tuple[int, int] | None = None,
    encoding: str = "png",
) -> Record:
    """Reads and checks one example.

    Args:
      dataset: its name, for errors.
      ids: the label ids that it defines.
      example: its files.
      resize: (width, height) to store at: bicubic with antialiasing, labels nearest; None keeps the image's own size.
      encoding: one of ``encoding.ENCODINGS``. A JPEG file is kept byte for byte, and for 'png' so is an 8-bit grey or
        RGB PNG, unless it is resized.

    Raises:
      UserError: naming the file that is missing, unreadable, of another size or with undefined ids.
    """
    try:
        data = example.image.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            keep, pixels = _may_keep(image, data, encoding), images.to_rgb(image)
    except Exception as error:  # Pillow's decoders raise many types on damaged files.
        raise UserError(f"{example.image} is not a readable image ({images.describe(error)})") from error
    label = _checked_label(dataset, ids, example.label, pixels.size) if example.label else None
    if resize is not None and pixels.size != resize:
        pixels, keep = pixels.resize(resize, Image.Resampling.BICUBIC), False
        label = label and label.resize(resize, Image.Resampling.NEAREST)
    counts = np.array(label.histogram() if label else [0] * 256, np.int64)
    handovers.note("stored", image=handovers.size(pixels), label=handovers.size(label) if label else "none")
    if label is None and encoding != "tiff":  # Decoders refuse an empty file.
        label = Image.new("L", pixels.size, IGNORE)
    stored = data if keep else encode_image(pixels, encoding)
    stored_label = encode_label(label, encoding) if label else b""
    return Record(example.name, stored, stored_label, pixels.height, pixels.width, counts)
