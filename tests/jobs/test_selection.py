"""The score on select: likelihood chooses; money where something is good, macro-F1 elsewhere, says what it is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.selection import SHRINK_PARTS, Score, SelectSet, macro_f1, part_probabilities, plant_value, score, select_set
from plants.plant import Costs
from tests.jobs.toys import toy_data, toy_fleet


def parts(truth: str, *, plant: str = "north", ok: tuple[str, ...] = ("g",), costs: Costs | None = None) -> SelectSet:
    """One frame a part; g is good, c is cracked."""
    n = len(truth)
    return SelectSet(
        plant=plant,
        frame_groups=np.arange(n),
        part_groups=np.arange(n),
        truth=np.array(list(truth), dtype=object),
        lots=np.arange(n).astype(str),
        classes=("g", "c"),
        ok_classes=ok,
        matrix=np.eye(2, dtype=np.float32),
        told=np.array([True, True]),
        ok_leaves=np.array([bool(ok), False]),
        top_k=1,
        costs=costs or Costs(miss=100, false_alarm=10, defect_rate=(0.1, 0.05, 0.2)),
    )


def probs(*cracked: float) -> np.ndarray:
    p = np.array(cracked)
    return np.stack([1 - p, p], axis=1)


@pytest.mark.parametrize(
    ("cracked", "value"),
    [
        ((0.1, 0.2, 0.8, 0.9), 1.0),
        ((0.9, 0.8, 0.2, 0.1), 0.0),
        ((0.5, 0.5, 0.5, 0.5), 0.0),
        # one crack passes: 0.2 * 100 / 2 against an idle cost of (1 - 0.2) * 10
        # the best threshold rejects one good part instead: 0.8 * 10 / 2 of 8
        ((0.1, 0.6, 0.5, 0.9), 0.5),
    ],
)
def test_with_a_good_class_the_value_is_the_money_that_looking_saves(cracked, value):
    assert plant_value(probs(*cracked), among=parts("ggcc")) == pytest.approx(value)


def test_a_costly_class_weighs_more_than_a_cheap_one():
    """Passing the cheap crack is taken in stride; the value depends on which of the two slips."""
    costs = Costs(miss=10, miss_by_class={"c": 1000}, false_alarm=10, defect_rate=(0.5, 0.5, 0.5))
    cheap = parts("ggcc", costs=Costs(miss=10, false_alarm=10, defect_rate=(0.5, 0.5, 0.5)))
    dear = parts("ggcc", costs=costs)
    at = probs(0.1, 0.3, 0.2, 0.9)
    assert plant_value(at, among=cheap) == pytest.approx(0.5)
    assert plant_value(at, among=dear) == pytest.approx(0.5)
    assert plant_value(probs(0.1, 0.9, 0.8, 0.2), among=dear) < 0.6


def test_without_a_good_class_or_without_bad_parts_the_value_is_macro_f1():
    assert plant_value(probs(0.1, 0.9, 0.9, 0.9), among=parts("ggcc", ok=())) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert plant_value(probs(0.1, 0.2), among=parts("gg")) == 1.0


def test_macro_f1_counts_the_classes_that_occur():
    truth = np.array(["a", "a", "b"], dtype=object)
    assert macro_f1(truth, np.array(["a", "c", "b"], dtype=object)) == pytest.approx((2 / 3 + 1) / 2)


def test_the_value_is_the_worst_plants_after_shrinkage_towards_the_mean():
    good, bad = parts("ggcc"), parts("gcgc", plant="south")
    found = score([probs(0.1, 0.2, 0.8, 0.9), probs(0.1, 0.2, 0.8, 0.9)], sets=[good, bad])
    assert found.by_plant["north"] == 1.0
    assert found.by_plant["south"] < 1.0
    mean = np.mean(list(found.by_plant.values()))
    assert found.value == pytest.approx((4 * found.by_plant["south"] + SHRINK_PARTS * mean) / (4 + SHRINK_PARTS))


def test_where_nothing_can_be_judged_there_is_no_value_and_a_plant_without_parts_is_left_out():
    assert score([probs()], sets=[parts("")]) == Score(None, None, {})
    assert set(score([probs(), probs(0.1, 0.9)], sets=[parts(""), parts("gc", plant="south")]).by_plant) == {"south"}


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        ((0.8, 0.1), (0.9, 1.0), True),
        ((0.9, 1.0), (0.8, 0.1), False),
        ((0.9, 0.1), (0.9, 0.2), True),
        ((0.9, 0.2), (0.9, 0.1), False),
        ((0.9, 0.1), (0.9, 0.1), False),
        ((None, None), (None, None), True),
        ((0.9, 0.1), (0.9, float("nan")), True),
        ((0.9, float("nan")), (0.9, 0.1), False),
    ],
)
def test_the_likelier_model_is_kept_whatever_its_value(new, old, better):
    assert Score(*new, {}).beats(Score(*old, {})) is better
    assert Score(*new, {}).beats(None)


def test_tiles_become_frames_and_frames_become_parts_by_the_most_suspicious():
    among = parts("gc")
    rows = probs(0.1, 0.9, 0.2, 0.3)
    tiled = SelectSet(**{**{f: getattr(among, f) for f in among.__slots__}, "frame_groups": np.array([0, 0, 1, 2]),
                         "part_groups": np.array([0, 1, 1])})  # fmt: skip
    assert part_probabilities(rows, among=tiled)[0][:, 1] == pytest.approx([0.9, 0.3])


def test_knowing_what_a_plant_does_not_label_costs_no_likelihood():
    among = parts("gc")
    among = replace(
        among, matrix=np.eye(3, 2, dtype=np.float32), told=np.array([1, 1, 0], bool), ok_leaves=np.eye(3)[0] > 0
    )
    plain, knowing = np.array([[0.8, 0.2, 0], [0.4, 0.6, 0]]), np.array([[0.4, 0.1, 0.5], [0.4, 0.6, 0]])
    assert score([knowing], sets=[among]).nll == pytest.approx(score([plain], sets=[among]).nll)


def test_a_select_set_holds_the_select_rows_of_a_plant_only(tmp_path):
    fleet = toy_fleet("north")
    data = toy_data(tmp_path, fleet=fleet, name="north", num_train=10, num_select=6)
    found = select_set(data, leaf_sets=fleet.leaf_sets(fleet.plant("north")), leaves=fleet.leaves(fleet.plants))
    assert len(found.truth) == 6
    in_order = data.rows.iloc[10:].sort_values("part_id")["truth"]
    assert list(found.truth) == list(in_order)
