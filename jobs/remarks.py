"""What runs said of their own training, for the comparison and its report: notes, and what weighting by class did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from jobs.page import table

Words = Mapping[str, Any]


def remarks(run_ids: Sequence[str], *, plant: str, words: Callable[[str], Words]) -> list[dict[str, Any]]:
    """A row a run: its notes, and the rows of `jobs.reweighting` of this plant; old runs say nothing."""
    return [
        {
            "run": run_id,
            "notes": list(words(run_id).get("notes", ())),
            "reweighting": [row for row in words(run_id).get("reweighting", ()) if row["plant"] == plant],
        }
        for run_id in run_ids
    ]


def remarks_html(rows: Sequence[Words]) -> str:
    """The rows as HTML: a list of notes, then a table a run; nothing where nothing was said."""
    notes = [f"<li>{escape(row['run'])}: {escape(note)}</li>" for row in rows for note in row["notes"]]
    if not notes:
        return ""
    tables = [_table(row) for row in rows if row["reweighting"]]
    return "\n".join(["<h3>How it was trained</h3>", f'<ul class="small">{"".join(notes)}</ul>', *tables])


def _table(row: Words) -> str:
    counts = ("parts", "found_plain", "found", "lots_up", "lots_down")
    cells = [
        [escape(one["class"]), *(f'<data value="{one[key]}">{one[key]}</data>' for key in counts)]
        for one in row["reweighting"]
    ]
    columns = ["class", "select parts", "found unweighted", "found weighted", "lots up", "lots down"]
    caption = f"What weighting by class did to the head that {row['run']} began with"
    return table(columns, cells, caption=caption)
