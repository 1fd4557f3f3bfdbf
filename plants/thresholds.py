"""Where to cut a score in three: pass, look, reject. Arrays in, two thresholds out; money and policy are `costs`'s.

The cost of a pair of cuts is a sum over parts, so all pairs are searched exactly in O(n log n).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

EDGE = 1e-6
"""Scores are clipped to EDGE..1 - EDGE before they meet a threshold: threshold 0 is never reached from below, 1 never
from above, and a softmax that saturates in float32 moves no threshold."""


class Cuts(NamedTuple):
    """Pass below the first, reject from the second on, review between."""

    pass_below: float
    reject_above: float
    cost: float
    """Expected cost of a part of the line."""
    load: float
    """Share of the line that is reviewed."""


def best_cuts(
    score: Floats,
    *,
    passed: Floats,
    reviewed: Floats,
    rejected: Floats,
    load_passed: Floats,
    load_reviewed: Floats,
    load_rejected: Floats,
    cap: float,
    must_stop: npt.NDArray[np.bool_],
) -> Cuts:
    """The pair of cuts of least total cost whose review load stays within `cap` and that passes no `must_stop` part.

    All arrays are [N]: what a part adds to cost or load in each zone. Of equally cheap pairs the one of least load is
    taken, then the middle of the widest interval in log odds. A threshold is 0 or 1 only where no part lies beyond.
    """
    values, at = np.unique(score, return_inverse=True)

    def before(each: Floats) -> Floats:
        return np.concatenate([[0.0], np.cumsum(np.bincount(at, weights=each, minlength=len(values)))])

    def after(each: Floats) -> Floats:
        running = before(each)
        rest: Floats = running[-1] - running
        return rest

    cost_low, cost_high = before(passed) - before(reviewed), before(reviewed) + after(rejected)
    load_low = before(load_passed) - before(load_reviewed)
    load_high = np.maximum.accumulate(before(load_reviewed) + after(load_rejected))
    last = len(values) if not must_stop.any() else int(at[must_stop].min())
    low = np.arange(last + 1)
    limit = max(cap, _least_load(load_low[low], load_high[low])) + 1e-9
    furthest = np.searchsorted(load_high, limit - load_low[low], side="right") - 1
    is_feasible = furthest >= low
    low, furthest = low[is_feasible], furthest[is_feasible]
    scale = max(float(np.abs(cost_low).max()), float(np.abs(cost_high).max()), 1e-300)
    high = _leftmost_minimum(np.round(cost_high / scale, 12), start=low, stop=furthest)
    cost = np.round((cost_low[low] + cost_high[high]) / scale, 11)
    load = np.round(load_low[low] + load_high[high], 11)
    best = np.flatnonzero(cost == cost.min())
    best = best[load[best] == load[best].min()]
    edges = _edges(values)
    first, final = _widest_run(low[best], edges)
    chosen = best[np.flatnonzero(low[best] == first)[0]]
    i, j = int(low[chosen]), int(high[chosen])
    pass_below = _between(edges[first], edges[final + 1], is_open=first == 0)
    reject_above = pass_below if i == j else _between(edges[j], edges[j + 1], is_open=False)
    if i < j == len(values):
        reject_above = 1.0
    return Cuts(
        pass_below, reject_above, float(cost_low[i] + cost_high[j]), max(0.0, float(load_low[i] + load_high[j]))
    )


def bayes_cuts(*, miss: float, false_alarm: float, review: float, may_review: bool) -> tuple[float, float]:
    """Thresholds that are right if the scores are true probabilities: each part takes its cheapest verdict."""
    both = false_alarm / (false_alarm + miss) if false_alarm + miss else 0.5
    if not may_review or review * (false_alarm + miss) >= false_alarm * miss:
        return both, both
    return review / miss, 1 - review / false_alarm


def _least_load(low: Floats, high: Floats) -> float:
    """The smallest load of any allowed pair: that of a pair without a review zone."""
    return float((low + high).min())


def _edges(values: Floats) -> Floats:
    """Log odds of the values between those of the ends of the scale: cut i lies between edges i and i + 1."""
    inner = np.clip(values, EDGE, 1 - EDGE)
    ends = np.concatenate([[EDGE], inner, [1 - EDGE]])
    log_odds: Floats = np.log(ends) - np.log1p(-ends)
    return log_odds


def _widest_run(cuts: Indices, edges: Floats) -> tuple[int, int]:
    """First and last of the neighbouring cuts that together span the most."""
    breaks = np.flatnonzero(np.diff(cuts) > 1)
    starts = cuts[np.concatenate([[0], breaks + 1])]
    ends = cuts[np.concatenate([breaks, [len(cuts) - 1]])]
    widest = int(np.argmax(edges[ends + 1] - edges[starts]))
    return int(starts[widest]), int(ends[widest])


def _between(low: float, high: float, *, is_open: bool) -> float:
    """Halfway between two log odds, as a score; 0 where no part lies below."""
    if is_open:
        return 0.0
    return float(1 / (1 + np.exp(-(low + high) / 2)))


def _leftmost_minimum(values: Floats, *, start: Indices, stop: Indices) -> Indices:
    """Index of the first minimum of `values[start..stop]`, both included, for every pair: a sparse table."""
    table = [np.arange(len(values))]
    width = 1
    while 2 * width <= len(values):
        left, right = table[-1][:-width], table[-1][width:]
        table.append(np.where(values[right] < values[left], right, left))
        width *= 2
    level = np.frexp(stop - start + 1)[1] - 1
    found = np.empty(len(start), dtype=np.intp)
    for power in np.unique(level):
        rows = level == power
        left = table[power][start[rows]]
        right = table[power][stop[rows] - 2**power + 1]
        found[rows] = np.where(values[right] < values[left], right, left)
    return found
