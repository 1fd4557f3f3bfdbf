"""Small real objects for tests of training: a two-class plant on activations that can be learned in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from jobs.activations import PlantData, RunData
from plants.plant import Fleet

MAP = (6, 4, 4)


def toy_fleet(*names: str) -> Fleet:
    """Plants with classes good and crack."""
    plants = [
        {"name": name, "images": "unused", "classes": {"good": "ok", "crack": "crack"}, "ok": ["good"]}
        for name in (names or ("north",))
    ]
    return Fleet.model_validate({"fleet": "toys", "store": "unused", "plants": plants})


def toy_data(
    folder: Path, *, fleet: Fleet, name: str, num_train: int = 64, num_select: int = 32, seed: int = 0
) -> PlantData:
    """Maps [6, 4, 4] whose first channel is brighter for cracks, as if the trunk had made them; two views."""
    rng = np.random.default_rng(seed)
    total = num_train + num_select
    labels = np.where(rng.random(total) < 0.5, "crack", "good").astype(object)
    maps = rng.normal(0, 1, size=(total, *MAP)).astype(np.float16)
    maps[labels == "crack", 0] += 0.7
    folder.mkdir(parents=True, exist_ok=True)
    for view in (0, 1):
        block = maps if view == 0 else maps[:num_train] + rng.normal(0, 0.05, (num_train, *MAP)).astype(np.float16)
        np.save(folder / f"cut1.view{view}.npy", block)
        np.save(folder / f"cut0.view{view}.npy", block.astype(np.float32).mean((2, 3)).astype(np.float16))
    rows = pd.DataFrame(
        {
            "frame": [f"{name}-{i}" for i in range(total)],
            "part_id": [f"{name}-{i}" for i in range(total)],
            "lot": [f"{name}-{i // 2}" for i in range(total)],
            "environment": "default",
            "label": labels,
            "truth": labels,
            "role": ["train"] * num_train + ["select"] * num_select,
            "input": range(total),
            "is_learned": True,
        }
    )
    return PlantData(plant=fleet.plant(name), rows=rows, num_train=num_train, folder=folder, cuts=(0, 1), views=2)


class ToyBranch(nn.Module):
    """Cut 0: a linear head. Cut 1: a convolution with BatchNorm, pooling and the head."""

    def __init__(self, cut: int, num_leaves: int) -> None:
        super().__init__()
        identity = nn.Conv2d(6, 6, 1, bias=False)
        nn.init.dirac_(identity.weight)
        self.body = nn.Sequential(identity, nn.BatchNorm2d(6)) if cut else nn.Identity()
        self.head = nn.Linear(6, num_leaves)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        features = x.mean((2, 3)) if x.ndim == 4 else x
        return self.head(features), features

    def stages(self) -> list[list[nn.Parameter]]:
        body = list(self.body.parameters())
        return [*([body] if body else []), list(self.head.parameters())]

    def adopt_head(self, weight: Tensor, bias: Tensor, leaves: Any) -> None:
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)


class ToyModel:
    """Makes toy branches."""

    def new_branch(
        self, cut: int, leaves: Any, *, seed: int = 0, dropout: float = 0.3, freeze_norm: bool = False
    ) -> Any:
        torch.manual_seed(seed)
        return ToyBranch(cut, len(leaves))


def toy_run(tmp_path: Path, *names: str, **sizes: int) -> dict[str, Any]:
    """Everything that `jobs.train.fit` needs but recipe and seed."""
    fleet = toy_fleet(*names)
    plants = [p.name for p in fleet.plants]
    data = RunData(tuple(toy_data(tmp_path / n, fleet=fleet, name=n, seed=i, **sizes) for i, n in enumerate(plants)))
    return {
        "data": data,
        "leaf_sets": {n: fleet.leaf_sets(fleet.plant(n)) for n in plants},
        "leaves": fleet.leaves(fleet.plants),
    }
