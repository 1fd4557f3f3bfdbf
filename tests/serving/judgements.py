"""Rows of a prediction log for tests, and stores that are away or kill."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.storage import LocalStore, Store
from serving.compaction import read_parquet, read_segment
from serving.predictions import PredictionLog
from serving.segments import Segment, load_index

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def row(plant: str, request_id: str, **kwargs: Any) -> dict[str, Any]:
    """A verdict as the log takes it."""
    return {
        "request_id": request_id,
        "plant": plant,
        "environment": "cam-1",
        "part_id": request_id,
        "bundle": "b" * 64,
        "policy": "c" * 64,
        "arm": "champion",
        "verdict": "reject",
        "defect": "Kratzer groß",
        "confidence": 0.75,
        "why": "likely enough",
        "probabilities": [("ok", 0.25), ("Kratzer groß", 0.75)],
        "frames": ["ab" * 32],
        "tensor_digests": ["cd" * 32],
    } | kwargs


def log_one(log: PredictionLog, plant: str = "mill", **kwargs: Any) -> str:
    """One verdict is in the log; returns its request's id."""
    request_id, sequence = log.next_id()
    log.append(functools.partial(row, plant, request_id, **kwargs), sequence=sequence)
    return request_id


def make(store: Any, tmp_path: Path, **kwargs: Any) -> PredictionLog:
    """A log that flushes when it is asked to."""
    defaults = {"replica": "r1", "flush_s": 60.0, "now": lambda: NOON}
    return PredictionLog(store, spool=tmp_path / "spool", **(defaults | kwargs))


class Flaky(LocalStore):
    """A folder that can be away."""

    is_away = False

    def write(self, key: str, data: bytes) -> str:
        if self.is_away:
            raise ConnectionError("no route to host")
        return super().write(key, data)


def names(store: Store) -> list[Segment]:
    """Every segment in the store."""
    return [found for entry in store.list("log/segments") if (found := Segment.of(entry.key))]


def everything(store: Store, plant: str = "mill") -> list[int]:
    """The sequences of all of a plant's verdicts that a reader finds, in order; one twice would be there twice."""
    index = load_index(store)
    tables = [read_parquet(store, key) for record in index.records.values() for key in record.keys_of(plant)]
    tables += [table for one in index.segments if (table := read_segment(store, one)) is not None]
    return sorted(row["sequence"] for table in tables for row in table.to_pylist() if row["plant"] == plant)
