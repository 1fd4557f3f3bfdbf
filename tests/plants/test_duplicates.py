"""A picture is found again after what happens to pictures, and another picture of the same material is not it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from plants.duplicates import SIDE_PX, near_duplicates, signature

SIZE = 160


def material(seed: int, *, grain_px: tuple[float, float] = (3.0, 3.0), spread: float = 18.0) -> np.ndarray:
    """One picture of a material: shading that all share, grain that none shares."""
    rng = np.random.default_rng(seed)
    coarse, fine = (ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), [s * k for s in grain_px]) for k in (4, 1))
    grain = coarse / coarse.std() + fine / fine.std()
    shading = np.linspace(100, 150, SIZE)[:, None]
    return np.clip(shading + spread * grain + rng.normal(0, 2, grain.shape), 0, 255).astype(np.uint8)


def in_fixture(seed: int) -> np.ndarray:
    """Material behind a fixture that is the same, sharp and bright in every picture."""
    picture = material(seed)
    picture[20:30, :] = picture[:, 120:128] = 240
    picture[80:110, 40:70] = 15
    return picture


def brushed(seed: int) -> np.ndarray:
    """Brushed metal between two dark cheeks: whatever it is laid over, some streaks agree."""
    rng = np.random.default_rng(seed)
    streaks = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), (1.0, 60.0))
    picture = 150 + 12 * streaks / streaks.std() + rng.normal(0, 2, streaks.shape)
    picture[:, :20] = picture[:, -28:] = 30
    return np.clip(picture, 0, 255).astype(np.uint8)


def printed(seed: int) -> np.ndarray:
    """Material under a print that is the same on every part, a pixel or two elsewhere, and outshines the grain."""
    layout = np.kron(np.random.default_rng(99).integers(-40, 40, (20, 20)), np.ones((8, 8)))
    moved = np.roll(layout, np.random.default_rng(seed).integers(-2, 3, 2), axis=(0, 1))
    return np.clip(material(seed, spread=10.0) + moved, 0, 255).astype(np.uint8)


def ring(seed: int) -> np.ndarray:
    """A turned ring on a dark ground: its own mirror image but for its grain."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    radius = np.hypot(y, x)
    return np.where((radius > 30) & (radius < 74), material(seed), 20).astype(np.uint8)


def woven(seed: int, *, size: int = 112) -> np.ndarray:
    """Cloth whose threads are finer than a signature resolves, in bands and blotches of its own."""
    rng = np.random.default_rng(seed)
    bands = sum(ndimage.gaussian_filter(rng.normal(size=(size, size)), reach) for reach in ((2, 30), (30, 2)))
    blotches = ndimage.gaussian_filter(rng.normal(size=(size, size)), 6)
    y, x = np.mgrid[:size, :size] * (2 * np.pi / 3.6)
    own = 5 * bands / bands.std() + 6 * blotches / blotches.std()
    cloth = 130 + 60 * np.sin(y) * np.sin(x) + own + rng.normal(0, 2, bands.shape)
    return np.clip(cloth, 0, 255).astype(np.uint8)


def cropped(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """85-95 % of each side, anywhere."""
    high, wide = (round(len(picture) * rng.uniform(0.85, 0.95)) for _ in range(2))
    y, x = rng.integers(len(picture) - high + 1), rng.integers(len(picture) - wide + 1)
    return picture[y : y + high, x : x + wide]


def turned(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 2 degrees, the corners black."""
    image = Image.fromarray(picture).rotate(2 * rng.choice([-1, 1]), Image.Resampling.BICUBIC)
    return np.asarray(image)


def recompressed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """JPEG of quality 40-70."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=int(rng.integers(40, 71)))
    return np.asarray(Image.open(data))


def brightened(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tenth brighter."""
    return np.clip(picture * 1.1, 0, 255).astype(np.uint8)


CHANGES = {
    "crop": (cropped,),
    "rotation": (turned,),
    "compression": (recompressed,),
    "brightness": (brightened,),
    "all": (turned, cropped, brightened, recompressed),
}


def found(pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    return [(i, j) for i, j, _ in near_duplicates([signature(picture) for picture in pictures])]


@pytest.mark.parametrize(
    "draw", [material, *(pytest.param(d, marks=pytest.mark.slow) for d in (in_fixture, ring, printed))]
)
@pytest.mark.slow
def test_a_changed_copy_is_paired_with_its_original_and_with_nothing_else(draw):
    rng = np.random.default_rng(1)
    pictures = [draw(seed) for seed in range(24)]
    for origin, changes in enumerate([*CHANGES.values()] * 2):
        copy = pictures[origin]
        for change in changes:
            copy = change(copy, rng)
        pictures.append(copy)
    assert found(pictures) == [(origin, 24 + origin) for origin in range(2 * len(CHANGES))]


@pytest.mark.slow
@pytest.mark.parametrize("spread", [2.0, 4.0])
def test_parts_under_one_print_at_one_place_are_not_paired_however_faint_their_grain(spread):
    layout = np.kron(np.random.default_rng(99).integers(-40, 40, (20, 20)), np.ones((8, 8)))
    parts = [np.clip(material(seed, spread=spread) + layout, 0, 255).astype(np.uint8) for seed in range(30)]
    assert found(parts) == []


@pytest.mark.slow
def test_any_number_of_the_same_picture_is_found():
    pairs = found([*[material(0)] * 13, *(material(seed) for seed in range(1, 30))])
    assert pairs == [(i, j) for i in range(13) for j in range(i + 1, 13)]


@pytest.mark.parametrize(("num_others", "num_copies"), [pytest.param(24, 11, marks=pytest.mark.slow), (3, 3), (40, 2)])
def test_every_pair_of_many_copies_is_found(num_others, num_copies):
    """Copies are not taken for a crowd that looks alike."""
    rng = np.random.default_rng(0)
    pictures = [material(0), *(recompressed(brightened(material(0), rng), rng) for _ in range(num_copies))]
    pairs = found([*pictures, *(material(seed) for seed in range(1, 1 + num_others))])
    assert pairs == [(i, j) for i in range(num_copies + 1) for j in range(i + 1, num_copies + 1)]


def test_faint_grain_is_not_lost_in_rounding():
    """A twentieth of the usual contrast, less than a grey level where a thumbnail's pixel is their mean."""
    rng = np.random.default_rng(4)
    faint = [
        np.rint(120 + (material(seed, spread=18.0).astype(float) - 120) / 16).astype(np.uint8) for seed in range(16)
    ]
    pictures = [*faint, *(cropped(faint[k], rng) for k in range(0, 16, 4))]
    assert found(pictures) == [(4 * k, 16 + k) for k in range(4)]


@pytest.mark.parametrize("grain_px", [(3.0, 3.0), (1.0, 1.0), (0.5, 12.0)], ids=["coarse", "fine", "brushed"])
def test_different_pictures_of_one_material_are_not_paired(grain_px):
    assert found([material(seed, grain_px=grain_px) for seed in range(40)]) == []


@pytest.mark.parametrize(
    ("draw", "num"), [(in_fixture, 40), (brushed, 6), (brushed, 24), (woven, 40), (ring, 24), (printed, 40)]
)
@pytest.mark.slow
def test_different_parts_that_look_alike_are_not_paired(draw, num):
    assert found([draw(seed) for seed in range(num)]) == []


def test_a_crop_of_cloth_is_paired_though_its_threads_fall_between_other_pixels():
    rng = np.random.default_rng(3)
    pictures = [woven(seed) for seed in range(24)]
    pictures += [cropped(pictures[k], rng) for k in range(0, 24, 4)]
    assert found(pictures) == [(4 * k, 24 + k) for k in range(6)]


def test_turned_cloth_is_never_mistaken_and_found_where_it_can_be_laid_one_way_or_the_other():
    """Its threads are as far apart as two degrees move them, so most is missed."""
    rng = np.random.default_rng(3)
    pictures = [woven(seed) for seed in range(24)]
    pairs = found([*pictures, *(turned(picture, rng) for picture in pictures)])
    assert pairs
    assert all(j - i == 24 for i, j in pairs)


def test_pictures_that_hold_nothing_are_not_paired():
    rng = np.random.default_rng(0)
    blank = [np.full((SIZE, SIZE), grey, dtype=np.uint8) for grey in (0, 128, 128, 255)]
    noisy = [np.clip(rng.normal(128, 1, (SIZE, SIZE)), 0, 255).astype(np.uint8) for _ in range(8)]
    assert found([*blank, *noisy]) == []


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_pictures_hold_no_pair(num):
    assert found([material(0)] * num) == []


def test_two_pictures_are_enough_to_find_a_pair():
    assert found([material(0), material(0)[8:150, 10:155]]) == [(0, 1)]


def test_every_pair_of_three_copies_is_found_once_and_in_order():
    rng = np.random.default_rng(2)
    pictures = [material(seed) for seed in range(10)]
    pictures[7], pictures[2] = recompressed(pictures[4], rng), cropped(pictures[4], rng)
    assert found(pictures) == [(2, 4), (2, 7), (4, 7)]


def test_a_colour_picture_is_paired_with_its_grey_copy():
    grey = material(0)
    assert found([np.repeat(grey[:, :, None], 3, axis=2), grey, material(1)]) == [(0, 1)]


def test_a_signature_is_4_kib_whatever_the_size_of_the_picture():
    for shape in ((600, 37), (128, 128, 3), (16, 16)):
        thumbnail = signature(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
        assert (thumbnail.shape, thumbnail.dtype) == ((SIDE_PX, SIDE_PX), np.uint8)


def test_a_pair_scores_lower_the_more_was_done_to_the_copy():
    rng = np.random.default_rng(3)
    pictures = [material(seed) for seed in range(8)]
    same, changed = pictures[2], recompressed(cropped(turned(pictures[2], rng), rng), rng)
    scores = {(i, j): score for i, j, score in near_duplicates([signature(p) for p in [*pictures, same, changed]])}
    assert scores[2, 8] == pytest.approx(1, abs=1e-3)
    assert 0.5 < scores[2, 9] < scores[2, 8]
