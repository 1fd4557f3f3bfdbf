"""What a plant that nobody has seen can expect, from what happened at every known plant when it was left out.

Each known plant gives one number: what a model without it got there. The next plant is one more draw from the same
kind of plants, so its interval is that of a new value, not of their mean: it holds how plants differ, what was
measured wrongly at each, and that all this is known from a handful of plants. With few and unlike plants it is wide,
and that is the answer. Figures between 0 and 1 are forecast in log odds, money and labels in logarithms.

Not for plants that differ on purpose: a plant of a kind that none of these is lies outside whatever is forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtrit
from scipy.stats import CensoredData, norm

from plants.arrival import LEAST as LEAST_LABELS
from plants.arrival import Reached

LEVEL = 0.95
MIN_PLANTS = 3
"""Others that a forecast needs: of two it would say nothing, as Student's t with one degree of freedom does."""
TOO_FEW = "not enough plants"
TINY = 1e-6
LEAST_SCATTER = 0.2
"""Of labels in logarithms: a curve is measured at sizes a factor of two apart, and drawn straight between them."""
LEAST = 1e-3
"""Money in logarithms: less than this counts as this."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Where a new plant will lie: an estimate and the interval of a new value, or words in their place."""

    value: float | None
    low: float | None
    high: float | None
    num_plants: int
    words: str | None = None

    def holds(self, value: float | None) -> bool | None:
        """Whether what happened lies inside; None where nothing was forecast or nothing happened."""
        if value is None or self.low is None:
            return None
        return self.low <= value and (self.high is None or value <= self.high)


@dataclass(frozen=True, slots=True)
class Scale:
    """On which figures are taken to scatter alike. `inside` needs the number of parts a figure was counted on."""

    inside: Callable[[float, float], float]
    outside: Callable[[float], float]
    least: Callable[[float], float]
    """Of n parts, what counts as 0 is told from no less than this."""
    top: float = math.inf

    def ends(self, low: float, high: float, *, n: float) -> tuple[float, float]:
        """An interval's ends, from the inside; one that n parts do not tell from 0, or from the top, is just that."""
        low, high, least = self.outside(low), self.outside(high), self.least(n)
        return (0.0 if low < least else low), (self.top if high > self.top - least else high)


def _half_a_part(n: float) -> float:
    return 0.5 / (n + 1)


def _odds(value: float, n: float) -> float:
    """Log odds of a fraction of n parts; one of 0 or 1 as if half a part more had gone the other way."""
    return float(logit(np.clip(value, _half_a_part(n), 1 - _half_a_part(n))))


ODDS = Scale(_odds, lambda x: float(expit(x)), _half_a_part, top=1.0)
LOG = Scale(lambda value, n: math.log(max(value, LEAST)), math.exp, lambda n: LEAST)


def new_plant(figures: Sequence[Mapping[str, Any]], *, scale: Scale = ODDS, level: float = LEVEL) -> Forecast:
    """What would be measured at one more plant, from figures `{value, low, high, n}` of known ones.

    mean +- t(k - 1) * s * sqrt(1 + 1/k), where s is how the plants' figures scatter, which holds their measuring
    errors, and at least what these errors alone make; they are read from the figures' own intervals, where these are.
    An end that a plant with the median of the parts would not tell from 0 or 1 is 0 or 1.
    Source: the interval of a new value of a normal sample, Hahn and Meeker, Statistical Intervals, 1991, 4.2; in random
    effects, Higgins, Thompson and Spiegelhalter, JRSS A 172, 2009, whose s lacks the measuring error of the new value.
    """
    known = [f for f in figures if f.get("value") is not None]
    if len(known) < MIN_PLANTS:
        return Forecast(None, None, None, len(known), TOO_FEW)
    at = np.array([scale.inside(f["value"], f["n"]) for f in known])
    errors = [e for f in known if (e := _error(f, scale=scale)) is not None]
    variance = max(float(at.var(ddof=1)), float(np.mean(np.square(errors))) if errors else 0.0)
    low, middle, high = _around(float(at.mean()), variance, num=len(known), level=level)
    ends = scale.ends(low, high, n=float(np.median([f["n"] for f in known])))
    return Forecast(scale.outside(middle), *ends, len(known))


def _error(figure: Mapping[str, Any], *, scale: Scale) -> float | None:
    """The standard error of a figure on the scale, by the longer side of its 95 % interval; None where it has none."""
    if figure.get("low") is None or figure.get("high") is None:
        return None
    low, value, high = (scale.inside(figure[key], figure["n"]) for key in ("low", "value", "high"))
    return max(high - value, value - low) / 1.96


def _around(mean: float, variance: float, *, num: int, level: float) -> tuple[float, float, float]:
    half = float(stdtrit(num - 1, 0.5 + level / 2)) * math.sqrt(variance * (1 + 1 / num))
    return mean - half, mean, mean + half


def labels_of_new_plant(found: Sequence[Reached], *, least: int = LEAST_LABELS, level: float = LEVEL) -> Forecast:
    """The labels that one more plant needs to its floor, from those that known plants needed; under `least` are none.

    The estimate is the median. low is 0: a plant that looks like a known one needs next to none, and a handful of
    plants cannot tell how seldom that is. high is what a new plant that needs any stays under with that level: of those
    that did, normal in the logarithm, one that had too few labels needing more than it had.
    Source: maximum likelihood of a right-censored normal sample, `scipy.stats.CensoredData`; the bound as in
    `new_plant`, on one side.
    """
    done = [math.log(max(r.labels, least)) for r in found if r.labels is not None]
    beyond = [math.log(max(r.more_than, least)) for r in found if r.more_than is not None]
    num, num_done = len(done) + len(beyond), len(done)
    if num < MIN_PLANTS:
        return Forecast(None, None, None, num, TOO_FEW)
    words = f"{len(beyond)} of {num} plants did not get there" if beyond else None
    if num_done < 2:
        return Forecast(None, None, None, num, words)
    middle = float(np.median([*done, *([math.inf] * len(beyond))]))
    needed = [one for one in done if one > math.log(least)]
    if len(needed) >= 2 and len(needed) + len(beyond) >= MIN_PLANTS:
        done = needed
    mean, scatter = _fitted(done, beyond)
    used = len(done) + len(beyond)
    variance = max(scatter, LEAST_SCATTER) ** 2 * used / (used - 1)
    high = _around(mean, variance, num=used, level=2 * level - 1)[2]
    return Forecast(math.exp(middle) if math.isfinite(middle) else None, 0.0, math.exp(high), num, words)


def _fitted(done: Sequence[float], beyond: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of greatest likelihood."""
    if not beyond or max(done) - min(done) < TINY:
        return float(np.mean([*done, *beyond])), float(np.std([*done, *beyond]))
    mean, scatter = norm.fit(CensoredData(uncensored=done, right=beyond))
    return float(mean), float(scatter)


def within_factor(value: float, of: float, *, factor: float = 2.0, least: int = LEAST_LABELS) -> bool:
    """Whether two counts of labels differ by at most the factor, fewer than `least` taken for so many."""
    ratio = max(value, least) / max(of, least)
    return 1 / factor <= ratio <= factor
