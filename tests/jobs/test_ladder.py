"""The ladder is a pure decision: which INT8 is tried next, which is kept, and why not the others."""

from __future__ import annotations

import pytest

from jobs.ladder import RUNGS, Tried, kept, next_rung, sentence
from plants.variants import Pair, PlantGate, Speed

FAST, SLOW = Speed(6.0, 2.0, 3.0), Speed(2.0, 3.0, 0.67)


def tried(*steps: tuple[float, Speed]) -> list[Tried]:
    """One rung each: the macro-F1 that INT8 loses at `press`, in points, and its speed."""
    none = Pair(float32=None, int8=None)
    found = []
    for rung, (lost, speed) in zip(RUNGS, steps, strict=False):
        gates = {
            name: PlantGate(n=10, macro_f1=Pair(float32=0.9, int8=0.9 - points / 100), cost=none)
            for name, points in (("mill", 0.5), ("press", lost))
        }
        found.append(Tried(rung, gates, speed))
    return found


@pytest.mark.parametrize(
    ("steps", "next_name", "kept_name", "words"),
    [
        ([], "int8 minmax", None, "kept float: there was nothing to quantise or to calibrate on"),
        ([(0, FAST)], None, "int8 minmax", "kept int8 minmax: 3.00 x as fast as float (from 1.05), the largest loss"),
        ([(0, SLOW)], None, None, "kept float: not faster here: 3 ms an image, float 2"),
        ([(5, FAST)], "int8 percentile", None, "kept float: press: macro-F1 loses 5.0 points, 2 are allowed"),
        ([(5, SLOW)], None, None, "kept float: press: macro-F1 loses 5.0 points"),
        (
            [(5, FAST), (1, FAST)],
            None,
            "int8 percentile",
            "kept int8 percentile: 3.00 x as fast as float (from 1.05), the largest loss of macro-F1 is 1.0 points, "
            "after int8 minmax did not hold",
        ),
        ([(5, FAST), (3, FAST)], "int8 entropy", None, "kept float: press"),
        ([(5, FAST), (3, FAST), (3, FAST)], "int8 minmax, 3 worst float", None, "kept float: press"),
        ([(5, FAST), (3, FAST), (3, FAST), (3, SLOW)], None, None, "kept float: press: macro-F1 loses 3.0 points"),
        ([(5, FAST), (3, FAST), (3, FAST), (1, SLOW)], None, None, "kept float: not faster here"),
        ([(5, FAST), (3, FAST), (3, FAST), (1, FAST)], None, "int8 minmax, 3 worst float", "kept int8 minmax, 3 worst"),
        ([(5, FAST)] * 4, "int8 minmax, 8 worst float", None, "kept float: press"),
        ([(5, FAST)] * 5, None, None, "kept float: press"),
    ],
)
def test_the_first_rung_that_holds_everywhere_and_is_faster_is_kept_else_float(
    steps: list[tuple[float, Speed]], next_name: str | None, kept_name: str | None, words: str
):
    found = tried(*steps)
    rung, best = next_rung(found), kept(found)
    assert (rung.name if rung else None) == next_name
    assert (best.rung.name if best else None) == kept_name
    assert sentence(found).startswith(words)


def test_one_plant_is_enough_to_refuse_and_every_reason_is_said():
    (found,) = tried((5, SLOW))
    assert found.faults == [
        "press: macro-F1 loses 5.0 points, 2 are allowed",
        "not faster here: 3 ms an image, float 2",
    ]
    assert found.worst_macro_f1 == pytest.approx(0.85)
