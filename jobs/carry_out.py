"""A plan is carried out: what it costs is said and held against caps, it is recorded, and what is not over is done.

How it is done, in lanes of Ray or in forks of this process, is the caller's (`jobs.fleet.run_plan`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster import session
from cluster.ledger import RunLedger, RunRecord
from cluster.settings import Settings
from cluster.storage import Store
from jobs.plan import Plan
from plants import governance
from plants.errors import InputError

if TYPE_CHECKING:
    from jobs.material import Material

Say = Callable[[Mapping[str, Any]], None]


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
                    "task": self.words.get(run.run_id, {}).get("task"),
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
    lanes, gpu = lanes_of(plan, settings=settings)
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


def lanes_of(plan: Plan, *, settings: Settings) -> tuple[int, float]:
    """How many workers fit the plan's runs side by side, and the share of a GPU that each has."""
    import torch

    here = {"CPU": settings.slots, "GPU": torch.cuda.device_count()}
    there = session.resources() or here
    lanes = max(1, min(settings.slots, len(plan.runs), int(there.get("CPU", 1))))
    return lanes, math.floor(1e4 * min(1.0, there.get("GPU", 0) / lanes)) / 1e4
