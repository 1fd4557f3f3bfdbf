"""The models that may be asked about a plant: what each says of its `decide` parts, with its policy and its figures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.plan import BASELINES, Plan
from jobs.scoring import Exports, Member, RoleInputs
from plants.costs import OutOfFold, Policy, out_of_fold, solve, solve_by_novelty
from plants.governance import may_hold
from plants.metrics import report
from plants.normality import FEW_DEFECTS
from plants.plant import Fleet, Plant
from plants.scores import PartScores
from plants.verdict import Candidate

ENSEMBLE_KINDS = ("own", "pooled", "warm")


def candidate_of(
    name: str,
    kind: str,
    runs: tuple[str, ...],
    *,
    plant: Plant,
    inputs: RoleInputs,
    exports: Exports,
    members: Mapping[str, Member] = {},
) -> Candidate:
    """A model at a plant with its policy. members: what runs say of the inputs, as far as it is known already."""
    said = [members.get(run) or inputs.probabilities(run) for run in runs]
    scores = inputs.scores(said, leaf_sets=exports.material.fleet.leaf_sets(plant))
    solver = solve_by_novelty if kind == "normality" else solve
    policy = solver(scores, costs=plant.costs, plant=plant.name)
    price = sum(exports.words(run)["cut"] for run in runs)
    judged_by = out_of_fold(scores, costs=plant.costs, plant=plant.name, solver=solver) if plant.ok else policy
    return Candidate(name, kind, runs, price, scores, policy, judged_by)


def candidates_at(plant: Plant, *, inputs: RoleInputs, exports: Exports, run_ids: Sequence[str]) -> list[Candidate]:
    """The runs, and the plain average of own, pooled and warm-started, at a plant; each with its policy."""
    members: dict[str, Member] = {run_id: inputs.probabilities(run_id) for run_id in run_ids}
    words = {run_id: exports.words(run_id) for run_id in run_ids}
    candidate = functools.partial(candidate_of, plant=plant, inputs=inputs, exports=exports, members=members)
    found = [candidate(run_id, words[run_id]["kind"], (run_id,)) for run_id in run_ids]
    mixed = tuple(
        run_id
        for run_id in run_ids
        if words[run_id]["kind"] in ENSEMBLE_KINDS and words[run_id]["target"] in (plant.name, None)
    )
    if len(mixed) > 1:
        found.append(candidate(f"ensemble-{plant.name}", "ensemble", mixed))
    return found


def figures_of(scores: PartScores, *, kind: str, policy: OutOfFold | Policy, seed: int = 0) -> dict[str, Any]:
    """The report of a model at a plant; nothing about classes of one that tells none apart."""
    figures = report(scores, policy=policy, seed=seed)
    if kind != "normality":
        return figures
    none = {"low": None, "high": None, "words": "it names no class"}
    classes = {
        name: {"precision": None, "recall": {"value": None, **none, "n": row["n"]}, "f1": None, "n": row["n"]}
        for name, row in figures["per_class"].items()
    }
    return {
        **figures,
        "macro_f1": {"value": None, **none},
        "per_class": classes,
        "confusion": {"classes": [], "counts": []},
        "by_environment": nameless(figures["by_environment"]),
        "calibration": None,
    }


def nameless(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures by group of a model that tells no classes apart."""
    none = {"low": None, "high": None, "words": "it names no class"}
    return {
        name: {**row, "macro_f1": None, **none, "recall": {"value": None, **none, "n": row["recall"]["n"]}}
        for name, row in groups.items()
    }


def cell(*, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the matrix says of a model at a plant."""
    recalls = {
        name: row["recall"]["value"] for name, row in figures["per_class"].items() if row["recall"]["value"] is not None
    }
    worst = min(recalls, key=lambda name: recalls[name]) if recalls else None
    cost = figures["cost"] or {}
    auc = figures["auc"] or {}
    return {
        "macro_f1": figures["macro_f1"]["value"],
        "macro_f1_low": figures["macro_f1"]["low"],
        "macro_f1_high": figures["macro_f1"]["high"],
        "recall": recalls[worst] if worst else None,
        "recall_class": worst,
        "cost": cost.get("value"),
        "cost_low": cost.get("low"),
        "cost_high": cost.get("high"),
        "auc": auc.get("value"),
        "n": figures["n"],
        "n_lots": figures["n_lots"],
    }


def runs_for(plan: Plan, *, fleet: Fleet, plant: Plant, done: Sequence[str], seed: int) -> list[str]:
    """The finished runs that can say something of a plant: theirs is the plant, or shares defect classes with it."""
    near = {plant.name, *(sister.name for sister in fleet.sisters(plant))}
    found = [run for run in plan.runs if run.run_id in done and run.seed == seed and run.kind != "normality"]
    found = [run for run in found if run.kind not in BASELINES or run.target == plant.name]
    runs = [run for run in found if near & set(run.plants)]
    return [run.run_id for run in runs if not is_part(plan, run.run_id) or run.plants == (plant.name,)]


def first_model(plan: Plan, *, plant: Plant, done: Sequence[str], num_defects: int) -> list[str]:
    """The plant's finished normality, where so few defects are labelled that it may be a candidate; else nothing."""
    if not plant.ok or num_defects >= FEW_DEFECTS:
        return []
    return [r.run_id for r in plan.runs if r.kind == "normality" and r.target == plant.name and r.run_id in done]


def is_part(plan: Plan, run_id: str) -> bool:
    """Whether the run was fitted without an environment or a product, so that it is judged on that alone."""
    left_out = plan.run(run_id).left_out
    return left_out is not None and left_out.what != "plant"


def may_serve(candidate: Candidate, *, plant: Plant, plan: Plan, fleet: Fleet) -> bool:
    """A model that was fitted without the plant, or is a baseline, is in the matrix, but no candidate for serving it.

    A plant that may not train has no other; a model with a plant that may not leave it serves that plant alone.
    """
    runs = [plan.run(run_id) for run_id in candidate.members]
    if candidate.kind in ("without", *BASELINES):
        return False
    for run in runs:
        taught_by = map(fleet.plant, plan.learned_from([run.run_id]))
        if not all(may_hold(teacher, serves=run.serves(plant.name)) for teacher in taught_by):
            return False
    return not plant.may_train or candidate.kind == "ensemble" or plant.name in runs[0].plants
