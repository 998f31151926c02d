"""Everything that stands or moves on a street's road and sidewalks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from fada_jax.scripts.miniature.canvas import Canvas
from fada_jax.scripts.miniature.codes import Code, Part
from fada_jax.scripts.miniature.domains import Layout
from fada_jax.scripts.miniature.objects import paint_person, paint_post, paint_tree, paint_two_wheeler
from fada_jax.scripts.miniature.streets import SIDES, Street
from fada_jax.scripts.miniature.vehicles import DIMENSIONS, paint_crossing_car, paint_vehicle

# Depth of an object, and the call that paints it.
Placed = tuple[float, Callable[[], None]]


def paint_traffic(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street) -> None:
    """Draws where everything is, then paints it far to near."""
    objects = [*_in_lanes(canvas, rng, layout, street), *_on_the_road(canvas, rng, layout, street)]
    for i in range(len(SIDES)):
        objects += [*_at_the_kerb(canvas, rng, layout, street, i), *_on_the_sidewalk(canvas, rng, layout, street, i)]
    for _, paint in sorted(objects, key=lambda placed: -placed[0]):
        paint()


def _in_lanes(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street) -> Iterator[Placed]:
    """Vehicles; a truck, bus or tram is the first of its lane."""
    chances = ((Code.TRUCK, layout.truck), (Code.BUS, layout.bus), (Code.TRAIN, layout.train))
    large = [code for code, chance in chances if rng.random() < chance]
    lane_width = 2 * street.half / street.lanes
    for rank, lane in enumerate(rng.permutation(street.lanes).tolist()):
        x = street.middle - street.half + (lane + 0.5) * lane_width
        z = rng.uniform(6, 14) + (3 if abs(x) < 1.5 else 0)
        first = rank < len(large)
        while z < 70:
            if first or rng.random() < layout.traffic:
                code = large[rank] if first else Code.CAR
                at, rear = x + rng.uniform(-0.3, 0.3), x > street.middle
                yield z, functools.partial(paint_vehicle, canvas, rng, code, at, z, rear)
                z += DIMENSIONS[code][1] * 1.1
            first = False
            z += rng.uniform(4, 16)


def _on_the_road(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street) -> Iterator[Placed]:
    """Riders, crossing cars and people."""
    for code, chance in ((Code.BICYCLE, layout.cyclist), (Code.MOTORCYCLE, layout.motorcyclist)):
        if rng.random() < chance:
            x, z = street.middle + rng.uniform(-0.9, 0.9) * street.half, rng.uniform(5, 16)
            yield z, functools.partial(paint_two_wheeler, canvas, rng, code, x, z, True)
    if street.crossing[0] < 100:
        for _ in range(rng.poisson(0.8)):
            x, z = rng.uniform(-12, 12), rng.uniform(*street.crossing)
            yield z, functools.partial(paint_crossing_car, canvas, x, z)
    for _ in range(rng.poisson(0.4)):
        x, z = street.middle + rng.uniform(-1, 1) * street.half, rng.uniform(7, 30)
        yield z, functools.partial(paint_person, canvas, rng, x, z)


def _at_the_kerb(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street, i: int) -> Iterator[Placed]:
    """Parked cars and a row of trees on one side."""
    if rng.random() < layout.parked * 1.4:
        z = rng.uniform(4, 12)
        while z < 60:
            if rng.random() < 0.6 and not street.crosses(z, before=5):
                x = street.middle + SIDES[i] * (street.half - 1.1)
                yield z, functools.partial(paint_vehicle, canvas, rng, Code.CAR, x, z, SIDES[i] > 0)
            z += rng.uniform(5, 8)
    if rng.random() < layout.trees:
        z = rng.uniform(6, 14)
        while z < 60:
            x = street.middle + SIDES[i] * (street.half + max(street.verge[i] / 2, 0.6))
            yield z, functools.partial(paint_tree, canvas, rng, x, z, rng.uniform(4.5, 8.0))
            z += rng.uniform(7, 14)


def _on_the_sidewalk(
    canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street, i: int
) -> Iterator[Placed]:
    """Posts, walkers, parked two-wheelers and a box on one side."""
    kerb = street.half + street.verge[i]
    inner, outer = kerb + 0.3, kerb + street.sidewalk[i] - 0.2

    def place(low: float, high: float, near: float, far: float) -> tuple[float, float]:
        """X between two offsets from the middle line, Z denser near the camera."""
        x = street.middle + SIDES[i] * rng.uniform(low, high)
        return x, near * (far / near) ** rng.random()

    for code, count in ((Code.POLE, layout.poles), (Code.LIGHT, layout.lights), (Code.SIGN, layout.signs)):
        for _ in range(rng.poisson(count)):
            x, z = place(street.half + 0.2, kerb + 0.8, 6.0, 35.0)
            yield z, functools.partial(paint_post, canvas, rng, code, x, z)
    for _ in range(rng.poisson(layout.persons)):
        x, z = place(inner, outer, 5.0, 40.0)
        yield z, functools.partial(paint_person, canvas, rng, x, z)
    for code, count in ((Code.BICYCLE, layout.bicycles), (Code.MOTORCYCLE, layout.motorcycles)):
        for _ in range(rng.poisson(count)):
            x, z = place(inner, outer, 5.0, 18.0)
            yield z, functools.partial(paint_two_wheeler, canvas, rng, code, x, z)
    if rng.random() < layout.static:
        x, z = place(inner, outer, 5.0, 20.0)
        box = canvas.billboard((Code.STATIC, Code.DYNAMIC)[int(rng.integers(2))], x, z)
        yield z, functools.partial(box.box, Part.SECOND, -0.35, 0.35, 0, 1.0)
