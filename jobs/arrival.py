"""What a new plant gets from a model that has never seen it, and from then on as its own labels arrive, lot by lot.

Heads alone are fitted, on the features of the model without the plant and towards its head, so that a plant takes
seconds. What stages of the plant's own would add is in the matrix, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from jobs.activations import RunData
from jobs.adapt import Parent, load_parent
from jobs.head import Head, HeadFit, Lesson
from jobs.losses import balanced_weights, surprise
from jobs.plan import Plan, RunSpec
from jobs.scoring import RoleInputs
from jobs.supervision import Supervision, forward
from plants.arrival import arrivals, level, sizes_up_to
from plants.costs import solve
from plants.metrics import report
from plants.scores import PartScores, softmax
from plants.verdict import idle_cost

PRIOR = 100.0
"""Of n rows the strength of the pull towards the parent's head is PRIOR / n^2: it counts like PRIOR / n rows, so that
few labels leave it nearly as it is and many forget it. 30, 100 and 300 were tried on fleets of seeds 100 to 102."""
FOLDS = 3
NUM_ORDERS = 4
NO_LABELS = "no labelled part may be learned from"


class Newcomer:
    """One plant, a finished run that was fitted without it, and heads of that run as the plant's labels arrive."""

    def __init__(self, plant: str, *, run: RunSpec, inputs: RoleInputs, seed: int = 0) -> None:
        """inputs: of the plant's `decide`. Nothing of its `train` is looked at before `orders` or `scores` ask."""
        self.plant, self.run, self.inputs, self.seed = plant, run, inputs, seed
        self.material = inputs.exports.material
        self.leaf_sets = self.material.fleet.leaf_sets(inputs.plant)
        self.leaves = self.material.leaves((*run.plants, plant))
        self.words, branch, self.path = inputs.exports.branch(run.run_id)
        parent = Parent(self.words["cut"], tuple(self.words["leaves"]), state=branch.state_dict())
        self.branch = self.material.model.new_branch(parent.cut, self.leaves)
        self.head = load_parent(self.branch, parent=parent, leaves=self.leaves)
        self.branch.align = branch.align

    def day_one(self) -> PartScores:
        """What the exported model says of the plant's `decide` parts, no label of the plant known."""
        return self.inputs.scores([self.inputs.probabilities(self.run.run_id)], leaf_sets=self.leaf_sets)

    @cached_property
    def orders(self) -> list[list[str]]:
        """The plant's labelled parts, of `train` and `select`, in the orders in which they may arrive."""
        if not (self.material.learning_rows(self.plant)["role"] == "train").any():
            return []
        rows = self.rows.drop_duplicates("part_id")
        taken = self.material.learning_rows(self.plant).set_index("frame")["captured_at"].loc[rows["frame"]]
        return arrivals(rows["part_id"], rows["lot"], taken, num=NUM_ORDERS, seed=self.seed)

    @cached_property
    def data(self) -> RunData:
        """The plant's rows that may be learned from, and others."""
        return RunData((self.material.data(self.plant),))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Those that a head learns from; the index is theirs among all rows. Nothing is chosen on `select` here."""
        rows = self.data.plants[0].rows
        return rows[
            rows["is_learned"].to_numpy(dtype=bool) & rows["label"].isin(self.inputs.plant.annotated).to_numpy()
        ]

    @cached_property
    def decided(self) -> torch.Tensor:
        """Pooled features [N, F] of the inputs of `decide`."""
        features = self.inputs.exports.evaluator.branch(self.path, self.inputs.activations[self.words["cut"]])[1]
        return torch.from_numpy(np.array(features, dtype=np.float32))

    @cached_property
    def lesson(self) -> tuple[pd.DataFrame, Lesson]:
        """The rows of all parts that arrive in any order, and what a head is taught of them, in the plain view."""
        given: dict[str, Any] = {"leaf_sets": {self.plant: self.leaf_sets}, "leaves": self.leaves}
        taught = Supervision(self.data, **given, max_class_weight=self.words["recipe"]["max_class_weight"])
        asked = {part for order in self.orders for part in order[: sizes_up_to(len(order))[-1]]}
        rows = self.rows[self.rows["part_id"].isin(asked)]
        ids = rows.index.to_numpy(dtype=np.int64, copy=True)
        features, at = forward(self.branch, self.data, cut=self.words["cut"], ids=ids)[1].clone(), torch.from_numpy(ids)
        return rows, Lesson(features, taught.targets[at], taught.mask[at], taught.weights[at])

    def scores(self, parts: Sequence[str]) -> PartScores:
        """What a head says that was fitted to these parts' rows too, or the parent's where that is no better for them.

        Which of the two is decided on these parts alone, by likelihood, each lot judged by a head that has not seen it.
        """
        rows, lesson = self.lesson
        at = np.flatnonzero(rows["part_id"].isin(list(parts)).to_numpy())
        folds = pd.factorize(rows["lot"].to_numpy(dtype=object)[at])[0] % FOLDS
        gain = 0.0
        with torch.enable_grad():
            for fold in range(int(folds.max()) + 1 if len(folds) else 0):
                head, out = self._fitted(at[folds != fold]), at[folds == fold]
                gain += _loss(self.head, lesson, at=out) - _loss(head, lesson, at=out)
            head = self._fitted(at) if gain > 0 else self.head
        probs = softmax(head.logits(self.decided).numpy())
        return self.inputs.scores([(probs, self.leaves)], leaf_sets=self.leaf_sets)

    def _fitted(self, at: np.ndarray) -> Head:
        """A head of these rows of the lesson that is pulled towards the parent's; of none, the parent's."""
        if not len(at):
            return self.head
        rows, lesson = self.lesson
        labels = rows["label"].to_numpy(dtype=object)[at]
        most = self.words["recipe"]["max_class_weight"]
        weights = balanced_weights(labels, plants=[self.plant] * len(at), max_class_weight=most)
        some = Lesson(lesson.features[at], lesson.targets[at], lesson.mask[at], torch.from_numpy(weights))
        ((_, head),) = HeadFit(some, prior=self.head).path([PRIOR / len(at) ** 2])
        return head


def _loss(head: Head, lesson: Lesson, *, at: np.ndarray) -> float:
    """The negative log-likelihood of these rows, summed."""
    logits = head.logits(lesson.features[at])
    return float(surprise(logits, lesson.targets[at], lesson.mask[at]).sum())


def arrival(plant: str, *, plan: Plan, run_ids: Sequence[str], inputs: RoleInputs, seed: int) -> dict[str, Any] | None:
    """Day one at a plant and the curve after it, where one of these runs was fitted without the plant; else None.

    `day_one` metric -> figure, `curve` [{labels, macro_f1, defect_recall, caught}] from no label on, `words` where it
    ends there. Money is the share of what passing all or rejecting all costs, with thresholds that no label has chosen.
    """
    left = [run for run in map(plan.run, run_ids) if run.left_out and str(run.left_out) == plant]
    if not left:
        return None
    new = Newcomer(plant, run=left[0], inputs=inputs, seed=seed)
    first = new.day_one()
    orders = new.orders
    curve = [{"labels": 0, **level([first], seed=seed)}]
    for size in sizes_up_to(len(orders[0])) if orders else []:
        curve.append({"labels": size, **level([new.scores(order[:size]) for order in orders], seed=seed)})
    return {
        "plant": plant,
        "model": left[0].run_id,
        "n": len(first),
        "n_lots": len(set(first.lots)),
        "num_orders": len(orders),
        "day_one": {
            **{key: curve[0][key] for key in ("macro_f1", "defect_recall")},
            **_of_scores(first, new, seed=seed),
        },
        "curve": curve,
        "words": None if orders else NO_LABELS,
    }


def _of_scores(scores: PartScores, new: Newcomer, *, seed: int) -> dict[str, Any]:
    """AUC of defects, and money as a share of that of not looking; a figure's value is None where it is not counted."""
    plant = new.inputs.plant
    nobody = solve(scores.take(np.zeros(0, dtype=np.intp)), costs=plant.costs, plant=plant.name)
    figures = report(scores, policy=nobody, seed=seed)
    idle, none = idle_cost(plant), {"value": None, "low": None, "high": None, "words": "nothing counted"}
    auc, cost = figures["auc"] or none, figures["cost"] or none
    share = {key: None if cost[key] is None or not idle else cost[key] / idle for key in ("value", "low", "high")}
    return {"auc": {**auc, "n": len(scores)}, "cost": {**cost, **share, "n": len(scores)}}
