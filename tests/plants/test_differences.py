"""Differences are of the same parts, have intervals over lots, and hold together where models are many."""

from __future__ import annotations

import numpy as np
import pytest

from plants.costs import expected_cost, out_of_fold, solve
from plants.differences import joint_level, paired
from plants.plant import Costs
from tests.plants.scored import parts


def test_a_better_model_is_shown_better_in_money_and_in_macro_f1():
    good, poor = parts(apart=3.0), parts(apart=1.0, noise=2)
    policies = [solve(scores, costs=Costs(), plant="a") for scores in (good, poor)]
    money = paired(good, poor, policy_a=policies[0], policy_b=policies[1])
    assert money["metric"] == "cost"
    assert money["low"] < money["diff"] < money["high"] < 0
    expected = expected_cost(good, policies[0]) - expected_cost(poor, policies[1])
    assert money["diff"] == pytest.approx(expected, abs=1e-5)
    f1 = paired(good, poor)
    assert f1["metric"] == "macro_f1"
    assert f1["high"] > f1["diff"] > f1["low"] > 0
    assert (f1["n_lots"], f1["words"]) == (40, None)


def test_a_model_does_not_differ_from_itself_and_sides_can_be_exchanged():
    a, b = parts(), parts(noise=2)
    same = paired(a, a)
    assert (same["diff"], same["low"], same["high"]) == (0, 0, 0)
    there, back = paired(a, b, seed=1), paired(b, a, seed=1)
    assert there["diff"] == pytest.approx(-back["diff"])
    assert there["low"] == pytest.approx(-back["high"])


def test_pairs_are_made_by_part_and_not_by_row():
    a, b = parts(), parts(noise=2)
    order = np.random.default_rng(0).permutation(len(b))
    assert paired(a, b.take(order)) == paired(a, b)


def test_two_models_of_equal_skill_are_rarely_said_to_differ():
    different = 0
    for seed in range(60):
        found = paired(parts(120, seed=seed, noise=1, lots=30), parts(120, seed=seed, noise=2, lots=30), seed=seed)
        different += not found["low"] <= 0 <= found["high"]
    assert different <= 8


def test_policies_that_would_be_others_on_other_lots_widen_a_difference_in_money():
    a, b = parts(noise=1), parts(noise=2)
    folds = [out_of_fold(scores, costs=Costs(), plant="a") for scores in (a, b)]
    fixed = [folded.model_copy(update={"policies": folded.policies[:1] * 5}) for folded in folds]
    found, alike = (paired(a, b, policy_a=pair[0], policy_b=pair[1]) for pair in (folds, fixed))
    assert found["metric"] == alike["metric"] == "cost"
    once = paired(a, b, policy_a=fixed[0].policies[0], policy_b=fixed[1].policies[0])
    assert (alike["low"], alike["high"]) == (once["low"], once["high"])
    assert found["high"] - found["low"] > alike["high"] - alike["low"]


def test_among_more_models_each_difference_is_taken_at_a_higher_level():
    models = [(parts(noise=noise), None) for noise in range(1, 8)]
    levels = [joint_level(models[:num]) for num in (2, 3, 5, 7)]
    assert levels[0] == 0.95
    assert levels == sorted(set(levels))
    assert joint_level([models[0], models[1], models[0], models[1]]) == pytest.approx(0.95, abs=0.005)
    wide, plain = (paired(parts(), parts(noise=2), level=level) for level in (levels[-1], 0.95))
    assert wide["low"] < plain["low"] < wide["diff"] == plain["diff"]
    assert joint_level([(parts(lots=9, noise=noise), None) for noise in (1, 2, 3)]) == 0.95


def test_under_ten_lots_a_difference_has_no_interval():
    found = paired(parts(lots=9), parts(noise=2, lots=9))
    assert found["diff"] is not None
    assert (found["low"], found["high"], found["n_lots"], found["words"]) == (None, None, 9, "not enough lots")


@pytest.mark.parametrize(("num_lots", "is_shown"), [(1, False), (4, False), (5, True)])
def test_in_money_few_lots_that_hold_defects_show_nothing(num_lots, is_shown):
    whole = parts(apart=3.0)
    bad_lots = sorted(set(whole.lots[~whole.is_good]))[:num_lots]
    kept = whole.is_good | np.isin(whole.lots, bad_lots)
    good, poor = whole.take(kept), parts(apart=1.0, noise=2).take(kept)
    policies = [solve(scores, costs=Costs(), plant="a") for scores in (good, poor)]
    found = paired(good, poor, policy_a=policies[0], policy_b=policies[1])
    assert (found["metric"], found["diff"] is None) == ("cost", False)
    assert (found["low"] is not None, found["words"]) == (is_shown, None if is_shown else "not enough lots")
    assert paired(good, poor)["low"] is not None


def test_without_bad_parts_models_are_compared_by_macro_f1_even_with_policies():
    scores = parts().take(parts().is_good)
    policy = solve(scores, costs=Costs(), plant="a")
    assert paired(scores, scores, policy_a=policy, policy_b=policy)["metric"] == "macro_f1"


def test_other_parts_other_truth_or_another_defect_rate_are_refused():
    scores = parts()
    with pytest.raises(ValueError, match="same parts"):
        paired(scores, scores.take(np.arange(10)))
    with pytest.raises(ValueError, match="same truth"):
        paired(scores, parts(seed=1))
    ours = solve(scores, costs=Costs(), plant="a")
    theirs = solve(scores, costs=Costs(defect_rate=(0.1, 0.1, 0.1)), plant="a")
    with pytest.raises(ValueError, match="one defect rate"):
        paired(scores, scores, policy_a=ours, policy_b=theirs)
