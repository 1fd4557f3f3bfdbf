"""Where defects are said to be, on the embedded fleet: how often the peak and the box hit, and what a map costs.

Frames of test lots that show a defect and do not pass, each judged alone, by the frozen head and the plant's own model.
Chance is a box of the same size in the middle of what is judged. Run: python tests/benchmarks/bench_maps.py [--seed 1]
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cluster.catalog import Catalog
from jobs.compare import compare_fleet
from jobs.package import publish_decision
from plants.heatmaps import Heat, frame_size
from serving.intake import Frame, PartRequest
from serving.local import local_predictor
from serving.predictor import Predictor
from tests.fleets import SHARES, Works, small_fleet, trained

PLANTS = ("arden", "brno", "cadiz", "delft", "essen", "fargo")
KINDS = ("frozen", "own")
Box = tuple[float, float, float, float]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    both = max(wide, 0) * max(high, 0)
    return both / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - both)


def holds(box: Box, x: float, y: float) -> bool:
    """Whether the point lies in the box."""
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def peak(heat: Heat) -> tuple[float, float]:
    """The place of the strongest evidence, in pixels of the frame."""
    wide = heat._visible(heat._spread())
    y, x = np.unravel_index(np.nanargmax(wide), wide.shape)
    columns, rows = heat._pixels()
    return float(columns[x]), float(rows[y])


def judged(one: Predictor, row: dict[str, str], folder: Path) -> dict[str, float] | None:
    """What is said of one frame; None where it passes."""
    data = (folder / row["frame"]).read_bytes()
    part = PartRequest(one.plant, (Frame("f", data),), environment=row["environment"])
    begun = time.thread_time()
    found = one.predict(part)
    ms = 1000 * (time.thread_time() - begun)
    if found.decision.verdict == "ok" or found.heat is None or found.heat.box is None:
        return None
    x0, y0, x1, y1 = (float(value) for value in row["box"].split())
    box, roi = found.heat.box, found.heat.geometry.roi or (0, 0, *frame_size(data))
    x, y = (roi[0] + roi[2]) / 2, (roi[1] + roi[3]) / 2
    wide, high = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    middle = (x - wide, y - high, x + wide, y + high)
    centre, truth = ((x0 + x1) / 2, (y0 + y1) / 2), (x0, y0, x1, y1)
    return {
        "peak_in_defect": holds(truth, *peak(found.heat)),
        "chance_peak_in_defect": holds(truth, x, y),
        "box_holds_middle": holds(box, *centre),
        "chance_box_holds_middle": holds(middle, *centre),
        "iou": overlap(box, truth),
        "chance_iou": overlap(middle, truth),
        "ms_with_map": ms,
    }


def predictors(works: Works) -> dict[str, tuple[str, Predictor]]:
    """Run -> what kind of model it is (tier), and its predictor from the published files."""
    exports, runs = works.exports(), [run.run_id for run in works.plan.runs if run.kind in KINDS]
    document = compare_fleet(works.fleet, plan=works.plan, exports=exports, done=runs, seed=0)
    found = {}
    for plant in (plant.name for plant in works.fleet.plants):
        for run in (f"{kind}-{plant}-s0" for kind in KINDS):
            decided: dict[str, Any] = json.loads(json.dumps(document))
            decided["decisions"][plant] |= {"model": run, "members": [run], "weights": None, "rule": None}
            bundle, policy = publish_decision(
                plant, document=decided, plan=works.plan, exports=exports, finished=dict.fromkeys(runs, "")
            )
            store = Path(works.fleet.store)
            rules = store / "policies" / f"{policy}.json"
            one = local_predictor(store / "bundles" / bundle, plant=plant, policy=rules)
            found[run] = one.scorer.tier, one
    return found


def main() -> None:
    """Prints the figures, one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=0.5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shares = SHARES | {"train": 0.5, "select": 0.1}
        path = small_fleet(root / "fleet", *PLANTS, scale=args.scale, seed=args.seed, shares=shares)
        works = trained(path, home=root / "home", kinds=KINDS)
        roles = Catalog.of(works.fleet).assignments()
        rows: dict[str, list[dict[str, float]]] = {}
        for run, (tier, one) in predictors(works).items():
            folder = path.parent / one.plant
            lots = set(roles[(roles["plant"] == one.plant) & (roles["role"] == "test")]["lot"])
            labels = [row for row in csv.DictReader((folder / "labels.csv").open()) if row["box"]]
            said = [judged(one, row, folder) for row in labels if row["lot"] in lots]
            here = [each for each in said if each]
            rows.setdefault(f"{run.split('-')[0]} ({tier})", []).extend(here)
            print(
                run, tier, {key: round(float(np.mean([e[key] for e in here])), 2) for key in here[0]} if here else "-"
            )
    groups = {
        name: {"n": len(found), **{key: round(float(np.mean([e[key] for e in found])), 3) for key in found[0]}}
        for name, found in rows.items()
        if found
    }
    everything = [each for found in rows.values() for each in found]
    ratio = sum(e["box_holds_middle"] for e in everything) / sum(e["chance_box_holds_middle"] for e in everything)
    print(json.dumps({"name": "maps", "seed": args.seed, "ratio": round(ratio, 3), "groups": groups}))


if __name__ == "__main__":
    main()
