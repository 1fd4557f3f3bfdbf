"""One epoch: every training row once, in a random view; all that is random is drawn from (seed, stage, epoch)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.compute import Compute
from jobs.objective import portions
from jobs.recipe import Stage
from jobs.run import Run
from jobs.schedule import rate_factor

PART_S = 2.0
"""How often, at most, a run says how much of an epoch is done."""


def epoch_of(
    run: Run,
    branch: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    stage: Stage,
    index: int,
    epoch: int,
    scale: float,
) -> float:
    """One pass over the training rows, each in a random view; returns the mean loss of this process's share."""
    seed = np.random.SeedSequence([run.seed, index, epoch])
    rng = np.random.default_rng(seed)
    torch.manual_seed(int(seed.generate_state(1)[0]) + run.world.rank)
    order = run.objective.order(rng)
    views = rng.integers(0, run.taught.data.num_views(stage.cut), size=len(order))
    per_step = max(1, run.recipe.batch // run.world.size) * run.world.size
    steps = max(1, math.ceil(len(order) / per_step))
    branch.train()
    answer = _answering(branch, compute=run.compute(stage.cut))
    total, broken = 0.0, None
    for step in range(steps):
        take = np.arange(step * per_step, (step + 1) * per_step)[run.world.rank :: run.world.size] % len(order)
        ids = order[take]
        factor = rate_factor(
            epoch * steps + step,
            steps=stage.epochs * steps,
            warmup=stage.warmup_epochs * steps,
            schedule=run.recipe.schedule,
        )
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor * scale
        optimizer.zero_grad(set_to_none=True)
        for part in portions(branch, len(ids), accumulate=run.recipe.accumulate):
            logits, *of_task = answer(run.taught.data.fetch(stage.cut, ids=ids[part], views=views[take][part]))
            loss = run.objective(logits, torch.from_numpy(ids[part]))
            if run.task:
                loss = run.task.loss(loss, *of_task, torch.from_numpy(ids[part]))
            if run.replay:
                seeds = [run.seed, index, epoch, step, int(part[0])]
                loss = run.replay.mixed(loss, lambda x: answer(x)[0], cut=stage.cut, num=len(part), seed=seeds)
            (loss * (len(part) / len(ids))).backward()
            total += float(loss.detach()) * len(part) / len(ids)
        nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimizer.step()
        if broken is None and not math.isfinite(total):
            broken = ids
        run.on_part({"stage": index + 1, "epoch": epoch + 1, "part": (step + 1) / steps})
    return _finite(total / steps, run=run, epoch=epoch, batch=broken)


def _answering(branch: nn.Module, *, compute: Compute) -> Callable[[Tensor], list[Tensor]]:
    """Activations -> logits float32 [N, L], all on the CPU, by a branch where it is and as it computes fastest.

    Beside them what a branch joined with a task gives after its features, see `jobs.tasks`.
    """
    device = next(branch.parameters()).device

    def answer(activations: Tensor) -> list[Tensor]:
        with compute.autocast(device):
            logits, _, *of_task = branch(compute.laid(activations.to(device)))
        return [one.float().cpu() for one in (logits, *of_task)]

    return answer


def seldom(tell: Callable[[dict[str, Any]], None], *, clock: Callable[[], float]) -> Callable[[dict[str, Any]], None]:
    """Passes on what comes `PART_S` or more after what was passed on before, or after now."""
    told_at = clock()

    def maybe(row: dict[str, Any]) -> None:
        nonlocal told_at
        if clock() - told_at >= PART_S:
            told_at = clock()
            tell(row)

    return maybe


def _finite(loss: float, *, run: Run, epoch: int, batch: np.ndarray | None) -> float:
    """The mean over processes; every one of them raises when it is not finite anywhere. batch: where it first was."""
    if run.world.size > 1:
        value = torch.tensor([loss])
        dist.all_reduce(value)
        loss = float(value) / run.world.size
    if not math.isfinite(loss):
        plants, frames = (run.taught.data.column(name) for name in ("plant", "frame"))
        names = [] if batch is None else [f"{plants[i]}: {frames[i]}" for i in batch]
        first = f", first in the batch of {', '.join(names)}" if names else ""
        remedy = "lower the rates, or look at these images" if names else "lower the rates, or look for broken images"
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch + 1}{first}: {remedy}")
    return loss
