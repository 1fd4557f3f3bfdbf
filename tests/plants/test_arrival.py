"""A new plant's labels come in by lots, in the order of time where it is known; a floor is reached once, or not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from plants.arrival import Reached, arrivals, floor_of, labels_to_floor, level, sizes_up_to
from plants.scores import PartScores

PARTS = [f"p{i}" for i in range(24)]
LOTS = [f"L{i // 3}" for i in range(24)]
DAYS = [f"2026-01-{1 + (7 * (i // 3)) % 8:02d}T08:00:00" for i in range(24)]


def scores_of(truth, said, *, lots=None, ok=("good",)):
    """Parts of which each is said to be of a class with certainty."""
    classes = ("good", "dent", "crack")
    probs = np.array([[name == one for name in classes] for one in said], dtype=float)
    ids = [f"p{i}" for i in range(len(truth))]
    lots = lots if lots is not None else [f"L{i // 2}" for i in range(len(truth))]
    return PartScores(ids, lots, ["line"] * len(ids), truth, probs, classes, ok)


def test_lots_arrive_as_they_were_taken_whole_and_every_order_begins_elsewhere():
    orders = arrivals(PARTS, LOTS, DAYS, num=4, seed=0)
    time = dict(zip(PARTS, DAYS, strict=True))
    lot = dict(zip(PARTS, LOTS, strict=True))
    assert [time[part] for part in orders[0]] == sorted(DAYS)
    assert len({order[0] for order in orders}) == 4
    for order in orders:
        assert sorted(order) == sorted(PARTS)
        at = order.index(orders[0][0])
        assert order[at:] + order[:at] == orders[0]
        seen = [lot[part] for part in order]
        assert len([1 for a, b in itertools.pairwise(seen) if a != b]) == 7


@pytest.mark.parametrize("seed", range(3))
def test_where_a_time_is_missing_orders_are_drawn_and_lots_stay_whole(seed):
    days = [None, *DAYS[1:3], *[None] * 21]
    orders = arrivals(PARTS, LOTS, days, num=4, seed=seed)
    assert orders == arrivals(PARTS, LOTS, days, num=4, seed=seed)
    assert orders != arrivals(PARTS, LOTS, days, num=4, seed=seed + 1)
    for order in orders:
        lots = [LOTS[PARTS.index(part)] for part in order]
        assert sorted(order) == sorted(PARTS)
        assert len(list(dict.fromkeys(lots))) == 8
        assert lots == [name for name in dict.fromkeys(lots) for _ in range(3)]


def test_there_are_no_more_orders_than_lots_and_none_without_parts():
    assert len(arrivals(PARTS[:6], LOTS[:6], DAYS[:6], num=4, seed=0)) == 2
    assert arrivals([], [], [], num=4, seed=0) == []


def test_a_curve_ends_at_all_labels_or_at_two_thousand():
    assert sizes_up_to(0) == []
    assert sizes_up_to(3) == [3]
    assert sizes_up_to(50) == [5, 10, 20, 50]
    assert sizes_up_to(60)[-2:] == [50, 60]
    assert sizes_up_to(10**6)[-1] == 2_000


def test_a_level_is_the_mean_over_orders_and_wider_where_orders_disagree():
    rng = np.random.default_rng(0)
    truth = np.array(["good", "dent", "crack"])[rng.integers(0, 3, size=120)]
    lots = [f"L{i // 4}" for i in range(120)]
    blind = scores_of(truth, np.where(truth == "dent", "good", truth), lots=lots)
    half = scores_of(truth, np.where(rng.random(120) < 0.5, truth, "good"), lots=lots)
    apart, alike = level([blind, half]), level([half, half])
    one, other = (level([scores])["macro_f1"]["value"] for scores in (blind, half))
    assert apart["macro_f1"]["value"] == pytest.approx((one + other) / 2)
    assert apart["caught"]["dent"] == pytest.approx(level([half])["caught"]["dent"] / 2)
    bad = truth != "good"
    assert level([blind])["defect_recall"]["value"] == pytest.approx((truth == "crack").sum() / bad.sum())
    assert alike["macro_f1"] == level([half])["macro_f1"]
    span = {
        name: one["macro_f1"]["high"] - one["macro_f1"]["low"] for name, one in (("apart", apart), ("alike", alike))
    }
    assert span["apart"] > span["alike"]


def test_intervals_of_a_level_hold_the_truth():
    held = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        truth = np.array(["good", "dent", "crack"])[rng.integers(0, 3, size=150)]
        wrong = rng.random((3, 150)) < 0.2  # three orders, each wrong in a fifth of all parts
        orders = [
            scores_of(truth, np.where(one, np.roll(truth, 1), truth), lots=[f"L{i // 5}" for i in range(150)])
            for one in wrong
        ]
        recall = level(orders, seed=seed, n_boot=200)["defect_recall"]
        true = 1 - 0.2 / 3  # a wrong bad part is called what the part before is, good in a third of all cases
        held.append(recall["low"] <= true <= recall["high"])
    assert np.mean(held) >= 0.93


def test_without_good_classes_or_bad_parts_recall_of_defects_is_not_counted_and_few_lots_have_no_interval():
    truth = ["dent", "crack"] * 4
    assert level([scores_of(truth, truth, ok=())])["defect_recall"]["value"] is None
    assert level([scores_of(["good"] * 8, ["good"] * 8)])["defect_recall"]["value"] is None
    found = level([scores_of(truth, truth)])["macro_f1"]
    assert (found["value"], found["low"], found["words"]) == (1.0, None, "not enough lots")


def test_what_was_right_in_every_part_is_not_known_to_be_without_fault():
    truth = ["good", "dent"] * 20
    found = level([scores_of(truth, truth)])["macro_f1"]
    assert found["value"] == found["high"] == 1.0
    assert found["low"] < 0.95


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([0.1, 0.2, 0.3], Reached(0.0)),
        ([-0.3, -0.2, -0.1], Reached(None, 20)),
        ([-0.2, 0.2, 0.3], Reached(math.expm1(0.5 * math.log1p(10)))),
        ([-0.3, -0.1, 0.1], Reached(math.expm1(0.5 * (math.log1p(10) + math.log1p(20))))),
        ([-0.4, 0.1, -0.1], Reached(10.0)),  # a fall is chance: both are averaged
        ([0.0, 0.0, 0.0], Reached(0.0)),
    ],
)
def test_the_labels_to_a_floor_lie_where_the_rising_curve_crosses_it(gaps, expected):
    found = labels_to_floor(gaps, sizes=[0, 10, 20])
    assert found.more_than == expected.more_than
    assert found.labels == (None if expected.labels is None else pytest.approx(expected.labels))


def test_a_floor_that_no_label_reached_is_said_in_words():
    assert labels_to_floor([-0.2, -0.1], sizes=[0, 1500]).words == "more than 1,500"


def test_recall_floors_come_before_macro_f1_and_the_worst_class_decides():
    floor = floor_of({"dent": 0.9, "crack": 0.5, "stain": 0.0}, end=0.8)
    point = {"caught": {"dent": 0.8, "crack": 0.9}, "macro_f1": {"value": 0.1}}
    assert floor.gap(point) == pytest.approx(-0.1)
    assert "90% of dent, 50% of crack" in floor.words
    assert floor.gap({**point, "caught": {}}) is None
    plain = floor_of({"dent": 0.0}, end=0.8, margin=0.1)
    assert plain.gap(point) == pytest.approx(-0.6)
    assert floor_of({}, end=None) is None
