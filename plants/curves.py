"""Cost curves: what a part of the line costs at every defect rate, so that one sees where a policy is worth having.

At one defect rate a policy's cost is a mix of what its verdicts on good and on bad parts cost, so over all rates it is
a straight line, and so are passing all and rejecting all. Source: Drummond and Holte, Cost curves, Machine Learning 65,
2006; their axes are normalised, these are money and the rate itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plants.costs import OutOfFold, Policy, part_costs, prices, review_capacity, review_load
from plants.policy import defect_score
from plants.scores import PartScores, calibrate

NUM_RATES = 41
WIDER = 2.0
"""Rates are drawn up to so many times the high end of the policy's own."""


def cost_curve(scores: PartScores, policy: Policy | OutOfFold) -> dict[str, Any] | None:
    """Money a part at each of `rates`: of the policy, of passing all, of rejecting all, of the best single threshold.

    The last is the lower envelope over all thresholds without review, each rate with the threshold that was best on
    these very parts: a bound, not a promise. None without money, and where no good or no bad part is known.
    """
    good = scores.is_good
    if not policy.has_money or good.all() or not good.any():
        return None
    rates = np.linspace(0, min(1.0, max(WIDER * policy.rate, 0.01)), NUM_RATES)
    each = part_costs(scores, policy)
    if_passed, if_rejected = prices(scores, costs=policy.costs)
    score = defect_score(calibrate(scores.probs, policy.temperature), scores.ok_mask)
    order = np.argsort(score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])) + 1, len(score))
    missed = np.cumsum(np.where(good, 0, if_passed)[order])[ends - 1] / (~good).sum()
    stopped = (if_rejected.sum() - np.cumsum(if_rejected[order])[ends - 1]) / good.sum()
    missed, stopped = np.append(0.0, missed), np.append(if_rejected.sum() / good.sum(), stopped)
    best = [float(((1 - rate) * stopped + rate * missed).min()) for rate in rates]
    return {
        "rates": rates.tolist(),
        "policy": ((1 - rates) * each[good].mean() + rates * each[~good].mean()).tolist(),
        "pass_all": (rates * if_passed[~good].mean()).tolist(),
        "reject_all": ((1 - rates) * if_rejected[good].mean()).tolist(),
        "best_threshold": best,
        "defect_rate": list(policy.costs.defect_rate),
        "review_load": review_load(scores, policy),
        "review_capacity": review_capacity(policy.costs),
    }
