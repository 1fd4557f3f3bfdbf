"""Money: thresholds by expected cost at the line's defect rate, and the verdict on a part.

A `Policy` is what may change without learning. `solve` makes one from the `decide` parts of a plant; `decide_part` is
the only place in crossplant that turns probabilities into ok, reject or review, in evaluation and at the line alike.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from plants.errors import InputError
from plants.hashing import sha256
from plants.plant import Config, Costs
from plants.scores import Mask, PartScores, calibrate
from plants.stats import MIN_LOTS, Rate
from plants.thresholds import EDGE, Cuts, bayes_cuts, best_cuts

Floats = npt.NDArray[np.float64]
Verdict = Literal["ok", "reject", "review"]

SURE_ABOVE = 0.5
"""Where no class is good, a part is reviewed unless one class is more likely than all others together."""

TEMPERATURE_SPREAD = 0.5
"""Before any part is seen, log temperature is held to lie within about this of 0."""
NOVEL_SHARE = 0.005
MIN_GOOD_FOR_NOVELTY = 20

OK, REJECT, REVIEW = 0, 1, 2
VERDICTS: tuple[Verdict, ...] = ("ok", "reject", "review")
REASONS = (
    "defect mass below the pass threshold",
    "defect mass above the reject threshold",
    "defect mass between the thresholds",
    "mass on classes that do not occur here",
    "far from the good parts of this plant",
    "one class stands out",
    "no class stands out",
    "the model gave no number",
)


class Policy(Config):
    """Thresholds of one plant for one bundle, with the prices they were solved for."""

    plant: str
    bundle: str = ""
    classes: tuple[str, ...] = Field(min_length=1)
    ok: tuple[str, ...] = ()
    temperature: float = Field(default=1.0, gt=0)
    pass_below: float = Field(ge=0, le=1)
    """A part passes when its calibrated defect mass is below. 0: nothing passes."""
    reject_above: float = Field(ge=0, le=1)
    """A part is rejected at or above; between the two a person looks. 1: nothing is rejected."""
    impossible_above: float = Field(default=0.5, ge=0, le=1)
    """More mass than this on classes that cannot occur here is something new: review."""
    novelty_above: float | None = None
    """A part that would pass is reviewed when it is farther than this from good parts."""
    sure_above: float = Field(default=SURE_ABOVE, ge=0, le=1)
    """Only where no class is good: confidence from which the defect is named without review."""
    costs: Costs = Costs()
    floors: dict[str, float] = Field(default_factory=dict)
    """Defect class -> recall the thresholds were asked to hold."""
    note: tuple[str, ...] = ()
    """What a person should know about how this was solved."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.pass_below > self.reject_above:
            raise ValueError("pass_below must not exceed reject_above")
        if any(name not in self.classes for name in self.ok):
            raise ValueError("ok must be among classes")
        return self

    @property
    def has_money(self) -> bool:
        """Whether a part can be good here, without which there is nothing to pass and no cost."""
        return bool(self.ok)

    @property
    def rate(self) -> float:
        """The defect rate it was solved at: the unfavourable end, more defects than thought."""
        return self.costs.defect_rate[2]

    @property
    def ok_mask(self) -> Mask:
        """Which classes mean a good part [C]."""
        return np.array([name in self.ok for name in self.classes], dtype=bool)

    @property
    def digest(self) -> str:
        """The policy's name: SHA-256 of `to_json()`."""
        return sha256(self.to_json().encode())

    def to_json(self) -> str:
        """Canonical JSON: equal policies give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Policy:
        """The policy in this text. Raises InputError for anything else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(step) for step in first["loc"])
            raise InputError(f"is not a policy: {first['msg']}", field=field or None) from None


class Decision(NamedTuple):
    """What happens to a part."""

    verdict: Verdict
    defect: str | None
    """The most probable defect class; None for a part that passes."""
    confidence: float
    """Calibrated probability of what is said: of being good for ok, of the named defect otherwise."""
    why: str


class Decisions(NamedTuple):
    """Decisions of many parts, by column."""

    verdict: npt.NDArray[np.intp]
    """[N] indices into VERDICTS."""
    defect: npt.NDArray[np.intp]
    """[N] columns of the policy's classes, -1 for none."""
    confidence: Floats
    why: npt.NDArray[np.intp]
    """[N] indices into REASONS."""


def decide_part(
    probs: npt.ArrayLike, *, policy: Policy, impossible: float | None = None, novelty: float | None = None
) -> Decision:
    """The verdict on one part from its uncalibrated class probabilities [C].

    `impossible` is what the probabilities lack to 1 unless given.
    """
    row = np.asarray(probs, dtype=np.float64)[None]
    many = _decide(
        row,
        policy=policy,
        impossible=None if impossible is None else np.array([impossible], dtype=np.float64),
        novelty=None if novelty is None else np.array([novelty], dtype=np.float64),
    )
    verdict, defect = VERDICTS[many.verdict[0]], int(many.defect[0])
    return Decision(
        verdict, policy.classes[defect] if defect >= 0 else None, float(many.confidence[0]), REASONS[many.why[0]]
    )


def decide_many(scores: PartScores, policy: Policy) -> Decisions:
    """The verdicts on all parts, each exactly as `decide_part` gives it."""
    if scores.classes != policy.classes:
        raise InputError("the policy is for other classes than the scores", plant=policy.plant, field="classes")
    return _decide(scores.probs, policy=policy, impossible=scores.impossible, novelty=scores.novelty)


def _decide(probs: Floats, *, policy: Policy, impossible: Floats | None, novelty: Floats | None) -> Decisions:
    if probs.shape[1] != len(policy.classes):
        raise InputError(
            f"{probs.shape[1]} probabilities for {len(policy.classes)} classes", plant=policy.plant, field="classes"
        )
    is_broken = np.asarray(~np.isfinite(probs).all(axis=1))
    probs = np.where(is_broken[:, None], 0.0, probs)
    if impossible is None:
        impossible = np.clip(1 - probs.sum(axis=1), 0, 1)
    calibrated = calibrate(probs, policy.temperature)
    ok = policy.ok_mask
    is_strange = ~(impossible <= policy.impossible_above)
    is_novel = np.zeros(len(probs), dtype=bool)
    if novelty is not None and policy.novelty_above is not None:
        is_novel = ~(novelty <= policy.novelty_above)
    defect = np.where(ok, -1.0, calibrated).argmax(axis=1) if not ok.all() else np.full(len(probs), -1)
    confidence = np.where(defect >= 0, calibrated[np.arange(len(probs)), defect], 1.0)
    if not policy.has_money:
        is_sure = confidence >= policy.sure_above
        verdict, why = np.where(is_sure, REJECT, REVIEW), np.where(is_sure, 5, 6)
        verdict, why = _override(verdict, why, is_strange, 3)
        verdict, why = _override(verdict, why, is_novel & ~is_strange, 4)
        verdict, why = _override(verdict, why, is_broken, 7)
        return Decisions(verdict, defect, confidence, why)
    score = defect_score(calibrated, ok)
    passes, rejects = score < policy.pass_below, score >= policy.reject_above
    verdict = np.where(passes, OK, np.where(rejects, REJECT, REVIEW))
    why = np.where(passes, 0, np.where(rejects, 1, 2))
    verdict, why = _override(verdict, why, is_novel & passes, 4)
    verdict, why = _override(verdict, why, is_strange, 3)
    verdict, why = _override(verdict, why, is_broken, 7)
    is_ok = verdict == OK
    return Decisions(
        verdict, np.where(is_ok, -1, defect), np.where(is_ok, calibrated[:, ok].sum(axis=1), confidence), why
    )


def _override(
    verdict: npt.NDArray[np.intp], why: npt.NDArray[np.intp], rows: Mask, reason: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.where(rows, REVIEW, verdict), np.where(rows, reason, why)


def defect_score(calibrated: Floats, ok: Mask) -> Floats:
    """What thresholds are compared with [N]: the mass outside the good classes, clipped by EDGE."""
    score: Floats = np.clip(1 - calibrated[:, ok].sum(axis=1), EDGE, 1 - EDGE)
    return score


def part_costs(scores: PartScores, policy: Policy) -> Floats:
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


def expected_cost(scores: PartScores, policy: Policy, weights: npt.NDArray[Any] | None = None) -> float | None:
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

    Fitted on the parts it is judged on, so its own cost is flattering; three things hold it back. Thresholds lie
    halfway (in log odds) between observed scores; the temperature is pulled towards 1 as if by a few parts; and where
    no good or no bad part was seen, thresholds follow the calibrated probabilities instead, which `note` says.
    """
    note: list[str] = []
    temperature = fit_temperature(scores)
    common: dict[str, Any] = {
        "plant": plant,
        "bundle": bundle,
        "classes": scores.classes,
        "ok": scores.ok,
        "temperature": temperature,
        "costs": costs,
        "impossible_above": _impossible_above(scores, note=note),
    }
    if not scores.ok:
        return Policy(pass_below=0.0, reject_above=0.0, note=("no class is good here: no money, no passing",), **common)
    cap = _review_cap(costs, note=note)
    common["novelty_above"] = _novelty_above(scores, cap=cap, note=note)
    common["floors"] = floors = _floors(scores, costs=costs)
    shares = line_shares(scores, rate=costs.defect_rate[2])
    if shares is None:
        low, high = bayes_cuts(miss=costs.miss, false_alarm=costs.false_alarm, review=costs.review, may_review=cap > 0)
        side = "defect" if scores.is_good.all() else "good"
        note.append(f"no {side} part to solve on: thresholds from the calibrated probabilities")
        return Policy(pass_below=low, reject_above=high, note=tuple(note), **common)
    open_policy = Policy(pass_below=0.0, reject_above=1.0, **common)
    cuts = _solved(scores, policy=open_policy, shares=shares, cap=cap, floors={})
    if floors:
        free, cuts = cuts, _solved(scores, policy=open_policy, shares=shares, cap=cap, floors=floors)
        note += _floor_notes(scores, floors=floors, cuts=cuts, free=free)
    if cuts.load > cap + 1e-9:
        note.append(f"the review capacity of {cap:.2%} of parts does not hold what must be reviewed ({cuts.load:.2%})")
    num_lots = len(set(scores.lots))
    if num_lots < MIN_LOTS:
        note.append(f"solved on {num_lots} lots: not enough lots")
    return Policy(pass_below=cuts.pass_below, reject_above=cuts.reject_above, note=tuple(note), **common)


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


def _solved(scores: PartScores, *, policy: Policy, shares: Floats, cap: float, floors: dict[str, float]) -> Cuts:
    if_passed, if_rejected = prices(scores, costs=policy.costs)
    review = policy.costs.review
    is_strange = scores.impossible > policy.impossible_above
    is_novel = np.zeros(len(scores), dtype=bool)
    if scores.novelty is not None and policy.novelty_above is not None:
        is_novel = ~(scores.novelty <= policy.novelty_above)
    never_passes, never_rejected = is_strange | is_novel, is_strange
    must_stop = np.zeros(len(scores), dtype=bool)
    score = defect_score(calibrate(scores.probs, policy.temperature), policy.ok_mask)
    for name, floor in floors.items():
        rows = np.flatnonzero(scores.truth_index == scores.classes.index(name))
        loose = rows[~never_passes[rows]]
        allowed = int(np.floor(len(rows) * (1 - floor) + 1e-9))
        must_stop[loose[np.argsort(score[loose], kind="stable")[allowed:]]] = True
    return best_cuts(
        score,
        passed=shares * np.where(never_passes, review, if_passed),
        reviewed=shares * review,
        rejected=shares * np.where(never_rejected, review, if_rejected),
        load_passed=shares * never_passes,
        load_reviewed=shares,
        load_rejected=shares * never_rejected,
        cap=cap,
        must_stop=must_stop,
    )


def _floors(scores: PartScores, *, costs: Costs) -> dict[str, float]:
    defects = [name for name in scores.classes if name not in scores.ok]
    asked = {name: costs.recall_floor_by_class.get(name, costs.recall_floor) for name in defects}
    return {name: floor for name, floor in asked.items() if floor > 0}


def _floor_notes(scores: PartScores, *, floors: dict[str, float], cuts: Cuts, free: Cuts) -> list[str]:
    notes = []
    for name, floor in floors.items():
        n = int((scores.truth_index == scores.classes.index(name)).sum())
        if not n:
            notes.append(f"the recall floor of {floor:g} for {name} cannot be checked: no part of it here")
            continue
        shown = Rate(n, n).interval()
        if shown is not None and shown.low < floor:
            notes.append(f"{n} parts of {name} are too few to show a recall of {floor:g}")
    if cuts.pass_below == 0 and free.pass_below > 0:
        notes.append("the recall floors are infeasible: they hold only if nothing passes, and so nothing passes")
    elif cuts.cost > free.cost * (1 + 1e-9):
        notes.append(f"the recall floors raise the expected cost from {free.cost:.4g} to {cuts.cost:.4g} a part")
    return notes


def _review_cap(costs: Costs, *, note: list[str]) -> float:
    """The share of the line that people can review."""
    if costs.review_per_hour is None:
        return 1.0
    if costs.parts_per_hour is None:
        if costs.review_per_hour == 0:
            return 0.0
        note.append("review_per_hour limits nothing while parts_per_hour is not given")
        return 1.0
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


def _novelty_above(scores: PartScores, *, cap: float, note: list[str]) -> float | None:
    """The distance that at most 1 in 200 good parts exceeds, as far as those seen can tell."""
    if scores.novelty is None:
        return None
    good = scores.novelty[scores.is_good]
    if len(good) < MIN_GOOD_FOR_NOVELTY:
        note.append(f"{len(good)} good parts are too few for a novelty threshold")
        return None
    if cap < NOVEL_SHARE:
        note.append("the review capacity leaves no room for novelty")
        return None
    return float(np.quantile(good, 1 - NOVEL_SHARE, method="higher"))
