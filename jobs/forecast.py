"""What a new plant can expect, and how well that would have been known of every plant of the fleet, by doing it.

Every plant is left out in turn (`train --leave-out all`); what happened there is forecast from what happened at the
others, and beside it stands what did. The forecast of the plant that is not there yet is made from all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from plants.arrival import MARGIN, Reached, floor_of, labels_to_floor, risen
from plants.forecast import LEVEL, LOG, MIN_PLANTS, ODDS, Forecast, labels_of_new_plant, new_plant, within_factor
from plants.plant import Fleet, Plant

METRICS = {"macro_f1": ODDS, "defect_recall": ODDS, "auc": ODDS, "cost": LOG}
Arrival = Mapping[str, Any]
"""As `jobs.arrival.arrival` makes it."""


def forecast(fleet: Fleet, *, arrivals: Sequence[Arrival], margin: float = MARGIN) -> dict[str, Any] | None:
    """The `forecast` part of the `compare` document; None where fewer than three plants were left out.

    arrivals: of every plant that was. margin: see `plants.arrival.floor_of`.
    """
    if len(arrivals) < MIN_PLANTS:
        return None
    reached = {a["plant"]: _reached(fleet.plant(a["plant"]), a, margin=margin) for a in arrivals}
    plants = [_plant(a, among=arrivals, reached=reached) for a in arrivals]
    return {
        "level": LEVEL,
        "margin": margin,
        "next": {
            "day_one": {metric: asdict(_day_one(metric, arrivals)) for metric in METRICS},
            "labels": asdict(_labels([found for _, found in reached.values()])),
        },
        "held": {
            **{m: _count([row["day_one"][m]["holds"] for row in plants]) for m in METRICS},
            "labels": _count([row["labels"]["holds"] for row in plants]),
            "labels_within_factor_2": _count([row["labels"]["is_near"] for row in plants]),
        },
        "plants": sorted(plants, key=lambda row: _worst(row["day_one"]["macro_f1"]["found"])),
    }


def _plant(
    arrival: Arrival, *, among: Sequence[Arrival], reached: Mapping[str, tuple[str | None, Reached | None]]
) -> Any:
    """What happened at a plant beside what the others say would."""
    name = arrival["plant"]
    others = [other for other in among if other["plant"] != name]
    day_one = {}
    for metric in METRICS:
        found, told = arrival["day_one"][metric], _day_one(metric, others)
        day_one[metric] = {
            "found": found,
            "forecast": asdict(told),
            "holds": told.holds(found["value"]),
        }
    words, found = reached[name]
    told = _labels([reached[other["plant"]][1] for other in others])
    labels = {
        "floor": words,
        "found": asdict(found) | {"words": found.words} if found else None,
        "forecast": asdict(told),
        "holds": _labels_hold(told, found),
        "is_near": _labels_are_near(told, found),
    }
    return {**arrival, "day_one": day_one, "labels": labels}


def _labels_hold(told: Forecast, found: Reached | None) -> bool | None:
    """Whether what was needed lies inside; that more was needed than the bound is known without the number."""
    if found is None or found.labels is not None:
        return told.holds(found.labels) if found else None
    return False if told.high is not None and (found.more_than or 0) > told.high else None


def _labels_are_near(told: Forecast, found: Reached | None, *, factor: float = 2.0) -> bool | None:
    """Whether the estimate is within the factor of what was needed, as far as that is known."""
    if found is None or told.value is None:
        return None
    if found.labels is not None:
        return within_factor(told.value, found.labels, factor=factor)
    return False if (found.more_than or 0) > factor * told.value else None


def _reached(plant: Plant, arrival: Arrival, *, margin: float) -> tuple[str | None, Reached | None]:
    """The plant's floor in words, and the labels that it took; None where there is no floor or no label."""
    costs = plant.costs
    recalls = {name: costs.recall_floor_by_class.get(name, costs.recall_floor) for name in plant.defects if plant.ok}
    levels = [point["macro_f1"]["value"] for point in arrival["curve"]]
    end = None if len(levels) < 2 or None in levels else float(risen(levels)[-1])
    floor = floor_of(recalls, end=end, margin=margin)
    if floor is None:
        return None, None
    gaps = [floor.gap(point) for point in arrival["curve"]]
    if len(gaps) < 2 or any(gap is None for gap in gaps):
        return floor.words, None
    sizes = [point["labels"] for point in arrival["curve"]]
    return floor.words, labels_to_floor([gap for gap in gaps if gap is not None], sizes=sizes)


def _day_one(metric: str, arrivals: Sequence[Arrival]) -> Forecast:
    return new_plant([arrival["day_one"][metric] for arrival in arrivals], scale=METRICS[metric])


def _labels(found: Sequence[Reached | None]) -> Forecast:
    return labels_of_new_plant([one for one in found if one is not None])


def _count(held: Sequence[bool | None]) -> dict[str, int]:
    """How often a forecast held, of those that can be judged."""
    told = [one for one in held if one is not None]
    return {"hits": sum(told), "of": len(told)}


def _worst(figure: Mapping[str, Any]) -> float:
    return -1.0 if figure["value"] is None else float(figure["value"])
