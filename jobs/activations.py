"""What runs learn from: activations of the frozen trunk, cached on disk in several augmented views (`jobs.caching`).

The rows of a plant are its model inputs (frames, or tiles of frames) of the roles train and select, train first.
Rows of `decide` and `test` are never cached: they meet the exported files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jobs.stream import DRAWS, Stream
from plants.plant import Plant, is_ok
from plants.views import is_judged

TILES_PER_GOOD_FRAME = 5
"""Good tiles kept for training from one tiled frame; tiles that show a defect are all kept."""
TILE_HIT = 0.5
"""Share of a defect's box that a tile must hold to carry the defect's label; any less, and the tile is left out."""


READ = ("frame", "part_id", "lot", "environment", "class", "role", "severity", "box", "width_px", "height_px")
"""Columns of label rows; turning their times too into rows of Python's took half as long as a pass of the trunk."""


class Layout(Protocol):
    """The inputs of a plant without their pixels."""

    frame_index: np.ndarray
    tile_boxes: np.ndarray
    digests: np.ndarray
    frames: Sequence[str]


class PackLike(Layout, Protocol):
    """Decoded inputs of a plant, as `cluster.packs.Pack` holds them."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Pixels uint8 [n, S, S, 3] of these rows, which have these digests."""


class Trunk(Protocol):
    """The frozen lower part, whatever computes it."""

    weights_digest: str
    device: torch.device
    """Where it computes."""

    def activations(self, images: Tensor) -> Mapping[int, Tensor]:
        """Activations float32 [N, ...] by cut of images uint8 [N, S, S, 3]."""


@dataclass(frozen=True)
class PlantData:
    """One plant's rows with their cached activations."""

    plant: Plant
    rows: pd.DataFrame
    """One a model input: frame, part_id, lot, environment, label, severity (NaN where unknown or no defect shows),
    role, input (index into the pack), is_learned (False for good tiles beyond TILES_PER_GOOD_FRAME, which are there to
    be judged only)."""
    num_train: int
    folder: Path
    cuts: tuple[int, ...]
    """Those that are cached."""
    views: int
    stream: Stream | None = None

    def num_views(self, cut: int) -> int:
        """How many views of a training row there are at a cut."""
        return DRAWS if self.stream and cut in self.stream.cuts else self.views

    def path(self, cut: int, view: int) -> Path:
        """Where a view of the rows lies at a cut; of train rows alone but for the plain view, 0."""
        return self.folder / f"cut{cut}.view{view}.npy"

    def fetch(self, cut: int, *, ids: np.ndarray, views: np.ndarray) -> Tensor:
        """Activations float32 [len(ids), ...] at a cut, each row in the view asked for (0 is the plain image).

        They are on the CPU, or where the trunk is that computes them.
        """
        if self.stream and cut in self.stream.cuts:
            return self.stream.fetch(cut, ids=ids, views=views)
        out: np.ndarray | None = None
        for view in np.unique(views):
            at = np.flatnonzero(views == view)
            part = _map(self.path(cut, view))[ids[at]]
            if out is None:
                out = np.empty((len(ids), *part.shape[1:]), dtype=np.float32)
            out[at] = part
        if out is None:
            raise ValueError("no rows were asked for")
        return torch.from_numpy(out)


_MAPS: dict[Path, np.ndarray] = {}


def _map(path: Path) -> np.ndarray:
    if path not in _MAPS:
        _MAPS[path] = np.load(path, mmap_mode="r")
    return _MAPS[path]


def forget(path: Path) -> None:
    """The file is mapped anew when it is asked for next: it was written again."""
    _MAPS.pop(path, None)


def training_rows(plant: Plant, *, labels: pd.DataFrame, pack: Layout, seed: int) -> pd.DataFrame:
    """The model inputs that may be learned from (train, then select), each with the label it carries.

    A tile carries its frame's defect when it holds enough of the defect's box, `ok` when it holds none of it. In a
    part of several frames the boxes say which frames show the defect; without boxes every frame carries the label.
    """
    by_frame = labels[[name for name in READ if name in labels]].set_index("frame").to_dict("index")
    boxed_parts = set(labels.loc[labels["box"].map(_has_box), "part_id"])
    frames = list(pack.frames)
    good = plant.ok[0] if plant.ok else None
    rows: list[dict[str, Any]] = []
    for i, (at, tile) in enumerate(zip(pack.frame_index, pack.tile_boxes, strict=True)):
        row = by_frame.get(frames[at])
        if row is None or row["role"] not in ("train", "select"):
            continue
        label = _tile_label(row, tile=tile, good=good, part_has_box=row["part_id"] in boxed_parts, plant=plant)
        if label == "":
            continue
        rows.append(
            {
                "frame": frames[at],
                "part_id": row["part_id"],
                "lot": row["lot"],
                "environment": row["environment"],
                "label": label,
                "truth": row["class"],
                "severity": _severity(row, label=label, plant=plant),
                "role": row["role"],
                "input": i,
            }
        )
    columns = ["frame", "part_id", "lot", "environment", "label", "truth", "severity", "role", "input"]
    table = pd.DataFrame(rows, columns=columns)
    drawn = [hashlib.sha256(f"tile|{seed}|".encode() + one.tobytes()).digest() for one in pack.digests[table["input"]]]
    table = table.assign(_drawn=pd.Series(drawn, index=table.index, dtype=object))
    train, select = (_with_learned(table[table["role"] == role], plant=plant) for role in ("train", "select"))
    return pd.concat([train[train["is_learned"]], select]).reset_index(drop=True)


def _has_box(box: Any) -> bool:
    return box is not None and not np.isscalar(box) and len(box) == 4


def _tile_label(row: Mapping[Any, Any], *, tile: np.ndarray, good: str | None, part_has_box: bool, plant: Plant) -> str:
    label = row["class"] if isinstance(row["class"], str) else ""
    if label == "":
        return "?"
    if good is None or label in plant.ok or not part_has_box:
        return label
    if not _has_box(row["box"]):
        return good
    x0, y0, x1, y1 = (float(v) for v in row["box"])
    overlap = max(0.0, min(x1, tile[2]) - max(x0, tile[0])) * max(0.0, min(y1, tile[3]) - max(y0, tile[1]))
    if overlap == 0:
        return good
    geometry = plant.environments[row["environment"]].geometry
    is_seen = is_judged(row["box"], int(row["width_px"]), int(row["height_px"]), geometry=geometry)
    return label if is_seen and overlap >= TILE_HIT * max((x1 - x0) * (y1 - y0), 1.0) else ""


def _severity(row: Mapping[Any, Any], *, label: str, plant: Plant) -> float:
    """How grave the defect is that the input shows; NaN where it shows none, and where nobody said."""
    said = row.get("severity")
    return float("nan") if label in plant.ok or said is None or pd.isna(said) else float(said)


def _with_learned(table: pd.DataFrame, *, plant: Plant) -> pd.DataFrame:
    """Rows of a role with `is_learned`: all but good tiles beyond TILES_PER_GOOD_FRAME a frame, picked by `_drawn`."""
    good = table["label"].isin(plant.ok)
    rank = table[good].sort_values("_drawn", kind="stable").groupby("frame").cumcount() + 1
    return table.drop(columns="_drawn").assign(
        is_learned=~good | (rank.reindex(table.index).fillna(0) <= TILES_PER_GOOD_FRAME)
    )


@dataclass(frozen=True)
class RunData:
    """The rows of all plants that one run learns from, addressed by one running index."""

    plants: tuple[PlantData, ...]

    def __post_init__(self) -> None:
        for data in self.plants:
            unlabelled = data.rows[data.rows["label"] == "?"]
            if len(unlabelled):
                frames = ", ".join(unlabelled["frame"].head(3))
                raise ValueError(f"plant {data.plant.name}: {len(unlabelled)} rows have no label (NaN), e.g. {frames}")

    @property
    def offsets(self) -> np.ndarray:
        """Start of each plant's rows in the running index, and the end: [P + 1]."""
        return np.cumsum([0, *[len(data.rows) for data in self.plants]])

    @property
    def train_ids(self) -> np.ndarray:
        """Running indices of the training rows."""
        starts = self.offsets
        return np.concatenate([starts[i] + np.arange(data.num_train) for i, data in enumerate(self.plants)])

    def select_ids(self, i: int) -> np.ndarray:
        """Running indices of the select rows of plant i."""
        return self.offsets[i] + np.arange(self.plants[i].num_train, len(self.plants[i].rows))

    def num_views(self, cut: int) -> int:
        """How many views of a training row there are at every plant."""
        return min(data.num_views(cut) for data in self.plants)

    def column(self, name: str) -> np.ndarray:
        """A column of all rows, in running order; `plant` is the plant's name."""
        if name == "plant":
            return np.concatenate([np.full(len(d.rows), d.plant.name, dtype=object) for d in self.plants])
        return np.concatenate([data.rows[name].to_numpy(dtype=object) for data in self.plants])

    def fetch(self, cut: int, *, ids: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Activations float32 [len(ids), ...], rows in the order of ids, where `PlantData.fetch` has them."""
        views = np.zeros(len(ids), dtype=np.int64) if views is None else views
        starts = self.offsets
        owner = np.searchsorted(starts, ids, side="right") - 1
        out: Tensor | None = None
        for i in np.unique(owner):
            at = np.flatnonzero(owner == i)
            part = self.plants[i].fetch(cut, ids=ids[at] - starts[i], views=views[at])
            if len(at) == len(ids):
                return part
            if out is None:
                out = part.new_empty((len(ids), *part.shape[1:]))
            out[torch.from_numpy(at).to(part.device)] = part
        if out is None:
            raise ValueError("no rows were asked for")
        return out


def ok_mask(leaves: Sequence[str]) -> np.ndarray:
    """Which leaves mean a good part, bool [L]."""
    return np.array([is_ok(leaf) for leaf in leaves], dtype=bool)
