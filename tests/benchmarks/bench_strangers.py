"""Parts with a defect that their plant cannot have: who stops them? What `compare` decided, and each kind alone.

    python tests/benchmarks/bench_strangers.py                 the embedded fleet: scratched tiles to essen
    python tests/benchmarks/bench_strangers.py --real embedded   the real plants: the mills' scratches to magnetic
    python tests/benchmarks/bench_strangers.py --real mobilenetv2_100

`import`, `train`, `compare` and `publish` as the product does them, every image over the endpoint. The goal: 90 % are
rejected or reviewed, none passes with a confidence above 0.9. False alarms are told beside: a policy that reviews
everything stops every stranger. The real plants lie at CROSSPLANT_REAL_DATA, ImageNet weights at CROSSPLANT_WEIGHTS.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench_real import fleet as real_fleet

FAINT = 0.3
"""Severity, from 0 to 1, below which a scratch is hard to see."""
KINDS = ("pooled-s0", "own-{plant}-s0", "warm-{plant}-s0", "frozen-{plant}-s0")


def trained(path: Path, *, home: Path, show: Console) -> Any:
    """The fleet after `import`, `train` and `compare`."""
    from cluster.settings import Settings
    from jobs import verbs, verdicts
    from plants.plant import load_fleet

    fleet, settings = load_fleet(path), Settings(home=home)
    names = [plant.name for plant in fleet.plants]
    verbs.import_fleet(fleet, names=names, show=show, cache=settings.cache)
    verbs.train(fleet, settings=settings, recipe_file=None, seeds=(0,), leave_out=(), retry_failed=False, show=show)
    return fleet, settings, verdicts.compare(fleet, settings=settings, show=show, is_robust=False)


def strangers(fleet: Any, *, plant: str, num: int) -> dict[str, list[bytes]]:
    """Scratches that nobody learned from, by where they come from."""
    from cluster.catalog import Catalog
    from tests.strangers import frames_of, scratched

    if plant == "essen":
        both = list(zip(*scratched("essen", 6 * num), strict=True))
        return {
            "arden's covers": scratched("arden", num)[0],
            "its own tiles, scratched": [image for image, severity in both if severity >= FAINT][:num],
            "its own tiles, faintly scratched": [image for image, severity in both if severity < FAINT][:num],
        }
    found = {}
    for other in fleet.plants:
        for name in other.annotated:
            is_scratch = fleet.leaf_sets(other)[name] == ("scratch",)
            if other.name != plant and is_scratch:
                found[other.name] = frames_of(other, Catalog.of(fleet).rows(other.name), name=name)[:num]
    return found


def good_parts(fleet: Any, *, plant: str) -> list[bytes]:
    """Frames of good parts of `select`; thresholds were solved on those of `decide`."""
    from cluster.catalog import Catalog
    from tests.strangers import frames_of

    own = fleet.plant(plant)
    return frames_of(own, Catalog.of(fleet).rows(plant), name=own.ok[0], roles=("select",))


def measured(path: Path, *, plant: str, home: Path, num: int, show: Console) -> dict[str, Any]:
    """By model: what became of strangers, and of the plant's own good parts."""
    from cluster.storage import open_store
    from jobs.verdicts import exports_of, latest_plan
    from tests.strangers import judged_by

    fleet, settings, document = trained(path, home=home, show=show)
    plan = latest_plan(open_store(fleet.store))
    exports = exports_of(fleet, settings=settings, plan=plan)
    groups = {**strangers(fleet, plant=plant, num=num), "good parts": good_parts(fleet, plant=plant)}
    runs = {run.run_id for run in plan.runs}
    asked = [None, *(name for kind in KINDS if (name := kind.format(plant=plant)) in runs)]
    found: dict[str, Any] = {}
    for run_id in asked:
        name = run_id or f"decided: {document['decisions'][plant]['model']}"
        found[name] = {
            group: judged_by(
                run_id, plant, images, exports=exports, plan=plan, document=document, settings=settings
            ).document()
            for group, images in groups.items()
        }
        for group, row in found[name].items():
            show.print(f"{name}: {group}: {row}", markup=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", choices=["embedded", "mobilenetv2_035", "mobilenetv2_100"])
    parser.add_argument("--num", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="a third of the embedded fleet")
    asked = parser.parse_args()
    show = Console(stderr=True, width=200)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if asked.real:
            data = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data")).resolve()
            weights = Path(os.environ.get("CROSSPLANT_WEIGHTS", "../shared/weights")).resolve()
            if not data.is_dir():
                raise SystemExit(f"the real plants are not at {data}: set CROSSPLANT_REAL_DATA")
            path, plant = real_fleet(folder, backbone=asked.real, data=data, weights=weights), "magnetic"
        else:
            from tests.fleets import small_fleet

            names, shares = ("arden", "cadiz", "essen"), {"train": 0.5, "select": 0.1, "decide": 0.2, "test": 0.2}
            path = small_fleet(folder, *names, scale=0.3 if asked.quick else 1.0, shares=shares)
            plant = "essen"
        figures = measured(path, plant=plant, home=folder / "home", num=asked.num, show=show)
    print(
        json.dumps(
            {
                "name": "strangers",
                "fleet": asked.real or "arden, cadiz, essen of the embedded fleet",
                "plant": plant,
                "models": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
