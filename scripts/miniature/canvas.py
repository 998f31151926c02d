"""The canvas: a scene while it is painted, surface over surface, as a camera above a street sees it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fada_jax.scripts.miniature.codes import Plane


class Surface(NamedTuple):
    """A flat piece of the scene: the ground, a plane X = ``at`` (LEFT, RIGHT) or a plane Z = ``at`` (FRONT)."""

    code: int
    part: int
    instance: int
    plane: int
    at: float


def facing(x: float) -> int:
    """The plane of a surface along the street at ``x``."""
    return Plane.LEFT if x < 0 else Plane.RIGHT


def _range(low: float, high: float, limit: int) -> tuple[int, int]:
    """Pixels whose centres lie between two positions, at least one, cut at the image."""
    first = math.ceil(low - 0.5)
    return min(max(first, 0), limit), min(max(first + 1, math.ceil(high - 0.5), 0), limit)


@dataclasses.dataclass(frozen=True)
class Canvas:
    """X goes to the right of the camera, Y up from the ground, Z ahead, all in metres."""

    focal: float  # Pixels.
    centre: float  # Column of the vanishing point.
    horizon: float  # Row of the vanishing point.
    elevation: float  # Camera height.
    index: np.ndarray  # int16 [H, W] into surfaces.
    surfaces: list[Surface]
    shade: np.ndarray  # float32 [H, W], shadow on the ground, 0-1.
    ids: Iterator[int]  # Instances, from 1.

    def _columns(self, x0: float, x1: float, scale: float) -> slice:
        return slice(*_range(self.centre + x0 * scale, self.centre + x1 * scale, self.index.shape[1]))

    def _fill(self, surface: Surface, pixels: np.ndarray, mask: Any = ...) -> None:
        """Paints ``surface`` over the ``mask`` of ``pixels``, a view of the index."""
        pixels[mask] = len(self.surfaces)
        self.surfaces.append(surface)

    def box(self, surface: Surface, x0: float, x1: float, y0: float, y1: float) -> None:
        """Fills a rectangle that faces the camera."""
        scale = self.focal / surface.at
        base = self.horizon + self.elevation * scale
        top, bottom = _range(base - y1 * scale, base - y0 * scale, self.index.shape[0])
        self._fill(surface, self.index[top:bottom, self._columns(x0, x1, scale)])

    def disc(self, surface: Surface, x: float, y: float, rx: float, ry: float) -> None:
        """Fills an ellipse that faces the camera."""
        scale, (height, width) = self.focal / surface.at, self.index.shape
        column, row = self.centre + x * scale, self.horizon + (self.elevation - y) * scale
        rx, ry = max(rx * scale, 0.7), max(ry * scale, 0.7)
        left, right = _range(column - rx, column + rx, width)
        top, bottom = _range(row - ry, row + ry, height)
        if left < right and top < bottom:
            a = (np.arange(left + 0.5, right) - column) / rx
            b = (np.arange(top + 0.5, bottom) - row) / ry
            self._fill(surface, self.index[top:bottom, left:right], (a * a)[None] + (b * b)[:, None] <= 1)

    def side(self, surface: Surface, z0: float, z1: float, y0: float, y1: float) -> None:
        """Fills the piece of a plane X = at between two depths and two heights."""
        (height, width), z0 = self.index.shape, max(z0, 0.5)
        near, far = self.focal / z0, self.focal / z1
        start, end = self.centre + surface.at * near, self.centre + surface.at * far
        left, right = _range(min(start, end), max(start, end), width)
        if left >= right or abs(start - end) < 0.3:
            return
        scale = near + (far - near) * np.clip((np.arange(left + 0.5, right) - start) / (end - start), 0, 1)
        rows = np.arange(height)[:, None] + 0.5 - self.horizon
        mask = (rows >= (self.elevation - y1) * scale) & (rows < (self.elevation - y0) * scale)
        self._fill(surface, self.index[:, left:right], mask)

    def roof(self, surface: Surface, x0: float, x1: float, z1: float, y: float) -> None:
        """Fills a level piece at height y, below the camera, from the surface's depth to z1."""
        height, width = self.index.shape
        drop = self.focal * (self.elevation - y)
        top, bottom = _range(self.horizon + drop / z1, self.horizon + drop / surface.at, height)
        scale = (np.arange(top + 0.5, bottom)[:, None] - self.horizon) / (self.elevation - y)
        scale = np.clip(scale, self.focal / z1, self.focal / surface.at)
        columns = np.arange(width)[None] + 0.5 - self.centre
        self._fill(surface, self.index[top:bottom], (columns >= x0 * scale) & (columns < x1 * scale))

    def cast(self, x0: float, x1: float, z0: float, z1: float) -> None:
        """Shadow of an object on the ground beneath it."""
        drop = self.focal * self.elevation
        top, bottom = _range(self.horizon + drop / z1, self.horizon + drop / z0, self.index.shape[0])
        self.shade[top:bottom, self._columns(x0, x1, self.focal / z0)] = 1

    def billboard(self, code: int, x: float, z: float) -> Billboard:
        """A new instance that faces the camera."""
        return Billboard(self, code, next(self.ids), x, z)


class Billboard(NamedTuple):
    """An instance that faces the camera at depth ``z``; positions of its parts are relative to ``x``."""

    canvas: Canvas
    code: int
    instance: int
    x: float
    z: float

    def box(self, part: int, x0: float, x1: float, y0: float, y1: float) -> None:
        self.canvas.box(self._surface(part), self.x + x0, self.x + x1, y0, y1)

    def disc(self, part: int, x: float, y: float, rx: float, ry: float) -> None:
        self.canvas.disc(self._surface(part), self.x + x, y, rx, ry)

    def cast(self, half: float, near: float, far: float) -> None:
        """Shadow on the ground, ``half`` to both sides, from ``near`` before the instance to ``far`` behind it."""
        self.canvas.cast(self.x - half, self.x + half, self.z - near, self.z + far)

    def _surface(self, part: int) -> Surface:
        return Surface(self.code, part, self.instance, Plane.FRONT, self.z)
