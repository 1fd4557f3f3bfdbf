"""What a model sees of a frame: masks, JPEGs decoded smaller, and where that lies in the whole frame."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import ValidationError

from plants.errors import InputError
from plants.geometry import Geometry, Photometry
from plants.images import decode
from plants.views import PAD_VALUE, Views, is_judged, margins, read_views, view_boxes, views

TRIANGLE = ((0, 0), (100, 0), (0, 100))
TRIANGLE_OF_FRAME = ((10, 10), (300, 40), (60, 230))


def surface(width: int, height: int, *, seed: int = 0) -> np.ndarray:
    """A frame of blotches and noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 200, (height // 16, width // 16, 3), dtype=np.uint8))
    grey = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return np.clip(grey + rng.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "geometry",
    [
        {"fit": "whole"},
        {"fit": "letterbox", "mask": (TRIANGLE_OF_FRAME,)},
        {"roi": (37, 51, 297, 203), "ignore": (TRIANGLE_OF_FRAME,)},
        {"fit": "tiles", "tile_px": 100, "overlap_px": 24},
        {"fit": "tiles", "tile_px": 64, "overlap_px": 8, "mask": (TRIANGLE_OF_FRAME,)},
        {"fit": "whole", "window": (40, 200)},
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_grey_file_gives_to_the_bit_what_the_same_in_colour_gives(geometry, kind):
    data = io.BytesIO()
    Image.fromarray(surface(321, 243)[:, :, 0]).save(data, kind)
    window = geometry.get("window")
    given = {"geometry": Geometry(**geometry), "photometry": Photometry(gain=1.2, gamma=0.8), "size_px": 64}
    coloured = decode(data.getvalue(), window=window)
    assert coloured.shape == (243, 321, 3)
    found = read_views(data.getvalue(), **given)
    np.testing.assert_array_equal(found.pixels, views(coloured, **given).pixels)


def as_jpeg(pixels: np.ndarray, *, orientation: int = 1) -> bytes:
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(data, "JPEG", quality=92, exif=exif)
    return data.getvalue()


def seen(data: bytes, *, size_px: int = 64, interpolation="bilinear", **geometry) -> Views:
    given = {"geometry": Geometry(**geometry), "photometry": Photometry(), "size_px": size_px}
    return read_views(data, interpolation=interpolation, **given)


def of_whole(data: bytes, *, size_px: int = 64, interpolation="bilinear", **geometry) -> Views:
    given = {"geometry": Geometry(**geometry), "photometry": Photometry(), "size_px": size_px}
    return views(decode(data), interpolation=interpolation, **given)


@pytest.mark.parametrize(
    "geometry",
    [
        {"fit": "whole"},
        {"fit": "letterbox"},
        {"roi": (37, 51, 997, 803)},
        {"fit": "tiles", "tile_px": 600},
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_large_jpeg_decoded_smaller_looks_the_same_and_lies_where_it_did(geometry, interpolation, monkeypatch):
    data = as_jpeg(surface(1201, 903))
    asked, draft = [], JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *a: asked.append(a[2]) or draft(*a))
    small = seen(data, interpolation=interpolation, **geometry)
    assert asked, "it was decoded whole"
    whole = of_whole(data, interpolation=interpolation, **geometry)
    assert np.array_equal(small.boxes, whole.boxes)
    apart = np.abs(small.pixels.astype(int) - whole.pixels)
    assert np.sqrt(np.square(apart).mean()) < 0.6
    assert apart.max() <= 4


@pytest.mark.parametrize("fit", ["whole", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_view_is_resized_as_pillow_does_by_the_name_that_was_given(interpolation, fit):
    image = Image.fromarray(surface(160, 160))
    expected = image.resize((64, 64), Image.Resampling[interpolation.upper()])
    found = views(
        np.asarray(image), geometry=Geometry(fit=fit), photometry=Photometry(), size_px=64, interpolation=interpolation
    )
    assert np.array_equal(found.pixels[0], np.asarray(expected))


@pytest.mark.parametrize("x0", [403, 404, 405])
def test_nothing_outside_of_the_region_is_mirrored_into_a_large_jpeg(x0):
    pixels = np.full((1800, 2400, 3), 60, np.uint8)
    pixels[:, :x0] = 250
    tiled = {"roi": (x0, 0, 2400, 1800), "fit": "tiles", "tile_px": 1200, "overlap_px": 300}
    assert seen(as_jpeg(pixels), **tiled).pixels[:, :, 5:].max() < 75


@pytest.mark.parametrize("geometry", [{"fit": "tiles", "tile_px": 128}, {"fit": "letterbox", "roi": (0, 0, 200, 200)}])
def test_a_jpeg_hardly_larger_than_its_view_is_decoded_whole(geometry):
    data = as_jpeg(surface(640, 480))
    assert np.array_equal(seen(data, **geometry).pixels, of_whole(data, **geometry).pixels)


@pytest.mark.parametrize("overlap_px", [40, 80])
def test_a_jpeg_whose_tiles_reach_beyond_its_borders_is_decoded_whole(overlap_px):
    data, geometry = as_jpeg(surface(1201, 903)), {"fit": "tiles", "tile_px": 600, "overlap_px": overlap_px}
    assert np.array_equal(seen(data, **geometry).pixels, of_whole(data, **geometry).pixels)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_jpeg_that_has_to_be_turned_is_decoded_whole(orientation):
    data = as_jpeg(surface(1201, 903), orientation=orientation)
    assert np.array_equal(seen(data).pixels, of_whole(data).pixels)


@pytest.mark.parametrize(("suffix", "orientation"), [("TIFF", 6), ("TIFF", 3), ("JPEG", 9), ("JPEG", 200), ("PNG", 6)])
def test_however_a_file_says_where_up_is_its_views_are_those_of_the_decoded_frame(suffix, orientation):
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(surface(640, 480)).save(data, suffix, exif=exif)
    found, whole = seen(data.getvalue()), of_whole(data.getvalue())
    assert np.array_equal(found.boxes, whole.boxes)
    assert np.array_equal(found.pixels, whole.pixels)


def test_a_jpeg_with_a_window_is_decoded_whole():
    data, window = as_jpeg(surface(1201, 903)), (100, 160)
    geometry = Geometry(window=window)
    whole = views(decode(data, window=window), geometry=geometry, photometry=Photometry(), size_px=64)
    assert np.array_equal(seen(data, window=window).pixels, whole.pixels)


@pytest.mark.parametrize("start", [1000, 1001])
@pytest.mark.slow
def test_nothing_of_what_is_ignored_shows_in_a_large_jpeg(start):
    pixels = surface(2448, 2048) // 2
    end = start + 199
    pixels[start : end + 1, start : end + 1] = 255
    label = ((start, start), (end, start), (end, end), (start, end))
    assert seen(as_jpeg(pixels), ignore=[label]).pixels.max() < 150


@pytest.mark.parametrize(
    ("box", "geometry", "is_so"),
    [
        ((10, 10, 20, 20), {}, True),
        ((10, 10, 20, 20), {"roi": (20, 0, 100, 100)}, False),
        ((10, 10, 21, 20), {"roi": (20, 0, 100, 100)}, True),
        ((70, 70, 90, 90), {"mask": [TRIANGLE]}, False),
        ((40, 40, 90, 90), {"mask": [TRIANGLE]}, True),
        ((12.5, 12.5, 12.9, 12.9), {"ignore": [TRIANGLE]}, False),
    ],
)
def test_a_box_is_judged_where_anything_of_it_is(box, geometry, is_so):
    assert is_judged(box, 100, 100, geometry=Geometry(**geometry)) is is_so


def test_what_is_not_judged_is_grey_and_the_rest_is_untouched():
    pixels = surface(100, 100)
    view = views(pixels, geometry=Geometry(mask=[TRIANGLE]), photometry=Photometry(), size_px=100).pixels[0]
    y, x = np.mgrid[:100, :100]
    assert np.array_equal(view[x + y < 99], pixels[x + y < 99])
    assert (view[x + y > 101] == PAD_VALUE).all()
    hole = Geometry(mask=[TRIANGLE], ignore=[((10, 10), (29, 10), (29, 29), (10, 29))])
    view = views(pixels, geometry=hole, photometry=Photometry(), size_px=100).pixels[0]
    assert (view[11:29, 11:29] == PAD_VALUE).all()
    assert np.array_equal(view[40:50, :40], pixels[40:50, :40])


def test_tiles_with_next_to_nothing_to_judge_are_left_out():
    tiles = {"fit": "tiles", "tile_px": 25}
    boxes = view_boxes(100, 100, geometry=Geometry(**tiles, mask=[TRIANGLE]))
    assert len(view_boxes(100, 100, geometry=Geometry(**tiles))) == 16
    assert {tuple(box[:2]) for box in boxes.tolist()} == {
        (x, y) for x in range(0, 100, 25) for y in range(0, 100, 25) if x + y < 100
    }


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        ({"mask": [((0, 0), (101, 0), (0, 100))]}, "geometry.mask"),
        ({"ignore": [((0, 0), (50, 200), (0, 100))]}, "geometry.ignore"),
        ({"ignore": [((0, 0), (100, 0), (100, 100), (0, 100))]}, "nothing of the frame is judged"),
    ],
)
def test_a_mask_that_leaves_the_frame_or_leaves_nothing_is_refused(geometry, said):
    with pytest.raises(InputError, match=said):
        view_boxes(100, 100, geometry=Geometry(**geometry))


def test_one_polygon_may_stand_for_itself():
    assert Geometry(mask=[[0, 0], [50.5, 0], [50, 50]]) == Geometry(mask=[[[0, 0], [50.5, 0], [50, 50]]])
    assert Geometry(ignore=TRIANGLE).ignore == (TRIANGLE,)
    assert Geometry(mask=[]).mask == ()


@pytest.mark.parametrize("mask", [[[0, 0], [5, 5]], [[[0, 0], [5, 5]]], [[]], [[[0, 0], [9, 0], [0, -1]]]])
def test_what_is_no_polygon_is_refused_in_words(mask):
    with pytest.raises(ValidationError, match="three corners or more"):
        Geometry(mask=mask)


@pytest.mark.parametrize(
    "geometry",
    [
        {"mask": [((0, 0), (5, 5))]},
        {"ignore": [((0, 0), (5, -5), (9, 9))]},
        {"ignore": [((0, 0), (float("nan"), 5), (9, 9))]},
        {"min_defect_mm": 0.5},
        {"min_defect_mm": 0.5, "px_per_mm": 20, "min_defect_px": 10},
    ],
)
def test_a_geometry_that_makes_no_sense_is_refused(geometry):
    with pytest.raises(ValidationError):
        Geometry(**geometry)


def test_the_smallest_defect_is_declared_in_pixels_or_on_the_part():
    assert Geometry(min_defect_px=30).smallest_px == 30
    assert Geometry(min_defect_mm=0.4, px_per_mm=25).smallest_px == pytest.approx(10)
    assert Geometry(px_per_mm=25).smallest_px is None


def test_a_line_scan_is_cut_into_tiles_that_show_every_pixel_at_its_own_size():
    """8192 x 1024: squeezed into a square of 128 px, a defect of 30 px would be half a pixel high."""
    pixels = np.zeros((1024, 8192, 3), np.uint8)
    pixels[700:730, 5000:5030] = 255
    tiled = Geometry(fit="tiles", tile_px=256, overlap_px=32)
    found = views(pixels, geometry=tiled, photometry=Photometry(), size_px=256)
    covered, shown = np.zeros((1024, 8192), bool), 0
    for tile, (x0, y0, x1, y1) in zip(found.pixels, found.boxes.tolist(), strict=True):
        covered[max(y0, 0) : y1, max(x0, 0) : x1] = True
        if x0 <= 5000 and x1 >= 5030 and y0 <= 700 and y1 >= 730:
            shown += 1
            assert tile[700 - y0 : 730 - y0, 5000 - x0 : 5030 - x0].min() == 255
    assert covered.all()
    assert shown


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (30, 30)])
def test_margins_are_where_a_letterboxed_view_shows_nothing_of_the_frame(width, height):
    frame = np.full((height, width, 3), 7, np.uint8)
    seen = views(frame, geometry=Geometry(fit="letterbox"), photometry=Photometry(), size_px=32)
    found = margins(seen.boxes[0].tolist(), geometry=Geometry(fit="letterbox"), size_px=32)
    blank = (seen.pixels[0] == PAD_VALUE).all(axis=-1)
    np.testing.assert_array_equal(np.zeros((32, 32), bool) if found is None else found, blank)
    assert (found is None) == (width == height)
    assert margins(seen.boxes[0].tolist(), geometry=Geometry(fit="whole"), size_px=32) is None
