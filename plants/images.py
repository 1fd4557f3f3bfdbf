"""Bytes -> pixels, of which `plants.views` makes what a model sees: the only preprocessing, in training and serving.

Limits are checked before anything is decoded. An image is read rightly or refused: 12 and 16 bit data go through the
environment's window, never through Pillow's saturating `convert`. Subtracting the mean and dividing by the standard
deviation happens inside the exported trunk, so a uint8 view is the model's input everywhere.
Embedded colour profiles are not applied: a camera's raw values are what models learn from.
Memory: 11 bytes a pixel of an 8-bit frame or a deep grey one (700 MB at `MAX_PIXELS`), up to 50 of 16-bit colour.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from plants.errors import InputError
from plants.sniff import claim

MAX_BYTES = 40 << 20
MAX_PIXELS = 64_000_000
MAX_SCANS = 100
"""Of a progressive JPEG, which is painted once a scan; writers use about ten."""
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
"""Of files that are frames where a folder holds others too, in small letters."""

_ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""

Pixels = npt.NDArray[np.uint8]


class Decoded(NamedTuple):
    """A frame, possibly decoded smaller than it is."""

    image: Image.Image
    """RGB, or grey (L) where its file is; upright, ceil(width / reduction) x ceil(height / reduction). Pillow keeps
    four bytes a pixel of RGB, so that an array is a copy: half a millisecond for half a megapixel. Grey has a third to
    resize."""
    width_px: int
    height_px: int
    """Of the whole frame."""
    reduction: int
    """1, 2, 4 or 8."""

    @property
    def pixels(self) -> Pixels:
        """uint8 [H, W, 3]"""
        return np.asarray(self.image if self.image.mode == "RGB" else self.image.convert("RGB"))


def decode(
    data: bytes,
    *,
    bit_depth: int = 8,
    window: tuple[int, int] | None = None,
    source: str = "",
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """The frame as uint8 [H, W, 3], upright, transparent areas on black. See `decode_reduced`."""
    return decode_reduced(
        data,
        reduction=lambda _width, _height: 1,
        bit_depth=bit_depth,
        window=window,
        source=source,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
    ).pixels


def decode_reduced(
    data: bytes,
    *,
    reduction: Callable[[int, int], int],
    bit_depth: int = 8,
    window: tuple[int, int] | None = None,
    source: str = "",
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """The frame, a JPEG at 1/2, 1/4 or 1/8 of its sides where `reduction` of its width and height allows that.

    Not one that has to be turned upright, whose first reduced pixel would stand for fewer of the frame's than the
    others, nor one with a `window`, which clips: the mean of clipped values is another than the clipped mean.
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
            deep = window or (0, 2**bit_depth - 1)
            shown = Image.fromarray(_from_deep(data, image, limits=deep, bit_depth=bit_depth, source=source))
        elif window is None and image.format in ("JPEG", "MPO") and image.getexif().get(_ORIENTATION, 1) == 1:
            return _perhaps_smaller(image, reduction=reduction)
        else:
            shown = _from_shallow(image, limits=window or (0, 255))
        return Decoded(shown, *shown.size, 1)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise InputError(f"the image cannot be decoded ({_words(error)})", file=source) from None


def _perhaps_smaller(image: Image.Image, *, reduction: Callable[[int, int], int]) -> Decoded:
    width, height = image.size
    k = reduction(width, height)
    if k > 1:
        image.draft(None, (width // k, height // k))
        k = next(k for k in (1, 2, 4, 8) if image.size == (-(-width // k), -(-height // k)))
    return Decoded(_from_shallow(image, limits=(0, 255)), width, height, k)


def _words(error: Exception) -> str:
    return str(error).strip().removeprefix("-").split("\n")[0][:100] or type(error).__name__


def _opened(data: bytes, *, source: str, max_pixels: int) -> Image.Image:
    if (oddity := claim(data).oddity) is not None:
        raise InputError(f"not an image that a camera writes: {oddity}", file=source, remedy="Export it again")
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
    if image.format != "MPO" and _is_animated(image, source=source):
        raise InputError(
            "holds several frames (animated or multi-page)", file=source, remedy="Export one image a frame"
        )
    if image.format in ("JPEG", "MPO") and not _is_sound_jpeg(data):
        raise InputError("the JPEG is corrupt or cut short", file=source, remedy="Export it again")
    return image


def _is_animated(image: Image.Image, *, source: str) -> bool:
    """Pillow looks for a second frame, and what is damaged behind the first may raise anything there."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:
        raise InputError(f"the image cannot be decoded ({_words(error)})", file=source) from None


def _too_many_pixels(what: str, *, source: str, max_pixels: int) -> InputError:
    return InputError(
        f"{what or 'its pixels are'} more than the limit of {max_pixels:,} pixels".replace(",", " "),
        file=source,
        remedy="Cut the frame, or raise the limit",
    )


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SEGMENTS = frozenset([*range(0xC0, 0xD0), *range(0xDA, 0xE0), *range(0xE0, 0xF0), 0xFE])


def _is_sound_jpeg(data: bytes) -> bool:
    """Whether only legal markers, and not too many scans, lie between the start and the end of the image.

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
        if num_scans > MAX_SCANS:
            return False
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


def _from_shallow(image: Image.Image, *, limits: tuple[int, int]) -> Image.Image:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    shown = image if image.mode in ("RGB", "L") else image.convert("RGB")
    return shown if limits == (0, 255) else shown.point(_window_lut(limits, size=256).tolist() * len(shown.getbands()))


def _from_deep(data: bytes, image: Image.Image, *, limits: tuple[int, int], bit_depth: int, source: str) -> Pixels:
    raw: npt.NDArray[Any]
    if image.mode.startswith("I"):
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        raw = np.asarray(image).astype(np.int32)
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
        ImageOps.exif_transpose(half, in_place=True)
        halves.append(np.asarray(half).astype(np.int32))
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


def tensor_digest(array: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of a tensor's shape and values: equal only for equal tensors."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
