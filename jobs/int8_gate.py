"""What INT8 says of every plant's `decide` parts beside what float says: the figures of the gate.

Both are judged as exported files, by the same policy, out of fold where that is how the plant is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cluster.registry import Bundles
from jobs.compress import Evaluator
from jobs.scoring import Exports, RoleInputs
from plants import bundle
from plants.costs import OutOfFold, Policy, decide_many, expected_cost, out_of_fold, solve, solve_by_novelty
from plants.counts import confusions, macro_f1, number, ratio
from plants.ensembles import from_json
from plants.plant import Fleet, Plant
from plants.policy import OK
from plants.scores import PartScores
from plants.variants import Pair, PlantGate


@dataclass(frozen=True)
class Files:
    """The INT8 files of one rung."""

    trunk: Path
    branches: Mapping[str, Path]
    """Of runs whose branch has INT8; the others' stay float."""


class QuantisedExports(Exports):
    """The same runs as INT8 files."""

    def __init__(self, exports: Exports, *, files: Files) -> None:
        super().__init__(exports.material, plan=exports.plan)
        self._float, self._files = exports, files

    @cached_property
    def evaluator(self) -> Evaluator:
        """Runs the INT8 files as serving does."""
        return Evaluator(self._files.trunk)

    def branch(self, run_id: str) -> tuple[dict[str, Any], Any, Path]:
        """A run's words, its branch in torch, and its branch as INT8, or as float where that is a head alone."""
        words, branch, path = self._float.branch(run_id)
        return words, branch, self._files.branches.get(run_id, path)


def published_files(digest: str, *, bundles: Bundles, cache: Path) -> Files:
    """The INT8 files of a published bundle that has them, and of its members."""
    folder = bundles.fetch(digest, cache / "bundles")
    manifest, _ = bundle.read(folder)
    assert manifest.int8 is not None, "compress has given it some"
    folders = [bundles.fetch(member, cache / "bundles") for member in manifest.members] or [folder]
    branches = {}
    for one in folders:
        member, _ = bundle.read(one)
        if member.int8 is not None and member.int8.branch:
            branches[member.run_id] = one / member.int8.branch
    return Files(bundles.fetch_trunk(manifest.int8.trunk, cache / "trunks"), branches)


@dataclass(frozen=True)
class Judged:
    """A model that is judged at a plant."""

    plant: str
    model: str
    decision: Mapping[str, Any]
    """Its members, kind, weights and rule, as `compare` decided."""

    def scores(self, inputs: RoleInputs, *, fleet: Fleet) -> PartScores:
        """What the files behind the inputs say of every part."""
        members = self.decision["members"]
        said = [inputs.probabilities(run) for run in members]
        mix = from_json(self.decision, num=len(members))
        return inputs.scores(said, leaf_sets=fleet.leaf_sets(fleet.plant(self.plant)), mix=mix)

    def judge(self, scores: PartScores, *, plant: Plant) -> OutOfFold | Policy:
        """The policy that judges these float scores, and INT8's after them."""
        solver = solve_by_novelty if self.decision["kind"] == "normality" else solve
        if plant.ok:
            return out_of_fold(scores, costs=plant.costs, plant=plant.name, solver=solver)
        return solver(scores, costs=plant.costs, plant=plant.name)


def judged_models(document: Mapping[str, Any], *, serves: Callable[[str], Sequence[str]]) -> list[Judged]:
    """Every decision at its plant, and every single model that was decided for at the other plants its bundle serves.

    serves: the plants of a bundle, by its digest.
    """
    found: dict[tuple[str, str], Judged] = {}
    for name, decision in document["decisions"].items():
        found[name, decision["model"]] = Judged(name, decision["model"], decision)
    for decision in document["decisions"].values():
        if len(decision["members"]) == 1:
            for name in serves(decision["bundle"]):
                found.setdefault((name, decision["model"]), Judged(name, decision["model"], decision))
    return list(found.values())


def gate(
    in_float: PartScores, in_int8: PartScores, *, policy: OutOfFold | Policy, plant: Plant, is_named: bool = True
) -> PlantGate:
    """Both variants' figures at a plant, and how many of its parts they judge differently.

    is_named: whether the model tells classes apart; where it does not, there is no macro-F1 and no recall of a class.
    """
    both = (in_float, in_int8)
    counts = [confusions(scores).sum(axis=0) for scores in both]
    said = [decide_many(scores, policy) for scores in both]
    defects = [name for name in plant.annotated if name not in plant.ok]
    asked = {name: plant.costs.recall_floor_by_class.get(name, plant.costs.recall_floor) for name in defects}
    recalls = [ratio(np.diagonal(found), found.sum(axis=1)) for found in counts]
    return PlantGate(
        n=len(in_float),
        macro_f1=_pair(*(number(macro_f1(found)) if is_named else None for found in counts)),
        cost=_pair(*(expected_cost(scores, policy) for scores in both)),
        recall={name: _pair(*(number(r[i]) for r in recalls)) for i, name in enumerate(in_float.classes) if is_named},
        caught={} if not plant.ok else {name: _caught(in_float, said, name=name) for name in defects},
        floors={name: floor for name, floor in asked.items() if floor > 0},
        flips=int((in_float.predicted_index != in_int8.predicted_index).sum()) if is_named else 0,
        verdict_flips=int((said[0].verdict != said[1].verdict).sum()),
    )


def _caught(scores: PartScores, said: Sequence[Any], *, name: str) -> Pair:
    rows = scores.truth_index == scores.classes.index(name)
    return _pair(*(float(np.mean(one.verdict[rows] != OK)) if rows.any() else None for one in said))


def _pair(float32: float | None, int8: float | None) -> Pair:
    return Pair(float32=float32, int8=int8)
