"""Pixels -> the uint8 views a model sees: region of interest, mask, whole, letterboxed or tiled, photometry undone.

Every box is in pixels of the whole frame, also where a JPEG was decoded smaller. That is done where a region still has
four times the sides of its view, nothing of the frame is masked and tiles do not overlap. 5 megapixels of steel, soft
grey texture and colour noise then differed by 0.3 to 0.4 grey levels (root mean square), at most 2, from the same
decoded whole, in a third to a half of the time. Memory: a fortieth of the whole frame's, a third where the JPEG is
progressive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from plants.errors import InputError
from plants.geometry import Geometry, Interpolation, Photometry, Polygon
from plants.images import Decoded, Pixels, decode_reduced

MAX_TILES = 4_096
PAD_VALUE = 114
"""The grey of a letterbox's margins, and of what is not judged."""
MIN_JUDGED = 0.01
"""Share of a tile; of less nothing can be told."""
MIN_OVERSAMPLING = 4.0
"""How many times as long as its view's the sides of a region must be after a JPEG was decoded smaller."""

_Boxes = npt.NDArray[np.int32]
_Mask = npt.NDArray[np.bool_]


class Views(NamedTuple):
    """What the trunk sees of one frame, and where in the frame each view lies."""

    pixels: Pixels
    """[T, S, S, 3]"""
    boxes: _Boxes
    """[T, 4]: x0, y0, x1, y1 in pixels of the frame."""


def read_views(
    data: bytes,
    *,
    geometry: Geometry,
    photometry: Photometry,
    size_px: int,
    interpolation: Interpolation = "bilinear",
    source: str = "",
) -> Views:
    """The trunk's inputs of an image file. Raises InputError as `decode_reduced` and `views` do."""
    decoded = decode_reduced(
        data,
        reduction=lambda width, height: _reduction(width, height, geometry=geometry, size_px=size_px),
        bit_depth=geometry.bit_depth,
        window=geometry.window,
        source=source,
    )
    return _views(decoded, geometry=geometry, photometry=photometry, size_px=size_px, interpolation=interpolation)


def views(
    pixels: Pixels,
    *,
    geometry: Geometry,
    photometry: Photometry,
    size_px: int,
    interpolation: Interpolation = "bilinear",
) -> Views:
    """The whole frame uint8 [H, W, 3] as the trunk's inputs.

    Deterministic; antialiased. Tiles are spread evenly, overlap at least `overlap_px`, and reach half of that
    beyond the region's borders, where it is mirrored: so a defect at a border lies as far from the edge of a tile as
    any. Along a side no longer than a tile there is one, letterboxed.

    Raises:
        InputError: when the region of interest or a mask leaves the frame or leaves nothing, or the tiles would be more
            than `MAX_TILES`.
    """
    height, width = pixels.shape[:2]
    frame = Decoded(Image.fromarray(np.ascontiguousarray(pixels)), width, height, 1)
    return _views(frame, geometry=geometry, photometry=photometry, size_px=size_px, interpolation=interpolation)


def _views(
    frame: Decoded, *, geometry: Geometry, photometry: Photometry, size_px: int, interpolation: Interpolation
) -> Views:
    places = _places(frame.width_px, frame.height_px, geometry=geometry)
    judged = _judged(frame.width_px, frame.height_px, geometry=geometry)
    lut, how = photometry_lut(photometry), Image.Resampling[interpolation.upper()]
    out = np.full((len(places), size_px, size_px, 3), PAD_VALUE, dtype=np.uint8)
    boxes = _within_roi(places, frame.width_px, frame.height_px, geometry=geometry)
    for view, place, box in zip(out, places.tolist(), boxes.tolist(), strict=True):
        wide, high = place[2] - place[0], place[3] - place[1]
        left, top, right, bottom = _placement(wide, high, geometry=geometry, size_px=size_px)
        content = _content(frame, place, box, judged=judged, width=right - left, height=bottom - top, how=how)
        shown = content if lut is None else lut[content]
        view[top:bottom, left:right] = shown if shown.ndim == 3 else shown[:, :, None]
    return Views(out, boxes)


def _content(
    frame: Decoded,
    place: list[int],
    box: list[int],
    *,
    judged: _Mask | None,
    width: int,
    height: int,
    how: Image.Resampling,
) -> Pixels:
    """A place in the frame, mirrored where it lies outside of its box, what is not judged grey, resized.

    [height, width, 3], or [height, width] where the frame is grey.
    """
    k = frame.reduction
    x0, y0, x1, y1 = box[0] // k, box[1] // k, -(-box[2] // k), -(-box[3] // k)
    crop = (box[0] / k - x0, box[1] / k - y0, box[2] / k - x0, box[3] / k - y0)
    image = frame.image if (x0, y0, x1, y1) == (0, 0, *frame.image.size) else frame.image.crop((x0, y0, x1, y1))
    if judged is not None:
        shown = np.asarray(image)
        kept = judged[y0:y1, x0:x1] if shown.ndim == 2 else judged[y0:y1, x0:x1, None]
        image = Image.fromarray(np.where(kept, shown, np.uint8(PAD_VALUE)))
    if place != box:  # of a frame that was decoded whole, see `_reduction`
        beyond = ((box[1] - place[1], place[3] - box[3]), (box[0] - place[0], place[2] - box[2]), (0, 0))
        shown = np.asarray(image)
        image = Image.fromarray(np.pad(shown, beyond[: shown.ndim], mode="symmetric"))
        crop = (0, 0, *image.size)
    if k > 1 or image.size != (width, height):
        image = image.resize((width, height), how, box=crop, reducing_gap=None)
    return np.asarray(image)


def _reduction(width: int, height: int, *, geometry: Geometry, size_px: int) -> int:
    """By how much a JPEG may be decoded smaller: not where a smaller pixel could lie across a border that matters.

    That is the border of what is not judged, and one that tiles reach beyond.
    """
    if geometry.mask or geometry.ignore or (geometry.fit == "tiles" and geometry.overlap_px):
        return 1
    across, down = scale(width, height, geometry=geometry, size_px=size_px)
    return next((k for k in (8, 4, 2) if k * max(across, down) * MIN_OVERSAMPLING <= 1), 1)


def _judged(width: int, height: int, *, geometry: Geometry) -> _Mask | None:
    """Which pixels of a frame are judged, bool [H, W]; None where all are."""
    if not geometry.mask and not geometry.ignore:
        return None
    return _drawn(width, height, mask=geometry.mask, ignore=geometry.ignore)


@lru_cache(maxsize=2)
def _drawn(width: int, height: int, *, mask: tuple[Polygon, ...], ignore: tuple[Polygon, ...]) -> _Mask:
    """A byte a pixel, kept for the last two sizes; the polygons' corners are inside."""
    canvas = Image.new("1", (width, height), 0 if mask else 1)
    for fill, polygons in ((1, mask), (0, ignore)):
        for polygon in polygons:
            if any(x > width or y > height for x, y in polygon):
                raise InputError(
                    f"a polygon leaves a frame of {width} x {height} pixels",
                    field=f"geometry.{'mask' if fill else 'ignore'}",
                    remedy="Correct it, or declare another environment for frames of this size",
                )
            ImageDraw.Draw(canvas).polygon(list(polygon), fill=fill)
    return np.asarray(canvas)


def view_boxes(width: int, height: int, *, geometry: Geometry) -> _Boxes:
    """What the views show of a frame of this size: int32 [T, 4], x0, y0, x1, y1 in pixels of the frame.

    Tiles in which next to nothing is judged are left out.
    """
    return _within_roi(_places(width, height, geometry=geometry), width, height, geometry=geometry)


def _places(width: int, height: int, *, geometry: Geometry) -> _Boxes:
    """Where the views lie: as `view_boxes`, but the outermost tiles reach beyond the borders."""
    x0, y0, x1, y1 = geometry.roi or (0, 0, width, height)
    if x1 > width or y1 > height:
        raise InputError(
            f"the region of interest {geometry.roi} leaves a frame of {width} x {height} pixels",
            field="geometry.roi",
            remedy="Correct roi, or declare another environment for frames of this size",
        )
    tile = geometry.tile_px
    if geometry.fit != "tiles" or tile is None:
        return _with_something(np.array([(x0, y0, x1, y1)], dtype=np.int32), width, height, geometry=geometry)
    columns, rows = (list(_spans(*span, tile_px=tile, overlap_px=geometry.overlap_px)) for span in ((x0, x1), (y0, y1)))
    if len(columns) * len(rows) > MAX_TILES:
        raise InputError(
            f"a frame of {width} x {height} pixels would make {len(columns) * len(rows)} tiles, over {MAX_TILES}",
            field="geometry.tile_px",
            remedy="Use larger tiles or less overlap",
        )
    found = np.array([(left, top, right, bottom) for top, bottom in rows for left, right in columns], dtype=np.int32)
    return _with_something(found, width, height, geometry=geometry, min_share=MIN_JUDGED)


def _within_roi(places: _Boxes, width: int, height: int, *, geometry: Geometry) -> _Boxes:
    """What of each box lies in the region that is judged."""
    x0, y0, x1, y1 = geometry.roi or (0, 0, width, height)
    return np.clip(places, np.array([x0, y0, x0, y0], np.int32), np.array([x1, y1, x1, y1], np.int32))


def is_judged(box: Sequence[float], width: int, height: int, *, geometry: Geometry) -> bool:
    """Whether anything within a box (x0, y0, x1, y1 in pixels of the frame) is judged."""
    left, top, right, bottom = geometry.roi or (0, 0, width, height)
    x0, y0 = (int(corner) for corner in box[:2])
    x1, y1 = min(max(int(box[2]), x0 + 1), right), min(max(int(box[3]), y0 + 1), bottom)
    x0, y0 = max(x0, left), max(y0, top)
    judged = _judged(width, height, geometry=geometry)
    return x0 < x1 and y0 < y1 and (judged is None or bool(judged[y0:y1, x0:x1].any()))


def _with_something(places: _Boxes, width: int, height: int, *, geometry: Geometry, min_share: float = 0.0) -> _Boxes:
    """The boxes of whose part of the frame more than this share is judged."""
    judged = _judged(width, height, geometry=geometry)
    if judged is None:
        return places
    inner = _within_roi(places, width, height, geometry=geometry)
    kept = places[[bool(judged[y0:y1, x0:x1].mean() > min_share) for x0, y0, x1, y1 in inner.tolist()]]
    if not len(kept):
        raise InputError("nothing of the frame is judged", field="geometry.mask", remedy="Correct mask, ignore or roi")
    return kept


def _spans(low: int, high: int, *, tile_px: int, overlap_px: int) -> Iterator[tuple[int, int]]:
    """From where to where tiles reach along one side: beyond its ends by half an overlap, where it holds a tile."""
    if high - low <= tile_px:
        yield low, high
        return
    first, room = low - overlap_px // 2, high - low - tile_px + overlap_px // 2 * 2
    steps = -(-room // (tile_px - overlap_px))
    yield from ((start, start + tile_px) for start in (first + room * i // steps for i in range(steps + 1)))


def _placement(width: int, height: int, *, geometry: Geometry, size_px: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a region's content within its view."""
    if geometry.fit == "whole":
        return 0, 0, size_px, size_px
    side = max(width, height, geometry.tile_px or 0) if geometry.fit == "tiles" else max(width, height)
    w, h = (max(1, round(length * size_px / side)) for length in (width, height))
    left, top = (size_px - w) // 2, (size_px - h) // 2
    return left, top, left + w, top + h


def margins(box: Sequence[int], *, geometry: Geometry, size_px: int) -> _Mask | None:
    """Where a view of this box (x0, y0, x1, y1) shows nothing of the frame, bool [S, S]; None where it is filled."""
    if geometry.fit == "whole":
        return None
    left, top, right, bottom = _placement(box[2] - box[0], box[3] - box[1], geometry=geometry, size_px=size_px)
    if geometry.fit == "tiles" or (left, top, right, bottom) == (0, 0, size_px, size_px):
        return None
    found = np.ones((size_px, size_px), dtype=bool)
    found[top:bottom, left:right] = False
    return found


def scale(width: int, height: int, *, geometry: Geometry, size_px: int) -> tuple[float, float]:
    """How many pixels of the model's input one pixel of a frame becomes, along x and y."""
    x0, y0, x1, y1 = _places(width, height, geometry=geometry)[0].tolist()
    left, top, right, bottom = _placement(x1 - x0, y1 - y0, geometry=geometry, size_px=size_px)
    return (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)


def photometry_lut(photometry: Photometry) -> Pixels | None:
    """`255 * (gain * x / 255 + offset) ** gamma` for x in 0..255, clipped; None where it changes nothing."""
    if photometry == Photometry():
        return None
    linear = np.clip(photometry.gain * np.arange(256) / 255 + photometry.offset, 0, 1)
    table: Pixels = np.clip(255 * linear**photometry.gamma + 0.5, 0, 255).astype(np.uint8)
    return table


class Seen(NamedTuple):
    """What one view shows of its frame, and where in the view."""

    place: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels of the frame; an outermost tile's lies beyond the borders in part."""
    box: tuple[int, int, int, int]
    """Of that, what lies in the region that is judged."""
    content: tuple[int, int, int, int]
    """Left, top, right, bottom of the place within the view; around it are margins."""
    judged: _Mask | None
    """Which pixels of the frame are judged, [H, W]; None where all are."""


def seen(width: int, height: int, *, view: int, geometry: Geometry, size_px: int) -> Seen:
    """What the view of this number shows of a frame of this size. Raises InputError as `views` does."""
    places = _places(width, height, geometry=geometry)
    x0, y0, x1, y1 = (int(value) for value in places[view])
    a, b, c, d = (int(value) for value in _within_roi(places, width, height, geometry=geometry)[view])
    content = _placement(x1 - x0, y1 - y0, geometry=geometry, size_px=size_px)
    judged = _judged(width, height, geometry=geometry)
    return Seen((x0, y0, x1, y1), (a, b, c, d), content, judged)
