"""Trains a fleet: all runs of the plan in the lanes of one Ray Train run, which prepare the plants first."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster import session
from cluster.catalog import Catalog
from cluster.ledger import RunLedger, RunRecord
from cluster.retention import enforce
from cluster.settings import Settings
from cluster.storage import Store
from jobs.cautions import cautions, check_money
from jobs.leave_out import parse
from jobs.plan import Plan, make_plan, strategies
from jobs.recipe import Recipe
from jobs.tracking import Tracker
from plants import governance
from plants.balance import labelled_defects
from plants.errors import CheckFailed, InputError, NoSpace
from plants.plant import Fleet

if TYPE_CHECKING:
    from jobs.material import Material

Say = Callable[[Mapping[str, Any]], None]
Events = Sequence[list[dict[str, Any]]]
"""What a board has logged, and how far runs are."""
COMPARED = "reports/compare.json"
GROUP_START_TIMEOUT_S = 120
GROUP_STARTS = 3
MONEY = {"miss", "miss_by_class", "false_alarm", "defect_rate"}
"""The costs that a model learns by where its loss is `cost`: others are its policy's alone."""


@dataclass(frozen=True)
class Caps:
    """What a plan may take; None is no cap."""

    max_hours: float | None = None
    max_gb: float | None = None


@dataclass(frozen=True)
class Trained:
    """A plan with the records of its runs."""

    plan: Plan
    records: dict[str, RunRecord]
    seconds: float
    cost: dict[str, Any] = field(default_factory=dict)
    """What it was to cost, and under `took` what it did, once it has."""
    words: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the runs that began with another's weights say of themselves."""

    def to_json(self) -> dict[str, Any]:
        """`runs[] {name, kind, plants, state, seconds, select}`, the plan's id and what it cost."""
        rows = []
        for run in self.plan.runs:
            record = self.records[run.run_id]
            rows.append(
                {
                    "name": run.run_id,
                    "kind": run.kind,
                    "plants": list(run.plants),
                    "parent": run.parent,
                    "parents": list(run.parents),
                    "state": record.state,
                    "seconds": record.seconds,
                    "select": record.select,
                    "attempts": record.attempts,
                    "error": record.error,
                    "donor": self.words.get(run.run_id, {}).get("donor"),
                    "forgetting": self.words.get(run.run_id, {}).get("forgetting"),
                }
            )
        seconds = round(self.seconds, 2)
        return {
            "plan": self.plan.plan_id,
            "governance": self.plan.governance,
            "runs": rows,
            "seconds": seconds,
            "cost": self.cost,
        }

    @property
    def failed(self) -> list[str]:
        """The runs that failed."""
        return [run_id for run_id, record in self.records.items() if record.state == "failed"]


def latest_plan(store: Store) -> Plan:
    """The plan that was trained last. Raises InputError before the first."""
    try:
        plan_id = store.read_json("runs/latest.json")["plan"]
        return Plan.from_json(store.read_json(f"runs/{plan_id}/plan.json"))
    except FileNotFoundError:
        raise InputError("nothing has been trained", file=store.uri, remedy="Run `crossplant train` first") from None


def train_fleet(
    fleet: Fleet,
    *,
    settings: Settings,
    recipe: Recipe,
    seeds: Sequence[int] = (0,),
    leave_out: Sequence[str] = (),
    average: bool = False,
    retry_failed: bool = False,
    baselines: bool = False,
    trunk: int = 0,
    caps: Caps = Caps(),
    is_estimate: bool = False,
    is_by_data: bool = False,
    say: Say = lambda event: None,
) -> Trained:
    """Every run of the plan is done or failed. The same call after a kill goes on where it was.

    baselines: every plant has a run from scratch for every seed, and a classical model, beside the others.
    is_by_data: runs whose plants have too few labels train no stages, instead of training them and keeping what wins.
    is_estimate: nothing is trained, and nothing recorded; what it would cost is said.
    Raises InputError when a plant has not been imported, the recipe asks for a cut or adapters that the trunk does not
    allow or for a loss in money where there is none, or the plan would cost more than a cap or the disk has room for.
    """
    start = time.monotonic()
    if recipe.init == "random":
        raise InputError("the recipe starts from random weights", field="init", remedy="Use --baselines for such runs")
    check_money(recipe, plants=[plant for plant in fleet.plants if plant.may_train])
    allowed = fleet.trunks[trunk].cuts
    for stage in recipe.stages:
        if stage.cut not in allowed:
            remedy = f"Allowed cuts: {', '.join(map(str, allowed))}; add it to `trunks:` in the fleet's file"
            raise InputError(f"the recipe unfreezes down to cut {stage.cut}", field="stages", remedy=remedy)
    enforce(fleet, cache=settings.cache, home=settings.home, now=datetime.now(UTC))
    Catalog.of(fleet).require([plant.name for plant in fleet.plants])
    if settings.is_embedded and not is_estimate:
        _start_at_once(settings)
    from jobs.lora import check_adapters
    from jobs.material import Material

    material = Material(fleet, cache=settings.cache, cache_gb=settings.cache_gb, recipe=recipe, trunk=trunk)
    check_adapters(material.model, recipe=recipe)
    labelled = {p.name: labelled_defects(p, material.rows(p.name)) for p in fleet.plants} if is_by_data else None
    given: dict[str, Any] = {"leave_out": leave_out, "average": average, "baselines": baselines, "labelled": labelled}
    plan = planned(fleet, material=material, recipe=recipe, seeds=seeds, trunk=trunk, **given)
    material.recipe = plan.deepest
    notes = [*cautions(recipe), *(strategies(plan, labelled=labelled) if labelled is not None else [])]

    def work() -> None:
        session.start(settings, num_slots=settings.slots)
        run_lanes(plan, material=material, settings=settings, say=say)

    return carried_out(
        plan,
        material=material,
        settings=settings,
        work=work,
        retry_failed=retry_failed,
        caps=caps,
        is_estimate=is_estimate,
        notes=notes,
        began=start,
        say=say,
    )


def carried_out(
    plan: Plan,
    *,
    material: Material,
    settings: Settings,
    work: Callable[[], None],
    began: float,
    retry_failed: bool = False,
    caps: Caps = Caps(),
    is_estimate: bool = False,
    notes: Sequence[str] = (),
    say: Say = lambda event: None,
) -> Trained:
    """The plan after the work on those of its runs that were not over; it is the latest one.

    retry_failed: runs that failed before are tried again. notes: what to say of the plan. began: when the command did.
    Raises InputError as `train_fleet` does.
    """
    from jobs.budget import check, foreseen, written
    from jobs.estimate import words

    ledger = RunLedger(material.store, plan.plan_id)
    known = ledger.load()
    again = [record for record in known.values() if retry_failed and record.state == "failed"]
    known |= {record.run_id: RunRecord(run_id=record.run_id) for record in again}
    todo = [run for run in plan.runs if run.run_id not in known or not known[run.run_id].is_over]
    notes = [*governance.words(material.fleet.plants), *notes]
    say({"kind": "plan", "plan": plan.plan_id, "runs": len(plan.runs), "todo": len(todo), "notes": notes})
    if todo and not settings.is_embedded:
        session.start(settings, num_slots=settings.slots)
    lanes, gpu = _lanes(plan, settings=settings)
    expected = foreseen(plan, todo=todo, material=material, settings=settings, lanes=lanes, gpu=gpu)
    say({"kind": "cost", "words": words(expected)})
    check(expected, **vars(caps), material=material, settings=settings)
    cost, start = expected.to_json(), time.monotonic()
    if not is_estimate:
        _record(plan, ledger=ledger, again=[known[record.run_id] for record in again])
    if todo and not is_estimate:
        before = written(plan, material=material)
        work()
        after = {name: size - before[name] for name, size in written(plan, material=material).items()}
        cost["took"] = {"seconds": round(time.monotonic() - start, 1), **after}
    records = {run.run_id: RunRecord(run_id=run.run_id) for run in plan.runs} | ledger.load()
    begun = [run for run in plan.runs if run.sources or run.start]
    over = [run.run_id for run in begun if records[run.run_id].state in ("done", "refused")]
    keys = {run_id: f"runs/{plan.plan_id}/{run_id}/model.json" for run_id in over}
    said = {run_id: material.store.read_json(key) for run_id, key in keys.items() if material.store.exists(key)}
    return Trained(plan=plan, records=records, seconds=time.monotonic() - began, cost=cost, words=said)


def _record(plan: Plan, *, ledger: RunLedger, again: Sequence[RunRecord]) -> None:
    """The plan is the latest one, and these records of it are as they are given."""
    ledger.store.write_json(f"runs/{plan.plan_id}/plan.json", plan.to_json())
    ledger.store.write_json("runs/latest.json", {"plan": plan.plan_id})
    for record in again:
        ledger.put(record)


def _lanes(plan: Plan, *, settings: Settings) -> tuple[int, float]:
    """How many workers fit the plan's runs side by side, and the share of a GPU that each has."""
    import ray
    import torch

    here = {"CPU": settings.slots, "GPU": torch.cuda.device_count()}
    there = ray.cluster_resources() if ray.is_initialized() else here
    lanes = max(1, min(settings.slots, len(plan.runs), int(there.get("CPU", 1))))
    return lanes, math.floor(1e4 * min(1.0, there.get("GPU", 0) / lanes)) / 1e4


def _start_at_once(settings: Settings) -> None:
    """An embedded Ray starts, for which this process only waits, while what needs torch and timm is imported."""
    with ThreadPoolExecutor(1) as beside:
        imported = beside.submit(lambda: importlib.import_module("jobs.material"))
        session.start(settings, num_slots=settings.slots)
        imported.result()


def planned(
    fleet: Fleet,
    *,
    material: Material,
    recipe: Recipe,
    seeds: Sequence[int] = (0,),
    leave_out: Sequence[str] = (),
    average: bool = False,
    baselines: bool = False,
    trunk: int = 0,
    labelled: Mapping[str, Mapping[str, int]] | None = None,
) -> Plan:
    """The plan for the fleet's data, and all else that a model is made from, as they are now.

    labelled: as `make_plan` takes it.
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
    model, trunk_words = material.model, material.trunk.model_dump(mode="json")
    learned: list[Any] = [trunk_words, model.weights_digest, model.interpolation, shapes, fleet.seed]
    learned += [{"streamed": material.streamed}] if material.streamed else []
    if baselines:
        from jobs.classical import WAY as HAND_MADE

        learned.append(HAND_MADE)
    words = hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()
    digest = f"{material.catalog.data_digest(names)}|{words}"
    for text in leave_out:
        out = parse(text, fleet=fleet)
        out.check(material.rows(out.plant))
    from_scratch = None
    if baselines:
        from jobs.scratch import deepest_cut, scratch_recipe

        from_scratch = functools.partial(scratch_recipe, recipe, cut=deepest_cut(material.model))
    plan = make_plan(
        fleet,
        recipe=recipe,
        data_digest=digest,
        train_parts=train_parts,
        train_defects=train_defects,
        seeds=seeds,
        leave_out=leave_out,
        average=average,
        trunk=trunk,
        data={name: material.catalog.snapshot(name) for name in names},
        labelled=labelled,
        from_scratch=from_scratch,
    )
    if not plan.runs:
        raise InputError("no plant has training parts", remedy="Import labelled images and see `crossplant audit`")
    return plan


def run_lanes(plan: Plan, *, material: Material, settings: Settings, say: Say) -> None:
    """All runs of the plan are over.

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
    lanes, shared_gpu = _lanes(plan, settings=settings)
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


class Watch:
    """Polls the board while others work: progress to the terminal, metrics to MLflow."""

    def __init__(
        self, events: Callable[[int], Events], *, plan: Plan, settings: Settings, store: Store, say: Say
    ) -> None:
        """events: what the board has logged since an event's number, and how far runs are within their epochs."""
        self.events, self.plan, self.settings, self.store, self.say = events, plan, settings, store, say
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join(timeout=60)

    def words(self, run_id: str) -> dict[str, Any]:
        """What a finished run says of itself."""
        found: dict[str, Any] = self.store.read_json(f"runs/{self.plan.plan_id}/{run_id}/model.json")
        return found

    def _loop(self) -> None:
        tracker = Tracker(self.settings, plan=self.plan, words=self.words)
        seen, is_last = 0, False
        while not is_last:
            is_last = self.stop.wait(0.5)
            try:
                events, parts = self.events(seen)
            except Exception:
                continue
            seen += len(events)
            for event in [*events, *parts]:
                self.say(event)
            tracker.log(events)
