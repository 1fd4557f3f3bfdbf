"""The only epoch loop. Runs without Ray: data, time and storage come in as arguments.

A run first fits its head on frozen (or its parent's) features, to `select` too, where it is judged out of fold. Then it
unfreezes stage after stage from a head that has not seen `select`, as do runs that start from this one; a stage that
does not win there is not kept. State is written every few seconds at the end of an epoch, and a run that is taken up
again gives the same numbers as one that was never disturbed: all randomness is drawn from (seed, stage, epoch).
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

from jobs import adapt, forgetting
from jobs.activations import RunData
from jobs.adapt import Parent, load_parent
from jobs.head import Head, HeadFit, Lesson
from jobs.losses import partial_cross_entropy
from jobs.recipe import Recipe, Stage
from jobs.schedule import overfitting, rate_factor, rate_groups
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
    donor: dict[str, Any] | None = None
    """What the start of its parent was worth, see `jobs.adapt.judged`; None without a parent, and of a mean."""
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
    recipe: Recipe
    seed: int
    world: World
    parent: Parent | None = None
    replay: forgetting.Replay | None = None


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
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Fitted:
    """The run's best branch on select; what its parent left to it, and no more, where that is refused.

    known: rows of plants that the parent learned from, for replay and to measure what is forgotten; `leaf_sets` and,
    for replay, `leaves` cover them too.
    Raises FloatingPointError where a loss is not finite, ValueError for rows that cannot be learned from.
    """
    checkpoints = checkpoints or Checkpoints()
    on_epoch = on_epoch or (lambda metrics: None)
    taught = Supervision(data, leaf_sets=leaf_sets, leaves=leaves, max_class_weight=recipe.max_class_weight)
    replay = _replay(known, leaf_sets=leaf_sets, leaves=leaves, recipe=recipe, world=world or World())
    run = _Run(model, taught, recipe, seed=seed, world=world or World(), parent=parent, replay=replay)
    state = _restored(checkpoints.load())
    best = state.best if state else _with_head_fitted(run, parent=parent)
    best.score = _agreed(best.score, world=run.world)
    best.donor = _agreed(best.donor, world=run.world)
    if best.is_refused:
        return best
    if state is None:
        on_epoch({"stage": 0, "epoch": 0, "select": best.score.value, "select_nll": best.score.nll})
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


def _with_head_fitted(run: _Run, *, parent: Parent | None) -> Fitted:
    """The parent's branch, or the whole frozen backbone, with a head fitted to these rows."""
    cut = parent.cut if parent else 0
    taught = run.taught
    branch = run.model.new_branch(cut, taught.leaves, seed=run.seed, dropout=run.recipe.dropout)
    prior = load_parent(branch, parent=parent, leaves=taught.leaves) if parent else None
    whole = (_copy(branch), taught.judge_branch(branch, cut=cut)) if parent and parent.is_whole else None
    fitted, losses = _on_features(run, branch, cut=cut, prior=prior)
    if whole and whole[1].beats(fitted.score):
        fitted = Fitted(
            cut, taught.leaves, whole[0], score=whole[1], start=whole[0], notes=["the head is the parents'"]
        )
    if parent and parent.is_whole:
        fitted.notes.insert(0, parent.name)
    elif parent:
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
        if has_select:
            more = replace(select, weights=select.weights * views * weight)
            head, logits = _knowing_select(heads, more, head=head, strength=strength, taught=taught)
            found, losses = taught.judge_rows(logits), taught.part_losses(logits)
    branch.adopt_head(soft.weight, soft.bias, taught.leaves)
    start = _copy(branch)
    branch.adopt_head(head.weight, head.bias, taught.leaves)
    what = f"head fitted on {'the parent' if prior else 'frozen'} features, L2 {strength:g}"
    return Fitted(cut=cut, leaves=taught.leaves, state=_copy(branch), score=found, start=start, notes=[what]), losses


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
    branch = run.model.new_branch(
        stage.cut, run.taught.leaves, seed=run.seed, dropout=run.recipe.dropout, freeze_norm=run.recipe.freeze_norm
    )
    load_parent(branch, parent=Parent(cut=best.cut, leaves=best.leaves, state=best.start), leaves=run.taught.leaves)
    optimizer = torch.optim.AdamW(
        rate_groups(branch, stage=stage, recipe=run.recipe), weight_decay=run.recipe.weight_decay
    )
    if run.recipe.l2_sp:
        origin = run.model.new_branch(stage.cut, run.taught.leaves, seed=run.seed)
        if run.parent:
            load_parent(origin, parent=run.parent, leaves=run.taught.leaves)
        forgetting.pull(optimizer, branch, towards=_copy(origin), strength=run.recipe.l2_sp)
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
        best.history.append(row)
        on_epoch(row)
        if found.beats(at.stage_best):
            at.stage_best, at.stage_best_state, at.since_best = found, _copy(branch), 0
        else:
            at.since_best += 1
            if run.recipe.schedule == "plateau" and at.since_best % 3 == 0:
                at.rate /= 2
                best.notes.append(f"stage {index + 1}, epoch {epoch + 1}: no gain for 3 epochs, rate halved")
        at.epoch = epoch + 1
        if clock() - saved_at >= save.every_s and run.world.rank == 0:
            at.branch, at.optimizer = _copy(branch), optimizer.state_dict()
            save.save(_frozen(at))
            saved_at = clock()
    best.notes.extend(overfitting(best.history, stage=index + 1))
    if at.stage_best is None or at.stage_best_state is None or not at.stage_best.beats(best.score):
        best.notes.append(f"stage {index + 1} (cut {stage.cut}) did not win on select and was not kept")
        return False
    best.cut, best.score = stage.cut, at.stage_best
    best.state = best.start = at.stage_best_state
    return True


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
    order = rng.permutation(run.taught.train_ids)
    views = rng.integers(0, min(d.views for d in run.taught.data.plants), size=len(order))
    per_step = max(1, run.recipe.batch // run.world.size) * run.world.size
    steps = max(1, math.ceil(len(order) / per_step))
    branch.train()
    total = 0.0
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
        at = torch.from_numpy(ids)
        logits, _ = branch(run.taught.data.fetch(stage.cut, ids=ids, views=views[take]))
        loss = partial_cross_entropy(logits, run.taught.targets[at], run.taught.mask[at], run.taught.weights[at])
        if run.replay:
            seeds = [run.seed, index, epoch, step]
            loss = run.replay.mixed(loss, branch, cut=stage.cut, num=len(ids), seed=seeds)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
    return _finite(total / steps, run=run, epoch=epoch)


def _finite(loss: float, *, run: _Run, epoch: int) -> float:
    """The mean over processes; every one of them raises when it is not finite anywhere."""
    if run.world.size > 1:
        value = torch.tensor([loss])
        dist.all_reduce(value)
        loss = float(value) / run.world.size
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch + 1}: lower the rates, or look for broken images")
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
    return {k: v.detach().clone() for k, v in branch.state_dict().items()}


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
