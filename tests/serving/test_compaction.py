from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.storage import LocalStore
from plants.errors import CheckFailed
from serving.compaction import MAX_BATCHES, compact, read_parquet
from serving.segments import load_index, load_record
from tests.serving.judgements import NOON, everything, log_one, make, names

ROOT = Path(__file__).parents[2]
DAY, NEXT = "2026-05-04", "2026-05-05"


def written(tmp_path: Path, *, segments: int = 5, rows: int = 3, plants: tuple[str, ...] = ("mill",)) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path)
    for _ in range(segments):
        for number in range(rows):
            log_one(log, plants[number % len(plants)])
        log.flush()
    log.close()
    return store


def test_a_day_that_is_over_becomes_one_file_a_plant_sorted_by_part(tmp_path: Path):
    store = written(tmp_path, rows=6, plants=("mill", "foundry"))
    (done,) = compact(store, today=NEXT)
    assert (done.day, done.segments, done.rows, done.files) == (DAY, 5, 30, 2)
    assert names(store) == []
    record = load_record(store, DAY)
    (key,) = record.keys_of("mill")
    table = read_parquet(store, key)
    assert table.num_rows == 15
    assert table["part_id"].to_pylist() == sorted(table["part_id"].to_pylist())
    assert everything(store) == list(range(1, 31, 2))
    assert everything(store, "foundry") == list(range(2, 31, 2))


def test_it_is_safe_to_repeat(tmp_path: Path):
    store = written(tmp_path)
    compact(store, today=NEXT)
    before = store.list("log")
    assert compact(store, today=NEXT) == []
    assert [(e.key, e.size) for e in store.list("log")] == [(e.key, e.size) for e in before]


def test_late_segments_of_a_day_are_added_to_it_and_it_stays_one_file(tmp_path: Path):
    store = written(tmp_path)
    compact(store, today=NEXT)
    written(tmp_path)
    compact(store, today=NEXT)
    assert everything(store) == sorted([*range(1, 16), *range(1, 16)])
    assert len(load_record(store, DAY).batches) == 1
    assert len(store.list("log/parquet")) == 1


def test_a_day_that_goes_on_gets_a_file_a_run_and_no_more_than_a_few(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log, most = make(store, tmp_path), 0
    for _ in range(MAX_BATCHES * 2 + 3):
        log_one(log)
        log.flush()
        compact(store, today=DAY)
        most = max(most, len(store.list("log/parquet")))
    assert 3 < most <= MAX_BATCHES
    assert everything(store) == list(range(1, MAX_BATCHES * 2 + 4))
    log.close()


def test_writers_go_on_while_it_compacts_and_every_verdict_is_there_once(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path, flush_s=0.01)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.002):
            log_one(log)

    writer = threading.Thread(target=work)
    writer.start()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        compact(store, today=DAY)
    ended.set()
    writer.join()
    log.close()
    compact(store, today=NEXT)
    found = everything(store)
    assert found == list(range(1, len(found) + 1))
    assert len(found) > 20


class Lying(LocalStore):
    """A store that loses rows of a Parquet file."""

    def write(self, key: str, data: bytes) -> str:
        if key.endswith(".parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            rows = pq.read_table(pa.BufferReader(data)).slice(1)
            sink = pa.BufferOutputStream()
            pq.write_table(rows, sink)
            data = bytes(sink.getvalue())
        return super().write(key, data)


def test_segments_stay_where_the_file_written_does_not_hold_their_rows(tmp_path: Path):
    store = written(tmp_path)
    with pytest.raises(CheckFailed, match="nothing was deleted"):
        compact(Lying(store.root), today=NEXT)
    assert len(names(store)) == 5
    assert everything(store) == list(range(1, 16))
    compact(store, today=NEXT)
    assert everything(store) == list(range(1, 16))
    assert len(store.list("log/parquet")) == 1


def test_a_segment_that_is_none_is_named_and_left_and_stops_nothing(tmp_path: Path):
    store = written(tmp_path)
    bad = names(store)[2]
    store.write(bad.key, b"not arrow")
    (done,) = compact(store, today=NEXT)
    assert done.unreadable == (bad.key,)
    assert names(store) == [bad]
    assert everything(store) == [n for n in range(1, 16) if not bad.first <= n <= bad.last]


KILLED = """
import os, signal, sys, threading, concurrent.futures
import pyarrow.parquet, pyarrow.compute
from cluster.storage import LocalStore
from serving import compaction
left = 0
def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
class Deadly(LocalStore):
    def write(self, key, data):
        if not key.startswith("locks"):
            step()
        return super().write(key, data)
    def delete(self, key):
        if not key.startswith("locks"):
            step()
        super().delete(key)
for line in sys.stdin:
    folder, steps, today = line.split()
    child = os.fork()
    if not child:
        left = int(steps)
        compaction.compact(Deadly(folder), today=today, ttl_s=0.5)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Compacts a store in a child of its own for each line, and kills it before its n-th write or deletion."""


@pytest.mark.slow
def test_killed_at_any_step_no_verdict_is_lost_or_there_twice_and_the_next_run_finishes(tmp_path: Path):
    begun = written(tmp_path, segments=1, rows=4, plants=("mill", "foundry"))
    compact(begun, today=DAY)
    written(tmp_path, segments=2, rows=4, plants=("mill", "foundry"))
    expected, steps, ended = everything(begun), 0, False
    assert len(expected) == 6
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", KILLED]
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        while not ended:
            store = LocalStore(shutil.copytree(begun.root, tmp_path / f"killed-{steps}"))
            print(store.root, steps, NEXT, file=child.stdin)
            code = int(child.stdout.readline())
            assert code in (0, -9)
            ended = code == 0
            assert everything(store) == expected, f"after a kill at step {steps}"
            compact(store, today=NEXT)
            assert everything(store) == expected
            assert load_index(store).segments == ()
            files = {key for plant in ("mill", "foundry") for key in load_record(store, DAY).keys_of(plant)}
            assert {entry.key for entry in store.list("log/parquet")} == files
            assert len(files) == 2
            steps += 1
    assert steps > 10


def test_segments_of_an_older_version_that_lacks_a_column_are_read_and_compacted(tmp_path: Path):
    store = written(tmp_path, segments=2)
    for key in [one.key for one in names(store)]:
        table = pa.ipc.open_file(store.read(key)).read_all().drop_columns(["disagreement"])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        store.write(key, sink.getvalue().to_pybytes())
    (done,) = compact(store, today=NEXT)
    assert (done.segments, done.rows) == (2, 6)
    (key,) = load_record(store, DAY).keys_of("mill")
    assert read_parquet(store, key)["disagreement"].null_count == 6


@pytest.mark.parametrize("seed", range(40))
def test_a_segment_with_a_damaged_byte_is_read_or_left_and_never_raises(tmp_path: Path, seed: int):
    store = written(tmp_path, segments=2)
    first = names(store)[0]
    data = bytearray(store.read(first.key))
    data[int(np.random.default_rng(seed).integers(len(data)))] ^= 0x5A
    store.write(first.key, bytes(data))
    done = compact(store, today=NEXT)
    assert sum(one.rows for one in done) in (3, 6)


def test_only_the_days_asked_for_are_compacted(tmp_path: Path):
    days: Any = iter([NOON, NOON.replace(day=6), *[NOON] * 9])
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path, now=lambda: next(days))
    log_one(log)
    log_one(log)
    log.close()
    assert [one.day for one in compact(store, today="2026-05-07", since="2026-05-05")] == ["2026-05-06"]
    assert [one.day for one in names(store)] == [DAY]
