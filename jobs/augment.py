"""Augmented views of training images: uint8 in, uint8 out, so that a view meets the trunk as a real image does."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jobs.recipe import Augment

NOISE_PX = 256


def augment(images: np.ndarray, *, policy: Augment, forbid: frozenset[str], seed: int | Sequence[bytes]) -> np.ndarray:
    """One random view of each image, uint8 [N, S, S, 3]; the same seed gives the same view.

    seed: of all images, which then differ by their positions; or each image's own, whatever its company.
    Flips, a small rotation with a little zoom that hides the corners, brightness and contrast by a table, noise.
    What is in `forbid` (flip, rotate, brightness, contrast, noise) never happens.
    """
    seeds = [f"{seed}|{i}".encode() for i in range(len(images))] if isinstance(seed, int) else seed
    out = np.empty_like(images)
    for i, (image, draws, offset) in enumerate(zip(images, *_draws(seeds), strict=True)):
        out[i] = _view(image, policy=policy, forbid=forbid, draws=draws, offset=offset)
    return out


def _draws(seeds: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Uniform in [-1, 1), float64 [N, 6], and in 0..NOISE_PX - 1, [N, 2]: a hash's bytes are as good as drawn ones.

    Starting a generator for each image took 27 times as long.
    """
    hashed = np.frombuffer(b"".join(hashlib.sha256(b"view|" + one).digest() for one in seeds), dtype=np.uint8)
    hashed = hashed.reshape(-1, 32)
    uniform = hashed[:, :24].copy().view("<u4") / 2.0**31 - 1
    return uniform, hashed[:, 24:28].copy().view("<u2") % NOISE_PX


def _view(
    image: np.ndarray, *, policy: Augment, forbid: frozenset[str], draws: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    strength = policy.strength
    if policy.flip and strength > 0 and "flip" not in forbid:
        if draws[0] < 0:
            image = image[:, ::-1]
        if draws[1] < 0:
            image = image[::-1]
    angle = 0.0 if "rotate" in forbid else policy.rotate_deg * strength * draws[2]
    if angle:
        image = _rotate(image, angle_deg=angle)
    gain = 1.0 if "contrast" in forbid else 1.0 + policy.contrast * strength * draws[3]
    shift = 0.0 if "brightness" in forbid else 255 * policy.brightness * strength * draws[4]
    table = np.clip((np.arange(256) - 127.5) * gain + 127.5 + shift, 0, 255)
    image = np.rint(table).astype(np.uint8)[image]
    sigma = 0.0 if "noise" in forbid else 255 * policy.noise * strength * abs(draws[5])
    if sigma >= 0.5:
        image = _with_noise(image, sigma=sigma, offset=offset)
    return image


def _with_noise(image: np.ndarray, *, sigma: float, offset: np.ndarray) -> np.ndarray:
    """Grey Gaussian noise, cut from one field that was drawn once: drawing it anew took most of a view's time."""
    height, width = image.shape[:2]
    field = np.roll(_noise_field(), tuple(offset), axis=(0, 1))
    while field.shape[0] < height or field.shape[1] < width:
        field = np.tile(field, (2, 2))
    noise = (field[:height, :width] * np.float32(sigma)).astype(np.int16)[..., None]
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@functools.cache
def _noise_field() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((NOISE_PX, NOISE_PX), dtype=np.float32)


def _rotate(image: np.ndarray, *, angle_deg: float) -> np.ndarray:
    size = image.shape[0]
    radians = np.deg2rad(angle_deg)
    zoom = 1 / (np.cos(radians) + abs(np.sin(radians)))
    a, b = np.cos(radians) * zoom, np.sin(radians) * zoom
    centre = (size - 1) / 2
    matrix = (a, b, centre - a * centre - b * centre, -b, a, centre + b * centre - a * centre)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))
