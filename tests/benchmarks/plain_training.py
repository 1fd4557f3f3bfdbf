"""The peer of `bench_fleet.py`: timm, a DataLoader and an epoch loop, plant by plant, as a careful person writes it.

Same images, labels, class weights, loss, rates, epochs and choice on `select` as crossplant's own loop; what differs is
what crossplant claims as its own: nothing is cached above the pixels and nothing runs side by side. It is given decoded
frames in memory, a frozen trunk under `no_grad`, and the layout and number of workers that a trial found fastest.
Knows timm's ResNets, whose last stage is `layer4`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cluster.packs import view_digests
from jobs.activations import PlantData, RunData, training_rows
from jobs.augment import augment
from jobs.backbone import load_backbone
from jobs.losses import partial_cross_entropy
from jobs.recipe import Augment, Recipe
from jobs.schedule import rate_factor
from jobs.supervision import Supervision
from plants.images import decode
from plants.plant import Fleet, Plant, Trunk
from plants.views import views

Compute = dict[str, Any]
"""dtype, layout, workers."""
COMPUTES: tuple[Compute, ...] = (
    {"dtype": "float32", "layout": "contiguous", "workers": 0},
    {"dtype": "float32", "layout": "channels_last", "workers": 0},
    {"dtype": "bfloat16", "layout": "channels_last", "workers": 0},
)
THREADS = 2


class Decoded(NamedTuple):
    """All frames of a plant's learning roles in memory, as a pack would hold them."""

    pixels: np.ndarray
    frame_index: np.ndarray
    tile_boxes: np.ndarray
    digests: np.ndarray
    frames: list[str]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Pixels uint8 [n, S, S, 3] of these rows."""
        return self.pixels[rows]


def decoded(plant: Plant, *, labels: pd.DataFrame, spec: Trunk) -> Decoded:
    """Every frame decoded once, on two threads."""
    frames = sorted(labels["frame"])
    inputs: Any = {"size_px": spec.size_px, "interpolation": load_backbone(spec).interpolation}
    environment_of = dict(zip(labels["frame"], labels["environment"], strict=True))

    def one(frame: str) -> Any:
        environment = plant.environments[environment_of[frame]]
        geometry = environment.geometry
        data = (Path(plant.images) / frame).read_bytes()
        image = decode(data, bit_depth=geometry.bit_depth, window=geometry.window, source=frame)
        return views(image, geometry=geometry, photometry=environment.photometry, **inputs)

    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(pool.map(one, frames))
    owner = np.repeat(np.arange(len(frames)), [len(v.pixels) for v in seen])
    pixels, boxes = np.concatenate([v.pixels for v in seen]), np.concatenate([np.asarray(v.boxes) for v in seen])
    return Decoded(pixels, owner, boxes, view_digests(pixels), frames)


@dataclass(frozen=True)
class Taught:
    """A plant's rows with their pixels, in the order of the rows."""

    rows: PlantData
    pixels: np.ndarray


def taught(plant: Plant, *, labels: pd.DataFrame, spec: Trunk, seed: int) -> Taught:
    """What crossplant would learn from at this plant, as pixels."""
    pack = decoded(plant, labels=labels, spec=spec)
    rows = training_rows(plant, labels=labels, pack=pack, seed=seed)
    num_train = int((rows["role"] == "train").sum())
    data = PlantData(plant=plant, rows=rows, num_train=num_train, folder=Path(), cuts=(), views=1)
    return Taught(data, pack.pixels[rows["input"].to_numpy()])


class Net(nn.Module):
    """timm's ResNet with its last stage and head to be trained, or all of it."""

    def __init__(self, spec: Trunk, *, num_leaves: int, recipe: Recipe, seed: int, is_full: bool = False) -> None:
        super().__init__()
        loaded = load_backbone(spec)
        net: Any = loaded.net
        if not hasattr(net, "layer4"):
            raise SystemExit(f"the plain loop knows timm's ResNets; {spec.backbone} is none")
        self.below = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool, net.layer1, net.layer2, net.layer3)
        self.above = nn.Sequential(net.layer4, net.global_pool)
        torch.manual_seed(seed)
        self.dropout = nn.Dropout(recipe.dropout)
        self.head = nn.Linear(net.num_features * net.global_pool.feat_mult(), num_leaves)
        self.is_full = is_full
        self.below.requires_grad_(is_full)
        self.above.requires_grad_(True)
        scale = torch.tensor([1 / (255 * s) for s in loaded.std]).view(1, 3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(loaded.mean, loaded.std, strict=True)]).view(1, 3, 1, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.layout, self.dtype = torch.contiguous_format, torch.float32
        self.freeze_norm = recipe.freeze_norm

    def compute_in(self, compute: Compute) -> Net:
        """The net, from now on computing so."""
        self.layout = torch.channels_last if compute["layout"] == "channels_last" else torch.contiguous_format
        self.dtype = getattr(torch, compute["dtype"])
        return self.to(memory_format=self.layout)

    def train(self, mode: bool = True) -> Net:
        """The frozen part keeps its statistics, and with `freeze_norm` the last stage too, as the recipe says."""
        super().train(mode)
        self.below.eval()
        if self.freeze_norm:
            self.above.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, L] of uint8 images [N, S, S, 3]."""
        learns = torch.is_grad_enabled()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            with torch.set_grad_enabled(learns and self.is_full):
                x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.layout)
                x = self.below(x * self.scale + self.shift)
            return self.head(self.dropout(self.above(x))).float()


class Views(Dataset[tuple[Tensor, int]]):
    """Training rows of one or more plants, each in a new random view whenever it is asked for."""

    def __init__(self, sources: Sequence[Taught], *, policy: Augment) -> None:
        self.sources, self.policy = sources, policy
        self.at = [(s, row) for s, source in enumerate(sources) for row in range(source.rows.num_train)]
        starts = RunData(tuple(source.rows for source in sources)).offsets
        self.ids = [int(starts[s]) + row for s, row in self.at]
        self.forbid = [
            {name: frozenset(e.forbid) for name, e in source.rows.plant.environments.items()} for source in sources
        ]
        self.environments = [source.rows.rows["environment"].to_numpy(dtype=object) for source in sources]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source, row = self.at[index]
        forbid = self.forbid[source][self.environments[source][row]]
        seed = b"%d" % int(torch.randint(1 << 31, ()))
        image = torch.from_numpy(np.array(self.sources[source].pixels[row : row + 1]))
        return augment(image, policy=self.policy, seeds=[seed], forbids=[forbid])[0], self.ids[index]


class Fit(NamedTuple):
    """The best epoch on select."""

    net: Net
    leaves: tuple[str, ...]
    select: float | None
    steps: int


def fit(
    sources: Sequence[Taught],
    *,
    fleet: Fleet,
    spec: Trunk,
    recipe: Recipe,
    seed: int,
    compute: Compute,
    parent: Fit | None = None,
    is_full: bool = False,
) -> Fit:
    """One run: head and last stage (or the whole net) together, for the epochs of the recipe's only stage."""
    data = RunData(tuple(source.rows for source in sources))
    plants = [source.rows.plant for source in sources]
    leaves = fleet.leaves(plants)
    sets = {plant.name: fleet.leaf_sets(plant) for plant in plants}
    supervised = Supervision(data, leaf_sets=sets, leaves=leaves, max_class_weight=recipe.max_class_weight)
    net = Net(spec, num_leaves=len(leaves), recipe=recipe, seed=seed, is_full=is_full)
    if parent:
        _inherit(net, leaves=leaves, parent=parent)
    net = net.compute_in(compute)
    (stage,) = recipe.stages
    groups: list[dict[str, Any]] = [
        {"params": list(net.head.parameters()), "base": stage.lr_head},
        {"params": list(net.above.parameters()), "base": stage.lr_backbone},
        {"params": [p for p in net.below.parameters() if p.requires_grad], "base": stage.lr_backbone / 2},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=stage.lr_head, weight_decay=recipe.weight_decay)
    loader = _loader(Views(sources, policy=recipe.augment), batch=recipe.batch, workers=compute["workers"], seed=seed)
    best, best_state, since, done = None, copy.deepcopy(net.state_dict()), 0, 0
    for _ in range(stage.epochs):
        if since >= recipe.patience:
            break
        done = _epoch(net, loader, optimizer, supervised=supervised, recipe=recipe, done=done)
        found = supervised.judge(lambda i: logits(net, sources[i].pixels[sources[i].rows.num_train :]))
        if found.beats(best):
            best, best_state, since = found, copy.deepcopy(net.state_dict()), 0
        else:
            since += 1
    net.load_state_dict(best_state)
    return Fit(net, leaves, best.value if best else None, done)


def _loader(dataset: Views, *, batch: int, workers: int, seed: int) -> DataLoader[Any]:
    torch.manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def _epoch(
    net: Net,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    *,
    supervised: Supervision,
    recipe: Recipe,
    done: int,
) -> int:
    """One pass; returns the steps done so far."""
    net.train()
    (stage,) = recipe.stages
    for images, ids in loader:
        factor = rate_factor(
            done,
            steps=stage.epochs * len(loader),
            warmup=stage.warmup_epochs * len(loader),
            schedule=recipe.schedule,
        )
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor
        loss = partial_cross_entropy(
            net(images), supervised.targets[ids], supervised.mask[ids], supervised.weights[ids]
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        done += 1
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError("the plain loop's loss is not finite")
    return done


def _inherit(net: Net, *, leaves: Sequence[str], parent: Fit) -> None:
    """The net starts from the parent's last stage, and from its head where the leaves are the same."""
    net.above.load_state_dict(parent.net.above.state_dict())
    index = {leaf: i for i, leaf in enumerate(parent.leaves)}
    with torch.no_grad():
        for row, leaf in enumerate(leaves):
            if leaf in index:
                net.head.weight[row] = parent.net.head.weight[index[leaf]]
                net.head.bias[row] = parent.net.head.bias[index[leaf]]


@torch.inference_mode()
def logits(net: Net, pixels: np.ndarray) -> Tensor:
    """Logits [N, L] of uint8 images, in evaluation mode."""
    net.eval()
    blocks = [net(torch.from_numpy(np.ascontiguousarray(pixels[i : i + 64]))) for i in range(0, len(pixels), 64)]
    return torch.cat(blocks)


def fastest(source: Taught, *, fleet: Fleet, spec: Trunk, recipe: Recipe) -> tuple[Compute, list[dict[str, Any]]]:
    """The quickest way to compute an epoch of this plant here, and what each took."""
    once = recipe.model_copy(
        update={"stages": tuple(s.model_copy(update={"epochs": 1, "warmup_epochs": 0}) for s in recipe.stages)}
    )
    tried: list[dict[str, Any]] = []

    def seconds(compute: Compute) -> float:
        fit([source], fleet=fleet, spec=spec, recipe=once, seed=0, compute=compute)
        start = time.perf_counter()
        fit([source], fleet=fleet, spec=spec, recipe=once, seed=0, compute=compute)
        tried.append({**compute, "epoch_s": round(time.perf_counter() - start, 3)})
        return float(tried[-1]["epoch_s"])

    best = min(COMPUTES, key=seconds)
    with_workers = {**best, "workers": THREADS}
    epochs = recipe.stages[0].epochs
    # Workers start once a run and then serve all its epochs, so they are tried on a whole run.
    times = {}
    for compute in (best, with_workers):
        start = time.perf_counter()
        fit([source], fleet=fleet, spec=spec, recipe=recipe, seed=0, compute=compute)
        times[compute["workers"]] = time.perf_counter() - start
        tried.append({**compute, "epochs": epochs, "run_s": round(times[compute["workers"]], 3)})
    return (with_workers if times[THREADS] < times[0] else best), tried


def fit_all(
    runs: Sequence[Mapping[str, Any]],
    *,
    labels: Mapping[str, pd.DataFrame],
    fleet: Fleet,
    recipe: Recipe,
    compute: Compute,
) -> dict[str, Fit]:
    """Every run of a plan, one after another, parents first; every plant decoded once."""
    torch.set_num_threads(THREADS)
    spec, known, fits = fleet.trunks[0], {}, {}
    for name, rows in labels.items():
        known[name] = taught(fleet.plant(name), labels=rows, spec=spec, seed=fleet.seed)
    for run in sorted(runs, key=lambda run: run["parent"] is not None):
        fits[run["run_id"]] = fit(
            [known[name] for name in run["plants"]],
            fleet=fleet,
            spec=spec,
            recipe=recipe,
            seed=run["seed"],
            compute=compute,
            parent=fits[run["parent"]] if run["parent"] else None,
        )
    return fits
