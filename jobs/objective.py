"""What the epoch loop minimises, and over which rows: a recipe's `loss`, `balance` and `accumulate`.

Heads on frozen features are not fitted by this: they take the weighted likelihood whatever the loss, which is convex,
so that a fit has one answer, whose start does not matter, and the frozen baseline is the same floor for every loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from jobs.activations import ok_mask
from jobs.losses import expected_cost, focal, money_at_stake, partial_cross_entropy
from jobs.recipe import Recipe
from jobs.supervision import Supervision


class Objective:
    """The loss of rows by their running index, and the rows of an epoch.

    Weights and sampling are two ways to the same mean: sampled rows are drawn as often as they weigh, and weigh alike.
    """

    def __init__(self, taught: Supervision, *, recipe: Recipe) -> None:
        self.taught, self.recipe = taught, recipe
        self.weights = taught.weights
        if recipe.loss == "cost":
            self._know_money()
        if recipe.balance == "sampling":
            weights = taught.weights[torch.from_numpy(taught.train_ids)].double().numpy()
            self.chances = weights / weights.sum()
            self.weights = torch.ones_like(taught.weights)
            if recipe.loss == "cost":
                self.money = self.money / taught.weights

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The running indices of an epoch's rows, as many as there are training rows."""
        ids = self.taught.train_ids
        if self.recipe.balance == "sampling":
            return rng.choice(ids, size=len(ids), p=self.chances)
        return rng.permutation(ids)

    def __call__(self, logits: Tensor, at: Tensor) -> Tensor:
        """The loss of logits [N, L] for the rows of these running indices [N]."""
        targets, mask, weights = self.taught.targets[at], self.taught.mask[at], self.weights[at]
        if self.recipe.loss == "focal":
            return focal(logits, targets, mask, weights, gamma=self.recipe.gamma)
        loss = partial_cross_entropy(logits, targets, mask, weights)
        if self.recipe.loss == "cost":
            loss = loss + expected_cost(logits, self.wrong[at], mask, self.money[at])
        return loss

    def _know_money(self) -> None:
        """Of every row: the leaves that are wrong in money, and what they cost; of rows that are not trained on, 0."""
        data, ids = self.taught.data, self.taught.train_ids
        plants = [source.plant for source in data.plants for _ in range(len(source.rows))]
        labels = data.column("label")
        is_good = torch.tensor([label in plant.ok for label, plant in zip(labels, plants, strict=True)])
        ok = torch.from_numpy(ok_mask(self.taught.leaves))
        self.wrong = ok[None, :] ^ is_good[:, None]
        self.money = torch.zeros(len(labels))
        self.money[torch.from_numpy(ids)] = torch.from_numpy(
            money_at_stake(labels[ids], plants=[plants[i] for i in ids])
        )


def portions(branch: nn.Module, num_rows: int, *, accumulate: int) -> Iterator[np.ndarray]:
    """The rows of a step as positions, in this many portions of about equal size, no more than there are rows.

    Processes that fit a run together exchange their gradients after the last portion alone.
    """
    parts = np.array_split(np.arange(num_rows), min(accumulate, num_rows))
    for number, part in enumerate(parts):
        if number < len(parts) - 1 and isinstance(branch, nn.parallel.DistributedDataParallel):
            with branch.no_sync():
                yield part
        else:
            yield part
