"""What befalls the inputs is what its name says, the same for the same seed, and stronger where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from plants.corruptions import CORRUPTIONS, corrupted
from plants.geometry import Environment

KINDS = {one.kind: one for one in CORRUPTIONS}


def pictures(num: int = 6, size: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = np.linspace(60, 180, size)[None, :, None, None] + rng.normal(0, 15, (num, size, size, 3))
    return smooth.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.kind)
def test_the_stronger_changes_more_than_the_milder_and_both_keep_shape_and_type(corruption):
    images = pictures()
    moved = []
    for strength in corruption.strengths:
        found = corrupted(images, corruption, strength=strength, seed=0)
        assert (found.shape, found.dtype) == (images.shape, np.uint8)
        moved.append(np.abs(found.astype(int) - images).mean())
    assert len(moved) >= 2
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one.kind)
def test_the_same_seed_gives_the_same_pictures(corruption):
    images, strength = pictures(), corruption.strengths[0]
    first = corrupted(images, corruption, strength=strength, seed=3)
    np.testing.assert_array_equal(first, corrupted(images, corruption, strength=strength, seed=3))


def test_dark_halves_every_grey_level_and_bright_clips_at_white():
    images = pictures()
    dark = corrupted(images, KINDS["dark"], strength=0.5, seed=0)
    assert np.abs(dark - images / 2).max() <= 0.5
    bright = corrupted(np.full((1, 4, 4, 3), 200, np.uint8), KINDS["bright"], strength=1.6, seed=0)
    assert (bright == 255).all()


def test_low_contrast_keeps_the_mean_and_takes_its_share_of_the_spread():
    images = pictures()
    flat = corrupted(images, KINDS["low contrast"], strength=0.4, seed=0)
    assert abs(flat.mean() - images.mean()) < 0.5
    assert flat.std() == pytest.approx(0.4 * images.std(), rel=0.05)


def test_noise_has_the_sigma_that_is_stated():
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    noisy = corrupted(grey, KINDS["noise"], strength=15.0, seed=0)
    assert noisy.std() == pytest.approx(15, rel=0.05)


def test_blur_is_that_of_a_gaussian_of_the_stated_sigma():
    step = np.zeros((1, 33, 65, 3), np.uint8)
    step[:, :, 32:] = 255
    edge = np.gradient(corrupted(step, KINDS["blur"], strength=1.6, seed=0)[0, 16, :, 0].astype(float))
    at = np.arange(65)
    centre = (edge * at).sum() / edge.sum()
    assert np.sqrt((edge * (at - centre) ** 2).sum() / edge.sum()) == pytest.approx(1.6, rel=0.2)


def test_occlusion_covers_the_stated_share_of_every_picture_somewhere_else():
    white = np.full((8, 100, 100, 3), 255, np.uint8)
    covered = corrupted(white, KINDS["occlusion"], strength=0.04, seed=0) != 255
    np.testing.assert_allclose(covered[..., 0].mean(axis=(1, 2)), 0.04, rtol=0.05)
    assert len({tuple(np.argwhere(one[..., 0])[0]) for one in covered}) > 4


def test_rotation_turns_about_the_centre_and_leaves_no_black_corner():
    bar = np.full((1, 65, 65, 3), 200, np.uint8)
    bar[:, :, 30:35] = 20
    turned = corrupted(bar, KINDS["rotation"], strength=15.0, seed=0)[0, :, :, 0].astype(float)
    assert turned[32, 32] < 60
    top, bottom = (np.average(np.arange(65), weights=(200 - turned[row]).clip(0)) for row in (5, 59))
    assert abs(top - bottom) / 54 == pytest.approx(np.tan(np.deg2rad(15)), rel=0.1)
    assert min(turned[0, 0], turned[0, -1], turned[-1, 0], turned[-1, -1]) > 150


def test_what_forbids_a_corruption_is_a_word_that_an_environment_may_forbid():
    for word in {one.forbidden_by for one in CORRUPTIONS if one.forbidden_by}:
        assert word in Environment(forbid=[word]).forbid
