"""Wrong verdicts in groups: every one counted once, the most expensive first, money that adds up to the cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plants.costs import decide_many, expected_cost, solve
from plants.failures import ESCAPE, FALSE_ALARM, MAX_EXAMPLES, WRONG_CLASS, confused, failures
from plants.plant import Costs
from plants.policy import OK, REJECT, Policy
from plants.scores import PartScores

CLASSES = ("good", "pit", "crack")


def table(rows: list[tuple[str, list[float]]], *, ok: tuple[str, ...] = ("good",)) -> PartScores:
    truth, probs = zip(*rows, strict=True)
    num = len(rows)
    return PartScores(
        part_ids=[f"p{i}" for i in range(num)],
        lots=[f"l{i % 12}" for i in range(num)],
        environments=[f"cam{i % 2}" for i in range(num)],
        truth=np.array(truth, dtype=object),
        probs=np.array(probs),
        classes=CLASSES,
        ok=ok,
    )


def policy(**fields: Any) -> Policy:
    costs = Costs(miss=1000, miss_by_class={"crack": 9000}, false_alarm=100, review=10, defect_rate=(0.1, 0.1, 0.1))
    told = {"plant": "p", "classes": CLASSES, "ok": ("good",), "pass_below": 0.4, "reject_above": 0.6, "costs": costs}
    return Policy.model_validate({**told, **fields})


FEW = [
    ("good", [0.9, 0.05, 0.05]),
    ("good", [0.1, 0.8, 0.1]),
    ("good", [0.5, 0.3, 0.2]),
    ("pit", [0.8, 0.1, 0.1]),
    ("pit", [0.1, 0.2, 0.7]),
    ("pit", [0.1, 0.8, 0.1]),
    ("crack", [0.7, 0.1, 0.2]),
    ("crack", [0.05, 0.05, 0.9]),
]


def test_escapes_alarms_and_wrong_names_are_told_apart_and_a_review_is_no_failure():
    found = failures(table(FEW), policy=policy())
    assert [(g["what"], g["truth"], g["said"], g["n"], g["of"]) for g in found] == [
        (ESCAPE, "crack", "passed", 1, 2),
        (FALSE_ALARM, "good", "pit", 1, 3),
        (ESCAPE, "pit", "passed", 1, 3),
        (WRONG_CLASS, "pit", "crack", 1, 3),
    ]
    assert found[0]["cost"] == pytest.approx(0.1 * 9000 / 5)
    assert found[1]["cost"] == pytest.approx(0.9 * 100 / 3)
    assert found[0]["examples"][0]["part_id"] == "p6"
    assert found[0]["environments"] == {"cam0": 1}


def test_confused_pairs_are_said_in_words_the_most_costly_first():
    rows = confused(table(FEW), policy=policy())
    assert [row["words"] for row in rows][:2] == ["crack taken for good: 1 of 2", "good taken for pit: 1 of 3"]
    assert rows[1]["share"] == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_every_wrong_verdict_is_counted_once_and_money_of_failures_and_reviews_is_the_cost_a_part(seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet((1, 1, 1), 300)
    scores = table(list(zip(rng.choice(CLASSES, 300), probs.tolist(), strict=True)))
    rule = solve(scores, costs=Costs(), plant="p")
    rule = rule.model_copy(update={"pass_below": 0.5, "reject_above": 0.55})
    found = failures(scores, policy=rule)
    decided, good = decide_many(scores, rule), scores.is_good
    is_wrong = (~good & (decided.verdict == OK)) | (good & (decided.verdict == REJECT))
    is_wrong |= ~good & (decided.verdict == REJECT) & (decided.defect != scores.truth_index)
    assert sum(group["n"] for group in found) == is_wrong.sum()
    assert [g["cost"] for g in found] == sorted((g["cost"] for g in found), reverse=True)
    assert all(len(group["examples"]) <= MAX_EXAMPLES for group in found)
    review = decided.verdict == 2
    reviews = 500 * (rule.rate * review[~good].mean() + (1 - rule.rate) * review[good].mean())
    assert sum(group["cost"] for group in found) + reviews == pytest.approx(expected_cost(scores, rule), rel=1e-6)


def test_where_no_class_is_good_there_is_no_money_and_the_most_frequent_come_first():
    rows = [("pit", [0.1, 0.2, 0.7])] * 3 + [("crack", [0.1, 0.8, 0.1])] * 2 + [("good", [0.9, 0.05, 0.05])]
    scores = table(rows, ok=())
    rule = policy(ok=(), pass_below=0, reject_above=1)
    found = failures(scores, policy=rule)
    assert [(g["what"], g["truth"], g["n"], g["cost"]) for g in found] == [
        (WRONG_CLASS, "pit", 3, None),
        (WRONG_CLASS, "crack", 2, None),
    ]
    assert confused(scores, policy=rule)[0]["cost"] is None
