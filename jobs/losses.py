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
    lowest = torch.finfo(logits.dtype).min
    among = torch.logsumexp(logits.masked_fill(~mask, lowest), dim=1)
    hit = torch.logsumexp(logits.masked_fill(~targets, lowest), dim=1)
    return (weights * (among - hit)).mean()


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
