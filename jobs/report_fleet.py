"""What the report says of the fleet as a whole: every plant in a line, and what transfer bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.alarms import WITHDRAWN, alarms
from jobs.cells import METRICS, NONE, Document, count, figure_of, gap_of, money, number, percent, seconds, text
from jobs.page import table

METHODS = {"classical": "hand-made features", "scratch": "random weights", "frozen": "frozen", "chosen": "chosen"}


LEGEND = (
    '<p class="small">Shown: what the parts of decide prove, of the model against the candidate that is cheapest to '
    "serve; a model is named in any case, the best estimate. Cost: money a part in the plant's own currency, expected "
    "at the unfavourable end of its defect rate; a minus is money saved. Incumbent: the inspection that stands there "
    "already.</p>"
)


def glance(document: Document) -> str:
    """Every plant in a line, the worst first: the verdict, its money and macro-F1, how certain it is, and alarms."""
    rows = []
    for name in document["plants"]:
        decision, reports = document["decisions"].get(name, {}), document["details"].get(name, {})
        chosen, frozen = reports.get("chosen") or {}, reports.get("frozen") or {}
        found = alarms(name, document)
        model = f'<span class="chosen">{text(decision.get("model"))}</span>'
        model = f"<s>{model}</s>" if WITHDRAWN in found else model
        rows.append(
            [
                f'<a href="#plant-{text(name)}">{text(name)}</a>',
                f"{model}: {text(decision.get('why'))}.",
                f'<span class="certainty">{text(decision.get("answer"))}</span>',
                "".join(f'<div class="alarm">{text(words)}</div>' for words in found) or NONE,
                figure_of(chosen.get("cost"), show=money),
                saved(decision.get("gain")),
                saved(reports.get("against_incumbent")),
                figure_of(chosen.get("macro_f1")),
                figure_of(frozen.get("macro_f1")),
            ]
        )
    for name, why in (document.get("undecided") or {}).items():
        rows.append([text(name), f"No model: {text(why)}.", "nothing is shown", NONE, *[NONE] * 5])
    columns = ["plant", "verdict", "shown", "alarm", "cost a part", "less frozen", "less incumbent", "macro-F1"]
    shown = table([*columns, "frozen: macro-F1"], rows, num_words=4)
    return f'<h2>The fleet at a glance, worst plant first</h2><div class="tight">{shown}</div>{LEGEND}'


def saved(gain: Mapping[str, Any] | None) -> str:
    """The chosen model less the frozen baseline, in money or in macro-F1."""
    if not gain:
        return NONE
    show = money if gain["metric"] == "cost" else percent
    metric = "" if gain["metric"] == "cost" else " of macro-F1"
    return figure_of({**gain, "value": gain["diff"]}, show=show) + metric


def bought(document: Document) -> str:
    """What transfer bought: nothing where no baseline was trained."""
    rows = []
    for row in document.get("transfer", ()):
        for method, found in row["methods"].items():
            figures = found or {}
            gaps = [row["against"][kind] or {} for kind in ("scratch", "classical")] if method == "chosen" else [{}, {}]
            name = f"{METHODS[method]}: {row['model']}" if method == "chosen" else METHODS[method]
            rows.append(
                [f'<a href="#plant-{text(row["plant"])}">{text(row["plant"])}</a>', text(name)]
                + [figure_of(figures.get("macro_f1")), figure_of(figures.get("cost"), show=money)]
                + [gap_of(gap.get(metric), show=show) for gap in gaps for metric, show in METRICS]
                + [number(figures.get("seconds"), show=seconds), number(figures.get("num_seeds"), show=count)]
            )
    if not rows:
        return ""
    gaps = [f"{metric} over {kind}" for kind in ("random weights", "hand-made") for metric in ("macro-F1", "cost")]
    columns = ["plant", "method", "macro-F1", "cost a part", *gaps, "seconds", "seeds"]
    words = (
        "Models from random weights and of hand-made features with a linear model are judged on the same parts, and "
        "chosen nowhere. Over several seeds means stand here; their intervals are over lots. Seconds are of all runs "
        "that a model is made of and of those it started from, with a share of the activations they learned from, "
        "where these were computed for this plan. "
        "A classical model draws nothing at random, so that one seed is all of them."
    )
    return f'<h2>What transfer bought here</h2>{table(columns, rows, num_words=2)}<p class="small">{words}</p>'


def fragile(document: Document) -> str:
    """What the mildest strength of every corruption does to the chosen models; nothing where none was tried."""
    tried = {name: document["details"].get(name, {}).get("robustness") for name in document["plants"]}
    mild = {
        name: {row["kind"]: row for row in found["rows"] if row["strength_rank"] == 0}
        for name, found in tried.items()
        if found
    }
    if not mild:
        return ""
    kinds = sorted({kind: row["words"] for rows in mild.values() for kind, row in rows.items()}.items())
    rows = []
    for name, found in mild.items():
        gaps = [found[kind]["chosen"]["damage"]["macro_f1"] if kind in found else None for kind, _ in kinds]
        marks = [" *" if kind in found and found[kind]["forbidden"] else "" for kind, _ in kinds]
        cells = [figure_of(gap and {**gap, "value": gap["diff"]}) + mark for gap, mark in zip(gaps, marks, strict=True)]
        sizes = [number(tried[name].get(key), show=count) for key in ("n", "n_lots")]
        rows.append([f'<a href="#plant-{text(name)}">{text(name)}</a>', *sizes, *cells])
    shown = table(["plant", "parts", "lots", *(f"{kind}: {words}" for kind, words in kinds)], rows)
    words = "Change in macro-F1 of the chosen model, in points. *: cannot happen at an environment of that plant."
    head = "<h2>What mild dark, blur and noise would do</h2>"
    return f'{head}<div class="tight">{shown}</div><p class="small">{words}</p>'
