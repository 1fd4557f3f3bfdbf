"""How near severities come to the labels at each plant of the embedded fleet, beside the median of the class named.

For every plant one head on frozen features and one on the features of the plant's own fine-tuned branch, judged as
`compare` judges them: on the parts of `select` and `decide`, by the exported files. Prints one JSON object last.

    python tests/benchmarks/bench_severity.py --seed 0 --seed 1 --seed 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

KINDS = ("frozen", "own")


def seed_figures(
    seed: int, *, folder: Path, plants: Sequence[str], recipe: Any, kinds: Sequence[str], scale: float
) -> list[Any]:
    """A row for each plant and kind of run, of one fleet and one training."""
    from jobs import verbs
    from jobs.fit import fit_run
    from jobs.fleet import planned
    from jobs.material import Material
    from jobs.scoring import Exports, role_inputs
    from jobs.severity import severity_at
    from plants.plant import load_fleet
    from plants.synthetic import make_fleet

    fleet = load_fleet(make_fleet(folder / "fleet", seed=seed, scale=scale))
    names = [plant.name for plant in fleet.plants if not plants or plant.name in plants]
    verbs.import_fleet(fleet, names=[plant.name for plant in fleet.plants], show=Console(quiet=True))
    material = Material(fleet, cache=folder / "cache", recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, seeds=(seed,))
    exports, rows = Exports(material, plan=plan), []
    for name in names:
        decide = role_inputs(name, role="decide", exports=exports)
        assert decide is not None, "every plant of the embedded fleet has labelled parts to decide on"
        for kind in kinds:
            run, begun = plan.run(f"{kind}-{name}-s{seed}"), time.monotonic()
            fitted = fit_run(run, material=material, plan=plan)
            seconds = time.monotonic() - begun
            found = severity_at(decide, members=[run.run_id], mix=None, exports=exports, seed=seed)
            rows.append({"plant": name, "kind": kind, "seed": seed, "cut": fitted.cut, "seconds": round(seconds, 1)})
            rows[-1] |= {"select_nll": fitted.score.nll, "notes": fitted.notes, "figures": found}
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """The figures of every seed, and their means over plants."""
    from jobs.recipe import Recipe, load_recipe

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, action="append", required=True)
    parser.add_argument("--plant", action="append", default=[])
    parser.add_argument("--scale", type=float, default=1.0, help="times as many parts as the embedded fleet has")
    parser.add_argument("--recipe", help="a recipe file; the default recipe without one")
    parser.add_argument("--kind", action="append", choices=KINDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe, rows = load_recipe(args.recipe) if args.recipe else Recipe(), []
    kinds = args.kind or KINDS
    for seed in args.seed:
        with tempfile.TemporaryDirectory() as scratch:
            rows += seed_figures(
                seed, folder=Path(scratch), plants=args.plant, recipe=recipe, kinds=kinds, scale=args.scale
            )

    def mean(kind: str, key: str) -> float | None:
        values = [row["figures"][key]["value"] for row in rows if row["kind"] == kind and row["figures"]]
        return round(float(np.mean(values)), 4) if values else None

    means = {kind: {key: mean(kind, key) for key in ("mae", "trivial_mae", "gain", "spearman")} for kind in kinds}
    shown = {
        kind: sum(bool(r["figures"] and r["figures"]["is_shown"]) for r in rows if r["kind"] == kind) for kind in kinds
    }
    print(json.dumps({"name": "severity", "seeds": args.seed, "mean": means, "shown": shown, "rows": rows}))


if __name__ == "__main__":
    main()
