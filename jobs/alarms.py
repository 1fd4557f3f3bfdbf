"""What somebody should look at before a plant's model goes on the line, in sentences, from the document alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.cells import Document
from jobs.incumbent_section import AGAINST
from plants.verdict import amount

WITHDRAWN = "WITHDRAWN by the sealed test: significantly worse there than the frozen baseline"


def sealed_of(name: str, document: Document) -> Mapping[str, Any]:
    """What the sealed test said of the bundle that is decided for; nothing where it was not opened for it."""
    row: Mapping[str, Any] = ((document.get("sealed") or {}).get("plants") or {}).get(name) or {}
    is_same = row.get("bundle") == document["decisions"].get(name, {}).get("bundle")
    return row if is_same else {}


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
    if curve.get("review_load") is not None and curve["review_load"] > curve["review_capacity"]:
        load, most = (f"{100 * curve[key]:.1f} %" for key in ("review_load", "review_capacity"))
        said.append(f"a person has to look at {load} of the parts, and people can at {most}")
    policy = decision.get("policy")
    said += [note for note in (policy.get("note", ()) if isinstance(policy, Mapping) else ()) if "infeasible" in note]
    return said


def is_lost(gain: Mapping[str, Any] | None) -> bool:
    """Whether a paired difference is shown to be for the worse."""
    if not gain or gain.get("low") is None:
        return False
    return bool(gain["low"] > 0 if gain["metric"] == "cost" else gain["high"] < 0)
