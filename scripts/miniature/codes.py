"""Codes of a scene's pixels: the class, the part of an object, the plane of its surface; and raw ids of the classes."""

from __future__ import annotations

import enum

import numpy as np

from fada_jax import classes

NAMES = classes.get_class_set("cityscapes19").names
# Classes by train id, then those that only some encodings tell apart.
Code = enum.IntEnum(
    "Code",
    "ROAD SIDEWALK BUILDING WALL FENCE POLE LIGHT SIGN VEGETATION TERRAIN SKY PERSON RIDER CAR TRUCK BUS TRAIN "
    "MOTORCYCLE BICYCLE EGO STATIC DYNAMIC BORDER PARKING MARKING PLATE",
    start=0,
)
# Code -> class whose material it shows.
MATERIAL = np.array([*range(19), Code.CAR, Code.POLE, Code.PERSON, Code.SKY, Code.ROAD, Code.ROAD, Code.CAR])
# A body has the colour of its object's material, every other part its own.
Part = enum.IntEnum("Part", "BODY GLASS WHEEL LAMP SKIN TRUNK MARKING PANEL GO SECOND", start=0)
# What a surface faces: LEFT and RIGHT are the street's two sides.
Plane = enum.IntEnum("Plane", "SKY GROUND LEFT RIGHT FRONT", start=0)


def _raw_ids(dataset: str, **extra: int) -> np.ndarray:
    """uint8 [codes]: raw label id of every code; codes without a name are void, 0."""
    ids = {name: raw for raw, name in classes.ENCODINGS[dataset].ids.items()} | extra
    return np.array([ids.get(code.name.lower(), 0) for code in Code], np.uint8)


_VOID = {"ego": 1, "static": 4, "dynamic": 5, "border": 3, "parking": 9, "marking": 7}
RAW_IDS = {
    "gta5": _raw_ids("gta5", **_VOID, plate=34),
    "cityscapes": _raw_ids("cityscapes", **_VOID, plate=26),
    "crosscity": _raw_ids("crosscity", **_VOID, plate=26),
    "synthia": _raw_ids("synthia", terrain=16, truck=18, train=20, parking=13, marking=22, plate=8),
}
