"""Labels as tensors: what a run is taught, with what weight, and what its choices are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from jobs.activations import RunData
from jobs.compute import Compute
from jobs.losses import balanced_weights, label_targets
from jobs.selection import Score, SelectSet, part_losses, score, select_set
from plants.scores import softmax

BLOCK = 64
"""Rows a pass where nothing is learned: at a deep cut 256 took 1.7 times as long, as maps leave the caches."""
LAYOUT = Compute("float32", "channels_last")
"""Of what goes in there: float32 as plain, and 1.2 to 1.4 times as fast for convolutions on two Xeon cores."""


class Supervision:
    """What one run is taught and judged by: targets, masks and weights of its rows, and its select parts."""

    def __init__(
        self,
        data: RunData,
        *,
        leaf_sets: Mapping[str, dict[str, tuple[str, ...]]],
        leaves: Sequence[str],
        max_class_weight: float,
        is_balanced: bool = True,
    ) -> None:
        """is_balanced: False and every row weighs 1, whatever its class and plant."""
        self.data, self.leaves, self.leaf_sets = data, tuple(leaves), leaf_sets
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
        kinds = pd.MultiIndex.from_arrays([plants, data.column("label")])
        train = balanced_weights(
            kinds[self.train_ids].get_level_values(1),
            plants=plants[self.train_ids],
            max_class_weight=max_class_weight,
        )
        by_kind = pd.Series(train, index=kinds[self.train_ids]).groupby(level=[0, 1]).first()
        known = by_kind.reindex(kinds) if is_balanced else pd.Series(1.0, index=kinds)
        self.weights = torch.from_numpy(known.fillna(1.0).to_numpy(np.float32, copy=True))
        """[N]: what a train row of the plant and class weighs, 1 where there is none."""
        self.sets: list[SelectSet] = [
            select_set(source, leaf_sets=leaf_sets[source.plant.name], leaves=self.leaves) for source in data.plants
        ]

    def folds(self, count: int, *, ids: np.ndarray | None = None) -> np.ndarray:
        """Fold of these rows, or of every select row in the order of `select_ids`.

        A lot lies in one, a rare label in many.
        """
        rows = self.select_ids if ids is None else ids
        table = pd.DataFrame({name: self.data.column(name)[rows] for name in ("lot", "label")})
        table["size"] = table.groupby("label")["label"].transform("size")
        lots = table.sort_values(["size", "label", "lot"]).drop_duplicates("lot")["lot"]
        return (
            table["lot"].map(dict(zip(lots, np.arange(len(lots)) % count, strict=True))).to_numpy(np.int64, copy=True)
        )

    def judge(self, logits: Callable[[int], Tensor]) -> Score:
        """The score on select of a function from a plant's position to the logits of its select rows."""
        none = np.zeros((0, len(self.leaves)), np.float32)
        blocks = [softmax(logits(i).numpy()) if len(self.data.select_ids(i)) else none for i in range(len(self.sets))]
        return score(blocks, sets=self.sets)

    def judge_rows(self, logits: Tensor) -> Score:
        """The score on select of logits [N, L] in the order of `select_ids`."""
        blocks = by_plant(logits, self.sets)
        return self.judge(lambda i: blocks[i])

    def judge_branch(self, branch: nn.Module, *, cut: int) -> Score:
        """The score on select of a branch."""
        return self.judge(lambda i: forward(branch, self.data, cut=cut, ids=self.data.select_ids(i))[0])


def by_plant(values: Tensor, sets: Sequence[SelectSet]) -> Sequence[Tensor]:
    """The rows of each plant's inputs, of [N, ...] in the order of the sets."""
    return torch.tensor_split(values, torch.from_numpy(np.cumsum([len(among.frame_groups) for among in sets])[:-1]))


def losses_of_parts(logits: Tensor, sets: Sequence[SelectSet]) -> np.ndarray:
    """-log likelihood of every part [P] by the logits [N, L] of its inputs, in the order of the sets."""
    blocks = zip(by_plant(logits, sets), sets, strict=True)
    return np.concatenate([part_losses(softmax(one.numpy()), among=s) for one, s in blocks if len(s.truth)] or [[]])


@torch.inference_mode()
def forward(branch: nn.Module, data: RunData, *, cut: int, ids: np.ndarray, view: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [N, L] and pooled features [N, F] of rows, in evaluation mode, in blocks."""
    branch.eval()
    device = next(branch.parameters()).device
    logits, features = [], []
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        values = data.fetch(cut, ids=block, views=np.full(len(block), view)).to(device)
        out = branch(LAYOUT.laid(values))
        logits.append(out[0].float().cpu())
        features.append(out[1].float().cpu())
    return torch.cat(logits), torch.cat(features)
