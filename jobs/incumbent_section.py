"""The report's section on the existing inspection: it and the chosen model on the parts that it has judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from jobs.page import table
from plants.incumbent import INCUMBENT

RATES = {
    "escapes": "escapes: bad parts that pass",
    "false_alarms": "false alarms: good parts that are rejected",
    "reviews_of_good": "good parts that a person reviews",
    "reviews_of_bad": "bad parts that a person reviews",
}


def incumbent_html(reports: Mapping[str, Any]) -> str:
    """The existing inspection beside the chosen model on the same parts; nothing where it has judged none."""
    found = reports.get(INCUMBENT)
    if not found:
        return ""
    sides = (found["figures"], found["chosen"])
    rows = [["cost a part", *(_figure(side["cost"], show=_money) for side in sides)]]
    rows += [
        [words, *(_figure((side["verdicts"] or {}).get(key), show=_percent) for side in sides)]
        for key, words in RATES.items()
    ]
    rows += [
        [f"recall of {escape(name)}, by its name", _figure(row["recall"], show=_percent), ""]
        for name, row in found["figures"]["per_class"].items()
        if row["recall"]["value"] is not None
    ]
    gap = reports.get(f"against_{INCUMBENT}")
    words = (
        f"It has judged {found['figures']['n']} of {found['num_parts']} parts, in {found['figures']['n_lots']} lots. "
    )
    if gap:
        shown = _figure({**gap, "value": gap["diff"]}, show=_money)
        words += f"Difference in cost a part, the chosen model less the incumbent: {shown}. "
    words += (
        "Parts that it let pass are seen here as far as they were labelled: where labels come from what it stopped, "
        "its escapes are undercounted."
    )
    caption = "The existing inspection beside the chosen model, on the parts that it has judged"
    return table(["", "incumbent", "chosen"], rows, caption=caption) + f'<p class="small">{words}</p>'


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _money(value: float) -> str:
    return f"{value:,.0f}"


def _figure(figure: Mapping[str, Any] | None, *, show: Callable[[float], str]) -> str:
    """A number with its range, or with the words that say why there is none; each whole in its `value`."""
    if not figure or figure.get("value") is None:
        return '<span class="none">–</span>'

    def number(value: float) -> str:
        return f'<data value="{value!r}">{show(value)}</data>'

    if figure.get("low") is None:
        return f'{number(figure["value"])} <span class="range">{escape(figure.get("words") or "")}</span>'
    ends = f"{number(figure['low'])} to {number(figure['high'])}"
    return f'{number(figure["value"])} <span class="range">{ends}</span>'
