"""Learning rates over stages and steps, and what a curve says in words. Pure functions, tested as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.recipe import Recipe, Stage


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
