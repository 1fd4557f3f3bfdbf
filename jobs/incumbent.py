"""The existing inspection beside the models: what it costs on the parts of a role that it has judged, and the gap.

It is a row of the matrix and never a candidate. What it let pass is seen here only as far as somebody labelled such
parts: where labels come from what it stopped, its escapes are undercounted.
"""

from __future__ import annotations

from typing import Any

from jobs.candidates import cell, nameless
from jobs.incumbent_section import AGAINST
from jobs.scoring import RoleInputs
from plants.differences import paired
from plants.incumbent import INCUMBENT, Incumbent, judged
from plants.metrics import report
from plants.plant import Fleet, Plant
from plants.policy import Policy
from plants.scores import PartScores
from plants.shared import shared_classes, shared_f1

Figures = dict[str, Any]
UNNAMED = "no class"
"""What the confusion calls a part that is stopped without a class."""


def incumbent_at(
    plant: Plant, *, fleet: Fleet, inputs: RoleInputs, scores: PartScores, policy: Policy, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its cell of the matrix by its name, and the plant's details of it; nothing where it has judged no part.

    scores, policy: What the chosen model says of the parts of `inputs`, and how that is decided.
    """
    if INCUMBENT not in inputs.frames:
        return {}, {}
    said = inputs.frames[INCUMBENT].to_numpy(dtype=object)
    found = judged(scores, said=said, part_of=inputs.part_groups, plant=plant)
    if found is None:
        return {}, {}
    figures = _figures(found, plant=plant, fleet=fleet, seed=seed)
    same = scores.take(found.rows)
    chosen_there = report(same, policy=policy, seed=seed)
    gap = None
    if figures["cost"] and figures["cost"]["value"] is not None:
        gap = paired(same, found.scores, policy_a=policy, policy_b=found.policy, seed=seed)
    details = {
        INCUMBENT: {
            "figures": figures,
            "chosen": {key: chosen_there[key] for key in ("cost", "verdicts", "n", "n_lots")},
            "num_parts": len(found.rows),
        },
        AGAINST: gap,
    }
    return {INCUMBENT: cell(figures=figures)}, details


def _figures(found: Incumbent, *, plant: Plant, fleet: Fleet, seed: int) -> Figures:
    """The report of its verdicts: money and rates of all, figures of classes where it names them."""
    figures = report(found.scores, policy=found.policy, seed=seed)
    none = {"auc": None, "average_precision": None, "curves": None, "calibration": None}
    if found.named is None:
        return {**nameless(figures), **none}
    told = report(found.named, seed=seed)
    classes = [name or UNNAMED for name in told["confusion"]["classes"]]
    return {
        **figures,
        **none,
        "macro_f1": told["macro_f1"],
        "shared_f1": shared_f1(found.named, plant=plant, shared=shared_classes(fleet, plant), seed=seed),
        "per_class": {name: row for name, row in told["per_class"].items() if name},
        "confusion": {**told["confusion"], "classes": classes},
        "by_environment": told["by_environment"],
    }
