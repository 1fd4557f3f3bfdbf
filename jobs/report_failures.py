"""What the report says of a plant's failures: under corruptions, and on which parts, with small pictures of them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from jobs.cells import NONE, Document, count, figure_of, money, number, text
from jobs.page import table
from jobs.report_plant import reports_of


def robustness(name: str, document: Document) -> str:
    """What dark, blur, noise and the like do to the chosen model, the worst first."""
    found = reports_of(name, document).get("robustness")
    if not found:
        return ""
    clean = found["clean"]
    rows = [_row("as they are", clean["chosen"], clean.get("frozen"))]
    for row in found["rows"]:
        forbidden = f" (cannot happen at {', '.join(row['forbidden'])})" if row["forbidden"] else ""
        what = f"{row['kind']}: {row['words']}{forbidden}"
        rows.append(_row(what, row["chosen"], row.get("frozen")))
    columns = ["what befalls the parts", "macro-F1", "change", "recall of defects", "change", "cost a part"]
    columns += ["change", "frozen: macro-F1", "frozen: cost"]
    tiles = " Of a frame in tiles only the loudest are changed: alarms elsewhere go uncounted." * found["is_tiled"]
    words = (
        f"{number(found['n'], show=count)} of {number(found['of'], show=count)} parts of decide, drawn by lot "
        f"({number(found['n_lots'], show=count)} lots), changed before the exported trunk and judged by the same "
        f"policy.{tiles} Changes are to the same parts as they are; each range is a 95 % interval of its own: of many "
        "rows one may exclude 0 by chance. Recall of defects: bad parts called by their own class."
    )
    note = f'<p class="small">{words}</p>'
    shown = f'<div class="tight">{table(columns, rows)}</div>'
    return f"<h3>What dark, blur and noise would do, worst first</h3>{shown}{note}"


def _row(what: str, chosen: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> list[str]:
    cells = [escape(what)]
    worse = chosen.get("damage") or {}
    for key in ("macro_f1", "recall", "cost"):
        show = {"show": money} if key == "cost" else {}
        gap = worse.get(key)
        cells += [number(chosen[key], **show), figure_of(gap and {**gap, "value": gap["diff"]}, **show)]
    other = frozen or {}
    return [*cells, number(other.get("macro_f1")), number(other.get("cost"), show=money)]


def failures(name: str, document: Document) -> str:
    """Wrong verdicts in groups, the most expensive first, with pictures where they may be shown."""
    found = reports_of(name, document).get("failures")
    if found is None:
        return ""
    if not found:
        return '<h3>Failures</h3><p class="small">No wrong verdict on these parts.</p>'
    shown = (document.get("pictures") or {}).get(name) or {}
    words = f'<p class="small">{text(shown["words"])}</p>' if shown.get("words") else ""
    groups = "\n".join(_group(group, frames=shown.get("frames") or {}) for group in found)
    return f"<h3>Failures, the most expensive first</h3>{words}{groups}"


def _group(group: Mapping[str, Any], *, frames: Mapping[str, str]) -> str:
    where = ", ".join(f"{name}: {n}" for name, n in group["environments"].items())
    price = "" if not group["cost"] else f"; adds {number(group['cost'], show=money)} to the cost a part"
    counts = f"{number(group['n'], show=count)} of {number(group['of'], show=count)}"
    head = f"{escape(group['what'])}: {text(group['truth'])}, {text(_said(group))}: {counts}{price}"
    pictures = "".join(_figure(one, frames=frames) for one in group["examples"])
    return (
        f'<div class="failures"><p><b class="kind">{head}</b> <span class="small">({text(where)})</span></p>'
        f"{pictures}</div>"
    )


def _said(group: Mapping[str, Any]) -> str:
    return "passed" if group["said"] == "passed" else f"called {group['said']}"


def _figure(one: Mapping[str, Any], *, frames: Mapping[str, str]) -> str:
    uri = frames.get(one["frame"])
    picture = f'<img src="{uri}" alt="{escape(one["frame"])}">' if uri else ""
    ranked = sorted(one["probabilities"].items(), key=lambda item: -item[1])[:3]
    said = ", ".join(f"{text(name)} {number(p)}" for name, p in ranked) or NONE
    where = f"{text(one['part_id'])} of lot {text(one['lot'])}, {text(one['environment'])}"
    caption = f"{text(one['frame'].rpartition('/')[2])}<br>{where}<br>{said}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
