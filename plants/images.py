"""Bytes -> pixels -> the uint8 views a model sees: the only preprocessing, in training and serving alike.

Limits are checked before anything is decoded. An image is read rightly or refused: 12 and 16 bit data go through the
environment's window, never through Pillow's saturating `convert`. Subtracting the mean and dividing by the standard
deviation happens inside the exported trunk, so a uint8 view is the model's input everywhere.
Embedded colour profiles are not applied: a camera's raw values are what models learn from.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from plants.errors import InputError
from plants.plant import Geometry, Photometry

MAX_BYTES = 40 << 20
MAX_PIXELS = 64_000_000
MAX_TILES = 4_096
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
PAD_VALUE = 114
"""The grey of a letterbox's margins."""

Pixels = npt.NDArray[np.uint8]
_Boxes = npt.NDArray[np.int32]


class Views(NamedTuple):
    """What the trunk sees of one frame, and where in the frame each view lies."""

    pixels: Pixels
    """[T, S, S, 3]"""
    boxes: _Boxes
    """[T, 4]: x0, y0, x1, y1 in pixels of the frame."""


def decode(
    data: bytes,
    *,
    bit_depth: int = 8,
    window: tuple[int, int] | None = None,
    source: str = "",
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """The frame as uint8 [H, W, 3], upright, transparent areas on black.

    `window` names the raw values that become 0 and 255; absent, it is the whole range of `bit_depth`.

    Raises:
        InputError: naming `source`, for anything that is not one whole image of at most `max_bytes` and
            `max_pixels` in one of `FORMATS` and of the declared bit depth.
    """
    if not data:
        raise InputError("the file is empty (0 bytes)", file=source, remedy="Export it again")
    if len(data) > max_bytes:
        raise InputError(
            f"{len(data) / 2**20:.0f} MiB are more than the limit of {max_bytes / 2**20:.0f} MiB", file=source
        )
    image = _opened(data, source=source, max_pixels=max_pixels)
    depth = _depth(data, image)
    if depth > 8 and bit_depth == 8:
        raise InputError(
            f"holds {depth}-bit data, but its environment is declared as 8 bit",
            file=source,
            field="geometry.bit_depth",
            remedy="Set bit_depth: 16 (or 12), and a window where the range is not full",
        )
    if depth == 8 and bit_depth > 8:
        raise InputError(
            f"holds 8-bit data, but its environment is declared as {bit_depth} bit",
            file=source,
            field="geometry.bit_depth",
            remedy="Set bit_depth: 8, or export the camera's raw values",
        )
    try:
        if depth > 8:
            return _from_deep(data, image, limits=window or (0, 2**bit_depth - 1), bit_depth=bit_depth, source=source)
        return _from_shallow(image, limits=window or (0, 255))
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise InputError(f"the image cannot be decoded ({_words(error)})", file=source) from None


def _words(error: Exception) -> str:
    return str(error).strip().removeprefix("-").split("\n")[0][:100] or type(error).__name__


def _opened(data: bytes, *, source: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_many_pixels("", source=source, max_pixels=max_pixels) from None
    except Exception as error:
        words = "a JPEG, PNG, TIFF, BMP, WebP or GIF"
        broken = "" if isinstance(error, UnidentifiedImageError) else f" ({_words(error)})"
        raise InputError(
            f"not a readable image{broken}, whatever its name says", file=source, remedy=f"Hand in {words}"
        ) from None
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width} x {height} pixels are", source=source, max_pixels=max_pixels)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InputError(
            "holds several frames (animated or multi-page)", file=source, remedy="Export one image a frame"
        )
    if image.format in ("JPEG", "MPO") and not _is_sound_jpeg(data):
        raise InputError("the JPEG is corrupt or cut short", file=source, remedy="Export it again")
    return image


def _too_many_pixels(what: str, *, source: str, max_pixels: int) -> InputError:
    return InputError(
        f"{what or 'its pixels are'} more than the limit of {max_pixels:,} pixels".replace(",", " "),
        file=source,
        remedy="Cut the frame, or raise the limit",
    )


_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_SEGMENTS = frozenset([*range(0xC0, 0xD0), *range(0xDA, 0xE0), *range(0xE0, 0xF0), 0xFE])


def _is_sound_jpeg(data: bytes) -> bool:
    """Whether only legal markers lie between the start and the end of the image.

    libjpeg paints over corrupt data with grey and Pillow hides its warning; most damage shows in the markers.
    """
    at, num_scans = 2, 0
    while match := _MARKER.search(data, at):
        marker = data[match.end() - 1]
        if marker == 0xD9:
            return num_scans > 0
        if marker not in _SEGMENTS:
            return False
        num_scans += marker == 0xDA
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return False


def _depth(data: bytes, image: Image.Image) -> int:
    """Bits of one value as stored: 8 for anything that fits in a byte."""
    if image.format == "PNG":
        return max(8, data[24])
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        return max(8, *(int(b) for b in (bits if isinstance(bits, tuple) else (bits,))))
    return 8


def _from_shallow(image: Image.Image, *, limits: tuple[int, int]) -> Pixels:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    pixels = np.asarray(image.convert("RGB"))
    if limits != (0, 255):
        pixels = _window_lut(limits, size=256)[pixels]
    return np.ascontiguousarray(pixels)


def _from_deep(data: bytes, image: Image.Image, *, limits: tuple[int, int], bit_depth: int, source: str) -> Pixels:
    raw: npt.NDArray[Any]
    if image.mode.startswith("I"):
        image.load()
        raw = np.asarray(ImageOps.exif_transpose(image)).astype(np.int32)
    elif image.mode in ("RGB", "RGBA"):
        raw = _deep_colour(data, image, source=source)
    else:
        raise InputError(
            f"{image.mode} pixels of more than 8 bit cannot be read",
            file=source,
            remedy="Export unsigned 16-bit grey or colour, or 8 bit",
        )
    top = 2**bit_depth - 1
    low, high = int(raw.min()), int(raw.max())
    if low < 0 or high > top:
        raise InputError(
            f"holds the value {high if high > top else low}, outside the {bit_depth}-bit range 0..{top}",
            file=source,
            field="geometry.bit_depth",
            remedy="Set bit_depth: 16" if bit_depth < 16 and low >= 0 else "Export unsigned values",
        )
    pixels = _window_lut(limits, size=top + 1)[raw]
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


def _deep_colour(data: bytes, image: Image.Image, *, source: str) -> npt.NDArray[np.int32]:
    """All 16 bits of a colour image [H, W, 3]: Pillow keeps one byte of each value, so it is asked for both in turn."""
    halves = []
    for want_high in (True, False):
        half = Image.open(io.BytesIO(data), formats=FORMATS)
        half.tile = [
            tile._replace(args=_byte_args(tile.args, want_high=want_high, source=source)) for tile in half.tile
        ]
        half.load()
        halves.append(np.asarray(ImageOps.exif_transpose(half)).astype(np.int32))
    values = (halves[0] << 8) | halves[1]
    if image.mode == "RGBA":
        return (values[..., :3] * (values[..., 3:] / 65535) + 0.5).astype(np.int32)
    return values


def _byte_args(args: Any, *, want_high: bool, source: str) -> Any:
    """The decoder's arguments with the raw mode that takes the high or the low byte of each 16-bit value."""
    raw_mode = args if isinstance(args, str) else args[0]
    if not re.fullmatch(r"RGBA?;16[BLN]", raw_mode):
        raise InputError(f"{raw_mode} colour cannot be read", file=source, remedy="Export 16-bit RGB, interleaved")
    native = "L" if sys.byteorder == "little" else "B"
    order = native if raw_mode[-1] == "N" else raw_mode[-1]
    if not want_high:
        order = "L" if order == "B" else "B"
    mode = f"{raw_mode[:-1]}{order}"
    return mode if isinstance(args, str) else (mode, *args[1:])


def _window_lut(limits: tuple[int, int], *, size: int) -> Pixels:
    low, high = limits
    values = np.arange(size, dtype=np.int64).clip(low, high) - low
    return ((510 * values + high - low) // (2 * (high - low))).astype(np.uint8)


def views(pixels: Pixels, *, geometry: Geometry, photometry: Photometry, size_px: int) -> Views:
    """The frame as the trunk's inputs: region of interest, then whole, letterboxed or tiled, photometry undone.

    Deterministic; antialiased bilinear. Tiles are spread evenly from border to border, overlap at least `overlap_px`,
    and are letterboxed only where the frame is smaller than a tile.

    Raises:
        InputError: when the region of interest leaves the frame, or the tiles would be more than `MAX_TILES`.
    """
    boxes = view_boxes(pixels.shape[1], pixels.shape[0], geometry=geometry)
    lut = photometry_lut(photometry)
    out = np.full((len(boxes), size_px, size_px, 3), PAD_VALUE, dtype=np.uint8)
    for view, (x0, y0, x1, y1) in zip(out, boxes.tolist(), strict=True):
        left, top, right, bottom = _placement(x1 - x0, y1 - y0, geometry=geometry, size_px=size_px)
        content = _resized(pixels[y0:y1, x0:x1], width=right - left, height=bottom - top)
        view[top:bottom, left:right] = content if lut is None else lut[content]
    return Views(out, boxes)


def view_boxes(width: int, height: int, *, geometry: Geometry) -> _Boxes:
    """Where the views of a frame of this size lie: int32 [T, 4], x0, y0, x1, y1 in pixels of the frame."""
    x0, y0, x1, y1 = geometry.roi or (0, 0, width, height)
    if x1 > width or y1 > height:
        raise InputError(
            f"the region of interest {geometry.roi} leaves a frame of {width} x {height} pixels",
            field="geometry.roi",
            remedy="Correct roi, or declare another environment for frames of this size",
        )
    if geometry.fit != "tiles" or geometry.tile_px is None:
        return np.array([[x0, y0, x1, y1]], dtype=np.int32)
    tile = geometry.tile_px
    columns = list(_starts(x1 - x0, tile_px=tile, overlap_px=geometry.overlap_px))
    rows = list(_starts(y1 - y0, tile_px=tile, overlap_px=geometry.overlap_px))
    if len(columns) * len(rows) > MAX_TILES:
        raise InputError(
            f"a frame of {width} x {height} pixels would make {len(columns) * len(rows)} tiles, over {MAX_TILES}",
            field="geometry.tile_px",
            remedy="Use larger tiles or less overlap",
        )
    found = [(x0 + x, y0 + y, min(x0 + x + tile, x1), min(y0 + y + tile, y1)) for y in rows for x in columns]
    return np.array(found, dtype=np.int32)


def _starts(length: int, *, tile_px: int, overlap_px: int) -> Iterator[int]:
    """Where tiles begin along one side: the first and the last are flush with the borders."""
    room = max(0, length - tile_px)
    steps = -(-room // (tile_px - overlap_px))
    return (room * i // steps if steps else 0 for i in range(steps + 1))


def _placement(width: int, height: int, *, geometry: Geometry, size_px: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a region's content within its view."""
    if geometry.fit == "whole":
        return 0, 0, size_px, size_px
    side = max(width, height, geometry.tile_px or 0) if geometry.fit == "tiles" else max(width, height)
    w, h = (max(1, round(length * size_px / side)) for length in (width, height))
    left, top = (size_px - w) // 2, (size_px - h) // 2
    return left, top, left + w, top + h


def scale(width: int, height: int, *, geometry: Geometry, size_px: int) -> tuple[float, float]:
    """How many pixels of the model's input one pixel of a frame becomes, along x and y."""
    x0, y0, x1, y1 = view_boxes(width, height, geometry=geometry)[0].tolist()
    left, top, right, bottom = _placement(x1 - x0, y1 - y0, geometry=geometry, size_px=size_px)
    return (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)


def _resized(region: Pixels, *, width: int, height: int) -> Pixels:
    if region.shape[:2] == (height, width):
        return region
    image = Image.fromarray(np.ascontiguousarray(region))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None))


def photometry_lut(photometry: Photometry) -> Pixels | None:
    """`255 * (gain * x / 255 + offset) ** gamma` for x in 0..255, clipped; None where it changes nothing."""
    if photometry == Photometry():
        return None
    linear = np.clip(photometry.gain * np.arange(256) / 255 + photometry.offset, 0, 1)
    table: Pixels = np.clip(255 * linear**photometry.gamma + 0.5, 0, 255).astype(np.uint8)
    return table


def tensor_digest(array: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of a tensor's shape and values: equal only for equal tensors."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
