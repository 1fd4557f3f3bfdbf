"""From a coarse map over a view to a box in the frame, and to a picture of it for people.

What lies in a view's margins, beyond the judged region or in what is ignored counts for nothing: no place in the frame
is meant there.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from plants.geometry import Geometry
from plants.images import FORMATS, decode_reduced
from plants.views import Seen, seen

LEVEL = 0.4
"""How far between a map's median and its peak a region begins: boxes overlap the true ones most so, see bench_maps."""
PICTURE_PX = 640
"""The longer side of a picture at most: a PNG of it has at most 1.3 MB, of a photograph half of that."""
OPACITY = 0.55
_ORIENTATION = 0x0112
_TURNING = (b"eXIf", b"type exif", b"com.adobe.xmp")
"""Where a PNG says which way is up, one of these is in it."""
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142),
        (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98), (132, 212, 75),
        (173, 220, 48), (216, 226, 25), (253, 231, 37),
    ],
    dtype=np.float64,
)  # fmt: skip
"""Every 16th colour of matplotlib's viridis, which the colour-blind read as others do."""

Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Heat:
    """What speaks for a finding, over one view of a frame."""

    values: Floats
    """[h, w] over the whole view, higher where more speaks for it."""
    frame: int
    size_px: int
    """Of the view."""
    seen: Seen
    geometry: Geometry

    @property
    def box(self) -> Box | None:
        """x0, y0, x1, y1 of the strongest region in pixels of the frame; None where all is alike."""
        wide = self._visible(self._spread())
        level = _level(wide)
        if level is None:
            return None
        labels, num = ndimage.label(np.nan_to_num(wide, nan=-np.inf) >= level)
        over = np.nan_to_num(wide - level, nan=0.0)
        strongest = 1 + int(np.argmax(ndimage.sum_labels(over, labels, np.arange(1, num + 1))))
        rows, columns = ndimage.find_objects(labels)[strongest - 1]
        return self._in_frame(columns.start, rows.start, columns.stop, rows.stop)

    def _spread(self) -> Floats:
        """The map at the view's size."""
        image = Image.fromarray(np.asarray(self.values, np.float32))
        return np.asarray(image.resize((self.size_px, self.size_px), Image.Resampling.BILINEAR))

    def _visible(self, wide: Floats) -> Floats:
        """The spread map, NaN where the view shows nothing of the frame that is judged."""
        (x0, y0, x1, y1), judged = self.seen.box, self.seen.judged
        columns, rows = self._pixels()
        shown = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None, :]
        if judged is not None:
            high, broad = judged.shape
            at = np.ix_(np.clip(rows, 0, high - 1).astype(int), np.clip(columns, 0, broad - 1).astype(int))
            shown = shown & judged[at]
        return np.where(shown, wide, np.float32(np.nan))

    def _pixels(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """x of every column's and y of every row's centre, in pixels of the frame, also where it has none."""
        (x0, y0, x1, y1), (left, top, right, bottom) = self.seen.place, self.seen.content
        centres = np.arange(self.size_px) + 0.5
        return x0 + (centres - left) * (x1 - x0) / (right - left), y0 + (centres - top) * (y1 - y0) / (bottom - top)

    def _in_frame(self, left: int, top: int, right: int, bottom: int) -> Box:
        """A box of the view in pixels of the frame, at least one wide and high."""
        (x0, y0, x1, y1), (c0, r0, c1, r1) = self.seen.place, self.seen.content
        across, down = (x1 - x0) / (c1 - c0), (y1 - y0) / (r1 - r0)
        a0, b0, a1, b1 = self.seen.box
        u0, v0 = int(x0 + (left - c0) * across), int(y0 + (top - r0) * down)
        u1, v1 = int(np.ceil(x0 + (right - c0) * across)), int(np.ceil(y0 + (bottom - r0) * down))
        u0, v0 = min(max(u0, a0), a1 - 1), min(max(v0, b0), b1 - 1)
        return u0, v0, min(max(u1, u0 + 1), a1), min(max(v1, v0 + 1), b1)

    def picture(self, data: bytes) -> bytes:
        """The frame in these bytes with the map over it and its box around, as PNG of `PICTURE_PX` at most.

        Raises InputError for bytes that are no frame of its geometry.
        """
        frame = decode_reduced(
            data,
            reduction=lambda width, height: next((k for k in (8, 4, 2) if max(width, height) >= k * PICTURE_PX), 1),
            bit_depth=self.geometry.bit_depth,
            window=self.geometry.window,
        )
        image = Image.fromarray(frame.pixels)
        image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.BILINEAR, reducing_gap=None)
        across, down = image.width / frame.width_px, image.height / frame.height_px
        coloured = self._over(image, across=across, down=down)
        if (box := self.box) is not None:
            x0, y0, x1, y1 = box[0] * across, box[1] * down, box[2] * across, box[3] * down
            draw = ImageDraw.Draw(coloured)
            draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0))
            draw.rectangle((x0, y0, x1, y1), outline=(255, 255, 255))
        buffer = io.BytesIO()
        coloured.save(buffer, "PNG")
        return buffer.getvalue()

    def _over(self, image: Image.Image, *, across: float, down: float) -> Image.Image:
        """The picture of a frame with the map over it, clear where nothing speaks for the finding."""
        wide = self._visible(self._spread())
        if _level(wide) is None:
            return image
        low, high = np.nanmedian(wide), np.nanmax(wide)
        share = np.nan_to_num((wide - low) / (high - low), nan=0.0).clip(0, 1)
        columns, rows = self._pixels()
        u = np.searchsorted(columns, (np.arange(image.width) + 0.5) / across)
        v = np.searchsorted(rows, (np.arange(image.height) + 0.5) / down)
        inside = ((v > 0) & (v < self.size_px))[:, None] & ((u > 0) & (u < self.size_px))[None, :]
        here = np.where(inside, share[np.ix_(v.clip(0, self.size_px - 1), u.clip(0, self.size_px - 1))], 0.0)
        steps = np.linspace(0, 1, len(_VIRIDIS))
        colour = np.stack([np.interp(here, steps, _VIRIDIS[:, c]) for c in range(3)], axis=-1)
        alpha = (OPACITY * np.sqrt(here))[:, :, None]
        return Image.fromarray(((1 - alpha) * np.asarray(image) + alpha * colour + 0.5).astype(np.uint8))


def heat(values: Floats, *, data: bytes, frame: int, view: int, geometry: Geometry, size_px: int) -> Heat:
    """The map [h, w] of a view of the frame in these bytes. Raises OSError where they are no frame."""
    width, height = frame_size(data)
    shown = seen(width, height, view=view, geometry=geometry, size_px=size_px)
    return Heat(values, frame, size_px, shown, geometry)


def frame_size(data: bytes) -> tuple[int, int]:
    """Width and height of the upright frame, of its header. Raises OSError for bytes that are none."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if image.format == "TIFF":  # Pillow turns its size itself
        return width, height
    if image.format == "PNG" and not any(words in data for words in _TURNING):  # asked, Pillow decodes all of it
        return width, height
    return (height, width) if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def _level(wide: Floats) -> float | None:
    """From where on a spread map stands out; None where it does nowhere."""
    if np.isnan(wide).all():
        return None
    low, high = float(np.nanmedian(wide)), float(np.nanmax(wide))
    return low + LEVEL * (high - low) if high - low > 1e-6 * max(1.0, abs(high)) else None
