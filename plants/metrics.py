"""How good a model is at a plant, counted per part, each figure with its interval over lots.

What was not counted is None, never 0. Macro-F1 and recall are of the most probable class, whatever a policy says;
escapes, false alarms and cost are of the policy's verdicts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from plants.costs import OK, REJECT, REVIEW, OutOfFold, Policy, decide_many
from plants.counts import (
    confusions,
    cost_of,
    cost_sums,
    dearest_verdicts,
    macro_f1,
    macro_parts,
    number,
    over_draws,
    ratio,
)
from plants.scores import Mask, PartScores, calibrate
from plants.stats import MIN_LOTS, MIN_LOTS_OF_KIND, NOT_ENOUGH_LOTS, Floats, Interval, Lots, fraction

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
    counts = confusions(scores)
    whole = counts.sum(axis=0)
    drawn = None if draws is None else over_draws(draws, lots, counts)
    macro = _macro_figure(whole, drawn, num_lots=lots.num)
    return {
        "n": len(scores),
        "n_lots": lots.num,
        "macro_f1": macro,
        "per_class": _per_class(scores, whole, drawn, lots=lots),
        "confusion": {"classes": list(scores.classes), "counts": whole.astype(int).tolist()},
        **_ranking(scores, lots=lots, draws=draws),
        "by_environment": _by(scores.environments, scores, counts, lots=lots, draws=draws),
        **_money(scores, policy=policy, lots=lots, draws=draws),
        "calibration": _calibration(scores, temperature=policy.temperature if policy else 1.0),
    }


def _figure(value: npt.ArrayLike, interval: Interval | None, *, n: int | None = None) -> Figure:
    """A value with its interval, or the words why there is none."""
    found = number(value)
    shown = None if found is None else interval
    figure: Figure = {
        "value": found,
        "low": number(shown.low) if shown else None,
        "high": number(shown.high) if shown else None,
        "words": None,
    }
    if found is None:
        figure["words"] = "nothing counted"
    elif shown is None:
        figure["words"] = NOT_ENOUGH_LOTS
    return figure | ({} if n is None else {"n": n})


def _share(hits: float, n: float, drawn: Floats | None, *, num_lots: int) -> Figure:
    """The fraction hits / n of parts that lie in `num_lots` lots."""
    enough = drawn is not None and num_lots >= MIN_LOTS_OF_KIND and n > 0
    interval = fraction(hits / n, drawn, n=n, num_lots=num_lots) if enough and drawn is not None else None
    return _figure(ratio(hits, n), interval, n=int(n))


def _macro_figure(whole: Floats, drawn: Floats | None, *, num_lots: int) -> Figure:
    """Macro-F1 from all counts [C, C] and drawn ones [B, C, C].

    It scatters at least as a mean of fractions of the classes' parts would: a class of which two parts were seen, both
    right, is not known to be without fault.
    """
    value = macro_f1(whole)
    if drawn is None or not np.isfinite(value):
        return _figure(value, None)
    return _figure(value, fraction(float(value), macro_f1(drawn), n=macro_parts(whole.sum(axis=1)), num_lots=num_lots))


def _per_class(scores: PartScores, whole: Floats, drawn: Floats | None, *, lots: Lots) -> dict[str, Any]:
    table = {}
    for i, name in enumerate(scores.classes):
        hits, true, said = whole[i, i], whole[i].sum(), whole[:, i].sum()
        in_draws = None if drawn is None else ratio(drawn[:, i, i], drawn[:, i].sum(axis=1))
        table[name] = {
            "precision": number(ratio(hits, said)),
            "recall": _share(hits, true, in_draws, num_lots=lots.holding(scores.truth_index == i)),
            "f1": number(2 * hits / (true + said)) if true else None,
            "n": int(true),
        }
    return table


def grouped(scores: PartScores, names: npt.ArrayLike, *, n_boot: int = 500, seed: int = 0) -> dict[str, Any]:
    """Group -> macro-F1 and recall of its defects, the worst first. names: the group of each part [N], text."""
    lots = Lots(scores.lots)
    draws = lots.draws(n_boot, seed=seed) if lots.is_enough else None
    return _by(np.asarray(names, dtype=object), scores, confusions(scores), lots=lots, draws=draws)


def _by(
    names: npt.NDArray[Any], scores: PartScores, counts: Floats, *, lots: Lots, draws: Floats | None
) -> dict[str, Any]:
    found = []
    named = scores.predicted_index == scores.truth_index
    for name in sorted(set(names)):
        rows = names == name
        num_lots = len(np.unique(lots.index[rows]))
        here = draws if draws is not None and num_lots >= MIN_LOTS else None
        drawn = None if here is None else over_draws(here, lots, counts * rows[:, None, None])
        figure = _macro_figure(counts[rows].sum(axis=0), drawn, num_lots=num_lots)
        found.append((name, {"macro_f1": figure["value"], "low": figure["low"], "high": figure["high"]}))
        recall = _rates([(rows & ~scores.is_good, named)], lots=lots, draws=here)[0]
        found[-1][1].update(words=figure["words"], recall=recall, n=int(rows.sum()), n_lots=num_lots)
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
    return np.stack([ratio(won, all_bad * all_good), ratio(steps, all_bad)], axis=1)


def _curves(bad: Floats, good: Floats) -> dict[str, Any]:
    found, false = (np.cumsum(side[0, ::-1]) for side in (bad, good))
    shown = np.unique(np.linspace(0, len(found) - 1, NUM_CURVE_POINTS).astype(int))
    recall, alarms = found / found[-1], false / false[-1]
    precision = found / (found + false)
    return {
        "roc": [[0.0, 0.0], *np.round(np.stack([alarms, recall], axis=1)[shown], 6).tolist()],
        "pr": np.round(np.stack([recall, precision], axis=1)[shown], 6).tolist(),
    }


def _cost_interval(sums: Floats, *, draws: Floats, rate: float, dearest: Floats, lots: Lots) -> Interval | None:
    """Of the cost per part of the line, from per-part sums [N, 4].

    What good and what bad parts cost are each a fraction of the `dearest` price there is, so that a miss which was not
    seen is not held to be impossible. The two intervals are added as independent ones are.
    Source: Zou and Donner, Statistics in Medicine 27, 2008.
    """
    drawn, whole = over_draws(draws, lots, sums), sums.sum(axis=0)
    below = above = 0.0
    for most, share, at in zip(dearest, (1 - rate, rate), (0, 2), strict=True):
        if not most or not share:
            continue
        mean, in_draws = whole[at + 1] / whole[at] / most, ratio(drawn[:, at + 1], drawn[:, at]) / most
        found = fraction(mean, in_draws, n=whole[at], num_lots=lots.holding(sums[:, at] > 0))
        if found is None:
            return None
        below += (share * most * (mean - found.low)) ** 2
        above += (share * most * (found.high - mean)) ** 2
    value = float(cost_of(whole, rate=rate))
    return Interval(value - math.sqrt(below), value + math.sqrt(above))


def _money(
    scores: PartScores, *, policy: Policy | OutOfFold | None, lots: Lots, draws: Floats | None
) -> dict[str, Any]:
    """What the policy's verdicts cost, let through, stopped and passed on to people."""
    if policy is None or not policy.has_money:
        return {"cost": None, "verdicts": None}
    sums = cost_sums(scores, policy)
    value, interval = cost_of(sums.sum(axis=0), rate=policy.rate), None
    if draws is not None and np.isfinite(value):
        dearest = dearest_verdicts(scores, policy)
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
    drawn = None if draws is None else over_draws(draws, lots, counted)
    figures = []
    for i, (hits, of) in enumerate(counted.sum(axis=0)):
        in_draws = None if drawn is None else ratio(drawn[:, i, 0], drawn[:, i, 1])
        figures.append(_share(hits, of, in_draws, num_lots=lots.holding(asked[i][0])))
    return figures


def _calibration(scores: PartScores, *, temperature: float) -> dict[str, Any]:
    """Expected calibration error of the most probable class, in bins of equal width. Source: Guo et al., 2017."""
    confidence = calibrate(scores.probs, temperature).max(axis=1) if len(scores) else np.zeros(0)
    is_right = scores.predicted_index == scores.truth_index
    at = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    n = np.bincount(at, minlength=NUM_BINS)
    said = ratio(np.bincount(at, weights=confidence, minlength=NUM_BINS), n)
    true = ratio(np.bincount(at, weights=is_right, minlength=NUM_BINS), n)
    gap = np.nansum(np.abs(said - true) * n) / len(scores) if len(scores) else np.nan
    bins = [
        {
            "low": i / NUM_BINS,
            "high": (i + 1) / NUM_BINS,
            "n": int(n[i]),
            "confidence": number(said[i]),
            "accuracy": number(true[i]),
        }
        for i in range(NUM_BINS)
    ]
    return {"ece": number(gap), "bins": bins}
