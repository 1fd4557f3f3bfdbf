"""Copies are found among what is asked about, in any order of rows; what was not compared is counted and explained."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from cluster.likeness import Compared, Looked, compared
from plants.errors import InputError
from plants.plant import Plant

NORTH, SOUTH = (
    Plant.model_validate({"name": name, "images": "x", "classes": {"a": "a"}}) for name in ("north", "south")
)
NUMBERS = itertools.count()
PAST = "no import has looked at them"


def picture(number: int) -> np.ndarray:
    grain = gaussian_filter(np.random.default_rng(number).normal(0, 1, (64, 64)), 1.5)
    return np.clip(128 + 40 * grain / grain.std(), 0, 255).astype(np.uint8)


def rows(*pictures: int) -> pd.DataFrame:
    """A frame of each picture, of a file of its own."""
    frames = [f"{i}.png" for i in range(len(pictures))]
    return pd.DataFrame({"frame": frames, "sha256": [f"file {next(NUMBERS)}" for _ in pictures], "shows": pictures})


def look(plant: Plant, table: pd.DataFrame, is_read: bool) -> Looked:
    """What is not read is known unless its number is negative."""
    is_known = np.array([is_read or number >= 0 for number in table["shows"]], dtype=bool)
    thumbs = [picture(abs(number)) for number in table["shows"]]
    return Looked(np.array(thumbs, dtype=np.uint8).reshape(-1, 64, 64) * is_known[:, None, None], is_known)


def found(table: pd.DataFrame, *, recorded=None, others=(), look=look) -> Compared:
    return compared(table, plant=NORTH, recorded=recorded, others=others, look=look)


def edges(result: Compared) -> set[tuple[int, int]]:
    return {(pair.i, pair.j) for pair in result.pairs}


def test_copies_are_found_here_and_at_other_plants_and_nothing_is_said_where_all_were_compared():
    result = found(rows(1, 2, 3, 2), others=[(SOUTH, rows(4, 3))])
    assert edges(result) == {(1, 3), (2, 5)}
    assert result.notes == []


def test_in_a_larger_fleet_only_new_frames_are_asked_about_and_they_are_compared_with_every_known_one(monkeypatch):
    monkeypatch.setattr("cluster.likeness.MAX_ASKED", 3)
    table = rows(1, 2, 1, 3, 5)
    recorded = table.iloc[[0, 1, 2]]
    result = found(table, recorded=recorded, others=[(SOUTH, rows(3, 2, 6))])
    assert edges(result) == {(3, 5)}, "1 shows what 0 shows and 1 what 6, but they were asked about before"
    changed = recorded.assign(sha256=[*table["sha256"].iloc[:2], "before"])
    assert edges(found(table, recorded=changed, others=[(SOUTH, rows(3, 2, 6))])) == {(0, 2), (3, 5)}


def test_in_a_larger_fleet_frames_that_no_import_has_looked_at_are_asked_about_too(monkeypatch):
    monkeypatch.setattr("cluster.likeness.MAX_ASKED", 3)
    table = rows(1, -2, 3, 4)
    result = found(table, recorded=table, others=[(SOUTH, rows(2, 1))])
    assert edges(result) == {(1, 4)}, "0 shows what 5 shows, but was asked about before"


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("MAX_ASKED", "4 frames to compare are more than 3: only"),
        ("MAX_FRAMES", "the fleet's 6 frames are more than 3: only"),
    ],
)
def test_beyond_the_limits_only_equal_files_are_found_and_that_is_said(limit, words, monkeypatch):
    monkeypatch.setattr(f"cluster.likeness.{limit}", 3)
    if limit == "MAX_FRAMES":
        monkeypatch.setattr("cluster.likeness.MAX_ASKED", 5)
    table = rows(1, 2, 3, 2)
    table.loc[2, "sha256"] = table.loc[0, "sha256"]
    result = found(table, others=[(SOUTH, rows(4, 3))])
    assert edges(result) == {(0, 2)}
    (note,) = result.notes
    assert note.startswith(words)


def test_frames_of_other_plants_that_nobody_has_looked_at_are_counted():
    result = found(rows(1, 2), others=[(SOUTH, rows(2, -1, -3))])
    assert edges(result) == {(1, 2)}
    assert result.notes == [f"2 of 3 frames of south were not compared: {PAST}"]


def test_a_plant_that_may_not_leave_is_not_looked_at_for_another_one_but_for_itself():
    private = SOUTH.model_copy(update={"may_leave": False})
    result = found(rows(1, 2), others=[(private, rows(2))])
    assert edges(result) == set()
    (note,) = result.notes
    assert note.startswith("1 of 1 frames of south were not compared: its may_leave is false")
    own = compared(rows(2, 5), plant=private, recorded=None, others=[(NORTH, rows(2))], look=look)
    assert edges(own) == {(0, 2)}


def test_a_store_of_another_plant_that_cannot_be_read_stops_no_import_and_ones_own_does():
    def denied(plant: Plant, table: pd.DataFrame, is_read: bool) -> Looked:
        if plant is SOUTH or table["shows"].eq(9).any():
            raise InputError("the object store denied access")
        return look(plant, table, is_read)

    result = found(rows(1, 1), others=[(SOUTH, rows(1))], look=denied)
    assert edges(result) == {(0, 1)}
    assert result.notes == ["1 of 1 frames of south were not compared: the object store denied access"]
    with pytest.raises(InputError, match="denied"):
        found(rows(9), look=denied)


def test_without_eyes_nothing_is_compared():
    assert found(rows(1, 1), look=None) == Compared([], [])
