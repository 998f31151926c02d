"""Vehicles along the street: cars, trucks, buses and trams."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fada_jax.scripts.miniature.canvas import Canvas, Surface, facing
from fada_jax.scripts.miniature.codes import Code, Part, Plane

# Width, length and height of vehicles in metres.
DIMENSIONS = {
    Code.CAR: (1.85, 4.2, 1.5),
    Code.TRUCK: (2.5, 8.0, 3.4),
    Code.BUS: (2.6, 11.0, 3.1),
    Code.TRAIN: (2.5, 22.0, 3.5),
}


class Vehicle(NamedTuple):
    """A box along the street from depth ``z``; positions of its parts are fractions of width, length and height."""

    canvas: Canvas
    code: int
    instance: int
    x: float
    z: float
    width: float
    length: float
    height: float

    def front(self, part: int, x0: float, x1: float, y0: float, y1: float, inset: float = 0.0) -> None:
        """A rectangle of the end that the camera sees, ``inset`` behind it."""
        surface = Surface(self.code, part, self.instance, Plane.FRONT, self.z + inset * self.length)
        x0, x1 = self.x + x0 * self.width, self.x + x1 * self.width
        self.canvas.box(surface, x0, x1, y0 * self.height, y1 * self.height)

    def side(self, part: int, z0: float, z1: float, y0: float, y1: float) -> None:
        """A rectangle of the flank, which the camera sees unless it looks along the vehicle."""
        if abs(self.x) > self.width / 2:
            plane = self.x - math.copysign(self.width / 2, self.x)
            surface = Surface(self.code, part, self.instance, facing(self.x), plane)
            z0, z1 = self.z + z0 * self.length, self.z + z1 * self.length
            self.canvas.side(surface, z0, z1, y0 * self.height, y1 * self.height)

    def roof(self, half: float, z0: float, z1: float, y: float) -> None:
        """A level piece, where the camera is above it."""
        if self.canvas.elevation > y * self.height + 0.1:
            surface = Surface(self.code, Part.BODY, self.instance, Plane.FRONT, self.z + z0 * self.length)
            half, z1 = half * self.width, self.z + z1 * self.length
            self.canvas.roof(surface, self.x - half, self.x + half, z1, y * self.height)


def paint_vehicle(canvas: Canvas, rng: np.random.Generator, code: Code, x: float, z: float, rear: bool) -> None:
    """A car, truck, bus or tram along the street, its rear or its front at depth z."""
    instance, scale = next(canvas.ids), rng.uniform(0.9, 1.1, 3).tolist()
    width, length, height = (size * factor for size, factor in zip(DIMENSIONS[code], scale, strict=True))
    canvas.cast(x - width / 2 - 0.2, x + width / 2 + 0.2, z - 0.3, z + length)
    vehicle = Vehicle(canvas, code, instance, x, z, width, length, height)
    if code == Code.CAR:
        _paint_car(vehicle, rear)
    else:
        _paint_large(vehicle, rear)


def _paint_car(car: Vehicle, rear: bool) -> None:
    belt = 0.58  # Height of the windows' lower edge.
    car.roof(0.5, 0, 1, belt)
    car.side(Part.GLASS, 0.15, 0.8, belt, 0.97)
    car.side(Part.BODY, 0, 1, 0.15, belt)
    car.side(Part.WHEEL, 0.1, 0.28, 0, 0.36)
    car.side(Part.WHEEL, 0.72, 0.9, 0, 0.36)
    car.roof(0.43, 0.12, 0.8, 1.0)
    car.front(Part.BODY, -0.43, 0.43, belt, 1.0, inset=0.12)
    car.front(Part.GLASS, -0.37, 0.37, belt + 0.05, 0.93, inset=0.12)
    car.front(Part.WHEEL, -0.48, -0.3, 0, 0.3)
    car.front(Part.WHEEL, 0.3, 0.48, 0, 0.3)
    car.front(Part.BODY, -0.5, 0.5, 0.16, belt + 0.03)
    for x0 in (-0.48, 0.32):
        car.front(Part.LAMP if rear else Part.PANEL, x0, x0 + 0.16, 0.42, 0.54)
    if car.z < 12:
        car._replace(code=Code.PLATE).front(Part.PANEL, -0.14, 0.14, 0.26, 0.36)


def _paint_large(vehicle: Vehicle, rear: bool) -> None:
    """A truck, bus or tram."""
    code = vehicle.code
    cargo = code == Code.TRUCK and rear  # A truck's rear has doors, all other ends have a windscreen.
    vehicle.roof(0.5, 0, 1, 1.0)
    vehicle.side(Part.SECOND if code == Code.TRUCK and not rear else Part.BODY, 0, 1, 0.12, 1.0)
    if code != Code.TRUCK:
        vehicle.side(Part.GLASS, 0.04, 0.96, 0.5, 0.84)
        vehicle.side(Part.SECOND, 0, 1, 0.14, 0.26 if code == Code.BUS else 0.36)
    vehicle.side(Part.WHEEL, 0.12, 0.2, 0, 0.24)
    vehicle.side(Part.WHEEL, 0.75, 0.84, 0, 0.24)
    vehicle.front(Part.WHEEL, -0.46, -0.26, 0, 0.18)
    vehicle.front(Part.WHEEL, 0.26, 0.46, 0, 0.18)
    vehicle.front(Part.BODY, -0.5, 0.5, 0.1, 1.0 if code != Code.TRUCK or rear else 0.78)
    if cargo:
        vehicle.front(Part.WHEEL, -0.02, 0.02, 0.2, 0.96)
        vehicle.front(Part.SECOND, -0.5, 0.5, 0.1, 0.2)
    else:
        vehicle.front(Part.GLASS, -0.42, 0.42, *((0.42, 0.7) if code == Code.TRUCK else (0.45, 0.86)))
        vehicle.front(Part.SECOND, -0.5, 0.5, 0.14, 0.26 if code == Code.BUS else 0.36)
    if code == Code.TRAIN:
        vehicle.front(Part.BODY, -0.2, 0.2, 1.0, 1.12)
    for x0 in (-0.46, 0.34):
        vehicle.front(Part.LAMP if rear else Part.PANEL, x0, x0 + 0.12, 0.2, 0.27)


def paint_crossing_car(canvas: Canvas, x: float, z: float) -> None:
    """A car seen from its side, on a crossing street."""
    car = canvas.billboard(Code.CAR, x, z)
    car.cast(2.2, 0.3, 1.8)
    car.box(Part.BODY, -1.2, 1.3, 0.8, 1.45)
    car.box(Part.GLASS, -1.0, 1.1, 0.88, 1.36)
    car.box(Part.BODY, -2.1, 2.1, 0.25, 0.9)
    for wheel in (-1.3, 1.3):
        car.disc(Part.WHEEL, wheel, 0.33, 0.36, 0.36)
