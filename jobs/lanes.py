"""Lanes: workers of one Ray Train run, or forks (`jobs.forked`), each taking runs from the plan until none is left.

The board knows what runs and what is next; the run ledger in storage, not the board, is what survives the driver.
First the lanes prepare the plants, one each at a time; then, where there are runs that are too long for one lane
(`Plan.shared`), all workers fit these together, by DDP; afterwards every worker is a lane.
"""

from __future__ import annotations

import time
import traceback
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster import ledger
from cluster.ledger import RunLedger, RunRecord
from cluster.storage import open_store
from jobs.plan import Plan, RunSpec
from plants.errors import InputError, NoSpace, Notice

PUT_EVERY_S = 5.0
"""How old a run's progress in storage may be: it tells a driver that was killed from a run that never gets on."""
ALL_LANES = "all"
"""The lane of a run that all workers fit together."""


class Board:
    """Which run is next for which lane. There is one; it alone writes the run ledger."""

    def __init__(self, plan: dict[str, Any], store_uri: str, order: Sequence[str] = ()) -> None:
        """order: plants in the order in which they are to be prepared, the others after them."""
        self.plan = Plan.from_json(plan)
        self.sizes: dict[str, int] = {}
        """Rows of each prepared plant, so that long runs start first and no lane ends long after the others."""
        self.ledger = RunLedger(open_store(store_uri), self.plan.plan_id)
        known = self.ledger.load()
        self.records = {run.run_id: known.get(run.run_id, RunRecord(run_id=run.run_id)) for run in self.plan.runs}
        self.lost = {run_id for run_id, record in self.records.items() if record.state == "running"}
        todo = [run for run in self.plan.runs if not self.records[run.run_id].is_over]
        needed = self.plan.learned_from(run.run_id for run in todo)
        self.unprepared = [name for name in dict.fromkeys([*order, *needed]) if name in needed]
        self.preparing: dict[str, int] = {}
        self.deaths: Counter[str] = Counter()
        self.tokens: dict[int, str] = {}
        self.together: frozenset[str] = frozenset()
        self.put_at: dict[str, float] = {}
        self.log: list[dict[str, Any]] = []
        self.parts: dict[str, dict[str, Any]] = {}
        """How far each run is within its epoch: the last word only, as a long plan would have too many."""
        self.halted: str | None = None

    def enter(self, lane: int, *, token: str, num_lanes: int, size: int | None = None) -> None:
        """A worker has started: what its predecessor, or a lane that is no more, was at is free again.

        size: of the process group that fits shared runs; all lanes when absent.
        """
        self.together = self.plan.shared(lanes=num_lanes if size is None else size)
        gone = {str(n) for n in self.tokens if n >= num_lanes}
        if self.tokens.get(lane, token) != token:
            gone |= {str(lane), ALL_LANES}
        self.tokens[lane] = token
        self.unprepared += [name for name, at in self.preparing.items() if str(at) in gone]
        self.preparing = {name: at for name, at in self.preparing.items() if str(at) not in gone}
        lost = {r.run_id for r in self.records.values() if r.state == "running" and r.lane in gone} - self.lost
        for run_id in sorted(lost):
            self._say("lost", run_id)
        self.lost |= lost

    def blame(self, deaths: Mapping[int, str]) -> None:
        """These lanes' workers have died: a strike for the runs they were at, and not for their neighbours'.

        A plant that kills two workers in preparation is left to its runs, which it will strike out.
        """
        self.deaths.update(name for name, lane in self.preparing.items() if lane in deaths)
        self.preparing = {name: lane for name, lane in self.preparing.items() if self.deaths[name] < ledger.STRIKES}
        for record in list(self.records.values()):
            lane = min(deaths) if record.lane == ALL_LANES else int(record.lane or -1)
            if record.state == "running" and record.run_id not in self.lost and lane in deaths:
                self.strike(record.run_id, f"its worker ({lane}) died: {deaths[lane]}", seconds=0.0)

    def prepare(self, lane: int) -> dict[str, Any]:
        """The next plant for a lane: {"do": "prepare", "plant": ...}, or "go".

        Where runs are fitted `together`, which is the same for all lanes, it is to "wait" for the others first.
        """
        if self.unprepared:
            name = self.unprepared.pop(0)
            self.preparing[name] = lane
            return {"do": "prepare", "plant": name}
        together = any(not self.records[run_id].is_over for run_id in self.together)
        return {"do": "wait"} if together and self.preparing else {"do": "go", "together": together}

    def prepared(self, plant: str, *, rows: int, seconds: float, num_made: int = 0, error: str | None = None) -> None:
        """A plant's inputs are in the cache, or cannot be had: then its runs will fail one by one with the cause.

        num_made: views whose activations were not there before. What they took is on record, for `jobs.transfer`.
        """
        if num_made:
            try:
                self.ledger.add_preparation(plant, seconds=seconds)
            except NoSpace as full:
                self.halt(str(full))
        self.preparing.pop(plant, None)
        self.sizes[plant] = rows
        event = {"kind": "prepared", "plant": plant, "rows": rows, "seconds": seconds, "error": error}
        self.log.append({**event, "at": time.time()})

    def note(self, text: str) -> None:
        """A lane has something to say that stops nothing."""
        self.log.append({"kind": "note", "text": text, "at": time.time()})

    def halt(self, error: str) -> None:
        """No lane takes anything more: the same command goes on later."""
        self.halted = self.halted or error
        self.unprepared, self.preparing = [], {}

    def why_halted(self) -> str | None:
        """Why the plan was given up for now, None where it was not."""
        return self.halted

    def shared(self) -> list[str]:
        """Shared runs that are not finished, in the order of the plan."""
        waiting = [run.run_id for run in self.plan.runs if not (self.halted or self.records[run.run_id].is_over)]
        return [run_id for run_id in waiting if run_id in self.together]

    def start(self, run_id: str, *, lane: str) -> None:
        """Lease a run to a lane."""
        record = self._put(ledger.begin(self.records[run_id], lane=lane))
        self.lost.discard(run_id)
        self._say("started", run_id, lane=lane, attempts=record.attempts)

    def take(self, lane: int) -> dict[str, Any]:
        """The next run for a lane: {"do": "run", "run_id": ...}, or "wait" for a parent or a plant, or "stop"."""
        if self.halted:
            return {"do": "stop"}
        self._close_orphans()
        parents = {parent for run in self.plan.runs for parent in run.sources}
        free = [run for run in self.plan.runs if run.run_id not in self.together and self._is_free(run.run_id)]
        ready = [run for run in free if all(self.records[parent].is_over for parent in run.sources)]
        ready = [run for run in ready if not self.preparing.keys() & set(self.plan.learned_from([run.run_id]))]

        def rank(run: RunSpec) -> tuple[bool, bool, int]:
            return run.run_id not in parents, run.kind != "scratch", -sum(self.sizes.get(p, 0) for p in run.plants)

        for run in sorted(ready, key=rank):
            self.start(run.run_id, lane=str(lane))
            return {"do": "run", "run_id": run.run_id}
        return {"do": "wait" if free else "stop"}

    def epoch(self, run_id: str, row: dict[str, Any]) -> None:
        """A run has come one epoch further."""
        reached = int(row.get("stage", 0)) * 1000 + int(row.get("epoch", 0))
        self.records[run_id] = ledger.advance(self.records[run_id], epoch=reached)
        if time.monotonic() - self.put_at.get(run_id, float("-inf")) >= PUT_EVERY_S:
            self.put_at[run_id] = time.monotonic()
            self.ledger.put(self.records[run_id])
        self._say("epoch", run_id, **row)
        self.parts.pop(run_id, None)

    def part(self, run_id: str, row: dict[str, Any]) -> None:
        """A run has come some way within an epoch."""
        self.parts[run_id] = {"kind": "part", "run_id": run_id, "at": time.time(), **row}

    def done(self, run_id: str, *, seconds: float, select: float | None) -> None:
        """A run is finished and its model is in storage."""
        self._put(ledger.finish(self.records[run_id], select=select, seconds=seconds))
        self._say("done", run_id, seconds=seconds, select=select)

    def refuse(self, run_id: str, why: str, *, seconds: float) -> None:
        """What a run was to start from would have made it worse: nothing is built on it, here or by its children."""
        self._put(ledger.refuse(self.records[run_id], why=why, seconds=seconds))
        self._say("refused", run_id, error=why)

    def strike(self, run_id: str, error: str, *, seconds: float) -> None:
        """A run raised: it is tried once more, then failed with its cause."""
        record = self._put(ledger.strike(self.records[run_id], error=error, seconds=seconds))
        self._say("failed" if record.state == "failed" else "strike", run_id, error=record.error)

    def events(self, since: int) -> list[dict[str, Any]]:
        """What happened after event number `since`."""
        return self.log[since:]

    def within(self) -> list[dict[str, Any]]:
        """How far runs are within their epochs, those that have said so."""
        return [row for run_id, row in self.parts.items() if self.records[run_id].state == "running"]

    def _is_free(self, run_id: str) -> bool:
        return self.records[run_id].state == "waiting" or run_id in self.lost

    def _close_orphans(self) -> None:
        """A run fails with a parent; it is refused with its donor, or where fewer than two are left of several."""
        for run in self.plan.runs:
            if self.records[run.run_id].is_over:
                continue
            states = {parent: self.records[parent].state for parent in run.sources}
            failed = [parent for parent, state in states.items() if state == "failed"]
            refused = [parent for parent, state in states.items() if state == "refused"]
            if failed:
                error = f"its parent {failed[0]} failed"
                self._put(ledger.fail(self.records[run.run_id], error=error))
                self._say("failed", run.run_id, error=error)
            elif refused and len(states) - len(refused) < 2:
                self.refuse(run.run_id, f"its parent {refused[0]} was refused", seconds=0.0)

    def _put(self, record: RunRecord) -> RunRecord:
        self.records[record.run_id] = record
        try:
            self.ledger.put(record)
        except NoSpace as error:
            self.halt(str(error))
        return record

    def _say(self, kind: str, run_id: str, **more: Any) -> None:
        self.log.append({"kind": kind, "run_id": run_id, "at": time.time(), **more})


def lane_loop(config: dict[str, Any]) -> None:
    """The train function of every worker of Ray Train: a lane of the board that the config names."""
    import ray
    import ray.train

    import jobs.imported  # noqa: F401
    from jobs.material import Material

    context = ray.train.get_context()
    size = context.get_world_size()
    lane_of(
        _caller(ray.get_actor(config["board"])),
        rank=context.get_world_rank(),
        num_lanes=size,
        size=size,
        plan=Plan.from_json(config["plan"]),
        material=Material.from_config(config),
        threads=config["threads"],
    )


def lane_of(
    call: Callable[..., Any], *, rank: int, num_lanes: int, size: int, plan: Plan, material: Any, threads: int
) -> None:
    """Plants are prepared, the shared runs fitted together, then runs of its own until none is left.

    call: asks the board. size: of the process group that fits shared runs; of 1, no run is shared.
    """
    import torch

    from jobs.train import World

    torch.set_num_threads(threads)
    call("enter", rank, token=uuid.uuid4().hex, num_lanes=num_lanes, size=size)
    warnings.showwarning = lambda message, *place, **more: (
        call("note", str(message)) if isinstance(message, Notice) else None
    )
    while (answer := call("prepare", rank))["do"] != "go":
        if answer["do"] == "wait":
            time.sleep(0.05)
        else:
            _prepare(answer["plant"], material=material, call=call)
    while answer["together"] and (shared := _agreed(call("shared") if rank == 0 else None, size=size)):
        for run_id in shared:
            if rank == 0:
                call("start", run_id, lane=ALL_LANES)
            _work(plan.run(run_id), material=material, plan=plan, call=call, world=World(rank=rank, size=size))
    while True:
        answer = call("take", rank)
        if answer["do"] == "stop":
            break
        if answer["do"] == "wait":
            time.sleep(0.1)
            continue
        _work(plan.run(answer["run_id"]), material=material, plan=plan, call=call, world=World())


def _agreed(value: Any, *, size: int) -> Any:
    """What the first worker says, on every worker."""
    if size == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _caller(board: Any) -> Callable[..., Any]:
    import ray

    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        return ray.get(getattr(board, method).remote(*args, **kwargs), timeout=120)

    return call


def _prepare(name: str, *, material: Any, call: Callable[..., Any]) -> None:
    start, rows, cause = time.monotonic(), 0, None
    made: list[int] = []
    try:
        rows = len(material.data(name, progress=lambda view, of: made.append(view)).rows)
    except NoSpace as error:
        cause = str(error)
        call("halt", cause)
    except Exception as error:
        cause = _cause(error)
    call("prepared", name, rows=rows, seconds=time.monotonic() - start, num_made=len(made), error=cause)


def _work(spec: RunSpec, *, material: Any, plan: Plan, call: Callable[..., Any], world: Any) -> None:
    """One run from its parent to its saved model; an error becomes a strike, and the lane goes on.

    In a shared run only errors that every worker meets may pass so. Another ends this worker, and with it the group,
    which would wait for its gradients.
    """
    from jobs.fit import fit_run

    leads = world.rank == 0
    start = time.monotonic()
    try:
        fitted = fit_run(
            spec,
            material=material,
            plan=plan,
            world=world,
            on_epoch=(lambda row: call("epoch", spec.run_id, row)) if leads else None,
            on_part=(lambda row: call("part", spec.run_id, row)) if leads else None,
        )
    except NoSpace as error:  # the run stays `running`: a driver that finds it so takes it up without a strike
        call("halt", str(error))
        if world.size > 1:
            raise
    except Exception as error:
        if world.size > 1 and not isinstance(error, InputError | FloatingPointError):
            raise
        material.forget(spec.plants)
        if leads:
            call("strike", spec.run_id, _cause(error), seconds=time.monotonic() - start)
    else:
        if leads:
            seconds = time.monotonic() - start
            if fitted.is_refused:
                call("refuse", spec.run_id, fitted.notes[-1], seconds=seconds)
            else:
                call("done", spec.run_id, seconds=seconds, select=fitted.score.value)


def _cause(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text} ({where.name}, line {where.lineno})"
