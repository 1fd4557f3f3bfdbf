"""The forecast of a new plant holds what happens as often as it says, from few plants, and says when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from plants.arrival import Reached
from plants.forecast import LOG, MIN_PLANTS, ODDS, labels_of_new_plant, new_plant, within_factor
from plants.stats import Rate


def measured(rng, *, true, n):
    """A fraction of n parts as it would be reported, with its interval."""
    rate = Rate(int(rng.binomial(n, true)), n)
    span = rate.interval()
    return {"value": rate.value, "low": span.low, "high": span.high, "n": n}


def plants_of(seed, *, num, middle, scatter, n=80):
    rng = np.random.default_rng(seed)
    return [measured(rng, true=ODDS.outside(rng.normal(middle, scatter)), n=n) for _ in range(num)]


@pytest.mark.parametrize(("num", "middle", "scatter"), [(3, 0.0, 0.8), (5, -0.5, 1.2), (7, 2.5, 0.5), (7, 0.5, 0.0)])
def test_a_new_plant_lies_inside_as_often_as_is_said_however_plants_differ(num, middle, scatter):
    held, width = [], []
    for seed in range(400):
        *known, new = plants_of(seed, num=num + 1, middle=middle, scatter=scatter)
        found = new_plant(known)
        held.append(found.holds(new["value"]))
        width.append(found.high - found.low)
    assert 0.92 <= np.mean(held) <= 0.995
    if num == 7:
        assert np.mean(width) < 0.5


def test_it_is_narrower_from_more_plants_and_wider_where_plants_differ():
    def width(**given):
        found = [new_plant(plants_of(seed, middle=0.5, **given)) for seed in range(50)]
        return np.mean([one.high - one.low for one in found])

    assert width(num=10, scatter=0.8) < width(num=4, scatter=0.8)
    assert width(num=6, scatter=0.2) < width(num=6, scatter=1.0)


def test_plants_that_agree_by_chance_are_not_taken_to_be_alike():
    alike = [{"value": 0.8, "low": 0.7, "high": 0.88, "n": 60}] * 5
    found = new_plant(alike)
    assert found.value == pytest.approx(0.8)
    assert found.low < 0.7
    assert found.high > 0.88


def test_where_every_plant_was_right_in_every_part_the_next_may_still_err():
    found = new_plant([{"value": 1.0, "low": 0.94, "high": 1.0, "n": 60}] * 6)
    assert found.low < 0.99 < found.value < 1.0 == found.high
    assert found.holds(0.99)
    assert found.holds(1.0)
    assert not found.holds(0.5)


def test_an_end_is_0_or_1_only_where_the_known_plants_parts_would_not_tell():
    def told(n):
        return new_plant([{"value": value, "low": None, "high": None, "n": n} for value in (0.1, 0.15, 0.2, 0.3)])

    assert 0 < told(2000).low < 0.04
    assert told(10).low == 0
    assert told(10).high == told(2000).high < 1
    assert not told(2000).holds(0.0)
    assert told(10).holds(0.0)


def test_two_plants_and_plants_without_the_figure_forecast_nothing_and_say_so():
    one, none = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50}, {"value": None, "low": None, "high": None, "n": 0}
    for known in ([], [one] * 2, [one] * 2 + [none] * 5):
        found = new_plant(known)
        assert (found.value, found.low, found.words) == (None, None, "not enough plants")
        assert found.holds(0.5) is None
    assert new_plant([one] * MIN_PLANTS + [none]).num_plants == MIN_PLANTS


def test_a_figure_without_an_interval_still_counts():
    bare = [{"value": v, "low": None, "high": None, "n": 9} for v in (0.5, 0.6, 0.7)]
    found = new_plant(bare)
    assert found.low < 0.5 < 0.7 < found.high


def test_money_is_forecast_in_logarithms_and_is_never_negative():
    known = [{"value": v, "low": v * 0.7, "high": v * 1.4, "n": 80} for v in (0.2, 0.9, 1.6, 0.0)]
    found = new_plant(known, scale=LOG)
    assert 0 == found.low < found.value < found.high  # one had next to no cost, so that the end is next to none too


@pytest.mark.parametrize("num", [4, 7])
def test_labels_to_the_floor_lie_inside_as_often_as_is_said_some_never_reached(num):
    held = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        true = np.exp(rng.normal(np.log(60), 0.6, size=num + 1))
        known = [Reached(float(x)) if x < 120 else Reached(None, 120) for x in true[:-1]]
        held.append(labels_of_new_plant(known).holds(float(true[-1])))
    told = [one for one in held if one is not None]
    assert len(told) > 140
    assert np.mean(told) >= 0.9


def test_a_plant_that_needs_no_label_does_not_move_the_estimate_of_the_others():
    usual = [Reached(x) for x in (60.0, 70.0, 80.0, 90.0)]
    with_none, without = labels_of_new_plant([*usual, Reached(0.0)]), labels_of_new_plant(usual)
    assert with_none.value == pytest.approx(70.0)
    assert with_none.high == pytest.approx(without.high)
    assert with_none.holds(0.0)
    assert labels_of_new_plant([Reached(0.0)] * 4).value == pytest.approx(5.0)


def test_where_plants_did_not_reach_their_floor_the_words_say_so():
    none = [Reached(None, 100)] * 4
    found = labels_of_new_plant(none)
    assert (found.value, found.low, found.words) == (None, None, "4 of 4 plants did not get there")
    most = labels_of_new_plant([Reached(80.0), Reached(90.0), *none[:3]])
    assert most.value is None
    assert most.words == "3 of 5 plants did not get there"
    assert most.high > 100
    assert labels_of_new_plant([Reached(50.0)] * 2).words == "not enough plants"


def test_labels_alike_everywhere_are_not_taken_to_be_known_exactly():
    found = labels_of_new_plant([Reached(50.0)] * 5)
    assert found.value == pytest.approx(50.0)
    assert found.low == 0
    assert found.high > 60


def test_a_factor_of_two_goes_both_ways_and_fewer_than_five_labels_are_five():
    assert within_factor(50, 100)
    assert within_factor(100, 50)
    assert not within_factor(49, 100)
    assert not within_factor(0, 11)
    assert within_factor(0, 9)
