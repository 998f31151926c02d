"""Objects beside the street and the people in it: trees, walkers, two-wheelers, posts with lamps, lights and signs."""

from __future__ import annotations

import math

import numpy as np

from fada_jax.scripts.miniature.canvas import Canvas
from fada_jax.scripts.miniature.codes import (
    BODY,
    GO,
    LAMP,
    LIGHT,
    MOTORCYCLE,
    PANEL,
    PERSON,
    POLE,
    RIDER,
    SECOND,
    SIGN,
    SKIN,
    TRUNK,
    VEGETATION,
    WHEEL,
)


def paint_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, trunk: bool = True) -> None:
    """A tree, or without a trunk a bush; each clump of leaves is an instance, with a green of its own."""
    radius = height * rng.uniform(0.2, 0.3) if trunk else height * rng.uniform(0.5, 0.9)
    middle, ry = (0.72 * height, 0.22 * height) if trunk else (0.4 * height, 0.5 * height)
    canvas.cast(x - radius, x + radius, max(z - radius, 1), z + radius)
    if trunk:
        half = 0.03 * height
        canvas.billboard(VEGETATION, x, z).box(TRUNK, -half, half, 0, 0.6 * height)
    for dx, dy, size in rng.uniform((-0.7, -0.5, 0.55), (0.7, 0.5, 0.95), (5, 3)).tolist():
        clump = canvas.billboard(VEGETATION, x + dx * radius, z)
        clump.disc(BODY, 0, middle + dy * ry, size * radius, size * ry * 1.1)


def paint_person(canvas: Canvas, rng: np.random.Generator, x: float, z: float, code: int = PERSON) -> None:
    """A walker, or a rider without what is ridden."""
    person, size, stride = canvas.billboard(code, x, z), rng.uniform(0.85, 1.1), rng.uniform(0.1, 0.3)
    person.cast(0.4, 0.3, 0.3)
    for foot in (-stride, stride - 0.18):
        person.box(SECOND, foot, foot + 0.18, 0.0 if code == PERSON else 0.5, 0.9 * size)
    person.disc(BODY, 0, 1.12 * size, 0.3 * size, 0.42 * size)
    person.disc(SKIN, 0, 1.62 * size, 0.15 * size, 0.17 * size)


def paint_two_wheeler(
    canvas: Canvas, rng: np.random.Generator, code: int, x: float, z: float, rider: bool = False
) -> None:
    """A bicycle or motorcycle, seen from its side or from an end."""
    bike, motor = canvas.billboard(code, x, z), code == MOTORCYCLE
    bike.cast(0.6, 0.3, 0.3)
    if rng.random() < (0.4 if rider else 0.75):  # Seen from the side.
        for wheel in (-0.58, 0.58):
            bike.disc(WHEEL, wheel, 0.36, 0.38, 0.38)
            bike.disc(BODY if motor else PANEL, wheel, 0.36, 0.2, 0.2)
        if motor:
            bike.disc(BODY, 0, 0.68, 0.75, 0.32)
            bike.box(WHEEL, -0.7, 0, 0.85, 1.0)
        else:
            bike.box(BODY, -0.5, 0.5, 0.5, 0.68)
            bike.box(BODY, -0.3, -0.16, 0.5, 0.95)
        bike.box(BODY, 0.4, 0.56, 0.5, 1.1)
    else:
        half = 0.16 if motor else 0.07
        bike.box(WHEEL, -half, half, 0, 0.75)
        if motor:
            bike.disc(BODY, 0, 0.8, 0.36, 0.36)
            bike.box(LAMP, -0.1, 0.1, 0.75, 0.9)
        bike.box(BODY, -0.34, 0.34, 0.9, 1.04)
    if rider:
        paint_person(canvas, rng, x, z - 0.1, RIDER)


def paint_post(canvas: Canvas, rng: np.random.Generator, code: int, x: float, z: float) -> None:
    """A street lamp (POLE), traffic light or sign, with its post."""
    post = canvas.billboard(POLE, x, z)
    head = post._replace(code=code)
    height = {POLE: rng.uniform(4.5, 7.5), LIGHT: rng.uniform(3.0, 3.8), SIGN: rng.uniform(2.3, 3.0)}[code]
    post.box(BODY, -0.09, 0.09, 0, height)
    if code == POLE:
        reach = -math.copysign(1.6, x)
        post.box(BODY, min(0, reach), max(0, reach), height - 0.15, height)
    elif code == LIGHT:
        head.box(BODY, -0.28, 0.28, height - 0.9, height + 0.35)
        stop = int(rng.integers(2))
        head.disc((GO, LAMP)[stop], 0, height - 0.6 + 0.65 * stop, 0.17, 0.17)
    elif rng.random() < 0.5:
        head.disc(BODY, 0, height, 0.45, 0.45)
        head.disc(PANEL, 0, height, 0.2, 0.2)
    else:
        head.box(BODY, -0.5, 0.5, height - 0.4, height + 0.4)
        head.box(PANEL, -0.32, 0.32, height - 0.1, height + 0.12)
