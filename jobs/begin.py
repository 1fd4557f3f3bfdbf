"""How a run begins: a head fitted to the features of the pretrained or its parent's net, or random weights.

A head fitted to `select` too is judged there out of fold; stages and children go on from a softer one that has not seen
it. A parent's start is judged against the pretrained one (`jobs.starts`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs import adapt, starts
from jobs.adapt import copied, load_parent
from jobs.head import Head, HeadFit, Lesson
from jobs.reweighting import measure, sentences
from jobs.run import Fitted, Run
from jobs.supervision import Supervision, forward

FOLDS = 3
"""Parts of `select`: a head fitted to it is judged on each by one that was fitted to the other parts."""


def at_random(run: Run) -> Fitted:
    """The whole net as it was made, which knows nothing, and what that is worth on select."""
    assert run.parent is None, "a run that starts from another one starts from what that has learned"
    cut, taught = run.recipe.stages[0].cut, run.taught
    branch = run.model.new_branch(cut, taught.leaves, seed=run.seed, dropout=run.recipe.dropout)
    state, found = copied(branch), taught.judge_branch(branch, cut=cut)
    return Fitted(cut=cut, leaves=taught.leaves, state=state, score=found, start=state, notes=["from random weights"])


def with_head_fitted(run: Run) -> Fitted:
    """The parent's branch, or the whole frozen backbone, with a head fitted to these rows."""
    taught, parent = run.taught, run.parent
    cut = parent.cut if parent else 0
    branch = run.model.new_branch(cut, taught.leaves, seed=run.seed, dropout=run.recipe.dropout)
    prior = load_parent(branch, parent=parent, leaves=taught.leaves) if parent else None
    whole = (copied(branch), taught.judge_branch(branch, cut=cut)) if parent and parent.is_whole else None
    fitted = _on_features(run, branch, cut=cut, prior=prior)
    if whole and whole[1].beats(fitted.score):
        state, found = whole
        fitted = Fitted(cut, taught.leaves, state, score=found, start=state, notes=["the head is the parents'"])
    if parent and parent.is_whole:
        fitted.notes.insert(0, parent.name)
    elif parent and parent.is_itself:
        fitted.notes.append(f"goes on from {parent.name}")
    elif parent:
        fitted.donor = starts.judge(run)
        fitted.notes.append(adapt.words(fitted.donor))
    return fitted


def _on_features(run: Run, branch: Any, *, cut: int, prior: Head | None) -> Fitted:
    """The branch with a head fitted to these rows."""
    taught = run.taught
    views = min(d.views for d in taught.data.plants)
    lesson = _lesson(taught, branch, cut=cut, ids=taught.train_ids, views=range(views))
    has_select = len(taught.select_ids) > 0
    select = _lesson(taught, branch, cut=cut, ids=taught.select_ids, views=range(1)) if has_select else lesson.rows(0)
    weight = 1.0
    if run.replay and prior:
        old = run.replay.taught
        lesson, weight = run.replay.beside(lesson, _lesson(old, branch, cut=cut, ids=old.train_ids, views=range(1)))
    with torch.enable_grad():
        heads = HeadFit(lesson, prior=prior)
        head, found, strength, soft = heads.best(lambda head: taught.judge_rows(head.logits(select.features)))
        effect = measure(head, lesson=lesson, prior=prior, strength=strength, select=select.features, taught=taught)
        if has_select:
            more = replace(select, weights=select.weights * views * weight)
            head, logits = _knowing_select(heads, more, head=head, strength=strength, taught=taught)
            found = taught.judge_rows(logits)
    branch.adopt_head(soft.weight, soft.bias, taught.leaves)
    start = copied(branch)
    branch.adopt_head(head.weight, head.bias, taught.leaves)
    whose = "the parent's" if prior else "frozen"
    what = f"head fitted on {whose} features, L2 {strength:g}"
    told: dict[str, Any] = {"notes": [what, *sentences(effect)], "reweighting": effect}
    return Fitted(cut=cut, leaves=taught.leaves, state=copied(branch), score=found, start=start, **told)


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
