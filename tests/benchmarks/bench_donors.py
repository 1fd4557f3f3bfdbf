"""Whether a donor built to harm is refused, and one built to help is chosen: a small fleet a seed, in this process.

A plant with few labels has sisters. The twin makes its parts under the same light and has plenty of labels. The spoilt
one makes cloth before a backlight, where what others call dark is bright, and its words stand for other defects than
the fleet's. That of the lamp (`--lamp`) makes the plant's parts, but says its classes by how bright a frame is, and its
words are turned too: it harms little. Another donor, which is no plant's, has next to nothing to give or to spoil: the
pretrained stages, shaken a little, and a head that knows how frequent classes are. For every seed the guard judges them
as donors of a warm start (`jobs.fit`), and the graph of the comparison does (`jobs.donors`): their figures must be the
same. What each start is truly worth is measured on lots of the plant that nothing else sees (`true`, with the interval
of 95 % over lots). Prints one JSON object last.

    python tests/benchmarks/bench_donors.py                       20 seeds
    python tests/benchmarks/bench_donors.py --lamp                a third sister
    python tests/benchmarks/bench_donors.py --quick               two seeds: a smoke run
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from measuring import note
from PIL import Image

FEW, TWIN, LAMP, SPOILT, UNSEEN, SHAKEN = "few", "twin", "lamp", "spoilt", "unseen", "shaken"
SEEDS = {FEW: 0, TWIN: 1_000, LAMP: 2_000, SPOILT: 3_000}
"""Added to a fleet's seed: no two plants share a part."""
SCALES = {FEW: 1.5, TWIN: 1.0, LAMP: 0.6, SPOILT: 0.6}
MAKES = {FEW: "arden", TWIN: "arden", LAMP: "arden", SPOILT: "delft"}
FEW_PARTS = 200
"""Of the first plant; its other lots are what is true."""
FEW_SHARES = {"train": 0.5, "select": 0.22, "decide": 0.14, "test": 0.14}
MANY_SHARES = {"train": 0.7, "select": 0.15, "decide": 0.1, "test": 0.05}
UNSEEN_SHARES = {"train": 0.04, "select": 0.92, "decide": 0.02, "test": 0.02}
SHAKEN_BY = 0.02
"""Standard deviation of what a weight of a convolution is multiplied by."""
TONES = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)
"""How bright a frame of a class is at the plant of the lamp, as a share."""


def built(folder: Path, *, seed: int, sisters: Sequence[str]) -> Path:
    """The fleet file of the plant, its lots that nothing sees, and these sisters."""
    from plants.synthetic import make_fleet

    plants = []
    for name in (FEW, *sisters):
        file = make_fleet(folder / name, seed=seed + SEEDS[name], scale=SCALES[name], only=(MAKES[name],), processes=1)
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        (plant,) = raw["plants"]
        images, labels = file.parent / plant["images"], file.parent / plant["labels"]
        table = pd.read_csv(labels)
        for column in ("lot", "part_id"):
            table[column] = [f"{name}-{value}" for value in table[column]]
        if name == FEW:
            plants.append(_unseen(plant, table=table, images=images, labels=labels))
            table = table[_is_early(table)]
        table.to_csv(labels, index=False)
        if name == LAMP:
            _dim(images, table=table, classes=list(plant["classes"]))
        if name in (LAMP, SPOILT):
            plant["classes"] = _shuffled(plant["classes"])
        shares = FEW_SHARES if name == FEW else MANY_SHARES
        plants.append({**plant, "name": name, "images": str(images), "labels": str(labels), "shares": shares})
    fleet = {**raw, "fleet": "donors", "store": str(folder / "store"), "plants": plants}
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return path


def _is_early(table: pd.DataFrame) -> pd.Series:
    """Whether a row's lot is one of the first, which hold `FEW_PARTS`."""
    sizes = table.sort_values("captured_at").groupby("lot", sort=False)["part_id"].nunique()
    return table["lot"].isin(sizes.index[sizes.cumsum() <= FEW_PARTS])


def _unseen(plant: dict[str, Any], *, table: pd.DataFrame, images: Path, labels: Path) -> dict[str, Any]:
    """The lots that the plant does not learn from, as a plant."""
    path = labels.with_name("unseen.csv")
    table[~_is_early(table)].to_csv(path, index=False)
    return {**plant, "name": UNSEEN, "images": str(images), "labels": str(path), "shares": UNSEEN_SHARES}


def _dim(images: Path, *, table: pd.DataFrame, classes: Sequence[str]) -> None:
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


def seed_figures(seed: int, *, folder: Path, sisters: Sequence[str]) -> dict[str, Any]:
    """What graph and guard say of the donors at one seed, and what is true."""
    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.storage import PlantFiles
    from jobs import starts
    from jobs.donors import best_donors, donors_at, graph, run_at
    from jobs.fit import fit_run, parent_of
    from jobs.fleet import planned
    from jobs.material import Material
    from jobs.recipe import default_recipe
    from plants.plant import load_fleet

    begun = time.monotonic()
    fleet = load_fleet(built(folder, seed=seed, sisters=sisters))
    catalog = Catalog.of(fleet)
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    recipe = default_recipe(fleet.trunks[0].cuts)
    material = Material(fleet, cache=folder / "cache", recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, seeds=(seed,))
    own = {name: f"own-{name}-s{seed}" for name in sisters}
    cuts = {name: fit_run(plan.run(run_id), material=material, plan=plan).cut for name, run_id in own.items()}
    rows = graph(donors_at(FEW, plan=plan, material=material, done=list(own.values()), seed=seed))
    by_donor = {row["donor"]: row for row in rows if row["donor"] in own}
    run, unseen = (run_at(name, recipe=recipe, material=material, seed=seed) for name in (FEW, UNSEEN))
    donors = {name: parent_of(run_id, plan=plan, material=material) for name, run_id in own.items()}
    donors[SHAKEN] = shaken(run, twin=run_at(TWIN, recipe=recipe, material=material, seed=seed).taught)
    judged = {SHAKEN: starts.judge(replace(run, parent=donors[SHAKEN]))}
    for name, row in by_donor.items():
        judged[name] = taken_up(name, plan=plan, material=material, seed=seed)
        if abs(judged[name]["difference"] - row["gain"]) > 1e-6 or judged[name]["refused"] != row["refused"]:
            raise SystemExit(f"seed {seed}: guard and graph disagree about {name}: {judged[name]}, {row}")
    likelihood = {name: unseen_likelihood(replace(run, parent=donor), unseen.taught) for name, donor in donors.items()}
    pretrained = unseen_likelihood(run, unseen.taught)
    true = {name: of_lots(found - pretrained, unseen.taught.sets[0].lots) for name, found in likelihood.items()}
    return {
        "chosen": best_donors(rows).get(FEW),
        "true": true,
        "judged": judged,
        "cuts": cuts,
        "words": {name: row["words"] for name, row in by_donor.items()},
        "seconds": round(time.monotonic() - begun, 1),
    }


def taken_up(donor: str, *, plan: Any, material: Any, seed: int) -> dict[str, Any]:
    """What a run that starts from the donor says of it."""
    from jobs.fit import fit_run
    from jobs.plan import Plan, RunSpec

    recipe = {**plan.run(f"own-{FEW}-s{seed}").recipe, "stages": []}
    child = RunSpec(f"sister-{donor}", "sister", (FEW,), seed, recipe, parent=f"own-{donor}-s{seed}", target=FEW)
    both = Plan(plan.fleet, plan.data_digest, runs=(*plan.runs, child), data=plan.data)
    object.__setattr__(both, "plan_id", plan.plan_id)
    return fit_run(child, material=material, plan=both).donor or {}


def shaken(run: Any, *, twin: Any) -> Any:
    """A donor like the pretrained stages. twin: whose shares of classes are all that its head knows."""
    import torch

    from jobs.adapt import Parent

    cut = max(stage.cut for stage in run.recipe.stages)
    state = run.model.new_branch(cut, run.taught.leaves).state_dict()
    drawn = torch.Generator().manual_seed(run.seed)
    for key, value in state.items():
        if value.ndim == 4:
            state[key] = value * (1 + SHAKEN_BY * torch.randn(value.shape, generator=drawn))
    known = (twin.weights[twin.train_ids, None] * twin.targets[twin.train_ids]).sum(0)
    head = {"head.weight": torch.zeros_like(state["head.weight"]), "head.bias": (known / known.sum()).log()}
    return Parent(cut, twin.leaves, {**state, **head}, name=SHAKEN)


def unseen_likelihood(run: Any, unseen: Any) -> np.ndarray:
    """Log-likelihood of parts that nothing has seen [P], by the branch and head that the run begins with."""
    from jobs.begin import with_head_fitted
    from jobs.supervision import forward, losses_of_parts

    fitted = with_head_fitted(run)
    branch = run.model.new_branch(fitted.cut, fitted.leaves)
    branch.load_state_dict(fitted.state)
    logits = forward(branch, unseen.data, cut=fitted.cut, ids=unseen.select_ids)[0]
    return -losses_of_parts(logits, unseen.sets)


def of_lots(gain: np.ndarray, lots: np.ndarray) -> dict[str, Any]:
    """The mean of [P] with its interval of 95 % over lots."""
    from plants.stats import paired_bootstrap

    found = paired_bootstrap(lots, lambda w: w @ gain / w.sum(1), lambda w: np.zeros(len(w)), seed=0)
    return {"gain": found.diff, "low": found.low, "high": found.high, "parts": len(lots), "n_lots": len(set(lots))}


def rates(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often each was right, with the exact interval of Clopper and Pearson."""
    from scipy.stats import binomtest

    claims = {
        "harmful_truly": [one["true"][SPOILT]["high"] < 0 for one in found],
        "harmful_refused": [one["judged"][SPOILT]["refused"] for one in found],
        "helper_truly": [one["true"][TWIN]["low"] > 0 for one in found],
        "helper_refused": [one["judged"][TWIN]["refused"] for one in found],
        "helper_shown": [one["words"][TWIN] == "helps" for one in found],
        "helper_chosen": [one["chosen"] == TWIN for one in found],
        "neutral_truly_worse": [one["true"][SHAKEN]["high"] < 0 for one in found],
        "neutral_refused": [one["judged"][SHAKEN]["refused"] for one in found],
    }
    if LAMP in found[0]["true"]:
        claims["lamp_truly_harmful"] = [one["true"][LAMP]["high"] < 0 for one in found]
        claims["lamp_refused"] = [one["judged"][LAMP]["refused"] for one in found]
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
    parser.add_argument("--lamp", action="store_true", help="also the donor that harms little")
    asked = parser.parse_args()
    sisters = (TWIN, LAMP, SPOILT) if asked.lamp else (TWIN, SPOILT)
    import torch

    torch.set_num_threads(1)
    found = {}
    for seed in asked.seed or range(2 if asked.quick else 20):
        with tempfile.TemporaryDirectory() as folder:
            found[seed] = seed_figures(seed, folder=Path(folder), sisters=sisters)
        note(f"seed {seed}: {found[seed]}")
    print(json.dumps({"name": "donors", "cpus": os.cpu_count(), "rates": rates(list(found.values())), "seeds": found}))


if __name__ == "__main__":
    main()
