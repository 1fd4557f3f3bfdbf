"""How many parts of a line are defective, told from what the system itself has checked.

Every reject and review is checked; of the parts that passed only an audit sample, each with its probability. Counting
what was checked alone misses every escape: that is why the audit sample exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtri, stdtrit

from plants.errors import InputError
from plants.plant import Costs

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEAST_RATE = 1e-6
"""A policy needs some defect rate: one that was never seen is not impossible."""


@dataclass(frozen=True, slots=True)
class Prevalence:
    """The share of defective parts, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float
    num_parts: int
    """All parts of the period, checked or not."""
    num_checked: int
    num_sampled: int
    """Of these, the ones from the audit sample."""
    num_lots: int | None = None
    """Of the checked parts; None where that is not known, so that parts were taken as independent."""


def prevalence(
    is_defect: npt.ArrayLike, sample_prob: npt.ArrayLike, *, num_parts: int, lots: npt.ArrayLike | None = None
) -> Prevalence:
    """The defect rate of a period from its checked parts: whether each is defective [N], and how likely it was picked.

    Parts that were sure to be checked have probability 1. The value is Horvitz and Thompson's (JASA 47, 1952); the
    interval joins exact binomial ones of the strata (Clopper and Pearson 1934) by the method of variance estimates
    recovery (Zou and Donner, Stat. Med. 27, 2008). With the parts' lots [N], a stratum counts for as many independent
    parts as would scatter like its lots (Korn and Graubard, Survey Methodology 24, 1998), and the strata err together,
    as a bad lot is bad in all of them. Without, parts are taken as independent: too narrow where defects come in lots.

    Raises:
        InputError: for probabilities outside (0, 1], for more checked parts than parts, and when parts passed of which
            none was sampled: then nothing is known of them.
    """
    defect, prob = np.asarray(is_defect, dtype=bool), np.asarray(sample_prob, dtype=np.float64)
    if not ((prob > 0) & (prob <= 1)).all():
        raise InputError("every checked part was picked with a probability above 0, at most 1", field="sample_prob")
    sure = prob == 1
    rest = num_parts - int(sure.sum())
    if len(defect) > num_parts or num_parts <= 0:
        raise InputError(f"{len(defect)} parts were checked of {num_parts}", field="num_parts")
    if rest and sure.all():
        raise InputError(
            f"{rest} parts passed and none of them was sampled",
            field="sample_prob",
            remedy="Check an audit sample of what passes",
        )
    stands_for = np.where(sure, 1.0, rest / max((1 / prob[~sure]).sum(), 1) / prob)
    strata = [(defect & sure, stands_for, 1.0)]
    for p in np.unique(prob[~sure]):
        here = prob == p
        strata.append((defect & here, here.astype(np.float64), float(stands_for[here].sum()) / num_parts))
    groups = None if lots is None else np.unique(np.asarray(lots), return_inverse=True)[1]
    deffs = [1.0 if groups is None else _design_effect(hits, counts, lot=groups) for hits, counts, _ in strata]
    shares = np.array([hits.sum() / counts.sum() for hits, counts, _ in strata])
    bounds = [
        _exact(hits.sum() / deff, counts.sum() / deff) for (hits, counts, _), deff in zip(strata, deffs, strict=True)
    ]
    weights, (low, high) = np.array([weight for *_, weight in strata]), np.array(bounds).T
    joined = np.linalg.norm if groups is None else np.sum
    value = float(weights @ shares)
    below, above = float(joined(weights * (shares - low))), float(joined(weights * (high - shares)))
    return Prevalence(
        value,
        max(0.0, value - below),
        min(1.0, value + above),
        num_parts=num_parts,
        num_checked=len(defect),
        num_sampled=int((~sure).sum()),
        num_lots=None if groups is None else int(groups.max()) + 1,
    )


def costs_at(costs: Costs, found: Prevalence) -> Costs:
    """The same prices at the line's measured defect rate: solve the policy with these again."""
    rate = tuple(min(max(value, LEAST_RATE), 1 - LEAST_RATE) for value in (found.value, found.low, found.high))
    return Costs.model_validate({**costs.model_dump(), "defect_rate": rate})


def _design_effect(hits: Mask, counts: Floats, *, lot: npt.NDArray[np.intp], level: float = 0.95) -> float:
    """How many parts [N] of these lots [N] tell as much as one that is independent; at least 1.

    How much lots scatter is known from these alone, so Student's t takes the normal's place. A single lot is one part.
    """
    hit, of = np.bincount(lot, weights=hits), np.bincount(lot, weights=counts)
    hit, of, num = hit[of > 0], of[of > 0], int((of > 0).sum())
    if num < 2:
        return float(of.sum())
    share = hit.sum() / of.sum()
    alone, together = hit.sum() * (1 - share), num / (num - 1) * ((hit - share * of) ** 2).sum()
    tail = 0.5 + level / 2
    return float(max(1.0, together / alone if alone else 1.0) * (stdtrit(num - 1, tail) / ndtri(tail)) ** 2)


def _exact(hits: float, of: float, *, level: float = 0.95) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = float(betaincinv(hits, of - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, of - hits, 1 - tail)) if hits < of else 1.0
    return low, high
