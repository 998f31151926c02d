"""Random changes of a training image in the order and the 8-bit arithmetic of the released code.

The released code jitters the colours of the whole image at its own size, then resizes it or, in self-distillation,
scales and crops it, then flips it. What chance decides about an image is drawn first (``draw``), so that a test can
apply the same by other means. The four colour operations are Pillow's, as torchvision calls them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from fada_jax import handovers
from fada_jax.classes import IGNORE


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of a training image.

    Attributes:
      flip: mirror half of the images.
      scale: (low, high) of a uniform factor on the resized image.
      crop: (width, height) of a random crop. A smaller image lands anywhere in it, on black and ``IGNORE``.
      brightness, contrast, saturation, hue: strengths of torchvision's ColorJitter, applied in random order.
      jitter_first: change colours of the stored image before anything else, as released; otherwise those of the pixels
        that the network sees, at a fraction of the cost. Padding is never jittered.
    """

    flip: bool = False
    scale: tuple[float, float] | tuple[()] = ()
    crop: tuple[int, int] | tuple[()] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_first: bool = True

    @property
    def strengths(self) -> tuple[float, float, float, float]:
        """Of brightness, contrast, saturation and hue."""
        return self.brightness, self.contrast, self.saturation, self.hue

    @property
    def jitters(self) -> bool:
        return any(self.strengths)


@dataclasses.dataclass(frozen=True)
class Draw:
    """What chance decided about one image.

    Attributes:
      brightness, contrast, saturation: factors; 1 changes nothing.
      hue: shift in turns of the colour circle.
      order: of the four colour operations, a permutation of 0 to 3.
      scale: factor.
      position: of the crop, rows and columns, as shares in [0, 1) of the places where it may begin.
      flip: mirror it.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)
    scale: float = 1.0
    position: tuple[float, float] = (0.0, 0.0)
    flip: bool = False


def draw(random: np.random.Generator, options: Augment) -> Draw:
    """Draws for one image; the same numbers are used up whatever ``options`` ask for."""
    u = random.random(8)
    order = tuple(random.permutation(4).tolist())
    strengths = np.array([options.brightness, options.contrast, options.saturation])
    low, high = np.maximum(0.0, 1.0 - strengths), 1.0 + strengths
    brightness, contrast, saturation = (low + u[:3] * (high - low)).tolist()
    least, most = options.scale or (1.0, 1.0)
    return Draw(
        brightness,
        contrast,
        saturation,
        hue=float(options.hue * (2 * u[3] - 1)),
        order=order,
        scale=float(least + u[4] * (most - least)),
        position=(float(u[5]), float(u[6])),
        flip=bool(options.flip and u[7] < 0.5),
    )


def jitter(image: Image.Image, drawn: Draw) -> Image.Image:
    """torchvision's ColorJitter of an RGB image: 8 bits after every operation."""
    operations = (
        lambda x: ImageEnhance.Brightness(x).enhance(drawn.brightness),
        lambda x: ImageEnhance.Contrast(x).enhance(drawn.contrast),
        lambda x: ImageEnhance.Color(x).enhance(drawn.saturation),
        lambda x: shift_hue(x, drawn.hue),
    )
    for i in drawn.order:
        image = operations[i](image)
    return image


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """An RGB image with its hue moved by ``turns`` of the colour circle, in Pillow's 8-bit HSV."""
    if not turns:  # torchvision leaves the operation out then; to 8-bit HSV and back would change colours.
        return image
    hue = (np.arange(256) + int(turns * 255)) % 256
    return image.convert("HSV").point([*hue.tolist(), *range(256), *range(256)]).convert("RGB")


def geometry(
    image: Image.Image,
    label: Image.Image | None,
    drawn: Draw,
    options: Augment,
    *,
    jitter_now: bool = False,
    note: Callable[..., None] = handovers.note,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales, crops and flips an image and its label alike.

    Args:
      image: RGB.
      label: class indices, of the same size, or None.
      drawn: of ``draw``.
      options: what may change.
      jitter_now: jitter the pixels that the crop keeps.
      note: receives the sizes.

    Returns:
      uint8 [H, W, 3] and [H, W] or None.
    """
    if options.scale:
        note("scale", before=handovers.size(image), factors=options.scale)
        width, height = (max(1, int(n * drawn.scale)) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        label = None if label is None else label.resize((width, height), Image.Resampling.NEAREST)
    padding = None
    if options.crop:
        spans = [_span(*values) for values in zip(image.size, options.crop, drawn.position[::-1], strict=True)]
        (left, right, *columns), (top, bottom, *rows) = spans
        box, padding = (left, top, right, bottom), (tuple(rows), tuple(columns))
        note("crop", after="{}x{}".format(*options.crop), labels=label is not None)
        image, label = image.crop(box), None if label is None else label.crop(box)
    if jitter_now:
        note("jitter", size=handovers.size(image), strengths=options.strengths)
        image = jitter(image, drawn)
    pixels, classes = np.asarray(image), None if label is None else np.asarray(label)
    if padding:
        pixels = np.pad(pixels, (*padding, (0, 0)))
        classes = None if classes is None else np.pad(classes, padding, constant_values=IGNORE)
    if drawn.flip:
        note("flip", size=handovers.size(pixels))
        pixels, classes = pixels[:, ::-1], None if classes is None else classes[:, ::-1]
    return pixels, classes


def _span(length: int, wanted: int, position: float) -> tuple[int, int, int, int]:
    """Where a crop begins and ends along an axis, and what is padded before and behind it.

    A shorter image is padded on both sides by all that it lacks before the crop is drawn, as released; what of that
    stays in the crop is what is returned.
    """
    place = int(position * (abs(length - wanted) + 1))
    if length >= wanted:
        return place, place + wanted, 0, 0
    lack = wanted - length
    return 0, length, lack - place, place
