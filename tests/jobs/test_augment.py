"""Views of training images: seeded, of the same kind, and never what a station forbids."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.augment import augment
from jobs.recipe import Augment

ALL = frozenset({"flip", "rotate", "brightness", "contrast", "noise"})
STRONG = Augment(strength=1.0, rotate_deg=25, brightness=0.5, contrast=0.5, noise=0.1)


def images(n: int = 12, *, size: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth pictures, each brighter towards one corner than anywhere else."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    block = 60 + 60 * y + 40 * x + rng.uniform(0, 20, size=(n, 1, 1))
    return np.repeat(block[..., None], 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_view_and_another_seed_another(seed):
    a, b, c = (augment(images(), policy=STRONG, forbid=frozenset(), seed=s) for s in (seed, seed, seed + 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_view_is_an_image_like_the_one_it_came_from_which_stays_as_it_was():
    plain = images()
    kept = plain.copy()
    view = augment(plain, policy=STRONG, forbid=frozenset(), seed=0)
    assert (view.dtype, view.shape) == (np.uint8, plain.shape)
    assert np.array_equal(plain, kept)
    assert not np.array_equal(view, plain)


def test_strength_zero_and_everything_forbidden_leave_images_alone():
    off = augment(images(), policy=STRONG.model_copy(update={"strength": 0.0}), forbid=frozenset(), seed=0)
    assert np.array_equal(off, images())
    assert np.array_equal(augment(images(), policy=STRONG, forbid=ALL, seed=0), images())


@pytest.mark.parametrize("only", sorted(ALL))
def test_what_is_forbidden_never_happens_whatever_else_does(only):
    """Each change alone is seen, and its own effect is absent when it alone is forbidden."""
    alone = augment(images(), policy=STRONG, forbid=ALL - {only}, seed=0)
    assert not np.array_equal(alone, images())
    assert shows(only, alone)
    others = augment(images(), policy=STRONG, forbid=frozenset({only}), seed=0)
    assert not np.array_equal(others, images())
    if only == "flip":
        assert not shows("flip", augment(images(), policy=STRONG, forbid=frozenset({"flip", "contrast"}), seed=0))


def shows(change: str, view: np.ndarray) -> bool:
    """Whether a change left its mark on any of the images."""
    plain = images().astype(float)
    now = view.astype(float)
    if change == "flip":
        return any(corner(v) != (1, 1) for v in now)
    if change == "brightness":
        return bool(np.abs(now.mean((1, 2, 3)) - plain.mean((1, 2, 3))).max() > 10)
    if change == "contrast":
        return bool(np.abs(now.std((1, 2, 3)) - plain.std((1, 2, 3))).max() > 2)
    if change == "noise":
        return bool(np.abs(np.diff(now, n=2, axis=1)).max() > 8)
    return bool(np.abs(now - plain).max() > 2)


def corner(image: np.ndarray) -> tuple[int, int]:
    """Which corner is the brightest: (row, column) of halves."""
    half = image.shape[0] // 2
    blocks = {
        (r, c): image[r * half : (r + 1) * half, c * half : (c + 1) * half].mean() for r in (0, 1) for c in (0, 1)
    }
    return max(blocks, key=lambda at: blocks[at])


def test_flips_go_every_way_over_many_images():
    many = augment(images(40), policy=STRONG, forbid=ALL - {"flip"}, seed=1)
    assert {corner(view) for view in many} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_rotation_shows_no_empty_corner():
    bright = np.full((8, 40, 40, 3), 200, dtype=np.uint8)
    turned = augment(bright, policy=STRONG, forbid=ALL - {"rotate"}, seed=3)
    assert turned.min() >= 199


def test_noise_has_the_strength_that_was_asked_for_on_images_larger_than_its_field():
    grey = np.full((6, 300, 300, 3), 128, dtype=np.uint8)
    noisy = augment(grey, policy=STRONG, forbid=ALL - {"noise"}, seed=0).astype(float)
    assert 5 < noisy.std((1, 2, 3)).max() <= 26.5
    assert np.array_equal(noisy[..., 0], noisy[..., 1])
