"""The report's section on the existing inspection: it and the chosen model on the parts that it has judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.cells import figure_of, money, percent, text
from jobs.page import table
from plants.incumbent import INCUMBENT

AGAINST = f"against_{INCUMBENT}"
"""Where a document holds the paired difference in cost, the chosen model less the existing inspection."""
RATES = {
    "escapes": "escapes: bad parts that pass",
    "false_alarms": "false alarms: good parts that are rejected",
    "reviews_of_good": "good parts that a person reviews",
    "reviews_of_bad": "bad parts that a person reviews",
}


def incumbent_html(reports: Mapping[str, Any], *, where: str = "") -> str:
    """The existing inspection beside the chosen model on the same parts; nothing where it has judged none.

    reports: a plant's details of `compare`, or its row of `evaluate`; older ones hold no figures of it.
    """
    found = reports.get(INCUMBENT)
    if not found or "figures" not in found:
        return ""
    sides = (found["figures"], found["chosen"])
    rows = [["cost a part", *(figure_of(side["cost"], show=money) for side in sides)]]
    rows += [
        [words, *(figure_of((side["verdicts"] or {}).get(key), show=percent) for side in sides)]
        for key, words in RATES.items()
    ]
    rows += [
        [f"recall of {text(name)}, by its name", figure_of(row["recall"], show=percent), ""]
        for name, row in found["figures"]["per_class"].items()
        if row["recall"]["value"] is not None
    ]
    gap = reports.get(AGAINST)
    words = (
        f"It has judged {found['figures']['n']} of {found['num_parts']} parts, in {found['figures']['n_lots']} lots. "
    )
    if gap:
        shown = figure_of({**gap, "value": gap["diff"]}, show=money)
        words += f"Difference in cost a part, the chosen model less the incumbent: {shown}. "
    words += (
        "Parts that it let pass are seen here as far as they were labelled: where labels come from what it stopped, "
        "its escapes are undercounted."
    )
    caption = "The existing inspection beside the chosen model, on the parts that it has judged" + where
    return table(["", "incumbent", "chosen"], rows, caption=caption) + f'<p class="small">{words}</p>'
