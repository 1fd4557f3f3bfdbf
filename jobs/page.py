"""The frame of every page for people: opens anywhere, prints well, asks the network for nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-top: 2px solid #1a1a1a; padding-top: .5rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; white-space: nowrap; }
th, td { border-bottom: 1px solid #c8c8c8; padding: .25rem .7rem; text-align: left; vertical-align: top; }
td.num, th.num { text-align: right; white-space: nowrap; }
.range, .none, .small { color: #595959; font-size: .85em; } .chosen { font-weight: 700; }
.banner { border: 3px solid #1a1a1a; background: #ffe9a8; padding: .6rem 1rem; font-weight: 700; margin: 1rem 0; }
.wide { overflow-x: auto; } code { font-size: .85em; overflow-wrap: anywhere; } svg { max-width: 100%; height: auto; }
figure { display: inline-block; margin: 0 .4rem .6rem 0; width: 100px; vertical-align: top; font-size: .7em; }
figure img { width: 96px; height: 96px; object-fit: contain; background: #eee; border: 2px solid #eee; }
figure.suspect img { border-color: #b00020; } figcaption { overflow-wrap: anywhere; color: #404040; }
a { color: #00407a; } :focus-visible { outline: 3px solid #00407a; outline-offset: 2px; }
.alarm { color: #7a0016; font-weight: 700; } .alarm::before { content: "\\26A0  "; } nav { margin: .6rem 0; }
.tight .range { display: block; } .tight td:first-child { min-width: 7rem; }
.tight td { min-width: 4rem; } .tight th { white-space: normal; }
.failures { break-inside: avoid; } .failures figure { width: 150px; } .failures p { margin: .4rem 0; }
@supports selector(:has(a)) { @media screen {
  section.plant:not(:target) { display: none; } body:has(section.plant:target) main { display: none; }
} }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { font-size: 8pt; max-width: none; margin: 0; padding: 0; } nav { display: none; }
  section.plant { break-before: page; } th, td { padding: .1rem .3rem; overflow-wrap: anywhere; }
  td.num, th.num, caption { white-space: normal; }
  figure { break-inside: avoid; } table, svg { break-inside: avoid; } h2 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } .wide { overflow: visible; }
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML document; `body` is HTML already, `title` is not."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_words: int = 1, caption: str = "") -> str:
    """Cells are HTML already; the first `num_words` columns hold words, the others numbers."""
    kinds = ["" if i < num_words else ' class="num"' for i in range(len(columns))]
    head = "".join(f'<th{kind} scope="col">{escape(name)}</th>' for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{words}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def inline_svg(figure: Any, *, name: str, label: str) -> str:
    """A matplotlib figure for a page: real text, no address, the same bytes for the same figure and name."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "crossplant", "svg.id": name}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    words = f'<svg role="img" aria-label="{escape(label)}"'
    return re.sub(r"<svg\b", lambda _: words, svg[svg.index("<svg") :], count=1)
