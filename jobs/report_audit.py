"""What an auditor asks of the report: openings of the sealed test, splits, versions of data and code."""

from __future__ import annotations

from typing import Any

from jobs.alarms import WITHDRAWN, sealed_of
from jobs.cells import Document, count, figure_of, money, number, percent, text
from jobs.incumbent_section import incumbent_html
from jobs.page import table
from plants.confirmation import is_of

ROLES = ("train", "select", "decide", "test")


def openings(name: str, document: Document) -> str:
    """Who opened the sealed test of a plant, when and for what, and what came out for the bundle decided for."""
    known = document.get("sealed") or {}
    ledger = [row for row in known.get("ledger", ()) if row["plant"] == name]
    result, decision = sealed_of(name, document), document["decisions"].get(name, {})
    rows = []
    for i, row in enumerate(ledger, start=1):
        outcome = "another bundle than the one decided for now"
        is_own = any(is_of({"bundle": digest}, decision) for digest in row["bundles"])
        if is_own:
            outcome = "no result is kept"
        if result and (result["opening"] == i if "opening" in result else is_own):
            outcome = WITHDRAWN if result.get("withdrawn") else standing_of(result)
        digests = ", ".join(f"<code>{text(digest[:12])}</code>" for digest in row["bundles"])
        rows.append([str(i), number(row["generation"], show=count), text(row["at"]), text(row["who"])])
        rows[-1] += [digests, text(outcome)]
    if not ledger:
        return "<h3>The sealed test</h3><p>It is not known to have been opened for this plant.</p>"
    columns = ["opening", "generation", "when", "who", "bundle", "what came out"]
    caption = "Openings of the sealed test, oldest first"
    head = "<h3>The sealed test</h3>" + table(columns, rows, num_words=6, caption=caption)
    return head + (_result(result) if result else "")


def standing_of(result: Document) -> str:
    """What the sealed test says to the decision."""
    none = "no difference to the frozen baseline could be taken"
    if not result.get("frozen"):
        none = "it is the frozen baseline, or none was trained"
    return f"{result['standing']}: against the frozen baseline" if result.get("standing") else none


def _result(row: Document) -> str:
    sides = [row, row.get("frozen") or {}]
    rows = []
    for words, key, show in (("macro-F1", "macro_f1", percent), ("cost a part", "cost", money)):
        found = [{"value": s.get(key), "low": s.get(f"{key}_low"), "high": s.get(f"{key}_high")} for s in sides]
        rows.append([words, *(figure_of(figure, show=show) for figure in found)])
    for words, key in (("parts", "n"), ("lots", "n_lots")):
        rows.append([words, *(number(side.get(key), show=count) for side in sides)])
    gain = row.get("gain")
    said = ""
    if gain:
        show = money if gain["metric"] == "cost" else percent
        metric = text(gain["metric"].replace("_", " "))
        said = f"<p>Difference in {metric} to the frozen baseline there: "
        said += f"{figure_of({**gain, 'value': gain['diff']}, show=show)}.</p>"
    promise = row.get("against_decide")
    if promise:
        show, metric = (money if promise["metric"] == "cost" else percent), text(promise["metric"].replace("_", " "))
        said += f"<p>Its {metric} there less what decide had promised: "
        said += f"{figure_of({**promise, 'value': promise['diff']}, show=show)}, {text(promise['words'])}.</p>"
    columns = ["on the sealed test", "chosen", "frozen baseline"]
    return table(columns, rows, caption="What came out") + said + incumbent_html(row, where=" in the sealed test")


def versions(document: Document) -> str:
    """Code, trunk, data and splits of the comparison."""
    found = document.get("data")
    if not found:
        return ""
    names = {
        "crossplant": found["code_version"],
        "plan": document["plan"],
        "trunk": found["trunk"],
        "weights of the trunk": found["weights_digest"],
        "data of the plan": found["data_digest"],
        "record of splits": found["splits_digest"],
    }
    rows = [[text(what), f"<code>{text(value)}</code>"] for what, value in names.items()]
    return "<h2>For the auditor</h2>" + table(["what", "version or digest"], rows, num_words=2)


def splits(name: str, document: Document) -> str:
    """How the plant's lots were dealt to roles, and which rows its models may have learned from."""
    found: dict[str, Any] = ((document.get("data") or {}).get("plants") or {}).get(name) or {}
    if not found:
        return ""
    rows = []
    for role in ROLES:
        row = found["roles"].get(role) or {}
        counts = [number(row.get(key), show=count) for key in ("frames", "parts", "lots")]
        rows.append([role, number(found["declared"].get(role)), number(row.get("share")), *counts])
    columns = ["role", "declared, % of lots", "realised, % of lots", "frames", "parts", "lots"]
    known = "Lots are known." if found["lots_are_known"] else "No lot is known: every image is its own lot."
    words = (
        f"{known} Dealt by {text(found['order'])}. Snapshot of the rows that may be learned from: "
        f"<code>{text(found['snapshot'])}</code>. Flags: {text(found['governance'])}."
    )
    return f'<h3>Splits</h3>{table(columns, rows)}<p class="small">{words}</p>'
