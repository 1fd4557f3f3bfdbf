"""The only epoch loop. Runs without Ray: data, time and storage come in as arguments.

A run first fits its head on frozen (or its parent's) features, to `select` too, where it is judged out of fold; one
from random weights begins with those. Then it unfreezes stage after stage from a head that has not seen `select`, as do
runs that start from this one; a stage that does not win there is not kept. State is written every few seconds at the
end of an epoch, and a run that is taken up again gives the same numbers as one that was never disturbed: all randomness
is drawn from (seed, stage, epoch).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobs import forgetting, lora
from jobs.activations import RunData
from jobs.adapt import Parent, copied, load_parent
from jobs.begin import at_random, with_head_fitted
from jobs.compute import PLAIN, Compute
from jobs.epoch import epoch_of, seldom
from jobs.objective import Objective
from jobs.recipe import Recipe, Stage
from jobs.run import BranchFactory, Checkpoints, Fitted, Run, World, agreed
from jobs.schedule import halving, jumping, overfitting, rate_groups
from jobs.selection import Score
from jobs.supervision import Supervision
from jobs.tasks import SeverityTask


def fit(
    model: BranchFactory,
    *,
    data: RunData,
    leaf_sets: Mapping[str, dict[str, tuple[str, ...]]],
    leaves: Sequence[str],
    recipe: Recipe,
    seed: int,
    parent: Parent | None = None,
    known: RunData | None = None,
    world: World | None = None,
    checkpoints: Checkpoints | None = None,
    compute: Callable[[int], Compute] = lambda cut: PLAIN,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_part: Callable[[dict[str, Any]], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Fitted:
    """The run's best branch on select; what its parent left to it, and no more, where that is refused.

    compute: by cut, in what steps are computed; what is judged is always computed in float32.
    on_epoch: told of every epoch; on_part: every `PART_S` at most, what share of an epoch is done (`part`).
    known: rows of plants that the parent learned from, for replay and to measure what is forgotten; `leaf_sets` and,
    for replay, `leaves` cover them too.
    Raises FloatingPointError where a loss is not finite, ValueError for rows that cannot be learned from.
    """
    checkpoints = checkpoints or Checkpoints()
    on_epoch = on_epoch or (lambda metrics: None)
    given: dict[str, Any] = {"leaf_sets": leaf_sets, "leaves": leaves}
    given |= {"max_class_weight": recipe.max_class_weight, "is_balanced": recipe.balance != "none"}
    taught = Supervision(data, **given)
    tell = seldom(on_part, clock=clock) if on_part else lambda row: None
    world = world or World()
    if known and recipe.replay and world.size > 1:
        raise ValueError("replay is for runs of one process")
    replay = forgetting.Replay(Supervision(known, **given), recipe.replay) if known and recipe.replay else None
    task = SeverityTask(taught, recipe=recipe) if recipe.tasks else None
    objective = Objective(taught, recipe=recipe)
    run = Run(model, taught, objective, recipe, seed, world, compute, tell, parent=parent, replay=replay, task=task)
    state = _restored(checkpoints.load())
    begin = at_random if recipe.init == "random" else with_head_fitted
    best = state.best if state else begin(run)
    best.score = agreed(best.score, world=run.world)
    best.donor = agreed(best.donor, world=run.world)
    if best.is_refused:
        return best
    if state is None:
        best.history.append({"stage": 0, "epoch": 0, "select": best.score.value, "select_nll": best.score.nll})
        on_epoch(best.history[0])
    for index, stage in enumerate(recipe.stages):
        if not stage.epochs or stage.cut < best.cut or (state and index < state.stage):
            continue
        resumed = state if state and state.stage == index else None
        won = _unfreeze(
            run, stage=stage, index=index, best=best, resumed=resumed, save=checkpoints, on_epoch=on_epoch, clock=clock
        )
        if not won:
            break
    if parent and known:
        _say_what_was_forgotten(best, model, parent=parent, known=known, leaf_sets=leaf_sets)
    return best


def _say_what_was_forgotten(best: Fitted, model: BranchFactory, *, parent: Parent, **given: Any) -> None:
    child = Parent(best.cut, best.leaves, state=best.state)
    best.forgetting = forgetting.forgotten(model, parent=parent, child=child, **given)
    best.notes.extend(forgetting.words(best.forgetting))


@dataclass
class _State:
    best: Fitted
    stage: int
    epoch: int
    stage_best: Score | None
    stage_best_state: dict[str, Tensor] | None
    branch: dict[str, Tensor]
    optimizer: dict[str, Any]
    since_best: int
    rate: float
    mean: dict[str, Tensor]
    """Of the weights of the epochs that count towards it, see `Recipe.average_epochs`."""


def _unfreeze(
    run: Run,
    *,
    stage: Stage,
    index: int,
    best: Fitted,
    resumed: _State | None,
    save: Checkpoints,
    on_epoch: Callable[[dict[str, Any]], None],
    clock: Callable[[], float],
) -> bool:
    """Train one stage from the best so far; `best` becomes its best epoch when that wins. Returns whether it won."""
    branch = _to_be_trained(run, stage=stage, best=best)
    optimizer = _optimizer(run, branch, stage=stage)
    learner = _with_task(run, branch, optimizer, stage=stage)
    at = resumed or _State(best, index, 0, None, None, {}, {}, 0, 1.0, {})
    mean = AveragedModel(branch) if run.recipe.average_epochs else None
    if resumed:
        learner.load_state_dict(resumed.branch)
        optimizer.load_state_dict(resumed.optimizer)
    if mean and at.mean:
        mean.load_state_dict(at.mean)
    wrapped = nn.parallel.DistributedDataParallel(learner, broadcast_buffers=False) if run.world.size > 1 else learner
    saved_at = clock()
    for epoch in range(at.epoch, stage.epochs):
        if at.since_best >= run.recipe.patience:
            break
        loss = epoch_of(run, wrapped, optimizer, stage=stage, index=index, epoch=epoch, scale=at.rate)
        _average_buffers(branch, world=run.world)
        found, kept = _judged(run, branch, mean=mean if epoch >= stage.epochs // 2 else None, cut=stage.cut)
        row = {"stage": index + 1, "epoch": epoch + 1, "loss": loss, "select": found.value, "select_nll": found.nll}
        row["rate"] = at.rate  # of the schedule's, halved where a rule says so
        best.history.append(row)
        on_epoch(row)
        if found.beats(at.stage_best):
            at.stage_best, at.stage_best_state, at.since_best = found, copied(kept), 0
        else:
            at.since_best += 1
        if why := halving(best.history, stage=index + 1, since_best=at.since_best, recipe=run.recipe):
            at.rate /= 2
            best.notes.append(f"stage {index + 1}, epoch {epoch + 1}: {why}, rate halved")
        at.epoch = epoch + 1
        if clock() - saved_at >= save.every_s and run.world.rank == 0:
            at.branch, at.optimizer = copied(learner), optimizer.state_dict()
            at.mean = copied(mean) if mean else {}
            save.save(_frozen(at))
            saved_at = clock()
    best.notes.extend(jumping(best.history, stage=index + 1, recipe=run.recipe))
    best.notes.extend(overfitting(best.history, stage=index + 1))
    if at.stage_best is None or at.stage_best_state is None or not at.stage_best.beats(best.score):
        best.notes.append(f"stage {index + 1} (cut {stage.cut}) did not win on select and was not kept")
        return False
    best.cut, best.score = stage.cut, at.stage_best
    best.state = best.start = at.stage_best_state
    if run.recipe.lora_rank:
        branch.load_state_dict(at.stage_best_state)
        best.adapter, best.state = lora.taken(branch)
        best.start = best.state
    return True


def _judged(run: Run, branch: Any, *, mean: AveragedModel | None, cut: int) -> tuple[Score, Any]:
    """The better on select of the branch and the mean, which then knows this epoch too, and its score."""
    found = agreed(run.taught.judge_branch(branch, cut=cut), world=run.world)
    if mean is None:
        return found, branch
    mean.update_parameters(branch)
    averaged = agreed(run.taught.judge_branch(mean.module, cut=cut), world=run.world)
    return (averaged, mean.module) if averaged.beats(found) else (found, branch)


def _to_be_trained(run: Run, *, stage: Stage, best: Fitted) -> Any:
    """The best so far as a branch at the stage's cut; with adapters, those it has go on learning where it has some."""
    branch = run.model.new_branch(
        stage.cut, run.taught.leaves, seed=run.seed, dropout=run.recipe.dropout, freeze_norm=run.recipe.freeze_norm
    )
    start = Parent(cut=best.cut, leaves=best.leaves, state=best.start)
    if below := run.parent if best.adapter else start:
        load_parent(branch, parent=below, leaves=run.taught.leaves)
    if rank := run.recipe.lora_rank:
        sample = run.taught.data.fetch(stage.cut, ids=run.taught.train_ids[:1]).to(next(branch.parameters()).device)
        chosen = lora.choose(branch, rank=rank, sample=sample)
        lora.attach(branch, rank=rank, layers=chosen.layers, seed=run.seed)
        lora.load(branch, best.adapter)
        words = f"cut {stage.cut}: {chosen.words}"
        best.notes.extend([words] if words not in best.notes else [])
    run.compute(stage.cut).place(branch)
    return branch


def _optimizer(run: Run, branch: Any, *, stage: Stage) -> torch.optim.Optimizer:
    """AdamW over what of the branch learns, with the recipe's pull towards where it started."""
    groups = rate_groups(branch, stage=stage, recipe=run.recipe)
    optimizer = torch.optim.AdamW(groups, weight_decay=run.recipe.weight_decay, fused=True)
    if run.recipe.l2_sp:
        origin = run.model.new_branch(stage.cut, run.taught.leaves, seed=run.seed)
        if run.parent:
            load_parent(origin, parent=run.parent, leaves=run.taught.leaves)
        forgetting.pull(optimizer, branch, towards=origin.state_dict(), strength=run.recipe.l2_sp)
    return optimizer


def _with_task(run: Run, branch: Any, optimizer: torch.optim.Optimizer, *, stage: Stage) -> Any:
    """The branch, with a severity head that learns beside it where the run has that task."""
    if not run.task:
        return branch
    joined = run.task.joined(branch, cut=stage.cut, data=run.taught.data)
    rate = stage.lr_head
    optimizer.add_param_group({"params": joined.own(), "lr": rate, "base": rate, "weight_decay": 0.0})
    return joined


def _average_buffers(branch: nn.Module, *, world: World) -> None:
    """BatchNorm statistics become the mean over processes."""
    if world.size > 1:
        for buffer in branch.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world.size


def _frozen(state: _State) -> bytes:
    raw = {k: v for k, v in asdict(state).items() if k not in ("best", "stage_best")}
    raw["best"] = {**vars(state.best), "score": asdict(state.best.score)}
    raw["stage_best"] = asdict(state.stage_best) if state.stage_best else None
    buffer = io.BytesIO()
    torch.save(raw, buffer)
    return buffer.getvalue()


def _restored(data: bytes | None) -> _State | None:
    if not data:
        return None
    raw = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    raw["best"] = Fitted(**{**raw["best"], "score": Score(**raw["best"]["score"])})
    raw["stage_best"] = Score(**raw["stage_best"]) if raw["stage_best"] else None
    return _State(**raw)
