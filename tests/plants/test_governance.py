"""What a plant's flags forbid is said by pure rules, and read from the fleet's file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from plants.errors import InputError
from plants.governance import check_holds, flags, is_due, kept, may_hold, oldest, words
from plants.plant import Fleet, Plant, load_fleet

NOW = datetime(2026, 3, 31, tzinfo=UTC)


def plant(name: str = "mill", **changes) -> Plant:
    return Plant.model_validate({"name": name, "images": "i", "classes": {"dent": "dent"}, **changes})


def taken(*days_ago: float | None) -> pd.DataFrame:
    times = [None if days is None else NOW - timedelta(days=days) for days in days_ago]
    return pd.DataFrame({"frame": range(len(times)), "captured_at": pd.to_datetime(times, utc=True)})


@pytest.mark.parametrize(
    ("changes", "serves", "may"),
    [
        ({}, ["mill", "press"], True),
        ({"may_leave": False}, ["mill"], True),
        ({"may_leave": False}, ["mill", "press"], False),
        ({"may_leave": False}, ["press"], False),
        ({"may_train": False}, ["mill"], False),
    ],
)
def test_a_bundle_holds_what_was_drawn_from_a_plant_only_where_the_plant_allows_it(changes, serves, may):
    one = plant(**changes)
    assert may_hold(one, serves=serves) is may
    if may:
        check_holds([one], serves=serves)
    else:
        with pytest.raises(InputError, match=f"plant mill: field {next(iter(changes))}: a bundle that serves"):
            check_holds([plant("press"), one], serves=serves)


def test_frames_are_kept_for_the_days_of_the_plant_and_those_of_unknown_time_are_not_refused():
    rows = taken(40, 29, None, 0)
    assert kept(plant(retention_days=30), rows, now=NOW)["frame"].tolist() == [1, 2, 3]
    assert kept(plant(), rows, now=NOW) is rows


def test_a_copy_is_as_old_as_its_oldest_frame_or_as_itself_where_no_time_is_known():
    assert oldest(taken(3, 9, None), now=NOW) == NOW - timedelta(days=9)
    assert oldest(taken(None), now=NOW) == oldest(pd.DataFrame({"frame": [1]}), now=NOW) == NOW


def test_a_copy_is_due_after_the_days_of_the_plant_and_never_where_it_names_none():
    since = NOW - timedelta(days=30, seconds=1)
    assert is_due(plant(retention_days=30), since=since, now=NOW)
    assert not is_due(plant(retention_days=31), since=since, now=NOW)
    assert not is_due(plant(), since=since, now=NOW)


def test_every_flag_that_forbids_something_is_a_line_and_stands_in_the_record():
    fleet = [plant("a"), plant("b", may_train=False, retention_days=7), plant("c", may_leave=False)]
    assert [line.split(":")[0] for line in words(fleet)] == ["plant b", "plant b", "plant c"]
    assert flags(fleet)["b"].model_dump() == {"may_train": False, "may_leave": True, "retention_days": 7}


@pytest.mark.parametrize("days", [0, -3, "soon"])
def test_a_retention_that_is_no_number_of_days_is_refused(tmp_path, days):
    file = tmp_path / "fleet.yaml"
    file.write_text(f"fleet: f\nplants: [{{name: mill, images: i, classes: {{d: d}}, retention_days: {days}}}]")
    with pytest.raises(InputError, match=r"plant mill: .*field retention_days"):
        load_fleet(file)


def test_a_plants_own_store_is_found_beside_the_file(tmp_path):
    file = tmp_path / "fleet.yaml"
    file.write_text("fleet: f\nplants: [{name: mill, images: i, classes: {d: d}, store: own}]")
    fleet: Fleet = load_fleet(file)
    assert fleet.plants[0].store == str(tmp_path / "own")
