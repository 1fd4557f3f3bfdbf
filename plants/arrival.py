"""A new plant's labels as they come in: in which orders, how good a model is at each number of them, when they suffice.

Labels are counted in parts, of all classes, as a person has to look at each. Nothing here fits anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from plants.counts import confusions, macro_f1, macro_parts, over_draws
from plants.scores import PartScores
from plants.stats import NOT_ENOUGH_LOTS, Floats, Lots, fraction

SIZES = (5, 10, 20, 50, 100, 200, 500, 1_000)
"""Labelled parts at which a curve is measured, and all there are, up to `MAX_PARTS`."""
MAX_PARTS = 2_000
LEAST = SIZES[0]
"""Fewer labels than this are not told apart."""
MARGIN = 0.02
"""How far below the macro-F1 of all the plant's labels its floor lies, where `costs` has none."""
Figure = dict[str, Any]


def sizes_up_to(num_parts: int) -> list[int]:
    """The sizes of a curve of a plant with so many labelled parts; the last is all of them, or `MAX_PARTS`."""
    most = min(num_parts, MAX_PARTS)
    return sorted({size for size in SIZES if size < most} | ({most} if most else set()))


def arrivals(
    parts: Sequence[Any], lots: Sequence[Any], captured_at: Sequence[Any], *, num: int, seed: int
) -> list[list[str]]:
    """At most `num` orders of the parts, lots undivided; fewer where there are fewer lots.

    Where every lot's time is known, lots come as they were taken: the first order begins with the earliest, the others
    later, at even distances, and go round. Elsewhere each order is drawn.
    """
    table = pd.DataFrame({"part": list(parts), "lot": list(lots), "at": pd.to_datetime(list(captured_at), utc=True)})
    by_lot = table.sort_values(["at", "part"]).groupby("lot", sort=True)
    members, times = by_lot["part"].agg(list), by_lot["at"].min()
    names = np.asarray(members.index, dtype=object)
    num = min(num, len(names))
    if times.notna().all():
        names = names[np.argsort(times.to_numpy(), kind="stable")]
        orders = [np.roll(names, -(turn * len(names) // num)) for turn in range(num)]
    else:
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(names) for _ in range(num)]
    return [[str(part) for lot in order for part in members[lot]] for order in orders]


def level(orders: Sequence[PartScores], *, n_boot: int = 500, seed: int = 0) -> dict[str, Any]:
    """How good heads are that learned from as many labels in several orders, judged on the same parts: means over them.

    `macro_f1` and `defect_recall`, the share of bad parts whose most probable class is not good, as figures `{value,
    low, high, words, n}`, and `caught`, that share by class. Intervals are over lots and over orders, both drawn.
    """
    first = orders[0]
    lots, bad = Lots(first.lots), ~first.is_good if first.ok else np.zeros(len(first), dtype=bool)
    counts = np.stack([confusions(scores) for scores in orders])  # [O, N, C, C]
    caught = np.stack([bad & ~scores.ok_mask[scores.predicted_index] for scores in orders])  # [O, N]
    true = counts[0].sum(axis=(0, 2))
    f1_drawn = recall_drawn = None
    if lots.is_enough:
        rng = np.random.default_rng(seed)
        draws, picked = lots.draws(n_boot, seed=seed), rng.integers(0, len(orders), size=(n_boot, len(orders)))
        drawn = np.stack([over_draws(draws, lots, one) for one in counts])
        f1_drawn = _over_orders(macro_f1(drawn), picked)
        hits, of = (over_draws(draws, lots, values) for values in (caught.T.astype(np.float64), bad.astype(np.float64)))
        with np.errstate(invalid="ignore", divide="ignore"):
            recall_drawn = _over_orders((hits / of[:, None]).T, picked)
    value = float(macro_f1(counts.sum(axis=1)).mean())
    recall = float(caught.sum(axis=1).mean() / bad.sum()) if bad.any() else math.nan
    return {
        "macro_f1": _figure(value, f1_drawn, n=macro_parts(true), num_lots=lots.num),
        "defect_recall": _figure(recall, recall_drawn, n=float(bad.sum()), num_lots=lots.num),
        "caught": {
            name: float(caught[:, first.truth_index == i].mean())
            for i, name in enumerate(first.classes)
            if name not in first.ok and (first.truth_index == i).any()
        },
    }


def _over_orders(values: Floats, picked: npt.NDArray[np.int64]) -> Floats:
    """Means of [O, B] over orders drawn with replacement [B, O]: of draw b those that it picked."""
    mean: Floats = values.T[np.arange(len(picked))[:, None], picked].mean(axis=1)
    return mean


def _figure(value: float, drawn: Floats | None, *, n: float, num_lots: int) -> Figure:
    if not math.isfinite(value):
        return {"value": None, "low": None, "high": None, "words": "nothing counted", "n": n}
    found = None if drawn is None else fraction(value, drawn, n=n, num_lots=num_lots)
    ends = {"low": found.low, "high": found.high} if found else {"low": None, "high": None}
    return {"value": value, **ends, "words": None if found else NOT_ENOUGH_LOTS, "n": n}


@dataclass(frozen=True, slots=True)
class Floor:
    """What a plant's model must hold: the recall floors of its `costs`, or a macro-F1."""

    recalls: Mapping[str, float]
    """Class -> share of its parts that must not be taken for good; empty where macro-F1 is the floor."""
    macro_f1: float | None
    words: str

    def gap(self, found: Mapping[str, Any]) -> float | None:
        """How far a `level` lies above the floor, its worst class; None where nothing of it was counted."""
        if self.recalls:
            gaps = [found["caught"][name] - least for name, least in self.recalls.items() if name in found["caught"]]
            return min(gaps) if gaps else None
        value = found["macro_f1"]["value"]
        return None if value is None or self.macro_f1 is None else value - self.macro_f1


def floor_of(recalls: Mapping[str, float], *, end: float | None, margin: float = MARGIN) -> Floor | None:
    """The plant's own recall floors where it has any, else so much below `end`, the macro-F1 of all labels; else None.

    From the second on, all labels that are left bring less than the margin.
    """
    if asked := {name: least for name, least in recalls.items() if least > 0}:
        words = ", ".join(f"{least:.0%} of {name}" for name, least in asked.items())
        return Floor(asked, None, f"not taken for good: {words}")
    if end is None:
        return None
    words = f"macro-F1 {100 * (end - margin):.1f}, {100 * margin:g} points under that of all labels"
    return Floor({}, end - margin, words)


@dataclass(frozen=True, slots=True)
class Reached:
    """The labels from which a floor is held, or that more than so many were needed."""

    labels: float | None
    more_than: int | None = None

    @property
    def words(self) -> str:
        """For people."""
        return f"more than {self.more_than:,}" if self.labels is None else f"{self.labels:,.0f}"


def risen(levels: Sequence[float]) -> Floats:
    """The levels of a curve with those that fall averaged with the ones before, as labels harm by chance alone.

    Source: isotonic regression, Barlow et al., Statistical Inference under Order Restrictions, 1972.
    """
    found: Floats = IsotonicRegression().fit_transform(np.arange(len(levels)), np.asarray(levels, dtype=np.float64))
    return found


def labels_to_floor(gaps: Sequence[float], *, sizes: Sequence[int]) -> Reached:
    """The fewest labels from which a curve lies on its floor or above, from its distance to the floor at every size.

    sizes: ascending, the first 0 (day one). The curve is first made to rise; between two sizes it is straight in
    log(1 + labels).
    """
    rising = risen(gaps)
    held = np.flatnonzero(rising >= -1e-9)
    if not len(held):
        return Reached(None, int(sizes[-1]))
    i = int(held[0])
    if i == 0:
        return Reached(0.0)
    share = -rising[i - 1] / (rising[i] - rising[i - 1])
    return Reached(math.expm1((1 - share) * math.log1p(sizes[i - 1]) + share * math.log1p(sizes[i])))
