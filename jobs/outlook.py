"""The forecast of a new plant for people: a table in the terminal, a section of the report, one picture of the curves.

Every number is the `compare` document's own, as `jobs.forecast` made it; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console

from jobs.cells import NONE
from jobs.page import inline_svg, table
from jobs.verbs import new_table

NAMES = {"macro_f1": "macro-F1", "defect_recall": "defects not taken for good", "auc": "AUC", "cost": "money"}
NUM_DRAWN = 12
STYLES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "v", "D", "x")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9")
"""Told apart by the colour-blind; marks and lines differ too. Source: Okabe and Ito, 2008."""
Found = Mapping[str, Any]


def forecast_words(found: Found) -> str:
    """What the next plant can expect, in a sentence or two."""
    first = found["next"]["day_one"]["macro_f1"]
    if first["value"] is None:
        return f"A new plant cannot be forecast: {first['words']}."
    many = f"{first['num_plants']} plants, each left out once"
    caught = found["next"]["day_one"]["defect_recall"]
    recall = (
        "" if caught["value"] is None else f", {_percent(caught['value'])} % ({_percents(caught)}) of defects found"
    )
    return (
        f"On its first day a new plant would get macro-F1 {_percent(first['value'])} ({_percents(first)}){recall}; "
        "labelled parts from which it holds its floor: "
        f"{_labels(found['next']['labels'])}. {100 * found['level']:.0f} % intervals from {many}."
    )


def show_forecast(found: Found | None, *, show: Console) -> None:
    """The table of the terminal, worst day first; nothing where nothing was forecast."""
    if not found:
        return
    title = "A new plant, by leaving each out: what happened (what the others forecast), ! outside the interval"
    forecast = new_table(
        title, "plant", "day one: macro-F1", "defects not taken for good", "labels to its floor", "floor"
    )
    for row in found["plants"]:
        cells = []
        for metric in ("macro_f1", "defect_recall"):
            one = row["day_one"][metric]
            mark = " !" if one["holds"] is False else ""
            cells.append(f"{_percent(one['found']['value'])} ({_percents(one['forecast'])}){mark}")
        labels = row["labels"]
        reached = (labels["found"] or {}).get("words", row["words"] or "-")
        mark = " !" if labels["holds"] is False else ""
        forecast.add_row(
            row["plant"], *cells, f"{reached} ({_labels(labels['forecast'])}){mark}", labels["floor"] or "-"
        )
    show.print(forecast)
    show.print(forecast_words(found), markup=False)


def forecast_html(found: Found | None) -> str:
    """The section of the report; empty where nothing was forecast."""
    if not found:
        return ""
    held = found["held"]
    counts = ", ".join(f"{NAMES[m]} {held[m]['hits']} of {held[m]['of']}" for m in NAMES if held[m]["of"])
    near = held["labels_within_factor_2"]
    words = (
        "Each plant was left out of a pooled model in turn; its forecast is made of the other plants alone, and holds "
        "how plants differ and what was measured wrongly. Then its labels arrive lot by lot, and a head is refitted, "
        "but no stage. Money is the share of what passing all or rejecting all costs, with "
        f"thresholds from the costs alone. What happened lay inside: {escape(counts)}. Labels to the floor were within "
        f"a factor of two at {near['hits']} of {near['of']}."
    )
    return (
        f"<h2>What a new plant can expect</h2><p>{escape(forecast_words(found))}</p>{_day_one(found)}{_to_floor(found)}"
        f'{_picture(found)}<p class="small">{words}</p>'
    )


def _day_one(found: Found) -> str:
    """Two tables: what the model says of parts, and what that ranks and costs."""
    halves = (("macro_f1", "defect_recall"), ("auc", "cost"))
    captions = ("Its first day, no label of it known, in percent", "The same: ranking, and money as a share")
    return "".join(_metrics(found, half, caption=words) for half, words in zip(halves, captions, strict=True))


def _metrics(found: Found, metrics: Sequence[str], *, caption: str) -> str:
    rows = []
    for row in found["plants"]:
        cells = [f'<a href="#plant-{escape(row["plant"])}">{escape(row["plant"])}</a>']
        for metric in metrics:
            one = row["day_one"][metric]
            outside = ' <span class="chosen">outside</span>' if one["holds"] is False else ""
            cells += [_cell(one["found"]), _cell(one["forecast"]) + outside]
        rows.append(cells)
    following = ["<em>the next plant</em>"]
    for metric in metrics:
        following += [NONE, _cell(found["next"]["day_one"][metric])]
    columns = [column for metric in metrics for column in (NAMES[metric], "forecast")]
    return table(["plant", *columns], [*rows, following], caption=caption)


def _to_floor(found: Found) -> str:
    rows = []
    for row in found["plants"]:
        one = row["labels"]
        reached = one["found"]
        if reached is None:
            cell = NONE + (f" {escape(row['words'])}" if row["words"] else "")
        else:
            cell = escape(reached["words"]) if reached["labels"] is None else _data(reached["labels"], reached["words"])
        told = _cell(one["forecast"], is_count=True)
        told += ' <span class="chosen">outside</span>' if one["holds"] is False else ""
        rows.append([escape(row["plant"]), escape(one["floor"] or "–"), cell, told])
    rows.append(["<em>the next plant</em>", "", NONE, _cell(found["next"]["labels"], is_count=True)])
    columns = ["plant", "floor", "labelled parts to it", "forecast"]
    return table(columns, rows, num_words=2, caption="Labels to its floor")


def _picture(found: Found) -> str:
    shown = [row for row in found["plants"] if len(row["curve"]) > 1][:NUM_DRAWN]
    if not shown:
        return ""
    label = "Macro-F1 by labelled parts at every plant that was left out"
    return inline_svg(curves_figure(shown), name="forecast", label=label)


def curves_figure(rows: Sequence[Found]) -> Any:
    """A line a plant: macro-F1 in percent against labelled parts, day one at the left, intervals as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(rows):
        points = [(point["labels"], point["macro_f1"]) for point in row["curve"]]
        points = [(labels, told) for labels, told in points if told["value"] is not None]
        if not points:
            continue
        values = [100 * told["value"] for _, told in points]
        at = [max(labels, 1) * (1 + 0.015 * i) for labels, _ in points]
        down, up = (
            [
                abs(100 * told[end] - value) if told[end] is not None else 0.0
                for (_, told), value in zip(points, values, strict=True)
            ]
            for end in ("low", "high")
        )
        style = {"color": COLOURS[i % 6], "linestyle": STYLES[i % 4], "marker": MARKS[i % 6]}
        axes.errorbar(
            at, values, yerr=(down, up), label=row["plant"], linewidth=1.4, markersize=4, elinewidth=0.5, **style
        )
    axes.set_xscale("log")
    ticks = sorted(
        {point["labels"] for row in rows for point in row["curve"] if point["labels"] < row["curve"][-1]["labels"]}
    )
    axes.set_xticks([max(tick, 1) for tick in ticks], ["day one" if tick == 0 else str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labelled parts of the plant")
    axes.set_ylabel("macro-F1 (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _cell(told: Found, *, is_count: bool = False) -> str:
    """A number with its range, or the words in their place."""
    if told["value"] is None:
        return f'{NONE} <span class="range">{escape(told["words"] or "")}</span>'
    show = _count if is_count else _percent
    ends = [_data(told[end], show(told[end])) for end in ("low", "high") if told[end] is not None]
    words = f"at most {ends[-1]}" if is_count else " to ".join(ends)
    span = f' <span class="range">{words}</span>' if len(ends) == 2 else ""
    return _data(told["value"], show(told["value"])) + span


def _data(value: float, words: str) -> str:
    return f'<data value="{value!r}">{escape(words)}</data>'


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _percents(told: Found) -> str:
    return told["words"] if told["value"] is None else f"{_percent(told['low'])} to {_percent(told['high'])}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _labels(told: Found) -> str:
    if told["low"] is None or told["value"] is None:
        return told["words"] or "-"
    return f"about {_count(told['value'])}, at most {_count(told['high'])}"
