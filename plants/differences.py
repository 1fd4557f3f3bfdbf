"""Whether one model is better than another: paired differences on the same parts, of two models and of many.

In money where both have it, else in macro-F1; intervals are over lots, and where many models are compared, taken at the
level at which all of them hold together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from plants.costs import OutOfFold, Policy
from plants.counts import confusions, cost_of, cost_sums, dearest_verdicts, macro_f1, macro_parts, number, over_draws
from plants.scores import PartScores
from plants.stats import MIN_LOTS_OF_KIND, NOT_ENOUGH_LOTS, Floats, Lots, joint, never_seen, student

Judged = tuple[PartScores, Policy | OutOfFold | None]
"""What a model says of some parts, and what judges it in money."""


def paired(
    scores_a: PartScores,
    scores_b: PartScores,
    *,
    policy_a: Policy | OutOfFold | None = None,
    policy_b: Policy | OutOfFold | None = None,
    n_boot: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """a - b on the same parts and lots: in cost (less is better) where both have money, else in macro-F1 (more is).

    However alike the verdicts on these parts are, two models may differ on parts that none of these stands for: unless
    they are one and the same, the interval is never narrower than the rule of three allows.
    low and high are None under ten lots, and in cost where defects or good parts lie in under five, as what those few
    lots have in common would pass for a difference; diff too where nothing was counted. Raises ValueError for other
    parts.
    """
    scores_b = _aligned(scores_b, to=scores_a)
    lots = Lots(scores_a.lots)
    measure = _measure([(scores_a, policy_a), (scores_b, policy_b)])
    a, b = measure.values
    diff = number(a - b)
    interval, is_enough = None, lots.is_enough
    if measure.metric == "cost":
        is_enough &= min(lots.holding(scores_a.is_good), lots.holding(~scores_a.is_good)) >= MIN_LOTS_OF_KIND
    if is_enough and diff is not None:
        drawn_a, drawn_b = measure.drawn(lots, n=n_boot, seed=seed)
        interval = student(diff, drawn_a - drawn_b, num_lots=lots.num, level=level)
        if interval and not (np.array_equal(scores_a.probs, scores_b.probs) and policy_a == policy_b):
            interval = interval.at_least(diff, measure.unseen)
    return {
        "metric": measure.metric,
        "diff": diff,
        "low": number(interval.low) if interval else None,
        "high": number(interval.high) if interval else None,
        "n_lots": lots.num,
        "words": None if is_enough else NOT_ENOUGH_LOTS,
    }


def joint_level(models: Sequence[Judged], *, level: float = 0.95, n_boot: int = 500, seed: int = 0) -> float:
    """The level at which to take each of all `paired` differences between these models, so that all hold at `level`.

    The more models and the less alike they err, the higher. `level` itself under ten lots, where no interval is given.
    Raises ValueError for other parts.
    """
    first = models[0][0]
    models = [(_aligned(scores, to=first), policy) for scores, policy in models]
    lots = Lots(first.lots)
    if not lots.is_enough or len(models) < 3:
        return level
    return joint(_measure(models).drawn(lots, n=n_boot, seed=seed), num_lots=lots.num, level=level)


@dataclass(frozen=True, eq=False)
class _Measure:
    """How models are compared on some parts: in cost where there is money and both kinds of parts, else macro-F1."""

    metric: str
    sums: list[Floats]
    """Of each model [N, ...], what is added up over parts."""
    statistic: Callable[[Floats], Floats]
    """Sums [..., K] -> values."""
    _unseen: Callable[[Floats], float]
    by_fold: Floats | None = None
    """[M, K], each model's cost were all parts judged by the policy of one fold; the same where it has one policy."""

    @property
    def values(self) -> list[Floats]:
        """Of each model on all parts."""
        return [self.statistic(side.sum(axis=0)) for side in self.sums]

    def drawn(self, lots: Lots, *, n: int, seed: int) -> Floats:
        """Of each model in every draw [M, B].

        A policy would be another, too, were it solved on other lots. How its cost scatters by that is the jackknife of
        the folds' policies, and every draw has as much added. Source: Kott, Journal of Official Statistics 17, 2001.
        """
        draws = lots.draws(n, seed=seed)
        found = np.stack([self.statistic(over_draws(draws, lots, side)) for side in self.sums])
        if self.by_fold is None:
            return found
        num_folds = self.by_fold.shape[1]
        apart = self.by_fold - self.by_fold.mean(axis=1, keepdims=True)
        steps = np.random.default_rng([seed, num_folds]).standard_normal((num_folds, n))
        moved: Floats = found + math.sqrt((num_folds - 1) / num_folds) * apart @ steps
        return moved

    @property
    def unseen(self) -> float:
        """By how much models may differ that gave the same verdict on each of these parts."""
        return self._unseen(self.sums[0].sum(axis=0))


def _measure(models: Sequence[Judged]) -> _Measure:
    policies = [policy for _, policy in models if policy is not None and policy.has_money]
    good = models[0][0].is_good
    if len(policies) < len(models) or not good.any() or good.all():
        return _Measure("macro_f1", [confusions(scores) for scores, _ in models], macro_f1, _unseen_macro)
    rate = policies[0].rate
    if any(policy.rate != rate for policy in policies):
        raise ValueError("costs compare at one defect rate only")
    pairs = [(scores, policy) for (scores, _), policy in zip(models, policies, strict=True)]
    dearest = np.max([dearest_verdicts(scores, policy) for scores, policy in pairs], axis=0)
    sums = [cost_sums(scores, policy) for scores, policy in pairs]
    statistic = partial(cost_of, rate=rate)
    by_fold = _costs_by_fold(pairs, statistic=statistic)
    return _Measure("cost", sums, statistic, partial(_unseen_cost, rate=rate, dearest=dearest), by_fold)


def _costs_by_fold(
    pairs: Sequence[tuple[PartScores, Policy | OutOfFold]], *, statistic: Callable[[Floats], Floats]
) -> Floats | None:
    """What every model would cost by the policy of each fold [M, K]; None where no policy was solved out of fold."""
    num_folds = max(len(policy.policies) if isinstance(policy, OutOfFold) else 1 for _, policy in pairs)
    if num_folds == 1:
        return None
    policies = [p.policies if isinstance(p, OutOfFold) else (p,) * num_folds for _, p in pairs]
    return np.array(
        [
            [float(statistic(cost_sums(scores, policy).sum(axis=0))) for policy in by_fold]
            for (scores, _), by_fold in zip(pairs, policies, strict=True)
        ]
    )


def _unseen_cost(sums: Floats, *, rate: float, dearest: Floats) -> float:
    """By how much two models may differ in cost that gave the same verdict on each of these parts, from sums [4]."""
    return math.hypot((1 - rate) * dearest[0] * never_seen(sums[0]), rate * dearest[1] * never_seen(sums[2]))


def _unseen_macro(whole: Floats) -> float:
    """By how much two models may differ in macro-F1 that said the same of each of these parts, from counts [C, C]."""
    return never_seen(macro_parts(whole.sum(axis=1)))


def _aligned(scores: PartScores, *, to: PartScores) -> PartScores:
    """The same parts in the other's order."""
    at = {part: i for i, part in enumerate(scores.part_ids)}
    if len(at) != len(to) or len(at) != len(scores) or any(part not in at for part in to.part_ids):
        raise ValueError("two models are compared on the same parts only")
    same = scores.take(np.array([at[part] for part in to.part_ids], dtype=np.intp))
    if same.classes != to.classes or not np.array_equal(same.truth, to.truth):
        raise ValueError("two models are compared on the same truth only")
    return same
