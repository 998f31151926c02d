"""The bytes of image and label files to pixels: decoding, resizing, and labels looked up in tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from fada_jax import handovers, images
from fada_jax.errors import UserError
from fada_jax.input_pipeline import indexes

try:
    import cykooz_resizer
except ImportError:  # The extra "input"; Pillow does the same in eight times the time.
    cykooz_resizer = None

# Of the pictures in converted data sets.
_STORED = ("PNG", "JPEG", "TIFF")


def decode_image(data: bytes) -> Image.Image:
    """An image file decoded, RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def stored_image(record: Mapping[str, Any]) -> Image.Image:
    """The image of a stored record, RGB; raises as ``decoded``."""
    return decoded(record["image"], record["size"], f"the image of {record['place']}").convert("RGB")


def stored_label(record: Mapping[str, Any]) -> Image.Image:
    """The label of a stored record, raw ids in grey; raises as ``decoded``."""
    label = decoded(record["label"], record["size"], f"the label of {record['place']}")
    if label.mode != "L":
        raise UserError(f"the label of {record['place']} is no map of ids ({label.mode}); {indexes.ADVICE}")
    return label


def decoded(data: bytes, size: tuple[int, int] | None, what: str, advice: str = indexes.ADVICE) -> Image.Image:
    """A stored picture, whose own size is compared with what it must have before its pixels take memory.

    Args:
      data: bytes of its file.
      size: (height, width) that it must have; None: any that Pillow reads.
      what: names it in errors.
      advice: how to mend it.

    Raises:
      UserError: it cannot be decoded, or has another size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_STORED) as image:
            if size and image.size != (size[1], size[0]):
                raise UserError(f"{what} is {image.width}x{image.height}, not {size[1]}x{size[0]}; {advice}")
            image.load()
            return image
    except images.DECODER_ERRORS as error:
        raise UserError(f"{what} cannot be decoded ({images.describe(error)}); {advice}") from error


def fitted(image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """An RGB image resized to (width, height) by Pillow, bicubic with antialiasing: uint8 [H, W, 3]."""
    return np.asarray(_fit(image, size, Image.Resampling.BICUBIC))


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An RGB image resized to (width, height), bicubic with antialiasing.

    Where both sides shrink and cykooz-resizer is installed, it makes Pillow's passes, columns first. It rounds some
    halves the other way: 4 grey levels in 1,000 differ from Pillow's by 1, some in a million by 2.
    """
    if not cykooz_resizer or size[0] >= image.width or size[1] >= image.height:
        return _fit(image, size, Image.Resampling.BICUBIC)
    bicubic = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
    options, resizer = cykooz_resizer.ResizeOptions(resize_alg=bicubic), cykooz_resizer.Resizer()
    for step in ((size[0], image.height), size):
        resized = Image.new("RGB", step)
        resizer.resize_pil(image, resized, options)
        image = resized
    return image


def look_up(
    label: Image.Image,
    table: list[int],
    size: tuple[int, int] | None = None,
    note: Callable[..., None] = handovers.note,
) -> Image.Image:
    """A grey map of ids, resized to (width, height) by Pillow, nearest, and looked up in ``table``."""
    found = _fit(label, size, Image.Resampling.NEAREST).point(table)
    if size:
        note("resize label", before=handovers.size(label), after=handovers.size(found))
    return found


def _fit(image: Image.Image, size: tuple[int, int] | None, method: Image.Resampling) -> Image.Image:
    return image if size in (None, image.size) else image.resize(size, method)
