"""Figures are counted per part, have intervals over lots, and are None where nothing was counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from plants.costs import OK, Policy, decide_many, expected_cost, out_of_fold, solve
from plants.metrics import PartScores, joint_level, paired, report
from plants.plant import Costs
from plants.scores import softmax

CLASSES = ("ok", "dent", "crack")


def parts(
    n: int = 240, *, seed: int = 0, noise: int = 1, apart: float = 1.5, lots: int = 40, decimals: int = 6
) -> PartScores:
    """Parts whose truth follows `seed` and whose scores follow `noise`."""
    truth = np.random.default_rng(seed).choice(3, n, p=[0.6, 0.25, 0.15])
    logits = np.random.default_rng([seed, noise]).normal(size=(n, 3))
    logits[np.arange(n), truth] += apart
    return PartScores(
        part_ids=[f"part{i}" for i in range(n)],
        lots=[f"lot{i % lots}" for i in range(n)],
        environments=[f"line{i % 2}" for i in range(n)],
        truth=np.array(CLASSES)[truth],
        probs=np.round(softmax(logits), decimals),
        classes=CLASSES,
        ok=("ok",),
    )


def of(truth: list[str], said: list[str], *, classes: tuple[str, ...] = CLASSES, **changes) -> PartScores:
    """Parts for which the model said this, with certainty."""
    probs = np.zeros((len(truth), len(classes)))
    probs[np.arange(len(said)), [classes.index(name) for name in said]] = 1
    names = [str(i) for i in range(len(truth))]
    fields = {"part_ids": names, "lots": names, "environments": ["e"] * len(truth), "truth": truth}
    return PartScores(**(fields | {"probs": probs, "classes": classes, "ok": ("ok",)} | changes))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [6, 1])
def test_figures_equal_scikit_learns(seed, decimals):
    scores = parts(seed=seed, decimals=decimals)
    found = report(scores, n_boot=20)
    said = np.array(CLASSES)[scores.predicted_index]
    bad = ~scores.is_good
    assert found["macro_f1"]["value"] == pytest.approx(
        f1_score(scores.truth.astype(str), said, average="macro"), abs=1e-6
    )
    p_defect = np.round(scores.p_defect, 9)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(bad, p_defect), abs=1e-4)
    assert found["average_precision"]["value"] == pytest.approx(average_precision_score(bad, p_defect), abs=1e-2)


def test_a_small_table_is_counted_as_by_hand():
    found = report(of(["ok", "ok", "ok", "dent", "dent"], ["ok", "ok", "dent", "dent", "ok"]))
    assert found["confusion"] == {"classes": list(CLASSES), "counts": [[2, 1, 0], [1, 1, 0], [0, 0, 0]]}
    assert found["per_class"]["ok"]["precision"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["per_class"]["dent"]["recall"]["value"] == 0.5
    assert found["per_class"]["dent"]["f1"] == 0.5
    assert found["macro_f1"]["value"] == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-6)
    assert (found["n"], found["n_lots"]) == (5, 5)


def test_a_class_without_parts_has_no_recall_and_does_not_pull_macro_f1_down():
    found = report(of(["ok", "dent"] * 6, ["ok", "dent"] * 6))
    crack = found["per_class"]["crack"]
    assert (crack["recall"]["value"], crack["f1"], crack["precision"], crack["n"]) == (None, None, None, 0)
    assert crack["recall"]["words"] == "nothing counted"
    assert found["macro_f1"]["value"] == 1


def test_no_parts_give_none_everywhere_and_no_error():
    found = report(of([], []), policy=Policy(plant="a", classes=CLASSES, ok=("ok",), pass_below=0.1, reject_above=0.9))
    assert (found["n"], found["n_lots"], found["auc"], found["by_environment"]) == (0, 0, None, {})
    assert found["macro_f1"] == {"value": None, "low": None, "high": None, "words": "nothing counted"}
    assert found["cost"]["value"] is None
    assert found["calibration"]["ece"] is None


def test_under_ten_lots_there_are_words_instead_of_intervals():
    found = report(parts(lots=9), policy=solve(parts(lots=9), costs=Costs(), plant="a"))
    for figure in (found["macro_f1"], found["auc"], found["cost"], found["per_class"]["dent"]["recall"]):
        assert figure["value"] is not None
        assert (figure["low"], figure["high"], figure["words"]) == (None, None, "not enough lots")


def test_a_class_that_fewer_than_five_lots_hold_has_words_and_the_others_their_interval():
    for holding, words in ((4, "not enough lots"), (5, None)):
        truth = ["ok"] * 40 + ["crack"] * holding * 3
        names = [f"lot{i % 20}" for i in range(40)] + [f"lot{i % holding}" for i in range(holding * 3)]
        found = report(of(truth, truth, lots=names))
        crack, auc = found["per_class"]["crack"]["recall"], found["auc"]
        assert (crack["value"], crack["words"], auc["words"]) == (1, words, words)
        assert (crack["low"] is None) == (auc["low"] is None) == (words is not None)
        assert found["per_class"]["ok"]["recall"]["words"] is None


def test_a_model_that_made_no_mistake_here_may_make_one_elsewhere():
    scores = of(["ok"] * 20 + ["dent"] * 10, ["ok"] * 20 + ["dent"] * 10)
    found = report(scores, policy=Policy(plant="a", classes=CLASSES, ok=("ok",), pass_below=0.5, reject_above=0.5))
    assert (found["macro_f1"]["high"], found["auc"]["high"], found["cost"]["low"]) == (1, 1, 0)
    assert 0.6 < found["macro_f1"]["low"] < 0.9
    assert 0.8 < found["auc"]["low"] < 0.95
    assert found["cost"]["value"] == 0
    assert 800 < found["cost"]["high"] < 1200
    other = of(list(scores.truth), [], probs=0.9 * scores.probs + 0.1 / 3)
    assert paired(scores, scores)["high"] == 0
    assert 0.1 < paired(scores, other)["high"] == -paired(scores, other)["low"] < 0.3


def seen_in(num_lots: int, *, seed: int) -> PartScores:
    """Lots of 12 parts; how well the model sees the parts of a lot differs much from lot to lot."""
    rng = np.random.default_rng(seed)
    lot = np.repeat(np.arange(num_lots), 12)
    truth = rng.choice(3, len(lot), p=[0.6, 0.25, 0.15])
    logits = rng.normal(size=(len(lot), 3)) + rng.normal(size=(num_lots, 3))[lot]
    logits[np.arange(len(lot)), truth] += 2
    return of([CLASSES[i] for i in truth], [], probs=softmax(2 * logits), lots=lot.astype(str))


@pytest.mark.parametrize("num_lots", [10, 30])
@pytest.mark.slow
def test_the_stated_intervals_hold_the_truth_though_the_parts_of_a_lot_resemble_one_another(num_lots):
    policy = Policy(plant="a", classes=CLASSES, ok=("ok",), pass_below=0.2, reject_above=0.6)

    def figures(scores: PartScores, *, n_boot: int = 60) -> dict:
        found = report(scores, policy=policy, n_boot=n_boot)
        return {name: found[name] for name in ("macro_f1", "auc", "cost")} | {"ok": found["per_class"]["ok"]["recall"]}

    truth = {name: figure["value"] for name, figure in figures(seen_in(4_000, seed=99), n_boot=1).items()}
    held = {"lots": dict.fromkeys(truth, 0), "parts": dict.fromkeys(truth, 0)}
    for seed in range(140):
        scores = seen_in(num_lots, seed=seed)
        for unit, side in (("lots", scores), ("parts", of(list(scores.truth), [], probs=scores.probs))):
            for name, figure in figures(side).items():
                held[unit][name] += figure["low"] <= truth[name] <= figure["high"]
    assert min(held["lots"].values()) >= 0.92 * 140, held
    assert held["parts"]["ok"] < 0.85 * 140, held


def test_every_interval_holds_its_value_and_the_same_seed_gives_the_same_report():
    scores = parts()
    policy = solve(scores, costs=Costs(), plant="a")
    found = report(scores, policy=policy, seed=4)
    assert found == report(scores, policy=policy, seed=4)
    assert found != report(scores, policy=policy, seed=5)
    verdicts = dict(found["verdicts"])
    figures = [*verdicts.pop("caught").values(), *verdicts.values(), found["macro_f1"], found["auc"], found["cost"]]
    figures += [found["average_precision"], *(c["recall"] for c in found["per_class"].values())]
    for figure in figures:
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["words"] is None


def test_a_class_of_which_none_was_missed_may_still_be_missed():
    found = report(of(["ok"] * 20 + ["dent"] * 8, ["ok"] * 20 + ["dent"] * 8))
    recall = found["per_class"]["dent"]["recall"]
    assert recall["value"] == recall["high"] == 1
    assert 0.6 < recall["low"] < 0.75


def test_environments_stand_with_the_worst_first_and_count_only_their_own_parts():
    scores = of(["ok", "dent"] * 12, ["ok", "dent"] * 6 + ["ok", "ok"] * 6, environments=["good"] * 12 + ["poor"] * 12)
    found = report(scores)["by_environment"]
    assert list(found) == ["poor", "good"]
    assert (found["good"]["macro_f1"], found["good"]["n"], found["good"]["n_lots"]) == (1, 12, 12)
    assert found["poor"]["macro_f1"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["poor"]["low"] <= found["poor"]["macro_f1"] <= found["poor"]["high"]


def test_where_no_class_is_good_there_is_no_auc_no_curve_and_no_cost():
    scores = of(["dent", "crack"] * 8, ["dent", "crack"] * 8, classes=("dent", "crack"), ok=())
    found = report(scores, policy=solve(scores, costs=Costs(), plant="a"))
    assert [found[key] for key in ("auc", "average_precision", "curves", "cost", "verdicts")] == [None] * 5
    assert found["macro_f1"]["value"] == 1


def test_cost_and_verdicts_are_those_of_the_policy():
    scores = parts()
    policy = solve(scores, costs=Costs(), plant="a")
    found = report(scores, policy=policy)
    verdict = decide_many(scores, policy).verdict
    bad = ~scores.is_good
    assert found["cost"]["value"] == pytest.approx(expected_cost(scores, policy), abs=1e-5)
    assert found["verdicts"]["escapes"]["value"] == pytest.approx((verdict[bad] == OK).mean(), abs=1e-6)
    caught = found["verdicts"]["caught"]
    assert caught["dent"]["value"] == pytest.approx((verdict[scores.truth == "dent"] != OK).mean(), abs=1e-6)
    assert set(caught) == {"dent", "crack"}
    honest = report(scores, policy=out_of_fold(scores, costs=Costs(), plant="a"))
    assert honest["cost"]["value"] != found["cost"]["value"]


def test_a_report_is_json_without_nan():
    scores = parts()
    text = json.dumps(report(scores, policy=solve(scores, costs=Costs(), plant="a")), allow_nan=False)
    assert json.loads(text)["n"] == 240


def test_curves_go_from_nothing_flagged_to_everything_flagged():
    curves = report(parts(n=1000))["curves"]
    roc, pr = np.array(curves["roc"]), np.array(curves["pr"])
    assert roc[0].tolist() == [0, 0]
    assert roc[-1].tolist() == [1, 1]
    assert (np.diff(roc, axis=0) >= 0).all()
    assert pr[-1, 0] == 1
    assert pr[-1, 1] == pytest.approx((~parts(n=1000).is_good).mean(), abs=1e-6)
    assert len(roc) <= 102


def test_a_calibrated_model_has_a_small_calibration_error_and_a_boastful_one_a_large():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 6000)
    truth = [CLASSES[rng.choice(3, p=row)] for row in probs]
    honest = of(truth, truth, probs=probs)
    boastful = of(truth, truth, probs=softmax(4 * np.log(probs)))
    assert report(honest, n_boot=10)["calibration"]["ece"] < 0.03
    assert report(boastful, n_boot=10)["calibration"]["ece"] > 0.15
    repaired = solve(boastful, costs=Costs(), plant="a")
    assert report(boastful, policy=repaired, n_boot=10)["calibration"]["ece"] < 0.03


def test_bins_without_parts_are_none_and_bins_count_every_part_once():
    bins = report(of(["ok", "dent"], ["ok", "ok"]))["calibration"]["bins"]
    assert [b["n"] for b in bins] == [0] * 9 + [2]
    assert (bins[0]["confidence"], bins[0]["accuracy"]) == (None, None)
    assert (bins[9]["confidence"], bins[9]["accuracy"]) == (1.0, 0.5)


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
