"""How a model is chosen while it learns: on `select`, per part, by likelihood; its worth is said in money beside it.

Money at a threshold hangs on the few parts next to it, and which plant is the worst on chance. Cheap enough for every
epoch; the deciding comparison between models is made elsewhere, on `decide`, in money.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.activations import PlantData, ok_mask
from jobs.losses import told_leaves
from plants.labels import truth_of_parts
from plants.plant import Costs, projection
from plants.scores import pool_groups

SHRINK_PARTS = 20
"""A plant's score is shrunk towards the mean of all plants as if it had this many more average parts."""


@dataclass(frozen=True, slots=True)
class Score:
    """The lower nll is kept; a higher value is worth more, 1 is perfect. None: nothing to judge by."""

    value: float | None
    nll: float | None
    by_plant: dict[str, float]

    def beats(self, other: Score | None) -> bool:
        """Whether this one is to be kept instead of the other."""
        if other is None or other.nll is None or self.nll is None or math.isnan(other.nll):
            return True
        return self.nll < other.nll


@dataclass(frozen=True, slots=True)
class SelectSet:
    """The parts of one plant that choices are made on."""

    plant: str
    frame_groups: np.ndarray
    part_groups: np.ndarray
    truth: np.ndarray
    lots: np.ndarray
    """The lot of every part [P]."""
    classes: tuple[str, ...]
    ok_classes: tuple[str, ...]
    matrix: np.ndarray
    told: np.ndarray
    """Leaves that the labels tell of, bool [L]: only among these is likelihood counted."""
    ok_leaves: np.ndarray
    top_k: int
    costs: Costs


def select_set(
    data: PlantData, *, leaf_sets: dict[str, tuple[str, ...]], leaves: Sequence[str], with_train: bool = False
) -> SelectSet:
    """The select rows of a plant, or all its rows, grouped into frames and parts."""
    rows = data.rows if with_train else data.rows.iloc[data.num_train :]
    frames, frame_groups = np.unique(rows["frame"].to_numpy(dtype=object), return_inverse=True)
    first = rows.drop_duplicates("frame").set_index("frame").loc[list(frames)]
    part_ids, part_groups = np.unique(first["part_id"].to_numpy(dtype=object), return_inverse=True)
    truth = truth_of_parts(first["truth"].to_numpy(dtype=object), part_groups, ok=data.plant.ok)
    classes = data.plant.annotated
    return SelectSet(
        plant=data.plant.name,
        frame_groups=frame_groups,
        part_groups=part_groups,
        truth=truth,
        lots=first.drop_duplicates("part_id").set_index("part_id")["lot"].loc[list(part_ids)].to_numpy(dtype=object),
        classes=classes,
        ok_classes=data.plant.ok,
        matrix=projection(leaves, leaf_sets, classes),
        told=told_leaves(data.plant, leaf_sets=leaf_sets, leaves=leaves),
        ok_leaves=ok_mask(leaves),
        top_k=max(e.geometry.top_k for e in data.plant.environments.values()),
        costs=data.plant.costs,
    )


def part_probabilities(probs: np.ndarray, *, among: SelectSet) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities of parts [P, C], and what lies on leaves that labels tell of [P], from inputs' [N, L]."""
    frames, _ = pool_groups(probs, among.frame_groups, ok=among.ok_leaves, top_k=among.top_k)
    parts, _ = pool_groups(frames, among.part_groups, ok=among.ok_leaves, top_k=1)
    return parts @ among.matrix, parts @ among.told


def score(probs: Sequence[np.ndarray], *, sets: Sequence[SelectSet]) -> Score:
    """The worst plant's value after shrinkage, and the mean nll of all plants alike."""
    values, losses, sizes = {}, [], {}
    for block, among in zip(probs, sets, strict=True):
        if not len(among.truth):
            continue
        parts, told = part_probabilities(block, among=among)
        losses.append(float(_losses(parts, told, among=among).mean()))
        values[among.plant] = plant_value(parts, among=among)
        sizes[among.plant] = len(among.truth)
    if not values:
        return Score(value=None, nll=None, by_plant={})
    mean = float(np.mean(list(values.values())))
    shrunk = [(sizes[p] * v + SHRINK_PARTS * mean) / (sizes[p] + SHRINK_PARTS) for p, v in values.items()]
    return Score(value=min(shrunk), nll=float(np.mean(losses)), by_plant=values)


def part_losses(probs: np.ndarray, *, among: SelectSet) -> np.ndarray:
    """-log likelihood of every part's class [P], among the leaves that labels tell of, from inputs' [N, L]."""
    return _losses(*part_probabilities(probs, among=among), among=among)


def _losses(parts: np.ndarray, told: np.ndarray, *, among: SelectSet) -> np.ndarray:
    at = np.array([among.classes.index(name) for name in among.truth])
    hit = parts[np.arange(len(at)), at] / np.clip(told, 1e-7, None)
    return -np.log(np.clip(hit, 1e-7, 1))


def plant_value(parts: np.ndarray, *, among: SelectSet) -> float:
    """1 - expected cost / cost of not looking, where good and bad parts are there; else macro-F1."""
    good = np.isin(among.truth, among.ok_classes)
    if good.any() and not good.all():
        ok = np.isin(among.classes, among.ok_classes)
        return 1.0 - _relative_cost(1.0 - parts[:, ok].sum(1), good=good, among=among)
    return macro_f1(among.truth, np.asarray(among.classes, dtype=object)[parts.argmax(1)])


def _relative_cost(p_defect: np.ndarray, *, good: np.ndarray, among: SelectSet) -> float:
    """Cost at the best single threshold over the cheaper of passing all and rejecting all; ties count by halves."""
    rate = among.costs.defect_rate[2]
    miss = np.array([among.costs.miss_by_class.get(name, among.costs.miss) for name in among.truth])
    miss_each = np.where(good, 0.0, rate * miss / (~good).sum())
    alarm_each = np.where(good, (1 - rate) * among.costs.false_alarm / good.sum(), 0.0)
    order = np.argsort(p_defect, kind="stable")
    passed = np.concatenate([[0.0], np.cumsum(miss_each[order])])
    rejected = np.concatenate([[0.0], np.cumsum(alarm_each[order][::-1])])[::-1]
    edges = np.concatenate([[True], np.diff(p_defect[order]) > 0, [True]])
    total = (passed + rejected)[edges]
    idle = min(miss_each.sum(), alarm_each.sum())
    return float(total.min() / idle) if idle > 0 else 0.0


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the classes that occur in truth."""
    scores = []
    for name in sorted(set(truth.tolist())):
        hit = ((truth == name) & (predicted == name)).sum()
        scores.append(2 * hit / ((truth == name).sum() + (predicted == name).sum()))
    return float(np.mean(scores))
