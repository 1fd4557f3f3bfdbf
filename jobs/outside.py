"""Models on what they have never seen, beside the plant's own model, which has, on the same parts of `decide`.

In-plant and out-of-plant are different words: the first says what a plant gets, the second what a new plant, a new
camera or a new product would get on its first day. Nothing here is a candidate for serving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.plan import Plan
from jobs.scoring import RoleInputs
from plants.differences import paired
from plants.metrics import report
from plants.scores import PartScores


def outside(
    plant: str,
    *,
    plan: Plan,
    run_ids: Sequence[str],
    inputs: RoleInputs,
    leaf_sets: Mapping[str, Sequence[str]],
    cell: Callable[..., dict[str, Any]],
    seed: int,
) -> list[dict[str, Any]]:
    """A row for every run of these that was fitted without the plant, or without an environment or product of it.

    cell: figures as the matrix holds them; without money, for nobody solves a policy for what was not seen. `inside`
    and `difference` are None where the plant has no own model, figures where no part of `decide` is of what was left
    out.
    """
    rows: list[dict[str, Any]] = []

    def scores_of(run_id: str) -> PartScores:
        return inputs.scores([inputs.probabilities(run_id)], leaf_sets=leaf_sets)

    for run in map(plan.run, run_ids):
        left_out = run.left_out
        if left_out is None or left_out.plant != plant:
            continue
        frames = inputs.frames[left_out.holds(inputs.frames)]
        seen_by_nobody = np.isin(inputs.parts, frames["part_id"].unique())
        own = f"own-{plant}-s{seed}"
        out = scores_of(run.run_id).take(seen_by_nobody)
        home = scores_of(own).take(seen_by_nobody) if own in run_ids else None
        rows.append(
            {
                "left_out": str(left_out),
                "what": left_out.what,
                "model": run.run_id,
                "outside": cell(figures=report(out, seed=seed)),
                "inside": {"model": own, **cell(figures=report(home, seed=seed))} if home is not None else None,
                "difference": paired(out, home, seed=seed) if home is not None and len(out) else None,
            }
        )
    return rows


def cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run -> its cell of the matrix, for runs that are judged on a part of the plant; `of` says on which."""
    return {row["model"]: {**row["outside"], "of": row["left_out"]} for row in rows if row["what"] != "plant"}
