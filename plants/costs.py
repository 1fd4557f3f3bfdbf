"""Money: what verdicts cost, and the thresholds of least expected cost at the line's defect rate.

`solve` makes a plant's policy from its `decide` parts, `out_of_fold` says honestly what such a policy is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from plants.config import Config
from plants.hashing import unit_hash
from plants.plant import Costs
from plants.policy import (
    OK,
    REASONS,
    REJECT,
    REVIEW,
    VERDICTS,
    Decision,
    Decisions,
    Policy,
    decide_part,
    defect_score,
    is_divided,
    is_novel,
    is_strange,
)
from plants.policy import decide_many as decide_by_policy
from plants.scores import PartScores, calibrate
from plants.stats import MIN_LOTS, Rate
from plants.thresholds import EDGE, bayes_cuts, best_cuts, review_pays, spread

__all__ = [
    "OK",
    "REASONS",
    "REJECT",
    "REVIEW",
    "VERDICTS",
    "Decision",
    "Decisions",
    "OutOfFold",
    "Policy",
    "decide_many",
    "decide_part",
    "expected_cost",
    "fit_temperature",
    "lot_folds",
    "out_of_fold",
    "part_costs",
    "review_capacity",
    "review_load",
    "solve",
    "solve_by_novelty",
]

Floats = npt.NDArray[np.float64]

TEMPERATURE_SPREAD = 0.5
"""Before any part is seen, log temperature is held to lie within about this of 0."""
NOVEL_SHARE = 0.005
"""Of good parts, that people look at for being unlike the others, and again for members of an ensemble who disagree."""
AGREEMENT = 0.05
"""Members of an ensemble that disagree less about a part agree."""
MIN_GOOD_FOR_NOVELTY = 20
HAIR = 1 + 1e-4
"""A novelty threshold lies this far beyond the part it is read from, so that the part passes wherever it is judged:
two runtimes agree on its novelty to about 1e-6."""
NUM_FOLDS = 5


class OutOfFold(Config):
    """Policies that each were solved without the lots they judge: what solving a policy on these parts is worth.

    Stands wherever metrics take a policy. A policy judged on the parts it was solved on flatters itself: over 60
    simulated samples of 60 parts it claimed 151 a part, out of fold 223, and new parts cost 199.
    """

    folds: dict[str, int]
    """Lot -> its fold."""
    policies: tuple[Policy, ...]
    """Policy of each fold, solved on the other folds."""

    @property
    def has_money(self) -> bool:
        """Whether a part can be good here."""
        return self.policies[0].has_money

    @property
    def rate(self) -> float:
        """The defect rate the policies were solved at."""
        return self.policies[0].rate

    @property
    def costs(self) -> Costs:
        """The prices they were solved for."""
        return self.policies[0].costs

    @cached_property
    def temperature(self) -> float:
        """The middle one of the policies' temperatures."""
        return float(np.median([policy.temperature for policy in self.policies]))


def out_of_fold(
    scores: PartScores,
    *,
    costs: Costs,
    plant: str,
    bundle: str = "",
    folds: int = NUM_FOLDS,
    seed: int = 0,
    solver: Callable[..., Policy] | None = None,
) -> OutOfFold:
    """Each lot is judged by a policy solved on other lots, by `solve` unless told otherwise.

    The folds depend on lots and seed only, not on the model.
    """
    fold, at = lot_folds(scores.lots, folds=folds, seed=seed)
    num = len(set(fold.values())) or 1
    policies = tuple(
        (solver or solve)(scores.take(at != k) if num > 1 else scores, costs=costs, plant=plant, bundle=bundle)
        for k in range(num)
    )
    return OutOfFold(folds=fold, policies=policies)


def lot_folds(
    lots: npt.NDArray[Any], *, folds: int = NUM_FOLDS, seed: int = 0
) -> tuple[dict[str, int], npt.NDArray[np.intp]]:
    """Lot -> its fold, and the fold of each part [N] whose lots these are; at most as many folds as lots."""
    names = sorted(set(lots), key=lambda lot: unit_hash("fold", seed, lot))
    fold = {str(lot): i % max(1, min(folds, len(names))) for i, lot in enumerate(names)}
    return fold, np.array([fold[str(lot)] for lot in lots], dtype=np.intp)


def decide_many(scores: PartScores, policy: Policy | OutOfFold) -> Decisions:
    """The verdicts on all parts, each exactly as `decide_part` gives it."""
    if isinstance(policy, Policy):
        return decide_by_policy(scores, policy)
    at = np.array([policy.folds[str(lot)] for lot in scores.lots], dtype=np.intp)
    found = [decide_by_policy(scores, one) for one in policy.policies]
    rows = np.arange(len(scores))
    return Decisions(*(np.stack(column)[at, rows] for column in zip(*found, strict=True)))


def part_costs(scores: PartScores, policy: Policy | OutOfFold) -> Floats:
    """What each verdict costs [N] given the truth: a miss, a false alarm, or the price of a review."""
    verdict, costs = decide_many(scores, policy).verdict, policy.costs
    if_passed, if_rejected = prices(scores, costs=costs)
    return np.where(verdict == OK, if_passed, np.where(verdict == REJECT, if_rejected, costs.review))


def prices(scores: PartScores, *, costs: Costs) -> tuple[Floats, Floats]:
    """What passing and what rejecting each part costs, [N] and [N]."""
    miss = np.array([costs.miss_by_class.get(name, costs.miss) for name in scores.classes], dtype=np.float64)
    good = scores.is_good
    return np.where(good, 0.0, miss[scores.truth_index]), np.where(good, costs.false_alarm, 0.0)


def line_shares(scores: PartScores, *, rate: float) -> Floats | None:
    """The share of the line each part stands for [N] at this defect rate; None without good or without bad parts."""
    good = scores.is_good
    if not good.any() or good.all():
        return None
    shares: Floats = np.where(good, (1 - rate) / good.sum(), rate / (~good).sum())
    return shares


def expected_cost(
    scores: PartScores, policy: Policy | OutOfFold, weights: npt.NDArray[Any] | None = None
) -> float | None:
    """Money per part of the line at the policy's defect rate; None without money, good parts or bad parts.

    `weights` [N] counts parts more than once, as a bootstrap does.
    """
    if not policy.has_money or not len(scores):
        return None
    each, good = part_costs(scores, policy), scores.is_good
    w = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = [float(w[side].sum()) for side in (good, ~good)]
    if min(sums) <= 0:
        return None
    of_good, of_bad = (float((w * each)[side].sum()) / total for side, total in zip((good, ~good), sums, strict=True))
    return (1 - policy.rate) * of_good + policy.rate * of_bad


def solve(scores: PartScores, *, costs: Costs, plant: str, bundle: str = "") -> Policy:
    """The policy of least expected cost on these parts at the high end of the defect rate, holding the recall floors.

    Every part counts as a small cloud around its score, so that thresholds follow where parts lie rather than which
    few were drawn; a gap in which nobody has seen a part is cut in its middle, and its middle half is reviewed as far
    as the probabilities leave doubt; the temperature is pulled towards 1 as if by a few parts. Where no good or no bad
    part was seen, thresholds follow the calibrated probabilities. `note` says what a person should know.
    """
    note: list[str] = []
    common: dict[str, Any] = {
        "plant": plant,
        "bundle": bundle,
        "classes": scores.classes,
        "ok": scores.ok,
        "temperature": fit_temperature(scores),
        "costs": costs,
        "impossible_above": _impossible_above(scores, note=note),
    }
    cap = review_capacity(costs)
    common["novelty_above"] = _unlike_above(scores, scores.novelty, what="novelty", cap=cap, note=note)
    if scores.disagreement is not None:
        above = _unlike_above(scores, scores.disagreement, what="disagreement", cap=cap, note=note)
        common["disagreement_above"] = None if above is None else max(above, AGREEMENT)
    if not scores.ok:
        note.append("no class is good here: nothing passes and there is no cost")
        return Policy(pass_below=0.0, reject_above=0.0, note=tuple(note), **common)
    common["floors"] = floors = _floors(scores, costs=costs)
    if line_shares(scores, rate=costs.defect_rate[2]) is None:
        low, high = bayes_cuts(miss=costs.miss, false_alarm=costs.false_alarm, review=costs.review, may_review=cap > 0)
        side = "defect" if scores.is_good.all() else "good"
        seen = f"no {side} part" if len(scores) else "no part"
        note.append(f"{seen} to solve on: thresholds from the calibrated probabilities")
        return Policy(pass_below=low, reject_above=high, note=tuple(note), **common)
    free = _solved(scores, policy=Policy(pass_below=0.0, reject_above=1.0, **common), cap=cap, floors={})
    cuts = _solved(scores, policy=free, cap=cap, floors=floors) if floors else free
    note += _floor_notes(scores, policy=cuts, free=free) + _load_notes(scores, policy=cuts, cap=cap)
    num_lots = len(set(scores.lots))
    if num_lots < MIN_LOTS:
        note.append(f"solved on {num_lots} lots: not enough lots")
    return cuts.model_copy(update={"note": tuple(note)})


def solve_by_novelty(scores: PartScores, *, costs: Costs, plant: str, bundle: str = "") -> Policy:
    """The policy of a model that knows good parts only: near ones pass, far ones are reviewed, none is rejected.

    The threshold is what a share of `costs.novel_share` of good parts, or of the review capacity where that is less,
    will exceed: an order statistic of the n good parts here, so that the share holds on the mean over new ones. No
    defect is needed. Raises ValueError without novelty.
    """
    if scores.novelty is None:
        raise ValueError("a policy by novelty needs the parts' novelty")
    share = min(costs.novel_share, review_capacity(costs))
    good = np.sort(scores.novelty[scores.is_good])
    rank = math.ceil((len(good) + 1) * (1 - share))
    note = [f"passes what is near the good parts, has the rest reviewed and rejects nothing: {share:.2%} of good parts"]
    if not len(good):
        note.append("no good part to solve on: everything is reviewed")
    elif rank > len(good):
        note.append(f"{len(good)} good parts cannot show {share:.2%}: one in {len(good) + 1} of them is reviewed")
    return Policy(
        plant=plant,
        bundle=bundle,
        classes=scores.classes,
        ok=scores.ok,
        pass_below=1.0,
        reject_above=1.0,
        impossible_above=1.0,
        novelty_above=HAIR * float(good[min(rank, len(good)) - 1]) if len(good) else 0.0,
        costs=costs,
        note=tuple(note),
    )


def fit_temperature(scores: PartScores) -> float:
    """The temperature of least negative log likelihood, pulled to 1 by a prior of `TEMPERATURE_SPREAD` on its log.

    Without the prior a handful of rightly judged parts would sharpen every probability to 0 or 1.
    """
    if not len(scores):
        return 1.0
    from scipy.optimize import minimize_scalar

    logs = np.log(np.maximum(scores.probs, EDGE**2))
    logs = logs - logs.max(axis=1, keepdims=True)
    own = logs[np.arange(len(scores)), scores.truth_index]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        nll = np.log(np.exp(logs * inverse).sum(axis=1)) - own * inverse
        return float(nll.sum()) + 0.5 * (log_temperature / TEMPERATURE_SPREAD) ** 2

    best = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-3})
    return round(float(np.exp(best.x)), 4)


def _solved(scores: PartScores, *, policy: Policy, cap: float, floors: dict[str, float]) -> Policy:
    """The policy with the cheapest thresholds that hold these floors."""
    costs, good = policy.costs, scores.is_good
    shares = line_shares(scores, rate=policy.rate)
    assert shares is not None
    score = defect_score(calibrate(scores.probs, policy.temperature), policy.ok_mask)
    clouds, weight = spread(score, good)
    strange = is_strange(scores.impossible, policy)
    never_passes = strange | is_novel(scores.novelty, policy, n=len(scores))
    never_passes |= is_divided(scores.disagreement, policy, n=len(scores))
    stop_at = np.inf
    for name, floor in floors.items():
        is_class = scores.truth_index == scores.classes.index(name)
        rows, allowed = is_class & ~never_passes, is_class.sum() * (1 - floor)
        for points, weights in ((clouds[rows], weight), (score[rows, None], np.ones(1))):
            stop_at = min(stop_at, _lowest_stopped(points, weights, allowed=allowed))

    def each(values: Floats) -> Floats:
        return ((shares * values)[:, None] * weight).ravel()

    if_passed, if_rejected = prices(scores, costs=costs)
    at = {"miss": float(if_passed[~good].mean()), "false_alarm": costs.false_alarm, "review": costs.review}
    doubt = bayes_cuts(**at, may_review=True) if cap > 0 and review_pays(**at) else None
    cuts = best_cuts(
        clouds.ravel(),
        passed=each(np.where(never_passes, costs.review, if_passed)),
        reviewed=each(np.full(len(scores), costs.review)),
        rejected=each(np.where(strange, costs.review, if_rejected)),
        load_passed=each(never_passes.astype(np.float64)),
        load_reviewed=each(np.ones(len(scores))),
        load_rejected=each(strange.astype(np.float64)),
        cap=cap,
        stop_at=stop_at,
        doubt=doubt,
    )
    return policy.model_copy(update={"pass_below": cuts.pass_below, "reject_above": cuts.reject_above})


def _lowest_stopped(points: Floats, weights: Floats, *, allowed: float) -> float:
    """The score from which on nothing may pass if at most this weight may, of points [N, K] of weights [K]."""
    order = np.argsort(points, axis=None, kind="stable")
    too_many = np.flatnonzero(np.cumsum(np.broadcast_to(weights, points.shape).ravel()[order]) > allowed + 1e-9)
    return float(points.ravel()[order[too_many[0]]]) if len(too_many) else np.inf


def _floors(scores: PartScores, *, costs: Costs) -> dict[str, float]:
    defects = [name for name in scores.classes if name not in scores.ok]
    asked = {name: costs.recall_floor_by_class.get(name, costs.recall_floor) for name in defects}
    return {name: floor for name, floor in asked.items() if floor > 0}


def _floor_notes(scores: PartScores, *, policy: Policy, free: Policy) -> list[str]:
    notes, few = [], []
    for name, floor in policy.floors.items():
        n = int((scores.truth_index == scores.classes.index(name)).sum())
        shown = Rate(n, n).interval()
        if shown is None:
            notes.append(f"the recall floor of {floor:g} for {name} cannot be checked: no part of it here")
        elif shown.low < floor:
            few.append(f"{name} ({n})")
    if few:
        notes.append(f"too few parts to show the recall floor, even with none missed: {', '.join(few)}")
    good = scores.is_good
    passing, could_pass = (int((decide_many(scores, one).verdict[good] == OK).sum()) for one in (policy, free))
    before, after = expected_cost(scores, free), expected_cost(scores, policy)
    if could_pass and not passing:
        notes.append("the recall floors are infeasible: they hold only if no good part passes, and so none does")
    elif before is not None and after is not None and after > before * (1 + 1e-9):
        notes.append(f"the recall floors raise the expected cost from {before:.4g} to {after:.4g} a part")
    return notes


def _load_notes(scores: PartScores, *, policy: Policy, cap: float) -> list[str]:
    load = review_load(scores, policy)
    assert load is not None
    return [f"people can review {cap:.2%} of parts, {load:.2%} must be"] if is_overload(load, capacity=cap) else []


def review_load(scores: PartScores, policy: Policy | OutOfFold) -> float | None:
    """The share of the line that a person has to review at the policy's rate; None without good or bad parts."""
    shares = line_shares(scores, rate=policy.rate)
    return None if shares is None else float(shares[decide_many(scores, policy).verdict == REVIEW].sum())


def is_overload(load: float, *, capacity: float) -> bool:
    """Whether a person has to look at a tenth more of the parts than people can; thresholds split no finer."""
    return load > 1.1 * capacity + 1e-9


def review_capacity(costs: Costs) -> float:
    """The share of the line that people can review."""
    if costs.review_per_hour is None:
        return 1.0
    if not costs.review_per_hour or costs.parts_per_hour is None:
        return 0.0
    return min(1.0, costs.review_per_hour / costs.parts_per_hour)


def _impossible_above(scores: PartScores, *, note: list[str]) -> float:
    """More likely than not; higher where the model wastes that much on parts whose class does occur here."""
    if not len(scores):
        return 0.5
    usual = float(np.quantile(scores.impossible, 0.99, method="higher"))
    if usual <= 0.5:
        return 0.5
    note.append(f"the model puts up to {usual:.0%} of its mass on classes that do not occur here")
    return min(0.99, round(usual, 6))


def _unlike_above(scores: PartScores, values: Floats | None, *, what: str, cap: float, note: list[str]) -> float | None:
    """The novelty or disagreement that at most 1 in 200 good parts exceeds, as far as those seen can tell.

    Where no class is good, of all parts: what is beyond is unlike everything that is known here.
    """
    if values is None:
        return None
    good = values[scores.is_good] if scores.ok else values
    if len(good) < MIN_GOOD_FOR_NOVELTY:
        note.append(f"{len(good)} {'good ' if scores.ok else ''}parts are too few for a {what} threshold")
        return None
    if cap < NOVEL_SHARE:
        note.append(f"the review capacity leaves no room for {what}")
        return None
    return HAIR * float(np.quantile(good, 1 - NOVEL_SHARE, method="higher"))
