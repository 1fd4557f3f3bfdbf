"""The board: which run is next, what a lost worker costs, when a run is given up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.ledger import RunLedger
from cluster.storage import open_store
from jobs.lanes import ALL_LANES, Board, _work
from jobs.plan import Plan, RunSpec
from jobs.selection import Score
from jobs.train import Fitted, World
from plants.errors import InputError, NoSpace


class Nothing:
    """In the place of a material that no run of these looks at."""

    def forget(self, names: Sequence[str]) -> None:
        pass


def spec(run_id: str, *, plants=("north",), parent=None, parents=()) -> RunSpec:
    return RunSpec(run_id, "own", tuple(plants), 0, {"stages": [{"cut": 1}]}, parent=parent, parents=parents)


PLAN = Plan(
    fleet="toys",
    data_digest="d",
    runs=(
        spec("pooled", plants=("north", "south")),
        spec("frozen"),
        spec("own"),
        spec("warm", parent="pooled"),
        spec("sister", parent="own"),
    ),
)


@pytest.fixture
def store_uri(tmp_path):
    return str(tmp_path / "store")


MANY = 4
"""So many lanes that `pooled`, of two plants, is too long for one of them: the other runs are four plants' work."""


def board(store_uri: str) -> Board:
    at = Board(PLAN.to_json(), store_uri)
    at.together = PLAN.shared(lanes=MANY)
    return at


def finish(at: Board, run_id: str) -> None:
    at.done(run_id, seconds=1.0, select=0.5)


def test_parents_come_first_and_children_wait_for_them(store_uri):
    at = board(store_uri)
    assert at.shared() == ["pooled"]
    assert at.take(0) == {"do": "run", "run_id": "own"}
    assert at.take(1) == {"do": "run", "run_id": "frozen"}
    finish(at, "frozen")
    assert at.take(1) == {"do": "wait"}
    finish(at, "own")
    assert at.take(1) == {"do": "run", "run_id": "sister"}
    assert at.take(0) == {"do": "wait"}


def test_among_few_lanes_a_pooled_run_is_one_lanes_and_the_first(store_uri):
    at = board(store_uri)
    at.enter(0, token="a", num_lanes=2)
    assert at.shared() == []
    assert [at.take(lane)["run_id"] for lane in (0, 1)] == ["pooled", "own"]


def test_a_pooled_run_that_one_lane_was_at_is_taken_up_by_it_or_by_all_lanes_of_a_larger_group(store_uri):
    at = board(store_uri)
    for lane in (0, 1):
        at.enter(lane, token=f"a{lane}", num_lanes=2)
    assert at.take(0)["run_id"] == "pooled"
    at.enter(0, token="b0", num_lanes=2)
    assert at.take(0)["run_id"] == "pooled"
    again = board(store_uri)
    again.enter(0, token="c0", num_lanes=MANY)
    assert again.shared() == ["pooled"]
    assert again.take(0)["run_id"] == "own"


def test_plants_are_prepared_in_the_order_given_and_none_is_left_out(store_uri):
    names = sorted({name for run in PLAN.runs for name in run.plants})
    at = Board(PLAN.to_json(), store_uri, order=["not in the plan", names[-1]])
    taken = [at.prepare(0)["plant"] for _ in names]
    assert taken == [names[-1], *names[:-1]]


def test_lanes_stop_when_nothing_is_left(store_uri):
    at = board(store_uri)
    at.start("pooled", lane=ALL_LANES)
    finish(at, "pooled")
    for _ in range(4):
        finish(at, at.take(0)["run_id"])
    assert at.take(0) == {"do": "stop"}


def test_a_second_driver_repeats_no_finished_run_and_takes_up_the_lost_one(store_uri):
    first = board(store_uri)
    first.take(0)
    first.take(1)
    finish(first, "frozen")
    second = board(store_uri)
    assert second.take(0) == {"do": "run", "run_id": "own"}
    assert second.take(1) == {"do": "wait"}


def test_the_run_of_a_worker_that_came_back_is_free_and_its_neighbours_is_not(store_uri):
    at = board(store_uri)
    for lane in (0, 1):
        at.enter(lane, token=f"a{lane}", num_lanes=MANY)
    assert at.take(0)["run_id"] == "own"
    assert at.take(1)["run_id"] == "frozen"
    at.enter(0, token="b0", num_lanes=MANY)
    assert at.take(0)["run_id"] == "own"
    assert at.take(0) == {"do": "wait"}


def test_a_run_whose_worker_dies_twice_without_progress_is_failed_and_its_neighbour_goes_on(store_uri):
    at = board(store_uri)
    for n in range(2):
        for lane in (0, 1):
            at.enter(lane, token=f"{n}{lane}", num_lanes=MANY)
        assert {at.take(lane)["run_id"] for lane in (0, 1)} == {"own", "frozen"}
        at.blame({int(at.records["own"].lane): "The actor died unexpectedly"})
    for lane in (0, 1):
        at.enter(lane, token=f"3{lane}", num_lanes=MANY)
    assert at.take(0) == {"do": "run", "run_id": "frozen"}
    record = RunLedger(open_store(store_uri), PLAN.plan_id).get("own")
    assert (record.state, record.attempts) == ("failed", 2)
    assert "died: The actor died unexpectedly" in (record.error or "")
    assert at.records["frozen"].strikes == 0


def test_a_shared_run_is_struck_when_any_worker_dies(store_uri):
    at = board(store_uri)
    at.start("pooled", lane=ALL_LANES)
    at.blame({1: "The actor died unexpectedly"})
    assert (at.records["pooled"].state, at.records["pooled"].strikes) == ("waiting", 1)


def test_a_run_that_comes_further_each_time_is_not_given_up(store_uri):
    at = board(store_uri)
    for n in range(5):
        at.enter(0, token=str(n), num_lanes=MANY)
        assert at.take(0)["run_id"] == "own"
        at.epoch("own", {"stage": 1, "epoch": n + 1})


def test_an_error_is_tried_once_more_then_failed_with_its_cause_and_its_children_with_it(store_uri):
    at = board(store_uri)
    for _ in range(2):
        assert at.take(0)["run_id"] == "own"
        at.strike("own", "FloatingPointError: the loss is nan", seconds=1.0)
    assert at.take(0)["run_id"] == "frozen"
    records = RunLedger(open_store(store_uri), PLAN.plan_id).load()
    assert records["own"].state == "failed"
    assert records["own"].error == "FloatingPointError: the loss is nan"
    assert records["sister"].error == "its parent own failed"


AVERAGED = Plan(
    fleet="toys",
    data_digest="d",
    runs=(spec("own"), spec("pooled"), spec("warm", parent="pooled"), spec("mean", parents=("own", "pooled", "warm"))),
)


def test_a_mean_waits_for_all_its_parents_and_does_without_the_refused_ones(store_uri):
    at = Board(AVERAGED.to_json(), store_uri)
    assert [at.take(lane)["run_id"] for lane in (0, 1)] == ["own", "pooled"]
    finish(at, "own")
    finish(at, "pooled")
    assert at.take(0) == {"do": "run", "run_id": "warm"}
    assert at.take(1) == {"do": "wait"}
    at.refuse("warm", "its start is worse", seconds=1.0)
    assert at.take(1) == {"do": "run", "run_id": "mean"}


def test_a_child_of_a_refused_run_and_a_mean_of_less_than_two_are_refused_and_not_failed(store_uri):
    plan = Plan("toys", "d", (spec("a"), spec("b", parent="a"), spec("c"), spec("mean", parents=("a", "c"))))
    at = Board(plan.to_json(), store_uri)
    at.refuse(at.take(0)["run_id"], "its start is worse", seconds=1.0)
    finish(at, at.take(0)["run_id"])
    assert at.take(0) == {"do": "stop"}
    records = RunLedger(open_store(store_uri), plan.plan_id).load()
    assert {run_id: (r.state, r.error) for run_id, r in records.items() if run_id != "c"} == {
        "a": ("refused", "its start is worse"),
        "b": ("refused", "its parent a was refused"),
        "mean": ("refused", "its parent a was refused"),
    }
    assert Board(plan.to_json(), store_uri).take(0) == {"do": "stop"}


def test_a_mean_of_a_failed_run_fails(store_uri):
    plan = Plan("toys", "d", (spec("a"), spec("b"), spec("c"), spec("mean", parents=("a", "b", "c"))))
    at = Board(plan.to_json(), store_uri)
    for _ in range(2):
        at.strike(at.take(0)["run_id"], "no", seconds=0.0)
    for _ in ("b", "c"):
        finish(at, at.take(0)["run_id"])
    assert at.take(0) == {"do": "stop"}
    assert at.records["mean"].error == "its parent a failed"


def test_a_refused_run_is_told_as_such_and_not_as_done(monkeypatch):
    fitted = Fitted(0, (), {}, Score(0.5, 1.0, {}), {}, notes=["head", "worse: refused"], donor={"refused": True})
    monkeypatch.setattr("jobs.fit.fit_run", lambda *args, **kwargs: fitted)
    calls = []

    def call(method, *args, **kwargs):
        calls.append((method, *args))

    _work(PLAN.run("warm"), material=Nothing(), plan=PLAN, call=call, world=World())
    assert calls == [("refuse", "warm", "worse: refused")]


def test_the_plants_that_a_child_may_replay_are_prepared_with_its_own(store_uri):
    first = board(store_uri)
    for run_id in ("pooled", "frozen", "own", "sister"):
        first.start(run_id, lane="0")
        finish(first, run_id)
    assert {board(store_uri).unprepared[i] for i in range(2)} == {"north", "south"}


def test_events_tell_each_thing_once(store_uri):
    at = board(store_uri)
    at.take(0)
    seen = at.events(0)
    at.epoch("own", {"stage": 1, "epoch": 1})
    later = at.events(len(seen))
    assert [event["kind"] for event in seen] == ["started"]
    assert [(event["kind"], event["epoch"]) for event in later] == [("epoch", 1)]


def test_how_far_a_run_is_within_its_epoch_is_the_last_word_and_no_progress(store_uri):
    at = board(store_uri)
    at.take(0)
    seen = len(at.events(0))
    for part in (0.2, 0.6):
        at.part("own", {"stage": 1, "epoch": 3, "part": part})
    assert [(row["kind"], row["run_id"], row["epoch"], row["part"]) for row in at.within()] == [("part", "own", 3, 0.6)]
    assert at.records["own"].progress_epoch == 0
    assert at.events(seen) == []
    at.epoch("own", {"stage": 1, "epoch": 3})
    assert at.within() == []
    at.part("own", {"stage": 1, "epoch": 4, "part": 0.5})
    at.strike("own", "FloatingPointError: the loss is nan", seconds=1.0)
    assert at.within() == []


def test_progress_outlives_the_driver_so_that_a_killed_one_does_not_strike_a_run_out(store_uri):
    for n in range(4):
        at = board(store_uri)
        assert at.take(0)["run_id"] == "own"
        at.epoch("own", {"stage": 1, "epoch": n + 1})


def test_of_runs_that_nobody_waits_for_the_longest_starts_first(store_uri):
    plan = Plan("toys", "d", (spec("short", plants=("south",)), spec("long", plants=("north",))))
    at = Board(plan.to_json(), store_uri)
    at.prepared("north", rows=100, seconds=1.0)
    at.prepared("south", rows=10, seconds=1.0)
    assert [at.take(lane)["run_id"] for lane in (0, 1)] == ["long", "short"]


def test_the_time_that_activations_took_is_on_record_and_what_lay_in_the_cache_is_not(store_uri):
    at = board(store_uri)
    at.prepared("north", rows=5, seconds=2.0, num_made=4)
    at.prepared("south", rows=5, seconds=0.1, num_made=0)
    at.prepared("north", rows=5, seconds=0.1, num_made=0)
    assert at.ledger.preparations() == {"north": 2.0}


def test_a_run_begins_as_soon_as_its_own_plants_are_prepared_where_none_is_fitted_together(store_uri):
    at = Board(PLAN.to_json(), store_uri)
    assert [at.prepare(lane)["plant"] for lane in (0, 1)] == ["north", "south"]
    at.prepared("south", rows=5, seconds=1.0)
    assert at.prepare(1) == {"do": "go", "together": False}
    assert at.take(1) == {"do": "wait"}, "every run of the plan has learned from north"
    at.prepared("north", rows=9, seconds=2.0)
    assert [at.take(lane)["run_id"] for lane in (1, 0)] == ["pooled", "own"]
    other = Board(Plan("toys", "e", (spec("a"), spec("b", plants=("south",)))).to_json(), store_uri)
    assert [other.prepare(lane)["plant"] for lane in (0, 1)] == ["north", "south"]
    other.prepared("south", rows=5, seconds=1.0)
    assert other.take(1)["run_id"] == "b"
    assert other.take(1) == {"do": "wait"}


def test_plants_are_prepared_one_a_lane_and_all_lanes_wait_for_the_last(store_uri):
    at = board(store_uri)
    for lane in (0, 1):
        at.enter(lane, token=f"a{lane}", num_lanes=MANY)
    assert at.prepare(0) == {"do": "prepare", "plant": "north"}
    assert at.prepare(1) == {"do": "prepare", "plant": "south"}
    at.prepared("north", rows=5, seconds=1.0)
    assert at.prepare(0) == {"do": "wait"}
    at.prepared("south", rows=0, seconds=1.0, error="InputError: no frame")
    assert at.prepare(0) == at.prepare(1) == {"do": "go", "together": True}
    assert [(e["plant"], e["error"]) for e in at.events(0)] == [("north", None), ("south", "InputError: no frame")]


def test_the_plant_of_a_dead_worker_is_prepared_by_another_once_and_then_left_to_its_runs(store_uri):
    at = board(store_uri)
    at.prepared("south", rows=1, seconds=0.0)
    at.unprepared.remove("south")
    for n in range(2):
        at.enter(0, token=str(n), num_lanes=MANY)
        assert at.prepare(0) == {"do": "prepare", "plant": "north"}
        at.blame({0: "out of memory"})
    at.enter(0, token="2", num_lanes=MANY)
    assert at.prepare(0) == {"do": "go", "together": True}


def test_the_plants_of_a_finished_plan_are_not_prepared_again(store_uri):
    first = board(store_uri)
    for run in PLAN.runs:
        first.start(run.run_id, lane="0")
        finish(first, run.run_id)
    assert board(store_uri).prepare(0) == {"do": "go", "together": False}


def test_where_a_disk_is_full_nothing_more_is_taken_and_no_run_is_blamed(store_uri, monkeypatch):
    at = board(store_uri)
    at.prepared("north", rows=5, seconds=1.0)
    assert at.take(0)["run_id"] == "own"

    def failing(*args, **kwargs):
        raise NoSpace("the disk is full", file="cache")

    monkeypatch.setattr("jobs.fit.fit_run", failing)
    call = lambda method, *a, **k: getattr(at, method)(*a, **k)  # noqa: E731
    _work(PLAN.run("own"), material=Nothing(), plan=PLAN, call=call, world=World())
    assert (at.take(0), at.take(1), at.shared()) == ({"do": "stop"}, {"do": "stop"}, [])
    assert at.prepare(0) == {"do": "go", "together": True}
    assert at.why_halted() == "file cache: the disk is full"
    assert {record.strikes for record in at.records.values()} == {0}
    later = board(store_uri)
    assert later.why_halted() is None
    assert later.take(0) == {"do": "run", "run_id": "own"}


def test_a_full_disk_under_the_store_halts_the_plan_and_not_the_board(store_uri, monkeypatch):
    at = board(store_uri)

    def full(record):
        raise NoSpace("the disk is full")

    monkeypatch.setattr(at.ledger, "put", full)
    assert at.take(0)["do"] == "run"
    assert at.take(1) == {"do": "stop"}


def test_what_a_lane_has_to_say_is_an_event(store_uri):
    at = board(store_uri)
    at.note("evicted from the cache: x")
    assert [(event["kind"], event["text"]) for event in at.events(0)] == [("note", "evicted from the cache: x")]


@pytest.mark.parametrize(
    ("error", "size", "is_a_strike"),
    [
        (OSError("the store is away"), 1, True),
        (OSError("the store is away"), 2, False),
        (InputError("a row has no label"), 2, True),
        (FloatingPointError("the loss is nan"), 2, True),
    ],
)
def test_an_error_of_one_worker_alone_ends_the_group_of_a_shared_run(monkeypatch, error, size, is_a_strike):
    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr("jobs.fit.fit_run", failing)
    calls = []

    def call(method, *args, **kwargs):
        calls.append(method)

    work = {"material": Nothing(), "plan": PLAN, "call": call, "world": World(rank=0, size=size)}
    if is_a_strike:
        _work(PLAN.run("pooled"), **work)
        assert calls == ["strike"]
    else:
        with pytest.raises(OSError, match="the store is away"):
            _work(PLAN.run("pooled"), **work)
        assert calls == []
