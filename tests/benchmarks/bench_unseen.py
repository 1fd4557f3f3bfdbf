"""A plant that no model has seen: every plant of the embedded fleet is left out in turn, several fleets, no Ray.

Macro-F1 per part on `decide` of the plant left out, over the fleet's classes that its sources know together, of

    single     each source's own model, the mean of their figures (of a source, classes it lacks count as missed)
    plain      one loop as a careful person writes it: all sources' rows weighted alike by plant, the last stages and a
               new head trained together from the pretrained start; best epoch on `select`
    pooled     `train --leave-out` as it is by default: balanced, heads first, then stage after stage
    ours       the same with `align: true` and `average_epochs: true`: activations aligned by plant, the new plant met
               by its frames without labels (`jobs.align`), weights averaged over epochs
    tones      X6's first step alone: every environment's photometry brings its tones to the mean of all environments'
    both       ours after tones

All have the same trunk and branch, so that an image costs the same; ours adds a factor and an offset a channel. Ours,
tones and both have seen frames of the new plant (those of train and select, no label), the others have not. `guard`
says what ours is worth when it is met by few frames or by frames that the line does not make. Differences are paired
over lots. Prints one JSON object last.

    python tests/benchmarks/bench_unseen.py                            seeds 0, 1, 2 of fleet and training
    python tests/benchmarks/bench_unseen.py --real --backbone mobilenetv2_035    the two steel mills
    python tests/benchmarks/bench_unseen.py --quick                    three small plants: a smoke run
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measuring import machine, note, student_over_seeds

from jobs.activations import PlantData, RunData
from jobs.align import AlignedData, meet
from jobs.compress import BranchExporter
from jobs.epoch import epoch_of
from jobs.material import Material
from jobs.objective import Objective
from jobs.parity import open_session, run_branch
from jobs.recipe import Recipe, Stage, default_recipe
from jobs.run import Fitted, Run, World
from jobs.schedule import rate_groups
from jobs.scoring import RoleInputs
from jobs.supervision import Supervision
from jobs.train import fit
from plants.differences import paired
from plants.geometry import Photometry
from plants.metrics import report
from plants.normality import Normalities
from plants.plant import OK, Fleet, Plant, load_fleet
from plants.scores import PartScores, softmax
from plants.tones import match, tones

FRAMES = (20, 50)
TONED_INPUTS = 200


class Left:
    """A fleet of which plants are left out, with what its models say of them."""

    def __init__(self, fleet: Fleet, *, cache: Path, epochs: int, seed: int) -> None:
        stage = {"epochs": epochs} if epochs else {}
        self.fleet, self.seed = fleet, seed
        self.recipe = default_recipe(fleet.trunks[0].cuts, **stage)
        self.material = Material(fleet, cache=cache, recipe=self.recipe)
        self.names = [plant.name for plant in fleet.plants]
        self._inputs: dict[str, _Inputs] = {}

    def data(self, names: Sequence[str]) -> tuple[PlantData, ...]:
        return tuple(self.material.data(name) for name in names)

    def given(self, names: Sequence[str]) -> dict[str, Any]:
        return {"leaf_sets": self.material.leaf_sets(names), "leaves": self.material.leaves(names)}

    def fitted(self, names: Sequence[str], *, data: RunData | None = None, recipe: Recipe | None = None) -> Fitted:
        """A run of ours over these plants."""
        data, recipe = data or RunData(self.data(names)), recipe or self.recipe
        return fit(self.material.model, data=data, recipe=recipe, seed=self.seed, **self.given(names))

    def scores(self, fitted: Fitted, name: str, *, known: set[str]) -> PartScores:
        """What the exported branch says of the plant's parts of `decide`, in the fleet's classes."""
        if name not in self._inputs:
            plant, rows = self.fleet.plant(name), self.material.rows(name)
            rows = rows[(rows["role"] == "decide") & rows["class"].isin(plant.annotated)]
            pack = self.material.pack(plant, rows=rows)
            self._inputs[name] = _Inputs(plant, rows=rows, pack=pack, exports=_Opened(self.material))
        inputs = self._inputs[name]
        branch = self.material.model.new_branch(fitted.cut, fitted.leaves)
        branch.load_state(fitted.state)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "branch.onnx")
            BranchExporter(self.material.model, fitted.cut).write(branch, path)
            logits, _ = run_branch(open_session(path.read_bytes()), inputs.seen[fitted.cut], batch=64)
        probs = np.asarray(softmax(logits), dtype=np.float32)
        plant = self.fleet.plant(name)
        scores = inputs.scores([(probs, tuple(fitted.leaves))], leaf_sets=self.fleet.leaf_sets(plant))
        return in_fleet_classes(scores, plant=plant, known=known)

    def known(self, names: Sequence[str]) -> set[str]:
        """The fleet's classes that are annotated at any of these plants."""
        return {cls for name in names for cls in fleet_classes(self.fleet.plant(name))}


class _Opened:
    """As much of `jobs.scoring.Exports` as inputs need."""

    def __init__(self, material: Material) -> None:
        self.material = material

    def normality(self, name: str) -> Normalities:
        return Normalities()


class _Inputs(RoleInputs):
    @cached_property
    def seen(self) -> Mapping[int, np.ndarray]:
        """Activations by cut, of the exported trunk."""
        pixels = torch.from_numpy(self.pack.take(self.inputs))
        blocks = [self.exports.material.runner.activations(block) for block in pixels.split(64)]
        return {cut: torch.cat([block[cut] for block in blocks]).numpy() for cut in blocks[0]}


def fleet_classes(plant: Plant) -> set[str]:
    """What the plant's annotated classes are called in the fleet."""
    return {plant.classes[name].fleet for name in plant.annotated}


def in_fleet_classes(scores: PartScores, *, plant: Plant, known: set[str]) -> PartScores:
    """The parts of these fleet classes with their probabilities; oil and rust are both stain."""
    of = {name: plant.classes[name].fleet for name in scores.classes}
    classes = tuple(dict.fromkeys(cls for cls in of.values() if cls in known))
    columns = [[i for i, name in enumerate(scores.classes) if of[name] == cls] for cls in classes]
    truth = np.array([of[name] for name in scores.truth], dtype=object)
    keep = np.isin(truth, classes)
    return PartScores(
        part_ids=scores.part_ids[keep],
        lots=scores.lots[keep],
        environments=scores.environments[keep],
        truth=truth[keep],
        probs=np.stack([scores.probs[:, at].sum(1) for at in columns], axis=1)[keep],
        classes=classes,
        ok=tuple(cls for cls in classes if cls == OK),
    )


# --- the models


def plain(left: Left, sources: Sequence[str]) -> Fitted:
    """One stage from the pretrained start with a new head, no linear probe before it; the best epoch on select."""
    deepest = max(left.recipe.stages, key=lambda stage: stage.cut)
    epochs = sum(stage.epochs for stage in left.recipe.stages)
    stage = Stage(**{**deepest.model_dump(), "epochs": epochs})
    recipe = left.recipe.model_copy(update={"stages": (stage,)})
    given = left.given(sources)
    taught = Supervision(RunData(left.data(sources)), **given, max_class_weight=recipe.max_class_weight)
    model = left.material.model
    run = Run(model, taught, Objective(taught, recipe=recipe), recipe, left.seed, World(), left.material.compute)
    branch = model.new_branch(stage.cut, taught.leaves, seed=left.seed, dropout=recipe.dropout, freeze_norm=True)
    run.compute(stage.cut).place(branch)
    optimizer = torch.optim.AdamW(
        rate_groups(branch, stage=stage, recipe=recipe), weight_decay=recipe.weight_decay, fused=True
    )
    best: Fitted | None = None
    for epoch in range(stage.epochs):
        epoch_of(run, branch, optimizer, stage=stage, index=0, epoch=epoch, scale=1.0)
        found = taught.judge_branch(branch, cut=stage.cut)
        if best is None or found.beats(best.score):
            state = {key: value.detach().clone() for key, value in branch.state_dict().items()}
            best = Fitted(stage.cut, taught.leaves, state, score=found, start=state)
    assert best is not None
    return best


def ours(left: Left, sources: Sequence[str]) -> tuple[Fitted, AlignedData]:
    """The recipe for unseen plants, before it meets one."""
    recipe = left.recipe.model_copy(update={"align": True, "average_epochs": True})
    data = AlignedData(left.data(sources))
    return left.fitted(sources, data=data, recipe=recipe), data


def met(fitted: Fitted, sources: AlignedData, plant: PlantData) -> Fitted:
    """A copy that has met the plant."""
    copied = replace(fitted)
    meet(copied, sources=sources, plant=plant)
    return copied


def guard(fitted: Fitted, sources: AlignedData, plant: PlantData, *, seed: int) -> dict[str, Fitted]:
    """The model met by nothing, by few frames, and by frames that the line does not make."""
    rows = plant.rows
    frames = np.random.default_rng(seed).permutation(rows["frame"].unique())
    good = rows["label"].isin(plant.plant.ok)
    shown = {"no frames": rows["frame"].isin([])}
    shown |= {f"{count} frames": rows["frame"].isin(frames[:count]) for count in FRAMES}
    shown |= {"good parts only": good, "defects only": ~good}
    for name in rows["environment"].unique()[:1]:
        shown["one environment only"] = rows["environment"] == name
    return {words: met(fitted, sources, _Some(plant, at.to_numpy())) for words, at in shown.items()}


class _Some(PlantData):
    """Some rows of a plant."""

    def __init__(self, plant: PlantData, at: np.ndarray) -> None:
        super().__init__(**{**vars(plant), "rows": plant.rows[at].reset_index(drop=True)})
        object.__setattr__(self, "at", np.flatnonzero(at))

    def fetch(self, cut: int, *, ids: np.ndarray, views: np.ndarray) -> np.ndarray:
        return super().fetch(cut, ids=self.at[ids], views=views)  # type: ignore[attr-defined]


def toned(left: Left) -> Fleet:
    """The fleet with photometry that gives every environment the mean of their tones, found without labels."""
    found: dict[tuple[str, str], Any] = {}
    plain_fleet = _with_photometry(left.fleet, lambda plant, name: Photometry())
    material = Material(plain_fleet, cache=left.material.cache, recipe=left.recipe)
    for plant in plain_fleet.plants:
        rows = material.learning_rows(plant.name)
        pack = material.pack(plant, rows=rows)
        where = rows.set_index("frame")["environment"].loc[[pack.frames[i] for i in pack.frame_index]].to_numpy()
        for name in plant.environments:
            at = np.flatnonzero(where == name)[:TONED_INPUTS]
            found[plant.name, name] = np.median([tones(image) for image in pack.take(at)], axis=0)
    mean = np.mean(list(found.values()), axis=0)
    return _with_photometry(left.fleet, lambda plant, name: match(found[plant, name], mean))


def _with_photometry(fleet: Fleet, of: Callable[[str, str], Photometry]) -> Fleet:
    plants = []
    for plant in fleet.plants:
        changed = {
            name: one.model_copy(update={"photometry": of(plant.name, name)})
            for name, one in plant.environments.items()
        }
        plants.append(plant.model_copy(update={"environments": changed}))
    return fleet.model_copy(update={"plants": tuple(plants)})


# --- figures


def f1(scores: PartScores) -> float:
    """In points."""
    return round(100 * float(report(scores, n_boot=1)["macro_f1"]["value"]), 1)


def difference(a: PartScores, b: PartScores) -> dict[str, float | None]:
    """Macro-F1 of a minus b in points, with its interval over lots."""
    found = paired(a, b)
    return {key: None if found[key] is None else round(100 * found[key], 1) for key in ("diff", "low", "high")}


def left_out(left: Left, name: str, *, own: Mapping[str, Fitted], with_tones: Left | None) -> dict[str, Any]:
    """All models at one plant that they have not seen."""
    start = time.monotonic()
    sources = [other for other in left.names if other != name]
    known = left.known(sources)
    judge: dict[str, Any] = {"name": name, "known": known}
    singles = {other: left.scores(own[other], **judge) for other in sources}
    by_name = {"plain": left.scores(plain(left, sources), **judge)}
    by_name["pooled"] = left.scores(left.fitted(sources), **judge)
    recipe, data = ours(left, sources)
    plant = left.material.data(name)
    by_name["ours"] = left.scores(met(recipe, data, plant), **judge)
    if with_tones:
        by_name["tones"] = with_tones.scores(with_tones.fitted(sources), **judge)
        recipe_t, data_t = ours(with_tones, sources)
        by_name["both"] = with_tones.scores(met(recipe_t, data_t, with_tones.material.data(name)), **judge)
    guarded = {key: left.scores(one, **judge) for key, one in guard(recipe, data, plant, seed=left.seed).items()}
    alike = {other: left.known([other]) & fleet_classes(left.fleet.plant(name)) for other in sources}
    shared = [_only(singles[o], alike[o]) - _only(by_name["ours"], alike[o]) for o in sources if len(alike[o]) > 1]
    found = {
        "classes": sorted(known & fleet_classes(left.fleet.plant(name))),
        "parts": len(by_name["ours"].truth),
        "lots": len(set(by_name["ours"].lots)),
        "macro_f1": {"single": round(float(np.mean([f1(one) for one in singles.values()])), 1)}
        | {key: f1(one) for key, one in by_name.items()},
        "best_single": max(f1(one) for one in singles.values()),
        "ours_over_single_on_the_classes_it_knows": round(-float(np.mean(shared)), 1) if shared else None,
        "ours_minus": {key: difference(by_name["ours"], one) for key, one in by_name.items() if key != "ours"},
        "guard": {key: f1(one) for key, one in guarded.items()},
        "cuts": {"ours": recipe.cut},
        "seconds": round(time.monotonic() - start, 1),
    }
    note(f"seed {left.seed}, without {name}: {found}")
    return found


def _only(scores: PartScores, classes: set[str]) -> float:
    """Macro-F1 in points on the parts of these classes alone."""
    keep = np.isin(scores.truth, sorted(classes))
    at = [i for i, name in enumerate(scores.classes) if name in classes]
    kept = tuple(scores.classes[i] for i in at)
    said = PartScores(
        scores.part_ids[keep], scores.lots[keep], scores.environments[keep], scores.truth[keep],
        scores.probs[keep][:, at], kept, tuple(name for name in scores.ok if name in kept),
    )  # fmt: skip
    return f1(said)


def summary(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The worst plant and the mean over plants of one seed."""
    models = next(iter(rows.values()))["macro_f1"]
    worst = min(rows, key=lambda name: rows[name]["macro_f1"]["ours"])
    figures = {name: row["macro_f1"] for name, row in rows.items()}
    return {
        "worst_of_ours": {"plant": worst, **figures[worst]},
        "worst": {key: min(row[key] for row in figures.values()) for key in models},
        "mean": {key: round(float(np.mean([row[key] for row in figures.values()])), 1) for key in models},
        "least_gain": {
            key: min(round(row["ours"] - row[key], 1) for row in figures.values()) for key in models if key != "ours"
        },
    }


# --- the fleets


def imported(path: Path, *, names: Sequence[str] = ()) -> Fleet:
    """The fleet after import, or these plants of it."""
    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.storage import PlantFiles

    fleet = load_fleet(path)
    if names:
        fleet = fleet.model_copy(update={"plants": tuple(plant for plant in fleet.plants if plant.name in names)})
    catalog = Catalog.of(fleet)
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    return fleet


def embedded(folder: Path, *, seed: int, given: argparse.Namespace) -> Fleet:
    """The embedded fleet of a seed; small for a smoke run."""
    from plants.synthetic import make_fleet

    return imported(make_fleet(folder / "fleet", seed=seed, scale=given.scale, only=given.plant or (), processes=1))


def mills(folder: Path, *, seed: int, given: argparse.Namespace) -> Fleet:
    """The two steel mills with their classes of the same name in the fleet."""
    from bench_real import MILLS, fleet

    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data")).resolve()
    weights = Path(os.environ.get("CROSSPLANT_WEIGHTS", "../shared/weights")).resolve()
    path = fleet(folder, backbone=given.backbone, data=data, weights=weights)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**raw, "seed": seed}, sort_keys=False), encoding="utf-8")
    return imported(path, names=list(MILLS))


def seed_figures(seed: int, *, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Every plant left out, one fleet."""
    fleet = (mills if given.real else embedded)(folder, seed=seed, given=given)
    left = Left(fleet, cache=folder / "cache", epochs=given.epochs, seed=seed)
    own = {name: left.fitted([name]) for name in left.names}
    with_tones = Left(toned(left), cache=folder / "cache", epochs=given.epochs, seed=seed) if given.tones else None
    rows = {name: left_out(left, name, own=own, with_tones=with_tones) for name in left.names}
    return {"plants": rows, **summary(rows)}


def main() -> None:
    """Every seed asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--plant", action="append", help="only these plants of the embedded fleet")
    parser.add_argument("--scale", type=float, default=1.0, help="parts of every plant, times this")
    parser.add_argument("--epochs", type=int, default=0, help="of a stage; 0: the recipe's own")
    parser.add_argument("--real", action="store_true", help="the two steel mills")
    parser.add_argument("--backbone", default="embedded", help="of --real, see bench_real.py")
    parser.add_argument("--no-tones", dest="tones", action="store_false", help="without the row `tones`")
    parser.add_argument("--quick", action="store_true", help="three small plants, two epochs: a smoke run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        given.seed, given.plant, given.scale, given.epochs = [100], ["arden", "delft", "essen"], 0.2, 2
    found: dict[int, dict[str, Any]] = {}
    for seed in given.seed or [0, 1, 2]:
        with tempfile.TemporaryDirectory() as folder:
            found[seed] = seed_figures(seed, folder=Path(folder), given=given)
        note(f"seed {seed}: { ({key: value for key, value in found[seed].items() if key != 'plants'}) }")
    models = next(iter(found.values()))["worst"]
    over = {
        key: student_over_seeds([one["worst"]["ours"] - one["worst"][key] for one in found.values()])
        for key in models
        if key != "ours"
    }
    print(
        json.dumps(
            {
                "name": "unseen",
                "fleet": f"mills, {given.backbone}" if given.real else "embedded",
                "ours": {seed: one["worst"]["ours"] for seed, one in found.items()},
                "peer": {seed: one["worst"]["plain"] for seed, one in found.items()},
                "worst_plant_ours_minus": over,
                "seeds": found,
                "is_smoke_run": given.quick,
                "machine": machine(threads={"torch": 1}),
            }
        )
    )


if __name__ == "__main__":
    main()
