"""Views of training images: seeded, of the same kind, and never what a station forbids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs import augment as module
from jobs.recipe import Augment

ALL = frozenset({"flip", "rotate", "brightness", "contrast", "noise"})
STRONG = Augment(strength=1.0, rotate_deg=25, brightness=0.5, contrast=0.5, noise=0.1)


def augment(pixels: np.ndarray, *, policy: Augment, forbid: frozenset[str], seed: int) -> np.ndarray:
    """The views as an array; all images have the same forbidden."""
    given = {"seeds": [f"{seed}|{i}".encode() for i in range(len(pixels))], "forbids": [forbid] * len(pixels)}
    return module.augment(torch.from_numpy(pixels), policy=policy, **given).numpy()


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


def test_a_view_is_the_same_whatever_its_company_and_only_its_own_is_forbidden():
    pixels, seeds = torch.from_numpy(images(40)), [b"%d" % i for i in range(40)]
    free, bound = frozenset(), frozenset({"rotate", "noise"})
    forbids = [bound if i % 3 else free for i in range(40)]
    together = module.augment(pixels, policy=STRONG, seeds=seeds, forbids=forbids)
    for i in (0, 1, 2, 17, 39):
        given = {"seeds": seeds[i : i + 1], "forbids": forbids[i : i + 1]}
        torch.testing.assert_close(together[i : i + 1], module.augment(pixels[i : i + 1], policy=STRONG, **given))
    unbound = module.augment(pixels, policy=STRONG, seeds=seeds)
    assert [bool((one == other).all()) for one, other in zip(together, unbound, strict=True)] == [
        forbid is free for forbid in forbids
    ]


def test_a_view_is_what_pillow_would_make_of_it():
    """The same turn, as Pillow draws it, is at most two levels away: it counts in steps of a 65,536th of a pixel."""
    from PIL import Image

    size, angle = 64, 25 * float(module._draws([b"3"])[0][0, 2])
    radians = np.deg2rad(angle)
    zoom = 1 / (np.cos(radians) + abs(np.sin(radians)))
    a, b, centre = np.cos(radians) * zoom, np.sin(radians) * zoom, size / 2
    matrix = (a, b, centre - a * centre - b * centre, -b, a, centre + b * centre - a * centre)
    y, x = np.mgrid[:size, :size]
    image = np.repeat((127 + 60 * np.sin(x / 7) + 60 * np.cos(y / 5))[..., None], 3, -1).astype(np.uint8)
    drawn = Image.fromarray(image).transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    given = {"seeds": [b"3"], "forbids": [ALL - {"rotate"}]}
    found = module.augment(torch.from_numpy(image[None]), policy=STRONG, **given)[0].numpy()
    assert abs(angle) > 1
    assert np.abs(found[2:-2, 2:-2].astype(int) - np.asarray(drawn)[2:-2, 2:-2]).max() <= 2
