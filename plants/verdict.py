"""Which of several models should judge a plant's parts, and with what certainty. Pure; all numbers are of `decide`.

Models are judged per part, by money where there is money and by macro-F1 where there is none. Money hangs on a few
escapes, so that a model whose macro-F1 is shown to be higher goes before one whose money is not shown to differ. The
best estimate is taken, unless a model that is cheaper to serve ties with it or is shown not to be worse by more than a
margin. What is known is an answer of its own: every difference between two models is taken at the level at which all of
them hold together, so that among however many models a "better" is false in at most 5 % of comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from plants.costs import OutOfFold, Policy, expected_cost
from plants.counts import confusions, macro_f1, number
from plants.differences import joint_level, paired
from plants.ensembles import Mix
from plants.plant import Plant
from plants.scores import PartScores
from plants.stats import MIN_LOTS, MIN_LOTS_OF_KIND, Lots

MARGIN_F1 = 0.01
"""A cheaper model may be this much worse in macro-F1 and still be taken."""
MARGIN_COST = 0.02
"""Likewise in money, as a fraction of what the cheaper of passing all and rejecting all would cost."""
TIE = 0.1
"""Estimates that lie within this fraction of the margin are a tie. Of a whole margin, `bench_verdict.py` measured a
dearer choice."""


@dataclass(frozen=True)
class Candidate:
    """One model at one plant."""

    name: str
    kind: str
    members: tuple[str, ...]
    """The runs it is made of: one, or several for an ensemble."""
    serving_cost: int
    """Stages above the shared trunk that an image passes, of all members together; heads are free."""
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


Answer = Literal[
    "better", "not worse and cheaper", "no difference shown", "not enough lots", "not enough data", "the only candidate"
]


@dataclass(frozen=True)
class Decision:
    """The model of one plant, why, and what the nearest alternative would mean."""

    model: str
    answer: Answer
    """What is shown. Of `better` and `no difference shown`: against the candidate that is cheapest to serve."""
    why: str
    against: str | None = None
    """The nearest alternative, and the paired difference to it."""
    interval: dict[str, Any] | None = None
    tests: tuple[dict[str, Any], ...] = ()
    """Of every other candidate against the cheapest to serve, the best first: `{model, against, metric, diff, low,
    high, n_lots, words}`."""
    level: float | None = None
    """At which each of these intervals was taken, so that all hold together at 95 %."""
    by_f1: dict[str, Any] | None = None
    """Where it was taken for its macro-F1: that less `against`'s, paired, at the `level` at which the macro-F1 of all
    candidates hold together, and in `words` what is shown at it. None where money or a cheaper tier decided."""


def decide(candidates: Sequence[Candidate], *, idle_cost: float | None, seed: int = 0) -> Decision:
    """The best, or one cheaper to serve that ties with it or is shown not to be worse by more than the margin.

    The best costs least a part, or is shown to have a higher macro-F1 and not shown to cost another sum.
    idle_cost: money a part when nothing is inspected, None where there is no money.
    """
    order = sorted(candidates, key=_badness)
    if len(order) == 1:
        return Decision(order[0].name, "the only candidate", "the only candidate")
    level = joint_level([(one.scores, one.judged_by) for one in order], seed=seed)
    gap = partial(difference, seed=seed, level=level)
    floor = min(order, key=lambda one: (one.serving_cost, one.kind != "frozen", _badness(one)))
    tests = tuple(_test(one, floor, gap=gap) for one in order if one is not floor)
    best, by_f1 = _told_apart(order, seed=seed)
    taken, is_shown = _cheaper(best, order=order, gap=gap, idle_cost=idle_cost)
    rival = best if taken is not best else order[0] if best is not order[0] else order[1]
    interval = gap(taken, rival)
    row = next((test for test in tests if test["model"] == taken.name), None)
    answer: Answer
    if lacking := _too_little(taken.scores):
        estimate = "best estimate, before" if taken is best else "costs less to serve than"
        answer, why = lacking[0], f"{lacking[1]}; {estimate} {rival.name}"
    elif is_shown:
        answer = "not worse and cheaper"
        why = f"costs less to serve than {rival.name} and is shown not to be worse by more than the margin"
    elif taken is not best:
        answer = "better" if row and row["words"] == "better" else "no difference shown"
        why = f"costs less to serve than {rival.name}, with which it ties: {amount(interval)}, no difference shown"
        if row and answer == "better":
            why = f"{amount(row)} than {row['against']}, which is cheapest to serve; {why}"
    elif row is None:
        answer, why = _of_floor(tests, rival=rival, interval=interval)
    else:
        answer, why = _of_best(row, rival=rival, interval=interval, by_f1=by_f1)
    by_f1 = by_f1 if taken is best else None
    return Decision(taken.name, answer, why, rival.name, interval, tests=tests, level=level, by_f1=by_f1)


def _cheaper(
    best: Candidate, *, order: Sequence[Candidate], gap: Callable[..., dict[str, Any]], idle_cost: float | None
) -> tuple[Candidate, bool]:
    """The cheapest to serve that is shown not to be worse than the best, or else ties with it; whether it is shown.

    A tie: not shown to differ, the estimate within `TIE` of the margin, and macro-F1 within its own.
    """
    cheaper = [one for one in order if one.serving_cost < best.serving_cost]
    cheaper = sorted(cheaper, key=lambda one: (one.serving_cost, _badness(one)))
    gaps = [(one, gap(one, best)) for one in cheaper]
    shown = [one for one, found in gaps if _is_within(found, by=1.0, is_shown=True, idle_cost=idle_cost)]
    tied = [one for one, found in gaps if _is_within(found, by=TIE, is_shown=False, idle_cost=idle_cost)]
    shown = [one for one in shown if _words(paired(one.scores, best.scores)) != "worse"]
    tied = [one for one in tied if _lost(one) <= _lost(best) + MARGIN_F1]
    return next(iter(shown + tied), best), bool(shown)


def _is_within(found: Mapping[str, Any], *, by: float, is_shown: bool, idle_cost: float | None) -> bool:
    """Whether a difference is no worse than this much of the margin: its unfavourable end, or its estimate alone."""
    is_money = found["metric"] == "cost"
    end = found[("high" if is_money else "low") if is_shown else "diff"]
    if end is None or (is_money and idle_cost is None) or (not is_shown and _words(found) == "worse"):
        return False
    return bool(end <= by * MARGIN_COST * (idle_cost or 0) if is_money else end >= -by * MARGIN_F1)


def _test(one: Candidate, floor: Candidate, *, gap: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    found = gap(one, floor)
    return {"model": one.name, "against": floor.name, **found, "words": _words(found)}


def _words(found: Mapping[str, Any]) -> str:
    """What a paired difference shows."""
    if found["low"] is None:
        return str(found["words"] or "nothing counted")
    if found["low"] <= 0 <= found["high"]:
        return "no difference shown"
    return "better" if (found["high"] < 0) == (found["metric"] == "cost") else "worse"


def _too_little(scores: PartScores) -> tuple[Answer, str] | None:
    """Why nothing can be shown on these parts, if so."""
    lots = Lots(scores.lots)
    if not lots.is_enough:
        return "not enough lots", f"{lots.num} lots, and an interval needs {MIN_LOTS}"
    kinds = {"good parts": scores.is_good, "defects": ~scores.is_good} if scores.ok else {}
    for name, rows in kinds.items():
        if (holding := lots.holding(rows)) < MIN_LOTS_OF_KIND:
            return "not enough data", f"{name} in {holding} lots, and money needs them in {MIN_LOTS_OF_KIND}"
    return None


def _of_best(
    row: Mapping[str, Any], *, rival: Candidate, interval: Mapping[str, Any], by_f1: Mapping[str, Any] | None
) -> tuple[Answer, str]:
    """The answer for the best estimate, which is not the cheapest to serve. row: against that; interval: to the rival.

    by_f1: its macro-F1 less the rival's, where that told them apart, as their money is not shown to differ.
    """
    is_better = row["words"] == "better"
    if by_f1:
        why = f"{amount(by_f1)} than {rival.name}, and no difference in money shown: {amount(interval)}"
        why = why if by_f1["words"] == "better" else f"best estimate: {why}"
        if is_better:
            why = f"{amount(row)} than {row['against']}, which is cheapest to serve; {why}"
        return ("better" if is_better else "no difference shown"), why
    what = f"{amount(row)} than {row['against']}, which is cheapest to serve"
    why = what if is_better else f"best estimate: {what}, but no difference is shown"
    if rival.name != row["against"]:
        words = _words(interval)
        why += f"; {'no difference shown to' if words == 'no difference shown' else words + ' than'} {rival.name}"
    return ("better" if is_better else "no difference shown"), why


def _of_floor(
    tests: Sequence[Mapping[str, Any]], *, rival: Candidate, interval: Mapping[str, Any]
) -> tuple[Answer, str]:
    """The answer for the cheapest to serve, which is the best estimate as well."""
    if all(test["words"] == "worse" for test in tests):
        return (
            "better",
            f"cheapest to serve, and shown to be better than all others: {amount(interval)} than {rival.name}",
        )
    return "no difference shown", f"cheapest to serve, and nothing is shown to be better; nearest is {rival.name}"


def amount(found: Mapping[str, Any]) -> str:
    """A paired difference with its interval, as "120 a part less (80 to 160)" or "3.1 points of macro-F1 more"."""
    is_money = found["metric"] == "cost"
    scale, unit = (1, "a part") if is_money else (100, "points of macro-F1")
    diff = found["diff"] * scale
    side = -1 if diff < 0 else 1
    ends = sorted(side * scale * found[key] for key in ("low", "high") if found[key] is not None)
    text = ".1f" if not is_money else ",.0f" if max(abs(diff), *map(abs, ends), 0) >= 100 else ".2f"
    interval = f" ({ends[0]:{text}} to {ends[1]:{text}})" if ends else ""
    return f"{abs(diff):{text}} {unit} {'less' if diff < 0 else 'more'}{interval}"


def decide_first(candidates: Sequence[Candidate], *, num_defects: int) -> Decision | None:
    """The distance to good parts, where it is a candidate and there is no other, or no defect to judge another on."""
    first = next((c for c in candidates if c.kind == "normality"), None)
    if first is None or (len(candidates) > 1 and not first.scores.is_good.all()):
        return None
    lacking = "train" if len(candidates) == 1 else "decide"
    labelled = f"of {num_defects} labelled defects none is in {lacking}" if num_defects else "no defect is labelled"
    why = f"{labelled}, so no classifier can be judged: parts near the good ones pass, people look at the others"
    return Decision(first.name, "not enough data", why)


def _told_apart(order: Sequence[Candidate], *, seed: int) -> tuple[Candidate, dict[str, Any] | None]:
    """The cheapest in money, or one with a higher macro-F1, at 95 %, whose money is not shown to differ.

    The second is that difference in macro-F1 where it decided, at the level at which those of all candidates hold
    together.
    """
    cheapest = order[0]
    if not cheapest.scores.ok:
        return cheapest, None
    for other in sorted(order, key=_lost):
        if _lost(other) >= _lost(cheapest):
            break
        found = difference(other, cheapest, seed=seed)
        is_open = found["metric"] == "cost" and _words(found) == "no difference shown"
        if is_open and _words(paired(other.scores, cheapest.scores, seed=seed)) == "better":
            level = joint_level([(one.scores, None) for one in order], seed=seed)
            by_f1 = paired(other.scores, cheapest.scores, seed=seed, level=level)
            return other, {**by_f1, "level": level, "words": _words(by_f1)}
    return cheapest, None


def _lost(candidate: Candidate) -> float:
    f1 = number(macro_f1(confusions(candidate.scores).sum(axis=0)))
    return 1 - (f1 if f1 is not None else 0.0)


def _badness(candidate: Candidate) -> tuple[float, float, int, str]:
    cost, lost = expected_cost(candidate.scores, candidate.judged_by), _lost(candidate)
    return (lost if cost is None else cost, lost, candidate.serving_cost, candidate.name)


def difference(a: Candidate, b: Candidate, *, seed: int, level: float = 0.95) -> dict[str, Any]:
    """a - b, see `plants.differences.paired`."""
    return paired(a.scores, b.scores, policy_a=a.judged_by, policy_b=b.judged_by, seed=seed, level=level)


def idle_cost(plant: Plant) -> float | None:
    """Money a part at the unfavourable defect rate when all parts pass or all are rejected, whichever is cheaper.

    A miss costs what it does in the mean over the plant's defect classes.
    """
    rate, costs = plant.costs.defect_rate[2], plant.costs
    misses = [costs.miss_by_class.get(name, costs.miss) for name in plant.defects] or [costs.miss]
    return min(rate * sum(misses) / len(misses), (1 - rate) * costs.false_alarm) if plant.ok else None
