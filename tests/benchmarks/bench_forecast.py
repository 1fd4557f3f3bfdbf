"""How well a new plant is forecast: over many fleets every plant is left out, forecast from the others, and then done.

A fleet is five to eight invented plants, one of each small kind of the embedded fleet and one to three more of a kind
drawn again, every one with its own light, camera and number of parts. Heads on frozen features, without Ray: a pooled
model without each plant, its day one, and heads refitted as the plant's labels arrive, as `compare` does. Figures:
how often what happened lay in the forecast's 95 % interval, how wide that is (0 to 1 would hold everything), how often
the labels to the floor were within a factor of two, by kind of plant. Parameters were chosen on seeds from 100 on. All
is computed in float32, so that two runs on one machine give the same figures.

    .venv/bin/python tests/benchmarks/bench_forecast.py                       20 fleets, seeds 0 to 19: about 10 minutes
    .venv/bin/python tests/benchmarks/bench_forecast.py --seed 100 --seed 101
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from plants import synthetic
from plants.factories import FACTORIES, Factory, Station

sys.path.insert(0, str(Path(__file__).parent))

from bench_plants_training import renamed
from measuring import machine, note

KINDS = ("arden", "brno", "cadiz", "delft", "essen")
SHARES = {"train": 0.45, "select": 0.08, "decide": 0.4, "test": 0.07}
SEEDS = range(20)
MARGINS = (0.02, 0.05, 0.1)


def varied(factory: Factory, *, rng: np.random.Generator) -> Factory:
    """Another plant of the kind: other light, camera, force of defects and number of parts."""

    def station(given: Station) -> Station:
        light = replace(
            given.light,
            angle=given.light.angle + float(rng.uniform(-30, 30)),
            strength=given.light.strength * float(rng.uniform(0.7, 1.3)),
        )
        camera = replace(
            given.camera,
            gain=given.camera.gain * float(rng.uniform(0.8, 1.2)),
            gamma=given.camera.gamma * float(rng.uniform(0.8, 1.25)),
            blur_px=given.camera.blur_px + float(rng.uniform(0, 0.6)),
        )
        return replace(given, light=light, camera=camera)

    force = float(rng.uniform(0.85, 1.15))
    return replace(
        factory,
        stations={name: station(given) for name, given in factory.stations.items()},
        force=(factory.force[0] * force, factory.force[1] * force),
        num_parts=round(400 * float(rng.uniform(0.3, 0.8))),
        shares=None,
    )


def fleet_of(seed: int, *, folder: Path) -> Path:
    """The fleet's file, its frames drawn. The table of factories is another one in this process while they are."""
    import yaml

    rng = np.random.default_rng(seed)
    kinds = [*KINDS, *rng.choice(KINDS, size=int(rng.integers(0, 4)))]
    plants: list[dict[str, Any]] = []
    for number, kind in enumerate(kinds):
        synthetic.FACTORIES = tuple(varied(one, rng=rng) if one.name == kind else one for one in FACTORIES)
        file = synthetic.make_fleet(folder / str(number), seed=1000 * seed + number, only=(str(kind),), processes=1)
        plants += renamed(file, suffix=str(number))
    synthetic.FACTORIES = FACTORIES
    raw = {"fleet": "forecast", "store": str(folder / "store"), "synthetic": True, "trunks": [synthetic.TRUNK]}
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump({**raw, "shares": SHARES, "plants": plants}), encoding="utf-8")
    return path


def forecast_of(seed: int, *, folder: Path, home: Path) -> dict[str, Any]:
    """The fleet's `forecast`, as `compare` has it. home: where the trunk is exported once for all fleets."""
    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.settings import Settings
    from cluster.storage import PlantFiles
    from jobs.arrival import arrival
    from jobs.fit import fit_run
    from jobs.fleet import planned
    from jobs.forecast import forecast
    from jobs.leave_out import ALL
    from jobs.material import Material
    from jobs.recipe import Recipe
    from jobs.scoring import Exports, role_inputs
    from plants.plant import load_fleet

    fleet, settings = load_fleet(fleet_of(seed, folder=folder)), Settings(home=home, slots=1)
    catalog, recipe = Catalog.of(fleet), Recipe(stages=(), views=1, compute="float32")
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    material = Material(fleet, cache=settings.cache, recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, leave_out=[ALL])
    done = [run for run in plan.runs if run.kind == "without"]
    for run in done:
        fit_run(run, material=material, plan=plan)
    exports, arrived = Exports(material, plan=plan), []
    run_ids = [run.run_id for run in done]
    for plant in fleet.plants:
        inputs = role_inputs(plant.name, role="decide", exports=exports)
        assert inputs is not None
        arrived.append(arrival(plant.name, plan=plan, run_ids=run_ids, inputs=inputs, seed=0))
    arrivals = [one for one in arrived if one is not None]
    by_margin = {margin: forecast(fleet, arrivals=arrivals, margin=margin) for margin in MARGINS}
    labels = {str(margin): [row["labels"] for row in found["plants"]] for margin, found in by_margin.items() if found}
    return {**(forecast(fleet, arrivals=arrivals) or {}), "labels_by_margin": labels}


def figures(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the forecasts held, over all plants of these fleets and by kind."""
    rows = [row for document in found for row in document["plants"]]
    kinds = {kind: [row for row in rows if row["plant"].startswith(kind)] for kind in KINDS}
    by_margin = {m: _labels([one for d in found for one in d["labels_by_margin"][m]]) for m in map(str, MARGINS)}
    shares = [row["labels"]["found"]["labels"] / row["curve"][-1]["labels"] for row in rows if row["labels"]["found"]]
    quartiles = [round(float(q), 2) for q in np.percentile(shares, [25, 50, 75])]
    more = {"labels_by_margin": by_margin, "labels_to_floor_of_all_labels_quartiles": quartiles}
    return {**_held(rows), **more, "by_kind": {kind: _held(some) for kind, some in kinds.items()}}


def _held(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    day_one = {}
    for metric in rows[0]["day_one"] if rows else ():
        told = [row["day_one"][metric] for row in rows]
        told = [one for one in told if one["holds"] is not None]
        day_one[metric] = {
            "n": len(told),
            "coverage": _mean([one["holds"] for one in told]),
            "mean_width": _mean([one["forecast"]["high"] - one["forecast"]["low"] for one in told]),
            "mean_error": _mean([abs(one["forecast"]["value"] - one["found"]["value"]) for one in told]),
        }
    return {"plants": len(rows), "day_one": day_one, "labels": _labels([row["labels"] for row in rows])}


def _labels(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    told = [one for one in rows if one["is_near"] is not None]
    spans = [one["forecast"]["high"] / one["forecast"]["value"] for one in told if one["forecast"]["high"]]
    return {
        "n": len(told),
        "within_factor_2": _mean([one["is_near"] for one in told]),
        "coverage": _mean([one["holds"] for one in told if one["holds"] is not None]),
        "not_reached": sum((one["found"] or {"labels": 0})["labels"] is None for one in rows),
        "none_needed": sum((one["found"] or {"labels": 1})["labels"] == 0 for one in rows),
        "median_high_over_estimate": round(float(np.median(spans)), 1) if spans else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def main() -> None:
    """Every seed asked for; a fleet's whole document is kept where a folder is given."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--quick", action="store_true", help="two fleets: a smoke run")
    parser.add_argument("--keep", type=Path, help="a folder for every fleet's forecast as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp(prefix="bench-forecast-"))
    seeds, found, began = asked.seed or list(SEEDS)[: 2 if asked.quick else None], [], time.monotonic()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            found.append(forecast_of(seed, folder=Path(folder), home=home))
        note(f"fleet {seed}: {len(found[-1]['plants'])} plants, {time.monotonic() - began:.0f} s")
        if asked.keep:
            asked.keep.mkdir(parents=True, exist_ok=True)
            (asked.keep / f"{seed}.json").write_text(json.dumps(found[-1]), encoding="utf-8")
    shutil.rmtree(home)
    words = {"name": "forecast", "seeds": list(seeds), "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps({**words, **figures(found), "cpus": os.cpu_count(), "machine": machine(threads={"torch": 1})}))


if __name__ == "__main__":
    main()
