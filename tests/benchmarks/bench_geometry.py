"""Does geometry keep what matters: 12-bit frames beside the same in 8 bits, small defects in large frames, borders.

xsdd (CROSSPLANT_REAL_DATA, default ../shared/data) twice in one fleet, as it is and as 16-bit files of 12 bits (each
value times 16); and a plant of 2448 x 2048 frames with 30-pixel scratches, a third of them at the border: what
audit says of letterbox, the AUC with tiles, and how often border and central scratches are found by the published
bundle on frames it has never met. Prints one JSON object last.

    python tests/benchmarks/bench_geometry.py
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw
from rich.console import Console
from scipy.ndimage import gaussian_filter, uniform_filter1d

WIDTH, HEIGHT, SCRATCH_PX, BORDER_PX = 2448, 2048, 30, 40
TILES = {"fit": "tiles", "tile_px": 256, "overlap_px": 64, "min_defect_px": SCRATCH_PX}
XSDD = [
    "finishing_roll_printing",
    "iron_sheet_ash",
    "oxide_scale_of_plate_system",
    "oxide_scale_of_temperature_system",
    "red_iron",
    "slag_inclusion",
    "surface_scratch",
]


# --- 12 bits


def twelve_bits(folder: Path, *, data: Path, limit: int | None) -> Path:
    """A fleet of xsdd in 8 bits and in 12."""
    for name in XSDD:
        (folder / "eight" / name).mkdir(parents=True)
        (folder / "twelve" / name).mkdir(parents=True)
        for file in sorted((data / "steel" / "xsdd" / name).iterdir())[:limit]:
            grey = np.asarray(Image.open(file).convert("L"))
            Image.fromarray(grey).save(folder / "eight" / name / f"{file.stem}.png")
            Image.fromarray(grey.astype(np.uint16) * 16).save(folder / "twelve" / name / f"{file.stem}.png")
    plants = []
    for name, depth in (("eight", 8), ("twelve", 12)):
        # Lots are named alike, so that the same frames play the same roles in both; neither may leave its plant, or
        # the two would be pooled.
        plants.append(
            {
                "name": name,
                "images": name,
                "classes": {c: c for c in XSDD},
                "lot_pattern": r"([^/]+)\.png",
                "may_leave": False,
                "environments": {"default": {"geometry": {"bit_depth": depth}}},
            }
        )
    return written(folder, plants)


def bits(folder: Path, *, data: Path, limit: int | None, show: Console) -> dict[str, Any]:
    """Macro-F1 on the sealed test in 8 and in 12 bits, own models, equal roles."""
    document, sealed, _ = walked(twelve_bits(folder, data=data, limit=limit), folder=folder, show=show)
    found: dict[str, Any] = {}
    for name in ("eight", "twelve"):
        own = document["matrix"][f"own-{name}-s0"][name]
        found[name] = {
            "decide_own": own["macro_f1"],
            "sealed": {k: sealed["plants"][name][k] for k in ("model", "macro_f1", "macro_f1_low", "macro_f1_high")},
        }
    found["difference_sealed"] = found["twelve"]["sealed"]["macro_f1"] - found["eight"]["sealed"]["macro_f1"]
    found["difference_decide"] = found["twelve"]["decide_own"] - found["eight"]["decide_own"]
    return found


# --- large frames


def large_frame(rng: np.random.Generator, *, at: tuple[int, int] | None) -> Image.Image:
    """Brushed steel with uneven light and sensor noise, and one scratch around a point where one is given."""
    brushed = uniform_filter1d(rng.normal(0, 22, (HEIGHT, WIDTH)).astype(np.float32), 61, axis=1)
    light = np.kron(rng.normal(0, 6, (8, 8)).astype(np.float32), np.ones((HEIGHT // 8, WIDTH // 8), np.float32))
    grey = 135 + 3 * brushed + gaussian_filter(light, 60)
    if at is not None:
        grey -= scratch(rng, at=at)
    grey += rng.normal(0, 2, grey.shape)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def scratch(rng: np.random.Generator, *, at: tuple[int, int]) -> np.ndarray:
    """How much darker a scratch of `SCRATCH_PX` makes each pixel."""
    angle, mask = rng.uniform(0, np.pi), Image.new("L", (WIDTH, HEIGHT))
    dx, dy = SCRATCH_PX / 2 * np.cos(angle), SCRATCH_PX / 2 * np.sin(angle)
    ImageDraw.Draw(mask).line((at[0] - dx, at[1] - dy, at[0] + dx, at[1] + dy), fill=255, width=3)
    return gaussian_filter(np.asarray(mask, dtype=np.float32), 0.8) * (rng.uniform(35, 55) / 255)


def spot(rng: np.random.Generator, *, is_border: bool) -> tuple[int, int]:
    """A point whose scratch lies whole in the frame, within `BORDER_PX` of its border or far from it."""
    margin = SCRATCH_PX // 2 + 1
    while True:
        x, y = int(rng.integers(margin, WIDTH - margin)), int(rng.integers(margin, HEIGHT - margin))
        distance = min(x, y, WIDTH - x, HEIGHT - y)
        if (distance < BORDER_PX) == is_border and (is_border or distance > 4 * BORDER_PX):
            return x, y


def large_plant(folder: Path, *, num: int, rng: np.random.Generator) -> Path:
    """`num` frames, half of them scratched, with boxes; two frames a lot."""
    rows = []
    for i in range(num):
        is_bad = i % 2 == 1
        at = spot(rng, is_border=i % 6 == 1) if is_bad else None
        name = f"frame{i:03d}.jpg"
        (folder / "large").mkdir(exist_ok=True)
        large_frame(rng, at=at).save(folder / "large" / name, quality=90)
        half = SCRATCH_PX // 2
        box = [at[0] - half, at[1] - half, at[0] + half, at[1] + half] if at else ["", "", "", ""]
        rows.append([name, "scratch" if is_bad else "good", f"lot{i // 2:03d}", *box])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["frame", "class", "lot", "x0_px", "y0_px", "x1_px", "y1_px"], *rows])
    plant = {
        "name": "large",
        "images": "large",
        "labels": "labels.csv",
        "classes": {"good": "ok", "scratch": "scratch"},
        "ok": ["good"],
        "environments": {"default": {"geometry": TILES}},
        "shares": {"train": 0.4, "select": 0.1, "decide": 0.3, "test": 0.2},
    }
    return written(folder, [plant])


def large(folder: Path, *, num: int, num_fresh: int, show: Console) -> dict[str, Any]:
    """The audit's word on letterbox, AUC by tiles, and found scratches by where they lie."""
    from cluster.catalog import Catalog
    from plants.audit import audit
    from plants.geometry import Geometry
    from serving.verbs import predict_files

    rng = np.random.default_rng(0)
    document, sealed, loaded = walked(large_plant(folder, num=num, rng=rng), folder=folder, show=show)
    plant = loaded.plant("large")
    boxed = Geometry(fit="letterbox", min_defect_px=SCRATCH_PX)
    squeezed = {k: e.model_copy(update={"geometry": boxed}) for k, e in plant.environments.items()}
    rows = Catalog.of(loaded).rows("large")
    size_px = loaded.trunks[0].size_px
    findings = audit(plant.model_copy(update={"environments": squeezed}), rows, fleet=loaded, trunk_size_px=size_px)
    decision = document["decisions"]["large"]
    store = Path(loaded.store)
    bundle, policy = store / "bundles" / decision["bundle"], store / "policies" / f"{decision['policy_digest']}.json"
    said: dict[str, list[float]] = {"border": [], "centre": [], "good": []}
    for i in range(num_fresh):
        kind = ("border", "centre", "good")[i % 3]
        at = None if kind == "good" else spot(rng, is_border=kind == "border")
        file = folder / f"fresh{i}.jpg"
        large_frame(rng, at=at).save(file, quality=90)
        asked = {"settings": settings_of(folder), "plant": "large", "bundle": bundle, "policy": policy}
        (answer,) = predict_files([file], **asked)["predictions"]
        said[kind].append(1 - answer["probabilities"]["good"])
        file.unlink()
    limit = float(np.quantile(said["good"], 0.95))
    return {
        "audit_of_letterbox": [f"{f.level}: {f.detail}" for f in findings if f.kind == "small_defects"],
        "decide": {k: document["matrix"][decision["model"]]["large"][k] for k in ("auc", "macro_f1", "n")},
        "sealed": {k: sealed["plants"]["large"][k] for k in ("auc", "macro_f1", "n")},
        "fresh_frames": num_fresh,
        "found_at_5_percent_false": {k: float(np.mean(np.array(said[k]) > limit)) for k in ("border", "centre")},
    }


# --- both


def written(folder: Path, plants: list[dict[str, Any]]) -> Path:
    """The fleet file."""
    trunk = {"size_px": 128, "cuts": [0, 1, 2], "options": {"global_pool": "catavgmax"}}
    raw = {"fleet": "geometry", "store": "store", "trunks": [trunk], "plants": plants}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return folder / "fleet.yaml"


def settings_of(folder: Path) -> Any:
    """Settings with a home of their own."""
    from cluster.settings import Settings

    return Settings(home=folder / "home")


def walked(path: Path, *, folder: Path, show: Console) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """import, train, compare, evaluate: what the last two said, and the fleet."""
    from cluster import session
    from jobs import verbs, verdicts
    from plants.plant import load_fleet

    loaded, settings = load_fleet(path), settings_of(folder)
    names = [plant.name for plant in loaded.plants]
    verbs.import_fleet(loaded, names=names, show=show)
    verbs.train(loaded, settings=settings, recipe_file=None, seeds=(0,), leave_out=(), retry_failed=False, show=show)
    document = verdicts.compare(loaded, settings=settings, show=show)
    sealed = verdicts.evaluate(loaded, settings=settings, names=names, show=show)
    session.stop()
    return document, sealed, loaded


def main() -> None:
    """Both questions, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few frames; the figures mean nothing")
    parser.add_argument("--only", choices=("bits", "large"), help="only this question")
    asked = parser.parse_args()
    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data")).resolve()
    show, start, figures = Console(stderr=True), time.monotonic(), {}
    if asked.only != "large" and data.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            figures["bits"] = bits(Path(folder), data=data, limit=12 if asked.quick else None, show=show)
    elif asked.only != "large":
        show.print(f"xsdd is left out, the real plants are not at {data}: set CROSSPLANT_REAL_DATA", markup=False)
    if asked.only != "bits":
        sizes = {"num": 60, "num_fresh": 9} if asked.quick else {"num": 200, "num_fresh": 180}
        with tempfile.TemporaryDirectory() as folder:
            figures["large"] = large(Path(folder), **sizes, show=show)
    print(json.dumps({"name": "geometry", "seconds": round(time.monotonic() - start, 1), "figures": figures}))


if __name__ == "__main__":
    main()
