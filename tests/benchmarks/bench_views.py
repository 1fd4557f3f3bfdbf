"""What views and cut cost and bring: own models with activations cached in so many views, or streamed, at every cut.

Every plant alone, one thread, no Ray, in seconds of processor time, so that neighbours do not count: what the trunk
took (shared by all runs of a plant where it is cached) and what one run took after it. Beside it the cache's bytes, and
the macro-F1 per part on decide of what was chosen on select: the frozen head where the unfrozen stage did not win.
Prints one JSON object last.

    .venv/bin/python tests/benchmarks/bench_views.py --seeds 0 1 2
    .venv/bin/python tests/benchmarks/bench_views.py --real mobilenetv2_035 --cuts 1      needs CROSSPLANT_REAL_DATA
    .venv/bin/python tests/benchmarks/bench_views.py --quick                            its figures mean nothing
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import entry, even_niceness, machine, mean, note

VIEWS = (1, 2, 4, 8)
STREAMED = "stream"


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of every setting, over plants and seeds."""
    even_niceness()
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            fleet = _fleet(Path(scratch), seed=seed, given=given)
            for setting in _settings(given):
                for plant in fleet.plants:
                    rows.append(_measured(fleet, plant.name, setting=setting, seed=seed, folder=Path(scratch)))
                last = [row for row in rows if (row["cut"], row["views"]) == setting]
                note(f"seed {seed}, cut {setting[0]}, views {setting[1]}: {_summary(last)}")
    table = [
        {"cut": cut, "views": views, **_summary([r for r in rows if (r["cut"], r["views"]) == (cut, views)])}
        for cut, views in _settings(given)
    ]
    known = {(row["cut"], row["views"]): row for row in table}
    first = min(given.cuts)
    ours, peer = known[first, given.views[-1]], known[first, STREAMED]
    return {
        "name": "views",
        "ratio": peer["run_s"] / ours["run_s"],
        "ours": ours,
        "peer": peer,
        "equal_quality": {"macro_f1": [ours["macro_f1"], peer["macro_f1"]]},
        "table": table,
        "rows": rows,
        "seeds": given.seeds,
        "backbone": given.real or "embedded",
        "machine": machine(threads={"torch": 1, "onnxruntime": 1}),
    }


def _settings(given: argparse.Namespace) -> list[tuple[int, Any]]:
    return [(cut, views) for cut in given.cuts for views in (*given.views, STREAMED)]


def _fleet(folder: Path, *, seed: int, given: argparse.Namespace) -> Any:
    """The embedded fleet, or the real plants, imported, on a trunk with the cuts asked for."""
    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.storage import PlantFiles
    from plants.plant import Fleet, load_fleet
    from plants.synthetic import make_fleet

    if given.real:
        import bench_real

        paths = {"data": "CROSSPLANT_REAL_DATA", "weights": "CROSSPLANT_WEIGHTS"}
        known = {name: Path(os.environ.get(at, f"../shared/{name}")).absolute() for name, at in paths.items()}
        loaded = load_fleet(bench_real.fleet(folder, backbone=given.real, **known))
    else:
        loaded = load_fleet(make_fleet(folder / "fleet", seed=seed, scale=given.scale))
    trunk = loaded.trunks[0].model_copy(update={"cuts": (0, *given.cuts)})
    wanted = [p for p in loaded.plants if p.name in given.plants or (not given.plants and p.name != "fargo")]
    changed = {"plants": tuple(wanted), "trunks": (trunk,), "seed": seed}
    fleet = Fleet.model_validate(loaded.model_copy(update=changed).model_dump())
    for plant in fleet.plants:
        import_plant(Catalog.of(fleet), fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    return fleet


def _measured(fleet: Any, name: str, *, setting: tuple[int, Any], seed: int, folder: Path) -> dict[str, Any]:
    """One plant's own model at one setting; its packs are there before, its activations are not."""
    from jobs.fit import fit_run
    from jobs.fleet import planned
    from jobs.material import Material
    from jobs.recipe import Recipe, Stage

    cut, views = setting
    how: dict[str, Any] = {"source": "stream"} if views == STREAMED else {"source": "cache", "views": views}
    recipe = Recipe(stages=(Stage(cut=cut),), **how)
    material = Material(fleet, cache=folder / "cache", recipe=recipe)
    plant = fleet.plant(name)
    rows = material.rows(name)
    material.pack(plant, rows=rows[rows["role"].isin(("train", "select"))])
    _ = material.runner, material.compute(cut)
    shutil.rmtree(folder / "cache" / "activations", ignore_errors=True)
    start = time.process_time()
    material.data(name)
    trunk_s = time.process_time() - start
    kept = sum(file.stat().st_size for file in (folder / "cache" / "activations").rglob("*.npy"))
    plan = planned(fleet, material=material, recipe=recipe, seeds=(seed,))
    start = time.process_time()
    fitted = fit_run(plan.run(f"own-{name}-s{seed}"), material=material, plan=plan)
    run_s = time.process_time() - start
    return {
        "plant": name,
        "seed": seed,
        "cut": cut,
        "views": views,
        "trunk_s": trunk_s,
        "run_s": run_s,
        "cache_mb": kept / 1e6,
        "macro_f1": _on_decide(name, plan=plan, material=material, seed=seed),
        "select_nll": min(row["select_nll"] for row in fitted.history[1:]),
        "epochs": len(fitted.history) - 1,
        "is_kept": fitted.cut == cut,
    }


def _on_decide(name: str, *, plan: Any, material: Any, seed: int) -> float | None:
    """Macro-F1 per part of the run that was chosen on select, by the exported files."""
    import numpy as np

    from jobs.scoring import Exports, role_inputs
    from jobs.selection import macro_f1

    inputs = role_inputs(name, role="decide", exports=Exports(material, plan=plan))
    if inputs is None:
        return None
    fleet = material.fleet
    scores = inputs.scores([inputs.probabilities(f"own-{name}-s{seed}")], leaf_sets=fleet.leaf_sets(fleet.plant(name)))
    said = np.asarray(scores.classes, dtype=object)[np.asarray(scores.probs).argmax(1)]
    return macro_f1(np.asarray(scores.truth, dtype=object), said)


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums a seed over plants of what it costs; means of what it brings, and the worst plant's."""
    seeds = len({row["seed"] for row in rows}) or 1
    by_plant = [
        mean([row["macro_f1"] for row in rows if row["plant"] == plant and row["macro_f1"] is not None])
        for plant in sorted({row["plant"] for row in rows})
    ]
    scored = [value for value in by_plant if value is not None]
    return {
        **{key: round(sum(row[key] for row in rows) / seeds, 2) for key in ("trunk_s", "run_s", "cache_mb")},
        "macro_f1": round(mean(scored) or 0.0, 4),
        "worst_macro_f1": round(min(scored), 4) if scored else None,
        "select_nll": round(mean([row["select_nll"] for row in rows]) or 0.0, 4),
        "kept": f"{sum(row['is_kept'] for row in rows)} of {len(rows)}",
    }


def _quickly(given: argparse.Namespace) -> dict[str, Any]:
    if given.quick:
        given.scale, given.plants, given.views, given.seeds = 0.15, ["arden"], [1, 2], given.seeds[:1]
    return compare(given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the fleet, its splits and training")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the embedded fleet's parts")
    parser.add_argument("--plants", nargs="*", default=[], help="only these plants")
    parser.add_argument("--cuts", type=int, nargs="+", default=[1, 2], help="cuts to be unfrozen, one at a time")
    parser.add_argument("--views", type=int, nargs="+", default=list(VIEWS), help="numbers of cached views")
    parser.add_argument("--real", help="the real plants on this backbone of bench_real.py, not the embedded fleet")
    entry({}, parser=parser, compare=_quickly)
