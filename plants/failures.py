"""Where a model fails: which class is taken for which, and wrong verdicts in groups, the most expensive first. Pure.

Money is what a group adds to the expected cost of a part of the line, at the rate the policy was solved for: escapes
weigh by the share of bad parts on the line, false alarms by that of good ones, however many of each were looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plants.costs import OutOfFold, Policy, decide_many, line_shares, part_costs
from plants.policy import OK, REJECT
from plants.scores import Mask, PartScores, calibrate
from plants.stats import Floats

ESCAPE, FALSE_ALARM, WRONG_CLASS = "escape", "false alarm", "wrong class"
PASSED, NAMELESS = "passed", "no class"
MAX_GROUPS = 12
MAX_EXAMPLES = 4


def confused(scores: PartScores, *, policy: Policy | OutOfFold) -> list[dict[str, Any]]:
    """A row for every class that was taken for another by the most probable class, the most costly first.

    `{truth, said, n, of, share, cost, words}`: n of the `of` parts of the class; cost is None without money.
    """
    price = _price(scores, policy)
    rows = []
    for i, truth in enumerate(scores.classes):
        true = scores.truth_index == i
        for k, said in enumerate(scores.classes):
            at = true & (scores.predicted_index == k)
            if i == k or not at.any():
                continue
            n, of = int(at.sum()), int(true.sum())
            row = {"truth": truth, "said": said, "n": n, "of": of, "share": round(n / of, 6), "cost": _sum(price, at)}
            rows.append({**row, "words": f"{truth} taken for {said}: {n} of {of}"})
    return sorted(rows, key=lambda row: (-(row["cost"] or 0.0), -row["share"], row["truth"], row["said"]))


def failures(scores: PartScores, *, policy: Policy | OutOfFold) -> list[dict[str, Any]]:
    """Wrong verdicts by what was wrong, the true class and what was said, the most expensive first.

    A group is `{what, truth, said, n, of, cost, environments, examples}`; `said` is the class named, or `passed`. A
    part that a person reviews is no failure. Examples are the parts that the model was surest of: `{part_id, lot,
    environment, probabilities}`, calibrated.
    """
    decided, good = decide_many(scores, policy), scores.is_good
    named = decided.defect
    what = np.full(len(scores), "", dtype=object)
    what[~good & (decided.verdict == OK)] = ESCAPE
    what[good & (decided.verdict == REJECT)] = FALSE_ALARM
    what[~good & (decided.verdict == REJECT) & (named != scores.truth_index)] = WRONG_CLASS
    said = np.array([*scores.classes, NAMELESS], dtype=object)[named]
    said[decided.verdict == OK] = PASSED
    price, sure = _price(scores, policy), calibrate(scores.probs, policy.temperature)
    groups = []
    for key in sorted({key for key in zip(what, scores.truth, said, strict=True) if key[0]}):
        at = (what == key[0]) & (scores.truth == key[1]) & (said == key[2])
        groups.append(
            {
                **dict(zip(("what", "truth", "said"), key, strict=True)),
                "n": int(at.sum()),
                "of": int((scores.truth == key[1]).sum()),
                "cost": _sum(price, at),
                "environments": _counted(scores.environments[at]),
                "examples": _examples(scores, sure, np.flatnonzero(at), is_passed=key[2] == PASSED),
            }
        )
    groups.sort(key=lambda group: (-(group["cost"] or 0.0), -group["n"], group["truth"], group["said"]))
    return groups[:MAX_GROUPS]


def _examples(scores: PartScores, sure: Floats, rows: np.ndarray[Any, Any], *, is_passed: bool) -> list[dict[str, Any]]:
    ok = sure[:, scores.ok_mask].sum(axis=1)
    confidence = ok if is_passed else sure.max(axis=1)
    shown = sorted(rows.tolist(), key=lambda i: (-confidence[i], str(scores.part_ids[i])))[:MAX_EXAMPLES]
    return [
        {
            "part_id": str(scores.part_ids[i]),
            "lot": str(scores.lots[i]),
            "environment": str(scores.environments[i]),
            "probabilities": {name: round(float(p), 6) for name, p in zip(scores.classes, sure[i], strict=True)},
        }
        for i in shown
    ]


def _price(scores: PartScores, policy: Policy | OutOfFold) -> Floats | None:
    """What each part's verdict adds to the cost a part of the line [N]; None without money."""
    if not policy.has_money or (shares := line_shares(scores, rate=policy.rate)) is None:
        return None
    found: Floats = shares * part_costs(scores, policy)
    return found


def _sum(price: Floats | None, rows: Mask) -> float | None:
    return None if price is None else round(float(price[rows].sum()), 6)


def _counted(names: np.ndarray[Any, Any]) -> dict[str, int]:
    found = {str(name): int((names == name).sum()) for name in set(names)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
