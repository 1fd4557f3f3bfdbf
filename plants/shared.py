"""Macro-F1 over the classes that all plants of a comparison share, beside that over a plant's own.

A plant of two easy classes has a higher macro-F1 than one of six, whatever models are worth. Over the fleet classes
that occur at a plant and at all its sisters the same thing is asked everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plants.counts import macro_parts, mean_f1, over_draws
from plants.plant import OK, Fleet, Plant
from plants.scores import PartScores
from plants.stats import NOT_ENOUGH_LOTS, Floats, Lots, fraction


def shared_classes(fleet: Fleet, plant: Plant) -> tuple[str, ...]:
    """The fleet classes that occur at the plant and at each of its sisters, sorted; none if no defect is among them."""
    group = (plant, *fleet.sisters(plant))
    held = [{one.classes[name].fleet for name in one.annotated} for one in group]
    found = set.intersection(*held)
    return tuple(sorted(found)) if found - {OK} else ()


def shared_f1(
    scores: PartScores, *, plant: Plant, shared: Sequence[str], n_boot: int = 500, seed: int = 0
) -> dict[str, Any] | None:
    """The mean F1 of these fleet classes that occur in truth, with its interval over lots; None where none does.

    All parts count, a part of another class where it is taken for a shared one; `n` is of parts of shared classes.
    """
    names = [plant.classes[name].fleet if name in plant.classes else name for name in scores.classes]
    levels = [*shared, *sorted(set(names) - set(shared))]
    onto = np.array([[name == level for level in levels] for name in names], dtype=np.float64).reshape(-1, len(levels))
    truth = onto[scores.truth_index].astype(bool)
    said = np.eye(len(levels), dtype=bool)[(scores.probs @ onto).argmax(axis=1)]
    counts = np.stack([truth & said, truth, said], axis=2)[:, : len(shared)].astype(np.float64)
    whole = counts.sum(axis=0)
    if not whole[:, 1].any():
        return None
    lots, value, interval = Lots(scores.lots), float(_mean_f1(whole)), None
    if lots.is_enough:
        drawn = over_draws(lots.draws(n_boot, seed=seed), lots, counts)
        interval = fraction(value, _mean_f1(drawn), n=macro_parts(whole[:, 1]), num_lots=lots.num)
    return {
        "value": round(value, 6),
        "low": round(interval.low, 6) if interval else None,
        "high": round(interval.high, 6) if interval else None,
        "words": None if interval else NOT_ENOUGH_LOTS,
        "n": int(whole[:, 1].sum()),
        "classes": list(shared),
    }


def _mean_f1(counts: Floats) -> Floats:
    """From hits, true and said [..., C, 3]."""
    hits, true, said = np.moveaxis(counts, -1, 0)
    return mean_f1(hits, true=true, said=said)
