"""A part's skin: its relief and reflectance, what is made on it and what happens to it.

A surface is two fields, `height` in pixels and `albedo` around 1. Products are periodic surfaces that a frame is cut
from; marks, defects and dust change both fields inside a small window. Nothing here knows how a defect looks, only
its shape: looks come from light and camera (`plants.rendering`). Used by `plants.synthetic` alone, and never a source
of pretraining images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import gaussian_filter

Field = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]
Rng = np.random.Generator


@dataclass(slots=True)
class Surface:
    """A part's skin, float32 [H, W] each. `height` in pixels, `albedo` 1 where nothing is printed or soiled."""

    height: Field
    albedo: Field

    def window(self, *, top: int, left: int, shape: tuple[int, int]) -> Surface:
        """A copy of a part of this periodic surface, of any size."""
        rows, columns = np.arange(top, top + shape[0]), np.arange(left, left + shape[1])
        height, albedo = (
            field.take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")
            for field in (self.height, self.albedo)
        )
        return Surface(height, albedo)


def continued(field: Field, *, shape: tuple[int, int]) -> Field:
    """A periodic field repeated to its own size plus `shape`."""
    high, wide = (n + extra for n, extra in zip(field.shape, shape, strict=True))
    return np.pad(field, ((0, high - field.shape[0]), (0, wide - field.shape[1])), mode="wrap")


# Products: periodic fields that a frame is cut from. ------------------------------------------------------------


def _noise(rng: Rng, *, size: int, sigma: float | tuple[float, float]) -> Field:
    """Periodic smooth noise with standard deviation 1."""
    down, across = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    waves = fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    waves *= _gaussian(fft.fftfreq(size), sigma=down)[:, None] * _gaussian(fft.rfftfreq(size), sigma=across)
    field = fft.irfft2(waves, s=(size, size))
    return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)


def _gaussian(frequencies: Field, *, sigma: float) -> Field:
    """How much of each wave a Gaussian blur leaves."""
    return np.asarray(np.exp(-2 * (math.pi * sigma * frequencies) ** 2), dtype=np.float32)


def brushed(rng: Rng, *, size: int, strength: float) -> Surface:
    """Metal brushed along x: long fine furrows of uneven depth."""
    furrows = _noise(rng, size=size, sigma=(0.55, 28.0)) + 0.7 * _noise(rng, size=size, sigma=(1.6, 60.0))
    height = 0.22 * strength * furrows
    albedo = 1.0 + 0.05 * strength * _noise(rng, size=size, sigma=(1.0, 40.0)) + 0.02 * _noise(rng, size=size, sigma=9)
    return Surface(height.astype(np.float32), albedo.astype(np.float32))


def cast(rng: Rng, *, size: int, strength: float) -> Surface:
    """A sand-cast skin: grains of several sizes and scattered pores."""
    height = 0.35 * _noise(rng, size=size, sigma=1.2) + 0.9 * _noise(rng, size=size, sigma=3.5)
    pores = _noise(rng, size=size, sigma=1.7) > 2.35
    height -= 1.5 * gaussian_filter(pores.astype(np.float32), 1.0, mode="wrap")
    albedo = 0.9 + 0.05 * _noise(rng, size=size, sigma=6.0) - 0.25 * gaussian_filter(pores.astype(np.float32), 0.8)
    return Surface((strength * height).astype(np.float32), albedo.astype(np.float32))


def woven(rng: Rng, *, size: int, strength: float) -> Surface:
    """Plain weave of uneven yarns: `height` is thickness, highest where threads cross."""
    pitch = size // round(size / (6.0 + 2.5 * strength))
    pitch = next(p for p in range(pitch, 2, -1) if size % p == 0)
    grid = np.arange(size, dtype=np.float32) * (2 * math.pi / pitch)
    drift = 0.5 * _noise(rng, size=size, sigma=(3.0, 30.0)), 0.5 * _noise(rng, size=size, sigma=(30.0, 3.0))
    warp, weft = np.cos(grid[None, :] + drift[1]), np.cos(grid[:, None] + drift[0])
    thick = 1.0 + 0.16 * (warp + weft) + 0.12 * warp * weft
    thick = thick * (
        1.0 + 0.035 * _noise(rng, size=size, sigma=(0.8, 22.0)) + 0.035 * _noise(rng, size=size, sigma=(22.0, 0.8))
    )
    return Surface(thick.astype(np.float32), 1.0 + 0.04 * _noise(rng, size=size, sigma=10.0))


def glazed(rng: Rng, *, size: int, strength: float) -> Surface:
    """A glaze: gently wavy, with speckles burnt into its colour."""
    speckles = (_noise(rng, size=size, sigma=0.9) > 2.2).astype(np.float32)
    speckles += (_noise(rng, size=size, sigma=2.0) > 2.4).astype(np.float32)
    albedo = 1.0 + 0.05 * _noise(rng, size=size, sigma=14.0) - 0.35 * strength * gaussian_filter(speckles, 0.7)
    return Surface(0.7 * _noise(rng, size=size, sigma=14.0), albedo.astype(np.float32))


def moulded(rng: Rng, *, size: int, strength: float) -> Surface:
    """An eroded mould's fine even grain in plastic."""
    height = 0.16 * strength * _noise(rng, size=size, sigma=1.3)
    return Surface(height.astype(np.float32), 1.0 + 0.015 * _noise(rng, size=size, sigma=20.0))


PRODUCTS: dict[str, Callable[..., Surface]] = {f.__name__: f for f in (brushed, cast, woven, glazed, moulded)}


# What happened to a part. ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Style:
    """How this plant's material takes damage. Depths in pixels, soiling as a fraction of albedo."""

    groove: float = 1.6
    groove_px: float = 1.7
    dent: float = 7.0
    soil: float = -0.4
    crack: float = 1.6
    crack_soil: float = -0.3
    chip: float = 2.0
    chip_albedo: float = 0.25
    along: tuple[float, float] | None = None
    """Angles in degrees a scratch may take; any when absent."""


def _grid(surface: Surface, *, centre: tuple[float, float], reach: float) -> tuple[tuple[slice, slice], Field, Field]:
    """The window of `reach` around centre (y, x) clipped to the surface, and its y and x relative to the centre."""
    high, wide = surface.height.shape
    y0, y1 = max(int(centre[0] - reach), 0), min(int(centre[0] + reach) + 1, high)
    x0, x1 = max(int(centre[1] - reach), 0), min(int(centre[1] + reach) + 1, wide)
    y = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(centre[1])
    return (slice(y0, y1), slice(x0, x1)), y, x


def _apply(
    surface: Surface, where: tuple[slice, slice], *, mask: Field, relief: Field | None, soil: Field | None
) -> Box:
    """Change the surface in place; the box of `mask` above a tenth of its peak, padded by a pixel."""
    if relief is not None:
        surface.height[where] += relief
    if soil is not None:
        surface.albedo[where] *= 1.0 + soil
    rows = np.flatnonzero(mask.max(axis=1) > 0.1)
    columns = np.flatnonzero(mask.max(axis=0) > 0.1)
    y0, x0 = where[0].start, where[1].start
    high, wide = surface.height.shape
    if not len(rows) or not len(columns):
        return (x0, y0, where[1].stop, where[0].stop)
    return (
        max(x0 + int(columns[0]) - 1, 0),
        max(y0 + int(rows[0]) - 1, 0),
        min(x0 + int(columns[-1]) + 2, wide),
        min(y0 + int(rows[-1]) + 2, high),
    )


def scratch(surface: Surface, rng: Rng, *, centre: tuple[float, float], size: float, force: float, style: Style) -> Box:
    """One slightly bent, even groove, thrown-up edges beside it."""
    where, y, x = _grid(surface, centre=centre, reach=0.5 * size + 4)
    angle = math.radians(rng.uniform(0, 180) if style.along is None else rng.choice(style.along) + rng.normal(0, 4))
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    v = v - rng.normal(0, 0.10) * u * u / size
    ends = 1.0 / (1.0 + np.exp(np.clip((np.abs(u) - 0.46 * size) * 1.5, -30, 30)))
    width = style.groove_px * rng.uniform(0.8, 1.3)
    line = (np.exp(-((v / width) ** 2)) * ends).astype(np.float32)
    edge = np.exp(-(((np.abs(v) - 2 * width) / width) ** 2)) * ends
    depth = style.groove * force * math.copysign(1.0, style.groove)
    relief = -math.copysign(depth, style.groove) * (line - 0.35 * edge)
    return _apply(surface, where, mask=line, relief=relief.astype(np.float32), soil=None)


def crack(surface: Surface, rng: Rng, *, centre: tuple[float, float], size: float, force: float, style: Style) -> Box:
    """A jagged path that forks once, narrow towards its ends, dark inside."""
    where, y, x = _grid(surface, centre=centre, reach=0.62 * size + 4)
    heading = rng.uniform(0, 2 * math.pi)
    trunk = _walk(
        rng, start=(-0.5 * size * math.sin(heading), -0.5 * size * math.cos(heading)), heading=heading, length=size
    )
    fork = trunk[int(rng.integers(2, len(trunk) - 2))]
    side = heading + rng.choice((-1, 1)) * rng.uniform(0.5, 0.9)
    mask = np.zeros((y.shape[0], x.shape[1]), dtype=np.float32)
    for path, thick in ((trunk, 1.25), (_walk(rng, start=fork, heading=side, length=0.35 * size), 0.9)):
        for (ya, xa), (yb, xb) in itertools.pairwise(path):
            dy, dx = yb - ya, xb - xa
            t = np.clip(((y - ya) * dy + (x - xa) * dx) / (dy * dy + dx * dx), 0, 1)
            far = (y - ya - t * dy) ** 2 + (x - xa - t * dx) ** 2
            np.maximum(mask, np.exp(-far / (thick * rng.uniform(0.7, 1.2)) ** 2), out=mask)
    relief, soil = -style.crack * force * mask, style.crack_soil * force * mask
    return _apply(surface, where, mask=mask, relief=relief, soil=soil)


def _walk(rng: Rng, *, start: tuple[float, float], heading: float, length: float) -> list[tuple[float, float]]:
    """Points (y, x) of a walk that zigzags about its heading."""
    steps = max(int(length / 7), 5)
    points, turn = [start], rng.choice((-1.0, 1.0))
    for _ in range(steps):
        angle, turn = heading + turn * rng.uniform(0.25, 0.95), -turn
        step = length / steps * rng.uniform(0.8, 1.3)
        points.append((points[-1][0] + step * math.sin(angle), points[-1][1] + step * math.cos(angle)))
    return points


def dent(surface: Surface, rng: Rng, *, centre: tuple[float, float], size: float, force: float, style: Style) -> Box:
    """A smooth oval hollow; nothing changes but the slope."""
    where, y, x = _grid(surface, centre=centre, reach=0.75 * size + 2)
    angle, ratio = rng.uniform(0, math.pi), rng.uniform(0.7, 1.0)
    if style.along is not None:
        angle, ratio = math.radians(float(rng.choice(style.along))), 0.35
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    r2 = (u / (0.5 * size)) ** 2 + (v / (0.5 * size * ratio)) ** 2
    bowl = np.exp(-1.6 * r2 * np.sqrt(r2)).astype(np.float32)
    return _apply(surface, where, mask=bowl, relief=-style.dent * force * bowl, soil=None)


def stain(surface: Surface, rng: Rng, *, centre: tuple[float, float], size: float, force: float, style: Style) -> Box:
    """A flat patch of another reflectance with a lobed outline and often a dried rim."""
    where, y, x = _grid(surface, centre=centre, reach=0.75 * size + 3)
    inside = _lobes(rng, y=y, x=x, size=size, soft=rng.uniform(1.0, 2.5))
    rim = inside * (1.0 - inside) * 4.0
    rimmed = rng.uniform(0.0, 0.6)
    mask = (1.0 - 0.5 * rimmed) * inside + rimmed * rim
    return _apply(surface, where, mask=inside, relief=None, soil=(style.soil * force * mask).astype(np.float32))


def rust(surface: Surface, rng: Rng, *, centre: tuple[float, float], size: float, force: float, style: Style) -> Box:
    """A stain that has bitten: broken up into scales, rough to the light."""
    where, y, x = _grid(surface, centre=centre, reach=0.75 * size + 3)
    inside = _lobes(rng, y=y, x=x, size=size, soft=2.0)
    flakes = gaussian_filter(rng.standard_normal(inside.shape, dtype=np.float32), 1.3) * 3.2
    mask = inside * (flakes > -0.2)
    return _apply(
        surface,
        where,
        mask=inside,
        relief=(1.0 * force * mask * flakes).astype(np.float32),
        soil=(1.2 * style.soil * force * mask).astype(np.float32),
    )


def _lobes(rng: Rng, *, y: Field, x: Field, size: float, soft: float) -> Field:
    """1 inside a wobbling outline of about `size` across, 0 outside, `soft` pixels between."""
    theta = np.arctan2(y, x)
    outline = np.ones_like(theta)
    for k in (2, 3, 5):
        outline += 0.30 / k * rng.uniform(0.4, 1.4) * np.cos(k * theta + rng.uniform(0, 6.3))
    gap = (np.hypot(y, x) - 0.45 * size * outline) / soft
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(2 * gap, -30, 30))), dtype=np.float32)


def chip(surface: Surface, rng: Rng, *, centre: tuple[float, float], size: float, force: float, style: Style) -> Box:
    """A piece broken out: straight facets, a step down, a rough fresh floor."""
    where, y, x = _grid(surface, centre=centre, reach=0.7 * size + 3)
    edges = np.sort(rng.uniform(0, 2 * math.pi, size=int(rng.integers(4, 7))))
    gap = np.full((y.shape[0], x.shape[1]), -np.inf, dtype=np.float32)
    for angle in edges:
        np.maximum(gap, x * math.cos(angle) + y * math.sin(angle) - size * rng.uniform(0.28, 0.5), out=gap)
    gap = np.maximum(gap, np.hypot(y, x) - 0.55 * size)
    floor = np.clip(0.5 - gap, 0, 1).astype(np.float32)
    rough = gaussian_filter(rng.standard_normal(floor.shape, dtype=np.float32), 1.0)
    relief = -style.chip * force * floor * (1.0 + 1.2 * rough)
    return _apply(surface, where, mask=floor, relief=relief, soil=style.chip_albedo * force * floor * (1.0 + rough))


DEFECTS: dict[str, Callable[..., Box]] = {f.__name__: f for f in (scratch, crack, dent, stain, rust, chip)}


# What belongs there: marks of the product and dust. -------------------------------------------------------------


def hole(surface: Surface, *, centre: tuple[float, float], radius: float) -> None:
    """A drilled hole with a bevel, dark inside."""
    where, y, x = _grid(surface, centre=centre, reach=radius + 4)
    gap = np.hypot(y, x) - radius
    surface.albedo[where] *= 1.0 - 0.9 * np.clip(0.5 - gap, 0, 1)
    surface.height[where] -= 1.5 * np.exp(-((gap / 1.5) ** 2))


def bar(surface: Surface, *, box: Box, relief: float, soil: float) -> None:
    """A printed or embossed rectangle (x0, y0, x1, y1), clipped to the surface."""
    x0, y0, x1, y1 = (max(v, 0) for v in box)
    surface.height[y0:y1, x0:x1] += relief
    surface.albedo[y0:y1, x0:x1] *= 1.0 + soil


def dust(surface: Surface, rng: Rng, *, count: int) -> None:
    """Specks of a pixel or two, light or dark: never a defect."""
    high, wide = surface.height.shape
    for _ in range(count):
        y, x, n = int(rng.integers(1, high - 2)), int(rng.integers(1, wide - 2)), int(rng.integers(1, 3))
        surface.albedo[y : y + n, x : x + n] *= rng.choice((0.55, 1.4))
