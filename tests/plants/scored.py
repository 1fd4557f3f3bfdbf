"""Scores of simulated parts."""

from __future__ import annotations

import numpy as np

from plants.scores import PartScores, softmax

CLASSES = ("ok", "dent", "crack")


def parts(
    n: int = 240, *, seed: int = 0, noise: int = 1, apart: float = 1.5, lots: int = 40, decimals: int = 6
) -> PartScores:
    """Parts whose truth follows `seed` and whose scores follow `noise`."""
    truth = np.random.default_rng(seed).choice(3, n, p=[0.6, 0.25, 0.15])
    logits = np.random.default_rng([seed, noise]).normal(size=(n, 3))
    logits[np.arange(n), truth] += apart
    return PartScores(
        part_ids=[f"part{i}" for i in range(n)],
        lots=[f"lot{i % lots}" for i in range(n)],
        environments=[f"line{i % 2}" for i in range(n)],
        truth=np.array(CLASSES)[truth],
        probs=np.round(softmax(logits), decimals),
        classes=CLASSES,
        ok=("ok",),
    )


def of(truth: list[str], said: list[str], *, classes: tuple[str, ...] = CLASSES, **changes) -> PartScores:
    """Parts for which the model said this, with certainty."""
    probs = np.zeros((len(truth), len(classes)))
    probs[np.arange(len(said)), [classes.index(name) for name in said]] = 1
    names = [str(i) for i in range(len(truth))]
    fields = {"part_ids": names, "lots": names, "environments": ["e"] * len(truth), "truth": truth}
    return PartScores(**(fields | {"probs": probs, "classes": classes, "ok": ("ok",)} | changes))
