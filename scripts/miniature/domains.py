"""The domains: statistics of their scenes (``LAYOUTS``) and parameters of their renderers (``STYLES``)."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping
from typing import Any

# Range of a parameter, or a colour of 0 to 255.
Range = tuple[float, float]
Color = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Scene statistics: ranges are uniform, in metres; counts are expected numbers, the rest probabilities."""

    camera_height: Range = (1.4, 1.9)
    horizon: Range = (0.40, 0.48)  # Row as a fraction of the height.
    focal: float = 0.85  # Focal length as a fraction of the width.
    road_half: Range = (4.0, 7.0)
    sidewalk: Range = (2.4, 5.0)
    verge: float = 0.45  # Of a terrain strip between road and sidewalk, per side.
    yard: float = 0.45  # Of terrain behind the sidewalk, per side.
    setback: Range = (0.5, 6.0)
    building_height: Range = (5.0, 20.0)
    gap: float = 0.28  # Of a missing building.
    cross_street: float = 0.35
    parking: float = 0.12
    wall: float = 0.24  # Per side, as all below.
    fence: float = 0.26
    trees: float = 0.45
    bushes: float = 1.5
    poles: float = 0.7
    lights: float = 0.8
    signs: float = 1.1
    persons: float = 2.2
    bicycles: float = 0.35
    motorcycles: float = 0.22
    parked: float = 0.45
    traffic: float = 0.45  # Of a vehicle in each place of a lane.
    truck: float = 0.24  # Per image, as all below.
    bus: float = 0.22
    train: float = 0.18
    cyclist: float = 0.35
    motorcyclist: float = 0.25
    static: float = 0.25
    hood: float = 0.0
    border: float = 0.0


_CITYSCAPES_LAYOUT = Layout(
    camera_height=(1.2, 1.4),
    horizon=(0.42, 0.50),
    focal=1.0,
    road_half=(3.4, 6.0),
    setback=(0.2, 4.0),
    building_height=(7.0, 16.0),
    gap=0.18,
    verge=0.3,
    yard=0.35,
    trees=0.55,
    signs=1.3,
    persons=2.8,
    bicycles=0.5,
    parked=0.55,
    hood=0.35,
    border=0.6,
)
_city_layout = functools.partial(dataclasses.replace, _CITYSCAPES_LAYOUT, hood=0.0)

LAYOUTS: Mapping[str, Layout] = {
    "gta5": Layout(),
    "synthia": Layout((1.4, 5.0), (0.28, 0.46), persons=3.5, gap=0.35, building_height=(8.0, 26.0)),
    "cityscapes": _CITYSCAPES_LAYOUT,
    "Rome": _city_layout(road_half=(3.4, 5.5), motorcycles=0.5, verge=0.2),
    "Rio": _city_layout(trees=0.7, bus=0.35, building_height=(8.0, 22.0)),
    "Tokyo": _city_layout(road_half=(3.2, 5.0), poles=1.4, fence=0.4),
    "Taipei": _city_layout(motorcycles=0.9, motorcyclist=0.6, signs=2.0),
}


@dataclasses.dataclass(frozen=True)
class Style:
    """Parameters of the renderer. Colours are 0-255, strengths are fractions, ``blur`` is in pixels at width 128.

    Attributes:
      materials: by class, nine numbers: red, green and blue; the spread of brightness and of colour from object to
        object; amplitude and frequency (1/m) of blotches; amplitude and distance (m) of joints or bars. By part of
        objects, red, green and blue. They are read from materials.csv.
    """

    materials: Mapping[str, tuple[float, ...]]
    windows: float = 0.75  # Contrast of facade windows.
    window_size: float = 0.55  # Share of the window's pitch.
    sun: float = 0.32  # Difference between lit and unlit sides.
    shadow: float = 0.45
    occlusion: float = 0.15  # Darkening near the ground.
    sky_gradient: float = 0.25
    clouds: float = 0.10
    haze: Color = (190.0, 205.0, 225.0)
    haze_density: float = 0.004  # 1/m.
    tint: Color = (1.0, 1.0, 1.0)
    saturation: float = 1.05
    contrast: float = 1.05
    exposure: float = 0.07  # Spread from image to image.
    white_balance: float = 0.02  # Spread from image to image.
    vignette: float = 0.0
    blur: float = 0.25
    noise: float = 0.004
    jpeg: float = 100.0  # Quality; 100 leaves the image alone.


def _derived(base: Style | None, domain: str, **changes: Any) -> Style:
    """A style with the domain's rows of materials.csv; numbers and rows that it lacks are those of ``base``.

    The cities' classes change in different directions, since matching the images' colours would undo a common change.
    """
    materials = dict(base.materials) if base else {}
    with importlib.resources.files(__package__).joinpath("materials.csv").open(encoding="utf-8") as file:
        for row_domain, name, *numbers in csv.reader(file):
            if row_domain == domain:
                materials[name] = (*map(float, numbers), *materials.get(name, ())[len(numbers) :])
    return dataclasses.replace(base, materials=materials, **changes) if base else Style(materials)


GTA5 = _derived(None, "gta5")
CITYSCAPES = _derived(
    GTA5,
    "cityscapes",
    windows=0.65,
    window_size=0.42,
    sun=0.14,
    shadow=0.22,
    occlusion=0.26,
    sky_gradient=0.05,
    clouds=0.05,
    haze=(208.0, 213.0, 214.0),
    haze_density=0.007,
    tint=(1.03, 1.06, 1.00),
    saturation=0.95,
    contrast=0.98,
    exposure=0.10,
    white_balance=0.03,
    vignette=0.18,
    blur=0.45,
    noise=0.014,
    jpeg=85.0,
)

STYLES: Mapping[str, Style] = {
    "gta5": GTA5,
    "synthia": _derived(
        GTA5,
        "synthia",
        sun=0.24,
        shadow=0.35,
        occlusion=0.05,
        clouds=0.2,
        windows=0.9,
        window_size=0.45,
        saturation=1.15,
        contrast=1.1,
        blur=0.1,
        noise=0.0,
    ),
    "cityscapes": CITYSCAPES,
    "Rome": _derived(CITYSCAPES, "Rome", sun=0.3, shadow=0.4, tint=(1.04, 1.03, 0.97), haze_density=0.004),
    "Rio": _derived(CITYSCAPES, "Rio", sun=0.26, shadow=0.35, saturation=1.05, blur=0.6, exposure=0.14),
    "Tokyo": _derived(CITYSCAPES, "Tokyo", windows=0.85, window_size=0.62, occlusion=0.15),
    "Taipei": _derived(CITYSCAPES, "Taipei", haze=(206.0, 202.0, 192.0), haze_density=0.012, noise=0.022, jpeg=70.0),
}


def interpolate(start: Any, end: Any, weight: float) -> Any:
    """``start + weight * (end - start)`` for numbers, tuples, mappings and dataclasses of them."""
    if dataclasses.is_dataclass(start) and not isinstance(start, type):
        return type(start)(**interpolate(vars(start), vars(end), weight))
    if isinstance(start, Mapping):
        return {name: interpolate(start[name], end[name], weight) for name in start}
    if isinstance(start, tuple):
        return tuple(interpolate(a, b, weight) for a, b in zip(start, end, strict=True))
    return start + weight * (end - start)


@functools.cache
def domain(name: str, shift: float) -> tuple[Layout, Style]:
    """Layout and style of a dataset or city, its difference from gta5 scaled by ``shift``."""
    return (
        interpolate(LAYOUTS["gta5"], LAYOUTS[name], shift),
        interpolate(STYLES["gta5"], STYLES[name], shift),
    )
