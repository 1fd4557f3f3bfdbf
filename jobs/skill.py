"""How well a model ranks parts and how honest its confidence is, as a picture for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.cells import number

SIDES = {
    "chosen": {"color": "#0072b2", "linestyle": "-", "linewidth": 1.6, "marker": "o", "markersize": 3},
    "frozen baseline": {"color": "#d55e00", "linestyle": "--", "linewidth": 1.3, "marker": "^", "markersize": 3},
}
"""Two of the colours that the colour-blind tell apart, and lines and marks that differ without them.
Source: Okabe and Ito, 2008."""

Report = Mapping[str, Any]


def skill_figure(chosen: Report, frozen: Report) -> Any:
    """Three panels: ROC and precision over recall of defect against ok, where parts can be good, and reliability."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.0))
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.17, top=0.8, wspace=0.28)
    roc, pr, reliability = figure.subplots(1, 3)
    for (name, style), side in zip(SIDES.items(), (chosen, frozen), strict=True):
        plain = {**style, "marker": None}
        if curves := side.get("curves"):
            roc.plot(*zip(*curves["roc"], strict=True), label=name, **plain)
            pr.plot(*zip(*curves["pr"], strict=True), label=name, **plain)
        bins = [one for one in (side.get("calibration") or {}).get("bins", ()) if one["n"]]
        if bins:
            places = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
            reliability.plot(*places, label=name, **style)
    for axes, title, across, up in (
        (roc, "ROC", "good parts flagged", "bad parts flagged"),
        (pr, "precision and recall", "recall of bad parts", "precision"),
        (reliability, "reliability", "confidence", "right"),
    ):
        if not axes.lines:
            axes.text(0.5, 0.5, "no good and bad parts here", ha="center", va="center", fontsize=8)
        _frame(axes, title=title, across=across, up=up)
    for axes in (roc, reliability):
        axes.plot([0, 1], [0, 1], color="#8c8c8c", linewidth=0.8, linestyle=":")
    named = [axes.get_legend_handles_labels() for axes in (roc, reliability)]
    handles = {label: line for lines, labels in named for line, label in zip(lines, labels, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="upper left", ncols=2, fontsize=8, frameon=False)
    return figure


def _frame(axes: Any, *, title: str, across: str, up: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def skill_words(chosen: Report) -> str:
    """What the picture of reliability comes to."""
    error = number((chosen.get("calibration") or {}).get("ece"))
    return (
        '<p class="small">On the dotted line of the last panel a model is right as often as it says; the chosen one '
        f"is off by {error} points, weighted by parts (expected calibration error).</p>"
    )
