"""The six invented plants of the embedded fleet: material, light, camera, words, habits. Data, no procedure.

`plants.synthetic` makes them; its data sheet says what each is for. Change a number here and the measured figures in
its data sheet are stale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from plants import surfaces as draw
from plants.rendering import Camera, Light
from plants.surfaces import Rng, Style, Surface


@dataclass(frozen=True, slots=True)
class Station:
    """One environment: what is drawn, and what `fleet.yaml` declares about it."""

    shape: tuple[int, int]
    light: Light
    camera: Camera
    geometry: dict[str, Any]
    photometry: dict[str, float] = field(default_factory=dict)
    forbid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A plant class: what the fleet calls it, what is drawn, how often among this plant's defects."""

    fleet: str
    drawn: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """The people at a plant's line: how often they err, ask, and name what they see."""

    misses: float
    """Of defects of middling severity; twice as often of the faintest, never of the gravest."""
    false_alarms: float
    asks: float
    """Share of all parts that they leave to somebody else."""
    names_rightly: float | None = None
    """Share of what they stop that they call by its class; None where they name none."""


@dataclass(frozen=True, slots=True)
class Factory:
    """One plant as it is made."""

    name: str
    material: str
    products: dict[str, float]
    good: str
    kinds: dict[str, Kind]
    stations: dict[str, Station]
    marks: Callable[..., None]
    num_parts: int
    style: Style = field(default_factory=Style)
    sizes_px: dict[str, tuple[float, float]] = field(default_factory=dict)
    force: tuple[float, float] = (0.8, 1.3)
    poses: tuple[str, ...] = ("front",)
    suffix: str = "png"
    period_px: int = 128
    """Of the material, after which it repeats; every frame has its own."""
    lot_parts: tuple[int, int] = (2, 4)
    absent: dict[str, str] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] | None = None
    inspection: Inspection | None = None


def _cover(surface: Surface, rng: Rng, *, variant: int) -> None:
    """Screw holes at two of four places and, on one product, a milled line along the brushing."""
    high, wide = surface.height.shape
    for corner in rng.choice(4, size=int(rng.integers(0, 2 + variant % 2)), replace=False):
        y = (0.16 if corner < 2 else 0.84) * high + rng.normal(0, 4)
        x = (0.16 if corner % 2 else 0.84) * wide + rng.normal(0, 4)
        draw.hole(surface, centre=(y, x), radius=rng.uniform(5, 8))
    for _ in range(int(rng.integers(0, 2))):
        y, x = int(rng.uniform(0.1, 0.9) * high), int(rng.uniform(0, 0.7) * wide)
        draw.bar(surface, box=(x, y, x + int(rng.uniform(20, 70)), y + 1), relief=-0.9, soil=0.0)


def _casting(surface: Surface, rng: Rng, *, variant: int) -> None:
    """A parting line and a raised boss, pores in between."""
    high, wide = surface.height.shape
    y = int(rng.uniform(0.2, 0.8) * high)
    draw.bar(surface, box=(0, y, wide, y + 3), relief=1.2, soil=0.0)
    if variant:
        centre = (rng.uniform(0.2, 0.8) * high, rng.uniform(0.2, 0.8) * wide)
        draw.dent(surface, rng, centre=centre, size=36.0, force=1.0, style=Style(dent=-5.0))
    for _ in range(int(rng.integers(2, 7))):
        centre = (rng.uniform(5, high - 5), rng.uniform(5, wide - 5))
        draw.dent(surface, rng, centre=centre, size=rng.uniform(4, 7), force=1.0, style=Style(dent=2.5))


def _cloth(surface: Surface, rng: Rng, *, variant: int) -> None:
    """Bands of denser yarn woven in, and single thick yarns."""
    high, wide = surface.height.shape
    if variant:
        x = int(rng.uniform(0.1, 0.9) * wide)
        surface.height[:, x : x + 12] *= 1.12
    for _ in range(int(rng.integers(1, 4))):
        y = int(rng.uniform(0, high - 2))
        surface.height[y : y + 2] *= rng.uniform(1.05, 1.2)


def _tile(surface: Surface, rng: Rng, *, variant: int) -> None:
    """Printed decor: thin lines, small squares, a border of the glaze."""
    high, wide = surface.height.shape
    for _ in range(2 + 2 * variant):
        y, x = int(rng.uniform(0, high)), int(rng.uniform(0, wide))
        length, soil = int(rng.uniform(30, 110)), rng.choice((-0.45, 0.3))
        box = (x, y, x + length, y + 2) if rng.random() < 0.5 else (x, y, x + 2, y + length)
        draw.bar(surface, box=box, relief=0.0, soil=float(soil))
    for _ in range(2 + variant):
        y, x, n = int(rng.uniform(0, high)), int(rng.uniform(0, wide)), int(rng.uniform(6, 14))
        draw.bar(surface, box=(x, y, x + n, y + n), relief=0.0, soil=float(rng.choice((-0.4, 0.25))))


def _panel(surface: Surface, rng: Rng, *, variant: int) -> None:
    """Low ribs over the whole panel and a row of faint printed marks."""
    high, wide = surface.height.shape
    for k in range(3 + variant):
        x = int((k + 0.5) / (3 + variant) * wide + rng.normal(0, 15))
        draw.bar(surface, box=(x, 40, x + 10, high - 40), relief=0.3, soil=0.0)
    y = int(rng.uniform(0.3, 0.7) * high)
    for k in range(14):
        x = 120 + k * 36 + variant * 500
        draw.bar(surface, box=(x, y, x + int(rng.uniform(8, 24)), y + 26), relief=0.0, soil=-0.12)


def _metal(names: tuple[str, str, str, str, str]) -> dict[str, Kind]:
    """The five shared defects under a plant's own words; the last, chip, is rare."""
    fleet = ("scratch", "dent", "stain", "crack", "chip")
    weights = (1.0, 1.0, 1.0, 1.0, 0.4)
    return {name: Kind(f, f, w) for name, f, w in zip(names, fleet, weights, strict=True)}


_SMALL = {"scratch": (45.0, 80.0), "dent": (30.0, 48.0), "stain": (26.0, 48.0), "rust": (28.0, 48.0),
          "crack": (45.0, 70.0), "chip": (20.0, 32.0)}  # fmt: skip
_TINY = {"scratch": (24.0, 28.0), "dent": (21.0, 25.0), "stain": (18.5, 22.0), "crack": (18.0, 22.0)}
_LETTERBOX: dict[str, Any] = {"fit": "letterbox", "min_defect_px": 15}
_TILES: dict[str, Any] = {"fit": "tiles", "tile_px": 224, "overlap_px": 32, "min_defect_px": 20}


def _roi(x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    return {**_LETTERBOX, "roi": [x0, y0, x1, y1]}


FACTORIES: tuple[Factory, ...] = (
    Factory(
        name="arden",
        material="brushed",
        products={"cover-a": 0.5, "cover-b": 0.3, "cover-c": 0.7},
        good="ok",
        kinds=_metal(("scratch", "dent", "stain", "crack", "chip")),
        stations={
            "line1": Station((112, 112), Light("coaxial"), Camera(noise=0.02), dict(_LETTERBOX)),
            "line2": Station(
                (112, 152), Light("coaxial", strength=1.5), Camera(gain=0.7, gamma=0.8, blur_px=0.6, noise=0.025),
                _roi(20, 0, 132, 112), {"gain": 1.2},
            ),
        },
        marks=_cover,
        num_parts=400,
        period_px=256,
        sizes_px=_SMALL,
        costs={"miss": 40_000, "false_alarm": 4_000, "review": 400},
        inspection=Inspection(misses=0.12, false_alarms=0.05, asks=0.04),
    ),
    Factory(
        name="brno",
        material="brushed",
        products={"kryt-1": 0.6, "kryt-2": 0.4},
        good="dobry",
        kinds=_metal(("skrabanec", "promacklina", "skvrna", "prasklina", "odlomek")),
        stations={
            "hala-1": Station(
                (120, 120), Light("coaxial", strength=0.8),
                Camera(gain=0.85, gamma=1.3, blur_px=1.0, tint=(1.0, 0.82, 0.6), turns=1), dict(_LETTERBOX),
            ),
            "hala-2": Station(
                (120, 120), Light("coaxial", strength=1.2),
                Camera(gain=1.15, gamma=1.5, blur_px=0.7, noise=0.03, tint=(1.0, 0.9, 0.75), turns=3),
                dict(_LETTERBOX), {"gamma": 0.85},
            ),
        },
        marks=_cover,
        num_parts=400,
        period_px=256,
        sizes_px=_SMALL,
        shares={"train": 0.085, "select": 0.07, "decide": 0.48, "test": 0.365},
        costs={"miss": 60_000, "false_alarm": 5_000, "review": 600},
    ),
    Factory(
        name="cadiz",
        material="cast",
        products={"brida": 0.3, "carter": 0.4, "tapa": 0.5},
        good="bueno",
        kinds={
            "rayado": Kind("scratch", "scratch"),
            "golpe": Kind("dent", "dent"),
            "aceite": Kind("stain", "stain", 0.8),
            "oxido": Kind("stain", "rust", 0.8),
            "grieta": Kind("crack", "crack"),
            "desconchado": Kind("chip", "chip", 0.4),
        },
        stations={
            "celda-a": Station(
                (112, 112), Light("grazing", angle=35, strength=0.8), Camera(noise=0.025), dict(_LETTERBOX),
                forbid=("flip", "rotate"),
            ),
            "celda-b": Station(
                (104, 144), Light("grazing", angle=75, strength=0.7), Camera(gain=1.2, gamma=1.2, blur_px=0.5),
                _roi(20, 0, 124, 104), forbid=("flip", "rotate"),
            ),
        },
        marks=_casting,
        num_parts=280,
        style=Style(groove=1.8, groove_px=1.8, dent=10.0, soil=-0.5, crack=3.0, chip=3.5, chip_albedo=0.4),
        sizes_px=_SMALL,
        force=(0.8, 1.3),
        poses=("front", "rear", "side"),
        costs={"miss": 90_000, "false_alarm": 6_000, "review": 800, "review_per_hour": 30, "parts_per_hour": 400},
    ),
    Factory(
        name="delft",
        material="woven",
        products={"linnen": 0.0, "keper": 0.5, "canvas": 1.0},
        good="goed",
        kinds=_metal(("haal", "knoop", "vlek", "scheur", "gat")),
        stations={
            "baan-1": Station((112, 112), Light("back"), Camera(gain=1.6, noise=0.02), dict(_LETTERBOX)),
            "baan-2": Station(
                (100, 124), Light("back", strength=1.2),
                Camera(gain=2.0, gamma=0.8, blur_px=0.5, tint=(0.9, 0.95, 1.0)), {**_LETTERBOX, "fit": "whole"},
            ),
        },
        marks=_cloth,
        num_parts=380,
        style=Style(
            groove=1.0, groove_px=1.8, dent=-1.3, soil=-0.55, crack=1.2, crack_soil=0.0, chip=1.6, chip_albedo=0.0,
            along=(0.0, 90.0),
        ),
        sizes_px=_SMALL,
        costs={"miss": 8_000, "false_alarm": 2_000, "review": 200},
    ),
    Factory(
        name="essen",
        material="glazed",
        products={"weiss": 0.5, "terra": 1.0},
        good="gut",
        kinds={"Riss": Kind("crack", "crack"), "Abplatzer": Kind("chip", "chip"), "Fleck": Kind("stain", "stain")},
        absent={"Kratzer": "scratch"},
        stations={
            "ofen 1": Station(
                (120, 120), Light("ring", strength=2.0), Camera(noise=0.01, tint=(0.75, 0.9, 1.0)), dict(_LETTERBOX),
            ),
            "ofen 2": Station(
                (120, 120), Light("grazing", angle=80, strength=0.5),
                Camera(gain=1.1, blur_px=0.8, tint=(1.0, 0.7, 0.55)), dict(_LETTERBOX),
            ),
        },
        marks=_tile,
        num_parts=270,
        style=Style(soil=-0.5, crack=1.5, crack_soil=-0.25, chip=1.6, chip_albedo=-0.35),
        sizes_px=_SMALL,
        poses=("links", "rechts"),
        suffix="jpg",
        costs={"miss": 15_000, "false_alarm": 3_000, "review": 300},
        inspection=Inspection(misses=0.08, false_alarms=0.08, asks=0.02, names_rightly=0.9),
    ),
    Factory(
        name="fargo",
        material="moulded",
        products={"panel-l": 0.1, "panel-r": 0.2},
        good="good",
        kinds={name: Kind(name, name) for name in ("scratch", "dent", "stain", "crack")},
        stations={
            "press-1": Station(
                (1024, 2048), Light("grazing", angle=60, strength=0.7), Camera(noise=0.006), dict(_TILES),
            ),
            "press-2": Station(
                (1024, 2048), Light("grazing", angle=80, strength=0.9), Camera(gain=0.8, gamma=0.85, noise=0.009),
                dict(_TILES),
            ),
        },
        marks=_panel,
        num_parts=150,
        lot_parts=(1, 3),
        style=Style(groove=4.0, groove_px=2.6, dent=1.4, soil=0.13, crack=3.0, crack_soil=-0.2),
        sizes_px=_TINY,
        force=(1.1, 1.5),
        suffix="jpg",
        period_px=512,
        costs={"miss": 70_000, "false_alarm": 6_000, "review": 700},
    ),
)  # fmt: skip
"""The fleet. Order and names are stable; a part's looks depend on the seed, its plant and its index alone."""
