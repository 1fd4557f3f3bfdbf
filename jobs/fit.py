"""One run of a plan: from what it starts from to its model in storage."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

from jobs.activations import RunData
from jobs.adapt import Parent, mean_of
from jobs.align import AlignedData, meet
from jobs.classical import fit_classical
from jobs.forgetting import MOST_PLANTS
from jobs.material import Material
from jobs.normality import fit_normality
from jobs.plan import Plan, RunSpec
from jobs.recipe import Recipe
from jobs.scratch import pixels, scratch_model
from jobs.train import Checkpoints, Fitted, World, fit
from plants.governance import may_hold
from plants.plant import Fleet


def fit_run(
    spec: RunSpec,
    *,
    material: Material,
    plan: Plan,
    world: World | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_part: Callable[[dict[str, Any]], None] | None = None,
) -> Fitted:
    """The run is fitted, resumed from its last epoch when there is one, and its model saved."""
    world = world or World()
    if spec.kind == "normality":
        fitted, normality = fit_normality(spec, material=material)
        material.save_normality(normality, spec=spec, plan=plan)
        material.save(fitted, spec=spec, plan=plan)
        return fitted
    if spec.kind == "classical":
        fitted = fit_classical(spec, material=material, on_epoch=on_epoch)
        material.save(fitted, spec=spec, plan=plan)
        return fitted
    recipe = Recipe.model_validate(spec.recipe)
    if recipe.init == "random":
        model = scratch_model(material, seed=spec.seed)
        data = tuple(pixels(name, material=material, recipe=recipe) for name in spec.plants)
    else:
        model, data = material.learner, tuple(material.data(name, left_out=spec.left_out) for name in spec.plants)
    unseen = spec.left_out.plant if recipe.align and spec.left_out and spec.left_out.what == "plant" else None
    learned = AlignedData(data) if unseen else RunData(data)
    store, state = material.store, f"runs/{plan.plan_id}/{spec.run_id}/state.pt"
    known = known_plants(spec, fleet=material.fleet, plan=plan)
    taught_by = (*spec.plants, *known)
    fitted = fit(
        model,
        data=learned,
        leaf_sets=material.leaf_sets(taught_by),
        leaves=material.leaves(taught_by if recipe.replay else spec.plants),
        recipe=recipe,
        seed=spec.seed,
        known=RunData(tuple(material.data(name) for name in known)) if known else None,
        parent=_start(spec, material=material, plan=plan),
        world=world,
        checkpoints=Checkpoints(
            load=lambda: store.read(state) if store.exists(state) else None,
            save=lambda data: _write(store, state, data),
        ),
        compute=material.compute,
        on_epoch=on_epoch,
        on_part=on_part,
    )
    if unseen:
        fitted.notes += meet(fitted, sources=learned, plant=material.data(unseen))
    if world.rank == 0:
        material.save(fitted, spec=spec, plan=plan)
    return fitted


def known_plants(spec: RunSpec, *, fleet: Fleet, plan: Plan) -> tuple[str, ...]:
    """The plants that the run's parent learned from beside the run's own, and whose images the run may learn from.

    Of more than `MOST_PLANTS` those that follow its own in the order of names, round and round.
    """
    names = set(plan.run(spec.parent).plants if spec.parent else ()) - set(spec.plants)
    able = sorted(name for name in names if may_hold(fleet.plant(name), serves=spec.plants))
    first = bisect.bisect(able, spec.plants[0])
    return tuple([*able[first:], *able[:first]][:MOST_PLANTS])


def parent_of(run_id: str, *, material: Material, plan: Plan) -> Parent:
    """What a finished run of the plan left for others to start from."""
    words, start, _ = material.load(run_id, plan_id=plan.plan_id, what="start")
    taught_by = plan.learned_from([run_id])
    return Parent(cut=words["cut"], leaves=tuple(words["leaves"]), state=start, name=run_id, learned_from=taught_by)


def _start(spec: RunSpec, *, material: Material, plan: Plan) -> Parent | None:
    """What the run starts from: nothing, its parent's branch, or the mean of its parents' that were not refused."""
    if spec.start:
        plan_id, _, run_id = spec.start.partition("/")
        words, start, _ = material.load(run_id, plan_id=plan_id, what="start")
        given = {"name": spec.start, "is_itself": True, "learned_from": spec.plants}
        return Parent(cut=words["cut"], leaves=tuple(words["leaves"]), state=start, **given)
    found = []
    for run_id in spec.sources:
        words = material.store.read_json(f"runs/{plan.plan_id}/{run_id}/model.json")
        if words["donor"] and words["donor"]["refused"]:
            continue
        found.append(parent_of(run_id, material=material, plan=plan))
    if not spec.parents:
        return found[0] if found else None
    data = RunData(tuple(material.data(name) for name in spec.plants))
    recipe = Recipe.model_validate(spec.recipe)
    return mean_of(
        found, model=material.model, leaves=material.leaves(spec.plants), data=data, freeze_norm=recipe.freeze_norm
    )


def _write(store: Any, key: str, data: bytes) -> None:
    store.write(key, data)
