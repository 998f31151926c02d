"""Raw image and label files: each example is read, checked and encoded as it will be stored."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from fada_jax import files, handovers, images
from fada_jax.classes import IGNORE, LabelEncoding
from fada_jax.errors import UserError
from fada_jax.input_pipeline import load_tensorflow, png
from fada_jax.input_pipeline.encoding import encode_image, encode_label
from fada_jax.input_pipeline.layouts import RawExample

# Pillow knows formats that run programs or ask for any memory; raw data have these.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# EXIF orientation -> how viewers turn the picture.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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


def read_label(path: Path, dataset: str = "") -> np.ndarray:
    """Raw ids of a label file as they lie in it, uint8 [H, W]: a palette's by index, grey ones by value.

    Args:
      path: of a PNG, the one format here that loses nothing.
      dataset: SYNTHIA's labels hold their ids in the first channel of a 16-bit RGB picture, and no other's.

    Raises:
      UserError: missing, unreadable, no PNG, a colour picture, with alpha, animated, too large, or ids beyond 255.
    """
    return np.asarray(_label(path, dataset)[0])


def _label(path: Path, dataset: str) -> tuple[Image.Image, int]:
    """``read_label`` as a grey picture, and how its EXIF tag has viewers turn it."""
    if not files.exists(path):
        raise UserError(f"{path} is missing: every image needs its label")
    data = _bytes(path, "label image")
    try:
        header = png.read_header(data)
    except ValueError as error:
        raise UserError(
            f"{path} is not a readable label image ({error}): labels are PNGs, which lose nothing"
        ) from error
    handovers.note("raw label", bits=header.bits, colour=header.color)
    _check_label_kind(path, dataset, header)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            turned = _orientation(image)
            ids = _first_channel(data) if header.bits == 16 else _ids(image, header.bits)
    except images.DECODER_ERRORS as error:
        raise UserError(f"{path} is not a readable label image ({images.describe(error)})") from error
    if ids.max(initial=0) > 255:
        raise UserError(f"{path} holds the id {ids.max()}, beyond 255")
    return Image.fromarray(ids.astype(np.uint8)), turned


def _check_label_kind(path: Path, dataset: str, header: png.Header) -> None:
    """Refuses pictures whose pixels are no ids, and those that memory should not be asked for."""
    _check_size(path, header.width, header.height)
    name = {png.GREY_ALPHA: "LA", png.RGB: "RGB", png.RGB_ALPHA: "RGBA"}.get(header.color, "")
    if name.endswith("A"):
        raise UserError(f"{path} has transparent pixels ({name}), not class ids alone: save it without alpha")
    if name and not (dataset == "synthia" and header.bits == 16):
        raise UserError(f"{path} is a colour picture ({name}), not a map of class ids")
    if header.animated:
        raise UserError(f"{path} is an animation, not a map of class ids")


def _ids(image: Image.Image, bits: int) -> np.ndarray:
    """Ids of a picture of up to 8 bits: Pillow scales grey ones of fewer bits to the whole range."""
    pixels = np.array(image).astype(np.uint8)
    return pixels // {2: 85, 4: 17}.get(bits, 1) if image.mode == "L" else pixels


def _first_channel(data: bytes) -> np.ndarray:
    """First channel of a 16-bit PNG, uint16 [H, W]; Pillow reads colour PNGs as 8 bits only.

    Raises:
      ValueError: TensorFlow cannot decode it.
    """
    # Not at import: processes that read 8-bit labels start without it, in a fraction of the time and of the memory.
    tf = load_tensorflow()
    try:
        return tf.io.decode_png(data, dtype=tf.uint16).numpy()[:, :, 0]
    except tf.errors.InvalidArgumentError as error:  # Its text names TensorFlow's internals.
        raise ValueError("a damaged 16-bit PNG") from error


def _bytes(path: Path, kind: str) -> bytes:
    """All of a file; special files are not opened.

    Raises:
      UserError: naming the file as no readable ``kind``.
    """
    try:
        return files.read_bytes(path)
    except UserError as error:
        raise UserError(f"{path} is not a readable {kind} ({str(error).removeprefix(f'{path} ')})") from error


def _check_size(path: Path, width: int, height: int) -> None:
    """Refuses a picture before its pixels take memory."""
    if width * height > images.MAX_PIXELS:
        raise UserError(
            f"{path} is {width}x{height}, which exceeds limits: more than {images.MAX_PIXELS} pixels are not read"
        )


def _orientation(image: Image.Image) -> int:
    """How viewers turn a picture, by EXIF: a key of ``_TURNS``, or 1 for not at all."""
    tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    return tag if tag in _TURNS else 1


def _may_keep(image: Image.Image, data: bytes, encoding: str) -> bool:
    """Whether every decoder shows a file as viewers do, so that its own bytes can be stored."""
    if _orientation(image) != 1:
        return False
    if encoding == "png" and image.format == "PNG":
        plain = image.mode in ("RGB", "L") and png.read_header(data).bits == 8 and "transparency" not in image.info
        return plain and data.endswith(b"\0\0\0\0IEND\xaeB`\x82")
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def _image(path: Path, encoding: str) -> tuple[Image.Image, bytes | None, int]:
    """A picture as viewers show it, its file's bytes where they can be stored, and how EXIF turned it.

    Raises:
      UserError: unreadable or too large.
    """
    data = _bytes(path, "image")
    try:
        if data.startswith(png.SIGNATURE):
            header = png.read_header(data)
            _check_size(path, header.width, header.height)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(path, *image.size)
            image.load()
            kept = data if _may_keep(image, data, encoding) else None
            return images.to_rgb(image), kept, _orientation(image)
    except images.DECODER_ERRORS as error:
        raise UserError(f"{path} is not a readable image ({images.describe(error)})") from error


def _checked_label(
    dataset: str, ids: LabelEncoding, example: RawExample, size: tuple[int, int], turned: int
) -> Image.Image | None:
    """The label of an image of ``size`` that EXIF has ``turned``, turned likewise; None where unlabelled.

    Raises:
      UserError: unreadable, of another size, turned otherwise, or with undefined ids.
    """
    path = example.label
    if path is None:
        return None
    label, label_turned = _label(path, dataset)
    if label_turned != turned:
        raise UserError(
            f"{path} and its image {example.image} are turned differently by EXIF (orientation {label_turned} and "
            f"{turned}): save both without the tag, or leave them out with --on_error=skip"
        )
    if turned != 1:
        label = label.transpose(_TURNS[turned])
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
      UserError: naming the file that is missing, unreadable, of another size, turned otherwise or with undefined ids.
    """
    pixels, kept, turned = _image(example.image, encoding)
    label = _checked_label(dataset, ids, example, pixels.size, turned)
    if resize is not None and pixels.size != resize:
        pixels, kept = pixels.resize(resize, Image.Resampling.BICUBIC), None
        label = label and label.resize(resize, Image.Resampling.NEAREST)
    counts = np.array(label.histogram() if label else [0] * 256, np.int64)
    handovers.note("stored", image=handovers.size(pixels), label=handovers.size(label) if label else "none")
    if label is None and encoding != "tiff":  # Decoders refuse an empty file.
        label = Image.new("L", pixels.size, IGNORE)
    stored = kept or encode_image(pixels, encoding)
    stored_label = encode_label(label, encoding) if label else b""
    return Record(example.name, stored, stored_label, pixels.height, pixels.width, counts)
