"""What `compare` prints: the matrix, the decisions, what transfer bought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from jobs.outlook import show_forecast
from jobs.verbs import new_table


def show_matrix(document: Mapping[str, Any], *, show: Console) -> None:
    """The matrix of macro-F1, or money of what names no class, and the decisions, worst plant first."""
    plants = document["plants"]
    matrix = new_table("Macro-F1 on decide, worst plant first; * is the decision", "model", *plants)
    for name, row in document["matrix"].items():
        cells = []
        for plant in plants:
            star = "*" if document["decisions"][plant]["model"] == name else ""
            cells.append(_judged(row.get(plant, {})) + star)
        matrix.add_row(name, *cells)
    show.print(matrix)
    table = new_table("Decisions", "plant", "model", "macro-F1", "money a part", "frozen baseline", "shown")
    for plant in plants:
        decision = document["decisions"][plant]
        row = document["matrix"][decision["model"]][plant]
        base = document["matrix"].get(f"frozen-{plant}-s{document['seed']}", {}).get(plant, {})
        table.add_row(
            plant,
            decision["model"],
            span(row, "macro_f1"),
            span(row, "cost"),
            span(base, "macro_f1"),
            decision["answer"],
        )
    show.print(table)
    for plant in plants:
        decision = document["decisions"][plant]
        show.print(f"{plant}: {decision['model']}: {decision['why']}", markup=False, soft_wrap=True)
        if found := document.get("details", {}).get(plant, {}).get("severity"):
            show.print(f"{plant}: severity: {found['words']}", markup=False, soft_wrap=True)
    for plant, why in document["undecided"].items():
        show.print(f"{plant}: no model: {why}", markup=False, soft_wrap=True)
    if document.get("transfer"):
        _show_transfer(document["transfer"], show=show)
    show_forecast(document.get("forecast"), show=show)
    if document.get("forecast") is None and any(model["kind"] == "without" for model in document["models"].values()):
        show.print("no forecast for a new plant: fewer than three plants were left out")
    if document["synthetic"]:
        show.print("These data are synthetic: the figures say nothing about a real plant.", style="bold")


def _judged(row: Mapping[str, Any]) -> str:
    """Macro-F1 in percent, or money a part of what names no class; empty where nothing was judged."""
    f1, cost = row.get("macro_f1"), row.get("cost")
    if f1 is not None:
        return f"{100 * f1:.1f}"
    return "" if cost is None else f"costs {cost:,.0f}"


def _show_transfer(rows: Sequence[Mapping[str, Any]], *, show: Console) -> None:
    """Macro-F1 and seconds of every method, worst plant first, and what the chosen model has over the baselines."""
    methods = list(rows[0]["methods"])
    table = new_table("What transfer bought here", "plant", *methods, "over scratch", "over classical")
    for row in rows:
        cells = []
        for found in row["methods"].values():
            f1, seconds = (found or {}).get("macro_f1"), (found or {}).get("seconds", 0.0)
            cells.append("-" if f1 is None else f"{100 * f1['value']:.1f} in {seconds:,.0f} s")
        for found in row["against"].values():
            gap = found and found["macro_f1"]
            cells.append("-" if not gap else f"{100 * gap['value']:+.1f}, {gap['words']}")
        table.add_row(row["plant"], *cells)
    show.print(table)


def span(row: Mapping[str, Any], key: str) -> str:
    """A figure of a cell with its interval, for people."""
    value = row.get(key)
    if value is None:
        return "-"
    scale, digits = (100, 1) if key == "macro_f1" else (1, 0)
    text = f"{scale * value:.{digits}f}"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return text if low is None or high is None else f"{text} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
