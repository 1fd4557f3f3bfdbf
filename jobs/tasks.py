"""Severity learned beside the class while stages train: one more loss on the same features, in the same passes.

Of rows whose severity is not labelled the task is masked: they move nothing of it. Shares are fixed by the recipe, or
learned as the noise of each task. What a branch learned so is kept only where it does not harm the class task and
comes nearer to the severities than one that was trained without, see `better`; so a run with a task takes twice as
long. The head itself is thrown away: the one that serves is fitted to the branch that was kept (`head_of`).

Source of learned weights: Kendall, Gal and Cipolla, Multi-task learning using uncertainty to weigh losses, CVPR 2018.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from jobs.activations import RunData
from jobs.adapt import Parent, load_parent
from jobs.recipe import Recipe
from jobs.run import BranchFactory, Fitted
from jobs.supervision import Supervision, forward, losses_of_parts
from plants.severity import FEWEST, SeverityHead
from plants.stats import paired_bootstrap


def num_labelled(data: RunData) -> int:
    """How many training rows have a severity."""
    return int(np.isfinite(data.column("severity")[data.train_ids].astype(np.float64)).sum())


def head_of(branch: Any, *, cut: int, data: RunData) -> SeverityHead | None:
    """The head on a branch's features, of training rows of all plants, which count alike; None from too few."""
    severities = data.column("severity")[data.train_ids].astype(np.float64)
    known = np.isfinite(severities)
    if known.sum() < FEWEST:
        return None
    ids = data.train_ids[known]
    features = forward(branch, data, cut=cut, ids=ids)[1].numpy()
    plants = data.column("plant")[ids]
    each = pd.Series(plants).map(pd.Series(plants).value_counts()).to_numpy(np.float64)
    return SeverityHead.fit(
        features, severities[known], lots=data.column("lot")[ids], weights=len(ids) / each / len(set(plants))
    )


class SeverityTask:
    """What is learned beside the class: the labelled severities of a run's training rows, in units of their spread."""

    def __init__(self, taught: Supervision, *, recipe: Recipe) -> None:
        """Raises ValueError where fewer than `FEWEST` training rows have a label."""
        severities = taught.data.column("severity").astype(np.float32)
        ids = taught.train_ids
        known = np.isfinite(severities[ids])
        if known.sum() < FEWEST:
            raise ValueError(f"severity needs {FEWEST} labelled training rows, there are {int(known.sum())}")
        self.share, self.is_learned = recipe.tasks["severity"], recipe.task_weights == "learned"
        self.mean, self.spread = float(severities[ids][known].mean()), max(float(severities[ids][known].std()), 1e-3)
        self.truth = torch.from_numpy(np.nan_to_num((severities - self.mean) / self.spread))
        self.mask = torch.from_numpy(np.isfinite(severities) * np.float32(len(ids) / known.sum()))
        """[N]: 0 where the severity is not labelled, so that rows that are weigh 1 in the mean over all."""

    def joined(self, branch: Any, *, cut: int, data: RunData) -> Joined:
        """The branch with a severity head, fitted to its features as they are."""
        head = head_of(branch, cut=cut, data=data)
        assert head is not None, "there are enough labels"
        found = Joined(branch, num_features=len(head.weight))
        with torch.no_grad():
            found.severity.weight.copy_(torch.from_numpy(head.weight)[None] / self.spread)
            found.severity.bias.fill_((head.bias - self.mean) / self.spread)
        return found.to(next(branch.parameters()).device)

    def loss(self, of_class: Tensor, said: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        """Both tasks' losses as one; said [N] for the rows of these running indices [N], noise [2], log variances."""
        of_severity = (self.mask[at] * (said - self.truth[at]) ** 2).mean() / 2
        if self.is_learned:
            return (torch.exp(-noise) * torch.stack([of_class, of_severity]) + noise / 2).sum()
        return (1 - self.share) * of_class + self.share * of_severity + 0 * noise.sum()


class Joined(nn.Module):
    """Activation -> logits [N, L], features [N, F], severities [N], and the log variance of either task [2]."""

    def __init__(self, branch: Any, *, num_features: int) -> None:
        super().__init__()
        self.branch, self.severity = branch, nn.Linear(num_features, 1)
        self.noise = nn.Parameter(torch.zeros(2))

    def forward(self, activation: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that the loss is made of."""
        logits, features = self.branch(activation)
        return logits, features, self.severity(features)[:, 0], self.noise

    def own(self) -> list[nn.Parameter]:
        """What is not the branch's."""
        return [*self.severity.parameters(), self.noise]


def better(alone: Fitted, joint: Fitted, *, model: BranchFactory, taught: Supervision) -> tuple[Fitted, dict[str, Any]]:
    """Which of two runs is kept, without the task and with it, and what the task did to the class task.

    `{kept, interference: {value, low, high}, mae, mae_alone, words}`. `interference` is what a select part's loss rose
    by, in nats, with its interval over lots; None where not both trained a stage. Kept where no harm is shown (under
    ten lots: where the loss did not rise) and severities of `select` are nearer.
    """
    found: dict[str, Any] = {"kept": False, "interference": None, "mae": None, "mae_alone": None}
    if joint.start is not joint.state or not len(taught.select_ids):
        return alone, {**found, "words": "severity as a task: no stage trained with it won on select, not kept"}
    sides = [_side(one, model=model, taught=taught) for one in (alone, joint)]
    (found["mae_alone"], losses_alone), (found["mae"], losses) = sides
    is_harmless, harm = joint.score.beats(alone.score), "the class task alone kept no stage"
    if alone.start is alone.state:
        gap = paired_bootstrap(
            np.concatenate([among.lots for among in taught.sets]),
            lambda draws: draws @ losses / draws.sum(1),
            lambda draws: draws @ losses_alone / draws.sum(1),
            seed=0,
        )
        found["interference"] = {"value": gap.diff, "low": gap.low, "high": gap.high}
        is_harmless = gap.low <= 0 if gap.low is not None else (gap.diff or 0.0) <= 0
        span = f" ({gap.low:+.3f} to {gap.high:+.3f})" if gap.low is not None and gap.high is not None else ""
        harm = f"the class task's select loss changes by {gap.diff:+.3f} nats a part{span}"
    is_nearer = found["mae"] is not None and found["mae"] < found["mae_alone"]
    found["kept"] = bool(is_harmless and is_nearer)
    errors = "no severity on select" if found["mae"] is None else f"{found['mae']:.3f} against {found['mae_alone']:.3f}"
    kept = "kept" if found["kept"] else "not kept"
    found["words"] = f"severity as a task: {harm}, mean error of severities {errors} without it: {kept}"
    return (joint if found["kept"] else alone), found


def _side(fitted: Fitted, *, model: BranchFactory, taught: Supervision) -> tuple[float | None, np.ndarray]:
    """The mean error of a head on the run's features at labelled select rows, and each select part's class loss [P]."""
    data, ids = taught.data, taught.select_ids
    branch = model.new_branch(fitted.cut, fitted.leaves)
    load_parent(branch, parent=Parent(fitted.cut, fitted.leaves, state=fitted.state), leaves=fitted.leaves)
    head = head_of(branch, cut=fitted.cut, data=data)
    logits, features = forward(branch, data, cut=fitted.cut, ids=ids)
    truth = data.column("severity")[ids].astype(np.float64)
    known = np.isfinite(truth)
    mae = float(np.abs(head.of(features.numpy()[known]) - truth[known]).mean()) if head and known.any() else None
    return mae, losses_of_parts(logits, taught.sets)
