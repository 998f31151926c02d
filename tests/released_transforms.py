"""The released training input once more, written from what torchvision and Pillow are documented to do.

Nothing here comes from ``input_pipeline``. Colours change in NumPy with the 8-bit arithmetic of Pillow's C code; Pillow
itself only opens files and resizes. Images are uint8 [H, W, 3], labels uint8 [H, W], sizes (width, height). ``drawn``
is any object with the attributes of ``input_pipeline.augmentation.Draw``.
"""

import numpy as np
from PIL import Image

# Raw id -> class: 19 classes of Cityscapes and GTA5, 16 of SYNTHIA and of Cityscapes beside it.
CITYSCAPES19 = dict(zip((7, 8, 11, 12, 13, 17, 19, *range(20, 29), 31, 32, 33), range(19), strict=True))
SYNTHIA16 = {
    3: 0,
    4: 1,
    2: 2,
    21: 3,
    5: 4,
    7: 5,
    15: 6,
    9: 7,
    6: 8,
    1: 9,
    10: 10,
    17: 11,
    8: 12,
    19: 13,
    12: 14,
    11: 15,
}
IGNORED = 255


# torchvision.transforms.ColorJitter on images of Pillow.


def blend(degenerate, image, factor):
    """PIL.Image.blend: single precision, clipped, cut off instead of rounded."""
    degenerate = np.broadcast_to(degenerate, image.shape).astype(np.float32)
    mixed = degenerate + np.float32(factor) * (image.astype(np.float32) - degenerate)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def grey(image):
    """Convert to 'L': ITU-R 601 luma in 16-bit fractions, rounded."""
    return ((image.astype(np.int64) @ [19595, 38470, 7471] + 32768) // 65536).astype(np.uint8)


def brightness(image, factor):
    return blend(np.uint8(0), image, factor)


def contrast(image, factor):
    return blend(np.uint8(np.floor(grey(image).mean() + 0.5)), image, factor)


def saturation(image, factor):
    return blend(grey(image)[..., None], image, factor)


def to_hsv(image):
    """Convert to 'HSV': hue, saturation and value, each of 0 to 255, cut off instead of rounded."""
    colours = image.astype(np.float32)
    value, spread = colours.max(-1), np.ptp(colours, axis=-1)
    coloured = spread > 0
    spread = np.where(coloured, spread, np.float32(1))
    red, green, blue = ((value - colours[..., k]) / spread for k in range(3))
    # What is kept is of single precision, what lies between is of double precision, as in C.
    sixths = np.where(green == 0, 2 + red.astype(np.float64) - blue, 4 + green.astype(np.float64) - red)
    sixths = np.where(red == 0, blue - green, sixths).astype(np.float32)
    turns = np.fmod(sixths.astype(np.float64) / 6 + 1, 1).astype(np.float32)
    share = spread / np.maximum(value, np.float32(1))
    levels = (np.where(coloured, x.astype(np.float64) * 255, 0) for x in (turns, share))
    return np.stack([x.astype(np.uint8) for x in (*levels, value)], -1)


def from_hsv(image):
    """Convert from 'HSV' to 'RGB', rounded to the nearest, halves up."""
    hue, share, value = np.moveaxis(image.astype(np.float64), -1, 0)
    sixth = np.floor(hue * 6 / 255)
    rest, share = (hue * 6 / 255 - sixth).astype(np.float32), (share / 255).astype(np.float32)
    parts = (share.astype(np.float64), (share * rest).astype(np.float64), share * (1.0 - rest.astype(np.float64)))
    low, falling, rising = (np.floor(value * (1 - part) + 0.5) for part in parts)
    # Red, green and blue in each sixth of the circle; 255 is a full turn.
    circle = (
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    )
    channels = [np.choose(sixth.astype(int) % 6, [colour[k] for colour in circle]) for k in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def hue(image, turns):
    """The hue moves by ``turns`` * 255 levels without what is behind the point, and wraps at 256."""
    hsv = to_hsv(image)
    hsv[..., 0] += np.array(turns * 255).astype(np.int64).astype(np.uint8)
    return from_hsv(hsv)


def color_jitter(image, drawn):
    operations = (
        (brightness, drawn.brightness),
        (contrast, drawn.contrast),
        (saturation, drawn.saturation),
        (hue, drawn.hue),
    )
    for i in drawn.order:
        operation, factor = operations[i]
        image = operation(image, factor)
    return image


# Geometry.


def resize(image, size):
    """Resize of the whole image: bicubic, antialiased."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def resize_columns_first(image, size):
    """``resize`` as Pillow did it up to version 12; later ones begin with the rows where that is less work."""
    return resize(resize(image, (size[0], len(image))), size)


def resize_label(label, size):
    return np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))


def random_crop(image, label, size, position):
    """RandomCrop(size, pad_if_needed=True) of an image and its label.

    What is narrower or lower than the crop is padded on BOTH sides by ALL that it lacks, before a crop is drawn that
    begins anywhere with equal chance. ``position`` holds the shares of these places for rows and columns.
    """
    for axis, wanted in enumerate(size[::-1]):
        lack = max(wanted - image.shape[axis], 0)
        padding = [(lack, lack) if axis == k else (0, 0) for k in range(3)]
        image, label = np.pad(image, padding), np.pad(label, padding[:2], constant_values=IGNORED)
        begin = int(np.floor(position[axis] * (image.shape[axis] - wanted + 1)))
        image, label = (x.take(range(begin, begin + wanted), axis) for x in (image, label))
    return image, label


def random_flip(image, label, drawn):
    return (np.fliplr(image), np.fliplr(label)) if drawn.flip else (image, label)


# What a stage feeds its network.


def classes(label, table):
    """Raw ids -> classes; ids without one are ignored."""
    lookup = np.full(256, IGNORED, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[label]


def labelled(image, label, size, drawn=None, resize=resize):
    """Images with labels in the source stage and, with ``drawn``, in the adversarial stage: jitter, then resize."""
    if drawn is not None:
        image = color_jitter(image, drawn)
    return resize(image, size), resize_label(label, size)


def unlabelled(image, size, resize=resize):
    """Target images of the adversarial stage."""
    return resize(image, size)


def self_distillation(image, label, crop, drawn, jitter=True):
    """Jitter of the whole image, scale of image and label, crop, flip; VGG-16 is distilled without jitter."""
    if jitter:
        image = color_jitter(image, drawn)
    size = tuple(int(length * drawn.scale) for length in image.shape[1::-1])
    image, label = resize(image, size), resize_label(label, size)
    return random_flip(*random_crop(image, label, crop, drawn.position), drawn)


def to_tensor_normalised(images):
    """ToTensor and Normalize for networks from torchvision: RGB of 0 to 1, float64 [..., 3]."""
    return (images / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


def caffe_normalised(images):
    """For VGG-16 with Caffe's weights: BGR of 0 to 255 without its mean, float64 [..., 3]."""
    return images[..., ::-1].astype(np.float64) - np.array([103.939, 116.779, 123.68])
