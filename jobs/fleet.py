"""Trains a fleet: all runs of the plan in lanes, which prepare the plants first.

On a cluster, and where all lanes fit a run together, they are the workers of one Ray Train run; on one machine forks of
this process (`jobs.forked`), which take a tenth of the time to start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster import session
from cluster.catalog import Catalog
from cluster.retention import enforce
from cluster.settings import Settings
from jobs.carry_out import Caps, Say, Trained, carried_out, lanes_of
from jobs.cautions import cautions, check_money
from jobs.forked import is_forked, run_forked, warm_up
from jobs.leave_out import named
from jobs.plan import Plan, make_plan, strategies
from jobs.recipe import Recipe
from jobs.watch import Events, Watch
from plants.balance import labelled_defects
from plants.errors import CheckFailed, InputError, NoSpace
from plants.plant import Fleet

if TYPE_CHECKING:
    from jobs.material import Material

COMPARED = "reports/compare.json"
GROUP_START_TIMEOUT_S = 120
GROUP_STARTS = 3
MONEY = {"miss", "miss_by_class", "false_alarm", "defect_rate"}
"""The costs that a model learns by where its loss is `cost`: others are its policy's alone."""


def train_fleet(
    fleet: Fleet,
    *,
    settings: Settings,
    recipe: Recipe,
    seeds: Sequence[int] = (0,),
    leave_out: Sequence[str] = (),
    average: bool = False,
    donors: Mapping[str, str] | None = None,
    retry_failed: bool = False,
    baselines: bool = False,
    trunk: int = 0,
    caps: Caps = Caps(),
    is_estimate: bool = False,
    is_by_data: bool = False,
    say: Say = lambda event: None,
) -> Trained:
    """Every run of the plan is done or failed. The same call after a kill goes on where it was.

    donors: plant -> the sister to start from, as `make_plan` takes it.
    baselines: every plant has a run from scratch for every seed, and a classical model, beside the others.
    is_by_data: runs whose plants have too few labels train no stages, instead of training them and keeping what wins.
    is_estimate: nothing is trained, and nothing recorded; what it would cost is said.
    Raises InputError when a plant has not been imported, the recipe asks for a cut or adapters that the trunk does not
    allow or for a loss in money where there is none, or the plan would cost more than a cap or the disk has room for.
    """
    start = time.monotonic()
    _check_recipe(recipe, fleet=fleet, allowed=fleet.trunks[trunk].cuts)
    enforce(fleet, cache=settings.cache, home=settings.home, now=datetime.now(UTC))
    Catalog.of(fleet).require([plant.name for plant in fleet.plants])
    if settings.is_embedded and not is_estimate:
        warm_up()
    from jobs.lora import check_adapters
    from jobs.material import Material

    material = Material(fleet, cache=settings.cache, cache_gb=settings.cache_gb, recipe=recipe, trunk=trunk)
    check_adapters(material.model, recipe=recipe)
    labelled = {p.name: labelled_defects(p, material.rows(p.name)) for p in fleet.plants} if is_by_data else None
    given: dict[str, Any] = {"leave_out": leave_out, "average": average, "baselines": baselines, "labelled": labelled}
    given |= {"donors": donors}
    plan = planned(fleet, material=material, recipe=recipe, seeds=seeds, trunk=trunk, **given)
    material.recipe = plan.deepest
    notes = [*cautions(recipe), *(strategies(plan, labelled=labelled) if labelled is not None else [])]

    return carried_out(
        plan,
        material=material,
        settings=settings,
        work=lambda: run_plan(plan, material=material, settings=settings, say=say),
        retry_failed=retry_failed,
        caps=caps,
        is_estimate=is_estimate,
        notes=notes,
        began=start,
        say=say,
    )


def planned(
    fleet: Fleet,
    *,
    material: Material,
    recipe: Recipe,
    seeds: Sequence[int] = (0,),
    leave_out: Sequence[str] = (),
    average: bool = False,
    donors: Mapping[str, str] | None = None,
    baselines: bool = False,
    trunk: int = 0,
    labelled: Mapping[str, Mapping[str, int]] | None = None,
) -> Plan:
    """The plan for the fleet's data, and all else that a model is made from, as they are now.

    labelled, donors: as `make_plan` takes them.
    """
    names = [plant.name for plant in fleet.plants]
    train_parts, train_defects = {}, {}
    for name in names:
        rows = material.rows(name)
        rows = rows[rows["role"] == "train"]
        train_parts[name] = int(rows["part_id"].nunique())
        train_defects[name] = int(rows.loc[rows["class"].isin(fleet.plant(name).defects), "part_id"].nunique())
    shapes = {p.name: p.model_dump(mode="json", include={"classes", "ok", "environments"}) for p in fleet.plants}
    if recipe.loss == "cost":
        shapes = {
            p.name: {**shapes[p.name], "costs": p.costs.model_dump(mode="json", include=MONEY)} for p in fleet.plants
        }
    for out in named(leave_out, fleet=fleet):
        out.check(material.rows(out.plant))
    made_from: list[Any] = [shapes, fleet.seed]
    from_scratch = None
    if baselines:
        from jobs.classical import WAY as HAND_MADE
        from jobs.scratch import deepest_cut, scratch_recipe

        made_from.append(HAND_MADE)
        from_scratch = functools.partial(scratch_recipe, recipe, cut=deepest_cut(material.model))
    plan = make_plan(
        fleet,
        recipe=recipe,
        data_digest=_digest(material, names=names, made_from=made_from),
        train_parts=train_parts,
        train_defects=train_defects,
        seeds=seeds,
        leave_out=leave_out,
        average=average,
        donors=donors,
        trunk=trunk,
        data={name: material.catalog.snapshot(name) for name in names},
        labelled=labelled,
        from_scratch=from_scratch,
    )
    if not plan.runs:
        raise InputError("no plant has training parts", remedy="Import labelled images and see `crossplant audit`")
    return plan


def _digest(material: Material, *, names: Sequence[str], made_from: Sequence[Any]) -> str:
    """Of the plants' data, and of all else that a model is made from beside its recipe and seed."""
    model = material.model
    words = [material.trunk.model_dump(mode="json"), model.weights_digest, model.interpolation, *made_from]
    words += [{"streamed": material.streamed}] if material.streamed else []
    found = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    return f"{material.catalog.data_digest(names)}|{found}"


def _check_recipe(recipe: Recipe, *, fleet: Fleet, allowed: Sequence[int]) -> None:
    if recipe.init == "random":
        raise InputError("the recipe starts from random weights", field="init", remedy="Use --baselines for such runs")
    check_money(recipe, plants=[plant for plant in fleet.plants if plant.may_train])
    for stage in recipe.stages:
        if stage.cut not in allowed:
            remedy = f"Allowed cuts: {', '.join(map(str, allowed))}; add it to `trunks:` in the fleet's file"
            raise InputError(f"the recipe unfreezes down to cut {stage.cut}", field="stages", remedy=remedy)


def run_plan(plan: Plan, *, material: Material, settings: Settings, say: Say) -> None:
    """All runs of the plan are over, in lanes forked here or in those of one Ray Train run.

    Raises CheckFailed where lanes cannot be kept at work, NoSpace where a disk is full.
    """
    if is_forked(plan, settings=settings):
        run_forked(plan, material=material, settings=settings, say=say)
    else:
        session.start(settings, num_slots=settings.slots)
        run_lanes(plan, material=material, settings=settings, say=say)


def run_lanes(plan: Plan, *, material: Material, settings: Settings, say: Say) -> None:
    """All runs of the plan are over, as one Ray Train run.

    A worker that dies in mid-lane is replaced by Ray Train; one that dies while its group forms ends Ray Train's
    controller, so that a new one is started, at most `GROUP_STARTS` in all. Raises CheckFailed when none came up.
    """
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.blame import Blame
    from jobs.lanes import Board, lane_loop

    name = f"{plan.plan_id}-{uuid.uuid4().hex[:6]}"
    order = material.largest_first([plant.name for plant in material.fleet.plants])
    board = ray.remote(num_cpus=0)(Board).options(name=name).remote(plan.to_json(), material.fleet.store, order)
    lanes, shared_gpu = lanes_of(plan, settings=settings)
    resources = {"CPU": 1, **({"GPU": shared_gpu} if shared_gpu else {})}
    config = {**material.to_config(), "plan": plan.to_json(), "board": name, "threads": settings.threads}
    failures = FailureConfig(max_failures=2 * len(plan.runs), controller_failure_limit=0)
    folder = _train_folder(material.fleet.store, settings=settings)

    def events(since: int) -> Events:
        found: Events = ray.get([board.events.remote(since), board.within.remote()], timeout=30)
        return found

    with _environment(settings), Watch(events, plan=plan, settings=settings, store=material.store, say=say):
        for start in range(1, GROUP_STARTS + 1):
            trainer = TorchTrainer(
                lane_loop,
                train_loop_config=config,
                torch_config=TorchConfig(backend="gloo", timeout_s=600),
                scaling_config=ScalingConfig(num_workers=lanes, use_gpu=shared_gpu > 0, resources_per_worker=resources),
                run_config=RunConfig(
                    name=f"{name}-{start}", storage_path=folder, failure_config=failures, callbacks=[Blame(name)]
                ),
            )
            try:
                trainer.fit()
                break
            except TrainingFailedError as error:
                cause = " ".join(str(error).split())[:400]
                if start == GROUP_STARTS or not isinstance(error, ControllerError):
                    again = "The same command goes on where this one was"
                    raise CheckFailed(f"{lanes} workers could not be kept at work: {cause}. {again}") from None
                say({"kind": "regroup", "workers": lanes, "error": cause})
    halted = ray.get(board.why_halted.remote())
    ray.kill(board)
    if halted:
        raise NoSpace(halted)


@contextlib.contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Ray Train's own settings, where nobody has made them, for the length of a block.

    An embedded Ray is never drained of its only node, so that no process of its own needs to watch for that.
    """
    ours = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(GROUP_START_TIMEOUT_S),
        **({"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if settings.is_embedded else {}),
    }
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _train_folder(store: str, *, settings: Settings) -> str:
    """Ray Train's own folder: beside the store on a cluster, under home otherwise. Our state is not in it."""
    return f"{store}/ray" if "://" in store else str(settings.home / "ray_train")
