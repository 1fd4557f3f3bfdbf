"""Whether a donor built to harm is refused, and one built to help is chosen: a small fleet a seed, in this process.

A plant with few labels has two sisters of its own kind. The twin makes the same parts under the same light and has
plenty of labels. The spoilt one says its classes by how bright a frame is, so that what its model learns is the lamp
and not the defect, and its words stand for other defects than the fleet's. For every seed the guard judges both as
donors of a warm start (`jobs.fit`), and the graph of the comparison does (`jobs.donors`): their figures must be the
same. Prints one JSON object last.

    python tests/benchmarks/bench_donors.py                       20 seeds
    python tests/benchmarks/bench_donors.py --quick               two seeds: a smoke run
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from measuring import note
from PIL import Image

FEW, TWIN, SPOILT = "few", "twin", "spoilt"
SEEDS = {FEW: 0, TWIN: 1_000, SPOILT: 2_000}
"""Added to a fleet's seed: no two plants share a part."""
SCALES = {FEW: 0.5, TWIN: 1.0, SPOILT: 0.6}
FEW_SHARES = {"train": 0.12, "select": 0.6, "decide": 0.14, "test": 0.14}
MANY_SHARES = {"train": 0.7, "select": 0.15, "decide": 0.1, "test": 0.05}
TONES = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)
"""How bright a frame of the spoilt plant's class is, as a share."""


def built(folder: Path, *, seed: int) -> Path:
    """The fleet file of the three plants."""
    from plants.synthetic import make_fleet

    plants = []
    for name, offset in SEEDS.items():
        file = make_fleet(folder / name, seed=seed + offset, scale=SCALES[name], only=("arden",), processes=1)
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        (plant,) = raw["plants"]
        images, labels = file.parent / plant["images"], file.parent / plant["labels"]
        table = pd.read_csv(labels)
        for column in ("lot", "part_id"):
            table[column] = [f"{name}-{value}" for value in table[column]]
        table.to_csv(labels, index=False)
        if name == SPOILT:
            _spoil(images, table=table, classes=list(plant["classes"]))
            plant["classes"] = _shuffled(plant["classes"])
        shares = FEW_SHARES if name == FEW else MANY_SHARES
        plants.append({**plant, "name": name, "images": str(images), "labels": str(labels), "shares": shares})
    fleet = {**raw, "fleet": "donors", "store": str(folder / "store"), "plants": plants}
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return path


def _spoil(images: Path, *, table: pd.DataFrame, classes: Sequence[str]) -> None:
    """Every frame is as bright as its class says."""
    for frame, label in zip(table["frame"], table["class"], strict=True):
        with Image.open(images / frame) as opened:
            pixels, mode = np.asarray(opened, dtype=np.float32), opened.mode
        dimmed = (pixels * TONES[classes.index(label)]).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(dimmed, mode).save(images / frame)


def _shuffled(classes: dict[str, str]) -> dict[str, str]:
    """The plant's words for defects, each of which stands for the next one's defect."""
    defects = [name for name, fleet in classes.items() if fleet != "ok"]
    turned = dict(zip(defects, [classes[name] for name in (*defects[1:], defects[0])], strict=True))
    return {**classes, **turned}


def seed_figures(seed: int, *, folder: Path) -> dict[str, Any]:
    """What graph and guard say of both donors at one seed."""
    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.storage import PlantFiles
    from jobs.donors import best_donors, donors_at, graph
    from jobs.fit import fit_run
    from jobs.fleet import planned
    from jobs.material import Material
    from jobs.plan import Plan, RunSpec
    from jobs.recipe import default_recipe
    from plants.plant import load_fleet

    start = time.monotonic()
    fleet = load_fleet(built(folder, seed=seed))
    catalog = Catalog.of(fleet)
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    recipe = default_recipe(fleet.trunks[0].cuts)
    material = Material(fleet, cache=folder / "cache", recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, seeds=(seed,))
    own = {name: f"own-{name}-s{seed}" for name in SEEDS}
    cuts = {name: fit_run(plan.run(run_id), material=material, plan=plan).cut for name, run_id in own.items()}
    rows = graph(donors_at(FEW, plan=plan, material=material, done=list(own.values()), seed=seed))
    by_donor = {row["donor"]: row for row in rows}
    refused = {}
    for donor in (TWIN, SPOILT):
        given = {"plants": (FEW,), "target": FEW, "seed": seed, "recipe": {**plan.run(own[FEW]).recipe, "stages": []}}
        child = RunSpec(f"sister-{donor}", "sister", parent=own[donor], **given)
        both = Plan(plan.fleet, plan.data_digest, runs=(*plan.runs, child), data=plan.data)
        object.__setattr__(both, "plan_id", plan.plan_id)
        judged = fit_run(child, material=material, plan=both).donor or {}
        refused[donor] = judged["refused"]
        if abs(judged["difference"] - by_donor[donor]["gain"]) > 1e-6:
            raise SystemExit(f"seed {seed}: guard and graph disagree about {donor}: {judged}, {by_donor[donor]}")
    keys = ("gain", "low", "high", "p_holm", "n_lots", "words")
    return {
        "chosen": best_donors(rows).get(FEW),
        "refused": refused,
        "cuts": cuts,
        "rows": {donor: {key: row[key] for key in keys} for donor, row in by_donor.items()},
        "seconds": round(time.monotonic() - start, 1),
    }


def rates(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often each was right, with the exact interval of Clopper and Pearson."""
    from scipy.stats import binomtest

    claims = {
        "harmful_refused": [one["refused"][SPOILT] for one in found],
        "harmful_marked": [one["rows"][SPOILT]["words"] == "harms" for one in found],
        "helper_refused": [one["refused"][TWIN] for one in found],
        "helper_shown": [one["rows"][TWIN]["words"] == "helps" for one in found],
        "helper_chosen": [one["chosen"] == TWIN for one in found],
    }
    said = {}
    for name, values in claims.items():
        interval = binomtest(sum(values), len(values)).proportion_ci(method="exact")
        said[name] = {"hits": sum(values), "of": len(values), "low": interval.low, "high": interval.high}
    return said


def main() -> None:
    """Every seed asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--quick", action="store_true", help="two seeds")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found = {}
    for seed in asked.seed or range(2 if asked.quick else 20):
        with tempfile.TemporaryDirectory() as folder:
            found[seed] = seed_figures(seed, folder=Path(folder))
        note(f"seed {seed}: {found[seed]}")
    print(json.dumps({"name": "donors", "cpus": os.cpu_count(), "rates": rates(list(found.values())), "seeds": found}))


if __name__ == "__main__":
    main()
