"""What the embedded fleet is there to show, over seeds: one fleet and one training a seed, judged per part on `decide`.

Warm-started against own at the plant with few labels, own against every sister's model at home, a pooled model against
the mean single-source model at a plant left out, tiles against `whole` at the plant with 2048-pixel frames, and beside
it hand-made features with a linear model and the net trained from random weights. Prints one JSON object last.

    python tests/benchmarks/bench_embedded.py --seed 0 --seed 1 --seed 2
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from jobs.plan import BASELINES

FEW, LARGE, LEFT_OUT = "brno", "fargo", "arden"


def seed_figures(seed: int, *, folder: Path, show: Console) -> dict[str, Any]:
    """The figures of one seed of fleet and training."""
    from cluster.settings import Settings
    from jobs import verbs, verdicts
    from plants.plant import load_fleet
    from plants.synthetic import make_fleet

    start = time.monotonic()
    fleet = load_fleet(make_fleet(folder / "fleet", seed=seed))
    settings = Settings(home=folder / "home")
    names = [plant.name for plant in fleet.plants]
    verbs.import_fleet(fleet, names=names, show=Console(quiet=True))
    verbs.train(
        fleet, settings=settings, recipe_file=None, seeds=(seed,), leave_out=(LEFT_OUT,), retry_failed=False, show=show
    )
    document = verdicts.compare(fleet, settings=settings, show=show)
    matrix, tail = document["matrix"], f"-s{seed}"

    def f1(run: str, plant: str) -> float:
        return float(matrix[f"{run}{tail}"][plant]["macro_f1"])

    others = [name for name in names if name != LEFT_OUT]
    return {
        "warm_against_own": _paired_runs(
            fleet, settings=settings, a=f"warm-{FEW}{tail}", b=f"own-{FEW}{tail}", plant=FEW
        ),
        "own_against_best_sister": {
            name: {"own": f1(f"own-{name}", name), "sister": max(f1(f"own-{o}", name) for o in names if o != name)}
            for name in names
        },
        "left_out": {
            "plant": LEFT_OUT,
            "pooled": f1(f"without-{LEFT_OUT}", LEFT_OUT),
            "mean_single": float(np.mean([f1(f"own-{name}", LEFT_OUT) for name in others])),
        },
        "auc_tiles": matrix[document["decisions"][LARGE]["model"]][LARGE]["auc"],
        "auc_whole": _whole(fleet, settings=settings),
        "audit_of_whole": _errors(fleet, plant=_squeezed(fleet.plant(LARGE))),
        "baselines": _baselines(fleet, settings=settings, names=[n for n in names if n != LARGE], seed=seed),
        "chosen": {
            n: {"model": d["model"], "macro_f1": matrix[d["model"]][n]["macro_f1"]}
            for n, d in document["decisions"].items()
        },
        "seconds": round(time.monotonic() - start, 1),
    }


def _paired_runs(fleet: Any, *, settings: Any, a: str, b: str, plant: str) -> dict[str, Any]:
    """Paired difference in macro-F1 of two runs at a plant, with its interval over lots."""
    from cluster.storage import open_store
    from jobs.scoring import role_inputs
    from jobs.verdicts import exports_of, latest_plan
    from plants.differences import paired

    exports = exports_of(fleet, settings=settings, plan=latest_plan(open_store(fleet.store)))
    inputs = role_inputs(plant, role="decide", exports=exports)
    leaf_sets = fleet.leaf_sets(fleet.plant(plant))
    scores = [inputs.scores([inputs.probabilities(run)], leaf_sets=leaf_sets) for run in (a, b)]
    return paired(*scores)


def _squeezed(plant: Any) -> Any:
    """The plant with its frames squeezed whole into the model's input."""
    from plants.geometry import Geometry

    whole = {k: e.model_copy(update={"geometry": Geometry(fit="whole")}) for k, e in plant.environments.items()}
    return plant.model_copy(update={"environments": whole})


def _errors(fleet: Any, *, plant: Any) -> list[str]:
    """The kinds of what `crossplant audit` finds at level error."""
    from cluster.catalog import Catalog
    from plants.audit import audit

    rows = Catalog.of(fleet).rows(plant.name)
    found = audit(plant, rows, fleet=fleet, trunk_size_px=fleet.trunks[0].size_px)
    return sorted({finding.kind for finding in found if finding.level == "error"})


def _baselines(fleet: Any, *, settings: Any, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Macro-F1 on decide of hand-made features with a linear model and of the net from random weights."""
    from jobs.fit import fit_run
    from jobs.fleet import planned
    from jobs.material import Material
    from jobs.model import load_model
    from jobs.recipe import Recipe
    from jobs.scoring import Exports, role_inputs
    from plants.metrics import report

    trunk = fleet.trunks[0]
    deep = trunk.model_copy(update={"cuts": (*trunk.cuts, load_model(trunk).max_cut)})
    recipe = Recipe(stages=(), views=1)
    material = Material(fleet.model_copy(update={"trunks": (deep,)}), cache=settings.cache, recipe=recipe)
    plan = planned(material.fleet, material=material, recipe=recipe, seeds=(seed,), baselines=True)
    exports, found = Exports(material, plan=plan), {}
    for name in names:
        inputs = role_inputs(name, role="decide", exports=exports)
        leaf_sets = fleet.leaf_sets(fleet.plant(name))
        found[name] = {}
        for kind in BASELINES:
            run = plan.run(f"{kind}-{name}-s{seed}")
            fit_run(run, material=material, plan=plan)
            scores = inputs.scores([inputs.probabilities(run.run_id)], leaf_sets=leaf_sets)
            found[name][kind] = float(report(scores, n_boot=1)["macro_f1"]["value"])
    return found


def _whole(fleet: Any, *, settings: Any) -> dict[str, Any]:
    """Part-level AUC of a frozen head on frames squeezed whole, cross-validated by lot over all parts not sealed."""
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    plant = _squeezed(fleet.plant(LARGE))
    x, frames = _features(fleet, settings=settings, plant=plant, roles=("train", "select", "decide"))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    words, lots = frames["class"].astype(str).to_numpy(dtype=object), frames["lot"].to_numpy()
    raw = cross_val_predict(_model(), x, words, groups=lots, cv=folds, method="predict_proba")
    auc = _judged(raw, sorted(set(words)), frames=frames, plant=plant, n_boot=500)["auc"]
    return {key: auc[key] for key in ("value", "low", "high")}


def _features(fleet: Any, *, settings: Any, plant: Any, roles: tuple[str, ...]) -> tuple[np.ndarray, Any]:
    """Pooled features of the fleet's first trunk, one row a frame, and the frames' labels."""
    from jobs.material import Material
    from jobs.recipe import Recipe

    changed = fleet.model_copy(update={"plants": tuple(plant if p.name == plant.name else p for p in fleet.plants)})
    material = Material(changed, cache=settings.cache, recipe=Recipe(stages=(), views=1))
    pixels, frames = _pixels(material, plant=plant, roles=roles)
    return material.runner.activations(torch.from_numpy(pixels))[0].numpy(), frames


def _pixels(material: Any, *, plant: Any, roles: tuple[str, ...]) -> tuple[np.ndarray, Any]:
    rows = material.catalog.rows(plant.name)
    mine = rows[rows["role"].isin(roles) & rows["class"].isin(plant.annotated)]
    pack = material.pack(plant, rows=mine)
    frames = mine.set_index("frame").loc[[pack.frames[i] for i in pack.frame_index]]
    return np.ascontiguousarray(pack.pixels), frames


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced"))


def _judged(raw: np.ndarray, known: list[str], *, frames: Any, plant: Any, n_boot: int) -> dict[str, Any]:
    """The report of frames' probabilities; frames are pooled to parts by the most suspicious one."""
    from plants.metrics import report
    from plants.scores import PartScores, pool_groups

    classes = plant.annotated
    probs = np.stack([raw[:, known.index(c)] if c in known else np.zeros(len(raw)) for c in classes], axis=1)
    parts, groups = np.unique(frames["part_id"].to_numpy(dtype=object), return_inverse=True)
    pooled, _ = pool_groups(probs, groups, ok=np.isin(classes, plant.ok))
    first = frames.drop_duplicates("part_id").set_index("part_id").loc[list(parts)]
    scores = PartScores(parts, first["lot"], first["environment"], first["class"], pooled, classes, plant.ok)
    return report(scores, n_boot=n_boot)


def main() -> None:
    """Every seed asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--quick", action="store_true", help="one seed")
    asked = parser.parse_args()
    show, figures = Console(stderr=True), {}
    for seed in asked.seed or ([0] if asked.quick else [0, 1, 2]):
        with tempfile.TemporaryDirectory() as folder:
            figures[seed] = seed_figures(seed, folder=Path(folder), show=show)
        print(json.dumps({seed: figures[seed]}), flush=True)
    print(json.dumps({"name": "embedded", "cpus": os.cpu_count(), "figures": figures}))


if __name__ == "__main__":
    main()
