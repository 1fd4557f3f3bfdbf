"""Invented frames of 5 megapixels: four products, uneven light, sensor noise, defects of 30 pixels with their boxes.

Mono JPEGs as a line camera's computer writes them. A lot is one batch of one product: its texture, its light and how
bright it is are drawn once, each frame shows another piece of it under a lamp that moved a little. Ground parts have
long faint marks that are no defects. Drawn, not photographed: what is measured on them says how the software treats
large frames, not how any factory's frames look.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, uniform_filter1d

WIDTH, HEIGHT = 2592, 1944
DEFECT_PX = 30
"""The longer side of every defect."""
FRAMES = 6
"""Of a part; in a bad part one of them shows one defect."""
PRODUCTS = ("rolled", "cast", "woven", "ground")
DEFECTS = ("scratch", "pit", "stain")
MARGIN = 320
"""How much larger a lot's texture is than a frame, along each side."""
NOISE = 2.5
QUALITY = 90

Rng = np.random.Generator
Grey = np.ndarray


@dataclass(frozen=True)
class Lot:
    """A batch of one product."""

    number: int
    seed: int = 0

    @property
    def name(self) -> str:
        """As labels have it."""
        return f"lot{self.number:03d}"

    @property
    def product(self) -> str:
        """Products take turns."""
        return PRODUCTS[self.number % len(PRODUCTS)]

    @cached_property
    def _base(self) -> Rng:
        return np.random.default_rng((self.seed, self.number))

    @cached_property
    def texture(self) -> Grey:
        """Float32 grey levels around 0 [HEIGHT + MARGIN, WIDTH + MARGIN]."""
        return _TEXTURES[self.product](self._base, (HEIGHT + MARGIN, WIDTH + MARGIN)).astype(np.float32)

    @cached_property
    def level(self) -> float:
        """How bright the lot is."""
        _ = self.texture
        return float(self._base.uniform(105, 160))

    def frame(self, rng: Rng, *, defect: str | None) -> tuple[bytes, list[int] | None]:
        """A JPEG, and the box x0, y0, x1, y1 of its defect where one is asked for."""
        y, x = (int(v) for v in rng.integers(0, MARGIN, 2))
        grey = self.texture[y : y + HEIGHT, x : x + WIDTH]
        grey = grey[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])] + np.float32(self.level)
        box = None
        if defect is not None:
            box = _planted(grey, rng, kind=defect)
        grey *= _light(rng)
        grey += rng.standard_normal(grey.shape, dtype=np.float32) * np.float32(NOISE)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue(), box

    def part(self, number: int, *, is_bad: bool) -> list[bytes]:
        """The frames of one part, of a bad one exactly one with a defect; another number, another part."""
        rng = np.random.default_rng((self.seed, self.number, 1, number))
        shown = int(rng.integers(FRAMES)) if is_bad else -1
        kinds = [str(rng.choice(DEFECTS)) if at == shown else None for at in range(FRAMES)]
        return [self.frame(rng, defect=kind)[0] for kind in kinds]


def _light(rng: Rng) -> Grey:
    """A lamp's field, bright somewhere and down to two thirds elsewhere: factors [HEIGHT, WIDTH]."""
    y, x = np.mgrid[0:9, 0:9] / 8
    at = rng.uniform(0.2, 0.8, 2)
    field = 1.05 - rng.uniform(0.15, 0.5) * ((y - at[0]) ** 2 + (x - at[1]) ** 2)
    small = Image.fromarray((field * rng.uniform(0.9, 1.1)).astype(np.float32))
    return np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _planted(grey: Grey, rng: Rng, *, kind: str) -> list[int]:
    """A defect is in the picture, whole and anywhere: its box."""
    half = DEFECT_PX // 2 + 4
    x, y = int(rng.integers(half, WIDTH - half)), int(rng.integers(half, HEIGHT - half))
    strength, mask = _DEFECTS[kind](rng, 2 * half)
    grey[y - half : y + half, x - half : x + half] += strength * mask
    side = DEFECT_PX // 2
    return [x - side, y - side, x + side, y + side]


def _scratch(rng: Rng, size: int) -> tuple[float, Grey]:
    angle, image = rng.uniform(0, np.pi), Image.new("L", (size, size))
    middle, (dy, dx) = size / 2, DEFECT_PX / 2 * np.array([np.sin(angle), np.cos(angle)])
    ImageDraw.Draw(image).line((middle - dx, middle - dy, middle + dx, middle + dy), fill=255, width=4)
    mask = gaussian_filter(np.asarray(image, dtype=np.float32) / 255, 0.8)
    return float(rng.uniform(45, 75) * rng.choice([-1, 1])), mask


def _pit(rng: Rng, size: int) -> tuple[float, Grey]:
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    radius = np.hypot(y, x * rng.uniform(1.0, 1.5))
    dark, rim = radius < DEFECT_PX / 2 - 4, (radius >= DEFECT_PX / 2 - 4) & (radius < DEFECT_PX / 2)
    mask = dark.astype(np.float32) - 0.5 * rim * (x + y < 0)
    return -float(rng.uniform(35, 60)), gaussian_filter(mask.astype(np.float32), 1.2)


def _stain(rng: Rng, size: int) -> tuple[float, Grey]:
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    bent = 1 + 0.2 * np.sin(3 * np.arctan2(y, x) + rng.uniform(0, 6))
    mask = 1 / (1 + np.exp((np.hypot(y, x) * bent - DEFECT_PX / 2 + 3) / 1.5))
    return float(rng.uniform(30, 50) * rng.choice([-1, 1])), mask.astype(np.float32)


_DEFECTS = {"scratch": _scratch, "pit": _pit, "stain": _stain}


# --- textures --------------------------------------------------------------------------------------------------------


def _noise(rng: Rng, shape: tuple[int, int]) -> Grey:
    return rng.standard_normal(shape, dtype=np.float32)


def _scaled(grey: Grey, spread: float) -> Grey:
    return grey * (spread / grey.std())


def _rolled(rng: Rng, shape: tuple[int, int]) -> Grey:
    """Lines of rolling along one side."""
    return _scaled(uniform_filter1d(_noise(rng, shape), int(rng.integers(41, 90)), axis=1), rng.uniform(5, 9))


def _cast(rng: Rng, shape: tuple[int, int]) -> Grey:
    """Grains of a few pixels on soft clouds."""
    grains = gaussian_filter(_noise(rng, shape), rng.uniform(1.5, 2.5))
    small = _noise(rng, (shape[0] // 32, shape[1] // 32))
    clouds = np.asarray(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))
    return _scaled(grains, rng.uniform(5, 8)) + _scaled(clouds, 3)


def _woven(rng: Rng, shape: tuple[int, int]) -> Grey:
    """Threads across each other, a little uneven."""
    period, phase = rng.uniform(9, 16), 0.6 * gaussian_filter(_noise(rng, (2, max(shape))), (0, 40)) * 40
    y, x = (np.arange(side, dtype=np.float32) * (2 * np.pi / period) + phase[i, :side] for i, side in enumerate(shape))
    return _scaled(np.sin(y)[:, None] * np.sin(x)[None, :], rng.uniform(6, 9)) + 2 * _noise(rng, shape)


def _ground(rng: Rng, shape: tuple[int, int]) -> Grey:
    """Fine grinding with long faint marks, which are as they should be."""
    canvas = Image.new("L", shape[::-1])
    draw = ImageDraw.Draw(canvas)
    for _ in range(60):
        x, y, dx, dy = *rng.uniform(0, shape[::-1]), *rng.uniform(-1500, 1500, 2)
        draw.line((x, y, x + dx, y + dy), fill=int(rng.integers(60, 160)), width=2)
    fine = uniform_filter1d(_noise(rng, shape), 9, axis=0)
    return _scaled(fine, rng.uniform(4, 6)) - 0.12 * np.asarray(canvas, dtype=np.float32)


_TEXTURES = {"rolled": _rolled, "cast": _cast, "woven": _woven, "ground": _ground}
