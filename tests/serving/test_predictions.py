from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.storage import LocalStore
from serving.predictions import SCHEMA, PredictionLog, segment

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def row(plant: str, request_id: str) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "plant": plant,
        "environment": "cam-1",
        "verdict": "reject",
        "defect": "Kratzer groß",
        "confidence": 0.75,
        "probabilities": [("ok", 0.25), ("Kratzer groß", 0.75)],
        "frames": ["ab" * 32],
        "tensor_digests": ["cd" * 32],
    }


def read(store: LocalStore) -> list[dict[str, Any]]:
    return [
        found for entry in store.list("log") for found in pa.ipc.open_file(store.read(entry.key)).read_all().to_pylist()
    ]


class Flaky(LocalStore):
    """A folder that can be away."""

    is_away = False

    def write(self, key: str, data: bytes) -> str:
        if self.is_away:
            raise ConnectionError("no route to host")
        return super().write(key, data)


def make(store: LocalStore, tmp_path: Path, **kwargs: Any) -> PredictionLog:
    return PredictionLog(store, spool=tmp_path / "spool", **{"replica": "r1", "flush_s": 60.0} | kwargs)


def log_one(log: PredictionLog, plant: str = "mill") -> None:
    request_id, sequence = log.next_id()
    log.append(row(plant, request_id), sequence=sequence)


@pytest.mark.slow
def test_a_verdict_is_in_the_store_within_two_seconds(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = PredictionLog(store, replica="r1", spool=tmp_path / "spool", now=lambda: NOON)
    log_one(log)
    begun = time.monotonic()
    while not store.list("log") and time.monotonic() - begun < 2:
        time.sleep(0.02)
    (found,) = read(store)
    assert store.list("log")[0].key == "log/mill/2026-05-04/r1-1-1.arrow"
    assert found["request_id"] == "r1-1"
    assert found["at"] == NOON
    assert dict(found["probabilities"]) == {"ok": 0.25, "Kratzer groß": 0.75}
    assert found["product"] is None
    log.close()


def test_segments_are_by_plant_and_day_and_the_sequence_has_no_gap(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    days = iter([NOON, NOON, NOON.replace(day=5), NOON.replace(day=5)])
    log = make(store, tmp_path, now=lambda: next(days))
    for plant in ("mill", "foundry", "mill", "mill"):
        log_one(log, plant)
    log.close()
    assert [entry.key for entry in store.list("log")] == [
        "log/foundry/2026-05-04/r1-2-2.arrow",
        "log/mill/2026-05-04/r1-1-1.arrow",
        "log/mill/2026-05-05/r1-3-4.arrow",
    ]
    assert sorted(found["sequence"] for found in read(store)) == [1, 2, 3, 4]


def test_closing_sends_what_was_not_yet_sent(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path)
    log_one(log)
    assert read(store) == []
    log.close()
    assert len(read(store)) == 1


def test_while_the_store_is_away_verdicts_wait_on_disk_and_then_follow(tmp_path: Path):
    store = Flaky(tmp_path / "store")
    log = make(store, tmp_path)
    store.is_away = True
    log_one(log)
    log.flush()
    log_one(log)
    log.flush()
    assert log.problem is not None
    assert "ConnectionError" in log.problem
    assert len(list((tmp_path / "spool").rglob("*.arrow"))) == 2
    store.is_away = False
    log.flush()
    assert log.problem is None
    assert sorted(found["sequence"] for found in read(store)) == [1, 2]
    assert list((tmp_path / "spool").rglob("*.arrow")) == []
    log.close()


def test_what_a_dead_process_left_in_the_spool_is_sent_by_the_next(tmp_path: Path):
    store = Flaky(tmp_path / "store")
    store.is_away = True
    dead = make(store, tmp_path)
    log_one(dead)
    dead.flush()
    store.is_away = False
    make(store, tmp_path, replica="r2").close()
    assert [found["request_id"] for found in read(store)] == ["r1-1"]


@pytest.mark.parametrize("count", [1, 100])
def test_a_segment_is_a_whole_arrow_file_of_the_declared_schema(count: int):
    rows = [{**row("mill", f"r-{n}"), "at": NOON, "replica": "r", "sequence": n} for n in range(count)]
    table = pa.ipc.open_file(segment(rows)).read_all()
    assert table.schema.equals(SCHEMA)
    assert table.num_rows == count
