"""Whether the verdict is right where the right answer is known, and how often it says "better" where nothing is.

Fleets are simulated: in each, five plants, one for every truth there is: its own model is best, the pooled one is, the
warm-started one is, six models of one skill, and too little data. Models see a part through noise that they share (a
hard part is hard for all) and noise of their own. A model's true cost is what its published policy costs on very many
new parts, and "false" is a claim that the planted skills deny. Not simulated: that a mean of models is made of them.
What is measured is `plants.verdict.decide` itself. Two other rules see the same parts: the best estimate, with a plain
95 % interval of each model against the cheapest, as comparisons are usually done, and the cheapest unless another is
shown to be better. Prints one JSON object last; `--quick` is a smoke run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_verdict.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plants.costs import expected_cost, out_of_fold, solve
from plants.plant import Costs
from plants.scores import PartScores, softmax
from plants.stats import Rate
from plants.verdict import MARGIN_COST, Candidate, decide, difference

CLASSES = ("ok", "dent", "crack", "chip")
LOG_PRIOR = np.log([0.70, 0.18, 0.09, 0.03])
LOT_SIZES = (3, 12)
COSTS = Costs(miss=50_000, false_alarm=5_000, review=500, defect_rate=(0.05, 0.03, 0.08))
IDLE = min(0.08 * COSTS.miss, 0.92 * COSTS.false_alarm)
SHARED = 0.6
"""Of the variance of what a model sees in a part, the share that all models see alike."""
WITHIN_LOT = 0.1
"""Of either kind of noise, the share that is the same for all parts of a lot."""
PRICES = {"frozen": 0, "sister": 0, "own": 1, "pooled": 1, "warm": 2, "average": 2}
"""Branch passes an image."""
PLAIN, BETTER = 2.6, 3.6
"""How far apart a model sees the classes, in deviations of its noise: macro-F1 about 0.75 and 0.9."""
TRUTHS = ("own", "pooled", "warm", "no difference", "too little data")
NUM_LOTS = (20, 40, 80)
FEW_LOTS = 8
NEW_LOTS = 4_000
QUICK = 3

Floats = npt.NDArray[np.float64]


def parts(num_lots: int, *, skills: Mapping[str, float], rng: np.random.Generator) -> dict[str, PartScores]:
    """What each model says of the parts of this many lots."""
    lot = np.repeat(np.arange(num_lots), rng.integers(LOT_SIZES[0], LOT_SIZES[1] + 1, num_lots))
    truth = (LOG_PRIOR + rng.gumbel(size=(len(lot), len(CLASSES)))).argmax(axis=1)

    def noise() -> Floats:
        by_lot = rng.normal(size=(num_lots, len(CLASSES)))[lot]
        by_part = rng.normal(size=(len(lot), len(CLASSES)))
        drawn: Floats = np.sqrt(WITHIN_LOT) * by_lot + np.sqrt(1 - WITHIN_LOT) * by_part
        return drawn

    shared, found = noise(), {}
    for name, skill in skills.items():
        seen = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * noise()
        seen[np.arange(len(lot)), truth] += skill
        found[name] = PartScores(
            part_ids=np.arange(len(lot)),
            lots=lot,
            environments=np.full(len(lot), "line", dtype=object),
            truth=np.array(CLASSES, dtype=object)[truth],
            probs=softmax(skill * seen + LOG_PRIOR),
            classes=CLASSES,
            ok=("ok",),
        )
    return found


def candidates(num_lots: int, *, skills: Mapping[str, float], rng: np.random.Generator) -> list[Candidate]:
    """The models of a plant, judged on this many lots."""
    return [
        Candidate(
            name,
            name,
            (name,),
            PRICES[name],
            scores,
            solve(scores, costs=COSTS, plant="simulated"),
            out_of_fold(scores, costs=COSTS, plant="simulated"),
        )
        for name, scores in parts(num_lots, skills=skills, rng=rng).items()
    ]


def plain_rule(found: Sequence[Candidate], *, seed: int) -> tuple[str, list[tuple[str, str, str]]]:
    """The best estimate, and what plain 95 % intervals of each model against the cheapest to serve state."""
    cost = {one.name: expected_cost(one.scores, one.judged_by) or 0.0 for one in found}
    floor = min(found, key=lambda one: (one.serving_cost, one.name))
    claims = []
    for one in found:
        gap = difference(one, floor, seed=seed)
        if one is not floor and gap["low"] is not None and not gap["low"] <= 0 <= gap["high"]:
            claims.append((one.name, "better" if gap["high"] < 0 else "worse", floor.name))
    return min(cost, key=lambda name: cost[name]), claims


def claims_of(decision: Any) -> list[tuple[str, str, str]]:
    """Every (model, better or worse, model) that a verdict states."""
    said = [(test["model"], test["words"], test["against"]) for test in decision.tests]
    nearest = decision.interval
    if nearest and nearest["low"] is not None and not nearest["low"] <= 0 <= nearest["high"]:
        said.append((decision.model, "better" if nearest["high"] < 0 else "worse", decision.against))
    if decision.by_f1:
        said.append((decision.model, decision.by_f1["words"], decision.against))
    return [claim for claim in said if claim[1] in ("better", "worse")]


def is_false(claim: tuple[str, str, str], *, skills: Mapping[str, float]) -> bool:
    """Whether the skills that were planted say otherwise; models of one skill differ in nothing."""
    model, word, other = claim
    return not (skills[model] > skills[other] if word == "better" else skills[model] < skills[other])


def simulate(seed: int, *, num_lots: int) -> list[dict[str, Any]]:
    """One fleet: a row for each plant and rule."""
    rows = []
    for at, truth in enumerate(TRUTHS):
        skills = {
            name: BETTER if name == truth or (truth == "too little data" and name == "own") else PLAIN
            for name in PRICES
        }
        rng = np.random.default_rng([seed, at, num_lots])
        found = candidates(FEW_LOTS if truth == "too little data" else num_lots, skills=skills, rng=rng)
        new = parts(NEW_LOTS, skills=skills, rng=rng)
        cost = {one.name: expected_cost(new[one.name], one.policy) or 0.0 for one in found}
        verdict = decide(found, idle_cost=IDLE, seed=seed)
        shown = [claim[0] for claim in claims_of(verdict) if claim[1] == "better" and claim[2] in ("frozen", "sister")]
        is_worse = cost[verdict.model] - cost[verdict.against or verdict.model] > MARGIN_COST * IDLE
        rules = {
            "verdict": (verdict.model, claims_of(verdict), verdict.answer),
            "best estimate": (*plain_rule(found, seed=seed), None),
            "cheapest unless better is shown": (verdict.model if shown else "frozen", [], None),
        }
        rows += [
            {
                "truth": truth,
                "rule": rule,
                "model": model,
                "answer": answer,
                "is_false": any(is_false(claim, skills=skills) for claim in claims)
                or (answer == "not worse and cheaper" and is_worse),
                "says_better": any(claim[1] == "better" and claim[0] == model for claim in claims),
                "lost": (cost[model] - min(cost.values())) / IDLE,
                "passes": PRICES[model],
            }
            for rule, (model, claims, answer) in rules.items()
        ]
    return rows


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether the verdict is the one that the truth asks for."""
    truth = row["truth"]
    if truth == "too little data":
        return bool(row["answer"] in ("not enough lots", "not enough data"))
    if truth == "no difference":
        return bool(row["answer"] in ("no difference shown", "not worse and cheaper"))
    return bool(row["model"] == truth)


def share(rows: Sequence[Mapping[str, Any]], hits: Sequence[bool]) -> dict[str, Any]:
    """A rate with Wilson's interval."""
    rate = Rate(sum(hits), len(rows))
    interval = rate.interval()
    assert interval is not None
    return {"value": rate.value, "low": round(interval.low, 4), "high": round(interval.high, 4), "n": rate.of}


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Truth -> rule -> how often it is right, says "better", says so falsely, and what its choice loses."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["truth"], row["rule"]].append(row)
    found: dict[str, Any] = defaultdict(dict)
    for (truth, rule), group in groups.items():
        found[truth][rule] = {
            "right": share(group, [is_right(row) for row in group]) if rule == "verdict" else None,
            "took_the_best": share(group, [row["model"] == truth for row in group]) if truth in PRICES else None,
            "says_better": share(group, [row["says_better"] for row in group]),
            "false": share(group, [row["is_false"] for row in group]),
            "lost_of_idle": round(float(np.mean([row["lost"] for row in group])), 5),
            "took_the_cheapest": share(group, [row["passes"] == 0 for row in group]),
            "branch_passes": round(float(np.mean([row["passes"] for row in group])), 2),
        }
    return found


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--seeds", type=int, default=100)
    ask.add_argument("--lots", type=int, nargs="+", default=list(NUM_LOTS))
    ask.add_argument("--first-seed", type=int, default=0)
    ask.add_argument("--processes", type=int, default=2)
    given = ask.parse_args()
    seeds = range(given.first_seed, given.first_seed + (QUICK if given.quick else given.seeds))
    shown: dict[str, Any] = {
        "name": "verdict",
        "seeds": [seeds.start, seeds.stop],
        "level": 0.95,
        "margin": MARGIN_COST,
    }
    by_lots = {}
    with ProcessPoolExecutor(given.processes) as pool:
        for num_lots in given.lots:
            begun = time.monotonic()
            rows = [row for fleet in pool.map(partial(simulate, num_lots=num_lots), seeds) for row in fleet]
            by_lots[str(num_lots)] = table(rows)
            print(f"{num_lots} lots: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps({**shown, "by_lots": by_lots}))


if __name__ == "__main__":
    main()
