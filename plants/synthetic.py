"""Makes the embedded fleet: six invented plants, so that everything runs on a machine without a single real image.

Data sheet. Every frame is drawn by `plants.surfaces` and `plants.rendering`; nothing is photographed, and no figure
measured here says anything about a real line. What is true of it: each plant has its own material, light, camera and
words, so that one plant's model fails at another; defects cover a small part of a frame; the same defect looks
otherwise under another light; harmless things (holes, printing, pores, dust, fixtures) look like other plants' defects.

    arden   brushed covers, coaxial light, mono                five defect classes, chip rare: the plain case
    brno    the same covers, brushed across, bronze, blurred   few labels: one part in twelve may be learned from
    cadiz   castings, grazing light, three frames a part       oil and rust told apart; a defect shows in some frames
    delft   woven cloth before a backlight                     openings are bright: what others call light is dark
    essen   glazed tiles, printed decor, two frames a part     three defect classes, a fourth checked and absent
    fargo   moulded panels, 2048 x 1024                        four defect classes of 20-30 px: needs tiles

At arden and essen people inspect already: they miss faint defects, stop good parts, and at essen name what they see.

Macro-F1 per part while it was tuned (seed 0, one split by lot, 60 % learned from, brno 20 %, frames of a product cut
from one piece of material, which now have one each): ImageNet
`mobilenetv2_035` at 128 px, frozen, with logistic regression 98, 64, 91, 90, 91 at the first five plants, 6-45 with
another plant's head, 95, 89, 90, 87, 89 with a head of all five; `test_resnet` with random weights 39, 31, 42, 32, 48;
HOG and a linear SVM 29, 20, 26, 27, 32. fargo, faint defects: defect or not per part at AUC 0.996 by tiles and 0.61
(seed 0) or 0.56 (seed 1) by `whole`, cross-validated, with the embedded backbone and a linear head.

The same seed gives the same bytes, on any number of processes.
"""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from plants import surfaces as draw
from plants.factories import FACTORIES, Factory
from plants.rendering import encode, expose, shade
from plants.surfaces import Box, Surface

COLUMNS = (
    "frame", "class", "part_id", "lot", "product", "pose", "environment", "captured_at", "box", "severity", "annotator",
)  # fmt: skip
GOOD_SHARE = 0.55
GRAIN_PX = 512
"""Of sensor noise, after which it repeats."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part before it is drawn."""

    index: int
    label: str
    lot: str
    product: str
    station: str
    captured_at: datetime
    severity: float | None
    annotator: str
    incumbent: str
    """What the people at the line said, empty where nobody stands there."""
    shown_in: tuple[bool, ...]


TRUNK = {
    "backbone": "test_resnet",
    "weights": "embedded",
    "size_px": 128,
    "cuts": [0, 1, 2],
    "options": {"global_pool": "catavgmax"},
}
"""Mean and maximum pooling side by side: small defects drown in a mean (arden, one split: macro-F1 78 against 89)."""


def make_fleet(
    folder: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    only: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
) -> Path:
    """Frames, one `labels.csv` a plant and `fleet.yaml` lie in `folder`; the path of `fleet.yaml` is returned.

    `scale` multiplies the number of parts of every plant. `only` names the plants wanted, each as in the whole fleet.
    `progress` is called with (frames done, frames in all).
    `processes` is 2 where that pays: then call this from a module that guards its entry by `__name__ == "__main__"`.
    """
    folder = Path(folder)
    wanted = [factory for factory in FACTORIES if not only or factory.name in only]
    plans = [plan_parts(factory, seed=seed, scale=scale) if factory in wanted else [] for factory in FACTORIES]
    total = sum(len(parts) * len(factory.poses) for factory, parts in zip(FACTORIES, plans, strict=True))
    if processes is None:
        processes = 2 if total >= 400 else 1
    rows: dict[str, list[dict[str, Any]]] = {factory.name: [] for factory in wanted}
    for factory in wanted:
        (folder / factory.name / "frames").mkdir(parents=True, exist_ok=True)
    done = 0
    for name, made in _results(_chunks(folder, plans=plans, seed=seed, pieces=2 * processes - 1), processes=processes):
        rows[name].extend(made)
        done += len(made)
        if progress is not None:
            progress(done, total)
    for factory in wanted:
        _write_labels(folder / factory.name / "labels.csv", rows=rows[factory.name])
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(_fleet_yaml(seed, wanted), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


Chunk = tuple[Path, int, list[Part], int]
"""Folder, the factory's number, its parts, the seed."""


def _chunks(folder: Path, *, plans: list[list[Part]], seed: int, pieces: int) -> list[Chunk]:
    """Every plant's parts in `pieces`, the plant with the largest frames first."""
    order = sorted(
        range(len(FACTORIES)), key=lambda n: -max(s.shape[0] * s.shape[1] for s in FACTORIES[n].stations.values())
    )
    return [(folder, n, plans[n][start::pieces], seed) for n in order for start in range(pieces) if plans[n]]


def _results(chunks: list[Chunk], *, processes: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    if processes <= 1:
        yield from map(_make, chunks)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_make, chunk) for chunk in chunks]):
            yield future.result()


def plan_parts(factory: Factory, *, seed: int, scale: float) -> list[Part]:
    """Every part of a plant: its class, lot, product, station and hour, before anything is drawn.

    Classes have fixed counts, dealt at random over the parts. A lot is a few parts of one product at one station.
    """
    number = FACTORIES.index(factory)
    rng = np.random.default_rng((seed, number, 0))
    labels = rng.permutation(_counts(factory, num_parts=max(round(factory.num_parts * scale), 2 + len(factory.kinds))))
    products, stations = list(factory.products), list(factory.stations)
    parts: list[Part] = []
    clock, lot = datetime(2024, 3, 4, 6, 0), 0
    while len(parts) < len(labels):
        product, station = products[rng.integers(len(products))], stations[rng.integers(len(stations))]
        clock += timedelta(minutes=float(rng.uniform(20, 400)))
        for _ in range(
            min(int(rng.integers(factory.lot_parts[0], factory.lot_parts[1] + 1)), len(labels) - len(parts))
        ):
            label = str(labels[len(parts)])
            clock += timedelta(seconds=float(rng.uniform(20, 90)))
            shown = rng.random(len(factory.poses)) < 0.55
            shown[rng.integers(len(shown))] = True
            parts.append(
                Part(
                    index=len(parts),
                    label=label,
                    lot=f"{factory.name}-L{lot:03d}",
                    product=product,
                    station=station,
                    captured_at=clock.replace(microsecond=0),
                    severity=None if label == factory.good else round(float(rng.uniform(0, 1)), 3),
                    annotator=f"{factory.name}-{'ab'[int(rng.integers(2))]}",
                    incumbent="",
                    shown_in=tuple(bool(s) and label != factory.good for s in shown),
                )
            )
        lot += 1
    return _inspected(factory, parts, rng=np.random.default_rng((seed, number, 3)))


def _inspected(factory: Factory, parts: list[Part], *, rng: np.random.Generator) -> list[Part]:
    """The parts with what the plant's own inspection said, drawn apart from all else."""
    people, kinds = factory.inspection, list(factory.kinds)
    if people is None:
        return parts
    found = []
    for part in parts:
        asked, err, right, other = rng.random(4)
        if part.severity is None:
            said = "reject" if err < people.false_alarms else "ok"
        else:
            said = "ok" if err < 2 * people.misses * (1 - part.severity) else "reject"
        if said == "reject" and people.names_rightly is not None:
            is_right = part.severity is not None and right < people.names_rightly
            said = part.label if is_right else kinds[int(other * len(kinds))]
        found.append(replace(part, incumbent="review" if asked < people.asks else said))
    return found


def _counts(factory: Factory, *, num_parts: int) -> list[str]:
    """Class names by count: 55 % good, the rest by weight, at least one of each."""
    weight = sum(kind.weight for kind in factory.kinds.values())
    defects = num_parts * (1 - GOOD_SHARE)
    labels = [
        name for name, kind in factory.kinds.items() for _ in range(max(round(defects * kind.weight / weight), 1))
    ]
    return labels + [factory.good] * (num_parts - len(labels))


def _make(chunk: Chunk) -> tuple[str, list[dict[str, Any]]]:
    """Draw a chunk of one plant's parts; its label rows."""
    folder, number, parts, seed = chunk
    factory = FACTORIES[number]
    rng = np.random.default_rng((seed, number, 1))
    shape = (max(s.shape[0] for s in factory.stations.values()), max(s.shape[1] for s in factory.stations.values()))
    grain = draw.continued(rng.standard_normal((GRAIN_PX, GRAIN_PX), dtype=np.float32), shape=shape)
    material = draw.PRODUCTS[factory.material]
    rows = []
    for part in parts:
        rng = np.random.default_rng((seed, number, 2, part.index))
        for turn, pose in enumerate(factory.poses):
            blank = material(rng, size=factory.period_px, strength=factory.products[part.product])
            pixels, box = draw_frame(factory, part, rng=rng, blank=blank, grain=grain, shown=part.shown_in[turn])
            name = f"frames/{factory.name}-{part.index:04d}-{turn}.{factory.suffix}"
            (folder / factory.name / name).write_bytes(encode(pixels, suffix=factory.suffix))
            rows.append(_row(factory, part, frame=name, pose=pose, box=box))
    return factory.name, rows


def draw_frame(
    factory: Factory, part: Part, *, rng: draw.Rng, blank: Surface, grain: draw.Field, shown: bool
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Box | None]:
    """One frame of a part and the box of its defect, None where none is to be seen."""
    station = factory.stations[part.station]
    x0, y0, x1, y1 = station.geometry.get("roi", (0, 0, station.shape[1], station.shape[0]))
    top, left = rng.integers(factory.period_px, size=2)
    surface = blank.window(top=int(top), left=int(left), shape=(y1 - y0, x1 - x0))
    factory.marks(surface, rng, variant=list(factory.products).index(part.product))
    draw.dust(surface, rng, count=int(rng.integers(0, 5 if surface.height.size < 512**2 else 20)))
    harm_rng, camera_rng = rng.spawn(2)
    box = _harm(factory, part, surface=surface, rng=harm_rng) if shown else None
    intensity = shade(surface, light=station.light)
    pixels = expose(intensity, camera_rng, camera=station.camera, grain=grain)
    if station.camera.turns:
        pixels = np.ascontiguousarray(np.rot90(pixels, station.camera.turns))
        box = box and _turned(box, shape=intensity.shape, turns=station.camera.turns)
    if pixels.shape[:2] != station.shape:
        pixels = _in_fixture(pixels, camera_rng, shape=station.shape, at=(y0, x0))
        box = box and (box[0] + x0, box[1] + y0, box[2] + x0, box[3] + y0)
    return pixels, box


def _harm(factory: Factory, part: Part, *, surface: Surface, rng: draw.Rng) -> Box:
    """Put the part's defect somewhere on the surface; its box."""
    kind = factory.kinds[part.label].drawn
    size = float(rng.uniform(*factory.sizes_px[kind]))
    margin = 0.35 * size + 4
    centre = tuple(float(rng.uniform(margin, n - margin)) for n in surface.height.shape)
    low, high = factory.force
    force = low + (high - low) * (part.severity or 0.0)
    return draw.DEFECTS[kind](surface, rng, centre=centre, size=size, force=force, style=factory.style)


def _turned(box: Box, *, shape: tuple[int, ...], turns: int) -> Box:
    """The box after `numpy.rot90` of a [H, W] frame."""
    high, wide = shape[:2]
    for _ in range(turns % 4):
        x0, y0, x1, y1 = box
        box = (y0, wide - x1, y1, wide - x0)
        high, wide = wide, high
    return box


def _in_fixture(
    pixels: np.ndarray[Any, np.dtype[np.uint8]], rng: draw.Rng, *, shape: tuple[int, int], at: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The frame with what the camera sees beside the region of interest: clamps, bright screws."""
    frame = np.full((*shape, *pixels.shape[2:]), 38, dtype=np.uint8)
    for _ in range(6):
        y, x = int(rng.integers(0, shape[0] - 12)), int(rng.integers(0, shape[1] - 12))
        frame[y : y + 12, x : x + 12] = int(rng.integers(60, 240))
    frame[at[0] : at[0] + pixels.shape[0], at[1] : at[1] + pixels.shape[1]] = pixels
    return frame


def _row(factory: Factory, part: Part, *, frame: str, pose: str, box: Box | None) -> dict[str, Any]:
    return {
        "frame": frame,
        "class": part.label,
        "part_id": f"{factory.name}-P{part.index:04d}",
        "lot": part.lot,
        "product": part.product,
        "pose": pose,
        "environment": part.station,
        "captured_at": part.captured_at.isoformat(),
        "box": "" if box is None else " ".join(map(str, box)),
        "severity": "" if part.severity is None else part.severity,
        "annotator": part.annotator,
        **({"incumbent": part.incumbent} if factory.inspection else {}),
    }


def _write_labels(path: Path, *, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *(["incumbent"] if "incumbent" in rows[0] else [])])
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["frame"]))


def _fleet_yaml(seed: int, factories: Sequence[Factory]) -> dict[str, Any]:
    """What `fleet.yaml` says."""
    return {
        "fleet": "embedded",
        "store": "store",
        "synthetic": True,
        "seed": seed,
        "trunks": [TRUNK],
        "shares": {"train": 0.5, "select": 0.1, "decide": 0.2, "test": 0.2},
        "plants": [_plant_yaml(factory) for factory in factories],
    }


def _plant_yaml(factory: Factory) -> dict[str, Any]:
    classes: dict[str, Any] = {factory.good: "ok"} | {name: kind.fleet for name, kind in factory.kinds.items()}
    classes |= {name: {"fleet": fleet, "state": "absent"} for name, fleet in factory.absent.items()}
    plant: dict[str, Any] = {
        "name": factory.name,
        "images": factory.name,
        "labels": f"{factory.name}/labels.csv",
        "classes": classes,
        "ok": [factory.good],
        "environments": {},
        "costs": factory.costs,
    }
    for name, station in factory.stations.items():
        entry: dict[str, Any] = {"geometry": station.geometry}
        if station.photometry:
            entry["photometry"] = station.photometry
        if station.forbid:
            entry["forbid"] = list(station.forbid)
        plant["environments"][name] = entry
    if factory.shares:
        plant["shares"] = factory.shares
    return plant
