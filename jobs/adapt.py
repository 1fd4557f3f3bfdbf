"""Starting from what other runs have learned: warm starts, their donors' guard, and means of weights.

A donor is the run whose branch another run starts from. It is judged before it is built upon (`jobs.starts`): where its
start is shown to be worse at the run's plants than the pretrained one, the run is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from jobs.activations import RunData
from jobs.head import Head
from plants.stats import MIN_LOTS, paired_bootstrap

BLOCK = 256
LEVEL = 0.9
"""Of the interval of a donor's gain. By what it says it lies below 0 for one harmless donor in twenty, in simulation
for one in twelve (README): what heads vary by that learn from nearly the same rows is not in it."""


@dataclass(frozen=True)
class Parent:
    """What another run left to start from."""

    cut: int
    leaves: tuple[str, ...]
    state: Mapping[str, Tensor]
    name: str = "the parent"
    is_itself: bool = False
    """Whether it is the run's own earlier state, which goes on without being judged as a donor is."""
    is_whole: bool = False
    """Whether its head may serve as it is, where one fitted to the child's rows is no better."""
    learned_from: tuple[str, ...] = ()
    """The plants whose train rows it or its own parents have learned from: there only `select` judges it."""


def copied(branch: nn.Module) -> dict[str, Tensor]:
    """The branch's parameters and statistics as they are now, on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in branch.state_dict().items()}


def load_parent(branch: Any, *, parent: Parent, leaves: Sequence[str], otherwise: Head | None = None) -> Head:
    """The branch holds the parent's stages; returns the parent's head by leaf name.

    otherwise: rows of leaves that the parent has not, in the order of `leaves`; zero without it.
    """
    own = branch.state_dict()
    shared = {
        k: v for k, v in parent.state.items() if k in own and own[k].shape == v.shape and not k.startswith("head.")
    }
    branch.load_state_dict({**own, **shared})
    weight, bias = parent.state["head.weight"].float(), parent.state["head.bias"].float()
    index = {leaf: i for i, leaf in enumerate(parent.leaves)}
    other = otherwise or Head(torch.zeros(len(leaves), weight.shape[1]), torch.zeros(len(leaves)))
    rows = [(weight[index[leaf]], bias[index[leaf]]) if leaf in index else None for leaf in leaves]
    head = Head(
        torch.stack([row[0] if row else other.weight[i] for i, row in enumerate(rows)]),
        torch.stack([row[1] if row else other.bias[i] for i, row in enumerate(rows)]),
    )
    branch.adopt_head(head.weight, head.bias, leaves)
    return head


def mean_of(
    parents: Sequence[Parent], *, model: Any, leaves: Sequence[str], data: RunData, freeze_norm: bool
) -> Parent:
    """The mean of the parents' weights at the deepest of their cuts, heads by leaf name.

    A parent of a higher cut kept the pretrained stages below its own: with these it is a branch at the deepest cut too.
    Statistics of BatchNorm are the mean's own on the training rows where runs train them, else the parents' mean.
    Source: Wortsman et al., Model soups, ICML 2022.
    """
    cut = max(parent.cut for parent in parents)
    branch = model.new_branch(cut, leaves, freeze_norm=freeze_norm)
    states = []
    for parent in parents:
        one = model.new_branch(cut, leaves)
        load_parent(one, parent=parent, leaves=leaves)
        states.append(one.state_dict())
    mean = {
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    branch.load_state_dict(mean)
    if cut and not freeze_norm:
        ids, views = data.train_ids, min(source.views for source in data.plants)
        blocks = [(ids[at : at + BLOCK], view) for view in range(views) for at in range(0, len(ids), BLOCK)]
        loader = (data.fetch(cut, ids=rows, views=np.full(len(rows), view)) for rows, view in blocks)
        update_bn(loader, branch, device=next(branch.parameters()).device)
    name = f"mean of {', '.join(parent.name for parent in parents)}"
    return Parent(cut=cut, leaves=tuple(leaves), state=branch.state_dict(), name=name, is_whole=True)


def judged(parent: str, *, donor: np.ndarray, pretrained: np.ndarray, lots: np.ndarray) -> dict[str, Any]:
    """What a donor's start is worth against the pretrained one: `{parent, difference, low, high, n_lots, refused}`.

    donor, pretrained: log-likelihood of every part [P] by a head on the features of either, fitted without the part's
    lot. The difference is a part's mean gain by the donor, in nats. Refused where its interval at `LEVEL` over lots
    lies below 0; too few lots for an interval refuse nothing.
    """
    given = {"parent": parent, "n_lots": len(set(lots))}
    if not len(lots):
        return {**given, "difference": None, "low": None, "high": None, "refused": False}
    gain = donor - pretrained
    found = paired_bootstrap(
        lots, lambda draws: draws @ gain / draws.sum(1), lambda draws: np.zeros(len(draws)), seed=0, level=LEVEL
    )
    is_refused = found.high is not None and found.high < 0
    return {**given, "difference": found.diff, "low": found.low, "high": found.high, "refused": is_refused}


def words(found: Mapping[str, Any]) -> str:
    """The judgement of a donor as a sentence."""
    name, num_lots = f"donor {found['parent']}", found["n_lots"]
    if found["difference"] is None:
        return f"{name}: no labelled part to judge its start by"
    side = "better" if found["difference"] > 0 else "worse"
    what = f"its start is {abs(found['difference']):.3f} nats a part {side} than the pretrained one"
    if found["low"] is None:
        few = f"lots: {num_lots}, fewer than {MIN_LOTS}" if num_lots < MIN_LOTS else "there is no interval"
        return f"{name}: {what}; {few}, so harm is not shown"
    verdict = "worse: refused" if found["refused"] else "harm is not shown" if found["low"] <= 0 else "better"
    return f"{name}: {what} (gain {found['low']:+.3f} to {found['high']:+.3f}): {verdict}"
