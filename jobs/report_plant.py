"""What the report says of one plant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.alarms import alarms, sealed_of
from jobs.cells import Document, count, figure_of, money, number, percent, text
from jobs.curves import curve_figure, curve_words
from jobs.learning import NUM_DRAWN
from jobs.matrix import runs_of
from jobs.page import inline_svg, table
from jobs.skill import skill_figure, skill_words
from plants.ensembles import described

MAX_MODELS = 60
"""What a plant's table shows of all models; `--json` has them all."""


def reports_of(name: str, document: Document) -> Mapping[str, Any]:
    """What was found out about a plant; nothing where nothing could be decided."""
    found: Mapping[str, Any] = document["details"].get(name, {})
    return found


def is_drawn(name: str, document: Document) -> bool:
    """Whether the plant's curves are drawn: a picture takes a third of a second, so the worst plants have them."""
    return name in document["plants"][:NUM_DRAWN]


def sides_of(name: str, document: Document) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The figures of the chosen model and of the frozen baseline; empty where there are none."""
    found = reports_of(name, document)
    return found.get("chosen") or {}, found.get("frozen") or {}


def decision(name: str, document: Document) -> str:
    """The model decided for, why, and where its policy passes, rejects and asks a person."""
    found = document["decisions"].get(name, {})
    told = "".join(f'<p class="alarm">{text(words)}</p>' for words in alarms(name, document))
    words = [f'<p><span class="chosen">{text(found.get("model"))}</span>: {text(found.get("why"))}.']
    if found.get("answer"):
        words.append(f"Shown on decide: {text(found['answer'])}.")
    for gap, other in (
        (found.get("interval"), found.get("against")),
        (found.get("gain"), "the frozen baseline"),
    ):
        if gap:
            show = money if gap["metric"] == "cost" else percent
            words.append(
                f"Difference in {text(gap['metric'].replace('_', ' '))} to {text(other)}: "
                f"{figure_of({**gap, 'value': gap['diff']}, show=show)}."
            )
    if len(found.get("members", ())) > 1:
        words.append(f"It is {text(described(found))}.")
    policy = found.get("policy")
    if isinstance(policy, Mapping):
        words += _limits(policy, kind=found.get("kind"))
        words += [f"{text(note)}." for note in policy.get("note", ())]
    names = {"bundle": found.get("bundle"), "policy": found.get("policy_digest")}
    digests = ", ".join(f"{key} <code>{text(name)}</code>" for key, name in names.items())
    words.append(f'<br><span class="small">{digests}</span></p>')
    return told + " ".join(words)


def _limits(policy: Mapping[str, Any], *, kind: str | None) -> list[str]:
    """Where the policy passes, rejects and asks a person."""
    far = policy.get("novelty_above")
    distance = "" if far is None else number(far, show=lambda value: f"{value:.2f}")
    if kind == "normality":
        return [f"It passes a part up to a distance of {distance} from good parts; farther, a person looks."]
    words = [
        f"It passes a part below a defect probability of {number(policy['pass_below'])} % and rejects above "
        f"{number(policy['reject_above'])} %; between them a person looks."
    ]
    if distance:
        words.append(f"A person looks, too, at a part farther than {distance} from what is known here.")
    return words


def tests(name: str, document: Document) -> str:
    """Every candidate less the one cheapest to serve; nothing where none was tested."""
    decision = document["decisions"].get(name, {})
    rows = []
    for row in decision.get("tests") or ():
        show = money if row["metric"] == "cost" else percent
        metric = text(row["metric"].replace("_", " "))
        gap = figure_of({**row, "value": row["diff"]}, show=show)
        rows.append([text(row["model"]), text(row["against"]), metric, text(row["words"]), gap])
    if not rows:
        return ""
    level = decision.get("level")
    caption = "Every candidate less the one cheapest to serve, the best first"
    shown = table(["candidate", "less", "in", "shown", "difference"], rows, num_words=4, caption=caption)
    words = "" if level is None else f"Each interval is at {number(level)} %, so that all hold together at 95 %."
    if by_f1 := decision.get("by_f1"):
        gap = figure_of({**by_f1, "value": by_f1["diff"]}, show=percent)
        rival, joint = text(decision["against"]), number(by_f1["level"])
        words += f" It was taken for its macro-F1, {gap} against {rival} at {joint} %: {text(by_f1['words'])}."
    return f'{shown}<p class="small">{words}</p>'


def models(name: str, document: Document) -> str:
    """Every model at the plant."""
    rows = []
    chosen = document["decisions"].get(name, {}).get("model")
    judged = [(run, document["matrix"][run].get(name) or {}) for run in runs_of(document)]
    judged = [(run, cell) for run, cell in judged if cell.get("n") is not None]
    judged.sort(key=lambda item: (item[0] != chosen, -(item[1].get("macro_f1") or 0)))
    for run, cell in sorted(judged[:MAX_MODELS], key=lambda item: -(item[1].get("macro_f1") or 0)):
        f1, cost, shared = (
            {"value": cell.get(key), "low": cell.get(f"{key}_low"), "high": cell.get(f"{key}_high")}
            for key in ("macro_f1", "cost", "shared_f1")
        )
        worst = f" ({text(cell['recall_class'])})" if cell.get("recall_class") else ""
        words = f'<span class="chosen">{text(run)}</span>, chosen' if run == chosen else text(run)
        words += f", on {text(cell['of'])} alone" if cell.get("of") else ""
        recall = number(cell.get("recall")) + worst
        rows.append(
            [words, figure_of(f1), figure_of(shared), recall, number(cell.get("auc")), figure_of(cost, show=money)]
            + [number(cell.get(key), show=count) for key in ("n", "n_lots")]
        )
    columns = ["model", "macro-F1", "over shared classes", "lowest recall (class)", "AUC", "cost a part"]
    columns += ["parts", "lots"]
    what = "Every model" if len(judged) <= MAX_MODELS else f"The chosen and the best of {len(judged)} models"
    shown = table(columns, rows, caption=f"{what} at this plant, best macro-F1 first")
    return f'<div class="tight">{shown}</div>'


def beyond(name: str, document: Document) -> str:
    """Models on what they have never seen beside the plant's own; nothing where none was fitted."""
    found = reports_of(name, document).get("outside")
    if not found:
        return ""
    rows = []
    for row in found:
        cells = [
            {"value": side.get("macro_f1"), "low": side.get("macro_f1_low"), "high": side.get("macro_f1_high")}
            for side in (row["outside"], row["inside"] or {})
        ]
        gap = row["difference"] and {**row["difference"], "value": row["difference"]["diff"]}
        models = [row["model"], (row["inside"] or {}).get("model")]
        words = [text(f"{row['what']}: {row['left_out']}"), *map(text, models)]
        counts = [number(row["outside"].get(key), show=count) for key in ("n", "n_lots")]
        rows.append([*words, *map(figure_of, cells), figure_of(gap), *counts])
    columns = ["left out", "out: has not seen it", "in: has seen it", "macro-F1 out", "macro-F1 in", "difference"]
    caption = "Out-of-plant beside in-plant, on the same parts: of a new plant, camera or product expect the first"
    return table([*columns, "parts", "lots"], rows, num_words=3, caption=caption)


def summary(name: str, document: Document) -> str:
    """What is said of the chosen model and of the frozen baseline in a few figures."""
    chosen, frozen = sides_of(name, document)
    if not chosen:
        return ""
    rows = []
    for words, key, show in (
        ("macro-F1", "macro_f1", percent),
        ("AUC, defect against ok", "auc", percent),
        ("average precision of defects", "average_precision", percent),
        ("cost a part", "cost", money),
    ):
        rows.append([words, *(figure_of(side.get(key), show=show) for side in (chosen, frozen))])
    errors = [number((side.get("calibration") or {}).get("ece")) for side in (chosen, frozen)]
    rows.append(["calibration error", *errors])
    for words, key in (("parts", "n"), ("lots", "n_lots")):
        rows.append([words, *(number(side.get(key), show=count) for side in (chosen, frozen))])
    return table(["", "chosen", "frozen baseline"], rows, caption="In short")


def classes(name: str, document: Document) -> str:
    """Recall, precision and F1 of every class."""
    chosen, frozen = sides_of(name, document)
    if not chosen:
        return ""
    caught = (chosen.get("verdicts") or {}).get("caught", {})
    rows = []
    for name, figures in chosen["per_class"].items():
        baseline = frozen.get("per_class", {}).get(name, {})
        rows.append(
            [
                text(name),
                number(figures["n"], show=count),
                figure_of(figures["recall"]),
                number(figures["precision"]),
                number(figures["f1"]),
                figure_of(baseline.get("recall")),
                figure_of(caught.get(name)),
            ]
        )
    columns = ["class", "parts", "recall", "precision", "F1", "frozen: recall", "caught by the verdict"]
    return table(columns, rows, caption="By class")


def confusion(name: str, document: Document) -> str:
    """Which class was taken for which, counted."""
    chosen, _ = sides_of(name, document)
    if not chosen:
        return ""
    found = chosen["confusion"]
    classes, counts = found["classes"], found["counts"]
    rows = []
    for name, row in zip(classes, counts, strict=True):
        total = sum(row)
        cells = "".join(
            f'<td class="num" style="background: rgba(0, 90, 160, {0.5 * n / total if total else 0:.2f})">'
            f"{number(n, show=count)}</td>"
            for n in row
        )
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    head = "".join(f'<th class="num" scope="col">{text(name)}</th>' for name in classes)
    return (
        '<div class="wide"><table><caption>Confusion: rows are the truth, columns what the model said</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def confused_pairs(name: str, document: Document) -> str:
    """Which class is taken for which, in words, the most costly first."""
    rows = [
        [text(row["words"]), number(row["share"]), number(row["cost"], show=money)]
        for row in reports_of(name, document).get("confused", ())
    ]
    caption = "Which class is taken for which, the most costly first"
    return table(["", "of its parts, %", "adds to the cost a part"], rows, caption=caption) if rows else ""


def severity(name: str, document: Document) -> str:
    """How near its severities come to the labels, and whether they are served; nothing where none is labelled."""
    rows, told = [], ""
    sealed = sealed_of(name, document).get("severity")
    for where, found in (("select and decide", reports_of(name, document).get("severity")), ("sealed test", sealed)):
        if found:
            shown = [figure_of(found[key]) for key in ("mae", "trivial_mae", "gain", "spearman")]
            rows.append([where, *shown, *(number(found[key], show=count) for key in ("n", "n_lots"))])
            told = told or found["words"]
    if not rows:
        return ""
    columns = ["bad parts of", "mean error", "of its class's median", "gain", "rank correlation", "parts", "lots"]
    shown = table(columns, rows, caption="How grave a defect is, in hundredths of the labels' scale from 0 to 1")
    return f'{shown}<p class="small">{text(told)}.</p>'


GROUPS = {
    "environment": "By environment, worst first",
    "product": "By product, worst first",
    "month": "By month in which a part was seen, worst first",
    "pose": "By pose, worst first: a part as it is seen from there alone",
}


def by_group(name: str, document: Document) -> str:
    """Macro-F1 and recall of defects by environment, product, month and pose where recorded, the worst first."""
    chosen, frozen = sides_of(name, document)
    if not chosen:
        return ""
    found: dict[str, Any] = {
        "environment": {"chosen": chosen["by_environment"], "frozen": frozen.get("by_environment")}
    }
    found |= reports_of(name, document).get("groups") or {}
    return "\n".join(_groups(what, sides) for what, sides in found.items())


def _groups(what: str, sides: Mapping[str, Any]) -> str:
    def badness(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
        value = item[1]["macro_f1"]
        return value is None, value or 0.0

    rows = []
    for name, figure in sorted(sides["chosen"].items(), key=badness):
        both = (figure, (sides.get("frozen") or {}).get(name))
        f1 = [side and {**side, "value": side["macro_f1"]} for side in both]
        recalls = [(side or {}).get("recall") for side in both]
        counts = [number(figure.get(key), show=count) for key in ("n", "n_lots")]
        rows.append([text(name), *map(figure_of, f1), *map(figure_of, recalls), *counts])
    columns = ["macro-F1", "frozen: macro-F1", "recall of defects", "frozen: recall", "parts", "lots"]
    return table([what, *columns], rows, caption=GROUPS[what])


def verdicts(name: str, document: Document) -> str:
    """What the policy lets through, stops and passes on to people."""
    chosen, frozen = sides_of(name, document)
    if not chosen:
        return ""
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
        rows.append([words, *map(figure_of, figures), number((figures[0] or {}).get("n"), show=count)])
    return table(["verdicts", "chosen", "frozen baseline", "parts"], rows, caption="What the verdicts do")


def skill(name: str, document: Document) -> str:
    """How well its scores rank and how honest they are, drawn for the worst plants."""
    chosen, frozen = sides_of(name, document)
    if not is_drawn(name, document) or not (chosen.get("curves") or chosen.get("calibration")):
        return ""
    label = f"ROC, precision and recall, and reliability of the chosen model at plant {name}"
    picture = inline_svg(skill_figure(chosen, frozen), name=f"skill-{name}", label=label)
    return f"<h3>How well it tells bad parts from good ones, and how sure it may be</h3>{picture}{skill_words(chosen)}"


def curve(name: str, document: Document) -> str:
    """What a part costs, by the defect rate of the line."""
    found = reports_of(name, document).get("curve")
    if not found:
        return ""
    label = f"Expected cost a part against the defect rate at plant {name}"
    picture = inline_svg(curve_figure(found), name=f"curve-{name}", label=label) if is_drawn(name, document) else ""
    return (
        f'<h3>What a part costs, by the defect rate of the line</h3>{picture}<p class="small">{curve_words(found)}</p>'
    )
