"""The only epoch loop. Runs without Ray: data, time and storage come in as arguments.

A run first fits its head on frozen (or its parent's) features, to `select` too, where it is judged out of fold; one
from random weights begins with those. Then it unfreezes stage after stage from a head that has not seen `select`, as do
runs that start from this one; a stage that does not win there is not kept. State is written every few seconds at the
end of an epoch, and a run that is taken up again gives the same numbers as one that was never disturbed: all randomness
is drawn from (seed, stage, epoch).
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs import adapt, forgetting, lora
from jobs.activations import RunData
from jobs.adapt import Parent, load_parent
from jobs.compute import PLAIN, Compute
from jobs.head import Head, HeadFit, Lesson
from jobs.objective import Objective, portions
from jobs.recipe import Recipe, Stage
from jobs.reweighting import measure, sentences
from jobs.schedule import halving, jumping, overfitting, rate_factor, rate_groups
from jobs.selection import Score
from jobs.supervision import Supervision, forward

T = TypeVar("T")
FOLDS = 3
"""Parts of `select`: a head fitted to it is judged on each by one that was fitted to the other parts."""


class BranchFactory(Protocol):
    """What is needed of `jobs.model.CutModel`: branches at a cut, with pretrained stages."""

    def new_branch(
        self, cut: int, leaves: Sequence[str], *, seed: int = 0, dropout: float = 0.3, freeze_norm: bool = False
    ) -> Any:
        """A branch: forward(activation) -> (logits [N, L], features [N, F])."""


@dataclass(frozen=True)
class World:
    """The processes that fit one run together by DDP."""

    rank: int = 0
    size: int = 1


@dataclass
class Fitted:
    """What a run learned: the branch at the cut that won, and how it got there."""

    cut: int
    leaves: tuple[str, ...]
    state: dict[str, Tensor]
    score: Score
    start: dict[str, Tensor]
    """The same branch with a softer head that has not seen `select`: stages and other runs go on from it."""
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reweighting: list[dict[str, Any]] = field(default_factory=list)
    """What weighting by class did to the recall of each class, see `jobs.reweighting`."""
    adapter: dict[str, Tensor] = field(default_factory=dict)
    """Where the branch was adapted (`Recipe.lora_rank`): the factors, and the head, without what they were laid on."""
    donor: dict[str, Any] | None = None
    """What the start of its parent was worth, see `jobs.adapt.judged`; None without a parent."""
    forgetting: dict[str, dict[str, float | None]] | None = None
    """What it lost at the plants that its parent knew, see `jobs.forgetting.forgotten`; None where not measured."""

    @property
    def is_refused(self) -> bool:
        """Whether the parent's start was shown to be worse than the pretrained one, so that nothing was built on it."""
        return self.donor is not None and bool(self.donor["refused"])


@dataclass
class Checkpoints:
    """Where a run keeps its state; the defaults keep none."""

    load: Callable[[], bytes | None] = lambda: None
    save: Callable[[bytes], None] = lambda data: None
    every_s: float = 15.0


@dataclass(frozen=True)
class _Run:
    model: BranchFactory
    taught: Supervision
    objective: Objective
    recipe: Recipe
    seed: int
    world: World
    compute: Callable[[int], Compute]
    on_part: Callable[[dict[str, Any]], None] = lambda row: None
    parent: Parent | None = None
    replay: forgetting.Replay | None = None


PART_S = 2.0
"""How often, at most, a run says how much of an epoch is done."""


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
    taught = Supervision(
        data,
        leaf_sets=leaf_sets,
        leaves=leaves,
        max_class_weight=recipe.max_class_weight,
        is_balanced=recipe.balance != "none",
    )
    objective = Objective(taught, recipe=recipe)
    tell = _seldom(on_part, clock=clock) if on_part else lambda row: None
    world = world or World()
    replay = _replay(known, leaf_sets=leaf_sets, leaves=leaves, recipe=recipe, world=world)
    run = _Run(
        model, taught, objective, recipe, seed, world=world, compute=compute, on_part=tell, parent=parent, replay=replay
    )
    state = _restored(checkpoints.load())
    begin = _at_random if recipe.init == "random" else _with_head_fitted
    best = state.best if state else begin(run)
    best.score = _agreed(best.score, world=run.world)
    best.donor = _agreed(best.donor, world=run.world)
    if best.is_refused:
        return best
    if state is None:
        best.history.append({"stage": 0, "epoch": 0, "select": best.score.value, "select_nll": best.score.nll})
        on_epoch(best.history[0])
    for index, stage in enumerate(recipe.stages):
        if stage.cut < best.cut or (state and index < state.stage):
            continue
        resumed = state if state and state.stage == index else None
        won = _unfreeze(
            run, stage=stage, index=index, best=best, resumed=resumed, save=checkpoints, on_epoch=on_epoch, clock=clock
        )
        if not won:
            break
    if parent and known:
        child = Parent(best.cut, best.leaves, state=best.state)
        best.forgetting = forgetting.forgotten(model, parent=parent, child=child, known=known, leaf_sets=leaf_sets)
        best.notes.extend(forgetting.words(best.forgetting))
    return best


def _at_random(run: _Run) -> Fitted:
    """The whole net as it was made, which knows nothing, and what that is worth on select."""
    assert run.parent is None, "a run that starts from another one starts from what that has learned"
    cut, taught = run.recipe.stages[0].cut, run.taught
    branch = run.model.new_branch(cut, taught.leaves, seed=run.seed, dropout=run.recipe.dropout)
    state, found = _copy(branch), taught.judge_branch(branch, cut=cut)
    return Fitted(cut=cut, leaves=taught.leaves, state=state, score=found, start=state, notes=["from random weights"])


def _replay(
    known: RunData | None,
    *,
    leaf_sets: Mapping[str, dict[str, tuple[str, ...]]],
    leaves: Sequence[str],
    recipe: Recipe,
    world: World,
) -> forgetting.Replay | None:
    """The rows to be mixed into every step; None where the recipe or the lack of a parent asks for none."""
    if known is None or not recipe.replay:
        return None
    if world.size > 1:
        raise ValueError("replay is for runs of one process")
    taught = Supervision(known, leaf_sets=leaf_sets, leaves=leaves, max_class_weight=recipe.max_class_weight)
    return forgetting.Replay(taught, recipe.replay)


def _with_head_fitted(run: _Run) -> Fitted:
    """The parent's branch, or the whole frozen backbone, with a head fitted to these rows."""
    taught, parent = run.taught, run.parent
    cut = parent.cut if parent else 0
    branch = run.model.new_branch(cut, taught.leaves, seed=run.seed, dropout=run.recipe.dropout)
    prior = load_parent(branch, parent=parent, leaves=taught.leaves) if parent else None
    fitted, losses = _on_features(run, branch, cut=cut, prior=prior)
    if parent:
        if run.replay:
            losses = _on_features(replace(run, replay=None), branch, cut=cut, prior=prior)[1]
        plain = run.model.new_branch(0, taught.leaves, seed=run.seed, dropout=run.recipe.dropout)
        pretrained = _on_features(run, plain, cut=0, prior=None)[1]
        lots = taught.part_lots
        fitted.donor = adapt.judged(parent.name, donor=-losses, pretrained=-pretrained, lots=lots)
        fitted.notes.append(adapt.words(fitted.donor, num_lots=len(set(lots))))
    return fitted


def _on_features(run: _Run, branch: Any, *, cut: int, prior: Head | None) -> tuple[Fitted, np.ndarray]:
    """The branch with a head fitted to these rows, and the loss of every select part [P], judged out of fold."""
    taught = run.taught
    views = min(d.views for d in taught.data.plants)
    lesson = _lesson(taught, branch, cut=cut, ids=taught.train_ids, views=range(views))
    has_select = len(taught.select_ids) > 0
    select = _lesson(taught, branch, cut=cut, ids=taught.select_ids, views=range(1)) if has_select else lesson.rows(0)
    weight = 1.0
    if run.replay and prior:
        old = run.replay.taught
        lesson, weight = run.replay.beside(lesson, _lesson(old, branch, cut=cut, ids=old.train_ids, views=range(1)))
    losses = np.zeros(0)
    with torch.enable_grad():
        heads = HeadFit(lesson, prior=prior)
        head, found, strength, soft = heads.best(lambda head: taught.judge_rows(head.logits(select.features)))
        effect = measure(head, lesson=lesson, prior=prior, strength=strength, select=select.features, taught=taught)
        if has_select:
            more = replace(select, weights=select.weights * views * weight)
            head, logits = _knowing_select(heads, more, head=head, strength=strength, taught=taught)
            found, losses = taught.judge_rows(logits), taught.part_losses(logits)
    branch.adopt_head(soft.weight, soft.bias, taught.leaves)
    start = _copy(branch)
    branch.adopt_head(head.weight, head.bias, taught.leaves)
    what = f"head fitted on {'the parent' if prior else 'frozen'} features, L2 {strength:g}"
    told: dict[str, Any] = {"notes": [what, *sentences(effect)], "reweighting": effect}
    return Fitted(cut=cut, leaves=taught.leaves, state=_copy(branch), score=found, start=start, **told), losses


def _lesson(taught: Supervision, branch: Any, *, cut: int, ids: np.ndarray, views: range) -> Lesson:
    """Rows in each of these views, as a head is fitted to them."""
    features = [forward(branch, taught.data, cut=cut, ids=ids, view=view)[1] for view in views]
    at = torch.from_numpy(np.tile(ids, len(views)))
    return Lesson(torch.cat(features).clone(), taught.targets[at], taught.mask[at], taught.weights[at])


def _knowing_select(
    heads: HeadFit, select: Lesson, *, head: Head, strength: float, taught: Supervision
) -> tuple[Head, Tensor]:
    """The head fitted to the select rows too, and their logits [N, L] by heads that have not seen the lot judged."""
    folds = taught.folds(FOLDS)
    is_learned = taught.data.column("is_learned")[taught.select_ids].astype(bool)
    learned = is_learned & select.targets.any(1).numpy()
    choices = [learned & (folds != fold) for fold in range(FOLDS)]
    whole, *by_fold = heads.with_more(select, at=[learned, *choices], head=head, strength=strength)
    logits = torch.stack([one.logits(select.features) for one in by_fold])
    return whole, logits[torch.from_numpy(folds), torch.arange(len(folds))]


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


def _unfreeze(
    run: _Run,
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
    run.compute(stage.cut).place(branch)
    optimizer = torch.optim.AdamW(
        rate_groups(branch, stage=stage, recipe=run.recipe), weight_decay=run.recipe.weight_decay, fused=True
    )
    if run.recipe.l2_sp:
        origin = run.model.new_branch(stage.cut, run.taught.leaves, seed=run.seed)
        if run.parent:
            load_parent(origin, parent=run.parent, leaves=run.taught.leaves)
        forgetting.pull(optimizer, branch, towards=origin.state_dict(), strength=run.recipe.l2_sp)
    at = resumed or _State(best, index, 0, None, None, {}, {}, 0, 1.0)
    if resumed:
        branch.load_state_dict(resumed.branch)
        optimizer.load_state_dict(resumed.optimizer)
    wrapped = nn.parallel.DistributedDataParallel(branch, broadcast_buffers=False) if run.world.size > 1 else branch
    saved_at = clock()
    for epoch in range(at.epoch, stage.epochs):
        if at.since_best >= run.recipe.patience:
            break
        loss = _epoch(run, wrapped, optimizer, stage=stage, index=index, epoch=epoch, scale=at.rate)
        _average_buffers(branch, world=run.world)
        found = _agreed(run.taught.judge_branch(branch, cut=stage.cut), world=run.world)
        row = {"stage": index + 1, "epoch": epoch + 1, "loss": loss, "select": found.value, "select_nll": found.nll}
        row["rate"] = at.rate  # of the schedule's, halved where a rule says so
        best.history.append(row)
        on_epoch(row)
        if found.beats(at.stage_best):
            at.stage_best, at.stage_best_state, at.since_best = found, _copy(branch), 0
        else:
            at.since_best += 1
        if why := halving(best.history, stage=index + 1, since_best=at.since_best, recipe=run.recipe):
            at.rate /= 2
            best.notes.append(f"stage {index + 1}, epoch {epoch + 1}: {why}, rate halved")
        at.epoch = epoch + 1
        if clock() - saved_at >= save.every_s and run.world.rank == 0:
            at.branch, at.optimizer = _copy(branch), optimizer.state_dict()
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


def _to_be_trained(run: _Run, *, stage: Stage, best: Fitted) -> Any:
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
    return branch


def _epoch(
    run: _Run,
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
            logits = answer(run.taught.data.fetch(stage.cut, ids=ids[part], views=views[take][part]))
            loss = run.objective(logits, torch.from_numpy(ids[part]))
            if run.replay:
                seeds = [run.seed, index, epoch, step, int(part[0])]
                loss = run.replay.mixed(loss, answer, cut=stage.cut, num=len(part), seed=seeds)
            (loss * (len(part) / len(ids))).backward()
            total += float(loss.detach()) * len(part) / len(ids)
        nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimizer.step()
        if broken is None and not math.isfinite(total):
            broken = ids
        run.on_part({"stage": index + 1, "epoch": epoch + 1, "part": (step + 1) / steps})
    return _finite(total / steps, run=run, epoch=epoch, batch=broken)


def _answering(branch: nn.Module, *, compute: Compute) -> Callable[[Tensor], Tensor]:
    """Activations -> logits float32 [N, L], both on the CPU, by a branch where it is and as it computes fastest."""
    device = next(branch.parameters()).device

    def answer(activations: Tensor) -> Tensor:
        with compute.autocast(device):
            logits, _ = branch(compute.laid(activations.to(device)))
        return logits.float().cpu()

    return answer


def _seldom(tell: Callable[[dict[str, Any]], None], *, clock: Callable[[], float]) -> Callable[[dict[str, Any]], None]:
    """Passes on what comes `PART_S` or more after what was passed on before, or after now."""
    told_at = clock()

    def maybe(row: dict[str, Any]) -> None:
        nonlocal told_at
        if clock() - told_at >= PART_S:
            told_at = clock()
            tell(row)

    return maybe


def _finite(loss: float, *, run: _Run, epoch: int, batch: np.ndarray | None) -> float:
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


def _agreed(found: T, *, world: World) -> T:
    """What the first process found, so that all stop and keep alike where their arithmetic differs."""
    box = [found]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def _average_buffers(branch: nn.Module, *, world: World) -> None:
    """BatchNorm statistics become the mean over processes."""
    if world.size > 1:
        for buffer in branch.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world.size


def _copy(branch: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in branch.state_dict().items()}


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
    raw = torch.load(io.BytesIO(data), weights_only=True)
    raw["best"] = Fitted(**{**raw["best"], "score": Score(**raw["best"]["score"])})
    raw["stage_best"] = Score(**raw["stage_best"]) if raw["stage_best"] else None
    return _State(**raw)
