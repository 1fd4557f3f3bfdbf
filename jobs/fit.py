"""One run of a plan: from what it starts from to its model in storage."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable
from typing import Any

from cluster.storage import Store
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
from jobs.supervision import Supervision
from jobs.tasks import better, head_of, num_labelled
from jobs.train import Checkpoints, Fitted, World, fit
from plants.governance import may_hold
from plants.plant import Fleet
from plants.severity import FEWEST


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
    learn = functools.partial(
        fit,
        model,
        data=learned,
        leaf_sets=material.leaf_sets(taught_by),
        leaves=material.leaves(taught_by if recipe.replay else spec.plants),
        seed=spec.seed,
        known=RunData(tuple(material.data(name) for name in known)) if known else None,
        parent=_start(spec, material=material, plan=plan),
        world=world,
        compute=material.compute,
        on_epoch=on_epoch,
        on_part=on_part,
    )
    fitted = learn(recipe=recipe.without_tasks, checkpoints=_kept(store, state))
    learns = any(stage.epochs for stage in recipe.stages)
    if recipe.tasks and learns and spec.left_out is None and not fitted.is_refused:
        fitted = _with_task(fitted, functools.partial(learn, checkpoints=_kept(store, f"{state}.task")), recipe=recipe)
    if unseen:
        fitted.notes += meet(fitted, sources=learned, plant=material.data(unseen))
    if world.rank == 0:
        if not fitted.is_refused and spec.left_out is None:
            branch = model.new_branch(fitted.cut, fitted.leaves)
            branch.load_state(fitted.state)
            fitted.severity = head_of(branch, cut=fitted.cut, data=learned)
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
        return Parent(cut=words["cut"], leaves=tuple(words["leaves"]), state=start, name=spec.start, is_itself=True)
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


def _kept(store: Store, key: str) -> Checkpoints:
    """A run's state under this key."""

    def save(data: bytes) -> None:
        store.write(key, data)

    return Checkpoints(load=lambda: store.read(key) if store.exists(key) else None, save=save)


def _with_task(alone: Fitted, learn: functools.partial[Fitted], *, recipe: Recipe) -> Fitted:
    """The run as it is with the recipe's task where that pays, else as it is without."""
    given = learn.keywords
    data = given["data"]
    if (num := num_labelled(data)) < FEWEST:
        alone.notes.append(f"severity as a task: {num} training rows have one, fewer than {FEWEST}")
        return alone
    joint = learn(recipe=recipe)
    taught = Supervision(data, leaf_sets=given["leaf_sets"], leaves=given["leaves"], max_class_weight=1)
    fitted, found = better(alone, joint, model=learn.args[0], taught=taught)
    fitted.task = found
    fitted.notes.append(found["words"])
    return fitted
