from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage import LocalStore
from serving.compaction import compact
from serving.gaps import DROPPED, KILLED, LOST, UNKNOWN, WAITS, Gap, gaps
from serving.segments import Index, Note, Record, Segment, load_index
from serving.spool import waiting_on_disk
from tests.serving.judgements import Flaky, log_one, make, names

DAY = "2026-05-04"


def index(*held: tuple[int, int], notes: tuple[Note, ...] = (), day: str = DAY) -> Index:
    segments = tuple(Segment(day, "r1@0", first, last) for first, last in held)
    return Index({}, segments, {note.owner: note for note in notes})


def short(found: list[Gap]) -> list[tuple[int, int, str]]:
    return [(gap.first, gap.last, gap.why) for gap in found]


def note(issued: int, *, ended: str = "", dropped: tuple[tuple[int, int], ...] = ()) -> Note:
    return Note("r1@0", issued, dropped, ended, f"{DAY}T13:00:00+00:00")


@pytest.mark.parametrize(
    ("held", "told", "expected"),
    [
        (((1, 10),), None, []),
        (((1, 4), (8, 10)), None, [(5, 7, UNKNOWN)]),
        (((3, 10),), None, [(1, 2, UNKNOWN)]),
        (((1, 10),), note(10, ended="closed"), []),
        (((1, 10),), note(14, ended="killed"), [(11, 14, KILLED)]),
        (((1, 4), (8, 10)), note(14, ended="killed"), [(5, 7, LOST), (11, 14, KILLED)]),
        (((1, 10),), note(12, ended="closed"), [(11, 12, LOST)]),
        (((1, 4), (9, 10)), note(10, dropped=((5, 6),)), [(5, 6, DROPPED), (7, 8, UNKNOWN)]),
        ((), note(3, ended="killed"), [(1, 3, KILLED)]),
        ((), note(0, ended="closed"), []),
    ],
)
def test_a_gap_says_which_verdicts_are_missing_and_what_became_of_them(held, told, expected):
    found = gaps(index(*held, notes=(told,) if told else ()))
    assert short(found) == expected
    assert all(gap.is_lost == (gap.why in (DROPPED, KILLED, LOST)) for gap in found)


def test_what_waits_on_this_machine_is_told_apart_from_what_is_unknown():
    waiting = [Segment(DAY, "r1@0", 5, 6), Segment(DAY, "r1@0", 12, 12)]
    assert short(gaps(index((1, 4), (9, 10)), spooled=waiting)) == [
        (5, 6, WAITS),
        (7, 8, UNKNOWN),
        (11, 11, UNKNOWN),
        (12, 12, WAITS),
    ]


def test_what_is_compacted_counts_as_there_and_a_gap_lies_on_the_days_around_it():
    record = Record("2026-05-03", {"b": {"mill": 4}}, {"r1@0": ((1, 4),)})
    found = gaps(Index({record.day: record}, (Segment("2026-05-05", "r1@0", 7, 9),), {}))
    assert [(gap.first, gap.last, gap.since, gap.until) for gap in found] == [(5, 6, "2026-05-03", "2026-05-05")]


def test_an_index_that_begins_later_does_not_call_the_days_before_it_missing():
    assert gaps(index((50, 60), (63, 70)), is_whole=False) == gaps(index((50, 60), (63, 70)), is_whole=False)
    assert short(gaps(index((50, 60), (63, 70)), is_whole=False)) == [(61, 62, UNKNOWN)]


def test_a_segment_that_somebody_deleted_is_a_gap_before_and_after_compaction(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    log = make(store, tmp_path)
    for _ in range(4):
        log_one(log)
        log.flush()
    log.close()
    store.delete(sorted(names(store))[1].key)
    assert short(gaps(load_index(store))) == [(2, 2, LOST)]
    compact(store, today="2026-05-05")
    assert short(gaps(load_index(store))) == [(2, 2, LOST)]


def test_a_store_that_was_away_leaves_no_gap_once_it_is_back(tmp_path: Path):
    store = Flaky(tmp_path / "store")
    log = make(store, tmp_path)
    for is_away in (False, True, True, False):
        store.is_away = is_away
        log_one(log)
        log._write()
        if not is_away:
            continue
        log.flush()
        found = gaps(load_index(store), spooled=waiting_on_disk(tmp_path / "spool"))
        assert {gap.why for gap in found} == {WAITS}
    log.flush()
    assert gaps(load_index(store), spooled=waiting_on_disk(tmp_path / "spool")) == []
    log.close()
