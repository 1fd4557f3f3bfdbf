from __future__ import annotations

import pickle
from typing import Any

from serving.board import FORGET_S, GONE_S, Board
from serving.exposition import Condition
from serving.telemetry import Telemetry

WELL = Condition()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def replica(clock: Clock, *, requests: int = 1, plant: str = "mill") -> Telemetry:
    telemetry = Telemetry(clock=clock)
    again(telemetry, requests=requests, plant=plant)
    return telemetry


def again(telemetry: Telemetry, *, requests: int = 1, plant: str = "mill") -> None:
    for _ in range(requests):
        telemetry.answered(plant, "cam-1", verdict="ok", defect=None, confidence=0.9, latency_ms=5)


def requests(board: Board, window: str | None = None) -> int:
    one: dict[str, Any] = board.report("mill")["environments"]["cam-1"]
    return int((one["windows"][window] if window else one)["requests"])


def test_replicas_add_up_and_what_a_dead_one_counted_stays():
    clock = Clock()
    board, a, b = Board(clock=clock), replica(clock, requests=2), replica(clock, requests=3)
    board.post("a", a.changed(), condition=WELL)
    board.post("b", b.changed(), condition=WELL)
    clock.now += 60
    again(b)
    board.post("b", b.changed(), condition=WELL)
    assert requests(board) == 6
    assert requests(board, "5m") == 6


def test_a_post_that_arrives_twice_counts_once():
    clock = Clock()
    board, a = Board(clock=clock), replica(clock, requests=4)
    totals = a.changed()
    board.post("a", totals, condition=WELL)
    board.post("a", totals, condition=WELL)
    assert requests(board) == 4


def test_a_post_that_a_later_one_overtook_counts_nothing():
    clock = Clock()
    board, a = Board(clock=clock), replica(clock, requests=4)
    early = a.changed()
    again(a, requests=3)
    late = a.changed()
    board.post("a", late, condition=WELL)
    board.post("a", early, condition=WELL)
    assert requests(board) == 7
    again(a)
    board.post("a", a.changed(), condition=WELL)
    assert requests(board) == 8
    assert requests(board, "1m") == 8


def test_a_new_board_takes_nothing_from_a_replica_that_knew_another_until_it_sends_its_history():
    clock = Clock()
    old, new, a = Board(clock=clock), Board(clock=clock), replica(clock, requests=7)
    known = old.post("a", a.changed(), condition=WELL)
    again(a)
    assert new.post("a", a.changed(), condition=WELL, known=known) != known
    assert new.report("mill")["requests"] == 0
    a.all_changed()
    known = new.post("a", a.changed(), condition=WELL, is_history=True)
    again(a)
    assert new.post("a", a.changed(), condition=WELL, known=known) == known
    assert requests(new) == 9
    assert requests(new, "1m") == 1


def test_the_text_speaks_of_every_replica_that_posts_and_not_of_those_that_are_gone():
    clock = Clock()
    board = Board(clock=clock)
    board.post("a", {}, condition=Condition(num_waiting=2), takt_s={"mill": 2.0})
    board.post("b", {}, condition=Condition(problems=("the store is away",)))
    assert b'crossplant_replica_degraded{replica="b"} 1.0' in board.text()
    clock.now += GONE_S - 1
    board.post("a", {}, condition=Condition(num_waiting=5))
    clock.now += 2
    text = board.text()
    assert b'crossplant_waiting{replica="a"} 5.0' in text
    assert b'replica="b"' not in text
    assert b'crossplant_takt_seconds{plant="mill"} 2.0' in text


def test_a_board_does_not_grow_with_the_replicas_that_died_and_keeps_what_they_counted():
    clock = Clock()
    board, held = Board(clock=clock), []
    for number in range(20):
        board.post(f"r{number}", replica(clock, requests=2).changed(), condition=WELL)
        held.append(board.num_held)
        clock.now += FORGET_S + 1
    assert held == [1] * 20
    assert requests(board) == 40


def test_a_replica_that_was_forgotten_and_comes_back_is_not_counted_twice():
    clock = Clock()
    board, a = Board(clock=clock), replica(clock, requests=5)
    known = board.post("a", a.changed(), condition=WELL)
    clock.now += FORGET_S + 1
    board.post("b", replica(clock, requests=1, plant="press").changed(), condition=WELL)
    again(a)
    assert board.post("a", a.changed(), condition=WELL, known=known) == known
    assert requests(board) == 5
    again(a, requests=3)
    board.post("a", a.changed(), condition=WELL, known=known)
    assert requests(board) == 8


def test_a_post_that_was_lost_is_made_up_by_the_next():
    clock = Clock()
    board, a = Board(clock=clock), replica(clock, requests=4)
    a.unposted(a.changed())
    again(a, requests=2)
    board.post("a", a.changed(), condition=WELL)
    assert requests(board) == 6


def test_a_post_holds_the_cells_that_changed_and_no_others():
    clock = Clock()
    board, a = Board(clock=clock), Telemetry(clock=clock)
    for number in range(200):
        confidence, latency_ms = (number % 20) / 20, 1.2 ** (number % 40)
        a.answered("mill", "cam-1", verdict="ok", defect=None, confidence=confidence, latency_ms=latency_ms)
    first = a.changed()
    board.post("a", first, condition=WELL)
    again(a)
    second = a.changed()
    assert len(first["mill", "cam-1"]) > 50
    assert len(second["mill", "cam-1"]) <= 8
    board.post("a", second, condition=WELL)
    own, whole = a.report("mill"), board.report("mill")
    assert own == whole
    assert whole["requests"] == 201


def test_a_post_of_ten_busy_plants_among_a_thousand_is_small():
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    for plant in range(1000):
        again(telemetry, plant=f"plant-{plant}")
    telemetry.changed()
    for plant in range(10):
        again(telemetry, requests=20, plant=f"plant-{plant}")
    assert len(pickle.dumps(telemetry.changed())) < 5_000
