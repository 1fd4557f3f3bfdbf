"""Images made of nothing: surfaces with and without a local defect, for pretraining a backbone offline.

A *texture* is a random power spectrum (slope, peak, anisotropy, orientation), a pointwise nonlinearity, a repeated
motif, a weave and a palette; what defines it is drawn once in a `World`. On it lies one *anomaly* of a known kind, or
none, and then light, camera and noise do what they like. Drawing is batched torch; a batch depends only on
(world, seed, step), so that a run that was interrupted goes on as if it had not been.

Not for tests of plants: those invent their own data elsewhere, so that nothing is learned from its own generator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

ANOMALIES = ("none", "scratch", "crack", "pit", "stain", "chip", "dent", "smear", "spatter")
"""Kinds of local anomaly; the index is the label."""

NONLINEARITIES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, k: x,
    lambda x, k: torch.tanh((1 + 3 * k) * x),
    lambda x, k: x.abs(),
    lambda x, k: -x.abs().sqrt(),
    lambda x, k: torch.exp(0.5 + k * x.clamp(-3, 3)),
    lambda x, k: -torch.exp(0.5 + k * x.clamp(-3, 3)),
    lambda x, k: torch.sigmoid(8 * (x - 2 * k + 0.5)),
    lambda x, k: torch.sin((2 + 5 * k) * x),
    lambda x, k: x - torch.roll(x, (1, 1), dims=(1, 2)),
    lambda x, k: x - torch.roll(x, (1, -1), dims=(1, 2)),
)
"""Pointwise (or one-pixel relief) functions of a field [n, S, S] and a strength [n, 1, 1] in 0..1."""

MOTIFS = ("none", "line", "blob", "ring", "wave")
PADDING = 114 / 255
"""What letterboxing pads with in `plants.views`, so that the backbone has seen it."""


@dataclass(frozen=True, slots=True)
class World:
    """What defines each texture, one entry per class in every tensor [C, ...]."""

    slope: Tensor
    peak: Tensor
    peak_frequency: Tensor
    peak_width: Tensor
    anisotropy: Tensor
    angle: Tensor
    nonlinearity: Tensor
    strength: Tensor
    grain: Tensor
    motif: Tensor
    motif_count: Tensor
    motif_angle: Tensor
    motif_size_px: Tensor
    motif_height: Tensor
    weave_height: Tensor
    weave_frequency: Tensor
    weave_angle: Tensor
    weave_sharpness: Tensor
    contrast: Tensor
    dark: Tensor
    bright: Tensor

    @classmethod
    def draw(cls, num_textures: int, *, seed: int) -> World:
        """A world of `num_textures` textures, the same for the same seed."""
        d, n = Draw("world", seed), num_textures
        tint = 0.22 * d.chance(0.5, n, 1)
        sign = 2 * d.chance(0.5, n) - 1
        return cls(
            slope=d.uniform(0.2, 2.4, n),
            peak=4 * d.uniform(0, 1, n) * d.chance(0.6, n),
            peak_frequency=d.log_uniform(0.02, 0.3, n),
            peak_width=d.uniform(0.1, 0.5, n),
            anisotropy=torch.exp(d.uniform(0, 1.6, n) * d.chance(0.6, n)),
            angle=d.uniform(0, math.pi, n),
            nonlinearity=d.integer(len(NONLINEARITIES), n),
            strength=d.uniform(0, 1, n),
            grain=d.uniform(0, 0.8, n) * d.chance(0.6, n),
            motif=d.integer(len(MOTIFS), n),
            motif_count=3 + d.integer(8, n),
            motif_angle=d.uniform(0, math.pi, n),
            motif_size_px=d.log_uniform(0.8, 7.0, n),
            motif_height=sign * d.uniform(1.0, 3.5, n),
            weave_height=d.uniform(0.4, 1.5, n) * d.chance(0.3, n),
            weave_frequency=d.log_uniform(0.04, 0.25, n),
            weave_angle=d.uniform(0, math.pi, n),
            weave_sharpness=d.uniform(0.5, 6, n),
            contrast=d.log_uniform(0.03, 0.2, n),
            dark=tint * d.normal(n, 3),
            bright=1 + tint * d.normal(n, 3),
        )

    def __len__(self) -> int:
        return len(self.slope)

    def pick(self, textures: Tensor) -> World:
        """The rows of these textures, one per image."""
        return World(**{f.name: getattr(self, f.name)[textures] for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Batch:
    """Images uint8 [N, S, S, 3], their texture [N], their anomaly's kind [N], and where it lies, 0..1 [N, S, S]."""

    images: Tensor
    texture: Tensor
    anomaly: Tensor
    mask: Tensor


class Draw:
    """Random numbers that depend only on the key they were opened with."""

    def __init__(self, purpose: str, *key: int) -> None:
        text = "|".join([purpose, *map(str, key)])
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._generator)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.exp(self.uniform(math.log(low), math.log(high), *shape))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def integer(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self._generator)

    def chance(self, p: float, *shape: int) -> Tensor:
        """1.0 with probability p, else 0.0."""
        return (torch.rand(shape, generator=self._generator) < p).float()


def draw_batch(world: World, *, seed: int, step: int, num_images: int, size_px: int, boldness: float = 1.0) -> Batch:
    """`num_images` labelled images of `size_px`; the same for the same arguments. Bold anomalies are easier to see."""
    d = Draw("batch", seed, step, size_px)
    texture = d.integer(len(world), num_images)
    anomaly = d.integer(len(ANOMALIES), num_images) * d.chance(0.75, num_images).long()
    t = world.pick(texture)
    surface = draw_surface(t, d, size_px=size_px)
    contrast = t.contrast * d.log_uniform(0.7, 1.4, num_images)
    value = d.uniform(0.3, 0.7, num_images, 1, 1) + column(contrast) * surface
    rgb = t.dark[:, None, None] + (t.bright - t.dark)[:, None, None] * value[..., None]
    rgb, mask = add_anomaly(rgb, anomaly, boldness * contrast, d)
    rgb = photograph(rgb, d)
    pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
    return Batch(images=pixels, texture=texture, anomaly=anomaly, mask=mask)


def draw_surface(t: World, d: Draw, *, size_px: int) -> Tensor:
    """Standardised relief or print of each texture [N, S, S]: mean 0, deviation 1."""
    n = len(t)
    field = _spectral_field(t, d, size_px=size_px)
    shaped = torch.empty_like(field)
    for kind, function in enumerate(NONLINEARITIES):
        rows = (t.nonlinearity == kind).nonzero()[:, 0]
        if len(rows):
            shaped[rows] = function(field[rows], column(t.strength[rows]))
    total = _standardise(shaped) + column(t.grain) * d.normal(n, size_px, size_px)
    total = total + column(t.weave_height) * _weave(t, d, size_px=size_px)
    for kind in range(1, len(MOTIFS)):
        rows = (t.motif == kind).nonzero()[:, 0]
        if len(rows):
            total[rows] += _motif(MOTIFS[kind], t.pick(rows), d, size_px=size_px)
    return _standardise(total)


def column(values: Tensor) -> Tensor:
    """[n] as [n, 1, 1]."""
    return values[:, None, None]


def bump(distance: Tensor) -> Tensor:
    """exp(-distance), without the denormal numbers that make it ten times slower far away."""
    return torch.exp(-distance.clamp(max=30))


def _standardise(field: Tensor) -> Tensor:
    centred = field - field.mean(dim=(1, 2), keepdim=True)
    return centred / (centred.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-3)


def _spectral_field(t: World, d: Draw, *, size_px: int) -> Tensor:
    n = len(t)
    fy, fx = torch.fft.fftfreq(size_px)[None, :, None], torch.fft.rfftfreq(size_px)[None, None, :]
    angle = column(t.angle + 0.12 * d.normal(n))
    stretch, zoom = column(t.anisotropy), column(torch.exp(0.15 * d.normal(n)))
    along = (fx * angle.cos() + fy * angle.sin()) * zoom * stretch
    across = (fy * angle.cos() - fx * angle.sin()) * zoom / stretch
    log_f = 0.5 * torch.log(along.square() + across.square() + 1e-4)
    away = (log_f - column(t.peak_frequency.log())) / column(t.peak_width)
    amplitude = torch.exp(column(t.peak) * bump(0.5 * away.square()) - column(t.slope) * log_f)
    amplitude[:, 0, 0] = 0
    white = torch.fft.rfft2(d.normal(n, size_px, size_px))
    return _standardise(torch.fft.irfft2(white * amplitude, s=(size_px, size_px)))


def _weave(t: World, d: Draw, *, size_px: int) -> Tensor:
    n = len(t)
    u, v = local_frame(n, size_px, angle=t.weave_angle + 0.06 * d.normal(n))
    wave = 2 * math.pi * column(t.weave_frequency * torch.exp(0.1 * d.normal(n)))
    phase = d.uniform(0, 2 * math.pi, 2, n)
    crossing = torch.sin(wave * u + column(phase[0])) * torch.sin(wave * v + column(phase[1]))
    return torch.tanh(column(t.weave_sharpness) * crossing)


def _motif(kind: str, t: World, d: Draw, *, size_px: int) -> Tensor:
    n, total = len(t), torch.zeros(len(t), size_px, size_px)
    for item in range(int(t.motif_count.max())):
        size = t.motif_size_px * torch.exp(0.25 * d.normal(n))
        angle = t.motif_angle + 0.2 * d.normal(n)
        u, v = local_frame(n, size_px, angle=angle, centre=d.uniform(0, size_px, 2, n))
        width = column(size)
        if kind == "line":
            distance = (v / (0.5 * width)).square() + (u / (12 * width)).square()
        elif kind == "blob":
            distance = (v / width).square() + (u / (1.8 * width)).square()
        elif kind == "ring":
            distance = ((torch.sqrt(u.square() + v.square()) - 2.5 * width) / (0.4 * width + 0.5)).square()
        else:
            distance = ((v - 2 * width * torch.sin(u / (3 * width))) / (0.4 * width + 0.4)).square()
            distance = distance + (u / (14 * width)).square()
        here = column((item < t.motif_count).float() * t.motif_height)
        total += here * bump(distance)
    return total


def local_frame(n: int, size_px: int, *, angle: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Coordinates in pixels along and across a direction, [n, S, S] each, zero at `centre` [2, n]."""
    axis = torch.arange(size_px, dtype=torch.float32)
    middle = torch.full((2, n), size_px / 2) if centre is None else centre
    x, y = axis[None, None, :] - column(middle[0]), axis[None, :, None] - column(middle[1])
    cos, sin = column(angle.cos()), column(angle.sin())
    return x * cos + y * sin, y * cos - x * sin


def add_anomaly(rgb: Tensor, anomaly: Tensor, contrast: Tensor, d: Draw) -> tuple[Tensor, Tensor]:
    """The images [N, S, S, 3] with their anomaly on them, and where it lies [N, S, S]."""
    n, size_px = rgb.shape[0], rgb.shape[1]
    height, mask, smooth = (torch.zeros(n, size_px, size_px) for _ in range(3))
    for kind in range(1, len(ANOMALIES)):
        rows = (anomaly == kind).nonzero()[:, 0]
        if not len(rows):
            continue
        shape, extent = _ANOMALY_SHAPES[ANOMALIES[kind]](len(rows), size_px, d)
        height[rows], mask[rows] = shape, extent
        if ANOMALIES[kind] in ("smear", "chip"):
            smooth[rows] = column(d.uniform(0.5, 1, len(rows))) * extent
    strength = contrast * d.uniform(1.2, 4.0, n) + d.uniform(0.04, 0.25, n)
    tint = 1 + 0.5 * d.normal(n, 1, 1, 3) * d.chance(0.3, n, 1, 1, 1)
    level = rgb.mean(dim=(1, 2), keepdim=True)
    rgb = rgb + (level - rgb) * smooth[..., None]
    return rgb + (column(strength) * height)[..., None] * tint, mask


Shape = tuple[Tensor, Tensor]


def _sign(n: int, d: Draw, *, dark: float) -> Tensor:
    return column(1 - 2 * d.chance(dark, n))


def _stroke(n: int, size_px: int, d: Draw, *, jag: float, width: tuple[float, float]) -> Tensor:
    angle = d.uniform(0, math.pi, n)
    u, v = local_frame(n, size_px, angle=angle, centre=size_px * d.uniform(0.15, 0.85, 2, n))
    half = column(size_px * d.log_uniform(0.1, 0.6, n))
    bend = column(d.normal(n)) * 0.15 * u.square() / half
    for octave in range(3):
        wave = column(2 * math.pi / (size_px * d.uniform(0.12, 0.5, n) / 2**octave))
        bend = bend + column(jag * d.normal(n) / 1.5**octave) * torch.sin(wave * u + column(d.uniform(0, 6.3, n)))
    thick = column(d.log_uniform(*width, n))
    return bump(((v - bend) / thick).square()) * torch.sigmoid((half - u.abs()) * 1.5)


def _scratch(n: int, size_px: int, d: Draw) -> Shape:
    line = _stroke(n, size_px, d, jag=0.15, width=(0.5, 2.2))
    second = _stroke(n, size_px, d, jag=0.15, width=(0.5, 1.5)) * column(d.chance(0.3, n))
    both = torch.maximum(line, second)
    return both * _sign(n, d, dark=0.4), both


def _crack(n: int, size_px: int, d: Draw) -> Shape:
    line = _stroke(n, size_px, d, jag=2.0, width=(0.5, 1.6))
    return -line, line


def _disc(n: int, size_px: int, d: Draw, *, radius: tuple[float, float], wobble: float, soft: float) -> Tensor:
    """Signed depth inside an uneven ellipse, in units of its soft edge."""
    angle = d.uniform(0, math.pi, n)
    u, v = local_frame(n, size_px, angle=angle, centre=size_px * d.uniform(0.1, 0.9, 2, n))
    size, longer = column(d.log_uniform(*radius, n)), column(d.log_uniform(1, 2.5, n))
    u = u / longer
    turn = torch.atan2(v, u)
    edge = torch.ones_like(u)
    for harmonic in (2, 3, 5, 8):
        phase = column(d.uniform(0, 6.3, n))
        edge = edge + column(wobble * d.normal(n) / harmonic**0.5) * torch.sin(harmonic * turn + phase)
    distance = torch.sqrt(u.square() + v.square())
    return (size * edge.clamp(min=0.3) - distance) / (soft * size.sqrt())


def _pit(n: int, size_px: int, d: Draw) -> Shape:
    total, where = torch.zeros(n, size_px, size_px), torch.zeros(n, size_px, size_px)
    for item in range(3):
        here = column(torch.ones(n) if item == 0 else d.chance(0.25, n))
        depth = _disc(n, size_px, d, radius=(1.2, 5), wobble=0.1, soft=0.5)
        hole, rim = torch.sigmoid(2 * depth), bump((depth + 1.2).square())
        total += here * (-1.3 * hole + column(d.uniform(0, 0.6, n)) * rim)
        where = torch.maximum(where, here * hole)
    return total, where


def _stain(n: int, size_px: int, d: Draw) -> Shape:
    inside = torch.sigmoid(_disc(n, size_px, d, radius=(3, 0.22 * size_px), wobble=0.15, soft=1.2))
    return inside * _sign(n, d, dark=0.6), inside


def _chip(n: int, size_px: int, d: Draw) -> Shape:
    depth = _disc(n, size_px, d, radius=(2.5, 0.2 * size_px), wobble=0.22, soft=0.4)
    inside, rim = torch.sigmoid(3 * depth), bump((depth + 0.5).square())
    return inside * _sign(n, d, dark=0.6) + column(d.uniform(-1, 1, n)) * rim, inside


def _dent(n: int, size_px: int, d: Draw) -> Shape:
    light = d.uniform(0, 2 * math.pi, n)
    u, v = local_frame(n, size_px, angle=light, centre=size_px * d.uniform(0.15, 0.85, 2, n))
    size, longer = column(d.log_uniform(2, 0.15 * size_px, n)), column(d.log_uniform(0.6, 1.8, n))
    dome = bump(0.5 * ((u / size).square() + (v / (size * longer)).square()))
    return 1.6 * (u / size) * dome, dome


def _smear(n: int, size_px: int, d: Draw) -> Shape:
    inside = torch.sigmoid(_disc(n, size_px, d, radius=(5, 0.3 * size_px), wobble=0.1, soft=1.0))
    return 0.25 * inside * _sign(n, d, dark=0.5), inside


def _spatter(n: int, size_px: int, d: Draw) -> Shape:
    middle, spread = size_px * d.uniform(0.2, 0.8, 2, n), size_px * d.uniform(0.05, 0.2, n)
    total = torch.zeros(n, size_px, size_px)
    for item in range(8):
        centre = middle + spread * d.normal(2, n)
        u, v = local_frame(n, size_px, angle=torch.zeros(n), centre=centre)
        size = column(d.log_uniform(0.6, 1.8, n))
        here = column(torch.ones(n) if item < 4 else d.chance(0.5, n))
        total = torch.maximum(total, here * bump((u.square() + v.square()) / size.square()))
    return 1.2 * total * _sign(n, d, dark=0.6), total


_ANOMALY_SHAPES: dict[str, Callable[[int, int, Draw], Shape]] = {
    "scratch": _scratch,
    "crack": _crack,
    "pit": _pit,
    "stain": _stain,
    "chip": _chip,
    "dent": _dent,
    "smear": _smear,
    "spatter": _spatter,
}


def photograph(rgb: Tensor, d: Draw) -> Tensor:
    """The images under some light through some camera: gradient, gain, gamma, colour cast, blur, noise, padding."""
    n, size_px = rgb.shape[0], rgb.shape[1]
    u, v = local_frame(n, size_px, angle=d.uniform(0, 2 * math.pi, n))
    slope = column(0.35 * d.uniform(-1, 1, n) * d.chance(0.6, n))
    vignette = column(0.4 * d.uniform(-0.5, 1, n) * d.chance(0.3, n))
    light = 1 + slope * u / size_px - vignette * (u.square() + v.square()) / size_px**2
    gain = d.log_uniform(0.6, 1.5, n, 1, 1, 1) * (1 + 0.06 * d.normal(n, 1, 1, 3) * d.chance(0.5, n, 1, 1, 1))
    rgb = (rgb * light[..., None] - 0.5) * gain + 0.5 + d.uniform(-0.2, 0.2, n, 1, 1, 1)
    rgb = rgb.clamp(0.001, 1) ** d.log_uniform(0.7, 1.4, n, 1, 1, 1)
    gray = d.chance(0.35, n, 1, 1, 1)
    rgb = torch.lerp(rgb, rgb.mean(dim=3, keepdim=True).expand_as(rgb), gray)
    blurred = sum(torch.roll(rgb, shift, dims=(1, 2)) for shift in ((0, 1), (0, -1), (1, 0), (-1, 0))) / 4
    rgb = torch.lerp(rgb, blurred, d.uniform(-0.15, 0.7, n, 1, 1, 1))
    rgb = rgb + d.uniform(0, 0.05, n, 1, 1, 1) * d.chance(0.7, n, 1, 1, 1) * d.normal(n, size_px, size_px, 1)
    bar = column(d.uniform(0, 0.25, n) * d.chance(0.12, n)) * size_px
    across, place = torch.arange(size_px)[None, :, None], column(d.chance(0.5, n))
    rows = (across < bar) | (across >= size_px - bar)
    bars = torch.where(place > 0, rows, rows.transpose(1, 2))
    return torch.where(bars[..., None], torch.tensor(PADDING), rgb)
