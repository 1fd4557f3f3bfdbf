"""How much worse: nothing where nothing changed, and an interval that excludes 0 where all was lost."""

from __future__ import annotations

import dataclasses

import numpy as np

from plants.costs import solve
from plants.damage import damage, figures
from plants.plant import Costs
from plants.scores import PartScores


def scores(
    *, skill: float, num: int = 120, lots: int = 24, ok: tuple[str, ...] = ("good",), seed: int = 0
) -> PartScores:
    classes = ("good", "dent", "crack")
    rng = np.random.default_rng(seed)
    truth = np.arange(num) % 3
    logits = rng.normal(size=(num, 3))
    logits[np.arange(num), truth] += skill
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return PartScores(
        part_ids=[f"p{i}" for i in range(num)],
        lots=[f"l{i % lots}" for i in range(num)],
        environments=["e"] * num,
        truth=np.array(classes, dtype=object)[truth],
        probs=probs,
        classes=classes,
        ok=ok,
    )


def test_the_same_parts_unchanged_are_not_worse_and_that_is_certain():
    one = scores(skill=2.0)
    for row in damage(one, one, policy=solve(one, costs=Costs(), plant="p")).values():
        assert (row["diff"], row["low"], row["high"]) == (0, 0, 0)


def test_a_model_that_is_lost_is_shown_to_be_worse_in_all_three_figures():
    before, after = scores(skill=4.0), scores(skill=0.0, seed=1)
    policy = solve(before, costs=Costs(), plant="p")
    found = damage(after, before, policy=policy)
    for key in ("macro_f1", "recall"):
        assert -1 <= found[key]["low"] < found[key]["high"] < 0
    assert found["cost"]["low"] > 0
    for key, value in figures(after, policy=policy).items():
        assert abs(value - figures(before, policy=policy)[key] - found[key]["diff"]) < 1e-5


def test_recall_counts_bad_parts_that_are_called_by_their_own_class():
    one = scores(skill=1.0)
    bad = ~one.is_good
    named = (one.predicted_index == one.truth_index)[bad].mean()
    assert abs(figures(one, policy=None)["recall"] - named) < 1e-6


def test_without_money_there_is_no_cost_and_under_ten_lots_no_interval():
    before, after = (scores(skill=s, lots=5, ok=()) for s in (3.0, 1.0))
    found = damage(after, before, policy=None)
    assert found["cost"] is None
    assert figures(after, policy=None)["cost"] is None
    for key in ("macro_f1", "recall"):
        assert found[key]["diff"] < 0
        assert (found[key]["low"], found[key]["words"]) == (None, "not enough lots")


def test_where_no_part_is_bad_nothing_is_counted_and_where_few_lots_hold_one_there_is_no_interval():
    whole = scores(skill=2.0)
    good = whole.take(whole.is_good)
    assert damage(good, good, policy=None)["recall"] == {
        "diff": None,
        "low": None,
        "high": None,
        "words": "nothing counted",
    }
    few = whole.take(whole.is_good | (np.arange(len(whole)) < 5))
    other = dataclasses.replace(few, probs=few.probs[:, [1, 2, 0]])
    assert damage(other, few, policy=None)["recall"]["words"] == "not enough lots"
