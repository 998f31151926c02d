"""Images and labels as files, encoded like those of the real archives."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from fada_jax import classes
from fada_jax.scripts.miniature.codes import NAMES, RAW_IDS, Code
from fada_jax.scripts.miniature.domains import domain
from fada_jax.scripts.miniature.layouts import Task
from fada_jax.scripts.miniature.renderer import render
from fada_jax.scripts.miniature.scenes import Scene, sample_scene


def label_ids(scene: Scene, dataset: str) -> np.ndarray:
    """Raw label ids of a dataset, uint8 [H, W]."""
    code = scene.code.copy()
    if scene.border:
        code[:, : scene.border] = code[:, -scene.border :] = Code.BORDER
    return RAW_IDS[dataset][code]


def draw(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3], raw label ids uint8 [H, W] and instances uint16 [H, W], 0 where no thing is."""
    rng = np.random.default_rng(task.seed)
    layout, style = domain(task.domain, task.shift)
    scene = sample_scene(rng, layout, *task.size)
    things = (scene.code >= Code.PERSON) & (scene.code <= Code.BICYCLE) | (scene.code == Code.PLATE)
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


def write_label(path: Path, dataset: str, ids: np.ndarray, instances: np.ndarray) -> None:
    """Writes raw ids uint8 [H, W]; synthia keeps the instances, uint16 [H, W], in a second channel."""
    if dataset == "synthia":
        path.write_bytes(png16(np.stack([ids.astype(np.uint16), instances, np.zeros_like(instances)], axis=2)))
        return
    label = Image.fromarray(ids)
    if dataset == "gta5":
        palette = np.zeros((256, 3), np.uint8)
        palette[RAW_IDS["gta5"][: len(NAMES)]] = classes.get_class_set("cityscapes19").colors
        label.putpalette(palette.tobytes())
    label.save(path)


def write(root: Path, task: Task) -> None:
    """Draws one image and writes it with its label."""
    image, ids, instances = draw(task)
    Image.fromarray(image).save(root / task.image)
    if "/test/" in task.label:  # The real archive holds the camera's own regions only.
        ids = np.where(ids <= 3, ids, 0).astype(np.uint8)
    if task.label:
        write_label(root / task.label, task.dataset, ids, instances)
