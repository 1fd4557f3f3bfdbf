"""How good a model is at a plant, counted per part, each figure with its interval over lots.

What was not counted is None, never 0. Macro-F1 and recall are of the most probable class, whatever a policy says;
escapes, false alarms and cost are of the policy's verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from plants.costs import OK, REJECT, REVIEW, OutOfFold, Policy, decide_many, part_costs
from plants.scores import Mask, PartScores, calibrate
from plants.stats import MIN_LOTS, NOT_ENOUGH_LOTS, Floats, Interval, Lots, fraction, joint, never_seen, student

__all__ = ["PartScores", "joint_level", "macro_f1", "paired", "report"]

MIN_LOTS_OF_KIND = 5
"""What is counted on some parts only needs this many lots that hold any."""
NUM_BINS = 10
NUM_CURVE_POINTS = 101
BLOCK = 100_000
"""Weights ranked at once: what stays in a core's cache."""

Figure = dict[str, Any]


def report(
    scores: PartScores, *, policy: Policy | OutOfFold | None = None, n_boot: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Everything that is said of a model at a plant, ready for JSON.

    A figure is `{value, low, high, words}`; `words` says why there is no interval. `auc`, `average_precision` and
    `curves` are of defect against ok, None where no class is good; `cost` and `verdicts` are None without money.
    """
    lots = Lots(scores.lots)
    draws = lots.draws(n_boot, seed=seed) if lots.is_enough else None
    counts = _confusion(scores)
    whole = counts.sum(axis=0)
    drawn = None if draws is None else _over_draws(draws, lots, counts)
    macro = _macro_figure(whole, drawn, num_lots=lots.num)
    return {
        "n": len(scores),
        "n_lots": lots.num,
        "macro_f1": macro,
        "per_class": _per_class(scores, whole, drawn, lots=lots),
        "confusion": {"classes": list(scores.classes), "counts": whole.astype(int).tolist()},
        **_ranking(scores, lots=lots, draws=draws),
        "by_environment": _by_environment(scores, counts, lots=lots, draws=draws),
        **_money(scores, policy=policy, lots=lots, draws=draws),
        "calibration": _calibration(scores, temperature=policy.temperature if policy else 1.0),
    }


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
    low and high are None under ten lots, diff too where nothing was counted. Raises ValueError for other parts.
    """
    scores_b = _aligned(scores_b, to=scores_a)
    lots = Lots(scores_a.lots)
    measure = _measure([(scores_a, policy_a), (scores_b, policy_b)])
    a, b = measure.values
    diff = _number(a - b)
    interval = None
    if lots.is_enough and diff is not None:
        drawn_a, drawn_b = measure.drawn(lots, n=n_boot, seed=seed)
        interval = student(diff, drawn_a - drawn_b, num_lots=lots.num, level=level)
        if interval and not (np.array_equal(scores_a.probs, scores_b.probs) and policy_a == policy_b):
            interval = interval.at_least(diff, measure.unseen)
    return {
        "metric": measure.metric,
        "diff": diff,
        "low": _number(interval.low) if interval else None,
        "high": _number(interval.high) if interval else None,
        "n_lots": lots.num,
        "words": None if lots.is_enough else NOT_ENOUGH_LOTS,
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


Judged = tuple[PartScores, "Policy | OutOfFold | None"]


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
        found = np.stack([self.statistic(_over_draws(draws, lots, side)) for side in self.sums])
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
        return _Measure("macro_f1", [_confusion(scores) for scores, _ in models], macro_f1, _unseen_macro)
    rate = policies[0].rate
    if any(policy.rate != rate for policy in policies):
        raise ValueError("costs compare at one defect rate only")
    pairs = [(scores, policy) for (scores, _), policy in zip(models, policies, strict=True)]
    dearest = np.max([_dearest(scores, policy) for scores, policy in pairs], axis=0)
    sums = [_cost_sums(scores, policy) for scores, policy in pairs]
    statistic = partial(_cost, rate=rate)
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
            [float(statistic(_cost_sums(scores, policy).sum(axis=0))) for policy in by_fold]
            for (scores, _), by_fold in zip(pairs, policies, strict=True)
        ]
    )


def macro_f1(confusion: Floats) -> Floats:
    """Mean F1 over the classes that occur in truth, from counts [..., C truth, C predicted]; NaN where none does."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, said = confusion.sum(axis=-1), confusion.sum(axis=-2)
    occurs = true > 0
    f1 = np.where(occurs, 2 * hits / np.where(occurs, true + said, 1), 0.0)
    return _ratio(f1.sum(axis=-1), occurs.sum(axis=-1))


def _ratio(part: npt.ArrayLike, of: npt.ArrayLike) -> Floats:
    whole = np.asarray(of, dtype=np.float64)
    result: Floats = np.asarray(part, dtype=np.float64) / np.where(whole > 0, whole, np.nan)
    return result


def _number(value: npt.ArrayLike) -> float | None:
    number = float(np.asarray(value))
    return round(number, 6) if np.isfinite(number) else None


def _figure(value: npt.ArrayLike, interval: Interval | None, *, n: int | None = None) -> Figure:
    """A value with its interval, or the words why there is none."""
    number = _number(value)
    shown = None if number is None else interval
    figure: Figure = {
        "value": number,
        "low": _number(shown.low) if shown else None,
        "high": _number(shown.high) if shown else None,
        "words": None,
    }
    if number is None:
        figure["words"] = "nothing counted"
    elif shown is None:
        figure["words"] = NOT_ENOUGH_LOTS
    return figure | ({} if n is None else {"n": n})


def _share(hits: float, n: float, drawn: Floats | None, *, num_lots: int) -> Figure:
    """The fraction hits / n of parts that lie in `num_lots` lots."""
    enough = drawn is not None and num_lots >= MIN_LOTS_OF_KIND and n > 0
    interval = fraction(hits / n, drawn, n=n, num_lots=num_lots) if enough and drawn is not None else None
    return _figure(_ratio(hits, n), interval, n=int(n))


def _macro_figure(whole: Floats, drawn: Floats | None, *, num_lots: int) -> Figure:
    """Macro-F1 from all counts [C, C] and drawn ones [B, C, C].

    It scatters at least as a mean of fractions of the classes' parts would: a class of which two parts were seen, both
    right, is not known to be without fault.
    """
    value = macro_f1(whole)
    if drawn is None or not np.isfinite(value):
        return _figure(value, None)
    return _figure(value, fraction(float(value), macro_f1(drawn), n=_macro_parts(whole), num_lots=num_lots))


def _macro_parts(whole: Floats) -> float:
    """Of how many parts a plain fraction would scatter as a mean of fractions of the classes' parts does."""
    true = whole.sum(axis=1)
    seen = true[true > 0]
    return float(len(seen) ** 2 / (1 / seen).sum())


def _confusion(scores: PartScores) -> Floats:
    """Each part's own table [N, C, C], truth by predicted."""
    counts = np.zeros((len(scores), len(scores.classes), len(scores.classes)))
    counts[np.arange(len(scores)), scores.truth_index, scores.predicted_index] = 1
    return counts


def _over_draws(draws: Floats, lots: Lots, values: Floats) -> Floats:
    """Sums of per-part values [N, ...] in every draw [B, ...]."""
    return (draws @ lots.sums(values)).reshape(len(draws), *values.shape[1:])


def _per_class(scores: PartScores, whole: Floats, drawn: Floats | None, *, lots: Lots) -> dict[str, Any]:
    table = {}
    for i, name in enumerate(scores.classes):
        hits, true, said = whole[i, i], whole[i].sum(), whole[:, i].sum()
        in_draws = None if drawn is None else _ratio(drawn[:, i, i], drawn[:, i].sum(axis=1))
        table[name] = {
            "precision": _number(_ratio(hits, said)),
            "recall": _share(hits, true, in_draws, num_lots=lots.holding(scores.truth_index == i)),
            "f1": _number(2 * hits / (true + said)) if true else None,
            "n": int(true),
        }
    return table


def _by_environment(scores: PartScores, counts: Floats, *, lots: Lots, draws: Floats | None) -> dict[str, Any]:
    """Environment -> its macro-F1, the worst first."""
    found = []
    for name in sorted(set(scores.environments)):
        rows = scores.environments == name
        num_lots = len(np.unique(lots.index[rows]))
        drawn = None
        if draws is not None and num_lots >= MIN_LOTS:
            drawn = _over_draws(draws, lots, counts * rows[:, None, None])
        figure = _macro_figure(counts[rows].sum(axis=0), drawn, num_lots=num_lots)
        found.append((name, {"macro_f1": figure["value"], "low": figure["low"], "high": figure["high"]}))
        found[-1][1].update(words=figure["words"], n=int(rows.sum()), n_lots=num_lots)
    return dict(sorted(found, key=lambda item: item[1]["macro_f1"]))


def _ranking(scores: PartScores, *, lots: Lots, draws: Floats | None) -> dict[str, Any]:
    """How well defect mass tells bad parts from good ones, whatever the threshold."""
    good = scores.is_good
    if not scores.ok or not good.any() or good.all():
        return {"auc": None, "average_precision": None, "curves": None}
    values, at = np.unique(scores.p_defect, return_inverse=True)
    order = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[order], np.arange(len(values)))
    positive = ~good[order]
    one = _tallies(np.ones((1, len(scores))), positive, starts)
    drawn = None
    if draws is not None:
        blocks = np.array_split(draws, max(1, draws.shape[0] * len(scores) // BLOCK))
        drawn = np.concatenate([_areas(*_tallies(w[:, lots.index[order]], positive, starts)) for w in blocks])
    fewest, num_lots = min(good.sum(), (~good).sum()), min(lots.holding(good), lots.holding(~good))
    auc, precision = (
        _area(float(value), None if drawn is None else drawn[:, i], n=fewest, num_lots=num_lots)
        for i, value in enumerate(_areas(*one)[0])
    )
    return {"auc": auc, "average_precision": precision, "curves": _curves(*one)}


def _area(value: float, drawn: Floats | None, *, n: int, num_lots: int) -> Figure:
    """An area under a curve; one part more, and on the wrong side of all others, may always come."""
    enough = drawn is not None and num_lots >= MIN_LOTS_OF_KIND
    found = fraction(value, drawn, num_lots=num_lots) if enough and drawn is not None else None
    return _figure(value, found and Interval(min(found.low, value * n / (n + 1)), found.high))


def _tallies(weights: Floats, positive: Mask, starts: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Weight of bad and of good parts at every distinct score, ascending: [B, K] each."""
    bad, good = weights * positive, weights * ~positive
    if len(starts) == weights.shape[1]:
        return bad, good
    return np.add.reduceat(bad, starts, axis=1), np.add.reduceat(good, starts, axis=1)


def _areas(bad: Floats, good: Floats) -> Floats:
    """Area under ROC (ties by halves) and average precision (steps) of every draw: [B, 2]."""
    bad_below, good_below = np.cumsum(bad, axis=1), np.cumsum(good, axis=1)
    all_bad, all_good = bad_below[:, -1], good_below[:, -1]
    won = np.einsum("bk,bk->b", bad, good_below - 0.5 * good)
    found = all_bad[:, None] - bad_below + bad
    flagged = found + all_good[:, None] - good_below + good
    steps = np.einsum("bk,bk->b", bad, found / np.maximum(flagged, 1))
    return np.stack([_ratio(won, all_bad * all_good), _ratio(steps, all_bad)], axis=1)


def _curves(bad: Floats, good: Floats) -> dict[str, Any]:
    found, false = (np.cumsum(side[0, ::-1]) for side in (bad, good))
    shown = np.unique(np.linspace(0, len(found) - 1, NUM_CURVE_POINTS).astype(int))
    recall, alarms = found / found[-1], false / false[-1]
    precision = found / (found + false)
    return {
        "roc": [[0.0, 0.0], *np.round(np.stack([alarms, recall], axis=1)[shown], 6).tolist()],
        "pr": np.round(np.stack([recall, precision], axis=1)[shown], 6).tolist(),
    }


def _cost_sums(scores: PartScores, policy: Policy | OutOfFold) -> Floats:
    """Per part [N, 4]: good, its cost, bad, its cost."""
    each, good = part_costs(scores, policy), scores.is_good
    return np.stack([good, good * each, ~good, ~good * each], axis=1).astype(np.float64)


def _dearest(scores: PartScores, policy: Policy | OutOfFold) -> Floats:
    """The most that a verdict on a good and on a bad part can cost here [2]."""
    costs = policy.costs
    misses = [costs.miss_by_class.get(name, costs.miss) for name in scores.classes if name not in scores.ok]
    return np.array([max(costs.false_alarm, costs.review), max([costs.review, *misses])], dtype=np.float64)


def _cost(sums: Floats, *, rate: float) -> Floats:
    """Cost per part of the line from sums [..., 4]."""
    of_good, of_bad = _ratio(sums[..., 1], sums[..., 0]), _ratio(sums[..., 3], sums[..., 2])
    return (1 - rate) * of_good + rate * of_bad


def _cost_interval(sums: Floats, *, draws: Floats, rate: float, dearest: Floats, lots: Lots) -> Interval | None:
    """Of the cost per part of the line, from per-part sums [N, 4].

    What good and what bad parts cost are each a fraction of the `dearest` price there is, so that a miss which was not
    seen is not held to be impossible. The two intervals are added as independent ones are.
    Source: Zou and Donner, Statistics in Medicine 27, 2008.
    """
    drawn, whole = _over_draws(draws, lots, sums), sums.sum(axis=0)
    below = above = 0.0
    for most, share, at in zip(dearest, (1 - rate, rate), (0, 2), strict=True):
        if not most or not share:
            continue
        mean, in_draws = whole[at + 1] / whole[at] / most, _ratio(drawn[:, at + 1], drawn[:, at]) / most
        found = fraction(mean, in_draws, n=whole[at], num_lots=lots.holding(sums[:, at] > 0))
        if found is None:
            return None
        below += (share * most * (mean - found.low)) ** 2
        above += (share * most * (found.high - mean)) ** 2
    value = float(_cost(whole, rate=rate))
    return Interval(value - math.sqrt(below), value + math.sqrt(above))


def _unseen_cost(sums: Floats, *, rate: float, dearest: Floats) -> float:
    """By how much two models may differ in cost that gave the same verdict on each of these parts, from sums [4]."""
    return math.hypot((1 - rate) * dearest[0] * never_seen(sums[0]), rate * dearest[1] * never_seen(sums[2]))


def _unseen_macro(whole: Floats) -> float:
    """By how much two models may differ in macro-F1 that said the same of each of these parts, from counts [C, C]."""
    return never_seen(_macro_parts(whole))


def _money(
    scores: PartScores, *, policy: Policy | OutOfFold | None, lots: Lots, draws: Floats | None
) -> dict[str, Any]:
    """What the policy's verdicts cost, let through, stopped and passed on to people."""
    if policy is None or not policy.has_money:
        return {"cost": None, "verdicts": None}
    sums = _cost_sums(scores, policy)
    value, interval = _cost(sums.sum(axis=0), rate=policy.rate), None
    if draws is not None and np.isfinite(value):
        dearest = _dearest(scores, policy)
        interval = _cost_interval(sums, draws=draws, rate=policy.rate, dearest=dearest, lots=lots)
    verdict, good = decide_many(scores, policy).verdict, scores.is_good
    asked = {
        "escapes": (~good, verdict == OK),
        "false_alarms": (good, verdict == REJECT),
        "reviews_of_good": (good, verdict == REVIEW),
        "reviews_of_bad": (~good, verdict == REVIEW),
    }
    of_class = {name: scores.truth_index == i for i, name in enumerate(scores.classes) if name not in scores.ok}
    figures = _rates(
        list(asked.values()) + [(rows, verdict != OK) for rows in of_class.values()], lots=lots, draws=draws
    )
    return {
        "cost": _figure(value, interval),
        "verdicts": {
            **dict(zip(asked, figures, strict=False)),
            "caught": dict(zip(of_class, figures[len(asked) :], strict=True)),
        },
    }


def _rates(asked: list[tuple[Mask, Mask]], *, lots: Lots, draws: Floats | None) -> list[Figure]:
    """For each (which parts, which of all were hit): the fraction of those parts that were."""
    counted = np.array([(rows & hit, rows) for rows, hit in asked], dtype=np.float64).transpose(2, 0, 1)
    drawn = None if draws is None else _over_draws(draws, lots, counted)
    figures = []
    for i, (hits, of) in enumerate(counted.sum(axis=0)):
        in_draws = None if drawn is None else _ratio(drawn[:, i, 0], drawn[:, i, 1])
        figures.append(_share(hits, of, in_draws, num_lots=lots.holding(asked[i][0])))
    return figures


def _calibration(scores: PartScores, *, temperature: float) -> dict[str, Any]:
    """Expected calibration error of the most probable class, in bins of equal width. Source: Guo et al., 2017."""
    confidence = calibrate(scores.probs, temperature).max(axis=1) if len(scores) else np.zeros(0)
    is_right = scores.predicted_index == scores.truth_index
    at = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    n = np.bincount(at, minlength=NUM_BINS)
    said = _ratio(np.bincount(at, weights=confidence, minlength=NUM_BINS), n)
    true = _ratio(np.bincount(at, weights=is_right, minlength=NUM_BINS), n)
    gap = np.nansum(np.abs(said - true) * n) / len(scores) if len(scores) else np.nan
    bins = [
        {
            "low": i / NUM_BINS,
            "high": (i + 1) / NUM_BINS,
            "n": int(n[i]),
            "confidence": _number(said[i]),
            "accuracy": _number(true[i]),
        }
        for i in range(NUM_BINS)
    ]
    return {"ece": _number(gap), "bins": bins}


def _aligned(scores: PartScores, *, to: PartScores) -> PartScores:
    """The same parts in the other's order."""
    at = {part: i for i, part in enumerate(scores.part_ids)}
    if len(at) != len(to) or len(at) != len(scores) or any(part not in at for part in to.part_ids):
        raise ValueError("two models are compared on the same parts only")
    same = scores.take(np.array([at[part] for part in to.part_ids], dtype=np.intp))
    if same.classes != to.classes or not np.array_equal(same.truth, to.truth):
        raise ValueError("two models are compared on the same truth only")
    return same
