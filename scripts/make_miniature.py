"""Draws miniature street scenes in the raw layouts of GTA5, SYNTHIA, Cityscapes and Cross-City.

  python scripts/make_miniature.py --out=RAW --datasets=gta5,cityscapes

Every dataset shares one sampler of streets in perspective with the 19 Cityscapes classes; what differs are the scene
statistics (camera, road, buildings, traffic) and the renderer (palette of every class, textures, light, haze, lens).
--shift scales both differences linearly: 0 draws every dataset like gta5, 1 with the statistics and palettes that are
written below. The default goes a quarter beyond: still streets to the eye, and a source-only model fails clearly.
Files, bit depths and label ids are those of the real datasets. The same flags give the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from fada_jax import classes, cli
from fada_jax.errors import UserError

DATASETS = ("gta5", "synthia", "cityscapes", "crosscity")
MARKER = "miniature.json"  # Written last into --out; --overwrite deletes only folders that hold it.
MIN_SIZE, MAX_SIZE = (64, 32), 2048
MAX_SHIFT = 1.25  # Beyond, some interpolated parameters change their sign.
DEFAULT_SHIFT = 1.25
MAX_IMAGES = 20_000
CITIES = {
    "train": ("aachen", "bremen", "cologne", "hamburg"),
    "val": ("frankfurt", "lindau", "munster"),
    "test": ("berlin", "bonn"),
}
CROSSCITY = ("Rome", "Rio", "Tokyo", "Taipei")

# Codes of the scenes' pixels: train ids, then what only some encodings tell apart.
NAMES = classes.get_class_set("cityscapes19").names
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN) = range(10)
(SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(10, 19)
EGO, STATIC, DYNAMIC, BORDER, PARKING, MARKING, PLATE = range(19, 26)
NUM_CODES = 26
MATERIAL = np.array([*range(19), CAR, POLE, PERSON, SKY, ROAD, ROAD, CAR])  # Code -> class whose material it shows.

# Parts of objects; all but BODY take their colour from Style.parts.
PARTS = ("glass", "wheel", "lamp", "skin", "trunk", "marking", "panel", "go", "second")
BODY, GLASS, WHEEL, LAMP, SKIN, TRUNK, PAINT, PANEL, GO, SECOND = range(10)
SKY_PLANE, GROUND, LEFT, RIGHT, FRONT = range(5)  # What a surface faces: LEFT and RIGHT are the street's two sides.


def _raw_ids(dataset: str, **extra: int) -> np.ndarray:
    """uint8 [NUM_CODES]: raw label id of every code; codes not named are void, 0."""
    ids = {name: raw for raw, name in classes.ENCODINGS[dataset].ids.items()} | extra
    codes = (*NAMES, "ego", "static", "dynamic", "border", "parking", "marking", "plate")
    return np.array([ids.get(name, 0) for name in codes], np.uint8)


_VOID = {"ego": 1, "static": 4, "dynamic": 5, "border": 3, "parking": 9, "marking": 7}
RAW_IDS = {
    "gta5": _raw_ids("gta5", **_VOID, plate=34),
    "cityscapes": _raw_ids("cityscapes", **_VOID, plate=26),
    "crosscity": _raw_ids("crosscity", **_VOID, plate=26),
    "synthia": _raw_ids("synthia", terrain=16, truck=18, train=20, parking=13, marking=22, plate=8),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Scene statistics: ranges are uniform, in metres; counts are expected numbers, the rest probabilities."""

    camera_height: tuple[float, float] = (1.4, 1.9)
    horizon: tuple[float, float] = (0.40, 0.48)  # Row as a fraction of the height.
    focal: float = 0.85  # Focal length as a fraction of the width.
    road_half: tuple[float, float] = (4.0, 7.0)
    sidewalk: tuple[float, float] = (2.4, 5.0)
    verge: float = 0.45  # Of a terrain strip between road and sidewalk, per side.
    yard: float = 0.45  # Of terrain behind the sidewalk, per side.
    setback: tuple[float, float] = (0.5, 6.0)
    building_height: tuple[float, float] = (5.0, 20.0)
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


# Material of a class: R G B 0-255, spread of brightness and of colour from object to object, then two textures:
# amplitude and frequency (1/m) of blotches, amplitude and size (m) of joints or bars.
Material = tuple[float, float, float, float, float, float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Style:
    """Parameters of the renderer. Colours are 0-255, strengths are fractions, ``blur`` is in pixels at width 128."""

    materials: Mapping[str, Material]
    parts: Mapping[str, tuple[float, float, float]]
    windows: float = 0.75  # Contrast of facade windows.
    window_size: float = 0.55  # Share of the window's pitch.
    sun: float = 0.32  # Difference between lit and unlit sides.
    shadow: float = 0.45
    occlusion: float = 0.15  # Darkening near the ground.
    sky_gradient: float = 0.25
    clouds: float = 0.10
    haze: tuple[float, float, float] = (190.0, 205.0, 225.0)
    haze_density: float = 0.004  # 1/m.
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: float = 1.05
    contrast: float = 1.05
    exposure: float = 0.07  # Spread from image to image.
    white_balance: float = 0.02  # Spread from image to image.
    vignette: float = 0.0
    blur: float = 0.25
    noise: float = 0.004
    jpeg: float = 100.0  # Quality; 100 leaves the image alone.


GTA5 = Style(
    materials={
        "road": (84, 82, 84, 0.06, 0.01, 0.16, 2.5, 0.00, 2.0),
        "sidewalk": (160, 151, 138, 0.07, 0.015, 0.10, 3.0, 0.12, 1.6),
        "building": (168, 138, 108, 0.20, 0.06, 0.06, 0.6, 0.00, 1.0),
        "wall": (170, 158, 140, 0.12, 0.03, 0.08, 1.0, 0.10, 1.2),
        "fence": (128, 104, 78, 0.15, 0.03, 0.06, 2.0, 0.35, 0.9),
        "pole": (84, 84, 82, 0.15, 0.02, 0.05, 2.0, 0.00, 1.0),
        "light": (92, 80, 30, 0.12, 0.03, 0.04, 2.0, 0.00, 1.0),
        "sign": (48, 125, 72, 0.15, 0.14, 0.03, 2.0, 0.00, 1.0),
        "vegetation": (82, 118, 44, 0.15, 0.04, 0.32, 1.8, 0.00, 1.0),
        "terrain": (158, 150, 84, 0.10, 0.03, 0.22, 2.2, 0.00, 1.0),
        "sky": (104, 164, 232, 0.04, 0.01, 0.00, 1.0, 0.00, 1.0),
        "person": (150, 98, 80, 0.28, 0.16, 0.06, 4.0, 0.00, 1.0),
        "rider": (172, 78, 62, 0.26, 0.16, 0.06, 4.0, 0.00, 1.0),
        "car": (150, 62, 52, 0.40, 0.18, 0.03, 1.0, 0.00, 1.0),
        "truck": (196, 180, 142, 0.16, 0.08, 0.04, 0.8, 0.06, 2.0),
        "bus": (216, 160, 62, 0.12, 0.07, 0.03, 0.8, 0.00, 1.0),
        "train": (150, 162, 180, 0.12, 0.05, 0.03, 0.8, 0.15, 3.0),
        "motorcycle": (104, 46, 44, 0.30, 0.10, 0.05, 3.0, 0.00, 1.0),
        "bicycle": (150, 108, 84, 0.25, 0.12, 0.05, 3.0, 0.00, 1.0),
    },
    parts={
        "glass": (42, 54, 70),
        "wheel": (24, 24, 26),
        "lamp": (214, 62, 40),
        "skin": (206, 156, 124),
        "trunk": (92, 68, 46),
        "marking": (226, 218, 180),
        "panel": (232, 232, 226),
        "go": (70, 220, 120),
        "second": (54, 58, 84),
    },
)

SYNTHIA = dataclasses.replace(
    GTA5,
    materials={
        "road": (70, 74, 82, 0.05, 0.01, 0.07, 1.2, 0.00, 2.0),
        "sidewalk": (146, 142, 150, 0.06, 0.02, 0.06, 2.0, 0.22, 1.0),
        "building": (150, 112, 98, 0.24, 0.06, 0.05, 0.8, 0.08, 0.8),
        "wall": (138, 122, 112, 0.10, 0.03, 0.05, 1.0, 0.22, 0.6),
        "fence": (96, 100, 104, 0.12, 0.03, 0.05, 2.0, 0.45, 0.6),
        "pole": (112, 112, 116, 0.10, 0.02, 0.04, 2.0, 0.00, 1.0),
        "light": (44, 52, 44, 0.12, 0.03, 0.04, 2.0, 0.00, 1.0),
        "sign": (60, 92, 178, 0.12, 0.16, 0.03, 2.0, 0.00, 1.0),
        "vegetation": (64, 128, 58, 0.12, 0.03, 0.38, 3.0, 0.00, 1.0),
        "terrain": (112, 140, 66, 0.08, 0.03, 0.14, 1.2, 0.00, 1.0),
        "sky": (146, 186, 236, 0.05, 0.02, 0.00, 1.0, 0.00, 1.0),
        "person": (112, 92, 110, 0.30, 0.18, 0.04, 4.0, 0.00, 1.0),
        "rider": (96, 112, 92, 0.30, 0.18, 0.04, 4.0, 0.00, 1.0),
        "car": (86, 92, 150, 0.38, 0.20, 0.02, 1.0, 0.00, 1.0),
        "truck": (150, 170, 160, 0.16, 0.08, 0.03, 0.8, 0.10, 2.0),
        "bus": (190, 82, 62, 0.12, 0.07, 0.02, 0.8, 0.00, 1.0),
        "train": (196, 190, 120, 0.12, 0.05, 0.02, 0.8, 0.10, 3.0),
        "motorcycle": (64, 60, 88, 0.30, 0.10, 0.05, 3.0, 0.00, 1.0),
        "bicycle": (96, 96, 112, 0.25, 0.12, 0.05, 3.0, 0.00, 1.0),
    },
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
)

CITYSCAPES = Style(
    materials={
        "road": (104, 102, 106, 0.08, 0.015, 0.07, 1.0, 0.04, 3.5),
        "sidewalk": (144, 126, 124, 0.10, 0.025, 0.10, 4.5, 0.20, 0.8),
        "building": (138, 126, 112, 0.22, 0.04, 0.11, 1.8, 0.05, 0.8),
        "wall": (134, 118, 104, 0.15, 0.03, 0.14, 2.0, 0.14, 0.6),
        "fence": (98, 102, 94, 0.16, 0.03, 0.08, 3.0, 0.40, 0.6),
        "pole": (110, 113, 111, 0.15, 0.02, 0.05, 4.0, 0.00, 1.0),
        "light": (56, 56, 38, 0.15, 0.03, 0.05, 4.0, 0.00, 1.0),
        "sign": (70, 100, 132, 0.20, 0.14, 0.03, 4.0, 0.00, 1.0),
        "vegetation": (62, 88, 50, 0.20, 0.03, 0.24, 3.6, 0.00, 1.0),
        "terrain": (112, 130, 74, 0.14, 0.03, 0.15, 4.0, 0.00, 1.0),
        "sky": (188, 206, 226, 0.05, 0.015, 0.00, 1.0, 0.00, 1.0),
        "person": (100, 78, 90, 0.30, 0.10, 0.10, 6.0, 0.00, 1.0),
        "rider": (118, 78, 84, 0.30, 0.11, 0.10, 6.0, 0.00, 1.0),
        "car": (96, 90, 104, 0.45, 0.10, 0.05, 2.0, 0.00, 1.0),
        "truck": (150, 156, 164, 0.20, 0.07, 0.06, 1.6, 0.04, 1.4),
        "bus": (196, 164, 96, 0.15, 0.07, 0.05, 1.6, 0.00, 1.0),
        "train": (172, 148, 132, 0.14, 0.05, 0.05, 1.6, 0.10, 2.5),
        "motorcycle": (66, 52, 60, 0.32, 0.08, 0.07, 5.0, 0.00, 1.0),
        "bicycle": (92, 86, 92, 0.28, 0.08, 0.07, 5.0, 0.00, 1.0),
    },
    parts={
        "glass": (62, 72, 76),
        "wheel": (34, 35, 38),
        "lamp": (196, 84, 70),
        "skin": (182, 146, 130),
        "trunk": (70, 62, 56),
        "marking": (204, 206, 208),
        "panel": (206, 208, 206),
        "go": (120, 210, 170),
        "second": (104, 60, 54),
    },
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


def _city(materials: Mapping[str, tuple[float, ...]], **changes: Any) -> Style:
    """The Cityscapes camera in another city: other light, and the first numbers of some classes' materials replaced.

    Classes change in different directions, since matching the images' colours would undo a common change.
    """
    table = CITYSCAPES.materials.items()
    rows = {name: (*materials.get(name, ()), *row[len(materials.get(name, ())) :]) for name, row in table}
    return dataclasses.replace(CITYSCAPES, materials=rows, **changes)


STYLES: Mapping[str, Style] = {
    "gta5": GTA5,
    "synthia": SYNTHIA,
    "cityscapes": CITYSCAPES,
    "Rome": _city(
        {
            "road": (74, 70, 72, 0.1, 0.02, 0.08, 2.0, 0.25, 0.8),
            "sidewalk": (112, 116, 120),
            "building": (196, 140, 88, 0.2, 0.06, 0.2, 0.7),
            "vegetation": (98, 104, 56, 0.2, 0.03, 0.3, 2.0),
            "terrain": (150, 132, 88),
            "sky": (120, 176, 238),
            "car": (140, 140, 138),
            "person": (140, 110, 84),
            "sign": (120, 82, 58),
            "bus": (170, 84, 70),
            "light": (70, 84, 66),
        },
        sun=0.3,
        shadow=0.4,
        tint=(1.04, 1.03, 0.97),
        haze_density=0.004,
    ),
    "Rio": _city(
        {
            "road": (120, 112, 96, 0.1, 0.02, 0.16, 2.5),
            "sidewalk": (184, 180, 168, 0.1, 0.02, 0.1, 4.5, 0.45, 1.2),
            "building": (172, 160, 150, 0.3, 0.1, 0.08, 1.0, 0.25, 0.5),
            "vegetation": (44, 112, 40, 0.25, 0.04, 0.35, 2.2),
            "terrain": (140, 112, 64),
            "sky": (150, 190, 210),
            "car": (168, 164, 160),
            "person": (150, 104, 70, 0.3, 0.2),
            "bus": (90, 140, 170),
            "pole": (84, 78, 70),
            "wall": (176, 140, 124),
        },
        sun=0.26,
        shadow=0.35,
        saturation=1.05,
        blur=0.6,
        exposure=0.14,
    ),
    "Tokyo": _city(
        {
            "road": (84, 90, 104, 0.08, 0.015, 0.04, 0.6),
            "sidewalk": (112, 122, 118, 0.1, 0.02, 0.08, 3.0, 0.35, 0.4),
            "building": (164, 164, 166, 0.25, 0.03, 0.05, 1.0, 0.3, 0.4),
            "fence": (166, 168, 170),
            "pole": (158, 150, 134),
            "vegetation": (54, 72, 62),
            "sky": (206, 214, 220),
            "car": (176, 176, 178, 0.4, 0.05),
            "person": (64, 62, 74),
            "sign": (160, 84, 76),
            "wall": (150, 152, 150),
            "light": (120, 118, 110),
        },
        windows=0.85,
        window_size=0.62,
        occlusion=0.15,
    ),
    "Taipei": _city(
        {
            "road": (134, 130, 122, 0.1, 0.02, 0.1, 2.0),
            "sidewalk": (134, 96, 84, 0.1, 0.04, 0.1, 4.5, 0.3, 0.4),
            "building": (120, 112, 108, 0.3, 0.06, 0.08, 1.0, 0.35, 0.45),
            "vegetation": (42, 98, 72, 0.2, 0.03, 0.3, 2.0),
            "terrain": (92, 120, 104),
            "sky": (212, 206, 190),
            "car": (170, 158, 120),
            "person": (74, 96, 112),
            "motorcycle": (108, 96, 82),
            "rider": (80, 104, 120),
            "sign": (150, 60, 84),
            "pole": (80, 76, 72),
            "bus": (120, 170, 150),
        },
        haze=(206.0, 202.0, 192.0),
        haze_density=0.012,
        noise=0.022,
        jpeg=70.0,
    ),
}

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

LAYOUTS: Mapping[str, Layout] = {
    "gta5": Layout(),
    "synthia": Layout((1.4, 5.0), (0.28, 0.46), persons=3.5, gap=0.35, building_height=(8.0, 26.0)),
    "cityscapes": _CITYSCAPES_LAYOUT,
    "Rome": dataclasses.replace(_CITYSCAPES_LAYOUT, road_half=(3.4, 5.5), motorcycles=0.5, verge=0.2, hood=0.0),
    "Rio": dataclasses.replace(_CITYSCAPES_LAYOUT, trees=0.7, bus=0.35, building_height=(8.0, 22.0), hood=0.0),
    "Tokyo": dataclasses.replace(_CITYSCAPES_LAYOUT, road_half=(3.2, 5.0), poles=1.4, fence=0.4, hood=0.0),
    "Taipei": dataclasses.replace(_CITYSCAPES_LAYOUT, motorcycles=0.9, motorcyclist=0.6, signs=2.0, hood=0.0),
}


def interpolate(start: Any, end: Any, weight: float) -> Any:
    """``start + weight * (end - start)`` for numbers, tuples, mappings and dataclasses of them."""
    if dataclasses.is_dataclass(start):
        values = {f.name: (getattr(start, f.name), getattr(end, f.name)) for f in dataclasses.fields(start)}
        return dataclasses.replace(start, **{name: interpolate(a, b, weight) for name, (a, b) in values.items()})
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


class Surface(NamedTuple):
    """A flat piece of the scene: the ground, a plane X = ``at`` (LEFT, RIGHT) or a plane Z = ``at`` (FRONT)."""

    code: int
    part: int
    instance: int
    plane: int
    at: float


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A scene while it is painted: X to the right of the camera, Y up from the ground, Z ahead, all in metres."""

    focal: float  # Pixels.
    centre: float  # Column of the vanishing point.
    horizon: float  # Row of the vanishing point.
    elevation: float  # Camera height.
    index: np.ndarray  # int16 [H, W] into surfaces.
    surfaces: list[Surface]
    shade: np.ndarray  # float32 [H, W], shadow on the ground, 0-1.
    ids: Iterator[int]  # Instances, from 1.


@dataclasses.dataclass(frozen=True)
class Scene:
    """What every renderer gets. Maps are [H, W]; ``random`` is [instances, 8], standard normal."""

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


def _range(low: float, high: float, limit: int) -> tuple[int, int]:
    """Pixels whose centres lie between two positions, at least one, cut at the image."""
    first = math.ceil(low - 0.5)
    return min(max(first, 0), limit), min(max(first + 1, math.ceil(high - 0.5), 0), limit)


def _box(canvas: Canvas, surface: Surface, x0: float, x1: float, y0: float, y1: float) -> None:
    scale, (height, width) = canvas.focal / surface.at, canvas.index.shape
    left, right = _range(canvas.centre + x0 * scale, canvas.centre + x1 * scale, width)
    base = canvas.horizon + canvas.elevation * scale
    top, bottom = _range(base - y1 * scale, base - y0 * scale, height)
    canvas.index[top:bottom, left:right] = len(canvas.surfaces)
    canvas.surfaces.append(surface)


def _disc(canvas: Canvas, surface: Surface, x: float, y: float, rx: float, ry: float) -> None:
    scale, (height, width) = canvas.focal / surface.at, canvas.index.shape
    column, row = canvas.centre + x * scale, canvas.horizon + (canvas.elevation - y) * scale
    rx, ry = max(rx * scale, 0.7), max(ry * scale, 0.7)
    left, right = _range(column - rx, column + rx, width)
    top, bottom = _range(row - ry, row + ry, height)
    if left >= right or top >= bottom:
        return
    a = (np.arange(left + 0.5, right) - column) / rx
    b = (np.arange(top + 0.5, bottom) - row) / ry
    canvas.index[top:bottom, left:right][(a * a)[None] + (b * b)[:, None] <= 1] = len(canvas.surfaces)
    canvas.surfaces.append(surface)


def _side(canvas: Canvas, surface: Surface, z0: float, z1: float, y0: float, y1: float) -> None:
    """Fills the piece of a plane X = at between two depths and two heights."""
    (height, width), z0 = canvas.index.shape, max(z0, 0.5)
    near, far = canvas.focal / z0, canvas.focal / z1
    start, end = canvas.centre + surface.at * near, canvas.centre + surface.at * far
    left, right = _range(min(start, end), max(start, end), width)
    if left >= right or abs(start - end) < 0.3:
        return
    scale = near + (far - near) * np.clip((np.arange(left + 0.5, right) - start) / (end - start), 0, 1)
    rows = np.arange(height)[:, None] + 0.5 - canvas.horizon
    mask = (rows >= (canvas.elevation - y1) * scale) & (rows < (canvas.elevation - y0) * scale)
    canvas.index[:, left:right][mask] = len(canvas.surfaces)
    canvas.surfaces.append(surface)


def _roof(canvas: Canvas, surface: Surface, x0: float, x1: float, z1: float, y: float) -> None:
    """Fills a level piece at height y, below the camera, from the surface's depth to z1."""
    height, width = canvas.index.shape
    drop = canvas.focal * (canvas.elevation - y)
    top, bottom = _range(canvas.horizon + drop / z1, canvas.horizon + drop / surface.at, height)
    scale = (np.arange(top + 0.5, bottom)[:, None] - canvas.horizon) / (canvas.elevation - y)
    scale = np.clip(scale, canvas.focal / z1, canvas.focal / surface.at)
    columns = np.arange(width)[None] + 0.5 - canvas.centre
    canvas.index[top:bottom][(columns >= x0 * scale) & (columns < x1 * scale)] = len(canvas.surfaces)
    canvas.surfaces.append(surface)


def _cast(canvas: Canvas, x0: float, x1: float, z0: float, z1: float) -> None:
    """Shadow of an object on the ground beneath it."""
    height, width = canvas.index.shape
    drop = canvas.focal * canvas.elevation
    top, bottom = _range(canvas.horizon + drop / z1, canvas.horizon + drop / z0, height)
    scale = canvas.focal / z0
    left, right = _range(canvas.centre + x0 * scale, canvas.centre + x1 * scale, width)
    canvas.shade[top:bottom, left:right] = 1


def _facing(x: float) -> int:
    return LEFT if x < 0 else RIGHT


def _tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, trunk: bool = True) -> None:
    radius = height * rng.uniform(0.2, 0.3) if trunk else height * rng.uniform(0.5, 0.9)
    _cast(canvas, x - radius, x + radius, max(z - radius, 1), z + radius)
    if trunk:
        wide = 0.03 * height
        _box(canvas, Surface(VEGETATION, TRUNK, next(canvas.ids), FRONT, z), x - wide, x + wide, 0, 0.6 * height)
    for dx, dy, size in rng.uniform((-0.7, -0.5, 0.55), (0.7, 0.5, 0.95), (5, 3)).tolist():
        middle = (0.72 if trunk else 0.4) * height
        surface = Surface(VEGETATION, BODY, next(canvas.ids), FRONT, z)
        ry = 0.22 * height if trunk else 0.5 * height
        _disc(canvas, surface, x + dx * radius, middle + dy * ry, size * radius, size * ry * 1.1)


def _person(canvas: Canvas, rng: np.random.Generator, x: float, z: float, code: int = PERSON) -> None:
    """A walker, or a rider without what is ridden."""
    me, size, stride = next(canvas.ids), rng.uniform(0.85, 1.1), rng.uniform(0.1, 0.3)
    _cast(canvas, x - 0.4, x + 0.4, z - 0.3, z + 0.3)
    low = 0.0 if code == PERSON else 0.5
    for foot in (-stride, stride - 0.18):
        _box(canvas, Surface(code, SECOND, me, FRONT, z), x + foot, x + foot + 0.18, low, 0.9 * size)
    _disc(canvas, Surface(code, BODY, me, FRONT, z), x, 1.12 * size, 0.3 * size, 0.42 * size)
    _disc(canvas, Surface(code, SKIN, me, FRONT, z), x, 1.62 * size, 0.15 * size, 0.17 * size)


def _two_wheeler(canvas: Canvas, rng: np.random.Generator, code: int, x: float, z: float, rider: bool = False) -> None:
    def surface(part: int) -> Surface:
        return Surface(code, part, me, FRONT, z)

    me, motor = next(canvas.ids), code == MOTORCYCLE
    _cast(canvas, x - 0.6, x + 0.6, z - 0.3, z + 0.3)
    if rng.random() < (0.4 if rider else 0.75):  # Seen from the side.
        for dx in (-0.58, 0.58):
            _disc(canvas, surface(WHEEL), x + dx, 0.36, 0.38, 0.38)
            _disc(canvas, surface(BODY if motor else PANEL), x + dx, 0.36, 0.2, 0.2)
        if motor:
            _disc(canvas, surface(BODY), x, 0.68, 0.75, 0.32)
            _box(canvas, surface(WHEEL), x - 0.7, x, 0.85, 1.0)
        else:
            _box(canvas, surface(BODY), x - 0.5, x + 0.5, 0.5, 0.68)
            _box(canvas, surface(BODY), x - 0.3, x - 0.16, 0.5, 0.95)
        _box(canvas, surface(BODY), x + 0.4, x + 0.56, 0.5, 1.1)
    else:
        wide = 0.16 if motor else 0.07
        _box(canvas, surface(WHEEL), x - wide, x + wide, 0, 0.75)
        if motor:
            _disc(canvas, surface(BODY), x, 0.8, 0.36, 0.36)
            _box(canvas, surface(LAMP), x - 0.1, x + 0.1, 0.75, 0.9)
        _box(canvas, surface(BODY), x - 0.34, x + 0.34, 0.9, 1.04)
    if rider:
        _person(canvas, rng, x, z - 0.1, RIDER)


# Width, length and height of vehicles in metres.
_DIMENSIONS = {CAR: (1.85, 4.2, 1.5), TRUCK: (2.5, 8.0, 3.4), BUS: (2.6, 11.0, 3.1), TRAIN: (2.5, 22.0, 3.5)}


def _vehicle(canvas: Canvas, rng: np.random.Generator, code: int, x: float, z: float, near_side: bool) -> None:
    """A car, truck, bus or tram along the street, its rear (``near_side``) or front at depth z."""

    def front(part: int, x0: float, x1: float, y0: float, y1: float, at: float = z, code: int = code) -> None:
        surface = Surface(code, part, me, FRONT, at)
        _box(canvas, surface, x + x0 * width, x + x1 * width, y0 * height, y1 * height)

    def side(part: int, z0: float, z1: float, y0: float, y1: float) -> None:
        surface = Surface(code, part, me, _facing(x), plane)
        _side(canvas, surface, z + z0, z + z1, y0 * height, y1 * height)

    def roof(half: float, z0: float, z1: float, y: float) -> None:
        if canvas.elevation > y * height + 0.1:
            surface = Surface(code, BODY, me, FRONT, z + z0)
            _roof(canvas, surface, x - half * width, x + half * width, z + z1, y * height)

    me = next(canvas.ids)
    width, length, height = (s * k for s, k in zip(_DIMENSIONS[code], rng.uniform(0.9, 1.1, 3).tolist(), strict=True))
    plane = x - math.copysign(width / 2, x)
    flank = abs(x) > width / 2
    _cast(canvas, x - width / 2 - 0.2, x + width / 2 + 0.2, z - 0.3, z + length)
    top = 0.58 if code == CAR else 1.0
    roof(0.5, 0, length, top)
    if code == CAR:
        if flank:
            side(GLASS, 0.15 * length, 0.8 * length, top, 0.97)
            side(BODY, 0, length, 0.15, top)
            side(WHEEL, 0.1 * length, 0.28 * length, 0, 0.36)
            side(WHEEL, 0.72 * length, 0.9 * length, 0, 0.36)
        inset = z + 0.12 * length
        roof(0.43, 0.12 * length, 0.8 * length, 1.0)
        front(BODY, -0.43, 0.43, top, 1.0, inset)
        front(GLASS, -0.37, 0.37, top + 0.05, 0.93, inset)
        front(WHEEL, -0.48, -0.3, 0, 0.3)
        front(WHEEL, 0.3, 0.48, 0, 0.3)
        front(BODY, -0.5, 0.5, 0.16, top + 0.03)
        for x0 in (-0.48, 0.32):
            front(LAMP if near_side else PANEL, x0, x0 + 0.16, 0.42, 0.54)
        if z < 12:
            front(PANEL, -0.14, 0.14, 0.26, 0.36, code=PLATE)
        return
    if flank:
        side(SECOND if code == TRUCK and not near_side else BODY, 0, length, 0.12, 1.0)
        if code != TRUCK:
            side(GLASS, 0.04 * length, 0.96 * length, 0.5, 0.84)
            side(SECOND, 0, length, 0.14, 0.26 if code == BUS else 0.36)
        side(WHEEL, 0.12 * length, 0.2 * length, 0, 0.24)
        side(WHEEL, 0.75 * length, 0.84 * length, 0, 0.24)
    front(WHEEL, -0.46, -0.26, 0, 0.18)
    front(WHEEL, 0.26, 0.46, 0, 0.18)
    front(BODY, -0.5, 0.5, 0.1, 1.0 if code != TRUCK or near_side else 0.78)
    if code == TRUCK and near_side:
        front(WHEEL, -0.02, 0.02, 0.2, 0.96)
        front(SECOND, -0.5, 0.5, 0.1, 0.2)
    else:
        front(GLASS, -0.42, 0.42, *((0.42, 0.7) if code == TRUCK else (0.45, 0.86)))
        front(SECOND, -0.5, 0.5, 0.14, 0.26 if code == BUS else 0.36)
    if code == TRAIN:
        front(BODY, -0.2, 0.2, 1.0, 1.12)
    for x0 in (-0.46, 0.34):
        front(LAMP if near_side else PANEL, x0, x0 + 0.12, 0.2, 0.27)


def _crossing_car(canvas: Canvas, x: float, z: float) -> None:
    """A car seen from its side, on a crossing street."""
    me = next(canvas.ids)
    _cast(canvas, x - 2.2, x + 2.2, z - 0.3, z + 1.8)
    parts = ((BODY, -1.2, 1.3, 0.8, 1.45), (GLASS, -1.0, 1.1, 0.88, 1.36), (BODY, -2.1, 2.1, 0.25, 0.9))
    for part, x0, x1, y0, y1 in parts:
        _box(canvas, Surface(CAR, part, me, FRONT, z), x + x0, x + x1, y0, y1)
    for dx in (-1.3, 1.3):
        _disc(canvas, Surface(CAR, WHEEL, me, FRONT, z), x + dx, 0.33, 0.36, 0.36)


def _post(canvas: Canvas, rng: np.random.Generator, code: int, x: float, z: float) -> None:
    """A street lamp (POLE), traffic light or sign, with its post."""
    me = next(canvas.ids)
    height = {POLE: rng.uniform(4.5, 7.5), LIGHT: rng.uniform(3.0, 3.8), SIGN: rng.uniform(2.3, 3.0)}[code]
    post = Surface(POLE, BODY, me, FRONT, z)
    _box(canvas, post, x - 0.09, x + 0.09, 0, height)
    if code == POLE:
        end = x - math.copysign(1.6, x)
        _box(canvas, post, min(x, end), max(x, end), height - 0.15, height)
    elif code == LIGHT:
        _box(canvas, Surface(LIGHT, BODY, me, FRONT, z), x - 0.28, x + 0.28, height - 0.9, height + 0.35)
        on = int(rng.integers(2))
        lamp = Surface(LIGHT, (GO, LAMP)[on], me, FRONT, z)
        _disc(canvas, lamp, x, height - 0.6 + 0.65 * on, 0.17, 0.17)
    else:
        face = Surface(SIGN, BODY, me, FRONT, z)
        if rng.random() < 0.5:
            _disc(canvas, face, x, height, 0.45, 0.45)
            _disc(canvas, Surface(SIGN, PANEL, me, FRONT, z), x, height, 0.2, 0.2)
        else:
            _box(canvas, face, x - 0.5, x + 0.5, height - 0.4, height + 0.4)
            _box(canvas, Surface(SIGN, PANEL, me, FRONT, z), x - 0.32, x + 0.32, height - 0.1, height + 0.12)


@dataclasses.dataclass(frozen=True)
class Street:
    """The plan of a street: offsets from its middle line, one of each pair per side, in metres."""

    middle: float  # X of the middle line.
    half: float
    verge: tuple[float, float]  # Widths.
    sidewalk: tuple[float, float]
    facade: tuple[float, float]  # Distance of the buildings.
    yard: tuple[int, int]  # Code of the ground behind the sidewalk.
    crossing: tuple[float, float]  # Depths of a crossing street, both far away where there is none.
    parking: bool
    zebra: bool


def _sample_street(rng: np.random.Generator, layout: Layout) -> Street:
    half = rng.uniform(*layout.road_half)
    verge = tuple(rng.uniform(1.2, 3.2) if rng.random() < layout.verge else 0.0 for _ in range(2))
    sidewalk = tuple(rng.uniform(*layout.sidewalk) for _ in range(2))
    facade = tuple(half + verge[i] + sidewalk[i] + rng.uniform(*layout.setback) for i in range(2))
    yard = tuple(TERRAIN if rng.random() < layout.yard else SIDEWALK for _ in range(2))
    start = rng.uniform(9, 35) if rng.random() < layout.cross_street else 1e3
    middle = -rng.uniform(0.1, 0.6) * half
    crossing = (start, start + rng.uniform(6, 10))
    return Street(
        middle, half, verge, sidewalk, facade, yard, crossing, rng.random() < layout.parking, rng.random() < 0.5
    )


def _paint_ground(canvas: Canvas, street: Street, lanes: int) -> None:
    height, width = canvas.index.shape
    first = min(max(math.ceil(canvas.horizon), 0), height)
    z = canvas.focal * canvas.elevation / (np.arange(first, height)[:, None] + 0.5 - canvas.horizon)
    offset = (np.arange(width)[None] + 0.5 - canvas.centre) * z / canvas.focal - street.middle
    side, out = (offset > 0).astype(int), np.abs(offset) - street.half
    verge, walk = np.array(street.verge)[side], np.array(street.sidewalk)[side]
    code = np.array(street.yard)[side]
    code = np.where(out < verge + walk, SIDEWALK, code)
    code = np.where(out < verge, TERRAIN, code)
    crossing = (z > street.crossing[0]) & (z < street.crossing[1])
    lane = 2 * street.half / lanes
    # Wider than real paint, so that it survives at miniature size.
    line = (np.abs(offset % lane - lane / 2) > lane / 2 - 0.13) & (z % 6 < 3.2) & (np.abs(out + street.half) > lane / 2)
    line |= (np.abs(offset) < 0.13) | (np.abs(out + 0.35) < 0.1)
    if street.zebra:
        line |= (z > street.crossing[0] - 3.5) & (z < street.crossing[0] - 0.8) & (offset % 1.2 < 0.6)
    road = np.where(line & ~crossing, MARKING, ROAD)
    if street.parking:
        road = np.where((out > -2.4) & ~crossing, PARKING, road)
    code = np.where((out < 0) | crossing, road, code)
    order = (ROAD, SIDEWALK, TERRAIN, PARKING, MARKING)
    lookup = np.zeros(NUM_CODES, np.int16)
    for ground in order:
        lookup[ground] = len(canvas.surfaces)
        part = PAINT if ground == MARKING else BODY
        canvas.surfaces.append(Surface(ground, part, next(canvas.ids), GROUND, 0.0))
    canvas.index[first:] = lookup[code]


def _paint_background(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street) -> None:
    """Skyline, buildings, yards and the walls or fences before them, far to near."""
    for x, wide, tall in rng.uniform((-70, 6, 0.4), (70, 20, 1.1), (9, 3)).tolist():
        surface = Surface(BUILDING, BODY, next(canvas.ids), FRONT, 110.0)
        _box(canvas, surface, x - wide / 2, x + wide / 2, 0, tall * layout.building_height[1])
    for x, tall in rng.uniform((-50, 4), (50, 10), (5, 2)).tolist():
        _tree(canvas, rng, x, 90.0, tall, trunk=False)
    for i, sign in enumerate((-1, 1)):
        x = street.middle + sign * street.facade[i]
        pieces, z = [], -rng.uniform(0, 10)
        while z < 85:
            length = rng.uniform(7, 18)
            pieces.append((z, z + length, rng.random() < layout.gap))
            z += length
        for z0, z1, gap in reversed(pieces):
            if z1 > street.crossing[0] and z0 < street.crossing[1]:
                z0 = street.crossing[1] if z0 > street.crossing[0] else z0
                z1 = street.crossing[0] if z0 < street.crossing[0] else z1
                if z1 - z0 < 3:
                    continue
            if gap:
                for t, outside in rng.uniform((0, 2), (1, 9), (3, 2)).tolist():
                    depth = z0 + t * (z1 - z0)
                    if depth > 5:
                        _tree(canvas, rng, x + sign * outside, depth, rng.uniform(4, 9), trunk=rng.random() < 0.6)
                continue
            me, tall = next(canvas.ids), rng.uniform(*layout.building_height)
            if z0 > 1:
                end = x + sign * 14
                _box(canvas, Surface(BUILDING, BODY, me, FRONT, z0), min(x, end), max(x, end), 0, tall)
            if z1 > 1:
                _side(canvas, Surface(BUILDING, BODY, me, _facing(x), x), z0, z1, 0, tall)
        for _ in range(rng.poisson(layout.bushes)):
            z = rng.uniform(6, 40)
            if not street.crossing[0] - 1 < z < street.crossing[1] + 1:
                _tree(canvas, rng, x - sign * 0.6, z, rng.uniform(0.8, 1.8), trunk=False)
        for code, chance in ((WALL, layout.wall), (FENCE, layout.fence)):
            if rng.random() < chance:
                z0 = rng.uniform(2, 16)
                z1 = z0 + rng.uniform(10, 30)
                if z0 < street.crossing[0] < z1:
                    z1 = street.crossing[0] - 0.5
                at = x - sign * rng.uniform(0.1, 0.4) * (street.facade[i] - street.half - street.verge[i])
                tall = rng.uniform(1.6, 3.0) if code == WALL else rng.uniform(1.0, 1.9)
                if z1 > z0 + 2 and not street.crossing[0] < z0 < street.crossing[1]:
                    _side(canvas, Surface(code, BODY, next(canvas.ids), _facing(at), at), z0, z1, 0, tall)


def _paint_traffic(canvas: Canvas, rng: np.random.Generator, layout: Layout, street: Street, lanes: int) -> None:
    """Everything that stands or moves on road and sidewalks, far to near."""
    objects: list[tuple[float, Any]] = []
    wanted = [c for c, p in ((TRUCK, layout.truck), (BUS, layout.bus), (TRAIN, layout.train)) if rng.random() < p]
    riders = [(BICYCLE, layout.cyclist), (MOTORCYCLE, layout.motorcyclist)]
    lane_width = 2 * street.half / lanes
    order = rng.permutation(lanes).tolist()
    for rank, lane in enumerate(order):
        x = street.middle - street.half + (lane + 0.5) * lane_width
        away = x > street.middle
        z = rng.uniform(6, 14) + (3 if abs(x) < 1.5 else 0)
        code = wanted[rank] if rank < len(wanted) else None
        while z < 70:
            if code is not None or rng.random() < layout.traffic:
                chosen = CAR if code is None else code
                draw = functools.partial(_vehicle, canvas, rng, chosen, x + rng.uniform(-0.3, 0.3), z, away)
                objects.append((z, draw))
                z += _DIMENSIONS[chosen][1] * 1.1
            code = None
            z += rng.uniform(4, 16)
    for code, chance in riders:
        if rng.random() < chance:
            x, z = street.middle + rng.uniform(-0.9, 0.9) * street.half, rng.uniform(5, 16)
            objects.append((z, functools.partial(_two_wheeler, canvas, rng, code, x, z, True)))
    if street.crossing[0] < 100:
        for _ in range(rng.poisson(0.8)):
            x, z = rng.uniform(-12, 12), rng.uniform(*street.crossing)
            objects.append((z, functools.partial(_crossing_car, canvas, x, z)))
    for _ in range(rng.poisson(0.4)):  # People on the road.
        x, z = street.middle + rng.uniform(-1, 1) * street.half, rng.uniform(7, 30)
        objects.append((z, functools.partial(_person, canvas, rng, x, z)))
    for i, sign in enumerate((-1, 1)):
        kerb = street.half + street.verge[i]

        def place(low: float, high: float, near: float = 5.0, far: float = 40.0) -> tuple[float, float]:
            """X between two offsets from the middle line, Z denser near the camera."""
            x = street.middle + sign * rng.uniform(low, high)  # noqa: B023
            return x, near * (far / near) ** rng.random()

        if rng.random() < layout.parked * 1.4:
            z = rng.uniform(4, 12)
            while z < 60:
                if rng.random() < 0.6 and not street.crossing[0] - 5 < z < street.crossing[1]:
                    x = street.middle + sign * (street.half - 1.1)
                    objects.append((z, functools.partial(_vehicle, canvas, rng, CAR, x, z, sign > 0)))
                z += rng.uniform(5, 8)
        if rng.random() < layout.trees:
            z = rng.uniform(6, 14)
            while z < 60:
                x = street.middle + sign * (street.half + max(street.verge[i] / 2, 0.6))
                objects.append((z, functools.partial(_tree, canvas, rng, x, z, rng.uniform(4.5, 8.0))))
                z += rng.uniform(7, 14)
        inner, outer = kerb + 0.3, kerb + street.sidewalk[i] - 0.2
        for code, count in ((POLE, layout.poles), (LIGHT, layout.lights), (SIGN, layout.signs)):
            for _ in range(rng.poisson(count)):
                x, z = place(street.half + 0.2, kerb + 0.8, 6.0, 35.0)
                objects.append((z, functools.partial(_post, canvas, rng, code, x, z)))
        for _ in range(rng.poisson(layout.persons)):
            x, z = place(inner, outer)
            objects.append((z, functools.partial(_person, canvas, rng, x, z)))
        for code, count in ((BICYCLE, layout.bicycles), (MOTORCYCLE, layout.motorcycles)):
            for _ in range(rng.poisson(count)):
                x, z = place(inner, outer, 5.0, 18.0)
                objects.append((z, functools.partial(_two_wheeler, canvas, rng, code, x, z)))
        if rng.random() < layout.static:
            x, z = place(inner, outer, 5.0, 20.0)
            surface = Surface((STATIC, DYNAMIC)[int(rng.integers(2))], SECOND, next(canvas.ids), FRONT, z)
            objects.append((z, functools.partial(_box, canvas, surface, x - 0.35, x + 0.35, 0, 1.0)))
    for _, draw in sorted(objects, key=lambda item: -item[0]):
        draw()


def sample_scene(rng: np.random.Generator, layout: Layout, width: int, height: int) -> Scene:
    """Samples a street and paints what a camera in it sees."""
    ids = itertools.count(1)
    canvas = Canvas(
        focal=layout.focal * width,
        centre=width * (0.5 + rng.uniform(-0.12, 0.12)),
        horizon=height * rng.uniform(*layout.horizon),
        elevation=rng.uniform(*layout.camera_height),
        index=np.zeros((height, width), np.int16),
        surfaces=[Surface(SKY, BODY, 0, SKY_PLANE, 1e4)],
        shade=np.zeros((height, width), np.float32),
        ids=ids,
    )
    street = _sample_street(rng, layout)
    lanes = 2 if street.half < 6 else 4
    _paint_ground(canvas, street, lanes)
    _paint_background(canvas, rng, layout, street)
    _paint_traffic(canvas, rng, layout, street, lanes)
    if rng.random() < layout.hood:
        bottom = canvas.elevation - (height - canvas.horizon) * 2 / canvas.focal  # At a depth of 2 m.
        _disc(canvas, Surface(EGO, GLASS, next(ids), FRONT, 2.0), 0, bottom, 1.0, rng.uniform(0.08, 0.16))

    # Positions on the surfaces follow from their planes.
    code, part, instance, plane = (np.array(c) for c in list(zip(*canvas.surfaces, strict=True))[:4])
    at = np.array([s.at for s in canvas.surfaces], np.float32)[canvas.index]
    plane = plane.astype(np.uint8)[canvas.index]
    columns = (np.arange(width, dtype=np.float32)[None] + 0.5 - canvas.centre) / canvas.focal
    rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - canvas.horizon) / canvas.focal
    ground = plane == GROUND
    walls = (plane == LEFT) | (plane == RIGHT)
    slope = np.where(np.abs(columns) < 1e-3, np.float32(1e-3), columns)
    depth = np.where(ground, canvas.elevation / np.maximum(rows, 1e-3), np.where(walls, at / slope, at))
    depth = np.clip(depth, 0.5, 1e4)
    u = np.where(walls, depth, columns * depth)
    v = np.where(ground, depth, canvas.elevation - rows * depth)
    pixel = depth / canvas.focal * np.where(ground, np.maximum(depth / canvas.elevation, 1), 1)
    # The street's unlit side throws its shadow on part of the ground.
    sun = 1.0 if rng.random() < 0.5 else -1.0
    edge = rng.uniform(-0.5, 1.2) * street.half
    shade = np.where(ground & ((u - street.middle) * sun > edge), np.float32(1), canvas.shade)
    return Scene(
        code=code.astype(np.uint8)[canvas.index],
        part=part.astype(np.uint8)[canvas.index],
        instance=instance.astype(np.uint16)[canvas.index],
        plane=plane,
        depth=depth,
        u=u,
        v=v,
        pixel=pixel,
        shade=shade,
        random=rng.standard_normal((next(ids), 8)).astype(np.float32),
        sun=sun,
        border=max(1, width // 128) if rng.random() < layout.border else 0,
    )


def _lookup(tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear value of a periodic 64x64 noise tile at any positions."""
    fu, fv = np.floor(u), np.floor(v)
    iu, iv = fu.astype(np.int32) & 63, fv.astype(np.int32) & 63
    du, dv = u - fu, v - fv
    ju, jv = (iu + 1) & 63, (iv + 1) & 63
    top = tile[iv, iu] * (1 - du) + tile[iv, ju] * du
    return top * (1 - dv) + (tile[jv, iu] * (1 - du) + tile[jv, ju] * du) * dv


def _blurred(image: np.ndarray, variance: float) -> np.ndarray:
    """[H, W, 3] smoothed with a three-tap kernel of that variance (at most 0.5) along both axes."""
    a = variance / 2
    for axis in (0, 1):
        pad = [(1, 1) if i == axis else (0, 0) for i in range(3)]
        p = np.pad(image, pad, mode="edge")
        n = image.shape[axis]
        image = (1 - 2 * a) * image + a * (p.take(range(n), axis) + p.take(range(2, n + 2), axis))
    return image


def render(rng: np.random.Generator, scene: Scene, style: Style) -> np.ndarray:
    """Draws a scene: uint8 RGB [H, W, 3]."""
    width = scene.code.shape[1]
    table = np.array([style.materials[name] for name in NAMES], np.float32)[MATERIAL]
    material, random = table[scene.code], scene.random[scene.instance]
    tile = rng.standard_normal((64, 64), dtype=np.float32)

    # Colour of every pixel's object and part.
    color = material[..., :3] / 255 * (1 + material[..., 3:4] * np.clip(random[..., :1], -1.5, 2.0))
    color += material[..., 4:5] * random[..., 1:4]
    parts = np.array([(0, 0, 0), *(style.parts[name] for name in PARTS)], np.float32) / 255
    spread = 1 + 0.35 * random[..., 4:5] * (scene.part == SECOND)[..., None]
    color = np.where((scene.part == BODY)[..., None], color, parts[scene.part] * spread)

    # Textures, fading where a pixel covers more than their period.
    texture = material[..., 5] * _lookup(tile, scene.u * material[..., 6], scene.v * material[..., 6])
    texture /= 1 + (scene.pixel * material[..., 6]) ** 2
    joint = ((scene.u / material[..., 8]) % 1 < 0.25) | ((scene.v / material[..., 8]) % 1 < 0.2)
    texture -= material[..., 7] * joint / (1 + (2 * scene.pixel / material[..., 8]) ** 2)
    color *= 1 + (texture * np.where(scene.part == BODY, 1, 0.3))[..., None]
    color = _with_windows(color, scene, style, tile, random)

    # Light: lit and unlit sides, shadow on the ground, less light near the ground.
    side = np.array([0, 0.05, scene.sun, -scene.sun, -0.25], np.float32)[scene.plane] * style.sun
    upright = scene.plane >= LEFT
    side -= style.occlusion * upright * np.exp(-np.maximum(scene.v, 0) / 1.2)
    side -= style.shadow * scene.shade * (scene.plane == GROUND)
    color *= (1 + side)[..., None]

    # Air: the sky's gradient and clouds, haze by depth and towards the horizon.
    sky = scene.plane == SKY_PLANE
    elevation = np.maximum(scene.v, 0) / 1e4  # Slope of the ray, in the sky.
    cloud = _lookup(tile, np.arange(width)[None] * 6 / width + 0 * elevation, elevation * 12)
    color *= (1 + sky * (style.clouds * cloud - style.sky_gradient * elevation))[..., None]
    fog = np.where(sky, 0.6 * np.exp(-6 * elevation), 1 - np.exp(-style.haze_density * scene.depth))[..., None]
    color += fog * (np.array(style.haze, np.float32) / 255 - color)
    return _photograph(rng, color, style)


def _with_windows(color: np.ndarray, scene: Scene, style: Style, tile: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Adds windows and shop fronts to the buildings, in their own planes."""
    y, x = np.nonzero(scene.code == BUILDING)
    u, v, r, pixel = scene.u[y, x], scene.v[y, x], random[y, x], scene.pixel[y, x]
    pitch = 2.6 + 0.5 * np.clip(r[:, 5], -1.5, 2)
    storey = 3.0 + 0.3 * np.clip(r[:, 6], -1.5, 1.5)
    column, row = u / pitch, (v - 0.6) / storey
    size = style.window_size
    hit = (column % 1 < size) & (row % 1 > 0.3) & (row % 1 < 0.3 + size) & (row > 1)
    hit |= (row < 0.8) & (row > 0.1) & (column * 0.5 % 1 < 0.75) & (r[:, 7] > 0)
    bright = tile[np.floor(row).astype(np.int32) & 63, np.floor(column).astype(np.int32) & 63]
    glass = np.array(style.parts["glass"], np.float32) / 255 * (1 + 0.3 * np.clip(bright, -1.5, 2))[:, None]
    weight = style.windows * hit / (1 + (1.2 * pixel / pitch) ** 2)
    facade = color[y, x]
    color[y, x] = facade + weight[:, None] * (glass - facade)
    return color


def _photograph(rng: np.random.Generator, color: np.ndarray, style: Style) -> np.ndarray:
    """Lens, sensor and compression: float [H, W, 3] to uint8."""
    height, width = color.shape[:2]
    variance = (style.blur * width / 128) ** 2
    passes = max(1, math.ceil(variance / 0.5))
    for _ in range(passes if variance > 0 else 0):
        color = _blurred(color, variance / passes)
    gain = np.array(style.tint) * np.exp(style.white_balance * rng.standard_normal(3))
    color = color * (gain * np.exp(style.exposure * rng.standard_normal())).astype(np.float32)
    grey = color.mean(axis=2, keepdims=True)
    color = grey + style.saturation * (color - grey)
    color = 0.45 + style.contrast * (color - 0.45)
    radius = np.linspace(-1, 1, height)[:, None] ** 2 + np.linspace(-1, 1, width)[None] ** 2
    color = color * (1 - style.vignette * radius / 2)[..., None]
    color += style.noise * rng.standard_normal((height, width, 3), dtype=np.float32)
    image = (np.clip(color, 0, 1) * 255 + 0.5).astype(np.uint8)
    quality = round(style.jpeg)
    if quality >= 100:
        return image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=max(quality, 1))
    return np.asarray(Image.open(buffer))


class Task(NamedTuple):
    """One image to make; everything that its bytes depend on."""

    seed: tuple[int, int, int, int]
    dataset: str
    domain: str
    shift: float
    size: tuple[int, int]
    image: str  # Paths below the output folder.
    label: str  # Empty: the image has none.


@dataclasses.dataclass(frozen=True)
class Counts:
    """Images to make per split."""

    source: int = 800  # gta5, and synthia.
    target: int = 500  # Training images of cityscapes.
    val: int = 150
    test: int = 20
    city_train: int = 200
    city_test: int = 100


def plan(datasets: Sequence[str], counts: Counts, size: tuple[int, int], seed: int, shift: float) -> list[Task]:
    """Every image of the chosen datasets; ``size`` is the target's (width, height)."""

    def gta5(i: int) -> tuple[str, str]:
        return f"gta5/images/{i + 1:05d}.png", f"gta5/labels/{i + 1:05d}.png"

    def synthia(i: int) -> tuple[str, str]:
        return tuple(f"synthia/RAND_CITYSCAPES/{folder}/{i:07d}.png" for folder in ("RGB", "GT/LABELS"))

    def cityscapes(split: str, i: int) -> tuple[str, str]:
        city = CITIES[split][i % len(CITIES[split])]
        stem = f"{split}/{city}/{city}_{i // len(CITIES[split]):06d}_000019"
        return f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png", f"cityscapes/gtFine/{stem}_gtFine_labelIds.png"

    def crosscity(city: str, split: str, i: int) -> tuple[str, str]:
        stem = f"pano_{i:05d}_{i % 4}_{i % 2 * 180}"
        label = f"crosscity/{city}/Labels/Test/{stem}_eval.png" if split == "Test" else ""
        return f"crosscity/{city}/Images/{split}/{stem}.png", label

    # Dataset, domain, number of the split, its images, height where the target's is 64, their paths.
    splits: list[tuple[str, str, int, int, int, Callable[[int], tuple[str, str]]]] = [
        ("gta5", "gta5", 0, counts.source, 72, gta5),
        ("synthia", "synthia", 0, counts.source, 76, synthia),
    ]
    for number, (split, count) in enumerate(zip(CITIES, (counts.target, counts.val, counts.test), strict=True)):
        splits.append(("cityscapes", "cityscapes", number, count, 64, functools.partial(cityscapes, split)))
    for number, (city, split) in enumerate(itertools.product(CROSSCITY, ("Train", "Test"))):
        count = counts.city_train if split == "Train" else counts.city_test
        splits.append(("crosscity", city, number, count, 64, functools.partial(crosscity, city, split)))
    width, height = size
    return [
        Task((seed, DATASETS.index(name), number, i), name, look, shift, (width, round(height * rows / 64)), *paths(i))
        for name, look, number, count, rows, paths in splits
        if name in datasets
        for i in range(count)
    ]


def label_ids(scene: Scene, dataset: str) -> np.ndarray:
    """Raw label ids of a dataset, uint8 [H, W]."""
    code = scene.code.copy()
    if scene.border:
        code[:, : scene.border] = code[:, -scene.border :] = BORDER
    return RAW_IDS[dataset][code]


def draw(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3], raw label ids uint8 [H, W] and instances uint16 [H, W], 0 where no thing is."""
    rng = np.random.default_rng(task.seed)
    layout, style = domain(task.domain, task.shift)
    scene = sample_scene(rng, layout, *task.size)
    things = (scene.code >= PERSON) & (scene.code <= BICYCLE) | (scene.code == PLATE)
    return render(rng, scene, style), label_ids(scene, task.dataset), np.where(things, scene.instance, 0)


def png16(channels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write, of uint16 [H, W, 3]."""
    height, width = channels.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = channels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def make(root: str, task: Task) -> None:
    """Draws one image and writes it with its label."""
    image, ids, instances = draw(task)
    Image.fromarray(image).save(os.path.join(root, task.image))
    if not task.label:
        return
    path = os.path.join(root, task.label)
    if task.dataset == "synthia":
        channels = np.stack([ids.astype(np.uint16), instances, np.zeros_like(instances)], axis=2)
        Path(path).write_bytes(png16(channels))
        return
    if "/test/" in task.label:  # The real archive holds the camera's own regions only.
        ids = np.where(ids <= 3, ids, 0).astype(np.uint8)
    label = Image.fromarray(ids)
    if task.dataset == "gta5":
        palette = np.zeros((256, 3), np.uint8)
        palette[RAW_IDS["gta5"][: len(NAMES)]] = classes.get_class_set("cityscapes19").colors
        label.putpalette(palette.tobytes())
    label.save(path)


def make_all(root: Path, tasks: list[Task], workers: int) -> None:
    """Makes every image below ``root``, with progress on stderr."""
    for folder in {os.path.dirname(path) for task in tasks for path in (task.image, task.label) if path}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    start, work = time.monotonic(), functools.partial(make, str(root))
    with contextlib.ExitStack() as stack:
        results = map(work, tasks)
        if workers > 1:
            # Spawned, not forked: the caller may hold threads, as JAX does.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers, mp_context=context))
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            results = pool.map(work, tasks, chunksize=16)
        for done, _ in enumerate(results, 1):
            if done % 50 == 0 or done == len(tasks):
                rate = done / (time.monotonic() - start)
                left = (len(tasks) - done) / rate
                end = "\n" if done == len(tasks) or not sys.stderr.isatty() else ""
                if end or sys.stderr.isatty():
                    line = f"{done}/{len(tasks)} images, {rate:.0f} a second, {left:.0f} s left"
                    print(f"\r{line:<60}" if sys.stderr.isatty() else line, end=end, file=sys.stderr, flush=True)


def summary(tasks: list[Task]) -> str:
    """One line per split: images, their size, and how many have labels."""
    lines = []
    for _, group in itertools.groupby(tasks, lambda task: (task.dataset, task.seed[2])):
        made = list(group)
        folder = os.path.dirname(made[0].image)
        folder = os.path.dirname(folder) if made[0].dataset == "cityscapes" else folder  # Without the city.
        width, height = made[0].size
        lines.append(f"{folder}: {len(made)} images {width}x{height}, {sum(bool(t.label) for t in made)} labelled")
    return "\n".join(lines)


def check(
    datasets: Sequence[str], counts: Counts, size: tuple[int, int], seed: int, shift: float, workers: int
) -> None:
    """Raises a UserError for values that cannot be meant."""
    unknown = [name for name in datasets if name not in DATASETS]
    if unknown or not datasets:
        raise UserError(f"--datasets={','.join(datasets)}: choose from {','.join(DATASETS)}")
    if not all(low <= length <= MAX_SIZE for low, length in zip(MIN_SIZE, size, strict=True)):
        least = "x".join(map(str, MIN_SIZE))
        raise UserError(f"--size={size[0]}x{size[1]}: from {least} to {MAX_SIZE}x{MAX_SIZE}")
    if not 0 <= shift <= MAX_SHIFT:
        raise UserError(f"--shift={shift}: from 0 to {MAX_SHIFT}")
    if seed < 0:
        raise UserError(f"--seed={seed}: 0 or more")
    if workers < 1:
        raise UserError(f"--workers={workers}: 1 or more")
    for name, count in dataclasses.asdict(counts).items():
        if not 0 <= count <= MAX_IMAGES:
            raise UserError(f"--{name}_images={count}: from 0 to {MAX_IMAGES}")


def prepare(out: Path, overwrite: bool) -> Path:
    """Checks that ``out`` may be written and gives the empty folder that becomes it at the end."""
    if out.is_file():
        raise UserError(f"--out={out}: a file; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise UserError(f"--out={out}: not empty and not made by this script; name another folder")
        if not overwrite:
            raise UserError(f"--out={out}: exists; name another folder or add --overwrite to make it anew")
    partial = out.with_name(out.name + ".partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def generate(
    out: Path,
    datasets: tuple[str, ...] = DATASETS,
    counts: Counts = Counts(),
    size: tuple[int, int] = (128, 64),
    seed: int = 0,
    shift: float = DEFAULT_SHIFT,
    workers: int = 1,
    overwrite: bool = False,
) -> str:
    """Makes the datasets below ``out``, which appears only once complete; returns the summary.

    Raises:
      UserError: a value is out of range, or ``out`` is in use or cannot be written.
    """
    check(datasets, counts, size, seed, shift, workers)
    out = Path(os.path.abspath(os.path.expanduser(out)))
    tasks = plan(datasets, counts, size, seed, shift)
    if not tasks:
        raise UserError("nothing to make: every count of the chosen datasets is 0")
    try:
        partial = prepare(out, overwrite)
        make_all(partial, tasks, workers)
        facts = {"datasets": datasets, "counts": dataclasses.asdict(counts), "size": size, "seed": seed, "shift": shift}
        (partial / MARKER).write_text(json.dumps(facts, indent=2) + "\n")
        if out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror or error}") from error
    return summary(tasks)


def main(arguments: list[str]) -> None:
    values = flags.FLAGS
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: every setting is a flag, see --help")
    if not values.out:
        raise UserError("--out is missing: the folder to make")
    counts = Counts(*(values[f"{field.name}_images"].value for field in dataclasses.fields(Counts)))
    workers = values.workers if values.workers is not None else os.cpu_count() or 1
    size = cli.size("size", values.size)
    out = Path(values.out)
    text = generate(out, values.datasets, counts, size, values.seed, values.shift, workers, values.overwrite)
    print(f"{text}\nmade in {out}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to make; it must not exist yet.")
    flags.DEFINE_list("datasets", list(DATASETS), "Datasets to make, separated by commas.")
    flags.DEFINE_integer("seed", 0, "Seed of all random numbers, 0 or more.")
    flags.DEFINE_string("size", "128x64", "Width x height of the target; gta5 is 9/8 and synthia 19/16 as high.")
    flags.DEFINE_float("shift", DEFAULT_SHIFT, f"Strength of the domain shift, from 0 (like gta5) to {MAX_SHIFT}.")
    flags.DEFINE_integer("source_images", Counts.source, "Images of gta5, and of synthia.")
    flags.DEFINE_integer("target_images", Counts.target, "Training images of cityscapes.")
    flags.DEFINE_integer("val_images", Counts.val, "Validation images of cityscapes.")
    flags.DEFINE_integer("test_images", Counts.test, "Test images of cityscapes; their labels are void, as in reality.")
    flags.DEFINE_integer("city_train_images", Counts.city_train, "Unlabelled images of each city of crosscity.")
    flags.DEFINE_integer("city_test_images", Counts.city_test, "Labelled images of each city of crosscity.")
    flags.DEFINE_integer("workers", None, "Processes; default: the number of cores. The files do not depend on it.")
    flags.DEFINE_bool("overwrite", False, "Replace --out if this script made it.")
    cli.run(main)
