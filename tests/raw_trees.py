"""Tiny raw data sets in the exact layouts and formats of the real ones, made with Pillow and the standard library."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random image, uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def ids(seed: int, height: int, width: int, count: int) -> np.ndarray:
    """Random raw ids below ``count`` in blocks, uint8 [height, width]."""
    coarse = np.random.default_rng(seed + 1000).integers(0, count, (6, 8), dtype=np.uint8)
    return np.kron(coarse, np.ones((-(-height // 6), -(-width // 8)), np.uint8))[:height, :width]


def gta5(root: Path, count: int = 6) -> Path:
    for i in range(1, count + 1):
        _save(root / "images" / f"{i:05d}.png", Image.fromarray(picture(i, 36, 64)))
        label = Image.fromarray(ids(i, 36, 64, 35), mode="P")
        label.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        _save(root / "labels" / f"{i:05d}.png", label)
    return root


def png16(array: np.ndarray, filters: bool = True) -> bytes:
    """A 16-bit RGB PNG of uint16 [H, W, 3] that uses every row filter."""
    height, width, _ = array.shape
    rows = array.astype(">u2").view(np.uint8).reshape(height, width * 6).astype(np.int32)
    raw, above = b"", np.zeros(width * 6, np.int32)
    for y, row in enumerate(rows):
        kind = y % 5 if filters else 0
        left, corner = (np.concatenate([np.zeros(6, np.int32), x[:-6]]) for x in (row, above))
        p = left + above - corner
        a, b, c = abs(p - left), abs(p - above), abs(p - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        guess = (0, left, above, (left + above) // 2, paeth)[kind]
        raw += bytes([kind]) + ((row - guess) & 255).astype(np.uint8).tobytes()
        above = row

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def synthia(root: Path, count: int = 3) -> Path:
    for i in range(count):
        _save(root / "RAND_CITYSCAPES" / "RGB" / f"{i:07d}.png", Image.fromarray(picture(i, 38, 64)))
        label = np.zeros((38, 64, 3), np.uint16)
        label[..., 0] = ids(i, 38, 64, 23)
        label[..., 1] = np.random.default_rng(i).integers(0, 60000, (38, 64))
        path = root / "RAND_CITYSCAPES" / "GT" / "LABELS" / f"{i:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png16(label))
    return root


def cityscapes(root: Path) -> Path:
    for split, cities in {"train": ("aachen", "bochum"), "val": ("lindau",), "test": ("berlin",)}.items():
        for city in cities:
            for i in range(3):
                stem = f"{city}_{i:06d}_000019"
                path = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
                _save(path, Image.fromarray(picture(i, 32, 64)))
                label = ids(i, 32, 64, 34) if split != "test" else np.ones((32, 64), np.uint8)
                _save(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", Image.fromarray(label))
    return root


def crosscity(root: Path, city: str = "Rome") -> Path:
    for i in range(3):
        _save(root / city / "Images" / "Train" / f"pano_{i:05d}_0.jpg", Image.fromarray(picture(i, 32, 64)))
    for i in range(2):
        _save(root / city / "Images" / "Test" / f"pano_{i:05d}_2.png", Image.fromarray(picture(i, 32, 64)))
        _save(root / city / "Labels" / "Test" / f"pano_{i:05d}_2_eval.png", Image.fromarray(ids(i, 32, 64, 34)))
    return root


def folder(root: Path, split: str, count: int, label: np.ndarray | None, size: tuple[int, int] = (20, 30)) -> Path:
    """A user's own split: images of ``size`` (height, width), JPEG and PNG in turn, all with the same label."""
    for i in range(count):
        suffix = "png" if i % 2 else "jpg"
        _save(root / split / "images" / f"street_{i}.{suffix}", Image.fromarray(picture(i, *size)))
        if label is not None:
            _save(root / split / "labels" / f"street_{i}.png", Image.fromarray(label))
    return root
