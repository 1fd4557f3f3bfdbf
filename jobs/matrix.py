"""The picture of every model at every plant: macro-F1 in percent, the models decided for framed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.cells import SYNTHETIC, Document, percent, text
from jobs.page import inline_svg

KINDS = ("normality", "classical", "scratch", "frozen", "own", "sister", "warm", "pooled", "average", "without")
"""The order of models in the picture; any other kind follows."""
COLOURS = "cividis"
"""Even in lightness, so it reads alike for the colour-blind and on a grey printer. Source: Nuñez et al., 2018."""


def picture(document: Document) -> str:
    """The picture with its words."""
    chosen = {name: decision.get("model") for name, decision in document["decisions"].items()}
    outside = [f"{name}: {model}" for name, model in chosen.items() if model not in document["matrix"]]
    note = f" Decided for a model that is not in the picture: {text(', '.join(outside))}." if outside else ""
    return (
        "<h2>Every model at every plant</h2>"
        f'{matrix_svg(document)}<p class="small">Macro-F1 in percent. The framed model is the one decided for. '
        f"Blank: not judged there.{note}</p>"
    )


def matrix_png(document: Document, path: Path, *, dpi: int = 110) -> None:
    """The picture of every model at every plant stands at `path` as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix_figure(document).savefig(path, format="png", dpi=dpi, metadata={"Software": None})


def matrix_svg(document: Document) -> str:
    """The picture for a page."""
    label = f"Macro-F1 of every model at every plant of fleet {document['fleet']}"
    return inline_svg(matrix_figure(document), name="matrix", label=label)


def runs_of(document: Document) -> list[str]:
    """The runs of the matrix by kind, within a kind in the document's order."""
    kinds = {run: document["models"].get(run, {}).get("kind") for run in document["matrix"]}
    return sorted(kinds, key=lambda run: KINDS.index(kinds[run]) if kinds[run] in KINDS else len(KINDS))


def matrix_figure(document: Document) -> Any:
    """Models down, plants across, macro-F1 in percent in every cell that was judged; the chosen ones framed."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    runs, plants = runs_of(document), list(document["plants"])
    cells = [[(document["matrix"][run].get(plant) or {}).get("macro_f1") for plant in plants] for run in runs]
    values = np.array([[np.nan if v is None else v for v in row] for row in cells], dtype=float)
    values = values.reshape(len(runs), len(plants))
    low = min(0.9, float(np.nanmin(values))) if np.isfinite(values).any() else 0.0
    figure = Figure(figsize=(2.4 + 1.1 * len(plants), 1.2 + 0.3 * len(runs)), layout="constrained")
    axes = figure.subplots()
    colours = colormaps[COLOURS]
    edges = (np.arange(size + 1) - 0.5 for size in (len(plants), len(runs)))
    axes.pcolormesh(
        *edges, np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=1.0, edgecolors="white", linewidth=1
    )
    axes.invert_yaxis()
    for row, run in enumerate(runs):
        for column, plant in enumerate(plants):
            value, is_chosen = cells[row][column], document["decisions"].get(plant, {}).get("model") == run
            if is_chosen:
                for width, edge in ((5, "white"), (2.5, "black")):
                    corner = (column - 0.45, row - 0.4)
                    frame = Rectangle(corner, 0.9, 0.8, fill=False, linewidth=width, edgecolor=edge)
                    frame.set_gid(f"chosen-{plant}-{edge}")
                    axes.add_patch(frame)
            if value is not None:
                red, green, blue, _ = colours((value - low) / (1 - low))
                ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
                weight = "bold" if is_chosen else "normal"
                axes.text(column, row, percent(value), ha="center", va="center", color=ink, weight=weight)
    axes.set_xticks(range(len(plants)), plants, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(runs)), runs, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    words = f"\n{SYNTHETIC}" if document["synthetic"] else ""
    axes.set_title(f"Macro-F1 (%), framed: chosen{words}", fontsize=10, loc="left")
    return figure
