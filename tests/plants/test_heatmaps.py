"""What counts as a place of the frame, and the colours a map is shown in."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from plants import heatmaps
from plants.geometry import Geometry
from plants.heatmaps import Heat, frame_size
from plants.views import seen

CORNER = ((0, 0), (50, 0), (50, 50), (0, 50))


def heat_of(values: np.ndarray, *, geometry: Geometry, size: tuple[int, int] = (200, 100)) -> Heat:
    shown = seen(*size, view=0, geometry=geometry, size_px=64)
    return Heat(values.astype(np.float32), 0, 64, shown, geometry)


def test_the_strongest_place_in_what_is_ignored_is_not_boxed():
    values = np.zeros((8, 8))
    values[0, 0], values[6, 6] = 9.0, 2.0
    found = heat_of(values, geometry=Geometry(fit="whole", ignore=(CORNER,))).box
    assert found is not None
    assert found[0] > 120
    assert found[1] > 60
    everywhere = heat_of(values, geometry=Geometry(fit="whole")).box
    assert everywhere is not None
    assert everywhere[2] < 60


def test_the_strongest_place_in_a_margin_is_not_boxed():
    values = np.zeros((8, 8))
    values[0, 0], values[4, 6] = 9.0, 2.0
    found = heat_of(values, geometry=Geometry(fit="letterbox")).box
    assert found is not None
    assert found[0] > 100


def test_of_two_regions_the_one_with_more_evidence_is_boxed():
    values = np.zeros((8, 8))
    values[1, 1], values[5:7, 4:8] = 4.0, 3.5
    found = heat_of(values, geometry=Geometry(fit="whole")).box
    assert found is not None
    assert found[0] >= 80


@pytest.mark.parametrize("value", [0.0, -3.0, 7.5])
def test_a_map_that_is_the_same_everywhere_has_no_box(value: float):
    assert heat_of(np.full((4, 4), value), geometry=Geometry(fit="whole")).box is None


def test_the_colours_are_viridis_within_a_few_levels():
    steps = np.linspace(0, 1, 101)
    ours = np.stack([np.interp(steps, np.linspace(0, 1, 17), heatmaps._VIRIDIS[:, c]) for c in range(3)], axis=1)
    theirs = 255 * matplotlib.colormaps["viridis"](steps)[:, :3]
    assert np.abs(ours - theirs).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_frames_size_is_that_of_the_upright_frame(kind: str):
    turned = Image.Exif()
    turned[0x0112] = 6
    for exif, size in ((None, (30, 20)), (turned, (20, 30))):
        if exif is not None and kind == "BMP":
            continue
        buffer = io.BytesIO()
        Image.new("RGB", (30, 20)).save(buffer, kind, **({} if exif is None else {"exif": exif}))
        assert frame_size(buffer.getvalue()) == size


def test_a_large_png_is_not_decoded_for_its_size(monkeypatch: pytest.MonkeyPatch):
    buffer = io.BytesIO()
    Image.new("L", (300, 200)).save(buffer, "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert frame_size(buffer.getvalue()) == (300, 200)
