"""Refreshes what serves when rows came: every plant's chosen models go on from their weights, on old and new rows.

A refresh is a plan of its own. Its runs are those that the last comparison decided for, by name, with every plant's
frozen baseline beside them, fitted anew as the floor; where nothing was compared, all of them. A run starts where the
run of that name in the latest plan left off: its head is fitted again, from the one it had. Where much is new, the
stages that had won are trained on for a few epochs too, kept only when they win on `select` as always. What cannot go
on (a new plant, another trunk, other plants in a pool) is trained in full.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.catalog import Catalog
from cluster.ledger import RunLedger
from cluster.retention import enforce
from cluster.settings import Settings
from cluster.storage import Store, open_store
from jobs.carry_out import Say, Trained, carried_out, latest_plan
from jobs.fleet import COMPARED, planned, run_plan
from jobs.forked import warm_up
from jobs.plan import Plan, RunSpec
from jobs.recipe import Recipe
from plants.balance import labelled_defects
from plants.errors import InputError
from plants.plant import Fleet

if TYPE_CHECKING:
    from jobs.material import Material

EPOCHS = 5
"""Of a stage that goes on from where it was."""
MUCH = 0.2
"""Stages go on where more than this share of a plant's rows is new to them, or a class; else the head alone."""
News = Callable[[RunSpec, Plan], bool]
"""Whether much is new to the stages of a run that last learned in a plan."""
FLOORS = ("frozen", "normality")
ANEW = (*FLOORS, "average")
"""Kinds that take one go, from the trunk's features or their parents' weights, as in every plan."""


def refresh_fleet(
    fleet: Fleet, *, settings: Settings, retry_failed: bool = False, say: Say = lambda event: None, **terms: Any
) -> Trained:
    """Every run of the refresh is done or failed; the same call after a kill goes on where it was.

    terms: caps and estimate, as `carried_out` takes them.

    Where no row to learn from is new the latest plan stands. Raises InputError where that is not finished, or none is.
    """
    start = time.monotonic()
    enforce(fleet, cache=settings.cache, home=settings.home, now=datetime.now(UTC))
    Catalog.of(fleet).require([plant.name for plant in fleet.plants])
    if settings.is_embedded:
        warm_up()
    store = open_store(fleet.store)
    latest = latest_plan(store)
    root = root_of(latest, store=store)
    recipe = root.deepest
    from jobs.material import Material

    material = Material(fleet, cache=settings.cache, cache_gb=settings.cache_gb, recipe=recipe, trunk=latest.trunk)
    seeds = (min(run.seed for run in latest.runs),)
    has_averages = any(run.kind == "average" for run in latest.runs)
    given: dict[str, Any] = {"average": has_averages, "labelled": _labelled(root, material=material)}
    full = planned(fleet, material=material, recipe=recipe, seeds=seeds, trunk=latest.trunk, **given)
    news = functools.partial(is_much_new, now=full.data, catalog=material.catalog)
    plan = refreshed(latest, full=full, store=store, weights_digest=material.model.weights_digest, news=news)
    cuts = {stage["cut"] for run in plan.runs for stage in run.recipe["stages"]}
    material.recipe = recipe.model_copy(update={"stages": tuple(s for s in recipe.stages if s.cut in cuts)})

    def work() -> None:
        run_plan(plan, material=material, settings=settings, say=say)

    given = {"retry_failed": retry_failed, "notes": _words(plan), "began": start, "say": say, **terms}
    return carried_out(plan, material=material, settings=settings, work=work, **given)


def _words(plan: Plan) -> list[str]:
    """Which runs have their head alone fitted again."""
    heads = [run.run_id for run in plan.runs if run.start and not _learns(run)]
    return [f"little is new, so the heads alone are fitted again: {', '.join(heads)}"] if heads else []


def _learns(run: RunSpec) -> bool:
    return any(stage["epochs"] for stage in run.recipe["stages"])


def is_much_new(run: RunSpec, since: Plan, *, now: Mapping[str, str], catalog: Catalog) -> bool:
    """Whether over `MUCH` of a plant's rows to learn from, or a class, came or was corrected after a plan was made.

    now: plant -> the digest of the snapshot of its rows. Much is new, too, where the rows of that time are gone.
    """
    for plant in run.plants:
        if (digest := since.data.get(plant)) == now[plant]:
            continue
        rows = catalog.learned(plant, digest=None)
        try:
            before = catalog.learned(plant, digest=digest)
        except InputError:
            return True
        known = set(zip(before["sha256"], before["class"], strict=True))
        is_new = [pair not in known for pair in zip(rows["sha256"], rows["class"], strict=True)]
        if sum(is_new) > MUCH * len(rows) or not set(rows["class"]) <= set(before["class"]):
            return True
    return False


def _labelled(root: Plan, *, material: Material) -> dict[str, Any] | None:
    """The labels by which runs train stages or not, where the plan was made `--strategy by-data`."""
    tuned = [run for run in root.runs if run.kind in ("own", "pooled", "warm", "sister")]
    if not root.deepest.stages or all(run.recipe["stages"] for run in tuned):
        return None
    return {plant.name: labelled_defects(plant, material.rows(plant.name)) for plant in material.fleet.plants}


def root_of(plan: Plan, *, store: Store) -> Plan:
    """The plan that this one, through others or not, is a refresh of."""
    while plan.base:
        plan = _base(plan, store=store)
    return plan


def _base(plan: Plan, *, store: Store) -> Plan:
    return Plan.from_json(store.read_json(f"runs/{plan.base}/plan.json"))


def _is_over(plan: Plan, *, store: Store) -> bool:
    records = RunLedger(store, plan.plan_id).load()
    return all(run.run_id in records and records[run.run_id].is_over for run in plan.runs)


def refreshed(latest: Plan, *, full: Plan, store: Store, weights_digest: str, news: News) -> Plan:
    """The refresh of the latest plan on the data of `full`, which is what would be trained on them from nothing.

    The latest plan itself where it is on these data. A refresh that was not finished before other rows came is left.
    """
    if full.data_digest == latest.data_digest and (latest.base or _is_over(latest, store=store)):
        return latest
    while latest.base and not _is_over(latest, store=store):
        latest = _base(latest, store=store)
    records = RunLedger(store, latest.plan_id).load()
    if not _is_over(latest, store=store):
        remedy = "Run the command again that was training it, then --refresh"
        raise InputError("the latest plan is not finished", file=store.at(f"runs/{latest.plan_id}"), remedy=remedy)
    wanted = _wanted(latest, full=full, store=store)

    def going_on(run: RunSpec) -> RunSpec:
        done = run.run_id in records and records[run.run_id].state == "done"
        if run.kind in ANEW or not done or latest.run(run.run_id).kind != run.kind:
            return run
        words = store.read_json(f"runs/{latest.plan_id}/{run.run_id}/model.json")
        lineage = latest.learned_from([run.run_id])
        is_alike = words["weights_digest"] == weights_digest and lineage == full.learned_from([run.run_id])
        if not is_alike or "start" not in words:
            return run
        epochs = EPOCHS if news(run, _last_learned(latest, run.run_id, store=store)) else 0
        recipe = shortened(Recipe.model_validate(run.recipe), cut=words["cut"], epochs=epochs)
        begun = f"{latest.plan_id}/{run.run_id}"
        return replace(run, recipe=recipe.model_dump(mode="json"), parent=None, start=begun, taught_by=lineage)

    chosen: dict[str, RunSpec] = {}
    waiting = [run.run_id for run in full.runs if run.run_id in wanted]
    while waiting:
        run = going_on(full.run(waiting.pop()))
        chosen[run.run_id] = run
        waiting += [parent for parent in run.sources if parent not in chosen]
    runs = tuple(chosen[run.run_id] for run in full.runs if run.run_id in chosen)
    earlier = {name: tuple(d for d in latest.snapshots(name) if d) for name in latest.data}
    return replace(full, runs=runs, base=latest.plan_id, earlier=earlier)


def _last_learned(plan: Plan, run_id: str, *, store: Store) -> Plan:
    """The plan in which the stages of this run of a plan learned last."""
    while (run := plan.run(run_id)).start and not _learns(run):
        plan = _base(plan, store=store)
    return plan


def shortened(recipe: Recipe, *, cut: int, epochs: int) -> Recipe:
    """The same recipe for a run that goes on: only the stages that had been unfrozen, for so few epochs."""
    stages = []
    for stage in recipe.stages:
        few = min(stage.epochs, epochs)
        told = {"epochs": few, "warmup_epochs": max(0, min(stage.warmup_epochs, few - 1))}
        stages += [stage.model_copy(update=told)] if stage.cut == cut else []
    return recipe.model_copy(update={"stages": tuple(stages)})


def _wanted(latest: Plan, *, full: Plan, store: Store) -> set[str]:
    """The runs that were decided for when the latest plan was compared, and the floors; all where it was not.

    Of a plant for which nothing was decided, e.g. a new one, its own; all of one whose model takes more than one seed.
    """
    document = store.read_json(COMPARED) if store.exists(COMPARED) else {}
    if document.get("plan") != latest.plan_id:
        return {run.run_id for run in full.runs}
    able, decisions = {run.run_id for run in full.runs}, document["decisions"]
    lost = {name for name, decision in decisions.items() if not set(decision["members"]) <= able}
    members = {run_id for decision in decisions.values() for run_id in decision["members"] if run_id in able}
    new = {run.run_id for run in full.runs if run.kind == "own" and run.target not in decisions}
    new |= {run.run_id for run in full.runs if run.target in lost}
    return {run.run_id for run in full.runs if run.kind in FLOORS or run.run_id in members | new}
