from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.storage import LocalStore
from serving.predictions import SCHEMA, segment
from serving.segments import Note, joined, load_index, without
from serving.spool import waiting_on_disk
from tests.serving.judgements import NOON, Flaky, log_one, make, names, row


def read(store: LocalStore) -> list[dict[str, Any]]:
    return [row for one in names(store) for row in pa.ipc.open_file(store.read(one.key)).read_all().to_pylist()]


def ranges(store: LocalStore) -> list[tuple[str, int, int]]:
    return [(one.day, one.first, one.last) for one in names(store)]


@pytest.mark.slow
def test_a_verdict_is_in_the_store_within_two_seconds(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path, flush_s=1.0)
    log_one(log)
    begun = time.monotonic()
    while not names(store) and time.monotonic() - begun < 2:
        time.sleep(0.02)
    (found,) = read(store)
    assert found["request_id"] == "r1-1"
    assert found["at"] == NOON
    assert dict(found["probabilities"]) == {"ok": 0.25, "Kratzer groß": 0.75}
    assert found["product"] is None
    log.close()


def test_one_flush_is_one_segment_of_all_plants_and_a_day_that_ends_in_it_two(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    days = iter([NOON, NOON, NOON.replace(day=5), NOON.replace(day=5), *[NOON] * 9])
    log = make(store, tmp_path, now=lambda: next(days))
    for plant in ("mill", "foundry", "mill", "mill"):
        log_one(log, plant)
    log.close()
    assert ranges(store) == [("2026-05-04", 1, 2), ("2026-05-05", 3, 4)]
    assert [found["plant"] for found in read(store)] == ["mill", "foundry", "mill", "mill"]


def test_a_segment_has_no_hole_so_that_its_name_says_what_it_holds(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path)
    taken = [log.next_id() for _ in range(5)]
    for request_id, sequence in taken[:2] + taken[3:]:
        log.append(lambda request_id=request_id: row("mill", request_id), sequence=sequence)
    log.flush()
    assert ranges(store) == [("2026-05-04", 1, 2), ("2026-05-04", 4, 5)]
    log.close()


def test_closing_sends_what_was_not_yet_sent_and_says_how_far_it_counted(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path)
    log_one(log)
    assert read(store) == []
    log.close()
    assert len(read(store)) == 1
    (note,) = load_index(store).notes.values()
    assert (note.issued, note.ended, note.dropped) == (1, "closed", ())
    assert list((tmp_path / "spool").iterdir()) == []


def test_while_the_store_is_away_verdicts_wait_on_disk_and_then_follow(tmp_path: Path):
    store = Flaky(tmp_path / "store")
    log = make(store, tmp_path)
    store.is_away = True
    for _ in range(2):
        log_one(log)
        log.flush()
    assert log.problem == "prediction log: 2 segments wait in the spool (ConnectionError)"
    assert (log.spool.num_segments, len(waiting_on_disk(tmp_path / "spool"))) == (2, 2)
    assert log.spool.num_bytes > 1000
    store.is_away = False
    log.flush()
    assert log.problem is None
    assert sorted(found["sequence"] for found in read(store)) == [1, 2]
    assert (log.spool.num_segments, log.spool.num_bytes) == (0, 0)
    log.close()


def test_what_a_dead_process_left_in_the_spool_is_sent_by_the_next_but_a_living_ones_is_let_be(tmp_path: Path):
    store = Flaky(tmp_path / "store")
    store.is_away = True
    dead, living = make(store, tmp_path), make(store, tmp_path, replica="r2")
    for log in (dead, living):
        log_one(log)
        log.flush()
    dead.next_id()
    dead.spool.close(is_empty=False)  # as the system does when a process ends
    store.is_away = False
    make(store, tmp_path, replica="r3").close()
    assert [found["request_id"] for found in read(store)] == ["r1-1"]
    note = load_index(store).notes[dead.spool.owner]
    assert (note.issued, note.ended) == (2, "killed")
    assert [one.owner for one in waiting_on_disk(tmp_path / "spool")] == [living.spool.owner]
    living.close()


def test_a_full_spool_keeps_what_it_has_and_counts_what_comes_then_and_the_line_goes_on(tmp_path: Path):
    store = Flaky(tmp_path / "store")
    store.is_away = True
    log = make(store, tmp_path, spool_mb=0.02)
    for _ in range(20):
        log_one(log)
        log.flush()
    assert 0 < log.spool.num_bytes <= 20_000
    kept = log.spool.num_segments
    assert log.spool.dropped_rows == 20 - kept > 0
    assert log.problem is not None
    assert f"{20 - kept} verdicts are NOT logged: the spool holds its 0 MB" in log.problem
    store.is_away = False
    log.flush()
    assert log.problem is None
    assert log.spool.dropped_rows == 20 - kept
    log_one(log)
    log.flush()
    assert sorted(found["sequence"] for found in read(store)) == [*range(1, kept + 1), 21]
    assert load_index(store).notes[log.spool.owner].dropped == ((kept + 1, 20),)
    log.close()


def test_what_was_dropped_is_known_after_the_process_was_killed_too(tmp_path: Path):
    store = Flaky(tmp_path / "store")
    store.is_away = True
    log = make(store, tmp_path, spool_mb=0.006)
    for _ in range(5):
        log_one(log)
        log.flush()
    log.spool.close(is_empty=False)
    store.is_away = False
    make(store, tmp_path, replica="r2").close()
    note = load_index(store).notes[log.spool.owner]
    assert note.dropped[-1][1] == 5
    assert len(read(store)) + note.dropped[-1][1] - note.dropped[-1][0] + 1 == 5


def test_where_the_disk_takes_nothing_verdicts_go_to_the_store_from_memory(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    (tmp_path / "spool").write_text("a file where a folder should be")
    log = make(store, tmp_path)
    log_one(log)
    log.flush()
    assert len(read(store)) == 1
    assert log.problem is not None
    assert "this disk keeps nothing" in log.problem
    log.close()


def test_a_row_that_cannot_be_made_or_written_is_a_known_gap_and_the_others_are_logged(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path)
    for number in range(5):
        request_id, sequence = log.next_id()
        bad = {2: lambda: {}["x"], 3: lambda: row("mill", "r1-4", confidence="high")}
        log.append(bad.get(number, lambda request_id=request_id: row("mill", request_id)), sequence=sequence)
        log.flush()
    log.close()
    assert sorted(found["sequence"] for found in read(store)) == [1, 2, 5]
    assert load_index(store).notes[log.spool.owner].dropped == ((3, 4),)


def test_a_replica_of_the_same_name_writes_over_nothing(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    for _ in range(2):
        log = make(store, tmp_path)
        log_one(log)
        log.close()
        time.sleep(0.002)
    assert len(read(store)) == 2


def test_rows_of_many_threads_are_all_there_and_each_once(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path, flush_s=0.01)
    threads = [threading.Thread(target=lambda: [log_one(log) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(found["sequence"] for found in read(store)) == list(range(1, 801))


@pytest.mark.parametrize("count", [1, 100])
def test_a_segment_is_a_whole_arrow_file_of_the_declared_schema(count: int):
    rows = [{**row("mill", f"r-{n}"), "at": NOON, "replica": "r", "sequence": n} for n in range(count)]
    table = pa.ipc.open_file(segment(rows)).read_all()
    assert table.schema.equals(SCHEMA)
    assert table.num_rows == count


@pytest.mark.parametrize("seed", range(20))
def test_ranges_joined_and_taken_away_hold_the_same_numbers_as_sets_do(seed: int):
    import random

    draw = random.Random(seed)

    def some() -> list[tuple[int, int]]:
        starts = [draw.randint(1, 60) for _ in range(draw.randint(0, 8))]
        return [(start, start + draw.randint(0, 9)) for start in starts]

    def numbers(of: Any) -> set[int]:
        return {n for first, last in of for n in range(first, last + 1)}

    a, b = some(), some()
    assert numbers(joined(a)) == numbers(a)
    assert numbers(without(a, b)) == numbers(a) - numbers(b)
    for found in (joined(a), without(a, b)):
        assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(found))


def test_a_note_is_read_as_it_was_written():
    note = Note("r1@5", 17, ((3, 4),), "killed", "2026-05-04T12:00:00+00:00")
    assert Note.from_bytes(note.to_bytes()) == note
    assert json.loads(note.to_bytes())["issued"] == 17
