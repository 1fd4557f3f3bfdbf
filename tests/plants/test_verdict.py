"""Decisions between models, on simulated parts whose truth about the models is known."""

from __future__ import annotations

import re

import numpy as np
import pytest

from plants.differences import paired
from plants.metrics import report
from plants.plant import Costs
from plants.verdict import Candidate, Decision, amount, decide, decide_first, difference, idle_cost
from tests.jobs.toys import toy_fleet
from tests.plants.candidates import IDLE, candidate, near_good


def test_a_cheaper_model_is_taken_when_it_is_shown_not_to_be_worse():
    """It raises one false alarm more in 1,600 parts."""
    best, cheap = candidate("branch", skill=2.5, num_lots=800), candidate("head", skill=2.5, price=0, num_lots=800)
    good = int(np.flatnonzero(best.scores.is_good & (best.scores.p_defect < 0.001))[0])
    cheap.scores.probs[good] = (0.001, 0.999)
    cost = {m.name: report(m.scores, policy=m.judged_by, n_boot=1)["cost"]["value"] for m in (best, cheap)}
    assert cost["branch"] < cost["head"] < cost["branch"] + 0.01 * IDLE
    found = decide([best, cheap], idle_cost=IDLE)
    assert (found.model, found.against) == ("head", "branch")
    assert found.answer == "not worse and cheaper"
    assert found.why == "costs less to serve than branch and is shown not to be worse by more than the margin"
    assert 0 < found.interval["high"] <= 0.02 * IDLE
    assert decide([best, cheap], idle_cost=IDLE / 1000).model == "branch"


def test_a_cheaper_model_that_makes_the_same_verdicts_is_taken_with_its_interval():
    best = candidate("a-branch", skill=2.0, price=1)
    cheap = candidate("z-head", skill=2.0, price=0)
    found = decide([cheap, best], idle_cost=IDLE)
    assert found.model == "z-head"


def test_a_cheaper_model_that_loses_money_is_not_taken():
    found = decide([candidate("branch", skill=3), candidate("head", skill=0.5, price=0)], idle_cost=IDLE)
    assert found.model == "branch"
    assert found.answer == "better"
    assert re.fullmatch(r"[\d,]+ a part less \([\d,]+ to [\d,]+\) than head, which is cheapest to serve", found.why)
    assert found.interval["metric"] == "cost"
    assert found.interval["high"] < 0


def test_a_cheaper_model_whose_difference_is_not_known_well_enough_is_not_taken():
    """Equal skill, but other mistakes on few lots: nothing shows that it is not worse."""
    pair = [candidate("a", skill=1, num_lots=14, noise=3), candidate("b", skill=1, num_lots=14, noise=4)]
    best = decide([replaced(c, price=1) for c in pair], idle_cost=IDLE).model
    (other,) = (c.name for c in pair if c.name != best)
    found = decide([replaced(c, price=int(c.name == best)) for c in pair], idle_cost=IDLE)
    assert found.model == best
    assert found.answer == "no difference shown"
    assert found.why.startswith("best estimate: ")
    assert found.why.endswith(f" than {other}, which is cheapest to serve, but no difference is shown")
    assert found.interval["low"] <= 0 <= found.interval["high"]


def test_models_whose_money_is_not_shown_to_differ_are_told_apart_by_macro_f1():
    """Of two models that both leave nearly all to people, the one that knows the classes better costs a little more."""
    pairs = ([candidate("a", skill=0.9, noise=i), candidate("b", skill=0.2, noise=99 + i)] for i in range(1, 99))
    pair = next(pair for pair in pairs if difference(*pair, seed=0)["diff"] > 0 and shows_f1(*pair))
    found = decide(pair, idle_cost=IDLE)
    assert (found.model, found.against) == ("a", "b")
    assert amount(found.by_f1) in found.why
    assert f"no difference in money shown: {amount(found.interval)}" in found.why
    assert found.interval["metric"] == "cost"
    assert (found.by_f1["metric"], found.by_f1["level"]) == ("macro_f1", 0.95)
    assert (found.by_f1["low"] > 0, found.by_f1["words"]) == (True, "better")
    assert found.interval["low"] <= 0 <= found.interval["high"]
    pairs = (
        [candidate("a", skill=1, num_lots=14, noise=i), candidate("b", skill=1, num_lots=14)] for i in range(1, 99)
    )
    pair = next(pair for pair in pairs if difference(*pair, seed=0)["diff"] > 0.01 * IDLE and not shows_f1(*pair))
    assert decide(pair, idle_cost=IDLE).model == "b"
    poor = candidate("a", skill=0.2, num_lots=100, noise=1)
    dear = candidate("b", skill=2, num_lots=100, noise=2)
    assert decide([poor, dear], idle_cost=IDLE).model == "b"


def shows_f1(a: Candidate, b: Candidate) -> bool:
    """Whether a's macro-F1 is shown to be higher."""
    return paired(a.scores, b.scores)["low"] > 0


def f1(model: Candidate) -> float:
    return report(model.scores, n_boot=1)["macro_f1"]["value"]


def replaced(model: Candidate, *, price: int) -> Candidate:
    return Candidate(**{**vars(model), "serving_cost": price})


def test_few_lots_give_the_best_estimate_and_say_so():
    found = decide(
        [candidate("branch", skill=3, num_lots=9), candidate("head", skill=1, price=0, num_lots=9)], idle_cost=IDLE
    )
    assert found.model == "branch"
    assert (found.answer, found.why) == (
        "not enough lots",
        "9 lots, and an interval needs 10; best estimate, before head",
    )
    assert found.interval["low"] is None


def test_the_distance_to_good_parts_is_taken_where_no_other_model_can_be_judged_and_only_there():
    first, other = near_good(good_only=True), candidate("own", skill=2)
    found = decide_first([other, first], num_defects=0)
    assert found == Decision(first.name, "not enough data", found.why)
    assert found.why.startswith("no defect is labelled, so no classifier can be judged")
    assert "of 7 labelled defects none is in decide" in decide_first([other, first], num_defects=7).why
    judged = near_good(good_only=False)
    assert "of 7 labelled defects none is in train" in decide_first([judged], num_defects=7).why
    assert decide_first([other, judged], num_defects=7) is None
    assert decide_first([other], num_defects=7) is None


def test_the_only_candidate_is_taken_without_an_interval():
    assert decide([candidate("own", skill=0)], idle_cost=IDLE) == Decision(
        "own", "the only candidate", "the only candidate"
    )


def test_without_a_good_class_macro_f1_decides():
    best, cheap = candidate("branch", skill=2, ok=False), candidate("head", skill=1.9999, ok=False, price=0)
    worse = candidate("bad", skill=0.2, ok=False, price=0)
    assert decide([best, cheap], idle_cost=None).model == "head"
    found = decide([best, worse], idle_cost=None)
    assert found.model == "branch"
    assert found.interval["metric"] == "macro_f1"
    assert found.interval["low"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_candidates_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    models = [
        candidate(f"m{i}", skill=float(rng.uniform(0.5, 2.5)), noise=i, price=i % 2, num_lots=20) for i in range(4)
    ]
    found = {decide([models[i] for i in rng.permutation(4)], idle_cost=IDLE).model for _ in range(3)}
    assert len(found) == 1


@pytest.mark.parametrize("seed", range(6))
def test_what_is_taken_for_its_price_is_within_the_margin_and_everything_else_is_the_best(seed):
    rng = np.random.default_rng(seed)
    models = [candidate(f"m{i}", skill=float(rng.uniform(1, 2)), noise=i, price=i, num_lots=30) for i in range(3)]
    found = decide(models, idle_cost=IDLE)
    cost = {m.name: report(m.scores, policy=m.judged_by, n_boot=1)["cost"]["value"] for m in models}
    if found.answer == "not worse and cheaper":
        assert found.interval["high"] <= 0.02 * IDLE
    elif found.why.startswith("costs less"):
        assert found.interval["diff"] <= 0.002 * IDLE
        assert found.interval["low"] <= 0
    elif "higher macro-F1" in found.why:
        assert found.interval["low"] <= 0 <= found.interval["high"]
    else:
        assert cost[found.model] == min(cost.values())


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        (Costs(miss=100, false_alarm=10, defect_rate=(0.1, 0.1, 0.5)), 5.0),
        (Costs(miss=100, false_alarm=10, defect_rate=(0.01, 0.01, 0.02)), 2.0),
    ],
)
def test_doing_nothing_costs_the_cheaper_of_passing_and_rejecting_all(costs, expected):
    plant = toy_fleet("north").plant("north")
    assert idle_cost(plant.model_copy(update={"costs": costs})) == pytest.approx(expected)


def test_doing_nothing_has_no_price_where_no_class_is_good():
    plant = toy_fleet("north").plant("north").model_copy(update={"ok": ()})
    assert idle_cost(plant) is None


def test_a_tie_goes_to_the_cheaper_tier_and_a_better_estimate_does_not():
    """The head's estimate is a little worse, which is not shown, and money is dear or cheap beside that."""
    best = candidate("branch", skill=2, num_lots=30)
    heads = (candidate("head", skill=2, price=0, num_lots=30, noise=i) for i in range(1, 999))
    gaps = ((head, difference(head, best, seed=0)) for head in heads)
    head, gap = next((head, gap) for head, gap in gaps if 0 < 12 * gap["diff"] < gap["high"] and f1(head) >= f1(best))
    is_tie = decide([best, head], idle_cost=gap["diff"] / 0.0019)
    assert (is_tie.model, is_tie.answer) == ("head", "no difference shown")
    assert re.fullmatch(
        r"costs less to serve than branch, with which it ties: .* a part more .*, no difference shown", is_tie.why
    )
    assert decide([best, head], idle_cost=gap["diff"] / 0.0021).model == "branch"


def test_every_other_candidate_is_tested_against_the_cheapest_to_serve_at_one_level():
    ways = {"frozen": (1, 0, 0), "own": (3, 1, 0), "pooled": (1, 1, 3)}
    models = [candidate(n, skill=s, price=p, noise=i, num_lots=300) for n, (s, p, i) in ways.items()]
    found = decide(models, idle_cost=IDLE)
    assert (found.model, found.answer) == ("own", "better")
    assert [(row["model"], row["against"]) for row in found.tests] == [("own", "frozen"), ("pooled", "frozen")]
    assert [row["words"] for row in found.tests] == ["better", "no difference shown"]
    assert 0.95 < found.level < 0.99
    own = found.tests[0]
    plain = difference(models[1], models[0], seed=0)
    assert own["low"] <= plain["low"] < plain["high"] <= own["high"] < 0


def test_defects_in_few_lots_are_not_enough_data():
    """All cracks lie in four of a hundred lots."""
    pair = [candidate("own", skill=2), candidate("frozen", skill=1, price=0)]
    lots = np.unique(pair[0].scores.lots[~pair[0].scores.is_good])[:4]
    rows = pair[0].scores.is_good | np.isin(pair[0].scores.lots, lots)
    few = [Candidate(**{**vars(one), "scores": one.scores.take(rows), "judged_by": one.policy}) for one in pair]
    found = decide(few, idle_cost=IDLE)
    assert found.answer == "not enough data"
    assert found.why == f"defects in 4 lots, and money needs them in 5; best estimate, before {found.against}"


def test_the_cheapest_is_said_to_be_better_only_where_all_others_are_shown_to_be_worse():
    best = candidate("frozen", skill=3, price=0)
    worse = [candidate(f"m{i}", skill=0.5, noise=i) for i in (1, 2)]
    found = decide([best, *worse], idle_cost=IDLE)
    assert (found.model, found.answer) == ("frozen", "better")
    assert found.why.startswith("cheapest to serve, and shown to be better than all others: ")
    level = decide([best, *worse, candidate("twin", skill=3)], idle_cost=IDLE)
    assert (level.model, level.answer) == ("frozen", "no difference shown")


def test_a_cheaper_model_of_far_lower_macro_f1_is_no_tie_however_close_its_money():
    """Both leave nearly all to people, so that they cost the same."""
    best = candidate("branch", skill=0.9, num_lots=200)
    head = replaced(candidate("head", skill=0.1, num_lots=200, noise=1), price=0)
    gap = difference(head, best, seed=0)
    assert gap["low"] < 0 < gap["high"]
    assert decide([best, head], idle_cost=abs(gap["diff"]) * 10_000).model == "branch"


def test_with_few_lots_a_cheaper_model_is_not_called_the_best_estimate():
    best = candidate("branch", skill=2, num_lots=8)
    heads = (candidate("head", skill=2, price=0, num_lots=8, noise=i) for i in range(1, 999))
    gaps = ((head, difference(head, best, seed=0)) for head in heads if f1(head) >= f1(best))
    head, gap = next((head, gap) for head, gap in gaps if gap["diff"] > 0)
    found = decide([best, head], idle_cost=1000 * gap["diff"])
    assert (found.model, found.answer) == ("head", "not enough lots")
    assert found.why == "8 lots, and an interval needs 10; costs less to serve than branch"


def test_looking_costs_no_more_than_what_is_missed_where_every_class_has_a_price_of_its_own():
    plant = toy_fleet("north").plant("north")
    dear = Costs(miss=50_000, false_alarm=5_000, defect_rate=(0.1, 0.1, 0.1))
    cheap = dear.model_copy(update={"miss_by_class": dict.fromkeys(plant.defects, 100.0)})
    assert idle_cost(plant.model_copy(update={"costs": dear})) == pytest.approx(4_500)
    assert idle_cost(plant.model_copy(update={"costs": cheap})) == pytest.approx(10)
