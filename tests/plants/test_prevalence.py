"""The defect rate of a line is known from what the system checks, escapes included; from rejects alone it is not."""

from __future__ import annotations

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
