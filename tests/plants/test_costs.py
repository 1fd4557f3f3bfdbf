"""A policy is the cheapest for the line, not for the sample; it holds floors and capacity, and says what it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from plants.costs import (
    OK,
    REVIEW,
    decide_many,
    decide_part,
    expected_cost,
    fit_temperature,
    out_of_fold,
    part_costs,
    solve,
    solve_by_novelty,
)
from plants.plant import Costs
from plants.policy import Policy
from plants.scores import PartScores, calibrate, softmax


def line(n: int = 300, *, seed: int = 0, apart: float = 2.0, bad: float = 0.3, lots: int = 30) -> PartScores:
    """Parts of a plant with two kinds of defect, scored by a calibrated model."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[1 - bad, bad * 0.7, bad * 0.3])
    logits = rng.normal(size=(n, 3)) * 2**0.5
    logits[np.arange(n), truth] += 2 * apart
    return PartScores(
        part_ids=np.arange(n).astype(str),
        lots=[f"lot{i % lots}" for i in range(n)],
        environments=["e"] * n,
        truth=np.array(["ok", "dent", "crack"])[truth],
        probs=softmax(logits),
        classes=("ok", "dent", "crack"),
        ok=("ok",),
    )


def of(defect_scores: list[float], truth: list[str], **changes) -> PartScores:
    """Parts with these probabilities of a dent."""
    p = np.array(defect_scores)
    fields = {
        "part_ids": np.arange(len(p)).astype(str),
        "lots": np.arange(len(p)).astype(str),
        "environments": ["e"] * len(p),
        "truth": truth,
        "probs": np.stack([1 - p, p], axis=1).reshape(-1, 2),
        "classes": ("ok", "dent"),
        "ok": ("ok",),
    }
    return PartScores(**(fields | changes))


def shares(scores: PartScores, policy: Policy) -> tuple[float, float]:
    """Share of the line reviewed, at the policy's defect rate, and recall of bad parts."""
    verdict, good = decide_many(scores, policy).verdict, scores.is_good
    looks = verdict == REVIEW
    return (1 - policy.rate) * looks[good].mean() + policy.rate * looks[~good].mean(), (verdict[~good] != OK).mean()


def test_the_cost_of_a_line_is_what_its_verdicts_cost_at_its_defect_rate():
    scores = of([0.1, 0.5, 0.9, 0.1, 0.9], ["ok", "ok", "ok", "dent", "dent"])
    costs = Costs(miss=1000, false_alarm=100, review=10, defect_rate=(0.05, 0.01, 0.1))
    policy = Policy(plant="a", classes=("ok", "dent"), ok=("ok",), pass_below=0.3, reject_above=0.7, costs=costs)
    assert part_costs(scores, policy).tolist() == [0, 10, 100, 1000, 0]
    assert expected_cost(scores, policy) == pytest.approx(0.9 * 110 / 3 + 0.1 * 500)
    assert expected_cost(scores, policy, np.array([1, 0, 0, 0, 1])) == 0
    assert expected_cost(scores, policy, np.array([1, 1, 1, 0, 0])) is None


def test_a_dear_class_costs_its_own_price():
    costs = Costs(miss=1000, miss_by_class={"dent": 7})
    policy = Policy(plant="a", classes=("ok", "dent"), ok=("ok",), pass_below=1.0, reject_above=1.0, costs=costs)
    assert part_costs(of([0.5, 0.5], ["ok", "dent"]), policy).tolist() == [0, 7]


def test_without_parts_good_parts_bad_parts_or_a_good_class_there_is_no_cost():
    policy = Policy(plant="a", classes=("ok", "dent"), ok=("ok",), pass_below=0.3, reject_above=0.7)
    for scores in (of([], []), of([0.1], ["ok"]), of([0.1], ["dent"])):
        assert expected_cost(scores, policy) is None
    none_good = policy.model_copy(update={"ok": ()})
    assert expected_cost(of([0.1, 0.9], ["ok", "dent"], ok=()), none_good) is None


def test_a_perfect_model_is_cut_inside_its_margin_and_costs_nothing():
    rng = np.random.default_rng(0)
    scores = of([*rng.uniform(0.0001, 0.01, 60), *rng.uniform(0.99, 0.9999, 12)], ["ok"] * 60 + ["dent"] * 12)
    policy = solve(scores, costs=Costs(), plant="a")
    assert 0.02 < policy.pass_below < policy.reject_above < 0.98
    assert expected_cost(scores, policy) == 0
    saturated = solve(of([0.0] * 30 + [1.0] * 10, ["ok"] * 30 + ["dent"] * 10), costs=Costs(), plant="a")
    assert (saturated.pass_below, saturated.reject_above) == (pytest.approx(0.01), pytest.approx(0.9))


@pytest.mark.parametrize("apart", [1.0, 2.0, 3.0])
def test_a_policy_of_few_parts_is_cheaper_on_new_parts_than_either_plain_rule(apart):
    new = line(6000, seed=99, apart=apart)
    solved, half = [], []
    for seed in range(10):
        scores = line(80, seed=seed, apart=apart)
        policy = solve(scores, costs=Costs(), plant="a")
        solved.append(expected_cost(new, policy))
        half.append(expected_cost(new, policy.model_copy(update={"pass_below": 0.5, "reject_above": 0.5})))
    nothing_passes = policy.model_copy(update={"pass_below": 0.0, "reject_above": 1.0})
    assert np.mean(solved) < np.mean(half)
    assert np.mean(solved) < expected_cost(new, nothing_passes)


def test_with_many_parts_the_policy_is_nearly_the_best_for_new_parts():
    new = line(4000, seed=99)
    solved = expected_cost(new, solve(line(2000, seed=1), costs=Costs(), plant="a"))
    assert solved < 1.1 * expected_cost(new, solve(new, costs=Costs(), plant="a"))


def test_out_of_fold_is_honest_where_the_policys_own_parts_flatter_it():
    own, honest, new = [], [], []
    world = line(6000, seed=99, apart=1.5)
    for seed in range(12):
        scores = line(60, seed=seed, apart=1.5)
        policy = solve(scores, costs=Costs(), plant="a")
        own.append(expected_cost(scores, policy))
        honest.append(expected_cost(scores, out_of_fold(scores, costs=Costs(), plant="a")))
        new.append(expected_cost(world, policy))
    assert np.mean(own) < 0.9 * np.mean(new)
    assert abs(np.mean(honest) - np.mean(new)) < abs(np.mean(own) - np.mean(new))


def test_out_of_fold_judges_each_lot_by_a_policy_that_never_saw_it():
    scores = line(200, lots=20)
    folds = out_of_fold(scores, costs=Costs(), plant="a", seed=3)
    assert sorted(folds.folds) == sorted(set(scores.lots))
    verdict = decide_many(scores, folds).verdict
    for fold in range(5):
        inside = np.array([folds.folds[lot] == fold for lot in scores.lots])
        policy = solve(scores.take(~inside), costs=Costs(), plant="a")
        np.testing.assert_array_equal(verdict[inside], decide_many(scores.take(inside), policy).verdict)
    assert out_of_fold(line(200, seed=7, lots=20), costs=Costs(), plant="a", seed=3).folds == folds.folds
    assert (folds.rate, folds.costs, folds.has_money) == (0.05, Costs(), True)
    assert folds.temperature > 0
    one_lot = line(30, lots=1)
    assert decide_many(one_lot, out_of_fold(one_lot, costs=Costs(), plant="a")).verdict.shape == (30,)


@pytest.mark.parametrize("seed", range(6))
def test_recall_floors_hold_on_the_parts_at_hand(seed):
    scores = line(400, seed=seed, apart=1.0)
    costs = Costs(miss=2000, recall_floor=0.8, recall_floor_by_class={"crack": 0.97})
    policy = solve(scores, costs=costs, plant="a")
    verdict = decide_many(scores, policy).verdict
    for name, floor in policy.floors.items():
        assert (verdict[scores.truth == name] != OK).mean() >= floor
    assert policy.floors == {"dent": 0.8, "crack": 0.97}
    free = solve(scores, costs=Costs(miss=2000), plant="a")
    assert policy.pass_below < free.pass_below
    assert any("raise the expected cost" in line for line in policy.note)


def test_a_floor_that_lets_no_good_part_pass_is_kept_and_said_to_be_infeasible():
    scores = of([*np.linspace(0.1, 0.4, 40), 0.0001, *np.linspace(0.6, 0.9, 19)], ["ok"] * 40 + ["dent"] * 20)
    policy = solve(scores, costs=Costs(miss=5000, recall_floor=1.0), plant="a")
    assert (decide_many(scores, policy).verdict != OK).all()
    assert any("infeasible" in line for line in policy.note)
    assert any("too few parts to show" in line and "dent (20)" in line for line in policy.note)


def test_a_floor_for_a_class_without_parts_is_said_to_be_unchecked():
    scores = line(100)
    scores = scores.take(scores.truth != "crack")
    policy = solve(scores, costs=Costs(recall_floor_by_class={"crack": 0.9}), plant="a")
    assert any("crack cannot be checked" in line for line in policy.note)


@pytest.mark.parametrize("seed", range(6))
def test_no_more_is_reviewed_than_people_can(seed):
    scores = line(400, seed=seed, apart=1.0)
    free = solve(scores, costs=Costs(), plant="a")
    tight = solve(scores, costs=Costs(review_per_hour=20, parts_per_hour=1000), plant="a")
    none = solve(scores, costs=Costs(review_per_hour=0), plant="a")
    assert shares(scores, free)[0] > 0.1
    assert shares(scores, tight)[0] < 0.03
    assert shares(scores, none)[0] == 0
    assert expected_cost(scores, free) < expected_cost(scores, tight)


def test_a_dearer_miss_or_a_higher_defect_rate_passes_less():
    scores = line(500, apart=1.0)

    def pass_below(**changes) -> float:
        return solve(scores, costs=Costs(**changes), plant="a").pass_below

    assert pass_below(miss=1_000) > pass_below(miss=20_000) > pass_below(miss=1_000_000)
    assert pass_below(defect_rate=(0.01, 0.001, 0.01)) > pass_below(defect_rate=(0.01, 0.001, 0.2))


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (of([0.1, 0.2, 0.1], ["ok"] * 3), "no defect part"),
        (of([0.8, 0.9], ["dent"] * 2), "no good part"),
        (of([], []), "no part to solve on"),
    ],
)
def test_without_good_or_bad_parts_thresholds_follow_the_probabilities_and_say_so(scores, words):
    policy = solve(scores, costs=Costs(), plant="a")
    assert (policy.pass_below, policy.reject_above) == (pytest.approx(0.01), pytest.approx(0.9))
    assert any(words in line for line in policy.note)


def test_one_part_of_each_kind_is_enough_for_a_policy_that_doubts():
    policy = solve(of([0.1, 0.9], ["ok", "dent"]), costs=Costs(), plant="a")
    assert decide_part([0.5, 0.5], policy=policy).verdict == "review"
    assert any("not enough lots" in line for line in policy.note)


@pytest.mark.parametrize("changes", [{"miss": 0}, {"false_alarm": 0}, {"review": 0}, {"miss": 0, "false_alarm": 0}])
def test_an_error_that_costs_nothing_makes_a_policy_that_costs_nothing(changes):
    scores = line(200, apart=1.0)
    for some in (scores, scores.take(scores.is_good), scores.take(~scores.is_good)):
        policy = solve(some, costs=Costs(**changes), plant="a")
        assert expected_cost(scores, policy) == 0


def test_a_plant_without_a_good_class_gets_a_policy_that_passes_nothing():
    scores = line(100)
    bad = scores.take(~scores.is_good)
    named = PartScores(
        bad.part_ids, bad.lots, bad.environments, bad.truth, softmax(np.log(bad.probs[:, 1:])), ("dent", "crack")
    )
    policy = solve(named, costs=Costs(), plant="a", bundle="b" * 64)
    assert not policy.has_money
    assert (decide_many(named, policy).verdict != OK).all()
    assert decide_part([0.9, 0.1], policy=policy).defect == "dent"


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_an_over_or_underconfident_model_is_calibrated(true_temperature):
    scores = line(4000, apart=1.0)
    distorted = PartScores(
        scores.part_ids, scores.lots, scores.environments, scores.truth,
        calibrate(scores.probs, 1 / true_temperature), scores.classes, scores.ok,
    )  # fmt: skip
    assert fit_temperature(distorted) / fit_temperature(scores) == pytest.approx(true_temperature, rel=0.05)


def test_a_handful_of_rightly_judged_parts_does_not_make_a_model_certain():
    assert 0.5 < fit_temperature(of([0.1, 0.2, 0.9], ["ok", "ok", "dent"])) < 1.1
    assert fit_temperature(of([], [])) == 1.0


def test_novelty_is_set_where_good_parts_end_and_only_with_enough_of_them():
    rng = np.random.default_rng(0)
    p, truth = [0.05] * 100 + [0.9] * 20, ["ok"] * 100 + ["dent"] * 20
    novelty = np.concatenate([rng.uniform(0.5, 1.5, 100), np.full(20, 9.0)])
    policy = solve(of(p, truth, novelty=novelty), costs=Costs(), plant="a")
    assert policy.novelty_above == pytest.approx(novelty[:100].max(), rel=1e-3)
    assert policy.novelty_above > novelty[:100].max()
    assert decide_part([0.95, 0.05], policy=policy, novelty=9.0).verdict == "review"
    few = of(p[90:], truth[90:], novelty=novelty[90:])
    assert solve(few, costs=Costs(), plant="a").novelty_above is None
    busy = solve(of(p, truth, novelty=novelty), costs=Costs(review_per_hour=0), plant="a")
    assert busy.novelty_above is None
    assert any("no room for novelty" in line for line in busy.note)


def test_without_a_good_class_novelty_is_set_where_everything_known_ends():
    novelty = np.linspace(0.5, 1.5, 40)
    policy = solve(of([0.9] * 40, ["dent"] * 40, novelty=novelty, ok=()), costs=Costs(), plant="a")
    assert policy.novelty_above == pytest.approx(1.5, rel=1e-3)
    assert decide_part([0.0, 1.0], policy=policy, novelty=1.6).verdict == "review"


@pytest.mark.parametrize(("num", "share"), [(199, 0.05), (199, 0.2), (40, 0.05), (19, 0.05), (9, 0.05)])
def test_the_stated_share_of_new_good_parts_is_reviewed_where_only_good_parts_are_known(num, share):
    """On the mean over samples; fewer than 1 / share good parts can only promise one in n + 1."""
    rng, costs, reviewed = np.random.default_rng(0), Costs(novel_share=share), []
    for _ in range(400):
        novelty = rng.gamma(8, size=num + 50)
        scores = of([0.5] * len(novelty), ["ok"] * len(novelty), novelty=novelty)
        policy = solve_by_novelty(scores.take(np.arange(num)), costs=costs, plant="a")
        verdicts = decide_many(scores.take(np.arange(num, num + 50)), policy).verdict
        assert set(verdicts) <= {OK, REVIEW}
        reviewed.append((verdicts == REVIEW).mean())
    assert np.mean(reviewed) == pytest.approx(max(share, 1 / (num + 1)), rel=0.15)
    assert any("cannot show" in line for line in policy.note) is (num < 19)


def test_reviews_by_novelty_stay_within_what_people_can_look_at_and_without_a_good_part_everything_is_reviewed():
    novelty = np.arange(1.0, 100.0)
    scores = of([0.5] * 99, ["ok"] * 99, novelty=novelty)
    busy = solve_by_novelty(scores, costs=Costs(review_per_hour=2, parts_per_hour=100), plant="a")
    assert (decide_many(scores, busy).verdict == REVIEW).sum() == 1
    blind = solve_by_novelty(scores.take([]), costs=Costs(), plant="a")
    assert (decide_many(scores, blind).verdict == REVIEW).all()
    with pytest.raises(ValueError, match="novelty"):
        solve_by_novelty(of([0.5], ["ok"]), costs=Costs(), plant="a")


def test_a_model_that_wastes_mass_on_impossible_classes_gets_a_higher_bound_and_a_note():
    scores = of([0.1] * 30 + [0.9] * 10, ["ok"] * 30 + ["dent"] * 10)
    wasteful = of([], [])
    wasteful = PartScores(
        scores.part_ids, scores.lots, scores.environments, scores.truth, scores.probs * 0.4, scores.classes, scores.ok
    )
    policy = solve(wasteful, costs=Costs(), plant="a")
    assert policy.impossible_above == pytest.approx(0.6)
    assert any("do not occur here" in line for line in policy.note)
    assert solve(scores, costs=Costs(), plant="a").impossible_above == 0.5


def test_the_same_parts_give_the_same_policy_whatever_their_order():
    scores = line(200)
    mixed = scores.take(np.random.default_rng(0).permutation(200))
    first, second = (solve(some, costs=Costs(recall_floor=0.9), plant="a") for some in (scores, mixed))
    assert first.pass_below == pytest.approx(second.pass_below, rel=1e-6)
    assert first.reject_above == pytest.approx(second.reject_above, rel=1e-6)
    assert first.note == second.note
