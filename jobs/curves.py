"""The cost curve of a policy as a picture for the report: money a part against the defect rate of the line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plants.costs import is_overload

LINES = (
    ("policy", "this policy", {"color": "black", "linewidth": 2}),
    ("best_threshold", "best single threshold for each rate, in hindsight", {"color": "#00558c", "linestyle": "-."}),
    ("pass_all", "pass all", {"color": "#8c3b00", "linestyle": "--"}),
    ("reject_all", "reject all", {"color": "#8c3b00", "linestyle": ":"}),
)


def curve_figure(curve: Mapping[str, Any]) -> Any:
    """Four lines over the defect rate in percent; the policy's own interval is shaded, its estimate a thin line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    percent = [100 * rate for rate in curve["rates"]]
    estimate, low, high = (100 * rate for rate in curve["defect_rate"])
    axes.axvspan(low, high, color="#d8d8d8", linewidth=0, label="rate of the policy: low to high")
    axes.axvline(estimate, color="#8c8c8c", linewidth=1)
    for key, words, style in LINES:
        axes.plot(percent, curve[key], label=words, **style)
    axes.set_xlim(percent[0], percent[-1])
    axes.set_ylim(0, 1.15 * max(min(curve["pass_all"][-1], max(curve["reject_all"])), *curve["policy"], 1e-9))
    axes.set_xlabel("defective parts of the line (%)")
    axes.set_ylabel("expected cost a part")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def curve_words(curve: Mapping[str, Any]) -> str:
    """What the picture cannot say: the review load against what people can do."""
    load, capacity = curve["review_load"], curve["review_capacity"]
    able = "all of them" if capacity >= 1 else f"{capacity:.2%}"
    lack = ": people cannot keep up" if is_overload(load, capacity=capacity) else ""
    return (
        f"Thresholds were solved at the high end of the rate; there {load:.2%} of the parts are reviewed, and people "
        f"can review {able}{lack}. The policy is judged out of fold, by lot."
    )
