"""Are there enough labelled images: of each class, of the fleet's classes, and for which strategy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median

import pandas as pd

from plants.findings import EVERY_PLANT, Finding, Found
from plants.plant import Fleet, Plant

RARE_RATIO = 0.1
"""A class with fewer rows than this share of the largest class is called rare."""
STRATEGIES = (
    (20, "normality only"),
    (200, "frozen features"),
    (1_000, "gradual unfreezing or LoRA"),
    (None, "full fine-tuning"),
)
"""Labelled images of a defect class below which a strategy is recommended. Source: PRACTICE.md, D3."""
FROZEN_BELOW = 200
"""Labelled images of the median defect class below which `train --strategy by-data` trains heads alone: D3's own."""


def classes(plant: Plant, rows: pd.DataFrame) -> Found:
    """Classes of one plant that are empty, single, rare or too few, and the strategy that the others allow."""
    counts = _counts(plant, rows)
    for name, n in counts.items():
        if n == 0:
            yield (
                "warning",
                "empty_class",
                f"class {name!r} is declared but has no image outside the sealed test",
                "Label some, or set its state to absent or unannotated",
            )
        elif n == 1:
            yield (
                "warning",
                "single_image_class",
                f"class {name!r} has one image outside the sealed test: nothing about it can be measured",
                "Label more of it, or merge it with a related class",
            )
    rare = _rare(counts)
    if rare:
        yield (
            "warning",
            "rare_classes",
            f"rare beside the largest class ({max(counts.values())} images): {rare}",
            "Label more of them first; class weights are used meanwhile",
        )
    yield from _enough(plant, counts)


def fleet_classes(fleet: Fleet, rows: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """Fleet classes that are rare over all these plants together; `rows` holds label rows by plant."""
    counts: Counter[str] = Counter()
    for name in rows:
        plant = fleet.plant(name)
        for word, n in _counts(plant, rows[name]).items():
            counts[plant.classes[word].fleet] += n
    rare = _rare(counts)
    if len(rows) < 2 or not rare:
        return []
    detail = f"rare in {len(rows)} plants together, beside the largest class ({max(counts.values())} images): {rare}"
    remedy = "Pooling cannot make up for them: label more wherever they occur"
    return [Finding("warning", "rare_fleet_classes", EVERY_PLANT, detail, remedy)]


def _counts(plant: Plant, rows: pd.DataFrame) -> dict[str, int]:
    return {name: int((rows["class"] == name).sum()) for name in plant.annotated}


def _rare(counts: Mapping[str, int]) -> str:
    """The rare classes with their counts."""
    largest = max(counts.values(), default=0)
    return ", ".join(f"{name!r} ({n})" for name, n in counts.items() if 0 < n < RARE_RATIO * largest)


def _enough(plant: Plant, counts: Mapping[str, int]) -> Found:
    by_strategy: dict[str, list[str]] = {}
    for name, n in counts.items():
        if name in plant.defects:
            by_strategy.setdefault(strategy(n), []).append(f"{name!r} ({n})")
    for words, names in by_strategy.items():
        is_thin = words == STRATEGIES[0][1]
        yield (
            "warning" if is_thin else "info",
            "few_labels" if is_thin else "strategy",
            f"labelled images allow {words} for: {', '.join(names)}",
            f"Label at least {STRATEGIES[0][0]} of each"
            if is_thin
            else "None; the plan fits frozen heads and fine-tunes in stages, and keeps what wins; "
            "`train --strategy by-data` holds to this",
        )


def strategy(num_labelled: float) -> str:
    """What this many labelled images of a defect class are enough for."""
    return next(words for limit, words in STRATEGIES if limit is None or num_labelled < limit)


def labelled_defects(plant: Plant, rows: pd.DataFrame) -> dict[str, int]:
    """Labelled images of every fleet class of the plant's defects, outside the sealed test; 0 where there are none."""
    counts: Counter[str] = Counter()
    for name, n in _counts(plant, rows).items():
        if name in plant.defects:
            counts[plant.classes[name].fleet] += n
    return dict(counts)


def median_class(counts: Iterable[Mapping[str, int]]) -> float:
    """Labelled images in the median defect class of these plants together; 0 without any class."""
    together: Counter[str] = Counter()
    for of_plant in counts:
        together.update(of_plant)
    return float(median(together.values())) if together else 0.0


def may_unfreeze(num_labelled: float) -> bool:
    """Whether this many labelled images in the median defect class are enough to train more than heads."""
    return num_labelled >= FROZEN_BELOW
