"""The models that may be asked about a plant: what each says of its `decide` parts, with its policy and its figures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jobs.lora import tier
from jobs.plan import BASELINES, Plan, RunSpec
from jobs.scoring import Exports, Member, RoleInputs
from plants.costs import OutOfFold, Policy, lot_folds, out_of_fold, solve, solve_by_novelty
from plants.ensembles import Mix, Rule, fitted
from plants.governance import may_hold
from plants.incumbent import INCUMBENT
from plants.metrics import report
from plants.normality import FEW_DEFECTS
from plants.plant import Fleet, Plant
from plants.scores import PartScores
from plants.shared import shared_classes, shared_f1
from plants.verdict import Candidate

ENSEMBLE_KINDS = ("own", "pooled", "warm")
RULES: dict[str, Rule] = {"weighted": "mean", "stacked": "log"}
"""Kinds of ensembles whose weights are fitted, and the rule they are for; see `plants.ensembles`."""
ENSEMBLES = ("ensemble", *RULES)
"""All kinds of ensembles; the first is the plain average."""


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
    if kind in RULES:
        return _weighed(name, kind, runs, said, plant=plant, inputs=inputs, exports=exports)
    scores = inputs.scores(said, leaf_sets=exports.material.fleet.leaf_sets(plant))
    solver = solve_by_novelty if kind == "normality" else solve
    policy = solver(scores, costs=plant.costs, plant=plant.name)
    price = sum(exports.words(run)["cut"] for run in runs)
    judged_by = out_of_fold(scores, costs=plant.costs, plant=plant.name, solver=solver) if plant.ok else policy
    mix = Mix.plain(len(runs)) if len(runs) > 1 else None
    return Candidate(name, kind, runs, price, scores, policy, judged_by, mix=mix)


def _weighed(
    name: str,
    kind: str,
    runs: tuple[str, ...],
    said: Sequence[Member],
    *,
    plant: Plant,
    inputs: RoleInputs,
    exports: Exports,
) -> Candidate:
    """An ensemble with weights fitted on all parts, of the members that are worth their pass.

    It is judged by what it would be without the lots that judge it: members, weights and thresholds of each fold are
    found on the other folds.
    """
    leaf_sets = exports.material.fleet.leaf_sets(plant)
    weigh = functools.partial(fitted, said, parts=inputs.as_parts(leaf_sets), rule=RULES[kind])
    find = functools.partial(solve, costs=plant.costs, plant=plant.name)

    def says(kept: tuple[int, ...], mix: Mix) -> PartScores:
        return inputs.scores([said[i] for i in kept], leaf_sets=leaf_sets, mix=mix)

    kept, mix = weigh()
    all_of = says(kept, mix)
    runs, policy = tuple(runs[i] for i in kept), find(all_of)
    price = sum(exports.words(run)["cut"] for run in runs)
    folds, at = lot_folds(all_of.lots)
    num = len(set(folds.values()))
    apart = [says(*weigh(chosen=at != k)) for k in range(num)] if num > 1 else [all_of]
    rows = np.arange(len(at))
    probs = np.stack([one.probs for one in apart])[at, rows]
    divided = np.stack([np.zeros(len(at)) if one.disagreement is None else one.disagreement for one in apart])[at, rows]
    policies = tuple(find(one.take(at != k) if num > 1 else one) for k, one in enumerate(apart))
    judged_by = OutOfFold(folds=folds, policies=policies) if plant.ok else policy
    scores = replace(all_of, probs=probs, disagreement=divided)
    return Candidate(name, kind, runs, price, scores, policy, judged_by, mix=mix, solved_on=all_of)


def candidates_at(plant: Plant, *, inputs: RoleInputs, exports: Exports, run_ids: Sequence[str]) -> list[Candidate]:
    """The runs, and own, pooled and warm-started together in three ways, at a plant; each with its policy.

    Fitted weights that leave one member, or that make the plain average, are that and no candidate of their own.
    """
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
        together = [candidate(f"{kind}-{plant.name}", kind, mixed) for kind in ENSEMBLES]
        found += [one for one in together if one.kind not in RULES or (one.mix and not one.mix.is_plain)]
    return found


def model_words(name: str, *, plants: Sequence[str], exports: Exports, seed: int) -> dict[str, Any]:
    """What the document says of a row of the matrix that was judged at these plants."""
    kind = name if name == INCUMBENT else name.partition("-")[0]
    if kind in (*ENSEMBLES, INCUMBENT):
        own = None if kind == INCUMBENT else "ensemble"
        return {"kind": kind, "plants": list(plants), "cut": None, "tier": own, "seed": seed}
    words = exports.words(name)
    own = None if words["kind"] in BASELINES else tier(words, model=exports.material.model)
    return {"kind": words["kind"], "plants": words["plants"], "cut": words["cut"], "tier": own, "seed": seed}


def figures_of(
    scores: PartScores, *, kind: str, policy: OutOfFold | Policy, plant: Plant, fleet: Fleet, seed: int = 0
) -> dict[str, Any]:
    """The report of a model at a plant, over the classes all its sisters share too; of one that tells no classes apart,
    nothing about them.
    """
    figures = report(scores, policy=policy, seed=seed)
    if kind == "normality":
        return nameless(figures)
    return {**figures, "shared_f1": shared_f1(scores, plant=plant, shared=shared_classes(fleet, plant), seed=seed)}


def nameless(figures: dict[str, Any]) -> dict[str, Any]:
    """The report without what it says about classes, of a model that tells none apart."""
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
        "by_environment": nameless_groups(figures["by_environment"]),
        "calibration": None,
    }


def nameless_groups(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
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
    shared = figures.get("shared_f1") or {}
    return {
        "macro_f1": figures["macro_f1"]["value"],
        "macro_f1_low": figures["macro_f1"]["low"],
        "macro_f1_high": figures["macro_f1"]["high"],
        "recall": recalls[worst] if worst else None,
        "recall_class": worst,
        "recall_by_class": {name: row["recall"] for name, row in figures["per_class"].items()},
        "cost": cost.get("value"),
        "cost_low": cost.get("low"),
        "cost_high": cost.get("high"),
        "auc": auc.get("value"),
        "shared_f1": shared.get("value"),
        "shared_f1_low": shared.get("low"),
        "shared_f1_high": shared.get("high"),
        "shared_n": shared.get("n"),
        "n": figures["n"],
        "n_lots": figures["n_lots"],
    }


def runs_for(plan: Plan, *, fleet: Fleet, plant: Plant, done: Sequence[str], seed: int) -> list[str]:
    """The finished runs that can say something of a plant: theirs is the plant, or shares defect classes with it."""
    near = {plant.name, *(sister.name for sister in fleet.sisters(plant))}
    found = [run for run in plan.runs if run.run_id in done and run.seed == seed and run.kind != "normality"]
    found = [run for run in found if run.kind not in BASELINES or run.target == plant.name]
    runs = [run for run in found if near & set(run.plants) and not _met_another(run, plant=plant.name)]
    return [run.run_id for run in runs if not is_part(plan, run.run_id) or run.plants == (plant.name,)]


def _met_another(run: RunSpec, *, plant: str) -> bool:
    """Whether it was made to look like another plant, see `jobs.align`: here it is nobody's model."""
    return bool(run.recipe.get("align") and run.left_out and run.left_out.plant != plant)


def normality_at(plan: Plan, *, plant: Plant, done: Sequence[str]) -> list[str]:
    """The plant's finished normality, where it has good parts to be near to; else nothing."""
    if not plant.ok:
        return []
    return [r.run_id for r in plan.runs if r.kind == "normality" and r.target == plant.name and r.run_id in done]


def is_part(plan: Plan, run_id: str) -> bool:
    """Whether the run was fitted without an environment or a product, so that it is judged on that alone."""
    left_out = plan.run(run_id).left_out
    return left_out is not None and left_out.what != "plant"


def may_serve(candidate: Candidate, *, plant: Plant, plan: Plan, fleet: Fleet, num_defects: int) -> bool:
    """A model that was fitted without the plant, or is a baseline, is in the matrix, but no candidate for serving it.

    So is the distance to good parts unless few defects are labelled here, `num_defects` parts. A plant that may not
    train has no other than such; a model with a plant that may not leave it serves that plant alone.
    """
    runs = [plan.run(run_id) for run_id in candidate.members]
    if candidate.kind in ("without", *BASELINES) or (candidate.kind == "normality" and num_defects >= FEW_DEFECTS):
        return False
    for run in runs:
        taught_by = map(fleet.plant, plan.learned_from([run.run_id]))
        if not all(may_hold(teacher, serves=run.serves(plant.name)) for teacher in taught_by):
            return False
    return not plant.may_train or candidate.kind in ENSEMBLES or plant.name in runs[0].plants
