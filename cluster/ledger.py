"""What each run of a plan has come to: one JSON record a run in storage. It, not a trainer's checkpoint, resumes.

The board of a driver is the only writer, so records need no lock. The rules are pure functions from
record to record; `RunLedger` only loads and puts.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cluster.storage import Store
from plants.config import Config
from plants.errors import InputError

STRIKES = 2
"""So many attempts in a row that end without a new epoch fail a run."""


class RunRecord(Config):
    """Where one run stands."""

    run_id: str
    state: Literal["waiting", "running", "done", "refused", "failed"] = "waiting"
    """`refused`: what the run was to start from would have made it worse; it left no model."""
    attempts: int = 0
    progress_epoch: int = 0
    """Epochs finished and kept in the run's own checkpoint, over all attempts."""
    epoch_at_start: int = 0
    """`progress_epoch` when the present attempt began."""
    strikes: int = 0
    """Attempts in a row that ended without a new epoch."""
    lane: str | None = None
    error: str | None = None
    seconds: float = 0.0
    """Time spent in all attempts that ended orderly."""
    select: float | None = None
    """What the kept weights are worth on `select`; None when nothing was counted."""
    started_at: str | None = None
    finished_at: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether no lane should take it up."""
        return self.state in ("done", "refused", "failed")


def begin(record: RunRecord, *, lane: str, now: datetime | None = None) -> RunRecord:
    """The record when a lane takes the run up; one that is over comes back as it is, and must not be run.

    A run found `running` was lost with its driver or with a neighbour's worker: that is no strike.
    """
    if record.is_over:
        return record
    return record.model_copy(
        update={
            "state": "running",
            "attempts": record.attempts + 1,
            "epoch_at_start": record.progress_epoch,
            "lane": lane,
            "started_at": _stamp(now),
        }
    )


def advance(record: RunRecord, *, epoch: int) -> RunRecord:
    """The record after an epoch was kept."""
    return record.model_copy(update={"progress_epoch": max(epoch, record.progress_epoch)})


def strike(record: RunRecord, *, error: str, seconds: float = 0.0, now: datetime | None = None) -> RunRecord:
    """The record after an attempt ended early: waiting again, or failed after two in a row without progress."""
    strikes = 0 if record.progress_epoch > record.epoch_at_start else record.strikes + 1
    is_out = strikes >= STRIKES
    return record.model_copy(
        update={
            "state": "failed" if is_out else "waiting",
            "strikes": strikes,
            "error": " ".join(error.split())[:2000],
            "seconds": record.seconds + seconds,
            "lane": None,
            "finished_at": _stamp(now) if is_out else None,
        }
    )


def fail(record: RunRecord, *, error: str, seconds: float = 0.0, now: datetime | None = None) -> RunRecord:
    """The record when trying again cannot help."""
    failed = record.model_copy(update={"strikes": STRIKES, "epoch_at_start": record.progress_epoch})
    return strike(failed, error=error, seconds=seconds, now=now)


def finish(record: RunRecord, *, select: float | None, seconds: float, now: datetime | None = None) -> RunRecord:
    """The record of a run that is done."""
    assert select is None or math.isfinite(select), "a score is a number or None"
    return record.model_copy(
        update={
            "state": "done",
            "select": select,
            "seconds": record.seconds + seconds,
            "error": None,
            "lane": None,
            "finished_at": _stamp(now),
        }
    )


def refuse(record: RunRecord, *, why: str, seconds: float = 0.0, now: datetime | None = None) -> RunRecord:
    """The record of a run that nothing is to be built on; `error` says why."""
    return finish(record, select=None, seconds=seconds, now=now).model_copy(update={"state": "refused", "error": why})


class RunLedger:
    """The records of one plan, at `runs/{plan}/{run_id}.json`."""

    def __init__(self, store: Store, plan_id: str) -> None:
        self.store, self.plan_id = store, plan_id

    def get(self, run_id: str) -> RunRecord:
        """The record of a run; a fresh one when there is none."""
        try:
            raw = self.store.read_json(self._key(run_id))
        except FileNotFoundError:
            return RunRecord(run_id=run_id)
        return _record(raw, self.store.at(self._key(run_id)))

    def load(self) -> dict[str, RunRecord]:
        """Every record of the plan by run."""
        root = f"runs/{self.plan_id}"
        records = {}
        for entry in self.store.list(root):
            name = entry.key.removeprefix(f"{root}/")
            if name.endswith(".json") and "/" not in name and name != "plan.json":
                record = _record(self.store.read_json(entry.key), self.store.at(entry.key))
                records[record.run_id] = record
        return records

    def put(self, record: RunRecord) -> RunRecord:
        """Afterwards the record stands in storage, whole. Returns it."""
        self.store.write_json(self._key(record.run_id), record.model_dump(mode="json"))
        return record

    def add_preparation(self, plant: str, *, seconds: float) -> None:
        """Afterwards it is on record that so much more time went into what the plan's runs learn of a plant."""
        key = f"runs/{self.plan_id}/prepared/{plant}.json"
        before = self.store.read_json(key)["seconds"] if self.store.exists(key) else 0.0
        self.store.write_json(key, {"seconds": before + seconds})

    def preparations(self) -> dict[str, float]:
        """Plant -> seconds that went into its preparation under this plan."""
        entries = self.store.list(f"runs/{self.plan_id}/prepared")
        return {Path(entry.key).stem: float(self.store.read_json(entry.key)["seconds"]) for entry in entries}

    def _key(self, run_id: str) -> str:
        return f"runs/{self.plan_id}/{run_id}.json"


def _record(raw: Any, where: str) -> RunRecord:
    try:
        return RunRecord.model_validate(raw)
    except ValidationError as error:
        raise InputError(
            f"is not a run record ({error.error_count()} faults)", file=where, remedy="Delete it to repeat the run"
        ) from None


def _stamp(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).isoformat(timespec="seconds")
