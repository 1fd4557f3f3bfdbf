"""Decisions between models, on simulated parts whose truth about the models is known."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.compare import (
    Candidate,
    Decision,
    _may_serve,
    cell,
    decide,
    decide_first,
    figures_of,
    first_model,
    idle_cost,
    runs_for,
    worst_first,
)
from jobs.plan import Plan, RunSpec
from plants.costs import out_of_fold, solve, solve_by_novelty
from plants.metrics import report
from plants.plant import Costs, Fleet
from plants.scores import PartScores
from tests.jobs.toys import toy_fleet

COSTS = Costs(miss=50_000, false_alarm=5_000, review=500, defect_rate=(0.1, 0.05, 0.2))
IDLE = 0.8 * 5_000


def candidate(
    name: str, *, skill: float, seed: int = 0, price: int = 1, num_lots: int = 100, ok: bool = True, noise: int = 0
) -> Candidate:
    """A model that separates good from cracked parts by `skill` deviations; equal seed and noise, equal mistakes."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(2 * num_lots) < 0.4, "crack", "good").astype(object)
    draws = np.random.default_rng((seed, noise)).normal(0, 1, len(truth))
    p = 1 / (1 + np.exp(-2 * (np.where(truth == "crack", skill, -skill) + draws)))
    scores = PartScores(
        part_ids=np.arange(len(truth)),
        lots=np.array([f"lot-{i // 2}" for i in range(len(truth))]),
        environments=np.full(len(truth), "line"),
        truth=truth,
        probs=np.stack([1 - p, p], axis=1),
        classes=("good", "crack"),
        ok=("good",) if ok else (),
    )
    policy = solve(scores, costs=COSTS, plant="north")
    judged_by = out_of_fold(scores, costs=COSTS, plant="north") if ok else policy
    return Candidate(name, "own", (name,), price, scores, policy, judged_by)


def test_a_cheaper_model_is_taken_when_it_is_shown_not_to_be_worse():
    """It raises one false alarm more in 1,600 parts."""
    best, cheap = candidate("branch", skill=2.5, num_lots=800), candidate("head", skill=2.5, price=0, num_lots=800)
    good = int(np.flatnonzero(best.scores.is_good & (best.scores.p_defect < 0.001))[0])
    cheap.scores.probs[good] = (0.001, 0.999)
    cost = {m.name: report(m.scores, policy=m.judged_by, n_boot=1)["cost"]["value"] for m in (best, cheap)}
    assert cost["branch"] < cost["head"] < cost["branch"] + 0.01 * IDLE
    found = decide([best, cheap], idle_cost=IDLE)
    assert (found.model, found.against) == ("head", "branch")
    assert found.why == "head costs less to serve and is shown not to be worse than branch by more than the margin"
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
    assert found.why == "better than head, the interval excludes 0"
    assert found.interval["metric"] == "cost"
    assert found.interval["high"] < 0


def test_a_cheaper_model_whose_difference_is_not_known_well_enough_is_not_taken():
    """Equal skill, but other mistakes on few lots: nothing shows that it is not worse."""
    pair = [candidate("a", skill=1, num_lots=14, noise=3), candidate("b", skill=1, num_lots=14, noise=4)]
    best = decide([replaced(c, price=1) for c in pair], idle_cost=IDLE).model
    (other,) = (c.name for c in pair if c.name != best)
    found = decide([replaced(c, price=int(c.name == best)) for c in pair], idle_cost=IDLE)
    assert found.model == best
    assert found.why == f"best estimate; no difference shown to {other}"
    assert found.interval["low"] <= 0 <= found.interval["high"]


def test_models_whose_money_is_not_shown_to_differ_are_told_apart_by_macro_f1():
    pair = [candidate("a", skill=1, num_lots=14, noise=1), candidate("b", skill=1, num_lots=14, noise=2)]
    cost, f1 = (
        {m.name: report(m.scores, policy=m.judged_by, n_boot=1)[key]["value"] for m in pair}
        for key in ("cost", "macro_f1")
    )
    assert cost["b"] < cost["a"]
    assert f1["a"] > f1["b"]
    found = decide(pair, idle_cost=IDLE)
    assert (found.model, found.against) == ("a", "b")
    assert found.why == "higher macro-F1 than b, and no difference in money shown"
    assert found.interval["metric"] == "cost"
    assert found.interval["low"] <= 0 <= found.interval["high"]
    poor = candidate("a", skill=0.2, num_lots=100, noise=1)
    dear = candidate("b", skill=2, num_lots=100, noise=2)
    assert decide([poor, dear], idle_cost=IDLE).model == "b"


def replaced(model: Candidate, *, price: int) -> Candidate:
    return Candidate(**{**vars(model), "serving_cost": price})


def test_few_lots_give_the_best_estimate_and_say_so():
    found = decide(
        [candidate("branch", skill=3, num_lots=9), candidate("head", skill=1, price=0, num_lots=9)], idle_cost=IDLE
    )
    assert found.model == "branch"
    assert found.why == "not enough lots for an interval; best estimate, before head"
    assert found.interval["low"] is None


def near_good(*, good_only: bool) -> Candidate:
    """The distance to good parts, which tells cracks apart well, at a plant with or without cracks on decide."""
    scores = candidate("n", skill=2).scores
    novelty = np.where(scores.is_good, 0.8, 2.0) + np.random.default_rng(0).normal(0, 0.1, len(scores))
    probs = np.stack([1 / (1 + novelty**4), np.zeros(len(scores))], axis=1)
    scores = PartScores(**{**{k: getattr(scores, k) for k in FIELDS}, "probs": probs, "novelty": novelty})
    scores = scores.take(scores.is_good) if good_only else scores
    policy = solve_by_novelty(scores, costs=COSTS, plant="north")
    judged_by = out_of_fold(scores, costs=COSTS, plant="north", solver=solve_by_novelty)
    return Candidate("normality-north-s0", "normality", ("n",), 0, scores, policy, judged_by)


FIELDS = ("part_ids", "lots", "environments", "truth", "classes", "ok")


def test_the_distance_to_good_parts_is_taken_where_no_other_model_can_be_judged_and_only_there():
    first, other = near_good(good_only=True), candidate("own", skill=2)
    found = decide_first([other, first], num_defects=0)
    assert found == Decision(first.name, found.why, None, None)
    assert found.why.startswith("no defect is labelled, so no classifier can be judged")
    assert "of 7 labelled defects none is in decide" in decide_first([other, first], num_defects=7).why
    judged = near_good(good_only=False)
    assert "of 7 labelled defects none is in train" in decide_first([judged], num_defects=7).why
    assert decide_first([other, judged], num_defects=7) is None
    assert decide_first([other], num_defects=7) is None


def test_the_distance_to_good_parts_is_judged_by_what_it_finds_and_not_by_classes_it_does_not_name():
    model = near_good(good_only=False)
    figures = figures_of(model.scores, kind=model.kind, policy=model.judged_by)
    found = cell(figures=figures)
    assert (found["macro_f1"], found["recall"]) == (None, None)
    assert found["auc"] > 0.99
    assert figures["verdicts"]["caught"]["crack"]["value"] > 0.95
    assert figures["verdicts"]["false_alarms"]["value"] == 0
    assert figures["verdicts"]["reviews_of_good"]["value"] == pytest.approx(0.05, abs=0.04)


def test_a_plant_with_few_labelled_defects_has_its_normality_as_a_candidate():
    plant = toy_fleet("north").plant("north")
    runs = [RunSpec("n", "normality", ("north",), 1, {}, target="north"), RunSpec("o", "own", ("north",), 0, {})]
    plan = Plan("toys", "d", tuple(runs))
    given = {"plan": plan, "plant": plant, "done": ["n", "o"]}
    assert first_model(**given, num_defects=19) == ["n"]
    assert first_model(**given, num_defects=20) == []
    assert first_model(**{**given, "done": ["o"]}, num_defects=0) == []
    assert first_model(**{**given, "plant": plant.model_copy(update={"ok": ()})}, num_defects=0) == []
    assert runs_for(plan, fleet=toy_fleet("north"), plant=plant, done=["n", "o"], seed=0) == ["o"]


def test_the_only_candidate_is_taken_without_an_interval():
    assert decide([candidate("own", skill=0)], idle_cost=IDLE) == Decision("own", "the only candidate", None, None)


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
    if "costs less" in found.why:
        assert found.interval["high"] <= 0.02 * IDLE
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


def test_a_cell_names_the_class_that_is_missed_most_and_counts_nothing_as_zero():
    model = candidate("m", skill=0.5)
    figures = report(model.scores, policy=model.policy)
    found = cell(figures=figures)
    recalls = {name: row["recall"]["value"] for name, row in figures["per_class"].items()}
    assert found["recall"] == min(recalls.values()) == recalls[found["recall_class"]]
    assert (found["n"], found["n_lots"]) == (200, 100)
    nothing = cell(figures=report(model.scores.take([]), policy=model.policy))
    assert (nothing["macro_f1"], nothing["recall"], nothing["cost"], nothing["n"]) == (None, None, None, 0)


def test_plants_come_worst_first_and_one_without_a_figure_before_all():
    matrix = {"m": {"a": {"macro_f1": 0.9}, "b": {"macro_f1": 0.2}, "c": {"macro_f1": None}}}
    assert worst_first({name: {"model": "m"} for name in "abc"}, matrix) == ["c", "b", "a"]


def test_a_plant_is_judged_by_finished_runs_of_its_sisters_only():
    fleet = Fleet.model_validate(
        {
            "fleet": "f",
            "store": "unused",
            "plants": [
                {"name": "mill", "images": "i", "classes": {"crack": "crack"}},
                {"name": "forge", "images": "i", "classes": {"riss": "crack"}},
                {"name": "tiles", "images": "i", "classes": {"blob": "blob"}},
            ],
        }
    )
    runs = [("m", ("mill",), 0), ("f", ("forge",), 0), ("t", ("tiles",), 0), ("p", ("mill", "forge"), 0)]
    plan = Plan("f", "d", tuple(RunSpec(n, "own", p, s, {}) for n, p, s in [*runs, ("m1", ("mill",), 1)]))
    done = ["m", "t", "p", "m1"]
    assert runs_for(plan, fleet=fleet, plant=fleet.plant("mill"), done=done, seed=0) == ["m", "p"]
    assert runs_for(plan, fleet=fleet, plant=fleet.plant("tiles"), done=done, seed=0) == ["t"]


@pytest.mark.parametrize(
    ("forge", "mill", "eligible"),
    [
        ({}, {}, ["m", "p", "w"]),
        ({}, {"may_train": False}, ["f"]),
        ({"may_leave": False}, {"may_train": False}, []),
        ({"may_leave": False}, {}, ["m"]),
        ({"may_train": False}, {}, ["m"]),
    ],
)
def test_a_plant_that_may_not_train_is_served_by_its_sisters_and_nobody_by_what_may_not_leave(forge, mill, eligible):
    """At the mill, after training: a flag that changed since is held as well."""
    fleet = toy_fleet("mill", "forge")
    plants = [p.model_copy(update=changes) for p, changes in zip(fleet.plants, (mill, forge), strict=True)]
    fleet = fleet.model_copy(update={"plants": tuple(plants)})
    runs = [("m", "own", ("mill",)), ("f", "own", ("forge",)), ("p", "pooled", ("mill", "forge"))]
    runs += [("w", "warm", ("mill",))]
    plan = Plan("f", "d", tuple(RunSpec(n, kind, p, 0, {}, parent="p" if n == "w" else None) for n, kind, p in runs))
    model = candidate("m", skill=1, num_lots=10)
    found = [Candidate(**{**vars(model), "name": name, "members": (name,)}) for name, _, _ in runs]
    at = fleet.plant("mill")
    assert [c.name for c in found if _may_serve(c, plant=at, plan=plan, fleet=fleet)] == eligible
