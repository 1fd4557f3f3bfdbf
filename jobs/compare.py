"""Which model should judge each plant's parts: every model at every plant on `decide`, and a decision with its proof.

Models are judged as exported files; costs are taken with thresholds solved out of fold, by lot. How one is decided for
is in `plants.verdict`. A plant with few labelled defects has one candidate more, the distance to its good parts; it is
taken where `decide` holds no defect, because no other model can be judged there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.packs import MapTasks
from jobs.arrival import arrival
from jobs.candidates import (
    candidate_of,
    candidates_at,
    cell,
    figures_of,
    is_part,
    may_serve,
    model_words,
    normality_at,
    runs_for,
)
from jobs.donors import donors_at, graph
from jobs.failing import failing
from jobs.forecast import forecast
from jobs.incumbent import incumbent_at
from jobs.learning import ids_of, learning
from jobs.material import Material
from jobs.outside import cells, outside
from jobs.plan import HEADLESS, Plan
from jobs.remarks import remarks
from jobs.scoring import Exports, role_inputs
from jobs.severity import severity_at
from jobs.transfer import transfer
from plants.arrival import MARGIN
from plants.curves import cost_curve
from plants.ensembles import to_json
from plants.plant import Fleet, Plant
from plants.verdict import Candidate, Decision, decide, decide_first, difference, idle_cost

SCORES = "reports/scores/{plant}.parquet"
"""What the chosen model says of the plant's parts: policies are solved on them again when the defect rate moves."""


def _made(decision: Decision, *, chosen: Candidate, base: Candidate | None, seed: int) -> dict[str, Any]:
    """The decision as the document holds it. base: the plant's frozen baseline."""
    return {
        "model": chosen.name,
        "kind": chosen.kind,
        "members": list(chosen.members),
        "answer": decision.answer,
        **to_json(chosen.mix),
        "why": decision.why,
        "against": decision.against,
        "interval": decision.interval,
        "tests": list(decision.tests),
        "level": decision.level,
        "by_f1": decision.by_f1,
        "policy": chosen.policy.model_dump(mode="json"),
        "gain": _gain(chosen, base, seed=seed, level=decision.level or 0.95),
        "frozen_policy": base.policy.model_dump(mode="json") if base else None,
    }


def compare_plant(
    plant: Plant,
    *,
    plan: Plan,
    exports: Exports,
    done: Sequence[str],
    seed: int,
    is_robust: bool = True,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]] | str:
    """A plant's column of the matrix, its decision and its details; or why nothing can be decided."""
    inputs = role_inputs(plant.name, role="decide", exports=exports)
    if inputs is None:
        return "no labelled part in `decide`: not enough data"
    fleet = exports.material.fleet
    rows = exports.material.rows(plant.name)
    num_defects = int(rows.loc[rows["class"].isin(plant.defects), "part_id"].nunique())
    run_ids = runs_for(plan, fleet=fleet, plant=plant, done=done, seed=seed)
    whole = [run_id for run_id in run_ids if not is_part(plan, run_id)]
    candidates = candidates_at(
        plant, inputs=inputs, exports=exports, run_ids=whole + normality_at(plan, plant=plant, done=done)
    )
    said = functools.partial(figures_of, plant=plant, fleet=fleet, seed=seed)
    figures = {c.name: said(c.scores, kind=c.kind, policy=c.judged_by) for c in candidates}
    column = {c.name: cell(figures=figures[c.name]) for c in candidates}
    eligible = [c for c in candidates if may_serve(c, plant=plant, plan=plan, fleet=fleet, num_defects=num_defects)]
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
    exports.material.store.write(SCORES.format(plant=plant.name), chosen.published.to_parquet())
    leaf_sets = fleet.leaf_sets(plant)
    beyond = outside(plant.name, plan=plan, run_ids=run_ids, inputs=inputs, leaf_sets=leaf_sets, cell=cell, seed=seed)
    standing, existing = incumbent_at(
        plant, fleet=fleet, inputs=inputs, scores=chosen.scores, policy=chosen.judged_by, seed=seed
    )
    column |= cells(beyond) | standing
    judge = functools.partial(candidate_of, plant=plant, inputs=inputs, exports=exports)
    details = {
        "outside": beyond,
        "transfer": transfer(
            plant.name, chosen=chosen, candidates=candidates, plan=plan, done=done, judge=judge, seed=seed
        ),
        "arrival": arrival(plant.name, plan=plan, run_ids=run_ids, inputs=inputs, seed=seed),
        "chosen": figures[chosen.name],
        "frozen": figures[base.name] if base else None,
        **existing,
        "severity": severity_at(inputs, members=chosen.members, mix=chosen.mix, exports=exports, seed=seed),
        "curve": cost_curve(chosen.scores, chosen.judged_by),
        **failing(plant, chosen=chosen, base=base, inputs=inputs, is_robust=is_robust, seed=seed),
    }
    return column, made, details | _of_runs(plant.name, chosen=chosen, plan=plan, exports=exports, done=done, seed=seed)


def _of_runs(
    name: str, *, chosen: Candidate, plan: Plan, exports: Exports, done: Sequence[str], seed: int
) -> dict[str, Any]:
    """What the plant's finished runs say of how they were trained, and who helps it."""
    ids = [run_id for run_id in ids_of(plan, plant=name, seed=seed) if run_id in done]
    return {
        "donors": donors_at(name, plan=plan, material=exports.material, done=done, seed=seed),
        "learning": [learning(exports.words(run_id)) for run_id in ids],
        "training": remarks(chosen.members, plant=name, words=exports.words),
    }


def _gain(chosen: Candidate, frozen: Candidate | None, *, seed: int, level: float) -> dict[str, Any] | None:
    """The chosen model against the frozen baseline, paired; None where they are the same, or one that names no class
    could be compared by the classes it names only.
    """
    if not frozen or frozen.name == chosen.name:
        return None
    found = difference(chosen, frozen, seed=seed, level=level)
    return found if found["metric"] == "cost" or chosen.kind != "normality" else None


def worst_first(decisions: Mapping[str, Any], matrix: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Plants by the macro-F1 of their chosen model, worst first."""

    def f1(name: str) -> float:
        value = matrix[decisions[name]["model"]][name]["macro_f1"]
        return -1.0 if value is None else float(value)

    return sorted(decisions, key=f1)


def _compare_one(
    name: str, *, material: Mapping[str, Any], plan: Mapping[str, Any], done: Sequence[str], seed: int, is_robust: bool
) -> Any:
    """`compare_plant` in a process of its own."""
    exports = Exports(Material.from_config(material), plan=Plan.from_json(plan))
    plant = exports.material.fleet.plant(name)
    return compare_plant(plant, plan=exports.plan, exports=exports, done=done, seed=seed, is_robust=is_robust)


Say = Callable[[str], None]


def compare_fleet(
    fleet: Fleet,
    *,
    plan: Plan,
    exports: Exports,
    done: Sequence[str],
    refused: Sequence[str] = (),
    seed: int,
    floor_margin: float = MARGIN,
    say: Say = lambda text: None,
    map_tasks: MapTasks = map,
    is_robust: bool = True,
) -> dict[str, Any]:
    """The `compare` document without bundles: matrix, decisions, details, plants worst first.

    floor_margin: see `plants.arrival.floor_of`.
    map_tasks: like `map`, possibly elsewhere; plants are judged side by side where it is Ray's.
    is_robust: whether the chosen models are judged on corrupted parts too, see `jobs.robustness`.
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
    undecided: dict[str, str] = {}
    config = exports.material.to_config()
    work = functools.partial(
        _compare_one, material=config, plan=plan.to_json(), done=list(done), seed=seed, is_robust=is_robust
    )
    names = exports.material.largest_first([plant.name for plant in fleet.plants])
    for name, found in zip(names, map_tasks(work, names), strict=True):
        if isinstance(found, str):
            undecided[name] = found
            say(f"{name}: {found}")
            continue
        column, decisions[name], details[name] = found
        for model, values in column.items():
            matrix.setdefault(model, {})[name] = values
        say(f"{name}: {len(column)} models judged")
    ranked = worst_first(decisions, matrix)
    return {
        "fleet": fleet.fleet,
        "synthetic": fleet.synthetic,
        "plan": plan.plan_id,
        "seed": seed,
        "plants": ranked,
        "models": {n: model_words(n, plants=list(row), exports=exports, seed=seed) for n, row in matrix.items()},
        "matrix": matrix,
        "not_judged": left_out,
        "decisions": decisions,
        "undecided": undecided,
        **_of_fleet(fleet, details=[details[name] for name in ranked], floor_margin=floor_margin),
        "details": details,
    }


def _of_fleet(fleet: Fleet, *, details: Sequence[dict[str, Any]], floor_margin: float) -> dict[str, Any]:
    """What is said of all plants together, taken out of what is said of each."""
    bought, arrivals = ([of.pop(key) for of in details] for key in ("transfer", "arrival"))
    return {
        "transfer": [found for found in bought if found],
        "donors": graph([row for of in details for row in of.pop("donors")]),
        "forecast": forecast(fleet, arrivals=[found for found in arrivals if found], margin=floor_margin),
    }


def not_judged(plan: Plan, *, done: Sequence[str], refused: Sequence[str] = (), seed: int) -> dict[str, str]:
    """The runs of the plan that are in no column of the matrix, each with why."""
    why = {run.run_id: f"another seed than {seed}" for run in plan.runs if run.seed != seed}
    why |= {run.run_id: "not finished" for run in plan.runs if run.run_id not in done}
    return why | dict.fromkeys(refused, "its donor makes it worse than the pretrained start")
