"""A cost curve is the money of the policy's verdicts at every rate, between what doing nothing would cost."""

from __future__ import annotations

import numpy as np
import pytest

from plants.costs import expected_cost, out_of_fold, review_load, solve
from plants.curves import NUM_RATES, cost_curve
from plants.plant import Costs
from plants.policy import Policy
from tests.plants.test_costs import line, of

COSTS = Costs(miss=2_000, false_alarm=100, review=60, defect_rate=(0.02, 0.01, 0.1))


@pytest.mark.parametrize("seed", range(3))
def test_the_line_of_a_policy_is_its_expected_cost_at_every_rate(seed):
    scores = line(seed=seed)
    policy = solve(scores, costs=COSTS, plant="mill")
    curve = cost_curve(scores, policy)
    assert len(curve["rates"]) == NUM_RATES
    assert curve["rates"][-1] == pytest.approx(0.2)
    for rate, cost in list(zip(curve["rates"], curve["policy"], strict=True))[::10]:
        at = policy.model_copy(update={"costs": COSTS.model_copy(update={"defect_rate": (rate, rate, rate)})})
        assert cost == pytest.approx(expected_cost(scores, at))


def test_the_best_threshold_is_never_dearer_than_doing_nothing():
    scores = line(apart=0.5)
    curve = cost_curve(scores, out_of_fold(scores, costs=COSTS, plant="mill"))
    idle = np.minimum(curve["pass_all"], curve["reject_all"])
    assert (np.array(curve["best_threshold"]) <= idle + 1e-9).all()
    assert curve["pass_all"][0] == 0
    assert curve["pass_all"][-1] == pytest.approx(0.2 * 2_000)
    assert curve["reject_all"][0] == pytest.approx(100)


def test_the_best_threshold_parts_two_parts_without_a_mistake():
    scores = of([0.1, 0.9], ["ok", "dent"])
    assert max(cost_curve(scores, solve(scores, costs=COSTS, plant="mill"))["best_threshold"]) == pytest.approx(0)


def test_the_review_load_stands_beside_what_people_can_do():
    scores = line(apart=0.5)
    costs = COSTS.model_copy(update={"review_per_hour": 10.0, "parts_per_hour": 200.0})
    policy = solve(scores, costs=costs, plant="mill")
    curve = cost_curve(scores, policy)
    assert curve["review_capacity"] == 0.05
    assert curve["review_load"] == review_load(scores, policy) == pytest.approx(0.0736, abs=1e-4)
    assert policy.note == ("people can review 5.00% of parts, 7.36% must be",)


def test_without_money_good_parts_or_bad_parts_there_is_no_curve():
    policy = Policy(plant="a", classes=("ok", "dent"), ok=("ok",), pass_below=0.3, reject_above=0.7)
    assert cost_curve(of([0.5], ["ok"]), policy) is None
    assert cost_curve(of([0.5], ["dent"]), policy) is None
    assert cost_curve(of([0.5, 0.1], ["dent", "ok"], ok=()), policy.model_copy(update={"ok": ()})) is None
