"""What weighting rare classes did to the others: recall by class on `select`, of a head with and without weights.

Both heads were fitted to `train` alone at one strength, so that neither has seen what it is judged on. Of few lots
little can be said: read the counts, not only the sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import bdtr
from torch import Tensor

from jobs.head import Head, HeadFit, Lesson
from jobs.selection import part_probabilities
from jobs.supervision import Supervision
from plants.scores import softmax

CHANCE = 0.05
"""A class is said to have fallen when chance alone would let it fall in as many of its changed lots this rarely."""


def measure(
    head: Head, *, lesson: Lesson, prior: Head | None, strength: float, select: Tensor, taught: Supervision
) -> list[dict[str, Any]]:
    """A row a plant and class of `select`, see `effects`; none where nothing weighs more or nothing is there to judge.

    head: fitted to the lesson at this strength. select: features [N, F] in the order of `select_ids`.
    """
    if not len(select) or bool((lesson.weights == lesson.weights[0]).all()):
        return []
    alike = replace(lesson, weights=torch.ones_like(lesson.weights))
    [(_, plain)] = HeadFit(alike, prior=prior).path((strength,))
    return effects(taught, weighted=head.logits(select), plain=plain.logits(select))


def effects(taught: Supervision, *, weighted: Tensor, plain: Tensor) -> list[dict[str, Any]]:
    """A row a plant and class: its `parts`, how many are `found`, were `found_plain`, and in how many lots it changed.

    weighted, plain: logits [N, L] in the order of `select_ids`. A part is found when its class is the likeliest.
    """
    ends = np.cumsum([len(taught.data.select_ids(i)) for i in range(len(taught.sets))])[:-1]
    blocks = [np.split(softmax(logits.detach().numpy()), ends) for logits in (weighted, plain)]
    rows: list[dict[str, Any]] = []
    for i, (among, source) in enumerate(zip(taught.sets, taught.data.plants, strict=True)):
        if not len(among.truth):
            continue
        named = [np.asarray(among.classes, object)[part_probabilities(b[i], among=among)[0].argmax(1)] for b in blocks]
        found, before = (words == among.truth for words in named)
        by_part = source.rows.iloc[source.num_train :].drop_duplicates("part_id").sort_values("part_id")
        for name in among.classes:
            here = among.truth == name
            lots, at = np.unique(by_part["lot"].to_numpy(dtype=object)[here], return_inverse=True)
            net = np.bincount(at, weights=found[here].astype(float) - before[here], minlength=len(lots))
            rows.append(
                {
                    "plant": among.plant,
                    "class": name,
                    "parts": int(here.sum()),
                    "found": int(found[here].sum()),
                    "found_plain": int(before[here].sum()),
                    "lots_down": int((net < 0).sum()),
                    "lots_up": int((net > 0).sum()),
                }
            )
    return rows


def has_fallen(row: Mapping[str, Any]) -> bool:
    """Whether fewer parts are found, in so many more lots than it rose in that chance does it once in 20 times.

    The sign test over the lots that changed: at least five, all down. Parts of one lot are not counted apart.
    """
    down, up = row["lots_down"], row["lots_up"]
    return bool(row["found"] < row["found_plain"] and bdtr(up, down + up, 0.5) <= CHANCE)


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every class that has fallen, with what to do about it."""
    return [
        f"plant {row['plant']}: weighting by class cost {row['class']!r}: found in {row['found']} of {row['parts']} "
        f"select parts, without weights in {row['found_plain']} ({row['lots_down']} lots down, {row['lots_up']} up); "
        "try a lower max_class_weight"
        for row in rows
        if has_fallen(row)
    ]
