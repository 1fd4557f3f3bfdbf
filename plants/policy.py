"""What may change without learning, and the verdict on a part.

`decide_part` and `decide_many` are the only places in crossplant that turn probabilities into ok, reject or review, in
evaluation and at the line alike. How thresholds are found is in `plants.costs`.
"""

from __future__ import annotations

import json
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from plants.config import Config
from plants.errors import InputError
from plants.hashing import sha256
from plants.plant import Costs
from plants.scores import Mask, PartScores, calibrate
from plants.thresholds import EDGE

Floats = npt.NDArray[np.float64]
Verdict = Literal["ok", "reject", "review"]

SURE_ABOVE = 0.5
"""Where no class is good, a part is reviewed unless one class is more likely than all others together."""

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
    "the models of the ensemble disagree",
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
    disagreement_above: float | None = None
    """A part that would pass is reviewed when the members of an ensemble disagree more than this about it."""
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
        """Canonical JSON: equal policies give equal text.

        Limits not said, and what a single model has no use for, are left out, as in policies before them.
        """
        found = self.model_dump(mode="json")
        if self.costs.limits is None:
            del found["costs"]["limits"]
        if self.disagreement_above is None:
            del found["disagreement_above"]
        return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, *, file: str | None = None) -> Policy:
        """The policy in this text, which was read from `file`. Raises InputError for anything else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(step) for step in first["loc"])
            raise InputError(
                f"is not a policy: {first['msg']}",
                file=file,
                field=field or None,
                remedy="Take one that `crossplant compare` wrote",
            ) from None


class Decision(NamedTuple):
    """What happens to a part."""

    verdict: Verdict
    defect: str | None
    """The most probable defect class; None for a part that passes, and where no class has any probability."""
    confidence: float
    """Calibrated probability of what is said: of being good for ok, of the named defect otherwise, 0 without one."""
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
    probs: npt.ArrayLike,
    *,
    policy: Policy,
    impossible: float | None = None,
    novelty: float | None = None,
    disagreement: float | None = None,
) -> Decision:
    """The verdict on one part from its uncalibrated class probabilities [C].

    `impossible` is what the probabilities lack to 1 unless given.
    """
    row = np.asarray(probs, dtype=np.float64)[None]
    given = {"impossible": impossible, "novelty": novelty, "disagreement": disagreement}
    rows = {name: None if one is None else np.array([one], dtype=np.float64) for name, one in given.items()}
    many = _decide(row, policy=policy, **rows)
    verdict, defect = VERDICTS[many.verdict[0]], int(many.defect[0])
    return Decision(
        verdict, policy.classes[defect] if defect >= 0 else None, float(many.confidence[0]), REASONS[many.why[0]]
    )


def decide_many(scores: PartScores, policy: Policy) -> Decisions:
    """The verdicts on all parts, each exactly as `decide_part` gives it."""
    if scores.classes != policy.classes:
        raise InputError("the policy is for other classes than the scores", plant=policy.plant, field="classes")
    return _decide(
        scores.probs,
        policy=policy,
        impossible=scores.impossible,
        novelty=scores.novelty,
        disagreement=scores.disagreement,
    )


def _decide(
    probs: Floats, *, policy: Policy, impossible: Floats | None, novelty: Floats | None, disagreement: Floats | None
) -> Decisions:
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
    strange, novel = is_strange(impossible, policy), is_novel(novelty, policy, n=len(probs))
    divided = is_divided(disagreement, policy, n=len(probs))
    defect = np.where(ok, -1.0, calibrated).argmax(axis=1) if not ok.all() else np.full(len(probs), -1)
    confidence = np.where(defect >= 0, calibrated[np.arange(len(probs)), defect], 0.0)
    defect = np.where(confidence > 0, defect, -1)
    if not policy.has_money:
        is_sure = confidence >= policy.sure_above
        verdict, why = np.where(is_sure, REJECT, REVIEW), np.where(is_sure, 5, 6)
        verdict, why = _override(verdict, why, divided & is_sure, 8)
        verdict, why = _override(verdict, why, strange, 3)
        verdict, why = _override(verdict, why, novel & ~strange, 4)
        verdict, why = _override(verdict, why, is_broken, 7)
        return Decisions(verdict, defect, confidence, why)
    score = defect_score(calibrated, ok)
    passes, rejects = score < policy.pass_below, score >= policy.reject_above
    verdict = np.where(passes, OK, np.where(rejects, REJECT, REVIEW))
    why = np.where(passes, 0, np.where(rejects, 1, 2))
    verdict, why = _override(verdict, why, divided & passes, 8)
    verdict, why = _override(verdict, why, novel & passes, 4)
    verdict, why = _override(verdict, why, strange, 3)
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


def is_strange(impossible: Floats, policy: Policy) -> Mask:
    """Parts with too much mass on classes that cannot occur here [N]: always reviewed."""
    rows: Mask = ~(impossible <= policy.impossible_above)
    return rows


def is_novel(novelty: Floats | None, policy: Policy, *, n: int) -> Mask:
    """Parts too far from the good ones [n]: reviewed instead of passed."""
    if novelty is None or policy.novelty_above is None:
        return np.zeros(n, dtype=bool)
    rows: Mask = ~(novelty <= policy.novelty_above)
    return rows


def is_divided(disagreement: Floats | None, policy: Policy, *, n: int) -> Mask:
    """Parts about which the members of an ensemble disagree too much [n]: reviewed instead of passed."""
    if disagreement is None or policy.disagreement_above is None:
        return np.zeros(n, dtype=bool)
    rows: Mask = ~(disagreement <= policy.disagreement_above)
    return rows
