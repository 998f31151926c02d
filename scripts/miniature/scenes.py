"""Scenes: a street drawn at random and painted, as maps of the class and the position of each pixel."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from fada_jax.scripts.miniature.canvas import Canvas, Surface
from fada_jax.scripts.miniature.codes import Code, Part, Plane
from fada_jax.scripts.miniature.domains import Layout
from fada_jax.scripts.miniature.streets import Street, paint_background, paint_ground, sample_street
from fada_jax.scripts.miniature.traffic import paint_traffic


@dataclasses.dataclass(frozen=True)
class Scene:
    """The input of every renderer. Maps are [H, W]; ``random`` is [instances, 8], standard normal."""

    code: np.ndarray  # uint8.
    part: np.ndarray  # uint8.
    instance: np.ndarray  # uint16.
    plane: np.ndarray  # uint8.
    depth: np.ndarray  # Metres, 1e4 in the sky.
    u: np.ndarray  # Position along the surface, metres.
    v: np.ndarray  # The other direction: up, or ahead on the ground.
    pixel: np.ndarray  # Metres that a pixel covers, the longer way.
    shade: np.ndarray
    random: np.ndarray
    sun: float  # 1: the right side of the street is lit, -1: the left.
    border: int  # Columns at both edges labelled out of region of interest.


def sample_scene(rng: np.random.Generator, layout: Layout, width: int, height: int) -> Scene:
    """Samples a street and paints it as a camera in it sees it."""
    canvas = Canvas(
        focal=layout.focal * width,
        centre=width * (0.5 + rng.uniform(-0.12, 0.12)),
        horizon=height * rng.uniform(*layout.horizon),
        elevation=rng.uniform(*layout.camera_height),
        index=np.zeros((height, width), np.int16),
        surfaces=[Surface(Code.SKY, Part.BODY, 0, Plane.SKY, 1e4)],
        shade=np.zeros((height, width), np.float32),
        ids=itertools.count(1),
    )
    street = sample_street(rng, layout)
    paint_ground(canvas, street)
    paint_background(canvas, rng, layout, street)
    paint_traffic(canvas, rng, layout, street)
    if rng.random() < layout.hood:
        bottom = canvas.elevation - (height - canvas.horizon) * 2 / canvas.focal  # At a depth of 2 m.
        canvas.billboard(Code.EGO, 0.0, 2.0).disc(Part.GLASS, 0, bottom, 1.0, rng.uniform(0.08, 0.16))
    return _scene(rng, layout, canvas, street)


def _scene(rng: np.random.Generator, layout: Layout, canvas: Canvas, street: Street) -> Scene:
    """The maps of a painted canvas; positions follow from the planes of its surfaces."""
    height, width = canvas.index.shape
    columns = zip(
        zip(*canvas.surfaces, strict=True), (np.uint8, np.uint8, np.uint16, np.uint8, np.float32), strict=True
    )
    code, part, instance, plane, at = (np.array(column).astype(dtype)[canvas.index] for column, dtype in columns)
    across = (np.arange(width, dtype=np.float32)[None] + 0.5 - canvas.centre) / canvas.focal
    down = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - canvas.horizon) / canvas.focal
    ground = plane == Plane.GROUND
    walls = (plane == Plane.LEFT) | (plane == Plane.RIGHT)
    slope = np.where(np.abs(across) < 1e-3, np.float32(1e-3), across)
    depth = np.where(ground, canvas.elevation / np.maximum(down, 1e-3), np.where(walls, at / slope, at))
    depth = np.clip(depth, 0.5, 1e4)
    u = np.where(walls, depth, across * depth)
    # The street's unlit side throws its shadow on part of the ground.
    sun = 1.0 if rng.random() < 0.5 else -1.0
    edge = rng.uniform(-0.5, 1.2) * street.half
    return Scene(
        code=code,
        part=part,
        instance=instance,
        plane=plane,
        depth=depth,
        u=u,
        v=np.where(ground, depth, canvas.elevation - down * depth),
        pixel=depth / canvas.focal * np.where(ground, np.maximum(depth / canvas.elevation, 1), 1),
        shade=np.where(ground & ((u - street.middle) * sun > edge), np.float32(1), canvas.shade),
        random=rng.standard_normal((next(canvas.ids), 8)).astype(np.float32),
        sun=sun,
        border=max(1, width // 128) if rng.random() < layout.border else 0,
    )
