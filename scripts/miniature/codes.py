"""Codes of a scene's pixels: the class, the part of an object, the plane of its surface; and raw ids of the classes."""

from __future__ import annotations

import numpy as np

from fada_jax import classes

# Classes: train ids, then what only some encodings tell apart.
NAMES = classes.get_class_set("cityscapes19").names
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN) = range(10)
(SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(10, 19)
EGO, STATIC, DYNAMIC, BORDER, PARKING, MARKING, PLATE = range(19, 26)
NUM_CODES = 26
MATERIAL = np.array([*range(19), CAR, POLE, PERSON, SKY, ROAD, ROAD, CAR])  # Code -> class whose material it shows.

# Parts of objects; a body has the colour of its object's material, every other part its own of these names.
BODY, GLASS, WHEEL, LAMP, SKIN, TRUNK, PAINT, PANEL, GO, SECOND = range(10)
PARTS = ("glass", "wheel", "lamp", "skin", "trunk", "marking", "panel", "go", "second")

# What a surface faces: LEFT and RIGHT are the street's two sides.
SKY_PLANE, GROUND, LEFT, RIGHT, FRONT = range(5)


def _raw_ids(dataset: str, **extra: int) -> np.ndarray:
    """uint8 [NUM_CODES]: raw label id of every code; codes without a name are void, 0."""
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
