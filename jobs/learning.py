"""How runs learned, as pictures and words: training loss and select loss by epoch, what was kept, where it overfits.

A plant's picture takes some 50 kB and a third of a second, so that a page shows those of `NUM_DRAWN` plants, the worst
first; `compare` says the words of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cluster.ledger import RunRecord
from cluster.storage import Store
from jobs.page import inline_svg, page
from jobs.plan import Plan

NUM_DRAWN = 40
KINDS = ("pooled", "own", "warm", "sister", "scratch")
"""The runs of a plant that are drawn, in this order: those that have epochs and may serve it."""
TRAINING = {"color": "#d55e00", "linestyle": "-.", "marker": "^"}
SELECT = {"color": "#0072b2", "linestyle": "-", "marker": "o"}
"""Two of the colours that the colour-blind tell apart, and lines and marks that differ without them.
Source: Okabe and Ito, 2008."""
PAGE = "reports/learning.html"

Run = Mapping[str, Any]


def learning(words: Run) -> dict[str, Any]:
    """What is shown of a run, from what it says of itself (`model.json`)."""
    told = ("run_id", "kind", "cut", "select_nll", "history", "notes")
    return {**{key: words[key] for key in told}, "cuts": [stage["cut"] for stage in words["recipe"]["stages"]]}


def epochs_of(run: Run) -> list[dict[str, Any]]:
    """The epochs of all stages in the order in which they were trained."""
    return [row for row in run["history"] if row["stage"] > 0]


def kept_at(run: Run) -> int | None:
    """Which of the epochs is the model, counted from 1; 0 for the head before all epochs, None where none is known."""
    if run["select_nll"] is None:
        return None
    found = [i for i, row in enumerate(epochs_of(run), start=1) if row["select_nll"] == run["select_nll"]]
    return found[0] if found and run["cut"] > 0 else 0


def figure_of(runs: Sequence[Run]) -> Any:
    """A small panel a run: both losses over epochs, stages parted, the kept epoch ringed, the frozen head dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(2.9 * len(runs), 2.5))
    figure.subplots_adjust(left=0.5 / (2.9 * len(runs)), right=0.995, bottom=0.2, top=0.72, wspace=0.22)
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, run in zip(panels, runs, strict=True):
        _panel(axes, run)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    named = [dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True)) for axes in panels]
    every = {label: handle for labels in named for label, handle in labels.items()}
    figure.legend(every.values(), every.keys(), loc="upper left", ncols=4, fontsize=8, frameon=False)
    return figure


def _panel(axes: Any, run: Run) -> None:
    rows = epochs_of(run)
    at = range(1, len(rows) + 1)
    for key, label, style in (("loss", "training loss", TRAINING), ("select_nll", "select loss", SELECT)):
        values = [float("nan") if row.get(key) is None else row[key] for row in rows]
        axes.plot(at, values, label=label, linewidth=1.2, markersize=3, **style)
    frozen = [row["select_nll"] for row in run["history"] if row["stage"] == 0 and row["select_nll"] is not None]
    if frozen:
        axes.axhline(frozen[0], color="#595959", linestyle="--", linewidth=1, label="before the first epoch")
    for i in range(1, len(rows)):
        if rows[i]["stage"] != rows[i - 1]["stage"]:
            axes.axvline(i + 0.5, color="#8c8c8c", linewidth=0.8)
    for stage, cut in enumerate(run["cuts"], start=1):
        if mine := [i for i, row in enumerate(rows, start=1) if row["stage"] == stage]:
            place = axes.get_xaxis_transform()
            axes.text(mine[0] - 0.3, 1.0, f"cut {cut}", fontsize=7, va="bottom", transform=place, parse_math=False)
    if kept := kept_at(run):
        ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": ""}
        axes.plot([kept], [rows[kept - 1]["select_nll"]], label="kept", **ring)
    axes.set_xlim(0.4, len(rows) + 0.6)
    axes.set_title(run["run_id"], fontsize=8, loc="left", pad=12, parse_math=False)
    axes.set_xlabel("epoch", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def overfits(run: Run) -> list[str]:
    """What the run says of overfitting."""
    return [note for note in run["notes"] if "overfitting" in note]


def words_of(run: Run) -> str:
    """What was kept of a run, and whether it overfits, in words."""
    kept = kept_at(run)
    row = epochs_of(run)[kept - 1] if kept else None
    what = f"epoch {row['epoch']} of stage {row['stage']} was kept" if row else "no stage was kept, the head stays"
    return f"{run['run_id']}: {'; '.join([what, *overfits(run)])}."


def section(name: str, runs: Sequence[Run], *, is_drawn: bool) -> str:
    """How the runs of a plant learned, as HTML; nothing where none has epochs."""
    shown = [run for run in runs if epochs_of(run)]
    if not shown:
        return ""
    label = f"Training loss and select loss by epoch of {', '.join(run['run_id'] for run in shown)}"
    picture = inline_svg(figure_of(shown), name=f"learning-{name}", label=label) if is_drawn else ""
    said = "<br>".join(escape(words_of(run)) for run in shown)
    return f'<h3>How its models learned</h3>{picture}<p class="small">{said}</p>'


def ids_of(plan: Plan, *, plant: str, seed: int) -> list[str]:
    """The runs of the plan that are shown of a plant, parents first."""
    kinds = {kind: i for i, kind in enumerate(KINDS)}
    found = [r for r in plan.runs if r.kind in kinds and r.seed == seed and plant in r.plants and r.recipe["stages"]]
    return [run.run_id for run in sorted(found, key=lambda run: kinds[run.kind]) if run.target in (plant, None)]


def write_page(plan: Plan, *, records: Mapping[str, RunRecord], store: Store, home: Path) -> Path | None:
    """The page of a plan's finished runs stands under home and in the store; None where no run has epochs.

    Of the first seed: the plants whose own runs are worth least on select, at most `NUM_DRAWN`.
    """
    seed = min((run.seed for run in plan.runs), default=0)
    of: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in plan.runs for name in run.plants):
        of[name] = [run_id for run_id in ids_of(plan, plant=name, seed=seed) if records[run_id].state == "done"]
    names = sorted((name for name in of if of[name]), key=lambda name: _worth(records[run] for run in of[name]))
    told: dict[str, dict[str, Any]] = {}
    parts = []
    for name in names[:NUM_DRAWN]:
        for run_id in of[name]:
            told.setdefault(run_id, learning(store.read_json(f"runs/{plan.plan_id}/{run_id}/model.json")))
        if found := section(name, [told[run_id] for run_id in of[name]], is_drawn=True):
            parts.append(f"<h2>Plant {escape(name)}</h2>{found}")
    if not parts:
        return None
    more = f" Of {len(names)} plants the {NUM_DRAWN} worst on select are shown." if len(names) > NUM_DRAWN else ""
    words = f'<p class="small">Plan <code>{escape(plan.plan_id)}</code>, seed {seed}, worst on select first.{more}</p>'
    path = home / PAGE.replace("reports/", f"reports/{plan.fleet}/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(f"crossplant: how fleet {plan.fleet} learned", "\n".join([words, *parts])), encoding="utf-8")
    store.upload(path, PAGE)
    return path


def _worth(records: Iterable[RunRecord]) -> float:
    return max((record.select for record in records if record.select is not None), default=0.0)
