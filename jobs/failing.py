"""Where the chosen model of a plant fails: under corruptions, by product, month and pose, and on which parts.

Everything is of `decide`, through the exported files, beside the frozen baseline. A baseline of normality names no
class, so nothing is said of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.robustness import loudness, robustness, said_by
from jobs.scoring import RoleInputs
from plants.failures import ESCAPE, WRONG_CLASS, confused, failures
from plants.metrics import grouped
from plants.plant import Plant
from plants.verdict import Candidate


def failing(
    plant: Plant, *, chosen: Candidate, base: Candidate | None, inputs: RoleInputs, is_robust: bool, seed: int
) -> dict[str, Any]:
    """`groups`, `confused`, `failures` and `robustness` of the chosen model as the document holds them.

    is_robust: whether corruptions are tried. base: the frozen baseline.
    """
    if chosen.kind == "normality":
        return {"groups": {}, "confused": [], "failures": [], "robustness": None}
    leaf_sets = inputs.exports.material.fleet.leaf_sets(plant)
    models = {"chosen": chosen, **({"frozen": base} if base and base.name != chosen.name else {})}
    said = {"inputs": inputs, "leaf_sets": leaf_sets, "seed": seed}
    return {
        "groups": groups(models, **said),
        "confused": confused(chosen.scores, policy=chosen.judged_by),
        "failures": with_frames(failures(chosen.scores, policy=chosen.judged_by), chosen=chosen, inputs=inputs),
        "robustness": robustness(plant, models=models, **said) if is_robust else None,
    }


def groups(
    models: Mapping[str, Candidate], *, inputs: RoleInputs, leaf_sets: Mapping[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """`product`, `month` and `pose`, where two or more are recorded -> model -> figures by group, the worst first."""
    first = inputs.frames.drop_duplicates("part_id").set_index("part_id").loc[list(inputs.parts)]
    found = {}
    for what, names in {"product": _texts(first, "product"), "month": _months(first)}.items():
        known = names != ""
        if len(set(names[known])) > 1:
            found[what] = {k: grouped(m.scores.take(known), names[known], seed=seed) for k, m in models.items()}
    return {**found, **_by_pose(models, inputs=inputs, leaf_sets=leaf_sets, seed=seed)}


def _by_pose(
    models: Mapping[str, Candidate], *, inputs: RoleInputs, leaf_sets: Mapping[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Each part as it is seen from one pose alone, with what its frames from there were labelled."""
    poses = _texts(inputs.frames, "pose")
    if len(set(poses) - {""}) < 2:
        return {}
    rows = inputs.frames[poses != ""]
    alone = inputs.some(list(rows.index), keep=np.ones(len(inputs.inputs), dtype=bool))
    alone.split(_texts(alone.frames, "pose"))
    first = alone.frames.drop_duplicates("part_id").set_index("part_id").loc[list(alone.parts)]
    names = _texts(first, "pose")
    return {
        "pose": {
            key: grouped(said_by(model, inputs=alone, leaf_sets=leaf_sets), names, seed=seed)
            for key, model in models.items()
        }
    }


def _texts(table: Any, column: str) -> np.ndarray:
    """A column as text [N]; empty where nothing was recorded."""
    if column not in table:
        return np.full(len(table), "", dtype=object)
    values = table[column]
    return np.where(values.isna(), "", values.astype(str)).astype(object)


def _months(table: Any) -> np.ndarray:
    if "captured_at" not in table:
        return np.full(len(table), "", dtype=object)
    times = table["captured_at"]
    return np.where(times.isna(), "", times.dt.strftime("%Y-%m")).astype(object)


def with_frames(found: Sequence[Mapping[str, Any]], *, chosen: Candidate, inputs: RoleInputs) -> list[dict[str, Any]]:
    """The groups, whose examples say which `frame` shows most: of an escape one that is labelled so."""
    loud = np.zeros(len(inputs.frames))
    np.maximum.at(loud, inputs.frame_groups, loudness(chosen, inputs=inputs))
    table = inputs.frames.assign(_loud=loud)
    of_part = {str(part): rows for part, rows in table.groupby("part_id")}

    def frame(part_id: str, *, what: str, truth: str) -> str:
        rows = of_part[part_id]
        if what in (ESCAPE, WRONG_CLASS):
            rows = rows[rows["class"] == truth]
        return str(rows["_loud"].idxmax())

    return [
        {
            **group,
            "examples": [
                {**one, "frame": frame(one["part_id"], what=group["what"], truth=group["truth"])}
                for one in group["examples"]
            ],
        }
        for group in found
    ]
