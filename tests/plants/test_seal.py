"""The sealed test opens five times a generation, and the ledger says who."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone

import pytest

from plants.errors import InputError, SealError
from plants.seal import BUDGET, Opening, check_budget, num_openings, opened, read_ledger

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)


def opening(*, plant: str = "werk-1", generation: int = 1, day: int = 0) -> Opening:
    return opened(plant=plant, generation=generation, who="kim", bundles=["b" * 64], at=NOON + timedelta(days=day))


@pytest.mark.parametrize("spent", range(BUDGET))
def test_each_opening_within_the_budget_leaves_one_fewer(spent):
    assert check_budget([opening()] * spent, plant="werk-1", generation=1) == BUDGET - spent - 1


def test_the_sixth_opening_is_refused_with_the_date_of_the_last_and_the_remedy():
    openings = [opening(day=day) for day in range(BUDGET)]
    with pytest.raises(SealError, match=r"5 times of 5, last on 2026-04-04.*new generation") as caught:
        check_budget(openings, plant="werk-1", generation=1)
    assert "werk-1" in str(caught.value)


def test_a_new_generation_and_another_plant_have_budgets_of_their_own():
    openings = [opening()] * BUDGET
    assert check_budget(openings, plant="werk-1", generation=2) == BUDGET - 1
    assert check_budget(openings, plant="werk-2", generation=1) == BUDGET - 1
    assert num_openings([*openings, opening(generation=2)], plant="werk-1", generation=2) == 1


def test_a_budget_of_nothing_opens_nothing():
    with pytest.raises(SealError, match="0 times of 0"):
        check_budget([], plant="werk-1", generation=1, budget=0)


def test_the_ledger_gives_back_what_was_written():
    first = opening()
    given = {"plant": "werk-2", "generation": 3, "who": "kim", "bundles": ["b" * 64], "at": NOON}
    openings = [first, opened(**given, after=[first])]
    assert read_ledger("".join(o.line for o in openings)) == openings
    assert read_ledger("") == []
    assert read_ledger("\n\n") == []


def test_a_ledger_line_states_the_time_in_utc():
    local = NOON.astimezone(timezone(timedelta(hours=9)))
    line = opened(plant="p", generation=1, who="kim", bundles=[], at=local).line
    assert '"at": "2026-03-31T12:00:00+00:00"' in line


@pytest.mark.parametrize("bad", ["{", '{"plant": "werk-1"}', "null", '{"generation": 0}'])
def test_an_unreadable_ledger_opens_nothing_and_names_the_line(bad):
    with pytest.raises(InputError, match=r"sealed/ledger\.jsonl.*line 2"):
        read_ledger(opening().line + bad + "\n")


@pytest.mark.parametrize("change", [{"who": ""}, {"plant": ""}, {"generation": 0}, {"at": datetime(2026, 3, 31)}])
def test_an_opening_must_say_who_for_what_and_when(change):
    fields = {"plant": "werk-1", "generation": 1, "who": "kim", "bundles": ["b"], "at": NOON}
    with pytest.raises(SealError, match="must say who"):
        opened(**{**fields, **change})


def test_a_refusal_crosses_a_process_boundary():
    error = SealError("spent", plant="werk-1", remedy="Import new lots")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
