"""What the report says of the fleet as a whole: every plant in a line, and what transfer bought."""

from __future__ import annotations

from jobs.cells import METRICS, Document, count, figure_of, gap_of, money, number, seconds, text
from jobs.page import table

METHODS = {"classical": "hand-made features", "scratch": "random weights", "frozen": "frozen", "chosen": "chosen"}


def glance(document: Document) -> str:
    """Every plant in a line, the worst first."""
    rows = []
    for name in document["plants"]:
        decision, reports = document["decisions"].get(name, {}), document["details"].get(name, {})
        chosen, frozen = reports.get("chosen") or {}, reports.get("frozen") or {}
        rows.append(
            [
                f'<a href="#plant-{text(name)}">{text(name)}</a>',
                f'<span class="chosen">{text(decision.get("model"))}</span>',
                text(decision.get("why")),
                figure_of(chosen.get("macro_f1")),
                figure_of(frozen.get("macro_f1")),
                figure_of(chosen.get("cost"), show=money),
                figure_of(frozen.get("cost"), show=money),
            ]
        )
    columns = ["plant", "model", "why", "macro-F1", "frozen: macro-F1", "cost a part", "frozen: cost a part"]
    return "<h2>The fleet at a glance, worst plant first</h2>" + table(columns, rows, num_words=3)


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
