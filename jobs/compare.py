"""Which model should judge each plant's parts: every model at every plant on `decide`, and a decision with its proof.

Models are judged as exported files, per part, by money where there is money and by macro-F1 where there is none. Money
hangs on a few escapes, so that models whose money is not shown to differ are told apart by macro-F1. A model that is
cheaper to serve is taken only where the paired interval over lots shows that it is not worse by more than a margin;
otherwise the best estimate is taken and what is not known is said: "no difference shown", "not enough lots". Costs are
taken with thresholds solved out of fold, by lot.

A plant with few labelled defects has one candidate more, the distance to its good parts; it is taken where `decide`
holds no defect, because no other model can be judged there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.packs import MapTasks
from jobs.learning import ids_of, learning
from jobs.lora import tier
from jobs.material import Material
from jobs.outside import cells, outside
from jobs.plan import BASELINES, HEADLESS, Plan
from jobs.remarks import remarks
from jobs.scoring import Exports, Member, RoleInputs, role_inputs
from jobs.transfer import transfer
from plants.costs import OutOfFold, Policy, out_of_fold, solve, solve_by_novelty
from plants.curves import cost_curve
from plants.governance import may_hold
from plants.metrics import paired, report
from plants.normality import FEW_DEFECTS
from plants.plant import Fleet, Plant
from plants.scores import PartScores

MARGIN_F1 = 0.01
"""A cheaper model may be this much worse in macro-F1 and still be taken."""
MARGIN_COST = 0.02
"""Likewise in money, as a fraction of what the cheaper of passing all and rejecting all would cost."""
ENSEMBLE_KINDS = ("own", "pooled", "warm")
SCORES = "reports/scores/{plant}.parquet"
"""What the chosen model says of the plant's parts: policies are solved on them again when the defect rate moves."""


@dataclass(frozen=True)
class Candidate:
    """One model at one plant."""

    name: str
    kind: str
    members: tuple[str, ...]
    """The runs it is made of: one, or several for an ensemble."""
    serving_cost: int
    """Branch passes an image beyond the shared trunk; heads are free."""
    scores: PartScores
    policy: Policy
    """Solved on all parts: what is published."""
    judged_by: OutOfFold | Policy
    """Solved out of fold by lot, so that costs do not flatter: what candidates are compared with."""


@dataclass(frozen=True)
class Decision:
    """The model of one plant, why, and what the nearest alternative would mean."""

    model: str
    why: str
    against: str | None
    interval: dict[str, Any] | None


def decide(candidates: Sequence[Candidate], *, idle_cost: float | None, seed: int = 0) -> Decision:
    """The one cheapest to serve that is shown not to be worse than the best by more than the margin, else the best.

    The best costs least a part, or has a higher macro-F1 and is not shown to cost another sum. Pure.
    idle_cost: money a part when nothing is inspected, None where there is no money.
    """
    order = sorted(candidates, key=_badness)
    best = _told_apart(order, seed=seed)
    taken, interval = best, None
    for other in sorted(order, key=lambda c: (c.serving_cost, _badness(c))):
        if other.serving_cost >= best.serving_cost:
            continue
        found = _paired(other, best, seed=seed)
        if _is_not_worse(found, idle_cost=idle_cost):
            taken, interval = other, found
            break
    if taken is not best:
        why = f"{taken.name} costs less to serve and is shown not to be worse than {best.name} by more than the margin"
        return Decision(taken.name, why, best.name, interval)
    if len(order) == 1:
        return Decision(best.name, "the only candidate", None, None)
    rival = order[0] if best is not order[0] else order[1]
    interval = _paired(best, rival, seed=seed)
    if interval["low"] is None:
        why = f"not enough lots for an interval; best estimate, before {rival.name}"
    elif best is not order[0]:
        why = f"higher macro-F1 than {rival.name}, and no difference in money shown"
    elif interval["low"] <= 0 <= interval["high"]:
        why = f"best estimate; no difference shown to {rival.name}"
    else:
        why = f"better than {rival.name}, the interval excludes 0"
    return Decision(best.name, why, rival.name, interval)


def decide_first(candidates: Sequence[Candidate], *, num_defects: int) -> Decision | None:
    """The distance to good parts, where it is a candidate and there is no other, or no defect to judge another on."""
    first = next((c for c in candidates if c.kind == "normality"), None)
    if first is None or (len(candidates) > 1 and not first.scores.is_good.all()):
        return None
    lacking = "train" if len(candidates) == 1 else "decide"
    labelled = f"of {num_defects} labelled defects none is in {lacking}" if num_defects else "no defect is labelled"
    why = f"{labelled}, so no classifier can be judged: parts near the good ones pass, people look at the others"
    return Decision(first.name, why, None, None)


def _told_apart(order: Sequence[Candidate], *, seed: int) -> Candidate:
    """The cheapest in money, or one of higher macro-F1 whose money is not shown to differ from it."""
    cheapest = order[0]
    if not cheapest.scores.ok:
        return cheapest
    for other in sorted(order, key=_lost):
        if _lost(other) >= _lost(cheapest):
            break
        found = _paired(other, cheapest, seed=seed)
        if found["metric"] == "cost" and found["low"] is not None and found["low"] <= 0 <= found["high"]:
            return other
    return cheapest


def _lost(candidate: Candidate) -> float:
    f1 = report(candidate.scores, n_boot=1)["macro_f1"]["value"]
    return 1 - (f1 if f1 is not None else 0.0)


def _badness(candidate: Candidate) -> tuple[float, float, int, str]:
    figures = report(candidate.scores, policy=candidate.judged_by, n_boot=1)
    cost = figures["cost"]["value"] if figures["cost"] else None
    f1 = figures["macro_f1"]["value"]
    lost = 1 - (f1 if f1 is not None else 0.0)
    return (cost if cost is not None else lost, lost, candidate.serving_cost, candidate.name)


def _paired(a: Candidate, b: Candidate, *, seed: int) -> dict[str, Any]:
    return paired(a.scores, b.scores, policy_a=a.judged_by, policy_b=b.judged_by, seed=seed)


def _is_not_worse(found: Mapping[str, Any], *, idle_cost: float | None) -> bool:
    if found["low"] is None:
        return False
    if found["metric"] == "cost":
        return idle_cost is not None and found["high"] <= MARGIN_COST * idle_cost
    return bool(found["low"] >= -MARGIN_F1)


def idle_cost(plant: Plant) -> float | None:
    """Money a part at the unfavourable defect rate when all parts pass or all are rejected, whichever is cheaper."""
    rate = plant.costs.defect_rate[2]
    return min(rate * plant.costs.miss, (1 - rate) * plant.costs.false_alarm) if plant.ok else None


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
        "by_environment": {name: {**row, "macro_f1": None, **none} for name, row in figures["by_environment"].items()},
        "calibration": None,
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
    return [run.run_id for run in runs if not _is_part(plan, run.run_id) or run.plants == (plant.name,)]


def first_model(plan: Plan, *, plant: Plant, done: Sequence[str], num_defects: int) -> list[str]:
    """The plant's finished normality, where so few defects are labelled that it may be a candidate; else nothing."""
    if not plant.ok or num_defects >= FEW_DEFECTS:
        return []
    return [r.run_id for r in plan.runs if r.kind == "normality" and r.target == plant.name and r.run_id in done]


def _made(decision: Decision, *, chosen: Candidate, base: Candidate | None, seed: int) -> dict[str, Any]:
    """The decision as the document holds it. base: the plant's frozen baseline."""
    return {
        "model": chosen.name,
        "kind": chosen.kind,
        "members": list(chosen.members),
        "why": decision.why,
        "against": decision.against,
        "interval": decision.interval,
        "policy": chosen.policy.model_dump(mode="json"),
        "gain": _gain(chosen, base, seed=seed),
        "frozen_policy": base.policy.model_dump(mode="json") if base else None,
    }


def compare_plant(
    plant: Plant,
    *,
    plan: Plan,
    exports: Exports,
    done: Sequence[str],
    seed: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]] | str:
    """A plant's column of the matrix, its decision and its details; or why nothing can be decided."""
    inputs = role_inputs(plant.name, role="decide", exports=exports)
    if inputs is None:
        return "no labelled part in `decide`: not enough data"
    fleet = exports.material.fleet
    rows = exports.material.rows(plant.name)
    num_defects = int(rows.loc[rows["class"].isin(plant.defects), "part_id"].nunique())
    first = first_model(plan, plant=plant, done=done, num_defects=num_defects)
    run_ids = runs_for(plan, fleet=fleet, plant=plant, done=done, seed=seed)
    whole = [run_id for run_id in run_ids if not _is_part(plan, run_id)]
    candidates = candidates_at(plant, inputs=inputs, exports=exports, run_ids=whole + first)
    figures = {c.name: figures_of(c.scores, kind=c.kind, policy=c.judged_by, seed=seed) for c in candidates}
    column = {c.name: cell(figures=figures[c.name]) for c in candidates}
    eligible = [c for c in candidates if _may_serve(c, plant=plant, plan=plan, fleet=fleet)]
    if not eligible:
        return "no finished model may serve it: see `crossplant status` for runs that failed"
    decision = decide_first(eligible, num_defects=num_defects) or decide(
        eligible, idle_cost=idle_cost(plant), seed=seed
    )
    chosen = next(c for c in candidates if c.name == decision.model)
    for run_id in chosen.members if chosen.kind != "normality" else ():
        exports.check_parity(run_id, activations=inputs.activations)
    base = next((c for c in candidates if c.name == f"frozen-{plant.name}-s{seed}"), None)
    made = _made(decision, chosen=chosen, base=base, seed=seed)
    exports.material.store.write(SCORES.format(plant=plant.name), chosen.scores.to_parquet())
    leaf_sets = fleet.leaf_sets(plant)
    beyond = outside(plant.name, plan=plan, run_ids=run_ids, inputs=inputs, leaf_sets=leaf_sets, cell=cell, seed=seed)
    column |= cells(beyond)
    bought = transfer(
        plant.name,
        chosen=chosen,
        candidates=candidates,
        plan=plan,
        done=done,
        judge=functools.partial(candidate_of, plant=plant, inputs=inputs, exports=exports),
        seed=seed,
    )
    details = {
        "outside": beyond,
        "transfer": bought,
        "chosen": figures[chosen.name],
        "frozen": figures[base.name] if base else None,
        "curve": cost_curve(chosen.scores, chosen.judged_by),
        "learning": [
            learning(exports.words(run_id)) for run_id in ids_of(plan, plant=plant.name, seed=seed) if run_id in done
        ],
        "training": remarks(chosen.members, plant=plant.name, words=exports.words),
    }
    return column, made, details


def _is_part(plan: Plan, run_id: str) -> bool:
    left_out = plan.run(run_id).left_out
    return left_out is not None and left_out.what != "plant"


def _may_serve(candidate: Candidate, *, plant: Plant, plan: Plan, fleet: Fleet) -> bool:
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


def _gain(chosen: Candidate, frozen: Candidate | None, *, seed: int) -> dict[str, Any] | None:
    """The chosen model against the frozen baseline, paired; None where they are the same."""
    return _paired(chosen, frozen, seed=seed) if frozen and frozen.name != chosen.name else None


def worst_first(decisions: Mapping[str, Any], matrix: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Plants by the macro-F1 of their chosen model, worst first."""

    def f1(name: str) -> float:
        value = matrix[decisions[name]["model"]][name]["macro_f1"]
        return -1.0 if value is None else float(value)

    return sorted(decisions, key=f1)


def _compare_one(
    name: str, *, material: Mapping[str, Any], plan: Mapping[str, Any], done: Sequence[str], seed: int
) -> Any:
    """`compare_plant` in a process of its own."""
    exports = Exports(Material.from_config(material), plan=Plan.from_json(plan))
    plant = exports.material.fleet.plant(name)
    return compare_plant(plant, plan=exports.plan, exports=exports, done=done, seed=seed)


Say = Callable[[str], None]


def compare_fleet(
    fleet: Fleet,
    *,
    plan: Plan,
    exports: Exports,
    done: Sequence[str],
    refused: Sequence[str] = (),
    seed: int,
    say: Say = lambda text: None,
    map_tasks: MapTasks = map,
) -> dict[str, Any]:
    """The `compare` document without bundles: matrix, decisions, details, plants worst first.

    map_tasks: like `map`, possibly elsewhere; plants are judged side by side where it is Ray's.
    """
    left_out = not_judged(plan, done=done, refused=refused, seed=seed)
    for why in sorted(set(left_out.values())):
        say(f"not judged, {why}: {', '.join(run_id for run_id, reason in left_out.items() if reason == why)}")
    trained = [run for run in plan.runs if run.run_id in done and run.kind != "normality"]
    for run in trained:
        if run.kind not in HEADLESS:
            exports.branch(run.run_id)
    matrix: dict[str, dict[str, Any]] = {run.run_id: {} for run in trained if run.seed == seed}
    decisions: dict[str, Any] = {}
    details: dict[str, Any] = {}
    work = functools.partial(
        _compare_one, material=exports.material.to_config(), plan=plan.to_json(), done=list(done), seed=seed
    )
    names = exports.material.largest_first([plant.name for plant in fleet.plants])
    for name, found in zip(names, map_tasks(work, names), strict=True):
        if isinstance(found, str):
            say(f"{name}: {found}")
            continue
        column, decisions[name], details[name] = found
        for model, values in column.items():
            matrix.setdefault(model, {})[name] = values
        say(f"{name}: {len(column)} models judged")
    models = {}
    for name in matrix:
        if name.startswith("ensemble-"):
            kind, plants, cut, own = "ensemble", [name.removeprefix("ensemble-")], None, "ensemble"
        else:
            words = exports.words(name)
            kind, plants, cut = words["kind"], words["plants"], words["cut"]
            own = None if kind in BASELINES else tier(words, model=exports.material.model)
        models[name] = {"kind": kind, "plants": plants, "cut": cut, "tier": own, "seed": seed}
    ranked = worst_first(decisions, matrix)
    return {
        "fleet": fleet.fleet,
        "synthetic": fleet.synthetic,
        "plan": plan.plan_id,
        "seed": seed,
        "plants": ranked,
        "models": models,
        "matrix": matrix,
        "not_judged": left_out,
        "decisions": decisions,
        "transfer": [found for name in ranked if (found := details[name].pop("transfer"))],
        "details": details,
    }


def not_judged(plan: Plan, *, done: Sequence[str], refused: Sequence[str] = (), seed: int) -> dict[str, str]:
    """The runs of the plan that are in no column of the matrix, each with why."""
    why = {run.run_id: f"another seed than {seed}" for run in plan.runs if run.seed != seed}
    why |= {run.run_id: "not finished" for run in plan.runs if run.run_id not in done}
    return why | dict.fromkeys(refused, "its donor makes it worse than the pretrained start")
