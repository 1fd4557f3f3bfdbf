"""What an image file claims, read off its header in microseconds, before any decoder sees it.

Decoders walk whatever a file holds: millions of empty chunks or markers take Pillow seconds, hundreds of scans make
libjpeg paint the frame hundreds of times, and 34 bytes of WebP are 64 million pixels. Used to turn such files away, and
to know how long a frame will take. It decides nothing about whether a file is an image: that is `plants.images`.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

MAX_CHUNKS = 16_384
"""Of a PNG; writers that cut finest use 4 KB a chunk, which is 10,000 for the largest file taken."""
MAX_SEGMENTS = 2_048
"""Of a JPEG before its first scan; profiles and notes of 64 KB each come to some dozens."""
MAX_FILLING = 4_096
MAX_EXIF_BYTES = 1 << 16
"""What a JPEG can hold; Pillow reads any number of entries of a larger one, and warns of each."""

_FILLING = re.compile(rb"\xff+")
_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD8)])
_FRAMES = frozenset([*range(0xC0, 0xD0)]) - {0xC4, 0xC8, 0xCC}


class Claim(NamedTuple):
    """What the header says."""

    num_pixels: int
    """Width times height; 0 where the header does not say."""
    oddity: str | None = None
    """Why no camera writes such a file, or None."""


def claim(data: bytes) -> Claim:
    """The claim of a file's first bytes. Never raises, whatever they are."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data)
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return Claim(_webp(data))
        if data[:3] == b"GIF":
            width, height = struct.unpack_from("<HH", data, 6)
            return Claim(width * height)
        if data[:2] == b"BM":
            width, height = struct.unpack_from("<ii", data, 18)
            return Claim(abs(width * height))
    except (struct.error, IndexError):
        pass  # cut short: the decoder says so
    return Claim(0)


def _png(data: bytes) -> Claim:
    width, height = struct.unpack_from(">II", data, 16)
    at, end = 8, len(data) - 8
    for _ in range(MAX_CHUNKS):
        if at > end:
            return Claim(width * height)
        length = int.from_bytes(data[at : at + 4], "big")
        if length > MAX_EXIF_BYTES and data[at + 4 : at + 8] == b"eXIf":
            return Claim(width * height, f"the EXIF block has {length:,} bytes")
        at += length + 12
    return Claim(width * height, f"the PNG has more than {MAX_CHUNKS:,} chunks")


def _jpeg(data: bytes) -> Claim:
    at, num_pixels = 2, 0
    for _ in range(MAX_SEGMENTS):
        if (filling := _FILLING.match(data, at)) is None:
            return Claim(num_pixels)
        if filling.end() - at > MAX_FILLING:
            return Claim(num_pixels, f"{filling.end() - at:,} bytes of filling in the JPEG's header")
        at = filling.end() - 1
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):
            return Claim(num_pixels)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            num_pixels = width * height
        at += 2 if marker in _NO_LENGTH else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return Claim(num_pixels, f"the JPEG has more than {MAX_SEGMENTS:,} segments before its first scan")


def _tiff(data: bytes) -> Claim:
    order = "<" if data[:1] == b"I" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (num_tags,) = struct.unpack_from(f"{order}H", data, at)
    sides = {}
    for number in range(min(num_tags, 64)):
        tag, kind, _ = struct.unpack_from(f"{order}HHI", data, at + 2 + 12 * number)
        if tag in (256, 257):
            (sides[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 10 + 12 * number)
    oddity = f"the TIFF has {num_tags:,} tags" if num_tags > MAX_SEGMENTS else None
    return Claim(sides.get(256, 0) * sides.get(257, 0), oddity)


def _webp(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        return (1 + int.from_bytes(data[24:27], "little")) * (1 + int.from_bytes(data[27:30], "little"))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    width, height = struct.unpack_from("<HH", data, 26)
    return int((width & 0x3FFF) * (height & 0x3FFF))
