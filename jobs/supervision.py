"""Labels as tensors: what a run is taught, with what weight, and what its choices are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from jobs.activations import RunData
from jobs.losses import balanced_weights, label_targets
from jobs.selection import Score, SelectSet, score, select_set
from plants.scores import softmax


class Supervision:
    """What one run is taught and judged by: targets, masks and weights of its rows, and its select parts."""

    def __init__(
        self,
        data: RunData,
        *,
        leaf_sets: Mapping[str, dict[str, tuple[str, ...]]],
        leaves: Sequence[str],
        max_class_weight: float,
    ) -> None:
        self.data, self.leaves = data, tuple(leaves)
        self.train_ids = data.train_ids
        if not len(self.train_ids):
            raise ValueError("there are no training rows")
        plants = data.column("plant")
        targets, masks = [], []
        for source in data.plants:
            name = source.plant.name
            labels = source.rows["label"].tolist()
            t, m = label_targets(labels, plant=source.plant, leaf_sets=leaf_sets[name], leaves=self.leaves)
            targets.append(t)
            masks.append(m)
        self.targets = torch.from_numpy(np.concatenate(targets))
        self.mask = torch.from_numpy(np.concatenate(masks))
        empty = ~self.targets[torch.from_numpy(self.train_ids)].any(1).numpy()
        if empty.any():
            frame = data.column("frame")[self.train_ids[empty][0]]
            raise ValueError(f"{int(empty.sum())} training rows have a label outside the taxonomy, e.g. frame {frame}")
        self.select_ids = np.concatenate([data.select_ids(i) for i in range(len(data.plants))])
        """Running indices of the select rows of all plants."""
        weights = np.zeros(len(plants), dtype=np.float32)
        for ids in (np.concatenate([self.train_ids, self.select_ids]), self.train_ids):
            labels = data.column("label")[ids]
            weights[ids] = balanced_weights(labels, plants=plants[ids], max_class_weight=max_class_weight)
        self.weights = torch.from_numpy(weights)
        """[N]: of train rows among themselves; of select rows as if they were learned from beside them."""
        self.sets: list[SelectSet] = [
            select_set(source, leaf_sets=leaf_sets[source.plant.name], leaves=self.leaves) for source in data.plants
        ]

    def folds(self, count: int) -> np.ndarray:
        """Fold of every select row, in the order of `select_ids`: a lot lies in one, each fold has some of a class."""
        table = pd.DataFrame({name: self.data.column(name)[self.select_ids] for name in ("plant", "lot", "label")})
        lots = table.drop_duplicates(["plant", "lot"]).sort_values(["plant", "label", "lot"])
        fold = pd.Series(np.arange(len(lots)) % count, index=pd.MultiIndex.from_frame(lots[["plant", "lot"]]))
        return fold.reindex(pd.MultiIndex.from_frame(table[["plant", "lot"]])).to_numpy(copy=True)

    def judge(self, logits: Callable[[int], Tensor]) -> Score:
        """The score on select of a function from a plant's position to the logits of its select rows."""
        none = np.zeros((0, len(self.leaves)), np.float32)
        blocks = [softmax(logits(i).numpy()) if len(self.data.select_ids(i)) else none for i in range(len(self.sets))]
        return score(blocks, sets=self.sets)

    def judge_rows(self, logits: Tensor) -> Score:
        """The score on select of logits [N, L] in the order of `select_ids`."""
        ends = np.cumsum([len(self.data.select_ids(i)) for i in range(len(self.sets))])
        blocks = torch.tensor_split(logits, torch.from_numpy(ends[:-1]))
        return self.judge(lambda i: blocks[i])

    def judge_branch(self, branch: nn.Module, *, cut: int) -> Score:
        """The score on select of a branch."""
        return self.judge(lambda i: forward(branch, self.data, cut=cut, ids=self.data.select_ids(i))[0])


@torch.inference_mode()
def forward(branch: nn.Module, data: RunData, *, cut: int, ids: np.ndarray, view: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [N, L] and pooled features [N, F] of rows, in evaluation mode, in blocks."""
    branch.eval()
    logits, features = [], []
    for start in range(0, len(ids), 256):
        block = ids[start : start + 256]
        out = branch(data.fetch(cut, ids=block, views=np.full(len(block), view)))
        logits.append(out[0].float())
        features.append(out[1].float())
    return torch.cat(logits), torch.cat(features)
