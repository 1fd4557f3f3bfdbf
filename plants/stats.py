"""Intervals: what a figure could have been with other lots. Lots are drawn with replacement; how the draws scatter is
what is known, and the interval is made of that: Student's for a difference, the exact one of a fraction for a figure
between 0 and 1. Parts of one lot resemble one another, so lots are drawn, never parts; under ten lots there is none.

Percentiles of the draws, and BCa, which `scipy.stats.bootstrap` can be made to do with lots, cannot be had from few
lots or rare mistakes: where a model errs in no part at hand, no draw errs. `tests/benchmarks/bench_intervals.py`
measures how often the intervals given here hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, stdtr, stdtrit

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights [B, N] (how often each part was drawn) -> values [B], NaN where nothing was counted."""

MIN_LOTS = 10
MIN_LOTS_OF_KIND = 5
"""What is counted on some parts only needs this many lots that hold any."""
NOT_ENOUGH_LOTS = "not enough lots"
BLOCK = 4_000_000
"""Weights made at once; 32 MB."""
NUM_JOINT = 20_000
"""Draws of the largest |t|: its 95 % point is known to about a hundredth."""
TINY = 1e-20
"""A variance below is rounding."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the truth lies in `level` of such samples."""

    low: float
    high: float
    level: float = 0.95

    def at_least(self, value: float, half: float) -> Interval:
        """The same, but reaching at least so far from `value` to either side."""
        return Interval(min(self.low, value - half), max(self.high, value + half), self.level)


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference a - b on the same parts; low and high are None under ten lots."""

    diff: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Rate:
    """A fraction that remembers what it was counted on."""

    hits: int
    of: int

    @property
    def value(self) -> float | None:
        """hits / of, or None when nothing was counted."""
        return self.hits / self.of if self.of else None

    def interval(self, level: float = 0.95) -> Interval | None:
        """Wilson's score interval, or None when nothing was counted. Source: Wilson, JASA 22, 1927."""
        if not self.of:
            return None
        low, high = wilson(np.array([self.hits]), np.array([self.of]), level=level)
        return Interval(float(low[0]), float(high[0]), level)


def wilson(hits: npt.ArrayLike, of: npt.ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of many fractions at once; NaN where nothing was counted."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    n = np.where(np.asarray(of) > 0, of, np.nan).astype(np.float64)
    p = np.asarray(hits, dtype=np.float64) / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)


class Lots:
    """The lots of some parts, and seeded draws from them."""

    def __init__(self, lots: Sequence[str] | npt.NDArray[np.object_]) -> None:
        names, index = np.unique(np.asarray(lots, dtype=object), return_inverse=True)
        self.num = len(names)
        self.index: npt.NDArray[np.intp] = index
        """The lot of each part [N]."""

    @property
    def is_enough(self) -> bool:
        """Whether an interval may be given."""
        return self.num >= MIN_LOTS

    def holding(self, rows: npt.NDArray[np.bool_]) -> int:
        """How many lots hold any of these parts."""
        return int(np.count_nonzero(np.bincount(self.index[rows], minlength=self.num)))

    def draws(self, n: int, *, seed: int) -> Floats:
        """How often each lot was drawn [n, G] in n draws of G lots with replacement; the same for the same seed."""
        picked = np.random.default_rng(seed).integers(0, self.num, size=(n, self.num))
        flat = picked + np.arange(n)[:, None] * self.num
        return np.bincount(flat.ravel(), minlength=n * self.num).reshape(n, self.num).astype(np.float64)

    def sums(self, values: Floats) -> Floats:
        """Sums of [N, K] over the parts of each lot [G, K]. `draws @ sums` is a statistic's sums in every draw."""
        columns = values.reshape(len(values), -1)
        width = columns.shape[1]
        at = (self.index[:, None] * width + np.arange(width)).ravel()
        flat = np.bincount(at, weights=columns.ravel().astype(np.float64), minlength=self.num * width)
        return flat.astype(np.float64).reshape(self.num, width)


def student(value: float, drawn: Floats, *, num_lots: int, level: float = 0.95) -> Interval | None:
    """`value` and as far to either side as its draws scatter, by Student's t; None where too few draws counted.

    Draws of G lots scatter by (G - 1) / G too little, and how much they scatter is itself known from G lots only.
    """
    error = _variance(drawn, num_lots=num_lots)
    if error is None:
        return None
    half = _t(num_lots - 1, level=level) * math.sqrt(error)
    return Interval(value - half, value + half, level)


def joint(drawn: Floats, *, num_lots: int, level: float = 0.95) -> float:
    """The level of each difference between any two of M statistics at which all such intervals hold at `level`.

    drawn: [M, B], every statistic in the same draws of lots. The largest of all |t| between two of them is drawn from
    a multivariate t that scatters as they do, with G - 1 degrees of freedom. `level` where none differs from another.
    Source: Hothorn, Bretz and Westfall, Simultaneous Inference in General Parametric Models, Biom. J. 50, 2008.
    """
    counted = drawn[:, np.isfinite(drawn).all(axis=0)]
    if counted.shape[1] < 2:
        return level
    cov = np.cov(counted)
    one, other = np.triu_indices(len(drawn), k=1)
    spread = np.sqrt(np.maximum(cov[one, one] + cov[other, other] - 2 * cov[one, other], 0))
    differ = spread > math.sqrt(TINY)
    if not differ.any():
        return level
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(cov)
    normal = rng.standard_normal((NUM_JOINT, len(drawn))) * np.sqrt(np.maximum(values, 0)) @ vectors.T
    scale = np.sqrt(rng.chisquare(num_lots - 1, NUM_JOINT) / (num_lots - 1))
    furthest = np.zeros(NUM_JOINT)
    for i, j, apart in zip(one[differ], other[differ], spread[differ], strict=True):
        np.maximum(furthest, np.abs(normal[:, i] - normal[:, j]) / apart, out=furthest)
    largest = float(np.quantile(furthest / scale, level))
    return max(level, float(2 * stdtr(num_lots - 1, largest) - 1))


def fraction(
    value: float, drawn: Floats, *, n: float = math.inf, num_lots: int, level: float = 0.95
) -> Interval | None:
    """The exact interval of a figure between 0 and 1, of as many parts as its draws scatter like, at most `n`.

    `value * (1 - value) / variance` is the number of independent parts that would scatter as much; by (z / t)^2 fewer,
    as the variance is known from `num_lots` lots only. None where too few draws counted.
    Source: Korn and Graubard, Survey Methodology 24, 1998.
    """
    error = _variance(drawn, num_lots=num_lots)
    if error is None:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    known = value * (1 - value) * (z / _t(num_lots - 1, level=level)) ** 2
    like = min(n, known / error if error > 0 else math.inf)
    if math.isinf(like):
        return Interval(value, value, level)
    hits, tail = value * like, 0.5 - level / 2
    low = betaincinv(hits, like - hits + 1, tail) if hits > TINY else 0.0
    high = betaincinv(hits + 1, like - hits, 1 - tail) if like - hits > TINY else 1.0
    return Interval(float(low), float(high), level)


def never_seen(n: float, *, level: float = 0.95) -> float:
    """The highest share of the parts that none of `n` may still stand for, about 3 / n.

    Source: Hanley and Lippman-Hand, If Nothing Goes Wrong, Is Everything All Right?, JAMA 249, 1983.
    """
    return float(1 - (1 - level) ** (1 / n))


def _variance(drawn: Floats, *, num_lots: int) -> float | None:
    """Of a statistic, from its draws; None when fewer than half of them counted anything, or of a single lot."""
    finite = drawn[np.isfinite(drawn)]
    if num_lots < 2 or len(finite) < 2 or 2 * len(finite) < len(drawn):
        return None
    variance = float(finite.var(ddof=1)) * num_lots / (num_lots - 1)
    return variance if variance > TINY else 0.0


@cache
def _t(freedom: int, *, level: float) -> float:
    """Student's t that `level` of the values lie within."""
    return float(stdtrit(freedom, 0.5 + level / 2))


def bootstrap(
    lots: Sequence[str] | npt.NDArray[np.object_], statistic: Statistic, *, n: int = 500, seed: int, level: float = 0.95
) -> Interval | None:
    """The interval of a statistic over draws of lots, or None under ten lots."""
    found = paired_bootstrap(lots, statistic, lambda weights: np.zeros(len(weights)), n=n, seed=seed, level=level)
    return None if found.low is None or found.high is None else Interval(found.low, found.high, level)


def paired_bootstrap(
    lots: Sequence[str] | npt.NDArray[np.object_],
    statistic_a: Statistic,
    statistic_b: Statistic,
    *,
    n: int = 500,
    seed: int,
    level: float = 0.95,
) -> Paired:
    """a - b on all parts and its interval, both statistics on the same draws of the same lots."""
    groups = Lots(lots)

    def difference(weights: Floats) -> Floats:
        return statistic_a(weights) - statistic_b(weights)

    whole = float(difference(np.ones((1, len(groups.index))))[0])
    if not np.isfinite(whole):
        return Paired(None, None, None)
    if not groups.is_enough:
        return Paired(whole, None, None)
    found = student(whole, _drawn(groups, difference, n=n, seed=seed), num_lots=groups.num, level=level)
    return Paired(whole, found.low if found else None, found.high if found else None)


def _drawn(groups: Lots, statistic: Statistic, *, n: int, seed: int) -> Floats:
    draws = groups.draws(n, seed=seed)
    rows = max(1, BLOCK // max(1, len(groups.index)))
    blocks = [statistic(draws[at : at + rows][:, groups.index]) for at in range(0, n, rows)]
    return np.concatenate(blocks)
