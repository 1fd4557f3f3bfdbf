"""What a sealed test says to a decision: whether it stands, and whether its figures were what had been promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

Standing = Literal["confirmed", "not contradicted", "contradicted"]


def is_of(row: Mapping[str, Any], decision: Mapping[str, Any]) -> bool:
    """Whether a row of the sealed test is of what was decided for, in float or in INT8."""
    tried = {row.get("bundle"), row.get("float_bundle")} - {None}
    return bool(tried & {decision.get("bundle"), decision.get("float_bundle")})


def standing(gain: Mapping[str, Any] | None) -> Standing | None:
    """Of a decision against the frozen baseline, from the paired difference on the sealed test.

    None where there is no difference to take: the frozen baseline was decided for, or there are too few lots.
    """
    if gain is None or gain["low"] is None:
        return None
    if gain["low"] <= 0 <= gain["high"]:
        return "not contradicted"
    return "confirmed" if (gain["high"] < 0) == (gain["metric"] == "cost") else "contradicted"


def against_promise(found: Mapping[str, Any], promised: Mapping[str, Any]) -> dict[str, Any] | None:
    """Sealed figures less those of `decide`, from two cells of the matrix: `{metric, diff, low, high, words}`.

    In money where both have it, else in macro-F1; None where either has no interval. The parts are others, so the two
    intervals are joined as independent ones are. Source: Zou and Donner, Statistics in Medicine 27, 2008.
    """
    for metric in ("cost", "macro_f1"):
        here, there = (_interval(cell, metric) for cell in (found, promised))
        if here is None or there is None:
            continue
        (value, low, high), (said, said_low, said_high) = here, there
        diff = value - said
        ends = (diff - math.hypot(value - low, said_high - said), diff + math.hypot(high - value, said - said_low))
        words = "as promised"
        if not ends[0] <= 0 <= ends[1]:
            words = "worse than promised" if (diff > 0) == (metric == "cost") else "better than promised"
        return {"metric": metric, "diff": diff, "low": ends[0], "high": ends[1], "words": words}
    return None


def _interval(cell: Mapping[str, Any], metric: str) -> tuple[float, float, float] | None:
    value, low, high = (cell.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    return None if value is None or low is None or high is None else (value, low, high)
