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


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_png(ids: np.ndarray, bits: int, color: int = 0, *more: bytes) -> bytes:
    """A PNG of grey (0) or palette (3) ids [H, W] packed into ``bits`` by hand; ``more``: parts before the pixels."""
    height, width = ids.shape
    rows = b""
    for row in ids:
        packed = "".join(format(int(x), f"0{bits}b") for x in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + int(packed, 2).to_bytes(len(packed) // 8, "big")
    palette = chunk(b"PLTE", bytes(range(3 * min(2**bits, 85)))) if color == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + palette + b"".join(more) + body


# Adam7, PNG specification section 8.2: first row and column of each pass, and their steps.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png16(array: np.ndarray, interlaced: bool = False, rows: int | None = None) -> bytes:
    """A 16-bit PNG of uint16 [H, W, 1 to 4] (grey, grey and alpha, RGB, RGBA) that uses every row filter.

    ``rows``: so many of its rows are there, with checksums that are right.
    """
    height, width, channels = array.shape
    passes = [array[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [array[:rows]]

    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, interlaced)
    body = zlib.compress(b"".join(_filtered(part) for part in passes if part.size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _filtered(array: np.ndarray) -> bytes:
    """Rows of uint16 [H, W, C] as PNG stores them, under its five filters in turn."""
    height, width, channels = array.shape
    step = 2 * channels
    rows = array.astype(">u2").view(np.uint8).reshape(height, width * step).astype(np.int32)
    raw, above = b"", np.zeros(width * step, np.int32)
    for y, row in enumerate(rows):
        left, corner = (np.concatenate([np.zeros(step, np.int32), x[:-step]]) for x in (row, above))
        p = left + above - corner
        a, b, c = abs(p - left), abs(p - above), abs(p - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        guess = (0, left, above, (left + above) // 2, paeth)[y % 5]
        raw += bytes([y % 5]) + ((row - guess) & 255).astype(np.uint8).tobytes()
        above = row
    return raw


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


def camvid_names() -> dict[str, list[str]]:
    """The public SegNet split of CamVid, as its tutorial lists it: folder -> stems of 367, 101 and 233 frames."""
    train = [f"0001TP_{i:06d}" for i in range(6690, 8521, 30)] + [f"0006R0_f{i:05d}" for i in range(930, 3931, 30)]
    for first, last in ((390, 2400), (4350, 7920), (8190, 8640)):
        train += [f"0016E5_{i + (i == 900):05d}" for i in range(first, last + 1, 30)]  # 901 takes the place of 900.
    return {
        "train": train,
        "val": [f"0016E5_{i:05d}" for i in range(7959, 8160, 2)],
        "test": [f"0001TP_{i:06d}" for i in range(8550, 10381, 30)] + [f"Seq05VD_f{i:05d}" for i in range(0, 5101, 30)],
    }


def camvid(root: Path) -> Path:
    """All 701 frames of the public copy, tiny; picture and ids are those of the frame's number."""
    for split, names in camvid_names().items():
        for name in names:
            number = int(name.split("_")[1].removeprefix("f"))
            _save(root / split / f"{name}.png", Image.fromarray(picture(number, 6, 8)))
            _save(root / f"{split}annot" / f"{name}.png", Image.fromarray(ids(number, 6, 8, 12)))
    return root


def folder(root: Path, split: str, count: int, label: np.ndarray | None, size: tuple[int, int] = (20, 30)) -> Path:
    """A user's own split: images of ``size`` (height, width), JPEG and PNG in turn, all with the same label."""
    for i in range(count):
        suffix = "png" if i % 2 else "jpg"
        _save(root / split / "images" / f"street_{i}.{suffix}", Image.fromarray(picture(i, *size)))
        if label is not None:
            _save(root / split / "labels" / f"street_{i}.png", Image.fromarray(label))
    return root
