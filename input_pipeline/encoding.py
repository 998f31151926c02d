"""Pixels to the bytes of a file: how images and labels are stored."""

from __future__ import annotations

import io

from PIL import Image, TiffImagePlugin


def encode_tiff(image: Image.Image) -> bytes:
    """A grey or RGB image without loss: a TIFF of zstd, which decodes in a third of a PNG's time."""
    buffer = io.BytesIO()
    # Differences to the pixel on the left compress better than the pixels.
    image.save(buffer, "tiff", compression="zstd", tiffinfo={TiffImagePlugin.PREDICTOR: 2})
    return buffer.getvalue()
