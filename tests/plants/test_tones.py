"""Photometry estimated from tones brings frames of one station back to those of another."""

from __future__ import annotations

import numpy as np
import pytest

from plants.geometry import Photometry
from plants.tones import GAP, SHARES, gap, match, seen_by, tones
from plants.views import photometry_lut


def frame(seed: int) -> np.ndarray:
    """A frame of grain on a slope, uint8 [120, 160, 3]."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(-20, 20, 160)[None, :, None]
    return np.clip(rng.uniform(80, 160) + slope + rng.normal(0, rng.uniform(8, 25), (120, 160, 3)), 0, 255).astype(
        np.uint8
    )


@pytest.mark.parametrize("seed", range(12))
def test_what_a_lamp_did_is_undone_to_within_a_grey_level(seed):
    rng = np.random.default_rng([seed, 1])
    lamp = Photometry(gain=rng.uniform(0.6, 1.4), offset=rng.uniform(-0.08, 0.08), gamma=rng.uniform(0.7, 1.5))
    reference = frame(seed)
    table = photometry_lut(lamp)
    assert table is not None
    found = match(tones(table[reference]), tones(reference))
    again = photometry_lut(found)
    assert again is not None
    assert gap(tones(again[table[reference]]), tones(reference)) < 1.5


def test_equal_tones_need_no_photometry():
    same = tones(frame(0))
    found = match(same, same)
    assert gap(seen_by(same, found), same) < 0.1
    assert (found.gain, found.offset, found.gamma) == pytest.approx((1, 0, 1), abs=1e-3)


def test_what_was_clipped_does_not_come_back():
    dark = tones(np.zeros((8, 8), np.uint8))
    assert gap(seen_by(dark, match(dark, tones(frame(0)))), tones(frame(0))) > 5


def test_tones_are_quantiles_of_the_region_alone_and_of_large_frames_too():
    pixels = np.zeros((600, 900), np.uint8)
    pixels[100:500, 100:800] = np.linspace(0, 255, 700).astype(np.uint8)
    found = tones(pixels, roi=(100, 100, 800, 500))
    np.testing.assert_allclose(found, 255 * SHARES, atol=3)
    assert tones(pixels)[0] == 0


def test_photometry_moves_quantiles_as_it_moves_pixels():
    photometry = Photometry(gain=1.3, offset=-0.1, gamma=0.8)
    table = photometry_lut(photometry)
    assert table is not None
    moved = tones(table[frame(3)])
    np.testing.assert_allclose(seen_by(tones(frame(3)), photometry), moved, atol=1.5)
    assert gap(moved, tones(frame(3))) > GAP / 2
