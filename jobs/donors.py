"""Who helps whom: what a start from each other plant's own branch is worth at a plant against the pretrained start.

Measured as a warm start's donor is judged before it is built upon (`jobs.starts.judge`): passes of branches over
activations that are there, and heads; no stage is trained. So an arrow harms where the guard refuses it, each pair by
its own interval. That it helps is a claim, and of many claims some look true by chance: it is made where Holm's
correction over the whole graph allows it. What stages could still make of a start is not measured here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scipy.special import stdtr, stdtrit

from jobs import starts
from jobs.activations import RunData
from jobs.adapt import LEVEL
from jobs.fit import parent_of
from jobs.material import Material
from jobs.objective import Objective
from jobs.plan import Plan, nearest
from jobs.recipe import Recipe
from jobs.run import Run, World
from jobs.supervision import Supervision
from plants.governance import may_hold
from plants.stats import MIN_LOTS, NOT_ENOUGH_LOTS

HELPS, HARMS, NEITHER, CANNOT = "helps", "harms", "no difference shown", "cannot"
ALPHA = 0.05
"""How often, at most, a graph of donors that do nothing claims any help."""
MOST = 6
"""Donors measured at a plant, those that share most classes with it, so that cost and rows stay linear in plants."""


def donors_at(
    name: str, *, plan: Plan, material: Material, done: Collection[str], seed: int, most: int = MOST
) -> list[dict[str, Any]]:
    """An arrow from each of the nearest sisters to this plant: donor, plant, gain in nats a part, interval, why.

    gain is None, and `why` says it, where nothing could be measured. Words come from `graph`.
    """
    own = {run.target: run for run in plan.runs if run.kind == "own" and run.seed == seed}
    if name not in own:
        return []
    fleet = material.fleet
    sisters = [plant.name for plant in fleet.sisters(fleet.plant(name))]
    rows: list[dict[str, Any]] = []
    able: list[str] = []
    for other in nearest(fleet, plant=fleet.plant(name), among=sisters, train_parts={}):
        if why := _barred(other, name, own=own, done=done, material=material):
            rows.append(_arrow(other, name, why=why))
        else:
            able.append(other)
        if len(able) == most:
            break
    if not able:
        return rows
    run = run_at(name, recipe=Recipe.model_validate(own[name].recipe), material=material, seed=seed)
    pretrained = starts.worth_of(run)
    for other in able:
        parent = parent_of(own[other].run_id, plan=plan, material=material)
        base = None if name in parent.learned_from else pretrained
        found = starts.judge(replace(run, parent=parent), pretrained=base)
        why = f"{found['n_lots']} labelled lots" if found["n_lots"] < MIN_LOTS else None
        rows.append(_arrow(other, name, found=found, why=why))
    return sorted(rows, key=lambda row: sisters.index(row["donor"]))


def graph(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The arrows with `p`, Holm's `p_holm` over all that were measured, and `words`. Pure.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6, 1979.
    """
    values = [_p_value(row) for row in rows]
    adjusted = holm(values)
    return [
        {**row, "p": p, "p_holm": q, "words": _words(row, p_holm=q)}
        for row, p, q in zip(rows, values, adjusted, strict=True)
    ]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values such that one under a level shows something at that level over all of them; None stays None."""
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        found[i] = highest
    return found


def _words(row: Mapping[str, Any], *, p_holm: float | None) -> str:
    if row["gain"] is None:
        return CANNOT
    if p_holm is None:
        return NOT_ENOUGH_LOTS
    if row["refused"]:
        return HARMS
    return HELPS if row["gain"] > 0 and p_holm < ALPHA else NEITHER


def _p_value(row: Mapping[str, Any]) -> float | None:
    """Two-sided, by Student's t over lots, as the interval was made."""
    if row["low"] is None:
        return None
    freedom, half = row["n_lots"] - 1, (row["high"] - row["low"]) / 2
    if half == 0:
        return 1.0 if row["gain"] == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(row["gain"]) / half * stdtrit(freedom, 0.5 + LEVEL / 2)))


def _barred(donor: str, name: str, *, own: Mapping[Any, Any], done: Collection[str], material: Material) -> str | None:
    """Why a start from that donor is not measured; None where it is."""
    fleet = material.fleet
    if not may_hold(fleet.plant(donor), serves=(name,)):
        return "its images may teach no other plant's model"
    if donor not in own or own[donor].run_id not in done:
        return "it has no finished model of its own"
    cuts = [cut for cut in material.cuts if cut in material.streamed]
    return "activations are streamed, so that each donor would cost a pass of the trunk" if cuts else None


def run_at(name: str, *, recipe: Recipe, material: Material, seed: int) -> Run:
    """The plant's run as it begins, from the pretrained start."""
    taught = Supervision(
        RunData((material.data(name),)),
        leaf_sets=material.leaf_sets([name]),
        leaves=material.leaves([name]),
        max_class_weight=recipe.max_class_weight,
        is_balanced=recipe.balance != "none",
    )
    return Run(material.learner, taught, Objective(taught, recipe=recipe), recipe, seed, World(), material.compute)


def _arrow(donor: str, plant: str, *, found: Mapping[str, Any] | None = None, why: str | None) -> dict[str, Any]:
    given = found or {"difference": None, "low": None, "high": None, "n_lots": None, "refused": False}
    row = {"donor": donor, "plant": plant, "gain": given["difference"], "low": given["low"], "high": given["high"]}
    return {**row, "refused": given["refused"], "n_lots": given["n_lots"], "why": why}


def best_donors(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Plant -> the donor of the highest gain, if it gains at all and is not refused. Pure."""
    able = [row for row in rows if row["gain"] is not None and not row["refused"] and row["gain"] > 0]
    return {row["plant"]: row["donor"] for row in sorted(able, key=lambda row: (row["gain"], row["donor"]))}
