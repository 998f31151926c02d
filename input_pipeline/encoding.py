"""Pixels to the bytes of a file: how images and labels are stored."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, TiffImagePlugin

# How a converted data set stores images; the files of users that are JPEGs are kept in all of them.
ENCODINGS = ("png", "jpeg", "tiff")
JPEG_QUALITY = 95


def encode_image(image: Image.Image, encoding: str) -> bytes:
    """An RGB image as one of ``ENCODINGS``; 'jpeg' loses detail, 'tiff' is ``encode_tiff``."""
    if encoding == "tiff":
        return encode_tiff(image)
    # Level 1 takes a sixth of the default's time for a tenth more space.
    options = {"compress_level": 1} if encoding == "png" else {"quality": JPEG_QUALITY, "subsampling": 0}
    return _save(image, encoding, **options)


def encode_label(label: Image.Image, encoding: str) -> bytes:
    """A grey map of ids without loss: a PNG in data sets that TensorFlow decodes, else ``encode_tiff``."""
    return encode_tiff(label) if encoding == "tiff" else _save(label, "png")


def encode_tiff(image: Image.Image) -> bytes:
    """A grey or RGB image without loss: a TIFF of zstd, which Pillow decodes in a third of a PNG's time."""
    # Differences to the pixel on the left compress better than the pixels.
    return _save(image, "tiff", compression="zstd", tiffinfo={TiffImagePlugin.PREDICTOR: 2})


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
