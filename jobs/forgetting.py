"""What a run forgets of the plants that its parent knew: kept small by L2-SP and replay, and measured.

L2-SP pulls the branch's stages to where they started; replay mixes rows of the parent's other plants into what the head
is first fitted to and into every step of a stage. Neither is on by default: a run is chosen for its own plant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.activations import RunData
from jobs.adapt import Parent, load_parent
from jobs.head import Head, Lesson
from jobs.losses import partial_cross_entropy
from jobs.selection import score
from jobs.supervision import Supervision, forward
from plants.scores import softmax

MOST_PLANTS = 8
"""Of so many plants that a run's parent knew it is measured what the run forgot, so that a plan's cost stays linear."""


def pull(optimizer: torch.optim.Optimizer, branch: Any, *, towards: Mapping[str, Tensor], strength: float) -> None:
    """Every step of the optimizer also follows the gradient of strength / 2 * |stages - towards|^2; heads are free.

    The pull is added after gradients were clipped. Source: Li, Grandvalet and Davoine, Explicit inductive bias for
    transfer learning with convolutional networks (L2-SP), ICML 2018.
    """
    held = [(p, towards[name]) for name, p in branch.named_parameters() if not name.startswith("head.")]

    def add(*_: Any) -> None:
        for parameter, origin in held:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - origin, alpha=strength)

    optimizer.register_step_pre_hook(add)


@dataclass(frozen=True)
class Replay:
    """Rows of the plants that the parent learned from, beside the run's own."""

    taught: Supervision
    share: float
    """Of what a head or a step is fitted to; the run's own rows are as many as without replay."""

    def beside(self, own: Lesson, old: Lesson) -> tuple[Lesson, float]:
        """Both lessons as one of mean weight 1, `old` with its share of it, and what a row of `own` now weighs."""
        more = self.share / (1 - self.share) * own.weights.sum() / old.weights.sum()
        both = own.and_rows(replace(old, weights=old.weights * more), torch.ones(len(old.weights), dtype=torch.bool))
        scale = float(both.weights.mean())
        return replace(both, weights=both.weights / scale), 1 / scale

    def mixed(
        self, loss: Tensor, answer: Callable[[Tensor], Tensor], *, cut: int, num: int, seed: Sequence[int]
    ) -> Tensor:
        """The mean loss of a step's `num` own rows and of replayed ones drawn by the seed.

        answer: activations to logits.
        """
        count = round(num * self.share / (1 - self.share))
        if not count:
            return loss
        rng = np.random.default_rng(list(seed))
        ids = rng.choice(self.taught.train_ids, size=count)
        views = rng.integers(0, self.taught.data.num_views(cut), size=count)
        at = torch.from_numpy(ids)
        logits = answer(self.taught.data.fetch(cut, ids=ids, views=views))
        old = partial_cross_entropy(logits, self.taught.targets[at], self.taught.mask[at], self.taught.weights[at])
        return (num * loss + count * old) / (num + count)


def forgotten(
    model: Any,
    *,
    parent: Parent,
    child: Parent,
    known: RunData,
    leaf_sets: Mapping[str, dict[str, tuple[str, ...]]],
) -> dict[str, dict[str, float | None]]:
    """Plant -> `{before, after, before_nll, after_nll}` on its select rows, by the parent and by its child.

    `before` and `after` are worth, 1 is perfect (`jobs.selection`). A leaf that the child has no output for keeps the
    parent's. known: the plants that the parent learned from and the child did not.
    """
    branches = {}
    for when, one in (("before", parent), ("after", child)):
        branches[when] = model.new_branch(one.cut, parent.leaves)
        load_parent(branches[when], parent=one, leaves=parent.leaves, otherwise=_head(parent))
    taught = Supervision(known, leaf_sets=leaf_sets, leaves=parent.leaves, max_class_weight=1)
    found: dict[str, dict[str, float | None]] = {}
    for i, among in enumerate(taught.sets):
        if not len(among.truth):
            continue
        row: dict[str, float | None] = {}
        for when, one in (("before", parent), ("after", child)):
            logits = forward(branches[when], known, cut=one.cut, ids=known.select_ids(i))[0]
            judged = score([softmax(logits.numpy())], sets=[among])
            row |= {when: judged.value, f"{when}_nll": judged.nll}
        found[among.plant] = row
    return found


def words(found: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """A sentence about the plant that lost most, by likelihood; nothing where nothing was measured."""
    if not found:
        return []

    def lost(name: str) -> float:
        return float(found[name]["after_nll"] or 0) - float(found[name]["before_nll"] or 0)

    worst = max(found, key=lost)
    row = found[worst]
    what = (
        f"{worst} most, worth {row['before']:.3f} before and {row['after']:.3f} after, "
        f"{abs(lost(worst)):.3f} nats a part {'lost' if lost(worst) > 0 else 'gained'}"
    )
    return [f"forgetting on select, plants that its parent knew: {len(found)}; {what}"]


def _head(parent: Parent) -> Head:
    return Head(parent.state["head.weight"].float(), parent.state["head.bias"].float())
