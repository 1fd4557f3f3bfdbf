"""What a start is worth at a plant: how well heads on its features tell parts of lots that they have not seen.

Train and select speak alike, as a donor has learned from neither: with few labels a plant has no lot to spare. Where it
has learned from a plant, select speaks alone. Used where a donor is taken up (`jobs.begin`) and for the graph of donors
(`jobs.donors`); no stage is trained.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from jobs import adapt
from jobs.adapt import load_parent
from jobs.head import STRENGTHS, HeadFit, Lesson
from jobs.run import Run
from jobs.selection import SelectSet, select_set
from jobs.supervision import Supervision, forward, losses_of_parts

FOLDS = 5
"""Parts of the lots: each is judged by heads fitted to the others."""


@dataclass(frozen=True)
class Worth:
    """-log likelihood of parts [P], each by a head that has not seen its lot, and their lots [P]."""

    losses: np.ndarray
    lots: np.ndarray


def judge(run: Run, *, pretrained: Worth | None = None) -> dict[str, Any]:
    """What the start of the run's parent is worth against the pretrained one, see `jobs.adapt.judged`.

    pretrained: `worth_of` the same run without its parent, judged by the same lots, where that is known.
    """
    parent = run.parent
    assert parent is not None, "there is no donor to judge"
    run = replace(run, replay=None)
    base = pretrained or worth_of(replace(run, parent=None), known=parent.learned_from)
    losses = worth_of(run, known=parent.learned_from).losses
    return adapt.judged(parent.name, donor=-losses, pretrained=-base.losses, lots=base.lots)


def worth_of(run: Run, *, known: Collection[str] = ()) -> Worth:
    """Of the parent's features and head, without a parent of the pretrained ones.

    known: plants whose train rows are learned from, but judge nothing. No part where lots are too few to leave one out.
    """
    taught, parent = run.taught, run.parent
    cut = parent.cut if parent else 0
    branch = run.model.new_branch(cut, taught.leaves, seed=run.seed, dropout=run.recipe.dropout)
    prior = load_parent(branch, parent=parent, leaves=taught.leaves) if parent else None
    ids, sets = _judging(taught, known=known)
    fold = np.full(taught.data.offsets[-1], -1)
    fold[ids] = taught.folds(FOLDS, ids=ids)
    whole, origin = _seen(taught, branch, cut=cut)
    features = whole.features[: len(fold)]
    logits = torch.zeros(len(STRENGTHS), len(fold), len(taught.leaves))
    for one in range(FOLDS):
        at, rows = torch.from_numpy(fold == one), torch.from_numpy(fold[origin] != one) & (whole.weights > 0)
        if not len(ids) or not rows.any():
            return Worth(np.zeros(0), np.zeros(0, dtype=object))
        lesson = whole.rows(0).and_rows(whole, rows)
        with torch.enable_grad():
            for row, (_, head) in zip(logits, HeadFit(lesson, prior=prior).path(), strict=True):
                row[at] = head.logits(features[at])
    found = [losses_of_parts(row[torch.from_numpy(ids)], sets) for row in logits]
    lots = [among.lots for among in sets]
    return Worth(min(found, key=lambda losses: float(losses.sum())), np.concatenate(lots))


def _seen(taught: Supervision, branch: Any, *, cut: int) -> tuple[Lesson, np.ndarray]:
    """All rows as they are, then train rows in their other views, and the running index of each.

    A select row, which has one view, weighs as much as all views of a train row; what is not learned from weighs 0.
    """
    num_rows, views = int(taught.data.offsets[-1]), min(data.views for data in taught.data.plants)
    blocks = [np.arange(num_rows), *[taught.train_ids] * (views - 1)]
    features = [forward(branch, taught.data, cut=cut, ids=ids, view=view)[1] for view, ids in enumerate(blocks)]
    weights = taught.weights * torch.from_numpy(taught.data.column("is_learned").astype(bool)) * taught.targets.any(1)
    weights[torch.from_numpy(taught.select_ids)] *= views
    origin = np.concatenate(blocks)
    at = torch.from_numpy(origin)
    return Lesson(torch.cat(features).clone(), taught.targets[at], taught.mask[at], weights[at]), origin


def _judging(taught: Supervision, *, known: Collection[str]) -> tuple[np.ndarray, list[SelectSet]]:
    """Running indices of the rows that judge a start, plant by plant, and their parts."""
    ids, sets = [], []
    for i, source in enumerate(taught.data.plants):
        name = source.plant.name
        start, end = taught.data.offsets[i : i + 2]
        ids.append(taught.data.select_ids(i) if name in known else np.arange(start, end))
        leaf_sets = taught.leaf_sets[name]
        sets.append(select_set(source, leaf_sets=leaf_sets, leaves=taught.leaves, with_train=name not in known))
    return np.concatenate(ids), sets
