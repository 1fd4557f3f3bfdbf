"""Which of several models should judge a plant's parts, and with what certainty. Pure; all numbers are of `decide`.

Models are judged per part, by money where there is money and by macro-F1 where there is none. Money hangs on a few
escapes, so that models whose money is not shown to differ are told apart by macro-F1. A model that is cheaper to serve
is taken only where the paired interval over lots shows that it is not worse by more than a margin; otherwise the best
estimate is taken and what is not known is said: "no difference shown", "not enough lots".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plants.costs import OutOfFold, Policy
from plants.ensembles import Mix
from plants.metrics import paired, report
from plants.plant import Plant
from plants.scores import PartScores

MARGIN_F1 = 0.01
"""A cheaper model may be this much worse in macro-F1 and still be taken."""
MARGIN_COST = 0.02
"""Likewise in money, as a fraction of what the cheaper of passing all and rejecting all would cost."""


@dataclass(frozen=True)
class Candidate:
    """One model at one plant."""

    name: str
    kind: str
    members: tuple[str, ...]
    """The runs it is made of: one, or several for an ensemble."""
    serving_cost: int
    """Branch passes an image beyond the shared trunk; heads are free."""
    scores: PartScores
    policy: Policy
    """Solved on all parts: what is published."""
    judged_by: OutOfFold | Policy
    """Solved out of fold by lot, so that costs do not flatter: what candidates are compared with."""
    mix: Mix | None = None
    """How an ensemble joins its members."""
    solved_on: PartScores | None = None
    """Where weights were fitted on these parts: what the model says that is published. `scores` are out of fold."""

    @property
    def published(self) -> PartScores:
        """What `policy` was solved on."""
        return self.scores if self.solved_on is None else self.solved_on


@dataclass(frozen=True)
class Decision:
    """The model of one plant, why, and what the nearest alternative would mean."""

    model: str
    why: str
    against: str | None
    interval: dict[str, Any] | None


def decide(candidates: Sequence[Candidate], *, idle_cost: float | None, seed: int = 0) -> Decision:
    """The one cheapest to serve that is shown not to be worse than the best by more than the margin, else the best.

    The best costs least a part, or has a higher macro-F1 and is not shown to cost another sum. Pure.
    idle_cost: money a part when nothing is inspected, None where there is no money.
    """
    order = sorted(candidates, key=_badness)
    best = _told_apart(order, seed=seed)
    taken, interval = best, None
    for other in sorted(order, key=lambda c: (c.serving_cost, _badness(c))):
        if other.serving_cost >= best.serving_cost:
            continue
        found = difference(other, best, seed=seed)
        if _is_not_worse(found, idle_cost=idle_cost):
            taken, interval = other, found
            break
    if taken is not best:
        why = f"{taken.name} costs less to serve and is shown not to be worse than {best.name} by more than the margin"
        return Decision(taken.name, why, best.name, interval)
    if len(order) == 1:
        return Decision(best.name, "the only candidate", None, None)
    rival = order[0] if best is not order[0] else order[1]
    interval = difference(best, rival, seed=seed)
    if interval["low"] is None:
        why = f"not enough lots for an interval; best estimate, before {rival.name}"
    elif best is not order[0]:
        why = f"higher macro-F1 than {rival.name}, and no difference in money shown"
    elif interval["low"] <= 0 <= interval["high"]:
        why = f"best estimate; no difference shown to {rival.name}"
    else:
        why = f"better than {rival.name}, the interval excludes 0"
    return Decision(best.name, why, rival.name, interval)


def decide_first(candidates: Sequence[Candidate], *, num_defects: int) -> Decision | None:
    """The distance to good parts, where it is a candidate and there is no other, or no defect to judge another on."""
    first = next((c for c in candidates if c.kind == "normality"), None)
    if first is None or (len(candidates) > 1 and not first.scores.is_good.all()):
        return None
    lacking = "train" if len(candidates) == 1 else "decide"
    labelled = f"of {num_defects} labelled defects none is in {lacking}" if num_defects else "no defect is labelled"
    why = f"{labelled}, so no classifier can be judged: parts near the good ones pass, people look at the others"
    return Decision(first.name, why, None, None)


def _told_apart(order: Sequence[Candidate], *, seed: int) -> Candidate:
    """The cheapest in money, or one of higher macro-F1 whose money is not shown to differ from it."""
    cheapest = order[0]
    if not cheapest.scores.ok:
        return cheapest
    for other in sorted(order, key=_lost):
        if _lost(other) >= _lost(cheapest):
            break
        found = difference(other, cheapest, seed=seed)
        if found["metric"] == "cost" and found["low"] is not None and found["low"] <= 0 <= found["high"]:
            return other
    return cheapest


def _lost(candidate: Candidate) -> float:
    f1 = report(candidate.scores, n_boot=1)["macro_f1"]["value"]
    return 1 - (f1 if f1 is not None else 0.0)


def _badness(candidate: Candidate) -> tuple[float, float, int, str]:
    figures = report(candidate.scores, policy=candidate.judged_by, n_boot=1)
    cost = figures["cost"]["value"] if figures["cost"] else None
    f1 = figures["macro_f1"]["value"]
    lost = 1 - (f1 if f1 is not None else 0.0)
    return (cost if cost is not None else lost, lost, candidate.serving_cost, candidate.name)


def difference(a: Candidate, b: Candidate, *, seed: int) -> dict[str, Any]:
    """a - b, see `plants.metrics.paired`."""
    return paired(a.scores, b.scores, policy_a=a.judged_by, policy_b=b.judged_by, seed=seed)


def _is_not_worse(found: Mapping[str, Any], *, idle_cost: float | None) -> bool:
    if found["low"] is None:
        return False
    if found["metric"] == "cost":
        return idle_cost is not None and found["high"] <= MARGIN_COST * idle_cost
    return bool(found["low"] >= -MARGIN_F1)


def idle_cost(plant: Plant) -> float | None:
    """Money a part at the unfavourable defect rate when all parts pass or all are rejected, whichever is cheaper."""
    rate = plant.costs.defect_rate[2]
    return min(rate * plant.costs.miss, (1 - rate) * plant.costs.false_alarm) if plant.ok else None
