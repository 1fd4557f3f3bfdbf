"""Activations of the frozen trunk in a machine's cache: computed once, appended to when images come, never stale.

A row is named by all that it comes from: weights, cut, dtype, the pixels and, where it is augmented, view, policy, what
its station forbids, and seed. So nothing that changes can hit an old row; what stays as it is is copied from where it
lies for other rows of the plant, and only new images meet the trunk. Deleting the cache loses nothing. A view of all
rows lies in one file a cut, as training reads it: what is copied costs little against a pass of the trunk, and reading
from many small files would cost in every epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cluster import blocks
from cluster.blocks import KEY_BYTES, Block
from cluster.eviction import hold, make_room
from cluster.retention import RECORD, as_old_as, record
from cluster.storage import LocalStore
from jobs.activations import Layout, PackLike, PlantData, Trunk, forget
from jobs.augment import WAY, augment
from jobs.recipe import Augment
from plants.errors import InputError, Notice
from plants.plant import Plant

SPAN = 256
"""Rows that are in memory at a time while a view is computed."""

Forbids = Sequence[frozenset[str]]
"""Of each row, what its station forbids."""


def prepare(
    plant: Plant,
    *,
    rows: pd.DataFrame,
    pack: PackLike,
    trunk: Trunk,
    cuts: Sequence[int],
    policy: Augment,
    views: int,
    cache: Path,
    since: datetime,
    seed: int,
    cache_gb: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> PlantData:
    """The plant's activations are in the cache: view 0 of every row, views 1.. of the training rows.

    since: when the oldest of their frames was taken or copied; it stands on record for `cluster.retention`.
    cache_gb: what the cache may hold. Raises NoSpace when that, or the disk, is full; a damaged file is made again.
    """
    data, entries = _entries(
        plant, rows=rows, pack=pack, trunk=trunk, cuts=cuts, policy=policy, views=views, cache=cache, seed=seed
    )
    stem = f"activations/{plant.name}/{data.folder.name}"
    hold(cache, stem)
    store = LocalStore(cache)
    if not store.exists(f"{stem}{RECORD}"):
        record(store, stem, since=as_old_as(store, f"activations/{plant.name}", since={plant.name: since}))
    for entry in entries:
        missing = [cut for cut in cuts if _whole(data.path(cut, entry.number)) is None]
        if missing:
            entry.fill(
                missing, pack=pack, trunk=trunk, room=lambda size: make_room(cache, num_bytes=size, bound_gb=cache_gb)
            )
            if progress:
                progress(entry.number + 1, views)
    return data


def absent(plant: Plant, *, rows: pd.DataFrame, pack: Layout, trunk: Trunk, **named: Any) -> tuple[int, ...]:
    """By view, how many rows `prepare` would have to compute, as `named` names them."""
    data, entries = _entries(plant, rows=rows, pack=pack, trunk=trunk, **named)
    found = []
    for entry in entries:
        new = np.zeros(len(entry.keys), dtype=bool)
        for cut in data.cuts:
            if not data.path(cut, entry.number).exists():
                new |= entry.known(cut).source < 0
        found.append(int(new.sum()))
    return tuple(found)


def _entries(
    plant: Plant,
    *,
    rows: pd.DataFrame,
    pack: Layout,
    trunk: Trunk,
    cuts: Sequence[int],
    policy: Augment,
    views: int,
    cache: Path,
    seed: int,
) -> tuple[PlantData, list[_View]]:
    """The plant's rows with the folder of their activations, and what is to lie there, view by view."""
    num_train = int((rows["role"] == "train").sum())
    digests = pack.digests[rows["input"].to_numpy(np.int64)]
    forbids = [_forbidden(plant, name) for name in rows["environment"]]
    names = [RowNames(trunk.weights_digest, view=view, policy=policy, seed=seed) for view in range(max(views, 2))]
    both = [num_train.to_bytes(8, "big"), *names[0].of(digests, forbids), *names[1].of(digests, forbids)]
    folder = cache / "activations" / plant.name / hashlib.sha256(b"".join(both)).hexdigest()[:32]
    data = PlantData(plant=plant, rows=rows, num_train=num_train, folder=folder, cuts=tuple(cuts), views=views)
    entries = []
    for view, name in enumerate(names[:views]):
        end = num_train if view else len(rows)
        keys = np.frombuffer(b"".join(name.of(digests[:end], forbids[:end])), np.uint8).reshape(-1, KEY_BYTES)
        entries.append(_View(data, number=view, name=name, digests=digests[:end], forbids=forbids[:end], keys=keys))
    return data, entries


@dataclass(frozen=True)
class RowNames:
    """Names rows of one view."""

    weights_digest: str
    view: int
    policy: Augment
    seed: int

    def of(self, digests: np.ndarray, forbids: Forbids) -> list[bytes]:
        """Of images by the digests of their pixels, 16 bytes each."""
        words: dict[str, Any] = {"weights": self.weights_digest, "dtype": "float16", "view": self.view}
        if self.view:
            words |= {"augment": self.policy.model_dump(mode="json"), "way": WAY, "seed": self.seed}
        way = json.dumps(words, sort_keys=True)
        prefixes = {f: f"{way}|{sorted(f) if self.view else ''}|".encode() for f in set(forbids)}
        pairs = zip(digests, forbids, strict=True)
        return [hashlib.sha256(prefixes[f] + one.tobytes()).digest()[:KEY_BYTES] for one, f in pairs]

    def seeds(self, digests: np.ndarray) -> list[bytes]:
        """What each image's random draws are made from: the same whatever its company, its weights and its policy."""
        return [f"{self.seed}|{self.view}|".encode() + one.tobytes() for one in digests]


def _forbidden(plant: Plant, environment: str) -> frozenset[str]:
    return frozenset(plant.environments[environment].forbid) if environment in plant.environments else frozenset()


def _whole(path: Path) -> Block | None:
    """What lies there; None where nothing does, or what is damaged: that is deleted, and said."""
    try:
        return blocks.read(path)
    except FileNotFoundError:
        return None
    except InputError as fault:
        path.unlink(missing_ok=True)
        warnings.warn(Notice(f"{path}: {fault.detail}; its rows are copied or computed again"), stacklevel=2)
        return None


@dataclass(frozen=True)
class _View:
    """One view of a plant's rows that is not in the cache as a whole."""

    data: PlantData
    number: int
    name: RowNames
    digests: np.ndarray
    forbids: Forbids
    keys: np.ndarray

    def fill(self, cuts: Sequence[int], *, pack: PackLike, trunk: Trunk, room: Callable[[int], None]) -> None:
        """The view is in the cache at these cuts: rows that lie there already are copied, the others computed."""
        known = {cut: self.known(cut) for cut in cuts}
        with contextlib.ExitStack() as stack:
            paths = {cut: self.data.path(cut, self.number) for cut in cuts}
            add = {cut: stack.enter_context(blocks.writing(paths[cut], keys=self.keys, room=room)) for cut in cuts}
            for start in range(0, max(len(self.keys), 1), SPAN):
                at = np.arange(start, min(start + SPAN, len(self.keys)))
                new = at[np.any([known[cut].source[at] < 0 for cut in cuts], axis=0)]
                computed = self._computed(new, pack=pack, trunk=trunk) if len(new) else {}
                for cut in cuts:
                    add[cut](known[cut].rows(at, new=new, computed=computed.get(cut)))
        for path in paths.values():
            forget(path)

    def _computed(self, at: np.ndarray, *, pack: PackLike, trunk: Trunk) -> Mapping[int, np.ndarray]:
        images = torch.from_numpy(pack.take(self.data.rows["input"].to_numpy(np.int64)[at])).to(trunk.device)
        if self.number:
            seeds, forbids = self.name.seeds(self.digests[at]), [self.forbids[i] for i in at]
            images = augment(images, policy=self.name.policy, seeds=seeds, forbids=forbids)
        return {cut: values.half().cpu().numpy() for cut, values in trunk.activations(images).items()}

    def known(self, cut: int) -> _Known:
        """Where the view's rows lie in the plant's other entries, the ones with most of them first."""
        path = self.data.path(cut, self.number)
        source, row, found = np.full(len(self.keys), -1), np.zeros(len(self.keys), np.int64), []
        wanted = [one.tobytes() for one in self.keys]
        others = {}
        for other in sorted(path.parent.parent.glob(f"*/{path.name}")):
            keys = blocks.keys_of(other)
            if keys is not None:
                index = {one.tobytes(): i for i, one in enumerate(keys)}
                others[other] = np.array([index.get(one, -1) for one in wanted], dtype=np.int64)
        while others:
            best = max(others, key=lambda other: int(((others[other] >= 0) & (source < 0)).sum()))
            rows = others.pop(best)
            at = (rows >= 0) & (source < 0)
            if not at.any():
                break
            if block := _whole(best):
                source[at], row[at] = len(found), rows[at]
                found.append(block.rows)
        return _Known(tuple(found), source, row)


@dataclass(frozen=True)
class _Known:
    """Where rows lie: `source` [N] is a number of a block, -1 for none, `row` [N] the row there."""

    blocks: tuple[np.ndarray, ...]
    source: np.ndarray
    row: np.ndarray

    def rows(self, at: np.ndarray, *, new: np.ndarray, computed: np.ndarray | None) -> np.ndarray:
        """These rows, the new ones as they were computed, the others from where they lie."""
        like = computed if computed is not None else self.blocks[0] if self.blocks else np.zeros((0, 1), np.float16)
        out = np.empty((len(at), *like.shape[1:]), np.float16)
        for i, block in enumerate(self.blocks):
            here = self.source[at] == i
            out[here] = block[self.row[at[here]]]
        if computed is not None:
            out[np.searchsorted(at, new)] = computed
        return out
