"""Two cuts in a score: the cheapest there are, in the middle of what is equal, within capacity and floors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from plants.thresholds import EDGE, bayes_cuts, best_cuts, review_pays, spread


def case(seed: int, *, n: int = 14) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    score = np.round(rng.uniform(0.02, 0.98, n), 1 if seed % 2 else 6).clip(0.02, 0.98)
    bad = rng.random(n) < score
    forced = rng.random(n) < 0.1
    share = rng.dirichlet(np.ones(n))
    return score, {
        "passed": share * np.where(forced, 1.0, np.where(bad, 20.0, 0.0)),
        "reviewed": share * 1.0,
        "rejected": share * np.where(bad, 0.0, 6.0),
        "load_passed": share * forced,
        "load_reviewed": share,
        "load_rejected": np.zeros(n),
    }


def brute_force(score: np.ndarray, arrays: dict[str, np.ndarray], *, cap: float, stop_at: float) -> float:
    cuts = [0.0, *np.unique(score), 1.0]
    costs, loads = [], []
    for low, high in itertools.combinations_with_replacement(cuts, 2):
        if np.any((score < low) & (score >= stop_at)):
            continue
        passes, rejects = score < low, score >= high
        looks = ~passes & ~rejects
        zones = ((passes, "passed"), (looks, "reviewed"), (rejects, "rejected"))
        costs.append(sum(arrays[name][rows].sum() for rows, name in zones))
        loads.append(sum(arrays[f"load_{name}"][rows].sum() for rows, name in zones))
    allowed = max(cap, min(loads)) + 1e-9
    return min(cost for cost, load in zip(costs, loads, strict=True) if load <= allowed)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("cap", "stop_at"), [(1.0, np.inf), (0.15, np.inf), (0.0, np.inf), (1.0, 0.4), (0.1, 0.3)])
def test_no_pair_of_cuts_is_cheaper_than_the_one_found(seed, cap, stop_at):
    score, arrays = case(seed)
    found = best_cuts(score, **arrays, cap=cap, stop_at=stop_at)
    assert found.cost == pytest.approx(brute_force(score, arrays, cap=cap, stop_at=stop_at))
    passes, rejects = score < found.pass_below, score >= found.reject_above
    zones = ((passes, "passed"), (~passes & ~rejects, "reviewed"), (rejects, "rejected"))
    assert found.cost == pytest.approx(sum(arrays[name][rows].sum() for rows, name in zones))
    assert found.load == pytest.approx(sum(arrays[f"load_{name}"][rows].sum() for rows, name in zones), abs=1e-9)
    assert not (passes & (score >= stop_at)).any()


def separated(low: list[float], high: list[float], **changes):
    score = np.array(low + high)
    n, bad = len(score), np.arange(len(score)) >= len(low)
    arrays = {
        "passed": np.where(bad, 10.0, 0.0),
        "reviewed": np.ones(n),
        "rejected": np.where(bad, 0.0, 10.0),
        "load_passed": np.zeros(n),
        "load_reviewed": np.full(n, 1 / n),
        "load_rejected": np.zeros(n),
    }
    return best_cuts(score, **(arrays | {"cap": 1.0} | changes))


def test_parts_that_are_apart_are_cut_in_the_middle_of_their_log_odds():
    found = separated([0.01, 0.1], [0.9, 0.99])
    assert found.pass_below == found.reject_above == pytest.approx(0.5)
    skewed = separated([0.0001], [0.01]).pass_below
    middle = (np.log(0.0001 / 0.9999) + np.log(0.01 / 0.99)) / 2
    assert np.log(skewed / (1 - skewed)) == pytest.approx(middle)


@pytest.mark.parametrize(
    ("doubt", "low", "high"),
    [((0.01, 0.9), 0.25, 0.75), ((0.4, 0.6), 0.4, 0.6), ((0.4, 0.9), 0.4, 0.75), ((0.6, 0.7), 0.5, 0.7)],
)
def test_the_middle_half_of_a_gap_is_reviewed_as_far_as_there_is_doubt(doubt, low, high):
    found = separated([0.01, 0.1], [0.9, 0.99], doubt=doubt)
    assert found.pass_below == pytest.approx(low)
    assert found.reject_above == pytest.approx(high)
    assert found.load == 0


def test_among_equally_cheap_cuts_the_middle_of_all_is_taken():
    n = 4
    free = {"passed": np.array([0.0, 0.0, 0.0, 10.0]), "rejected": np.array([10.0, 0.0, 0.0, 0.0])}
    found = separated([0.01, 0.2], [0.8, 0.99], **free, reviewed=np.ones(n))
    assert found.pass_below == found.reject_above == pytest.approx(0.5)


def test_scores_at_the_very_ends_are_still_cut_between():
    found = separated([EDGE, EDGE], [1 - EDGE])
    assert found.pass_below == pytest.approx(0.5)


def test_nothing_passes_and_everything_passes_only_where_that_is_cheapest():
    everything = separated([0.1], [0.2], passed=np.zeros(2), rejected=np.ones(2))
    assert 0.2 < everything.pass_below < 1
    nothing = separated([0.1], [0.2], passed=np.ones(2), rejected=np.zeros(2))
    assert (nothing.pass_below, nothing.reject_above) == (0.0, 0.0)
    all_reviewed = separated([0.1], [0.2], passed=np.full(2, 9.0), rejected=np.full(2, 9.0))
    assert (all_reviewed.pass_below, all_reviewed.reject_above) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 500])
def test_a_cloud_keeps_its_part_in_its_middle_and_weighs_one_part(n):
    rng = np.random.default_rng(n)
    score = rng.uniform(0.05, 0.95, n)
    clouds, weights = spread(score, rng.random(n) < 0.7)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(clouds[:, len(weights) // 2], score)
    assert (np.diff(clouds, axis=1) > 0).all()
    assert clouds.min() >= EDGE
    assert clouds.max() <= 1 - EDGE


def test_clouds_get_narrower_with_more_parts_and_never_vanish_for_parts_that_are_alike():
    def width(n: int) -> float:
        clouds, _ = spread(np.tile([0.2, 0.4], n), np.ones(2 * n, dtype=bool))
        return float(clouds[0, -1] - clouds[0, 0])

    assert width(5) > width(50) > width(500) > 0
    alike, _ = spread(np.full(20, 0.5), np.ones(20, dtype=bool))
    assert alike[0, 0] < 0.3


def test_very_many_parts_are_not_spread():
    clouds, weights = spread(np.linspace(0.1, 0.9, 20_001), np.ones(20_001, dtype=bool))
    assert clouds.shape == (20_001, 1)
    assert weights.tolist() == [1.0]


@pytest.mark.parametrize("seed", range(5))
def test_cuts_between_clouds_cost_less_on_new_parts_than_cuts_between_few_parts(seed):
    rng = np.random.default_rng(seed)

    def line(n: int) -> tuple[np.ndarray, np.ndarray]:
        bad = np.arange(n) % 6 == 0
        odds = np.where(bad, 3.5, -5.0) + 2.2 * rng.normal(size=n)
        return 1 / (1 + np.exp(-odds)), bad

    def arrays(bad: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        share = np.where(bad, 0.05 / bad.sum(), 0.95 / (~bad).sum())
        zones = {"passed": np.where(bad, 50_000, 0), "reviewed": np.full(len(bad), 500), "rejected": 5000 * ~bad}
        each = {name: ((share * value)[:, None] * weight).ravel() for name, value in zones.items()}
        return each | {f"load_{name}": np.zeros(len(bad) * len(weight)) for name in zones}

    new, new_bad = line(6000)
    exact, smooth = [], []
    for _ in range(30):
        score, bad = line(60)
        clouds, weights = spread(score, ~bad)
        for costs, points, weight in ((exact, score[:, None], np.ones(1)), (smooth, clouds, weights)):
            cuts = best_cuts(points.ravel(), **arrays(bad, weight), cap=1.0)
            passes, rejects = new < cuts.pass_below, new >= cuts.reject_above
            paid = np.where(passes, 50_000 * new_bad, np.where(rejects, 5000 * ~new_bad, 500))
            costs.append(0.95 * paid[~new_bad].mean() + 0.05 * paid[new_bad].mean())
    assert np.mean(smooth) < 0.95 * np.mean(exact)


def test_bayes_cuts_choose_the_cheapest_verdict_for_every_probability():
    for miss, false_alarm, review in ((50_000, 5_000, 500), (1_000, 1_000, 900), (10, 1_000, 5), (0, 5, 1), (5, 0, 1)):
        low, high = bayes_cuts(miss=miss, false_alarm=false_alarm, review=review, may_review=True)
        assert 0 <= low <= high <= 1
        for p in np.linspace(0.001, 0.999, 99):
            prices = {"ok": p * miss, "reject": (1 - p) * false_alarm, "review": review}
            verdict = "ok" if p < low else "reject" if p >= high else "review"
            assert prices[verdict] == pytest.approx(min(prices.values()))
    low, high = bayes_cuts(miss=50_000, false_alarm=5_000, review=500, may_review=False)
    assert low == high == pytest.approx(1 / 11)
    assert not review_pays(miss=1_000, false_alarm=1_000, review=500)
