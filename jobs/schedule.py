"""Learning rates over stages and steps, and what a curve says in words. Pure functions, tested as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jobs.recipe import Recipe, Stage

PLATEAU_EPOCHS = 3
"""Epochs without gain after which the plateau schedule halves the rate. Source: PRACTICE F4."""
JUMPS, JUMP = 4, 0.1
"""Steps of the select loss in a row, up and down in turn, each by more than this share of its lower end."""


def rate_groups(branch: Any, *, stage: Stage, recipe: Recipe) -> list[dict[str, Any]]:
    """Optimizer groups: the head at its own rate, each stage below it `layer_decay` slower than the one above.

    Adapters, beside which the stages stand still, all have one rate (README, Decisions).
    """
    if recipe.lora_rank:
        stages, head = (
            [[value for value in branch.body.parameters() if value.requires_grad]],
            list(branch.head.parameters()),
        )
    else:
        *stages, head = branch.stages()
    groups: list[dict[str, Any]] = [{"params": head, "lr": stage.lr_head, "base": stage.lr_head}]
    for depth, params in enumerate(reversed(stages)):
        rate = stage.lr_backbone * recipe.layer_decay**depth
        if params:
            groups.append({"params": params, "lr": rate, "base": rate})
    return groups


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """What the base rate is multiplied by: linear warm-up, then half a cosine down to 0.02, or flat for plateau."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "plateau":
        return 1.0
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def halving(history: Sequence[Mapping[str, Any]], *, stage: int, since_best: int, recipe: Recipe) -> str | None:
    """Why the rate is to be halved after the last epoch, in words; None where it is not.

    By plateau after every third epoch in a row without gain. By `on_jump` when `jumps_about` since the last halving.
    """
    if recipe.schedule == "plateau" and since_best > 0 and since_best % PLATEAU_EPOCHS == 0:
        return f"no gain for {PLATEAU_EPOCHS} epochs"
    rows = [row for row in history if row.get("stage") == stage]
    same = [row["select_nll"] for row in rows if row["rate"] == rows[-1]["rate"]]
    if recipe.on_jump == "halve" and jumps_about(same):
        return "the select loss jumps about"
    return None


def jumping(history: Sequence[Mapping[str, Any]], *, stage: int, recipe: Recipe) -> list[str]:
    """A sentence when the select loss jumped about and nothing was done about it, else nothing."""
    losses = [row["select_nll"] for row in history if row.get("stage") == stage]
    at = next((epoch for epoch in range(1, len(losses) + 1) if jumps_about(losses[:epoch])), None)
    if at is None or recipe.on_jump == "halve":
        return []
    return [f"stage {stage}: the select loss jumps about by epoch {at}; on_jump: halve would lower the rate there"]


def jumps_about(losses: Sequence[float | None]) -> bool:
    """Whether each of the last `JUMPS` steps goes the other way than the one before, by over `JUMP` of the lower end.

    A curve that falls with a wobble does not, nor does a flat one, nor one with a single bad epoch.
    """
    last = losses[-JUMPS - 1 :]
    if len(last) <= JUMPS or any(loss is None for loss in last):
        return False
    known = [loss for loss in last if loss is not None]
    steps = [after - before for before, after in pairwise(known)]
    is_large = all(abs(b - a) > JUMP * min(a, b) for a, b in pairwise(known))
    return is_large and all(one * other < 0 for one, other in pairwise(steps))


def overfitting(history: Sequence[Mapping[str, Any]], *, stage: int) -> list[str]:
    """A sentence when validation loss kept rising while training loss fell, else nothing."""
    rows = [row for row in history if row.get("stage") == stage and row.get("select_nll") is not None]
    if len(rows) < 4:
        return []
    lowest = min(range(len(rows)), key=lambda i: rows[i]["select_nll"])
    after = rows[lowest:]
    if (
        len(after) > 3
        and after[-1]["select_nll"] > 1.1 * after[0]["select_nll"]
        and after[-1]["loss"] < after[0]["loss"]
    ):
        return [f"stage {stage}: overfitting from epoch {rows[lowest]['epoch']}: select loss up, training loss down"]
    return []
