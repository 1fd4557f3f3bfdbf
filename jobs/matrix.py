"""The picture of every model at every plant: macro-F1 in percent, the models decided for framed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.cells import SYNTHETIC, Document, percent, text
from jobs.page import inline_svg

KINDS = ("normality", "classical", "scratch", "frozen", "own", "sister", "warm", "pooled", "average", "without")
"""The order of models in the picture; any other kind follows."""
MAX_CELLS = 3000
Cells = dict[tuple[str, str], tuple[float, str | None]]
"""Name down and name across -> macro-F1, and the plant whose chosen model it is, if any."""
COLOURS = "cividis"
"""Even in lightness, so it reads alike for the colour-blind and on a grey printer. Source: Nuñez et al., 2018."""


def picture(document: Document) -> str:
    """The picture with its words."""
    chosen = {name: decision.get("model") for name, decision in document["decisions"].items()}
    outside = [f"{name}: {model}" for name, model in chosen.items() if model not in document["matrix"]]
    note = f" Decided for a model that is not in the picture: {text(', '.join(outside))}." if outside else ""
    few = "" if is_whole(document) else " Of so many models each plant's best one of every kind is shown."
    return (
        "<h2>Every model at every plant</h2>"
        f'<div class="wide">{matrix_svg(document)}</div><p class="small">Macro-F1 in percent. The framed model is the '
        f"one decided for. Blank: not judged there, or in money alone.{few}{note}</p>"
    )


def matrix_svg(document: Document) -> str:
    """The picture for a page."""
    label = f"Macro-F1 of every model at every plant of fleet {document['fleet']}"
    return inline_svg(matrix_figure(document), name="matrix", label=label)


def runs_of(document: Document) -> list[str]:
    """The runs of the matrix by kind, within a kind in the document's order."""
    kinds = {run: document["models"].get(run, {}).get("kind") for run in document["matrix"]}
    return sorted(kinds, key=lambda run: KINDS.index(kinds[run]) if kinds[run] in KINDS else len(KINDS))


def is_whole(document: Document) -> bool:
    """Whether every model can be drawn at every plant."""
    return len(document["matrix"]) * len(document["plants"]) <= MAX_CELLS


def drawn_cells(document: Document) -> tuple[list[str], list[str], Cells]:
    """Names down and across, and what is judged.

    Models down and plants across, or, of too many of them, plants down and kinds of models across: each plant's best
    model of the kind that has learned from the plant, or was made for it.
    """
    runs, plants = runs_of(document), list(document["plants"])
    chosen = {name: decision.get("model") for name, decision in document["decisions"].items()}
    judged = {
        (run, plant): cell["macro_f1"]
        for run in runs
        for plant in plants
        if (cell := document["matrix"][run].get(plant) or {}).get("macro_f1") is not None
    }
    if is_whole(document):
        drawn = {run for run, _ in judged} | set(chosen.values())
        return (
            [run for run in runs if run in drawn],
            plants,
            {at: (f1, plant_of(at, chosen)) for at, f1 in judged.items()},
        )
    kinds = list(dict.fromkeys(document["models"].get(run, {}).get("kind") for run in runs))
    best: Cells = {}
    for (run, plant), f1 in judged.items():
        about = document["models"].get(run, {})
        at, mark = (plant, about.get("kind")), plant_of((run, plant), chosen)
        if plant in about.get("plants", ()) and (mark or not best.get(at, (0, None))[1]):
            best[at] = (f1, mark) if mark or at not in best else max(best[at], (f1, None), key=lambda cell: cell[0])
    return plants, kinds, best


def plant_of(at: tuple[str, str], chosen: Mapping[str, Any]) -> str | None:
    """The plant of a cell (run, plant) whose model is the one decided for; else None."""
    return at[1] if chosen.get(at[1]) == at[0] else None


def matrix_figure(document: Document) -> Any:
    """Macro-F1 in percent in every cell that was judged; the chosen ones framed."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    down, across, cells = drawn_cells(document)
    values = np.full((len(down), len(across)), np.nan)
    for (row, column), (value, _) in cells.items():
        values[down.index(row), across.index(column)] = value
    low = min(0.9, float(np.nanmin(values))) if np.isfinite(values).any() else 0.0
    figure = Figure(figsize=(2.4 + 1.1 * len(across), 1.2 + 0.3 * len(down)), layout="constrained")
    axes = figure.subplots()
    edges = (np.arange(size + 1) - 0.5 for size in (len(across), len(down)))
    shades = {"cmap": colormaps[COLOURS], "vmin": low, "vmax": 1.0}
    axes.pcolormesh(*edges, np.ma.masked_invalid(values), **shades, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    for (row, column), (value, plant) in cells.items():
        _cell(axes, value, at=(across.index(column), down.index(row)), low=low, plant=plant)
    axes.set_xticks(range(len(across)), across, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(down)), down, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    words = f"\n{SYNTHETIC}" if document["synthetic"] else ""
    axes.set_title(f"Macro-F1 (%), framed: chosen{words}", fontsize=10, loc="left")
    return figure


def _cell(axes: Any, value: float, *, at: tuple[int, int], low: float, plant: str | None) -> None:
    """The number, in ink that can be read on its shade; framed where it is the chosen model of a plant."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for width, edge in ((5, "white"), (2.5, "black")) if plant else ():
        corner = (at[0] - 0.45, at[1] - 0.4)
        frame = Rectangle(corner, 0.9, 0.8, fill=False, linewidth=width, edgecolor=edge)
        frame.set_gid(f"chosen-{plant}-{edge}")
        axes.add_patch(frame)
    ink = ink_on(colormaps[COLOURS]((value - low) / (1 - low))[:3])
    weight = "bold" if plant else "normal"
    axes.text(*at, percent(value), ha="center", va="center", color=ink, weight=weight)


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of a colour in 0..1 a channel. Source: WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(rgb: Sequence[float]) -> str:
    """The ink of more contrast on this shade, at least 4.5 : 1 on any."""
    return "black" if (luminance(rgb) + 0.05) ** 2 > 0.05 * 1.05 else "white"
