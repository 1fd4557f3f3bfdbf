"""Labels of one picture contradict each other where both plants would have told the two apart, and nowhere else."""

from __future__ import annotations

import pandas as pd
import pytest

from plants.conflicts import NUM_NAMED, conflicting_files, contradict
from plants.plant import Plant


def plant(name: str, **classes: str) -> Plant:
    ok = [word for word, fleet in classes.items() if fleet == "ok"]
    return Plant.model_validate({"name": name, "images": "x", "classes": classes, "ok": ok})


MILL = plant("mill", good="ok", plate="scale", red="scale", scratch="scratch")
WERK = plant("werk", gut="ok", zunder="scale", kratzer="scratch")
YARD = plant("yard", fine="ok", plate="scale", rolled="scale", red="rust")


@pytest.mark.parametrize(
    ("a", "class_a", "b", "class_b", "is_conflict"),
    [
        (MILL, "good", MILL, "good", False),
        (MILL, "plate", MILL, "red", True),
        (MILL, "good", WERK, "gut", False),
        (MILL, "good", WERK, "kratzer", True),
        (MILL, "plate", WERK, "zunder", False),
        (MILL, "plate", YARD, "plate", False),
        (MILL, "plate", YARD, "rolled", False),  # mill has no such class: its plates may be rolled
        (MILL, "red", YARD, "red", True),  # one word for two things
        (MILL, "no longer declared", WERK, "kratzer", False),
    ],
)
def test_labels_are_compared_as_finely_as_both_plants_tell_them_apart(a, class_a, b, class_b, is_conflict):
    assert contradict(a, class_a, b, class_b) is is_conflict
    assert contradict(b, class_b, a, class_a) is is_conflict


def rows(*labels: tuple[str, str | None]) -> pd.DataFrame:
    """A row for each digest and class."""
    table = pd.DataFrame(labels, columns=["sha256", "class"])
    return table.assign(frame=[f"{i}.png" for i in range(len(table))])


def test_one_file_under_two_labels_is_an_error_at_one_plant_and_a_warning_between_two():
    tables = [(MILL, rows(("a", "good"), ("a", "red"), ("b", "plate"))), (WERK, rows(("b", "kratzer")))]
    inside, between = conflicting_files(tables, names=["mill"])
    assert (inside.level, inside.kind, inside.plant) == ("error", "conflicting_labels", "mill")
    assert "mill:0.png as 'good' and mill:1.png as 'red'" in inside.detail
    assert (between.level, between.kind, between.plant) == ("warning", "conflicting_labels", "mill")
    assert "1 times: mill:2.png as 'plate' and werk:0.png as 'kratzer'" in between.detail


def test_a_conflict_is_told_of_the_plant_that_was_asked_about_and_of_no_other():
    tables = [(MILL, rows(("a", "good"), ("a", "red"), ("b", "plate"))), (WERK, rows(("b", "kratzer")))]
    (found,) = conflicting_files(tables, names=["werk"])
    assert (found.level, found.plant) == ("warning", "werk")
    assert conflicting_files(tables, names=["yard"]) == []


def test_files_that_agree_and_sealed_answers_are_no_conflict():
    tables = [(MILL, rows(("a", "good"), ("a", "good"), ("b", None))), (WERK, rows(("a", "gut"), ("b", "kratzer")))]
    assert conflicting_files(tables, names=["mill", "werk"]) == []


def test_of_many_conflicts_the_first_are_named_and_all_are_counted():
    digests = [f"{i:02d}" for i in range(NUM_NAMED + 2)]
    tables = [(MILL, rows(*((d, "good") for d in digests))), (WERK, rows(*((d, "kratzer") for d in digests)))]
    (found,) = conflicting_files(tables, names=["mill", "werk"])
    assert f"{NUM_NAMED + 2} times" in found.detail
    assert found.detail.endswith("; and 2 more")
