"""Objects beside the street and the people in it: trees, walkers, two-wheelers, posts with lamps, lights and signs."""

from __future__ import annotations

import math

import numpy as np

from fada_jax.scripts.miniature.canvas import Canvas
from fada_jax.scripts.miniature.codes import Code, Part


def paint_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, trunk: bool = True) -> None:
    """A tree, or without a trunk a bush; each clump of leaves is an instance, with a green of its own."""
    radius = height * rng.uniform(0.2, 0.3) if trunk else height * rng.uniform(0.5, 0.9)
    middle, ry = (0.72 * height, 0.22 * height) if trunk else (0.4 * height, 0.5 * height)
    canvas.cast(x - radius, x + radius, max(z - radius, 1), z + radius)
    if trunk:
        half = 0.03 * height
        canvas.billboard(Code.VEGETATION, x, z).box(Part.TRUNK, -half, half, 0, 0.6 * height)
    for dx, dy, size in rng.uniform((-0.7, -0.5, 0.55), (0.7, 0.5, 0.95), (5, 3)).tolist():
        clump = canvas.billboard(Code.VEGETATION, x + dx * radius, z)
        clump.disc(Part.BODY, 0, middle + dy * ry, size * radius, size * ry * 1.1)


def paint_person(canvas: Canvas, rng: np.random.Generator, x: float, z: float, code: int = Code.PERSON) -> None:
    """A walker, or a rider without what is ridden."""
    person, size, stride = canvas.billboard(code, x, z), rng.uniform(0.85, 1.1), rng.uniform(0.1, 0.3)
    person.cast(0.4, 0.3, 0.3)
    for foot in (-stride, stride - 0.18):
        person.box(Part.SECOND, foot, foot + 0.18, 0.0 if code == Code.PERSON else 0.5, 0.9 * size)
    person.disc(Part.BODY, 0, 1.12 * size, 0.3 * size, 0.42 * size)
    person.disc(Part.SKIN, 0, 1.62 * size, 0.15 * size, 0.17 * size)


def paint_two_wheeler(
    canvas: Canvas, rng: np.random.Generator, code: Code, x: float, z: float, rider: bool = False
) -> None:
    """A bicycle or motorcycle, seen from its side or from an end."""
    bike, motor = canvas.billboard(code, x, z), code == Code.MOTORCYCLE
    bike.cast(0.6, 0.3, 0.3)
    if rng.random() < (0.4 if rider else 0.75):  # Seen from the side.
        for wheel in (-0.58, 0.58):
            bike.disc(Part.WHEEL, wheel, 0.36, 0.38, 0.38)
            bike.disc(Part.BODY if motor else Part.PANEL, wheel, 0.36, 0.2, 0.2)
        if motor:
            bike.disc(Part.BODY, 0, 0.68, 0.75, 0.32)
            bike.box(Part.WHEEL, -0.7, 0, 0.85, 1.0)
        else:
            bike.box(Part.BODY, -0.5, 0.5, 0.5, 0.68)
            bike.box(Part.BODY, -0.3, -0.16, 0.5, 0.95)
        bike.box(Part.BODY, 0.4, 0.56, 0.5, 1.1)
    else:
        half = 0.16 if motor else 0.07
        bike.box(Part.WHEEL, -half, half, 0, 0.75)
        if motor:
            bike.disc(Part.BODY, 0, 0.8, 0.36, 0.36)
            bike.box(Part.LAMP, -0.1, 0.1, 0.75, 0.9)
        bike.box(Part.BODY, -0.34, 0.34, 0.9, 1.04)
    if rider:
        paint_person(canvas, rng, x, z - 0.1, Code.RIDER)


def paint_post(canvas: Canvas, rng: np.random.Generator, code: Code, x: float, z: float) -> None:
    """A street lamp (POLE), traffic light or sign, with its post."""
    post = canvas.billboard(Code.POLE, x, z)
    head = post._replace(code=code)
    lamp, light, sign = rng.uniform((4.5, 3.0, 2.3), (7.5, 3.8, 3.0)).tolist()
    height = {Code.POLE: lamp, Code.LIGHT: light, Code.SIGN: sign}[code]
    post.box(Part.BODY, -0.09, 0.09, 0, height)
    if code == Code.POLE:
        reach = -math.copysign(1.6, x)
        post.box(Part.BODY, min(0, reach), max(0, reach), height - 0.15, height)
    elif code == Code.LIGHT:
        head.box(Part.BODY, -0.28, 0.28, height - 0.9, height + 0.35)
        stop = int(rng.integers(2))
        head.disc((Part.GO, Part.LAMP)[stop], 0, height - 0.6 + 0.65 * stop, 0.17, 0.17)
    elif rng.random() < 0.5:
        head.disc(Part.BODY, 0, height, 0.45, 0.45)
        head.disc(Part.PANEL, 0, height, 0.2, 0.2)
    else:
        head.box(Part.BODY, -0.5, 0.5, height - 0.4, height + 0.4)
        head.box(Part.PANEL, -0.32, 0.32, height - 0.1, height + 0.12)
