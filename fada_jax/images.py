"""Image files in and out, with Pillow: reading what users have, writing labels, colours and panels."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin, UnidentifiedImageError

from fada_jax import __version__, files
from fada_jax.classes import ClassSet
from fada_jax.errors import UserError

# What Pillow's decoders raise about damaged files; a lack of memory is none of them.
DECODER_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)
# Pillow refuses twice what it warns of; between both it reads, and says so to nobody who could act on it.
MAX_PIXELS = 178_956_970
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Nor of what it thinks of a file whose pixels it then refuses or reads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Stands in every picture of ours, and in those that ``predict`` made.
MARK, PREDICTION = b"Software\0fada-jax", b"fada-jax prediction"


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as viewers show it, in RGB.

    EXIF rotation is applied, CMYK and palettes are converted, 16-bit grey is scaled to 8 bits, alpha is dropped, and of
    an animation the first frame counts.

    Raises:
      ValueError: 32-bit pixels, whose white nothing defines.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow would clip instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turns what Pillow raises about a file into one line that names it."""
    try:
        if problem := files.special(path):
            raise ValueError(f"it is {problem}")
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image") from error
    except DECODER_ERRORS as error:
        raise UserError(f"{path}: not a readable image ({describe(error)})") from error


def _source(path: str | Path) -> Any:
    """What Pillow opens: a local path, or what an object holds."""
    place = files.place(path)
    return place.open("rb") if files.is_object(place) else place


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} are more than the {MAX_PIXELS} pixels that are read: cut it into pieces")


def check_image(path: str | Path) -> tuple[int, int]:
    """The stored (width, height) of an image file, of which no pixels are read.

    Raises:
      UserError: not there, not an image, a pipe or a device, or larger than memory should be asked for.
    """
    with _readable(path), Image.open(_source(path)) as image:
        _check_size(image)
        return image.size


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], see ``to_rgb``.

    Raises:
      UserError: as ``check_image``, or its pixels are damaged.
    """
    with _readable(path), Image.open(_source(path)) as image:
        _check_size(image)
        return np.asarray(to_rgb(image))


def describe(error: Exception) -> str:
    """What is wrong with a file, by the error of its decoder, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


def write_image(
    path: Path, image: np.ndarray, *, prediction: bool = False, ours: Callable[[Path], bool] = files.anything
) -> None:
    """Writes a picture as PNG that says who made it, whole or not at all, and makes the folder.

    Args:
      path: of the file.
      image: uint8 [H, W] or [H, W, 3].
      prediction: marks it as one, see ``is_prediction``.
      ours: whether what lies there may be replaced; ``is_ours`` at a place that the user names.

    Raises:
      UserError: somebody else's file lies there.
    """
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Software", f"fada-jax {__version__}")
    if prediction:
        texts.add_text("Description", PREDICTION.decode())
    buffer = io.BytesIO()  # Pillow's own writing to a full disk ends in other errors.
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=texts)
    with files.replacing(path, ours=ours) as partial:
        partial.write_bytes(buffer.getvalue())


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that this package wrote."""
    return files.is_ours(path, MARK)


def is_prediction(path: Path) -> bool:
    """Whether a file is a label, a colour picture or the like that ``predict`` wrote."""
    return files.is_ours(path, PREDICTION)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] to ``size`` = (width, height), bicubic with antialiasing, as in training."""
    width, height = size
    if (image.shape[1], image.shape[0]) == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def colorize(label: np.ndarray, class_set: ClassSet) -> np.ndarray:
    """Class indices [H, W] in the set's colours, uint8 [H, W, 3]."""
    return class_set.palette()[label]


def panel(columns: Sequence[str], rows: Sequence[Sequence[np.ndarray]], class_set: ClassSet) -> Image.Image:
    """A captioned grid of equally large uint8 RGB images with the class colours below (figure 5 of the paper)."""
    height, width = rows[0][0].shape[:2]
    factor = max(1, round(256 / width))
    width, height, margin, caption = width * factor, height * factor, 6, 20
    total_width = len(columns) * (width + margin) + margin
    per_line = max(1, (total_width - margin) // 104)
    legend_lines = -(-class_set.num_classes // per_line)
    total_height = caption + len(rows) * (height + margin) + margin + legend_lines * 18 + margin
    canvas = Image.new("RGB", (total_width, total_height), "white")
    draw = ImageDraw.Draw(canvas)
    for j, title in enumerate(columns):
        draw.text((margin + j * (width + margin), 4), title, fill="black")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            place = (margin + j * (width + margin), caption + i * (height + margin))
            canvas.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), place)
    top = caption + len(rows) * (height + margin) + margin
    for k, (name, color) in enumerate(zip(class_set.names, class_set.colors, strict=True)):
        x, y = margin + (k % per_line) * 104, top + (k // per_line) * 18
        draw.rectangle((x, y, x + 12, y + 12), fill=color)
        draw.text((x + 17, y), name, fill="black")
    return canvas
