"""The fleet's comparison for people: one HTML file that opens anywhere, prints well and asks the network for nothing.

Every figure is the `compare` document's own: rounded for the eye, whole in the element's `value`. Everything that comes
from outside (plant, class and environment names, reasons) is escaped. Not a place for computing: what the document
does not say, the report does not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jobs.curves import curve_figure, curve_words
from jobs.incumbent_section import incumbent_html
from jobs.learning import NUM_DRAWN, section
from jobs.page import inline_svg, page, table
from jobs.remarks import remarks_html
from plants.ensembles import described

Document = Mapping[str, Any]

KINDS = ("normality", "classical", "scratch", "frozen", "own", "sister", "warm", "pooled", "average", "without")
"""The order of models in the picture; any other kind follows."""
SYNTHETIC = "These data are synthetic"
NONE = '<span class="none">–</span>'
COLOURS = "cividis"
"""Even in lightness, so it reads alike for the colour-blind and on a grey printer. Source: Nuñez et al., 2018."""


def write_report(document: Document, path: Path) -> None:
    """The comparison stands at `path` as one HTML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_html(document), encoding="utf-8")


def report_html(document: Document) -> str:
    """The comparison as one page of HTML."""
    title = f"crossplant: fleet {document['fleet']}"
    banner = ""
    if document["synthetic"]:
        banner = f'<p class="banner">{SYNTHETIC}: no figure here says anything about a real factory.</p>'
    words = (
        f'<p class="small">Plan <code>{_text(document["plan"])}</code>, seed {_text(document["seed"])}. '
        "All figures are counted per part on the split <code>decide</code>; the sealed test was not opened for them. "
        "Ranges are 95 % intervals over lots. Rates are in percent.</p>"
    )
    plants = "\n".join(_plant(name, document) for name in document["plants"])
    parts = [words, banner, _glance(document), _bought(document), _picture(document), plants]
    return page(title, "\n".join(parts))


# --- the fleet -------------------------------------------------------------------------------------------------------


def _glance(document: Document) -> str:
    rows = []
    for name in document["plants"]:
        decision, reports = document["decisions"].get(name, {}), document["details"].get(name, {})
        chosen, frozen = reports.get("chosen") or {}, reports.get("frozen") or {}
        rows.append(
            [
                f'<a href="#plant-{_text(name)}">{_text(name)}</a>',
                f'<span class="chosen">{_text(decision.get("model"))}</span>',
                _text(decision.get("why")),
                _figure(chosen.get("macro_f1")),
                _figure(frozen.get("macro_f1")),
                _figure(chosen.get("cost"), show=_money),
                _figure(frozen.get("cost"), show=_money),
            ]
        )
    columns = ["plant", "model", "why", "macro-F1", "frozen: macro-F1", "cost a part", "frozen: cost a part"]
    return "<h2>The fleet at a glance, worst plant first</h2>" + table(columns, rows, num_words=3)


METHODS = {"classical": "hand-made features", "scratch": "random weights", "frozen": "frozen", "chosen": "chosen"}


def _bought(document: Document) -> str:
    """What transfer bought: nothing where no baseline was trained."""
    rows = []
    for row in document.get("transfer", ()):
        for method, found in row["methods"].items():
            figures = found or {}
            gaps = [row["against"][kind] or {} for kind in ("scratch", "classical")] if method == "chosen" else [{}, {}]
            name = f"{METHODS[method]}: {row['model']}" if method == "chosen" else METHODS[method]
            rows.append(
                [f'<a href="#plant-{_text(row["plant"])}">{_text(row["plant"])}</a>', _text(name)]
                + [_figure(figures.get("macro_f1")), _figure(figures.get("cost"), show=_money)]
                + [_gap(gap.get(metric), show=show) for gap in gaps for metric, show in _METRICS]
                + [_number(figures.get("seconds"), show=_seconds), _number(figures.get("num_seeds"), show=_count)]
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


def _gap(figure: Mapping[str, Any] | None, *, show: Any) -> str:
    """A difference with its range, and what it says."""
    words = figure.get("words") if figure and figure.get("low") is not None else None
    return _figure(figure, show=show) + (f' <span class="range">{_text(words)}</span>' if words else "")


def _picture(document: Document) -> str:
    chosen = {name: decision.get("model") for name, decision in document["decisions"].items()}
    outside = [f"{name}: {model}" for name, model in chosen.items() if model not in document["matrix"]]
    note = f" Decided for a model that is not in the picture: {_text(', '.join(outside))}." if outside else ""
    return (
        "<h2>Every model at every plant</h2>"
        f'{_matrix_svg(document)}<p class="small">Macro-F1 in percent. The framed model is the one decided for. '
        f"Blank: not judged there.{note}</p>"
    )


# --- a plant ---------------------------------------------------------------------------------------------------------


def _plant(name: str, document: Document) -> str:
    decision, reports = document["decisions"].get(name, {}), document["details"].get(name, {})
    chosen, frozen = reports.get("chosen") or {}, reports.get("frozen") or {}
    parts = [f'<h2 id="plant-{_text(name)}">Plant {_text(name)}</h2>', _decision(decision), _models(name, document)]
    parts += [_outside(reports["outside"])] if reports.get("outside") else []
    parts += [incumbent_html(reports)]
    if chosen:
        parts += [
            _summary(chosen, frozen),
            _classes(chosen, frozen),
            _confusion(chosen["confusion"]),
            _environments(chosen, frozen),
            _verdicts(chosen, frozen),
            _curve(name, reports.get("curve")),
            remarks_html(reports.get("training", ())),
        ]
    is_drawn = name in document["plants"][:NUM_DRAWN]
    parts += [section(name, reports.get("learning", ()), is_drawn=is_drawn)]
    return "\n".join(parts)


def _decision(decision: Mapping[str, Any]) -> str:
    words = [f'<p><span class="chosen">{_text(decision.get("model"))}</span>: {_text(decision.get("why"))}.']
    for figure, other in (
        (decision.get("interval"), decision.get("against")),
        (decision.get("gain"), "the frozen baseline"),
    ):
        if figure:
            show = _money if figure["metric"] == "cost" else _percent
            words.append(
                f"Difference in {_text(figure['metric'].replace('_', ' '))} to {_text(other)}: "
                f"{_figure({**figure, 'value': figure['diff']}, show=show)}."
            )
    if len(decision.get("members", ())) > 1:
        words.append(f"It is {_text(described(decision))}.")
    policy = decision.get("policy")
    if isinstance(policy, Mapping):
        words += _limits(policy, kind=decision.get("kind"))
        words += [f"{_text(note)}." for note in policy.get("note", ())]
    names = {"bundle": decision.get("bundle"), "policy": decision.get("policy_digest")}
    digests = ", ".join(f"{key} <code>{_text(name)}</code>" for key, name in names.items())
    words.append(f'<br><span class="small">{digests}</span></p>')
    return " ".join(words)


def _limits(policy: Mapping[str, Any], *, kind: str | None) -> list[str]:
    """Where the policy passes, rejects and asks a person."""
    far = policy.get("novelty_above")
    distance = "" if far is None else _number(far, show=lambda value: f"{value:.2f}")
    if kind == "normality":
        return [f"It passes a part up to a distance of {distance} from good parts; farther, a person looks."]
    words = [
        f"It passes a part below a defect probability of {_number(policy['pass_below'])} % and rejects above "
        f"{_number(policy['reject_above'])} %; between them a person looks."
    ]
    if distance:
        words.append(f"A person looks, too, at a part farther than {distance} from what is known here.")
    return words


def _models(name: str, document: Document) -> str:
    rows = []
    chosen = document["decisions"].get(name, {}).get("model")
    judged = [(run, document["matrix"][run].get(name) or {}) for run in _runs(document)]
    for run, cell in sorted(judged, key=lambda item: -(item[1].get("macro_f1") or 0)):
        if cell.get("n") is None:
            continue
        f1, cost, shared = (
            {"value": cell.get(key), "low": cell.get(f"{key}_low"), "high": cell.get(f"{key}_high")}
            for key in ("macro_f1", "cost", "shared_f1")
        )
        worst = f" ({_text(cell['recall_class'])})" if cell.get("recall_class") else ""
        words = f'<span class="chosen">{_text(run)}</span>, chosen' if run == chosen else _text(run)
        words += f", on {_text(cell['of'])} alone" if cell.get("of") else ""
        recall = _number(cell.get("recall")) + worst
        rows.append(
            [words, _figure(f1), _figure(shared), recall, _number(cell.get("auc")), _figure(cost, show=_money)]
            + [_number(cell.get(key), show=_count) for key in ("shared_n", "n", "n_lots")]
        )
    columns = ["model", "macro-F1", "over shared classes", "lowest recall (class)", "AUC", "cost a part"]
    columns += ["parts of shared classes", "parts", "lots"]
    return table(columns, rows, caption="Every model at this plant, best macro-F1 first")


def _outside(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for row in found:
        cells = [
            {"value": side.get("macro_f1"), "low": side.get("macro_f1_low"), "high": side.get("macro_f1_high")}
            for side in (row["outside"], row["inside"] or {})
        ]
        gap = row["difference"] and {**row["difference"], "value": row["difference"]["diff"]}
        models = [row["model"], (row["inside"] or {}).get("model")]
        words = [_text(f"{row['what']}: {row['left_out']}"), *map(_text, models)]
        counts = [_number(row["outside"].get(key), show=_count) for key in ("n", "n_lots")]
        rows.append([*words, *map(_figure, cells), _figure(gap), *counts])
    columns = ["left out", "out: has not seen it", "in: has seen it", "macro-F1 out", "macro-F1 in", "difference"]
    caption = "Out-of-plant beside in-plant, on the same parts: of a new plant, camera or product expect the first"
    return table([*columns, "parts", "lots"], rows, num_words=3, caption=caption)


def _summary(chosen: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    rows = []
    for words, key, show in (
        ("macro-F1", "macro_f1", _percent),
        ("AUC, defect against ok", "auc", _percent),
        ("average precision of defects", "average_precision", _percent),
        ("cost a part", "cost", _money),
    ):
        rows.append([words, *(_figure(side.get(key), show=show) for side in (chosen, frozen))])
    errors = [_number((side.get("calibration") or {}).get("ece")) for side in (chosen, frozen)]
    rows.append(["calibration error", *errors])
    for words, key in (("parts", "n"), ("lots", "n_lots")):
        rows.append([words, *(_number(side.get(key), show=_count) for side in (chosen, frozen))])
    return table(["", "chosen", "frozen baseline"], rows, caption="In short")


def _classes(chosen: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    caught = (chosen.get("verdicts") or {}).get("caught", {})
    rows = []
    for name, figures in chosen["per_class"].items():
        baseline = frozen.get("per_class", {}).get(name, {})
        rows.append(
            [
                _text(name),
                _number(figures["n"], show=_count),
                _figure(figures["recall"]),
                _number(figures["precision"]),
                _number(figures["f1"]),
                _figure(baseline.get("recall")),
                _figure(caught.get(name)),
            ]
        )
    columns = ["class", "parts", "recall", "precision", "F1", "frozen: recall", "caught by the verdict"]
    return table(columns, rows, caption="By class")


def _confusion(confusion: Mapping[str, Any]) -> str:
    classes, counts = confusion["classes"], confusion["counts"]
    rows = []
    for name, row in zip(classes, counts, strict=True):
        total = sum(row)
        cells = "".join(
            f'<td class="num" style="background: rgba(0, 90, 160, {0.5 * n / total if total else 0:.2f})">'
            f"{_number(n, show=_count)}</td>"
            for n in row
        )
        rows.append(f'<tr><th scope="row">{_text(name)}</th>{cells}</tr>')
    head = "".join(f'<th class="num" scope="col">{_text(name)}</th>' for name in classes)
    return (
        '<div class="wide"><table><caption>Confusion: rows are the truth, columns what the model said</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _environments(chosen: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    def badness(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
        value = item[1]["macro_f1"]
        return value is None, value or 0.0

    rows = []
    for name, figure in sorted(chosen["by_environment"].items(), key=badness):
        baseline = frozen.get("by_environment", {}).get(name)
        sides = [side and {**side, "value": side["macro_f1"]} for side in (figure, baseline)]
        counts = [_number(figure.get(key), show=_count) for key in ("n", "n_lots")]
        rows.append([_text(name), *map(_figure, sides), *counts])
    columns = ["environment", "macro-F1", "frozen: macro-F1", "parts", "lots"]
    return table(columns, rows, caption="By environment, worst first")


def _verdicts(chosen: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    if not chosen.get("verdicts"):
        return '<p class="small">No verdict rates: without good parts or without costs there is no money to count.</p>'
    rows = []
    for words, key in (
        ("escapes: bad parts that pass", "escapes"),
        ("false alarms: good parts that are rejected", "false_alarms"),
        ("good parts that a person reviews", "reviews_of_good"),
        ("bad parts that a person reviews", "reviews_of_bad"),
    ):
        figures = [(side.get("verdicts") or {}).get(key) for side in (chosen, frozen)]
        rows.append([words, *map(_figure, figures), _number((figures[0] or {}).get("n"), show=_count)])
    return table(["verdicts", "chosen", "frozen baseline", "parts"], rows, caption="What the verdicts do")


def _curve(name: str, curve: Mapping[str, Any] | None) -> str:
    if not curve:
        return ""
    label = f"Expected cost a part against the defect rate at plant {name}"
    picture = inline_svg(curve_figure(curve), name=f"curve-{name}", label=label)
    return (
        f'<h3>What a part costs, by the defect rate of the line</h3>{picture}<p class="small">{curve_words(curve)}</p>'
    )


# --- cells -----------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return NONE if value in (None, "") else escape(str(value))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _money(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _number(value: float | None, *, show: Any = _percent) -> str:
    """The number for the eye, and as the document has it in `value`."""
    return NONE if value is None else f'<data value="{value!r}">{show(value)}</data>'


def _figure(figure: Mapping[str, Any] | None, *, show: Any = _percent) -> str:
    """A number with its range, or with the words that say why there is none."""
    if not figure or figure.get("value") is None:
        return NONE
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None:
        words = figure.get("words")
        return _number(figure["value"], show=show) + (f' <span class="range">{_text(words)}</span>' if words else "")
    ends = f"{_number(low, show=show)} to {_number(high, show=show)}"
    return f'{_number(figure["value"], show=show)} <span class="range">{ends}</span>'


_METRICS = (("macro_f1", _percent), ("cost", _money))


# --- the picture -----------------------------------------------------------------------------------------------------


def matrix_png(document: Document, path: Path, *, dpi: int = 110) -> None:
    """The picture of every model at every plant stands at `path` as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _matrix_figure(document).savefig(path, format="png", dpi=dpi, metadata={"Software": None})


def _matrix_svg(document: Document) -> str:
    label = f"Macro-F1 of every model at every plant of fleet {document['fleet']}"
    return inline_svg(_matrix_figure(document), name="matrix", label=label)


def _runs(document: Document) -> list[str]:
    """The runs of the matrix by kind, within a kind in the document's order."""
    kinds = {run: document["models"].get(run, {}).get("kind") for run in document["matrix"]}
    return sorted(kinds, key=lambda run: KINDS.index(kinds[run]) if kinds[run] in KINDS else len(KINDS))


def _matrix_figure(document: Document) -> Any:
    """Models down, plants across, macro-F1 in percent in every cell that was judged; the chosen ones framed."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    runs, plants = _runs(document), list(document["plants"])
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
                axes.text(column, row, _percent(value), ha="center", va="center", color=ink, weight=weight)
    axes.set_xticks(range(len(plants)), plants, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(runs)), runs, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    words = f"\n{SYNTHETIC}" if document["synthetic"] else ""
    axes.set_title(f"Macro-F1 (%), framed: chosen{words}", fontsize=10, loc="left")
    return figure
