"""What runs said of their training, in the comparison and on the page."""

from __future__ import annotations

from jobs.remarks import remarks, remarks_html

ROW = {"plant": "north", "class": "<crack>", "parts": 40, "found": 31, "found_plain": 38, "lots_down": 6, "lots_up": 0}
WORDS = {
    "own-north-s0": {"notes": ["head fitted & kept"], "reweighting": [ROW, {**ROW, "plant": "south", "parts": 77}]},
    "pooled-s0": {"notes": ["a stage <won>"]},
}


def test_every_run_says_its_notes_and_only_what_weighting_did_at_this_plant():
    found = remarks(["own-north-s0", "pooled-s0"], plant="north", words=WORDS.__getitem__)
    assert [row["notes"] for row in found] == [["head fitted & kept"], ["a stage <won>"]]
    assert [row["reweighting"] for row in found] == [[ROW], []]


def test_the_page_holds_notes_and_counts_and_escapes_what_is_the_users():
    html = remarks_html(remarks(["own-north-s0", "pooled-s0"], plant="north", words=WORDS.__getitem__))
    assert "own-north-s0: head fitted &amp; kept" in html
    assert "pooled-s0: a stage &lt;won&gt;" in html
    assert "&lt;crack&gt;" in html
    assert [f'value="{n}"' in html for n in (40, 38, 31, 6, 0, 77)] == [True] * 5 + [False]
    assert html.count("<table>") == 1


def test_of_a_run_that_said_nothing_nothing_is_shown():
    assert remarks_html([]) == ""
    assert remarks_html(remarks(["old"], plant="north", words=lambda run: {})) == ""
