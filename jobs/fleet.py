"""Trains a fleet: all runs of the plan in the lanes of one Ray Train run, which prepare the plants first."""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster import session
from cluster.catalog import Catalog
from cluster.ledger import RunLedger, RunRecord
from cluster.retention import enforce
from cluster.settings import Settings
from jobs.leave_out import parse
from jobs.plan import Plan, make_plan
from jobs.recipe import Recipe
from jobs.tracking import Tracker
from plants import governance
from plants.errors import CheckFailed, InputError
from plants.plant import Fleet

if TYPE_CHECKING:
    from jobs.material import Material

Say = Callable[[Mapping[str, Any]], None]
GROUP_START_TIMEOUT_S = 120
GROUP_STARTS = 3


@dataclass(frozen=True)
class Trained:
    """A plan with the records of its runs."""

    plan: Plan
    records: dict[str, RunRecord]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """`runs[] {name, kind, plants, state, seconds, select}` and the plan's id."""
        rows = []
        for run in self.plan.runs:
            record = self.records[run.run_id]
            rows.append(
                {
                    "name": run.run_id,
                    "kind": run.kind,
                    "plants": list(run.plants),
                    "parent": run.parent,
                    "state": record.state,
                    "seconds": record.seconds,
                    "select": record.select,
                    "attempts": record.attempts,
                    "error": record.error,
                }
            )
        seconds = round(self.seconds, 2)
        return {"plan": self.plan.plan_id, "governance": self.plan.governance, "runs": rows, "seconds": seconds}

    @property
    def failed(self) -> list[str]:
        """The runs that failed."""
        return [run_id for run_id, record in self.records.items() if record.state == "failed"]


def train_fleet(
    fleet: Fleet,
    *,
    settings: Settings,
    recipe: Recipe,
    seeds: Sequence[int] = (0,),
    leave_out: Sequence[str] = (),
    retry_failed: bool = False,
    trunk: int = 0,
    say: Say = lambda event: None,
) -> Trained:
    """Every run of the plan is done or failed. The same call after a kill goes on where it was.

    Raises InputError when a plant has not been imported, or the recipe asks for a cut or for adapters that the trunk
    does not allow.
    """
    start = time.monotonic()
    allowed = fleet.trunks[trunk].cuts
    for stage in recipe.stages:
        if stage.cut not in allowed:
            remedy = f"Allowed cuts: {', '.join(map(str, allowed))}; add it to `trunks:` in the fleet's file"
            raise InputError(f"the recipe unfreezes down to cut {stage.cut}", field="stages", remedy=remedy)
    enforce(fleet, cache=settings.cache, home=settings.home, now=datetime.now(UTC))
    Catalog.of(fleet).require([plant.name for plant in fleet.plants])
    if settings.is_embedded:
        _start_at_once(settings)
    from jobs.lora import check_adapters
    from jobs.material import Material

    material = Material(fleet, cache=settings.cache, recipe=recipe, trunk=trunk)
    check_adapters(material.model, recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, seeds=seeds, leave_out=leave_out, trunk=trunk)
    material.store.write_json(f"runs/{plan.plan_id}/plan.json", plan.to_json())
    material.store.write_json("runs/latest.json", {"plan": plan.plan_id})
    ledger = RunLedger(material.store, plan.plan_id)
    if retry_failed:
        for record in ledger.load().values():
            if record.state == "failed":
                ledger.put(RunRecord(run_id=record.run_id))
    known = ledger.load()
    todo = [run for run in plan.runs if run.run_id not in known or not known[run.run_id].is_over]
    notes = governance.words(fleet.plants)
    say({"kind": "plan", "plan": plan.plan_id, "runs": len(plan.runs), "todo": len(todo), "notes": notes})
    if todo:
        session.start(settings, num_slots=settings.slots)
        material.export_trunk_once()
        _run_lanes(plan, material=material, settings=settings, say=say)
    records = {run.run_id: RunRecord(run_id=run.run_id) for run in plan.runs} | ledger.load()
    return Trained(plan=plan, records=records, seconds=time.monotonic() - start)


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
    trunk: int = 0,
) -> Plan:
    """The plan for the fleet's data, and all else that a model is made from, as they are now."""
    names = [plant.name for plant in fleet.plants]
    train_parts, train_defects = {}, {}
    for name in names:
        rows = material.rows(name)
        rows = rows[rows["role"] == "train"]
        train_parts[name] = int(rows["part_id"].nunique())
        train_defects[name] = int(rows.loc[rows["class"].isin(fleet.plant(name).defects), "part_id"].nunique())
    shapes = {p.name: p.model_dump(mode="json", include={"classes", "ok", "environments"}) for p in fleet.plants}
    model, trunk_words = material.model, material.trunk.model_dump(mode="json")
    learned = [trunk_words, model.weights_digest, model.interpolation, shapes, fleet.seed]
    words = hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()
    digest = f"{material.catalog.data_digest(names)}|{words}"
    for text in leave_out:
        out = parse(text, fleet=fleet)
        out.check(material.rows(out.plant))
    plan = make_plan(
        fleet,
        recipe=recipe,
        data_digest=digest,
        train_parts=train_parts,
        train_defects=train_defects,
        seeds=seeds,
        leave_out=leave_out,
        trunk=trunk,
        data={name: material.catalog.snapshot(name) for name in names},
    )
    if not plan.runs:
        raise InputError("no plant has training parts", remedy="Import labelled images and see `crossplant audit`")
    return plan


def _run_lanes(plan: Plan, *, material: Material, settings: Settings, say: Say) -> None:
    """All runs of the plan are over.

    A worker that dies in mid-lane is replaced by Ray Train; one that dies while its group forms ends Ray Train's
    controller, so that a new one is started, at most `GROUP_STARTS` in all. Raises CheckFailed when none came up.
    """
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.lanes import Blame, Board, lane_loop

    name = f"{plan.plan_id}-{uuid.uuid4().hex[:6]}"
    order = material.largest_first([plant.name for plant in material.fleet.plants])
    board = ray.remote(num_cpus=0)(Board).options(name=name).remote(plan.to_json(), material.fleet.store, order)
    there = ray.cluster_resources()
    lanes = max(1, min(settings.slots, len(plan.runs), int(there.get("CPU", 1))))
    shared_gpu = math.floor(1e4 * min(1.0, there.get("GPU", 0) / lanes)) / 1e4
    resources = {"CPU": 1, **({"GPU": shared_gpu} if shared_gpu else {})}
    config = {**material.to_config(), "plan": plan.to_json(), "board": name, "threads": settings.threads}
    failures = FailureConfig(max_failures=2 * len(plan.runs), controller_failure_limit=0)
    folder = _train_folder(material.fleet.store, settings=settings)
    with _environment(settings), _Watch(board, plan=plan, settings=settings, say=say):
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
    ray.kill(board)


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


class _Watch:
    """Polls the board while the trainer blocks: progress to the terminal, metrics to MLflow."""

    def __init__(self, board: Any, *, plan: Plan, settings: Settings, say: Say) -> None:
        self.board, self.plan, self.settings, self.say = board, plan, settings, say
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join(timeout=60)

    def _loop(self) -> None:
        import ray

        tracker, seen, is_last = Tracker(self.settings, plan=self.plan), 0, False
        while not is_last:
            is_last = self.stop.wait(0.5)
            try:
                events = ray.get(self.board.events.remote(seen), timeout=30)
            except Exception:
                continue
            seen += len(events)
            for event in events:
                self.say(event)
            tracker.log(events)
