"""The defect rate of a line is known from what the system checks, escapes included; from rejects alone it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plants.costs import decide_many, solve
from plants.errors import InputError
from plants.plant import Costs
from plants.policy import OK
from plants.prevalence import Prevalence, costs_at, prevalence
from plants.scores import PartScores, softmax

COSTS = Costs(miss=2_000, false_alarm=100, review=60, defect_rate=(0.005, 0.003, 0.01))
RATES = (0.005, 0.02, 0.002)
AUDIT = 0.02


def line(n: int, *, rate: float, rng: np.random.Generator) -> PartScores:
    """Parts of which this share is defective, seen by a model to which two fifths of them look good."""
    bad = rng.random(n) < rate
    is_seen = bad & (rng.random(n) < 0.6)
    logits = np.stack([np.zeros(n), rng.normal(-3.0, 1.5, n) + 5.0 * is_seen], axis=1)
    return PartScores(
        part_ids=np.arange(n),
        lots=np.arange(n) % 40,
        environments=np.full(n, "line"),
        truth=np.where(bad, "dent", "ok"),
        probs=softmax(logits),
        classes=("ok", "dent"),
        ok=("ok",),
    )


def simulated(seed: int) -> tuple[list[bool], list[bool], list[float]]:
    """Three periods of a line: whether the interval held the truth, the same from rejects alone, and each threshold."""
    rng = np.random.default_rng(seed)
    decide = line(600, rate=0.3, rng=rng)
    costs, held, naive, cuts = COSTS, [], [], []
    for rate in RATES:
        policy = solve(decide, costs=costs, plant="mill")
        made = line(20_000, rate=rate, rng=rng)
        passed = decide_many(made, policy).verdict == OK
        checked = ~passed | (rng.random(len(passed)) < AUDIT)
        prob = np.where(passed, AUDIT, 1.0)[checked]
        found = prevalence(~made.is_good[checked], prob, num_parts=len(passed))
        held.append(found.low <= rate <= found.high)
        only = prevalence(
            (~made.is_good & ~passed)[checked & ~passed], np.ones((~passed).sum()), num_parts=(~passed).sum()
        )
        share = only.num_parts / len(passed)
        naive.append(only.low * share <= rate <= only.high * share)
        costs = costs_at(costs, found)
        cuts.append(solve(decide, costs=costs, plant="mill").pass_below)
    return held, naive, cuts


@pytest.mark.slow
def test_where_the_rate_moves_the_interval_holds_it_and_thresholds_follow_and_rejects_alone_fail():
    runs = [simulated(seed) for seed in range(20)]
    assert np.mean([held for held, _, _ in runs], axis=0).min() >= 0.9
    assert np.mean([naive for _, naive, _ in runs]) < 0.5
    assert all(at_half > at_two < at_fifth for _, _, (at_half, at_two, at_fifth) in runs)


def in_lots(num_lots: int, *, size: int, rate: float, correlation: float, rng: np.random.Generator) -> tuple[Any, ...]:
    """The checked parts of a line whose lots differ: defective, how likely it was checked, lot.

    The model rejects three fifths of the defects and one good part in fifty.
    """
    of_lot = rng.beta(rate * (1 / correlation - 1), (1 - rate) * (1 / correlation - 1), num_lots)
    lot = np.repeat(np.arange(num_lots), size)
    bad = rng.random(len(lot)) < of_lot[lot]
    is_rejected = rng.random(len(lot)) < np.where(bad, 0.6, 0.02)
    checked = is_rejected | (rng.random(len(lot)) < AUDIT)
    return bad[checked], np.where(is_rejected, 1.0, AUDIT)[checked], lot[checked]


@pytest.mark.parametrize(("num_lots", "size", "correlation"), [(40, 500, 0.1), (20, 500, 0.05)])
def test_where_defects_come_in_lots_the_interval_over_lots_holds_the_truth_and_that_over_parts_does_not(
    num_lots, size, correlation
):
    rng, runs = np.random.default_rng(0), 200
    held = np.zeros((runs, 2), dtype=bool)
    for run in held:
        bad, prob, lot = in_lots(num_lots, size=size, rate=0.02, correlation=correlation, rng=rng)
        for i, lots in enumerate((lot, None)):
            found = prevalence(bad, prob, num_parts=num_lots * size, lots=lots)
            run[i] = found.low <= 0.02 <= found.high
    over_lots, over_parts = held.mean(axis=0)
    assert over_lots >= 0.95
    assert over_parts < 0.93


def test_lots_change_the_interval_and_not_the_value_and_alike_lots_change_it_little():
    rng = np.random.default_rng(1)
    bad, prob = rng.random(2_000) < 0.05, np.ones(2_000)
    alone = prevalence(bad, prob, num_parts=2_000)
    mixed = prevalence(bad, prob, num_parts=2_000, lots=np.arange(2_000) % 50)
    sorted_out = prevalence(np.sort(bad), prob, num_parts=2_000, lots=np.arange(2_000) // 40)
    assert alone.value == pytest.approx(mixed.value) == pytest.approx(sorted_out.value)
    assert (alone.num_lots, mixed.num_lots) == (None, 50)
    assert mixed.high - mixed.low < 1.4 * (alone.high - alone.low)
    assert sorted_out.high - sorted_out.low > 3 * (alone.high - alone.low)


def test_a_single_lot_tells_next_to_nothing():
    found = prevalence([True] + [False] * 999, np.ones(1_000), num_parts=1_000, lots=["monday"] * 1_000)
    assert (found.low, found.num_lots) == (pytest.approx(0, abs=1e-3), 1)
    assert found.high > 0.9


def test_every_part_checked_gives_the_counted_share_and_its_exact_interval():
    found = prevalence([True] * 2 + [False] * 98, np.ones(100), num_parts=100)
    assert (found.value, found.num_checked, found.num_sampled) == (0.02, 100, 0)
    assert (found.low, found.high) == pytest.approx((0.0024, 0.0704), abs=2e-4)


def test_a_sampled_escape_stands_for_all_that_were_as_unlikely_to_be_seen():
    found = prevalence([True] * 10 + [True] + [False] * 99, [1.0] * 10 + [0.1] * 100, num_parts=1_010)
    assert found.value == pytest.approx((10 + 10) / 1_010)
    assert found.low < 20 / 1_010 < found.high


def test_no_escape_in_a_small_sample_is_not_taken_for_none():
    found = prevalence([True] * 10 + [False] * 20, [1.0] * 10 + [0.01] * 20, num_parts=2_010)
    assert found.value == pytest.approx(10 / 2_010)
    assert found.high > 0.1


@pytest.mark.parametrize(
    ("prob", "num_parts", "words"),
    [
        ([0.0, 1.0], 10, "above 0, at most 1"),
        ([1.0, 1.5], 10, "above 0, at most 1"),
        ([1.0, 1.0], 1, "2 parts were checked of 1"),
        ([1.0, 1.0], 10, "8 parts passed and none of them was sampled"),
    ],
)
def test_what_cannot_be_told_is_refused(prob, num_parts, words):
    with pytest.raises(InputError, match=words):
        prevalence([True, False], prob, num_parts=num_parts)


def test_a_rate_that_was_never_seen_still_makes_a_policy():
    found = Prevalence(0.0, 0.0, 0.01, 100, 100, 0)
    assert 0 < costs_at(COSTS, found).defect_rate[1] <= costs_at(COSTS, found).defect_rate[0]


def test_an_audit_sample_of_few_lots_says_as_little_as_they_do():
    lots = np.r_[np.arange(20).repeat(2), np.zeros(200, int)]
    defect, prob = np.r_[np.zeros(40, bool), np.arange(200) < 10], np.r_[np.ones(40), np.full(200, 0.02)]
    one = prevalence(defect, prob, num_parts=10_040, lots=lots)
    two = prevalence(defect, prob, num_parts=10_040, lots=np.r_[lots[:40], np.arange(200) % 2])
    assert (one.low, one.high) == pytest.approx((0, 1), abs=0.03)
    assert two.high - two.low > 0.2
    assert prevalence(defect, prob, num_parts=10_040, lots=np.r_[lots[:40], np.arange(200)]).high < 0.12
