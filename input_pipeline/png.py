"""What a PNG file says of itself, and whether all of it is as it was written; decoders look past either."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour types of the specification, section 11.2.2.
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGB_ALPHA: (8, 16),
}


@dataclasses.dataclass(frozen=True)
class Header:
    """Size in pixels, bits of a sample, colour type, and whether the file holds an animation."""

    width: int
    height: int
    bits: int
    color: int
    animated: bool


def read_header(data: bytes) -> Header:
    """The header of a PNG file, every part of which is compared with its checksum.

    Raises:
      ValueError: no PNG, one that is cut short or damaged, or one of a kind that the format does not have.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("it is no PNG")
    header, animated = None, False
    for kind, body in _chunks(data):
        if header is None:
            if kind != b"IHDR" or len(body) != 13:
                raise ValueError("it does not begin with a header")
            header = struct.unpack(">IIBBBBB", body)
        animated = animated or kind == b"acTL"
    width, height, bits, color, *_ = header or (0, 0, 0, 0)
    if not width or not height or bits not in _DEPTHS.get(color, ()):
        raise ValueError(f"its header says {width}x{height} pixels of {bits} bits and colour type {color}")
    return Header(width, height, bits, color, animated)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each part up to the last.

    Raises:
      ValueError: the file ends before it, or a part is damaged.
    """
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ValueError("it is cut short")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            raise ValueError("it is cut short")
        body = data[place + 8 : end]
        if zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"its part {kind.decode('latin-1')!r} is damaged")
        yield kind, body
        place = end + 4
