"""What somebody should look at before a plant's model goes on the line, in sentences, from the document alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.cells import Document
from jobs.incumbent_section import AGAINST
from plants.confirmation import is_of
from plants.costs import is_overload
from plants.verdict import amount

WITHDRAWN = "WITHDRAWN by the sealed test: significantly worse there than the frozen baseline"


def sealed_of(name: str, document: Document) -> Mapping[str, Any]:
    """What the sealed test said of the bundle that is decided for; nothing where it was not opened for it."""
    row: Mapping[str, Any] = ((document.get("sealed") or {}).get("plants") or {}).get(name) or {}
    return row if is_of(row, document["decisions"].get(name, {})) else {}


def alarms(name: str, document: Document) -> list[str]:
    """The gravest first; nothing where all is as it should be."""
    decision, sealed = document["decisions"].get(name, {}), sealed_of(name, document)
    said = [WITHDRAWN] if sealed.get("withdrawn") else []
    if sealed.get("contaminated"):
        said.append(
            f"the sealed test is contaminated: the model has learned from {sealed['contaminated']} of its images"
        )
    if is_lost(decision.get("gain")):
        said.append("worse than the frozen baseline on decide, the interval excludes 0")
    promise = sealed.get("against_decide") or {}
    if promise.get("words") == "worse than promised":
        said.append(f"the sealed test: {amount(promise)} than decide had promised")
    details = document["details"].get(name) or {}
    said += [
        f"dearer than the existing inspection on {where}: {amount(gap)}"
        for where, gap in (("decide", details.get(AGAINST)), ("the sealed test", sealed.get(AGAINST)))
        if gap and is_lost(gap)
    ]
    chosen = details.get("chosen") or {}
    said += [
        f"{row['n']} parts of {label}, and the model names none of them"
        for label, row in chosen.get("per_class", {}).items()
        if row["n"] and row["recall"]["value"] == 0
    ]
    curve = details.get("curve") or {}
    load = curve.get("review_load")
    if load is not None and is_overload(load, capacity=curve["review_capacity"]):
        most = f"{100 * curve['review_capacity']:.1f} %"
        said.append(f"a person has to look at {100 * load:.1f} % of the parts, and people can at {most}")
    policy = decision.get("policy")
    said += [note for note in (policy.get("note", ()) if isinstance(policy, Mapping) else ()) if "infeasible" in note]
    return said


def is_lost(gain: Mapping[str, Any] | None) -> bool:
    """Whether a paired difference is shown to be for the worse."""
    if not gain or gain.get("low") is None:
        return False
    return bool(gain["low"] > 0 if gain["metric"] == "cost" else gain["high"] < 0)
