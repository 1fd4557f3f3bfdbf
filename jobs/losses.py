"""Losses over leaves, for labels that may be coarser than the leaves and classes that were never annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from plants.plant import Plant


def partial_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Mean of weight * -log P(any leaf of the label | leaves annotated at the plant).

    logits [N, L]; targets bool [N, L], the leaves a label covers; mask bool [N, L], leaves annotated where the image
    comes from; weights [N] with mean about 1. Source: learning from partial labels, Cour et al., JMLR 12 (2011).
    """
    return (weights * surprise(logits, targets, mask)).mean()


def surprise(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """-log P(any leaf of the targets | leaves annotated at the plant), [N]."""
    among, hit = _among(logits, ~mask), _among(logits, ~targets)
    return torch.logsumexp(among, dim=1) - torch.logsumexp(hit, dim=1)


def surprise_and_slope(logits: Tensor, not_targets: Tensor, not_mask: Tensor) -> tuple[Tensor, Tensor]:
    """`surprise` [N] and its gradient by the logits [L, N]: all with leaves first, which takes a third of the time."""
    among, hit = _among(logits, not_mask), _among(logits, not_targets)
    lost = torch.logsumexp(among, dim=0) - torch.logsumexp(hit, dim=0)
    return lost, torch.softmax(among, dim=0).sub_(torch.softmax(hit, dim=0))


def _among(logits: Tensor, others: Tensor) -> Tensor:
    return logits.masked_fill(others, torch.finfo(logits.dtype).min)


def focal(logits: Tensor, targets: Tensor, mask: Tensor, weights: Tensor, *, gamma: float) -> Tensor:
    """Mean of weight * (1 - p)^gamma * -log p, p of any leaf of the label: what is known well teaches little.

    With gamma 0 it is `partial_cross_entropy`. Not convex in the logits. Source: Lin et al., ICCV 2017.
    """
    lost = surprise(logits, targets, mask)
    missing = -torch.expm1(-lost)
    return (weights * missing.clamp_min(1e-6) ** gamma * lost).mean()


def expected_cost(logits: Tensor, wrong: Tensor, mask: Tensor, money: Tensor) -> Tensor:
    """Mean of money * P(any leaf that is wrong in money | leaves annotated at the plant).

    wrong: bool [N, L], the good leaves for a defect (a miss), the others for a good image (a false alarm); money [N].
    """
    return (money * torch.exp(-surprise(logits, wrong & mask, mask))).mean()


def money_at_stake(labels: Sequence[str], *, plants: Sequence[Plant]) -> np.ndarray:
    """What a wrong answer to each row costs [N]: in the mean 1 is passing or rejecting all, whichever is cheaper.

    plants: each row's own. Within a plant good rows and defects stand for the line at the high end of its defect rate,
    whatever their numbers here; plants count alike. A row is taken for a part: of tiles and frames it is a proxy.
    """
    names = np.asarray(labels, dtype=object)
    whose = np.asarray([plant.name for plant in plants], dtype=object)
    money = np.zeros(len(names))
    by_name = {plant.name: plant for plant in plants}
    for name, plant in by_name.items():
        rate, here = plant.costs.defect_rate[2], whose == name
        is_good = here & np.isin(names, plant.ok)
        is_bad = here & ~is_good
        miss = np.array([plant.costs.miss_by_class.get(label, plant.costs.miss) for label in names[is_bad]])
        money[is_bad] = rate * miss / max(is_bad.sum(), 1)
        money[is_good] = (1 - rate) * plant.costs.false_alarm / max(is_good.sum(), 1)
        missed = float(money[is_bad].sum()) if is_bad.any() else rate * plant.costs.miss
        money[here] *= len(names) / len(by_name) / min(missed, (1 - rate) * plant.costs.false_alarm)
    return money.astype(np.float32)


def label_targets(
    labels: Sequence[str], *, plant: Plant, leaf_sets: Mapping[str, Sequence[str]], leaves: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and mask, both bool [N, L], of a plant's own labels over a model's leaves."""
    rows = {name: np.isin(leaves, leaf_sets[name]) for name in plant.classes}
    none = np.zeros(len(leaves), dtype=bool)
    targets = np.array([rows.get(label, none) for label in labels], dtype=bool).reshape(-1, len(leaves))
    return targets, np.broadcast_to(told_leaves(plant, leaf_sets=leaf_sets, leaves=leaves), targets.shape)


def told_leaves(plant: Plant, *, leaf_sets: Mapping[str, Sequence[str]], leaves: Sequence[str]) -> np.ndarray:
    """Which leaves the plant's labels tell of, bool [L]: all but those of its unannotated classes."""
    silent = [leaf for name, value in plant.classes.items() if value.state == "unannotated" for leaf in leaf_sets[name]]
    return ~np.isin(leaves, silent)


def balanced_weights(labels: Sequence[str], *, plants: Sequence[str], max_class_weight: float) -> np.ndarray:
    """Weights [N], mean 1: every plant counts alike, and within a plant a class by the root of its rarity.

    A class weighs sqrt(largest / own count), at most `max_class_weight`; PRACTICE L1 asks for 3-5 for rare classes.
    """
    labels_, plants_ = np.asarray(labels, dtype=object), np.asarray(plants, dtype=object)
    weights = np.ones(len(labels_))
    names = sorted(set(plants_.tolist()))
    for plant in names:
        here = plants_ == plant
        counts = {name: int((labels_[here] == name).sum()) for name in set(labels_[here].tolist())}
        largest = max(counts.values())
        factors = {name: min(np.sqrt(largest / count), max_class_weight) for name, count in counts.items()}
        own = np.array([factors[name] for name in labels_[here]])
        weights[here] = own / own.sum() * len(labels_) / len(names)
    return weights.astype(np.float32)
