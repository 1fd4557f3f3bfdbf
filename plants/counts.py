"""What is added up over parts, and the figures that are made of such sums: macro-F1 and cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plants.costs import OutOfFold, Policy, part_costs
from plants.scores import PartScores
from plants.stats import Floats, Lots


def macro_f1(confusion: Floats) -> Floats:
    """Mean F1 over the classes that occur in truth, from counts [..., C truth, C predicted]; NaN where none does."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return mean_f1(hits, true=confusion.sum(axis=-1), said=confusion.sum(axis=-2))


def mean_f1(hits: Floats, *, true: Floats, said: Floats) -> Floats:
    """The same from each class's counts [..., C]."""
    occurs = true > 0
    f1 = np.where(occurs, 2 * hits / np.where(occurs, true + said, 1), 0.0)
    return ratio(f1.sum(axis=-1), occurs.sum(axis=-1))


def ratio(part: npt.ArrayLike, of: npt.ArrayLike) -> Floats:
    """part / of, NaN where of is 0."""
    whole = np.asarray(of, dtype=np.float64)
    result: Floats = np.asarray(part, dtype=np.float64) / np.where(whole > 0, whole, np.nan)
    return result


def number(value: npt.ArrayLike) -> float | None:
    """The value for JSON; None where nothing was counted."""
    number = float(np.asarray(value))
    return round(number, 6) if np.isfinite(number) else None


def macro_parts(true: Floats) -> float:
    """Of how many parts a plain fraction would scatter as a mean of fractions of the classes' parts [C] does."""
    seen = true[true > 0]
    return float(len(seen) ** 2 / (1 / seen).sum()) if len(seen) else 0.0


def confusions(scores: PartScores) -> Floats:
    """Each part's own table [N, C, C], truth by predicted."""
    counts = np.zeros((len(scores), len(scores.classes), len(scores.classes)))
    counts[np.arange(len(scores)), scores.truth_index, scores.predicted_index] = 1
    return counts


def over_draws(draws: Floats, lots: Lots, values: Floats) -> Floats:
    """Sums of per-part values [N, ...] in every draw [B, ...]."""
    return (draws @ lots.sums(values)).reshape(len(draws), *values.shape[1:])


def cost_sums(scores: PartScores, policy: Policy | OutOfFold) -> Floats:
    """Per part [N, 4]: good, its cost, bad, its cost."""
    each, good = part_costs(scores, policy), scores.is_good
    return np.stack([good, good * each, ~good, ~good * each], axis=1).astype(np.float64)


def dearest_verdicts(scores: PartScores, policy: Policy | OutOfFold) -> Floats:
    """The most that a verdict on a good and on a bad part can cost here [2]."""
    costs = policy.costs
    misses = [costs.miss_by_class.get(name, costs.miss) for name in scores.classes if name not in scores.ok]
    return np.array([max(costs.false_alarm, costs.review), max([costs.review, *misses])], dtype=np.float64)


def cost_of(sums: Floats, *, rate: float) -> Floats:
    """Cost per part of the line from sums [..., 4]."""
    of_good, of_bad = ratio(sums[..., 1], sums[..., 0]), ratio(sums[..., 3], sums[..., 2])
    return (1 - rate) * of_good + rate * of_bad
