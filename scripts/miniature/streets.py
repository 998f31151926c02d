"""The street: its plan, its ground, and both of its sides: buildings, yards, walls and fences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from fada_jax.scripts.miniature.canvas import Canvas, Surface, facing
from fada_jax.scripts.miniature.codes import Code, Part, Plane
from fada_jax.scripts.miniature.domains import Layout
from fada_jax.scripts.miniature.objects import paint_tree

_Value = TypeVar("_Value")
SIDES = (-1, 1)  # Left and right of the middle line.


@dataclasses.dataclass(frozen=True)
class Street:
    """The plan of a street: offsets from its middle line, a pair has the value of either side, in metres."""

    middle: float  # X of the middle line.
    half: float
    verge: tuple[float, float]  # Widths.
    sidewalk: tuple[float, float]
    facade: tuple[float, float]  # Distance of the buildings.
    yard: tuple[int, int]  # Code of the ground behind the sidewalk.
    crossing: tuple[float, float]  # Depths of a crossing street, both far away if the scene has none.
    parking: bool
    zebra: bool

    @property
    def lanes(self) -> int:
        return 2 if self.half < 6 else 4

    def crosses(self, z: float, before: float = 0.0, behind: float = 0.0) -> bool:
        """Whether depth ``z`` is on the crossing street or so close to it."""
        return self.crossing[0] - before < z < self.crossing[1] + behind


def _pair(of_side: Callable[[int], _Value]) -> tuple[_Value, _Value]:
    return of_side(0), of_side(1)


def sample_street(rng: np.random.Generator, layout: Layout) -> Street:
    """Draws a street."""
    half = rng.uniform(*layout.road_half)
    verge = _pair(lambda _: rng.uniform(1.2, 3.2) if rng.random() < layout.verge else 0.0)
    sidewalk = _pair(lambda _: rng.uniform(*layout.sidewalk))
    facade = _pair(lambda side: half + verge[side] + sidewalk[side] + rng.uniform(*layout.setback))
    yard = _pair(lambda _: Code.TERRAIN if rng.random() < layout.yard else Code.SIDEWALK)
    start = rng.uniform(9, 35) if rng.random() < layout.cross_street else 1e3
    middle = -rng.uniform(0.1, 0.6) * half
    crossing = (start, start + rng.uniform(6, 10))
    parking, zebra = rng.random() < layout.parking, rng.random() < 0.5
    return Street(middle, half, verge, sidewalk, facade, yard, crossing, parking, zebra)


def paint_ground(canvas: Canvas, street: Street) -> None:
    """Road, markings, verges, sidewalks and yards up to the horizon."""
    height, width = canvas.index.shape
    first = min(max(math.ceil(canvas.horizon), 0), height)
    z = canvas.focal * canvas.elevation / (np.arange(first, height)[:, None] + 0.5 - canvas.horizon)
    offset = (np.arange(width)[None] + 0.5 - canvas.centre) * z / canvas.focal - street.middle
    side, beyond = (offset > 0).astype(int), np.abs(offset) - street.half
    verge, walk = np.array(street.verge)[side], np.array(street.sidewalk)[side]
    code = np.array(street.yard)[side]
    code = np.where(beyond < verge + walk, Code.SIDEWALK, code)
    code = np.where(beyond < verge, Code.TERRAIN, code)
    start, end = street.crossing
    crossing = (z > start) & (z < end)
    lane = 2 * street.half / street.lanes
    # Lines are wider than real paint, so that they survive at miniature size.
    line = np.abs(offset % lane - lane / 2) > lane / 2 - 0.13
    line &= (z % 6 < 3.2) & (np.abs(beyond + street.half) > lane / 2)
    line |= (np.abs(offset) < 0.13) | (np.abs(beyond + 0.35) < 0.1)
    if street.zebra:
        line |= (z > start - 3.5) & (z < start - 0.8) & (offset % 1.2 < 0.6)
    road = np.where(line & ~crossing, Code.MARKING, Code.ROAD)
    if street.parking:
        road = np.where((beyond > -2.4) & ~crossing, Code.PARKING, road)
    code = np.where((beyond < 0) | crossing, road, code)
    lookup = np.zeros(len(Code), np.int16)
    for ground in (Code.ROAD, Code.SIDEWALK, Code.TERRAIN, Code.PARKING, Code.MARKING):
        lookup[ground] = len(canvas.surfaces)
        part = Part.MARKING if ground == Code.MARKING else Part.BODY
        canvas.surfaces.append(Surface(ground, part, next(canvas.ids), Plane.GROUND, 0.0))
    canvas.index[first:] = lookup[code]


def paint_background(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street) -> None:
    """Skyline, buildings, yards and the walls or fences before them, far to near."""
    for x, wide, tall in rng.uniform((-70, 6, 0.4), (70, 20, 1.1), (9, 3)).tolist():
        surface = Surface(Code.BUILDING, Part.BODY, next(canvas.ids), Plane.FRONT, 110.0)
        canvas.box(surface, x - wide / 2, x + wide / 2, 0, tall * layout.building_height[1])
    for x, tall in rng.uniform((-50, 4), (50, 10), (5, 2)).tolist():
        paint_tree(canvas, rng, x, 90.0, tall, trunk=False)
    for i, sign in enumerate(SIDES):
        x = street.middle + sign * street.facade[i]
        for z0, z1, gap in reversed(list(_plots(rng, layout))):
            if z1 > street.crossing[0] and z0 < street.crossing[1]:
                z0 = street.crossing[1] if z0 > street.crossing[0] else z0
                z1 = street.crossing[0] if z0 < street.crossing[0] else z1
                if z1 - z0 < 3:
                    continue
            (_paint_gap if gap else _paint_building)(canvas, rng, layout, x, sign, z0, z1)
        for _ in range(rng.poisson(layout.bushes)):
            z = rng.uniform(6, 40)
            if not street.crosses(z, 1, 1):
                paint_tree(canvas, rng, x - sign * 0.6, z, rng.uniform(0.8, 1.8), trunk=False)
        _paint_barriers(canvas, rng, layout, street, i)


def _plots(rng: np.random.Generator, layout: Layout) -> Iterator[tuple[float, float, bool]]:
    """Start and end of each plot along a side of the street, near to far, and whether its building is missing."""
    z = -rng.uniform(0, 10)
    while z < 85:
        length = rng.uniform(7, 18)
        yield z, z + length, rng.random() < layout.gap
        z += length


def _paint_gap(
    canvas: Canvas, rng: np.random.Generator, layout: Layout, x: float, sign: int, z0: float, z1: float
) -> None:
    """Trees and bushes on a plot without a building."""
    for along, outside in rng.uniform((0, 2), (1, 9), (3, 2)).tolist():
        z = z0 + along * (z1 - z0)
        if z > 5:
            paint_tree(canvas, rng, x + sign * outside, z, rng.uniform(4, 9), trunk=rng.random() < 0.6)


def _paint_building(
    canvas: Canvas, rng: np.random.Generator, layout: Layout, x: float, sign: int, z0: float, z1: float
) -> None:
    instance, tall = next(canvas.ids), rng.uniform(*layout.building_height)
    if z0 > 1:
        end = x + sign * 14
        canvas.box(Surface(Code.BUILDING, Part.BODY, instance, Plane.FRONT, z0), min(x, end), max(x, end), 0, tall)
    if z1 > 1:
        canvas.side(Surface(Code.BUILDING, Part.BODY, instance, facing(x), x), z0, z1, 0, tall)


def _paint_barriers(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street, i: int) -> None:
    """A wall and a fence before the buildings of one side."""
    for code, chance in ((Code.WALL, layout.wall), (Code.FENCE, layout.fence)):
        if rng.random() < chance:
            z0 = rng.uniform(2, 16)
            z1 = z0 + rng.uniform(10, 30)
            if z0 < street.crossing[0] < z1:
                z1 = street.crossing[0] - 0.5
            room = street.facade[i] - street.half - street.verge[i]
            x = street.middle + SIDES[i] * street.facade[i] - SIDES[i] * rng.uniform(0.1, 0.4) * room
            tall = rng.uniform(1.6, 3.0) if code == Code.WALL else rng.uniform(1.0, 1.9)
            if z1 > z0 + 2 and not street.crosses(z0):
                canvas.side(Surface(code, Part.BODY, next(canvas.ids), facing(x), x), z0, z1, 0, tall)
