"""The renderer: a scene in a domain's materials, light, haze and camera."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from fada_jax.scripts.miniature.codes import MATERIAL, NAMES, Code, Part, Plane
from fada_jax.scripts.miniature.domains import Style
from fada_jax.scripts.miniature.scenes import Scene


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
    parts = np.array([(0, 0, 0), *(style.materials[part.name.lower()] for part in Part if part)], np.float32) / 255
    spread = 1 + 0.35 * random[..., 4:5] * (scene.part == Part.SECOND)[..., None]
    color = np.where((scene.part == Part.BODY)[..., None], color, parts[scene.part] * spread)

    # Textures, fading where a pixel covers more than their period.
    texture = material[..., 5] * _lookup(tile, scene.u * material[..., 6], scene.v * material[..., 6])
    texture /= 1 + (scene.pixel * material[..., 6]) ** 2
    joint = ((scene.u / material[..., 8]) % 1 < 0.25) | ((scene.v / material[..., 8]) % 1 < 0.2)
    texture -= material[..., 7] * joint / (1 + (2 * scene.pixel / material[..., 8]) ** 2)
    color *= 1 + (texture * np.where(scene.part == Part.BODY, 1, 0.3))[..., None]
    color = _with_windows(color, scene, style, tile, random)

    # Light: lit and unlit sides, shadow on the ground, less light near the ground.
    side = np.array([0, 0.05, scene.sun, -scene.sun, -0.25], np.float32)[scene.plane] * style.sun
    upright = scene.plane >= Plane.LEFT
    side -= style.occlusion * upright * np.exp(-np.maximum(scene.v, 0) / 1.2)
    side -= style.shadow * scene.shade * (scene.plane == Plane.GROUND)
    color *= (1 + side)[..., None]

    # Air: the sky's gradient and clouds, haze by depth and towards the horizon.
    sky = scene.plane == Plane.SKY
    elevation = np.maximum(scene.v, 0) / 1e4  # Slope of the ray, in the sky.
    cloud = _lookup(tile, np.arange(width)[None] * 6 / width + 0 * elevation, elevation * 12)
    color *= (1 + sky * (style.clouds * cloud - style.sky_gradient * elevation))[..., None]
    fog = np.where(sky, 0.6 * np.exp(-6 * elevation), 1 - np.exp(-style.haze_density * scene.depth))[..., None]
    color += fog * (np.array(style.haze, np.float32) / 255 - color)
    return _photograph(rng, color, style)


def _with_windows(color: np.ndarray, scene: Scene, style: Style, tile: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Adds windows and shop fronts to the buildings, in their own planes."""
    y, x = np.nonzero(scene.code == Code.BUILDING)
    u, v, r, pixel = scene.u[y, x], scene.v[y, x], random[y, x], scene.pixel[y, x]
    pitch = 2.6 + 0.5 * np.clip(r[:, 5], -1.5, 2)
    storey = 3.0 + 0.3 * np.clip(r[:, 6], -1.5, 1.5)
    column, row = u / pitch, (v - 0.6) / storey
    size = style.window_size
    hit = (column % 1 < size) & (row % 1 > 0.3) & (row % 1 < 0.3 + size) & (row > 1)
    hit |= (row < 0.8) & (row > 0.1) & (column * 0.5 % 1 < 0.75) & (r[:, 7] > 0)
    bright = tile[np.floor(row).astype(np.int32) & 63, np.floor(column).astype(np.int32) & 63]
    glass = np.array(style.materials["glass"], np.float32) / 255 * (1 + 0.3 * np.clip(bright, -1.5, 2))[:, None]
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
