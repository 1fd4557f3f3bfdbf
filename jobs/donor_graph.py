"""The donors of the comparison for people: a matrix of arrows and a table. Every figure is the document's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jobs.cells import count, number
from jobs.page import inline_svg, table

LOOKS = {
    "helps": ("#00558c", "▲", "white"),
    "harms": ("#b35900", "▼", "white"),
    "no difference shown": ("#e4e4e4", "", "black"),
    "not enough lots": ("white", "?", "black"),
    "cannot": ("white", "", "black"),
}
"""Words -> colour of a field, mark, ink. Blue and orange, and a mark each: told apart without colour and in grey."""
NUM_DRAWN = 20
"""Of more plants there is no picture, and a table of what is shown alone."""
EXPLAINED = (
    "What a start from the row's own model is worth at the column's plant against the pretrained start: nats of "
    "log-likelihood a part, by heads fitted out of fold by lot to train and select, with 90 % intervals over lots. A "
    "donor harms where its interval lies below 0, which befalls about one harmless donor in twelve: a run that would "
    "start from it is refused. That it helps is said where Holm's correction over all arrows allows it at 5 %. No "
    "stage was trained for these figures."
)


def donors_html(document: Mapping[str, Any]) -> str:
    """The section of the report, empty where no donor was measured."""
    rows = document.get("donors", ())
    measured = [row for row in rows if row["gain"] is not None]
    if not measured:
        return ""
    label, picture = "Which plant's model helps which plant at its start", ""
    order = sorted(measured, key=lambda row: (row["plant"], -row["gain"]))
    caption = "Donors by plant, the best first"
    if len({row["plant"] for row in rows}) <= NUM_DRAWN:
        picture = inline_svg(donor_figure(rows), name="donors", label=label)
    else:
        order = [row for row in order if row["words"] in ("helps", "harms")]
        caption = f"The {len(order)} of {len(measured)} donors that help or harm; `--json` has all"
    cells = [
        [escape(row["donor"]), escape(row["plant"]), escape(row["words"])]
        + [number(row[key], show=show) for key, show in _FIGURES]
        for row in order
    ]
    columns = ["donor", "plant", "shown", "gain", "low", "high", "p (Holm)", "lots"]
    told = table(columns, cells, num_words=3, caption=caption)
    missing = _not_measured(rows) if picture else ""
    return f'<h2>Who helps whom</h2><p class="small">{EXPLAINED}</p>{picture}{told}{missing}'


def donor_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Donors down, plants across: colour and mark say what the arrow does, the number is its gain."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    names = sorted({row[key] for row in rows for key in ("donor", "plant")})
    figure = Figure(figsize=(3.4 + 0.95 * len(names), 1.5 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        colour, mark, ink = LOOKS[row["words"]]
        at = (names.index(row["plant"]), names.index(row["donor"]))
        hatch = "///" if row["words"] == "cannot" else None
        axes.add_patch(
            Rectangle(
                (at[0] - 0.5, at[1] - 0.5), 1, 1, facecolor=colour, edgecolor="#9a9a9a", hatch=hatch, linewidth=0.8
            )
        )
        if row["gain"] is not None:
            axes.text(*at, f"{mark} {row['gain']:+.2f}".strip(), ha="center", va="center", color=ink, fontsize=9)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("plant that starts from it")
    axes.set_ylabel("donor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    keys = [
        Patch(facecolor=colour, edgecolor="#9a9a9a", label=f"{mark} {words}".strip(), hatch="///" * (words == "cannot"))
        for words, (colour, mark, _) in LOOKS.items()
        if words in {row["words"] for row in rows}
    ]
    axes.legend(handles=keys, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title("Gain at the start, nats a part", fontsize=10, loc="left")
    return figure


def _not_measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which pairs are missing, by why."""
    pairs: dict[str, list[str]] = {}
    for row in rows:
        if row["gain"] is None:
            pairs.setdefault(row["why"], []).append(f"{row['donor']} → {row['plant']}")
    said = [f"{escape(why)}: {escape(', '.join(found))}" for why, found in pairs.items()]
    return f'<p class="small">Not measured: {"; ".join(said)}.</p>' if said else ""


def _signed(value: float) -> str:
    return f"{value:+.3f}"


_FIGURES = (("gain", _signed), ("low", _signed), ("high", _signed), ("p_holm", "{:.3f}".format), ("n_lots", count))
