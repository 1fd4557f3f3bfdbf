"""Columns read at once say what cells read one by one would say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from plants.cells import Cells, Refused


def test_of_each_row_the_first_reason_is_kept():
    cells = Cells(pd.DataFrame({"a": ["x", "y", "z"]}))
    cells.refuse(np.array([None, "first", np.nan], dtype=object))
    cells.refuse(np.array(["second", "second", None], dtype=object))
    assert cells.reasons.tolist() == ["second", "first", None]


def test_each_different_cell_is_judged_once():
    asked = []

    def judge(text: str) -> str:
        asked.append(text)
        if text == "bad":
            raise Refused("it is bad")
        return text.upper()

    cells = Cells(pd.DataFrame({"a": ["x", "bad", "", "x", None, "bad"]}))
    assert cells.column("a", judge).tolist() == ["X", None, None, "X", None, None]
    assert cells.reasons.tolist() == [None, "it is bad", None, None, None, "it is bad"]
    assert sorted(asked) == ["bad", "x"]


TIMES = ["2026-03-31T14:05:00+02:00", "2026-03-31 14:05", "2026", "20260331", "3/4/2026", "2026-03-31T14:05:00.123456Z"]


@pytest.mark.parametrize("text", TIMES)
def test_a_time_is_what_pandas_makes_of_it_alone_whatever_stands_in_the_other_rows(text):
    alone = pd.Timestamp(text)
    expected = alone.tz_localize("UTC") if alone.tzinfo is None else alone.tz_convert("UTC")
    cells = Cells(pd.DataFrame({"at": [*TIMES, text, "", "soon"]}))
    assert cells.times("at").iloc[len(TIMES)] == expected
    assert cells.times("at").isna().tolist() == [False] * (len(TIMES) + 1) + [True, True]
    assert cells.reasons[-1] == "at 'soon' is not a time; write it like 2026-03-31T14:05:00Z"


@pytest.mark.parametrize(
    ("corners", "box", "reason"),
    [
        (("1", "2", "9", "10"), [1, 2, 9, 10], None),
        ((" 1.5", "2.5", "9", "1e1"), [2, 2, 9, 10], None),
        (("", "", "", ""), [0, 0, 0, 0], None),
        (("1", "2", "9", ""), [0, 0, 0, 0], "not four numbers"),
        (("1", "2", "inf", "10"), [0, 0, 0, 0], "not four numbers"),
        (("1", "2", "nan", "10"), [0, 0, 0, 0], "not four numbers"),
        (("9", "2", "1", "10"), [0, 0, 0, 0], "empty or inverted"),
        (("-1", "2", "9", "10"), [0, 0, 0, 0], "empty or inverted"),
        (("1", "2", "1e300", "10"), [0, 0, 0, 0], "leaves every frame"),
    ],
)
def test_a_box_in_four_columns_reads_as_a_box_in_one(corners, box, reason):
    good = ("0", "0", "3", "3")
    four = Cells(pd.DataFrame([good, corners, good], columns=["x0", "y0", "x1", "y1"], dtype=str))
    assert four.boxes().tolist() == [[0, 0, 3, 3], box, [0, 0, 3, 3]]
    one = Cells(pd.DataFrame({"box": [",".join(map(str.strip, corners)).strip(",")]}))
    assert one.boxes().tolist() == [box]
    for found in (four.reasons[1], one.reasons[0]):
        assert (reason in found) if reason else found is None
    assert [four.reasons[0], four.reasons[2]] == [None, None]
