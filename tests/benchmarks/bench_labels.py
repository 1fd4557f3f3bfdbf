"""How many labels transfer is worth: frozen, fine-tuned, from random weights and classical, at 10, 30 and all a class.

Training parts of every class are cut down at random, other parts for every seed, which is also that of splits and
training; select and decide stay as they are. Judged per part on decide, by the exported files; the sealed test is not
opened. Intervals are Student's over seeds, differences are to the frozen head, paired by seed. Needs
CROSSPLANT_REAL_DATA and CROSSPLANT_WEIGHTS as bench_real.py does. Prints one JSON object last.

    python tests/benchmarks/bench_labels.py --backbone mobilenetv2_035 --labels 10 --seed 0 --recipe lora=lora.yaml
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from bench_real import fleet as real_fleet
from measuring import machine, note, student_over_seeds

BACKBONES = ("embedded", "mobilenetv2_035", "mobilenetv2_100")
METHODS = {"frozen": "frozen", "own": "stages", "scratch": "scratch", "classical": "classical"}
"""Kinds of runs and what they are called here: `own` is fine-tuned by the default recipe."""
ALL = 0


def fleet_file(folder: Path, *, kind: str, backbone: str, data: Path, weights: Path) -> Path:
    """The fleet file of the real plants, or of the embedded ones (synthetic), on a backbone."""
    from plants.synthetic import make_fleet

    path = real_fleet(folder, backbone=backbone, data=data, weights=weights)
    if kind == "embedded":
        trunks = yaml.safe_load(path.read_text(encoding="utf-8"))["trunks"]
        path = make_fleet(folder / "embedded", seed=0)
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump({**raw, "trunks": trunks}, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def kept_frames(rows: Any, *, classes: Sequence[str], per_class: int, seed: int) -> set[str]:
    """All frames but those of training parts beyond so many a class, picked at random; `rows` with their roles."""
    import numpy as np

    train = rows[(rows["role"] == "train") & rows["class"].isin(classes)]
    rng, dropped = np.random.default_rng(seed), set()
    for _, parts in sorted(train.drop_duplicates("part_id").groupby("class")["part_id"]):
        order = rng.permutation(sorted(parts))
        dropped |= set(order[per_class:]) if per_class != ALL else set()
    return set(rows.loc[~((rows["role"] == "train") & rows["part_id"].isin(dropped)), "frame"])


def measured(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each plant, method and number of labels, of one backbone and seed."""
    import torch
    from rich.console import Console

    from cluster.catalog import Catalog, labels_key
    from cluster.settings import Settings
    from jobs import verbs
    from jobs.model import load_model
    from jobs.recipe import default_recipe, load_recipe
    from plants.plant import load_fleet

    torch.set_num_threads(1)
    seed, rows = task["seed"], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given = {"kind": task["kind"], "backbone": task["backbone"]}
        fleet = load_fleet(fleet_file(folder, **given, data=Path(task["data"]), weights=Path(task["weights"])))
        trunk = fleet.trunks[0]
        recipes = {"own": default_recipe(trunk.cuts), **{k: load_recipe(v) for k, v in task["recipes"].items()}}
        deep = trunk.model_copy(update={"cuts": tuple(sorted({*trunk.cuts, load_model(trunk).max_cut}))})
        plants = tuple(plant for plant in fleet.plants if plant.name in (task["plants"] or [plant.name]))
        fleet = fleet.model_copy(update={"trunks": (deep,), "seed": seed, "plants": plants})
        names = [plant.name for plant in plants]
        settings = Settings(home=folder / "home")
        quiet = Console(quiet=True)
        cache = settings.cache if task["copies"] else None
        verbs.import_fleet(fleet, names=names, show=quiet, cache=cache)
        catalog = Catalog.of(fleet)
        whole = {name: (catalog.recorded(name), catalog.rows(name)) for name in names}
        for per_class in task["labels"]:
            for name, (recorded, with_roles) in whole.items():
                classes = fleet.plant(name).annotated
                kept = kept_frames(with_roles, classes=classes, per_class=per_class, seed=seed)
                catalog.write(labels_key(name), recorded[recorded["frame"].isin(kept)])
            for row in _fitted(fleet, names=names, settings=settings, recipes=recipes, methods=task["methods"]):
                rows.append({**given, "seed": seed, "labels": per_class or "all", **row})
                where = f"{task['backbone']} seed {seed}, {per_class or 'all'} labels, {row['plant']}, {row['method']}"
                note(f"{where}: {100 * row['macro_f1']:.1f}")
    return rows


def _fitted(
    fleet: Any, *, names: Sequence[str], settings: Any, recipes: Mapping[str, Any], methods: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Every method fitted to the plants as their tables are now, and judged, one by one; a plan for each recipe."""
    from jobs.fit import fit_run
    from jobs.fleet import planned
    from jobs.material import Material
    from jobs.scoring import Exports, role_inputs

    for label, recipe in recipes.items():
        material = Material(fleet, cache=settings.cache, recipe=recipe)
        plan = planned(fleet, material=material, recipe=recipe, seeds=(fleet.seed,), baselines=label == "own")
        called = {k: v for k, v in METHODS.items() if v in methods} if label == "own" else {"own": label}
        runs = [run for run in plan.runs if run.kind in called and run.target in names]
        exports = Exports(material, plan=plan)
        seconds: dict[str, float] = {}
        for name in names:
            start = time.monotonic()
            if any(run.target == name and run.kind in ("frozen", "own") for run in runs):
                material.data(name)
            seconds[name] = time.monotonic() - start
        for run in runs:
            start = time.monotonic()
            fitted = fit_run(run, material=material, plan=plan)
            took = time.monotonic() - start
            uses = seconds[run.target] if run.kind in ("frozen", "own") else 0.0
            inputs = role_inputs(run.target, role="decide", exports=exports)
            figures = _judged(inputs, run_id=run.run_id, fleet=fleet)
            made = {"plant": run.target, "method": called[run.kind], "cut": fitted.cut, **figures}
            yield {**made, "seconds": round(took, 2), "activation_seconds": round(uses, 2)}


def _judged(inputs: Any, *, run_id: str, fleet: Any) -> dict[str, Any]:
    """Macro-F1, AUC and money out of fold on decide."""
    from plants.costs import out_of_fold
    from plants.metrics import report

    plant = inputs.plant
    scores = inputs.scores([inputs.probabilities(run_id)], leaf_sets=fleet.leaf_sets(plant))
    policy = out_of_fold(scores, costs=plant.costs, plant=plant.name) if plant.ok else None
    found = report(scores, policy=policy, n_boot=1)
    return {key: (found[key] or {}).get("value") for key in ("macro_f1", "auc", "cost")}


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each plant, backbone, number of labels and method: means over seeds, and what it is above frozen."""
    lines = []
    cells = dict.fromkeys((r["plant"], r["backbone"], r["labels"], r["method"]) for r in rows)
    for cell in sorted(cells, key=str):
        plant, backbone, labels, method = cell
        of = {r["seed"]: r for r in rows if (r["plant"], r["backbone"], r["labels"], r["method"]) == cell}
        base = {
            r["seed"]: r["macro_f1"]
            for r in rows
            if (r["plant"], r["backbone"], r["labels"], r["method"]) == (plant, backbone, labels, "frozen")
        }
        gaps = [r["macro_f1"] - base[seed] for seed, r in of.items() if base.get(seed) is not None]
        line = dict(zip(("plant", "backbone", "labels", "method"), cell, strict=True))
        lines.append(
            {
                **line,
                "macro_f1": student_over_seeds([r["macro_f1"] for r in of.values()]),
                "over_frozen": student_over_seeds(gaps) if method != "frozen" else None,
                "cost": student_over_seeds([r["cost"] for r in of.values() if r["cost"] is not None]),
                "seconds": student_over_seeds([r["seconds"] + r["activation_seconds"] for r in of.values()]),
            }
        )
    return lines


def _show(lines: Sequence[Mapping[str, Any]]) -> None:
    """The table as Markdown, on standard output."""

    def words(figure: Mapping[str, Any] | None, *, scale: float = 100, sign: str = "") -> str:
        if not figure or figure["mean"] is None:
            return ""
        mean, low, high = (figure[key] for key in ("mean", "low", "high"))
        ends = "" if low is None else f" ({scale * low:{sign}.1f} to {scale * high:{sign}.1f})"
        return f"{scale * mean:{sign}.1f}{ends}"

    print("| plant | backbone | labels a class | method | macro-F1 | over frozen | money a part | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for line in lines:
        head = " | ".join(str(line[key]) for key in ("plant", "backbone", "labels", "method"))
        gap = words(line["over_frozen"], sign="+")
        seconds = f"{line['seconds']['mean']:.0f}"
        print(f"| {head} | {words(line['macro_f1'])} | {gap} | {words(line['cost'], scale=1)} | {seconds} |")


def main() -> None:
    """Every backbone and seed asked for, so many processes side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", action="append", choices=BACKBONES)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--labels", type=int, action="append", help="parts a class; 0 is all")
    parser.add_argument("--method", action="append", choices=list(METHODS.values()))
    parser.add_argument("--plant", action="append")
    parser.add_argument("--fleet", choices=["real", "embedded"], default="real")
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME=FILE", help="also fine-tune by a recipe")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-copies", action="store_true", help="import --no-copies: each image is a lot of its own")
    parser.add_argument("--quick", action="store_true", help="one plant, the embedded backbone, 10 labels, one seed")
    asked = parser.parse_args()
    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data")).resolve()
    weights = Path(os.environ.get("CROSSPLANT_WEIGHTS", "../shared/weights")).resolve()
    if not data.is_dir():
        raise SystemExit(f"the real plants are not at {data}: set CROSSPLANT_REAL_DATA")
    task = {
        "kind": asked.fleet,
        "data": str(data),
        "weights": str(weights),
        "plants": asked.plant or (["xsdd"] if asked.quick else None),
        "labels": asked.labels or ([10] if asked.quick else [10, 30, ALL]),
        "methods": asked.method or list(METHODS.values()),
        "recipes": dict(text.split("=", 1) for text in asked.recipe),
        "copies": not asked.no_copies,
    }
    backbones = asked.backbone or (["embedded"] if asked.quick else list(BACKBONES))
    seeds = asked.seed or ([0] if asked.quick else [0, 1, 2, 3, 4])
    tasks = [{**task, "backbone": backbone, "seed": seed} for seed in seeds for backbone in backbones]
    start = time.monotonic()
    with ProcessPoolExecutor(asked.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [row for found in pool.map(measured, tasks) for row in found]
    lines = table(rows)
    _show(lines)
    words = {"name": "labels", "seconds": round(time.monotonic() - start, 1), "table": lines, "rows": rows}
    print(json.dumps({**words, **machine(threads={"processes": asked.processes, "each": 1})}))


if __name__ == "__main__":
    main()
