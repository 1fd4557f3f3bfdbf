"""How much worse a model judges parts that something has befallen than the same parts as they were. Pure.

Three figures: macro-F1, the share of bad parts that are called by their own class, and money a part by the same policy.
Each difference has its own 95 % interval over lots; of many corruptions some interval will exclude 0 by chance.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from plants.costs import OutOfFold, Policy
from plants.differences import paired
from plants.metrics import report
from plants.scores import Mask, PartScores
from plants.stats import MIN_LOTS_OF_KIND, NOT_ENOUGH_LOTS, Floats, Interval, Lots, never_seen, paired_bootstrap

Rule = Policy | OutOfFold | None


def figures(scores: PartScores, *, policy: Rule) -> dict[str, float | None]:
    """`macro_f1`, `recall` of defects, and `cost` a part; None for what was not counted."""
    found = report(scores, policy=policy, n_boot=1)
    bad = ~scores.is_good
    recall = float(_is_named(scores)[bad].mean()) if bad.any() else None
    return {
        "macro_f1": found["macro_f1"]["value"],
        "recall": None if recall is None else round(recall, 6),
        "cost": found["cost"]["value"] if found["cost"] else None,
    }


def damage(after: PartScores, before: PartScores, *, policy: Rule, seed: int = 0) -> dict[str, dict[str, Any] | None]:
    """after - before on the same parts, of each of the three: `{diff, low, high, words}`; None without money."""
    f1 = paired(after, before, seed=seed)
    money = paired(after, before, policy_a=policy, policy_b=policy, seed=seed)
    kept = ("diff", "low", "high", "words")
    return {
        "macro_f1": {key: f1[key] for key in kept} | _within(f1["low"], f1["high"]),
        "recall": _recall(after, before, seed=seed),
        "cost": {key: money[key] for key in kept} if money["metric"] == "cost" else None,
    }


def _recall(after: PartScores, before: PartScores, *, seed: int) -> dict[str, Any]:
    bad = ~before.is_good
    if not bad.any():
        return {"diff": None, "low": None, "high": None, "words": "nothing counted"}
    found = paired_bootstrap(
        before.lots, *(partial(_share, _is_named(side) & bad, bad) for side in (after, before)), seed=seed
    )
    assert found.diff is not None, "some part is bad"
    diff, is_enough = round(found.diff, 6), Lots(before.lots).holding(bad) >= MIN_LOTS_OF_KIND
    if found.low is None or found.high is None or not is_enough:
        return {"diff": diff, "low": None, "high": None, "words": NOT_ENOUGH_LOTS}
    unseen = 0.0 if np.array_equal(after.probs, before.probs) else never_seen(int(bad.sum()))
    reach = Interval(found.low, found.high).at_least(found.diff, unseen)
    return {"diff": diff, **_within(round(reach.low, 6), round(reach.high, 6)), "words": None}


def _within(low: float | None, high: float | None) -> dict[str, float | None]:
    """The ends of an interval of a difference of two figures between 0 and 1."""
    return {"low": None if low is None else max(low, -1.0), "high": None if high is None else min(high, 1.0)}


def _share(hits: Mask, of: Mask, weights: Floats) -> Floats:
    """hits / of in every draw [B] of weights [B, N]."""
    total = weights @ of
    found: Floats = (weights @ hits) / np.where(total > 0, total, np.nan)
    return found


def _is_named(scores: PartScores) -> Mask:
    """Parts whose own class is the most probable [N]."""
    found: Mask = scores.predicted_index == scores.truth_index
    return found
