"""One thumbnail laid over another: where it lies, and what of it agrees."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from plants.alignment import SIDE_PX, grain_beside, in_common, inverted, laid_over

WHOLE = ((0.0, 0.0, 1.0),)
PAIR = np.array([[0, 1]])


def blotches(seed: int, *, size: int = 160, sigma: float | tuple[float, float] = 4.0) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), sigma)
    return 128 + 20 * field / field.std()


def seen(picture: np.ndarray, *, window: tuple[float, float, float, float] = (0, 0, 1, 1)) -> np.ndarray:
    """A window y0, x0, y1, x1 of a picture, as shares of its sides, as a thumbnail uint8 [64, 64]."""
    y0, x0, y1, x1 = (edge * len(picture) for edge in window)
    middles = (np.arange(SIDE_PX) + 0.5) / SIDE_PX
    grid = np.meshgrid(y0 + middles * (y1 - y0) - 0.5, x0 + middles * (x1 - x0) - 0.5, indexing="ij")
    return ndimage.map_coordinates(picture, grid, order=1, mode="nearest").round().astype(np.uint8)


def test_the_warp_says_where_in_the_second_picture_the_first_lies():
    picture = blotches(0)
    part = seen(picture, window=(0.1, 0.05, 0.9, 0.95))
    agreement, grain, warps = laid_over(np.stack([part, seen(picture)]), pairs=PAIR, windows=WHOLE)
    assert agreement[0] > 0.9
    assert grain[0] > 0.9
    assert warps[0] == pytest.approx(np.array([[0.8, 0, 0], [0, 0.9, 0]]), abs=0.02)


def test_a_warp_and_its_inverse_lead_back():
    warp = np.array([[[0.8, 0.05, 0.1], [-0.03, 0.9, -0.2]]])
    square = [np.vstack([one[0], [0, 0, 1]]) for one in (warp, inverted(warp))]
    assert square[0] @ square[1] == pytest.approx(np.eye(3))


def test_what_runs_straight_agrees_and_has_no_grain():
    """Different parts under the same straight lines."""
    lines = np.repeat(blotches(9, sigma=(1.5, 0.0))[:, :1], 160, axis=1)
    thumbs = np.stack([seen(lines + 0.25 * (blotches(seed) - 128)) for seed in (1, 2)])
    agreement, grain, _ = laid_over(thumbs, pairs=PAIR, windows=WHOLE)
    assert agreement[0] > 0.6
    assert abs(grain[0]) < 0.3


def test_different_pictures_agree_in_nothing():
    agreement, grain, _ = laid_over(np.stack([seen(blotches(seed)) for seed in (1, 2)]), pairs=PAIR, windows=WHOLE)
    assert agreement[0] < 0.3
    assert grain[0] < 0.3


def test_no_pairs_have_no_scores():
    none = np.zeros((0, 2), dtype=np.int64)
    assert [len(one) for one in laid_over(np.stack([seen(blotches(0))]), pairs=none, windows=WHOLE)] == [0, 0, 0]


def test_of_parts_that_share_a_print_only_a_copy_has_grain_beside_it():
    shared = blotches(50)
    parts = [shared + 0.5 * (blotches(seed, sigma=3.0) - 128) for seed in range(12)]
    thumbs = np.stack([*map(seen, parts), seen(parts[0] * 0.9 + 10)])
    common, likeness = in_common(thumbs, fixed=0, crowd=np.arange(2, 12))
    assert likeness > 0.7
    still = np.tile(np.eye(2, 3), (2, 1, 1))
    other, copy = grain_beside(thumbs, fixed=0, moving=np.array([1, 12]), warps=still, common=common)
    assert other < 0.4
    assert copy > 0.9
