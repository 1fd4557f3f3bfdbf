"""What the comparison of a fleet puts first."""

from __future__ import annotations

from jobs.compare import worst_first


def test_plants_come_worst_first_and_one_without_a_figure_before_all():
    matrix = {"m": {"a": {"macro_f1": 0.9}, "b": {"macro_f1": 0.2}, "c": {"macro_f1": None}}}
    assert worst_first({name: {"model": "m"} for name in "abc"}, matrix) == ["c", "b", "a"]
