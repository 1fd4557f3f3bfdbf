"""Candidates of a verdict, made of simulated parts."""

from __future__ import annotations

import numpy as np

from plants.costs import out_of_fold, solve, solve_by_novelty
from plants.plant import Costs
from plants.scores import PartScores
from plants.verdict import Candidate

COSTS = Costs(miss=50_000, false_alarm=5_000, review=500, defect_rate=(0.1, 0.05, 0.2))
IDLE = 0.8 * 5_000
FIELDS = ("part_ids", "lots", "environments", "truth", "classes", "ok")


def candidate(
    name: str, *, skill: float, seed: int = 0, price: int = 1, num_lots: int = 100, ok: bool = True, noise: int = 0
) -> Candidate:
    """A model that separates good from cracked parts by `skill` deviations; equal seed and noise, equal mistakes."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(2 * num_lots) < 0.4, "crack", "good").astype(object)
    draws = np.random.default_rng((seed, noise)).normal(0, 1, len(truth))
    p = 1 / (1 + np.exp(-2 * (np.where(truth == "crack", skill, -skill) + draws)))
    scores = PartScores(
        part_ids=np.arange(len(truth)),
        lots=np.array([f"lot-{i // 2}" for i in range(len(truth))]),
        environments=np.full(len(truth), "line"),
        truth=truth,
        probs=np.stack([1 - p, p], axis=1),
        classes=("good", "crack"),
        ok=("good",) if ok else (),
    )
    policy = solve(scores, costs=COSTS, plant="north")
    judged_by = out_of_fold(scores, costs=COSTS, plant="north") if ok else policy
    return Candidate(name, "own", (name,), price, scores, policy, judged_by)


def near_good(*, good_only: bool) -> Candidate:
    """The distance to good parts, which tells cracks apart well, at a plant with or without cracks on decide."""
    scores = candidate("n", skill=2).scores
    novelty = np.where(scores.is_good, 0.8, 2.0) + np.random.default_rng(0).normal(0, 0.1, len(scores))
    probs = np.stack([1 / (1 + novelty**4), np.zeros(len(scores))], axis=1)
    scores = PartScores(**{**{k: getattr(scores, k) for k in FIELDS}, "probs": probs, "novelty": novelty})
    scores = scores.take(scores.is_good) if good_only else scores
    policy = solve_by_novelty(scores, costs=COSTS, plant="north")
    judged_by = out_of_fold(scores, costs=COSTS, plant="north", solver=solve_by_novelty)
    return Candidate("normality-north-s0", "normality", ("n",), 0, scores, policy, judged_by)
