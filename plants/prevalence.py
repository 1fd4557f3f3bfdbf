"""How many parts of a line are defective, told from what the system itself has checked.

Every reject and review is checked; of the parts that passed only an audit sample, each with its probability. Counting
what was checked alone misses every escape: that is why the audit sample exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from plants.errors import InputError
from plants.plant import Costs

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


def prevalence(is_defect: npt.ArrayLike, sample_prob: npt.ArrayLike, *, num_parts: int) -> Prevalence:
    """The defect rate of a period from its checked parts: whether each is defective [N], and how likely it was picked.

    Parts that were sure to be checked have probability 1. The value is Horvitz and Thompson's (JASA 47, 1952); the
    interval joins exact binomial ones of the strata (Clopper and Pearson 1934) by the method of variance estimates
    recovery (Zou and Donner, Stat. Med. 27, 2008). It takes parts as independent: where defects come in lots it is
    too narrow.

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
    strata = [(int(defect[sure].sum()), num_parts, 1.0)]
    scale = rest / (1 / prob[~sure]).sum() if rest else 0.0
    for p in np.unique(prob[~sure]) if rest else ():
        here = prob == p
        strata.append((int(defect[here].sum()), int(here.sum()), scale * here.sum() / p / num_parts))
    shares = np.array([hits / of for hits, of, _ in strata])
    bounds = np.array([_exact(hits, of) for hits, of, _ in strata])
    weights = np.array([weight for *_, weight in strata])
    value = float(weights @ shares)
    below = float(np.sqrt(((weights * (shares - bounds[:, 0])) ** 2).sum()))
    above = float(np.sqrt(((weights * (bounds[:, 1] - shares)) ** 2).sum()))
    return Prevalence(
        value, max(0.0, value - below), min(1.0, value + above), num_parts, len(defect), int((~sure).sum())
    )


def costs_at(costs: Costs, found: Prevalence) -> Costs:
    """The same prices at the line's measured defect rate: solve the policy with these again."""
    rate = tuple(min(max(value, LEAST_RATE), 1 - LEAST_RATE) for value in (found.value, found.low, found.high))
    return Costs.model_validate({**costs.model_dump(), "defect_rate": rate})


def _exact(hits: int, of: int, *, level: float = 0.95) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, of - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, of - hits)) if hits < of else 1.0
    return low, high
