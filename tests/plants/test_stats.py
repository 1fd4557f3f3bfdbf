"""Fractions remember what they were counted on; intervals come from lots, and not from too few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import studentized_range, t

from plants.stats import Lots, Rate, bootstrap, fraction, joint, paired_bootstrap, student


def mean_of(values: np.ndarray):
    return lambda weights: (weights @ values) / weights.sum(axis=1)


def test_a_fraction_of_nothing_is_none():
    assert Rate(0, 0).value is None
    assert Rate(0, 0).interval() is None


# Source of the expected values: Newcombe, Statistics in Medicine 17, 1998, table I, method 3.
@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(hits, of, low, high):
    interval = Rate(hits, of).interval()
    assert interval is not None
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_under_ten_lots_there_is_no_interval():
    values = np.arange(90.0)
    lots = [f"lot{i % 9}" for i in range(90)]
    assert bootstrap(lots, mean_of(values), seed=0) is None
    paired = paired_bootstrap(lots, mean_of(values), mean_of(values + 1), seed=0)
    assert (paired.diff, paired.low, paired.high) == (-1.0, None, None)


def test_the_same_seed_draws_the_same_lots_and_another_seed_others():
    lots = Lots([f"lot{i}" for i in range(30)])
    assert (lots.draws(5, seed=1) == lots.draws(5, seed=1)).all()
    assert (lots.draws(5, seed=1) != lots.draws(5, seed=2)).any()
    assert (lots.draws(5, seed=1).sum(axis=1) == 30).all()


def test_drawing_lots_gives_the_sums_that_drawing_their_parts_gives():
    rng = np.random.default_rng(0)
    names = rng.integers(0, 12, 100).astype(str)
    values = rng.normal(size=(100, 3))
    lots = Lots(names)
    draws = lots.draws(4, seed=0)
    np.testing.assert_allclose(draws @ lots.sums(values), draws[:, lots.index] @ values)


def test_lots_that_resemble_themselves_give_a_wider_interval_than_independent_parts():
    rng = np.random.default_rng(0)
    by_lot = np.repeat(rng.normal(size=20), 20)
    clustered = bootstrap(np.repeat(np.arange(20), 20).astype(str), mean_of(by_lot), seed=0)
    single = bootstrap(np.arange(400).astype(str), mean_of(by_lot), seed=0)
    assert clustered.high - clustered.low > 3 * (single.high - single.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=40)
        interval = bootstrap(np.arange(40).astype(str), mean_of(values), n=300, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("num_lots", [10, 30])
def test_the_interval_of_lots_that_resemble_themselves_covers_and_that_of_their_parts_does_not(num_lots):
    covered = {"lots": 0, "parts": 0}
    rng = np.random.default_rng(num_lots)
    names = {"lots": np.repeat(np.arange(num_lots), 8).astype(str), "parts": np.arange(8 * num_lots).astype(str)}
    for seed in range(200):
        share = np.repeat(rng.beta(3.5, 1.5, num_lots), 8)
        values = (rng.random(len(share)) < share).astype(np.float64)
        for unit, of in names.items():
            groups = Lots(of)
            drawn = groups.draws(200, seed=seed) @ groups.sums(values) / (8 * num_lots / groups.num * groups.num)
            found = fraction(values.mean(), drawn[:, 0], n=len(values), num_lots=groups.num)
            covered[unit] += found.low <= 0.7 <= found.high
    assert covered["lots"] >= 0.92 * 200
    assert covered["parts"] < 0.90 * 200


def test_a_paired_difference_is_far_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=50) * 10
    a, b = hard + 1 + 0.1 * rng.normal(size=50), hard
    names = np.arange(50).astype(str)
    paired = paired_bootstrap(names, mean_of(a), mean_of(b), seed=0)
    alone = bootstrap(names, mean_of(a), seed=0)
    assert 0.9 < paired.low < paired.high < 1.1
    assert alone.high - alone.low > 20 * (paired.high - paired.low)


@pytest.mark.parametrize("interval", [student, fraction])
def test_draws_that_counted_nothing_are_left_out_and_too_many_of_them_leave_no_interval(interval):
    draws = np.random.default_rng(0).normal(0.5, 0.1, 99)
    assert interval(0.5, np.append(draws, np.nan), num_lots=20) == interval(0.5, draws, num_lots=20)
    assert interval(0.5, np.where(np.arange(100) < 51, np.nan, 0.5), num_lots=20) is None
    assert interval(0.5, np.zeros(0), num_lots=20) is None
    assert interval(0.5, draws, num_lots=1) is None


def test_few_lots_give_a_wider_interval_than_many_of_the_same_scatter():
    draws = np.random.default_rng(0).normal(0.5, 0.05, 500)
    for interval in (student, fraction):
        widths = [found.high - found.low for n in (5, 10, 1000) if (found := interval(0.5, draws, num_lots=n))]
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] == pytest.approx(2 * 1.96 * 0.05, rel=0.08)


# Source of the expected values: Clopper and Pearson's interval in Newcombe, Statistics in Medicine 17, 1998, table I.
@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_a_fraction_of_lots_that_do_not_resemble_themselves_has_the_published_exact_interval(hits, of, low, high):
    interval = fraction(hits / of, np.full(500, hits / of), n=of, num_lots=of)
    assert interval is not None
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_a_statistic_that_counted_nothing_has_no_difference():
    names = np.arange(20).astype(str)
    paired = paired_bootstrap(names, lambda w: np.full(len(w), np.nan), mean_of(np.ones(20)), seed=0)
    assert (paired.diff, paired.low, paired.high) == (None, None, None)


def test_many_parts_are_drawn_in_blocks_and_give_the_same_interval(monkeypatch):
    values = np.random.default_rng(0).normal(size=60)
    names = np.arange(60).astype(str)
    whole = bootstrap(names, mean_of(values), seed=3)
    monkeypatch.setattr("plants.stats.BLOCK", 600)
    assert bootstrap(names, mean_of(values), seed=3) == whole


@pytest.mark.parametrize(("num", "num_lots"), [(3, 12), (6, 30), (10, 200)])
def test_the_joint_level_of_figures_that_have_nothing_in_common_is_tukeys(num, num_lots):
    drawn = np.random.default_rng(num).normal(size=(num, 200_000))
    tukey = studentized_range.ppf(0.95, num, num_lots - 1) / np.sqrt(2)
    found = t.ppf(0.5 + joint(drawn, num_lots=num_lots) / 2, num_lots - 1)
    assert found == pytest.approx(tukey, rel=0.02)


def test_figures_that_never_differ_and_draws_that_counted_nothing_raise_no_level():
    one, other = np.random.default_rng(0).normal(size=(2, 1000))
    assert joint(np.stack([one, one, one]), num_lots=30) == 0.95
    pair, copies = joint(np.stack([one, other]), num_lots=30), joint(np.stack([one, one, other]), num_lots=30)
    assert copies == pytest.approx(pair) == pytest.approx(0.95, abs=0.002)
    assert joint(np.full((3, 100), np.nan), num_lots=30) == 0.95
    third = np.random.default_rng(1).normal(size=1000)
    third[::2] = np.nan
    assert joint(np.stack([one, other, third]), num_lots=30) > 0.97


def test_among_many_equal_figures_one_is_rarely_said_to_differ():
    """Six means of 20 lots, 200 times: plain intervals tell some pair apart in over a fifth of them."""
    num_lots, sims = 20, 200
    groups = Lots([str(i) for i in range(num_lots)])
    told = {"plain": 0, "joint": 0}
    for seed in range(sims):
        values = np.random.default_rng(seed).normal(size=(6, num_lots))
        drawn = values @ groups.draws(300, seed=seed).T / num_lots
        for name, level in (("plain", 0.95), ("joint", joint(drawn, num_lots=num_lots))):
            found = [
                student(values[i].mean() - values[j].mean(), drawn[i] - drawn[j], num_lots=num_lots, level=level)
                for i in range(6)
                for j in range(i)
            ]
            told[name] += any(not each.low <= 0 <= each.high for each in found)
    assert told["plain"] > 0.2 * sims
    assert told["joint"] < 0.08 * sims
