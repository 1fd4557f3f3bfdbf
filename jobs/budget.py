"""What a plan will cost on this machine before it starts, and whether that is within caps and the disk's room.

Looks at what is done and what is in the cache already, which is not counted; sizes come from the label tables, before
any frame is decoded. On a cluster one of its workers is probed; the cache that is looked at, and the disk, are those of
the machine that asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch

from cluster import packs, session
from cluster.retention import cache_of, pack_store
from cluster.settings import Settings
from cluster.storage import PlantFiles, Store
from jobs import probe
from jobs.estimate import NOTHING, START_S, Cost, Inputs, Rates, Work, check_caps, check_room, cost
from jobs.fit import known_plants
from jobs.forked import is_forked
from jobs.leave_out import LeftOut
from jobs.material import Material
from jobs.plan import Plan, RunSpec
from jobs.recipe import Recipe
from plants.errors import InputError
from plants.plant import Plant
from plants.views import view_boxes

PROBED_FRAMES = 8
FORK_S = 1.0
"""Lanes that are forked here, until the first has its first plant; Ray's take `START_S`."""


@dataclass(frozen=True)
class Unread:
    """A pack as it will be when every frame can be decoded, without its pixels."""

    frames: list[str]
    frame_index: np.ndarray
    tile_boxes: np.ndarray
    digests: np.ndarray


def foreseen(
    plan: Plan, *, todo: Sequence[RunSpec], material: Material, settings: Settings, lanes: int, gpu: float = 0.0
) -> Cost:
    """What these runs of the plan will take. gpu: share of a GPU that each lane has."""
    if not todo:
        return NOTHING
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)  # as a lane has: what is measured, and chosen by that, is kept by this
    try:
        return _foreseen(plan, todo=todo, material=material, settings=settings, lanes=lanes, gpu=gpu)
    finally:
        torch.set_num_threads(before)


def _foreseen(
    plan: Plan, *, todo: Sequence[RunSpec], material: Material, settings: Settings, lanes: int, gpu: float
) -> Cost:
    material.export_trunk_once()
    names = sorted({name for run in todo for name in run.plants})
    inputs = {name: inputs_of(name, material=material) for name in names}
    cuts = sorted({stage["cut"] for run in todo for stage in run.recipe["stages"]})
    rates = _rates(material, settings=settings, gpu=gpu, cuts=cuts)
    if unpacked := [name for name in names if inputs[name].pack_inputs]:
        rates = replace(rates, decode=decode_rate(unpacked, material=material))
    shared = plan.shared(lanes=lanes)
    works = [work_of(run, plan=plan, material=material, inputs=inputs, is_shared=run.run_id in shared) for run in todo]
    trunk_lanes = max(1, min(lanes, round(lanes * gpu))) if gpu else lanes
    return cost(
        works,
        inputs=list(inputs.values()),
        rates=rates,
        sizes=probe.sizes(material, cuts=cuts),
        lanes=lanes,
        trunk_lanes=trunk_lanes,
        start_s=FORK_S if is_forked(plan, settings=settings) else START_S,
    )


def check(
    found: Cost, *, max_hours: float | None, max_gb: float | None, material: Material, settings: Settings
) -> None:
    """Raises InputError where the cost is above a cap, or more than a disk of this machine has room for."""
    check_caps(found, max_hours=max_hours, max_gb=max_gb)
    if settings.is_embedded:
        free = shutil.disk_usage(_existing(material.cache)).free
        check_room(found.cache_bytes + found.pack_bytes, free=free, place=str(material.cache))


def inputs_of(name: str, *, material: Material, left_out: LeftOut | None = None) -> Inputs:
    """What runs learn from at a plant, and what of it is still to be computed: of a part of it nothing more."""
    plant, labels = material.fleet.plant(name), material.learning_rows(name)
    store, size_px, how = _store(plant, material=material), material.trunk.size_px, material.model.interpolation
    frames = packs.frames_of(labels)
    key = packs.pack_key(frames, plant=plant, size_px=size_px, interpolation=how)
    path = packs.place_of(f"packs/{name}/{key}", store=store, cache_dir=material.cache)
    known = {} if path.exists() else packs.known_digests(path.parent, frames, plant=plant, size_px=size_px, how=how)
    pack = packs.Pack.open(path) if path.exists() else layout(plant, labels=labels, frames=frames, known=known)
    taken = labels if left_out is None else labels[~left_out.holds(labels)]
    rows, absent = material.absent(name, labels=taken, pack=pack)
    num_train = int((rows["role"] == "train").sum())
    if left_out is not None:
        return Inputs(f"without {left_out}", train=num_train, select=len(rows) - num_train)
    is_there = isinstance(pack, packs.Pack)
    return Inputs(
        name=name,
        train=num_train,
        select=len(rows) - num_train,
        passes=sum(absent),
        augmented=sum(absent[1:]),
        pack_inputs=0 if is_there else len(pack.frame_index),
        pack_megapixels=0.0 if is_there else _megapixels(labels[~labels["frame"].isin(known)]),
    )


def _megapixels(labels: pd.DataFrame) -> float:
    return float((labels["width_px"] * labels["height_px"]).sum() / 1e6)


def layout(
    plant: Plant,
    *,
    labels: pd.DataFrame,
    frames: Sequence[packs.Frame],
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Unread:
    """The views of these frames by their recorded sizes; none of one that its geometry does not fit.

    known: frame -> the digests of its views, where another pack holds them.
    """
    at = labels.set_index("frame")
    sizes = list(zip(at["environment"], at["width_px"].astype(int), at["height_px"].astype(int), strict=True))
    known = {size: _boxes(plant, *size) for size in set(sizes)}
    boxes_of = dict(zip(at.index, (known[size] for size in sizes), strict=True))
    boxes = [boxes_of[frame.frame] for frame in frames]
    kept = [(frame.frame, found) for frame, found in zip(frames, boxes, strict=True) if len(found)]
    digests = [known[frame] if frame in known else _placeholders(frame, len(found)) for frame, found in kept]
    return Unread(
        frames=[frame for frame, _ in kept],
        frame_index=np.repeat(np.arange(len(kept)), [len(found) for _, found in kept]),
        tile_boxes=np.concatenate([np.empty((0, 4), np.int32), *[found for _, found in kept]]),
        digests=np.concatenate([np.empty((0, 16), np.uint8), *digests]),
    )


def _placeholders(frame: str, count: int) -> np.ndarray:
    """In place of the digests [count, 16] of a frame's views that nobody has read yet: no others have them."""
    names = [f"unread|{frame}|{i}".encode("utf-8", "surrogatepass") for i in range(count)]
    return np.frombuffer(b"".join(hashlib.sha256(name).digest()[:16] for name in names), np.uint8).reshape(-1, 16)


def _boxes(plant: Plant, environment: str, width: int, height: int) -> np.ndarray:
    try:
        return view_boxes(width, height, geometry=plant.environments[environment].geometry)
    except (InputError, KeyError):  # said of the frame when its pack is made
        return np.empty((0, 4), np.int32)


def work_of(run: RunSpec, *, plan: Plan, material: Material, inputs: dict[str, Inputs], is_shared: bool) -> Work:
    """A run in numbers. inputs: of every plant that it learns from, and maybe of others."""
    out = run.left_out
    own = {name: inputs_of(name, material=material, left_out=out) for name in run.plants if out and out.plant == name}
    learned = [own.get(name, inputs[name]) for name in run.plants]
    recipe, has_start = Recipe.model_validate(run.recipe), bool(run.sources or run.start)
    before = known_plants(run, fleet=material.fleet, plan=plan)
    known = [inputs.get(name) or inputs_of(name, material=material) for name in before]
    return Work(
        run_id=run.run_id,
        recipe=recipe,
        train=sum(item.train for item in learned),
        select=sum(item.select for item in learned),
        num_leaves=len(material.leaves(run.plants)),
        parents=run.sources,
        has_start=has_start,
        is_judged=bool(run.parent) and not (run.parents or run.start),
        known_train=sum(item.train for item in known),
        known_select=sum(item.select for item in known),
        has_task=bool(recipe.tasks) and any(stage.epochs for stage in recipe.stages) and out is None,
        is_shared=is_shared,
        is_normality=run.kind == "normality",
    )


def decode_rate(names: Sequence[str], *, material: Material) -> float:
    """Megapixels/s of frames of the first of these plants that can be read, from where they lie to their views."""
    files = PlantFiles()
    for plant in map(material.fleet.plant, names):
        rows = material.learning_rows(plant.name).head(PROBED_FRAMES)
        begun = time.perf_counter()
        with contextlib.suppress(InputError):  # its own runs will say why
            packs.build_shard(
                packs.frames_of(rows),
                plant=plant,
                size_px=material.trunk.size_px,
                interpolation=material.model.interpolation,
                read=lambda frame, at=plant.images: files.read(at, frame),
            )
            return float((rows["width_px"] * rows["height_px"]).sum() / 1e6) / (time.perf_counter() - begun)
    return math.inf


def written(plan: Plan, *, material: Material) -> dict[str, int]:
    """Bytes that the plan's inputs and models take now, by kind: `cache_bytes`, `pack_bytes`, `store_bytes`."""
    folders: dict[str, set[Path]] = {"activations": set(), "packs": set()}
    for place in {material.cache, *(cache_of(plant, cache=material.cache) for plant in material.fleet.plants)}:
        folders["activations"].add(place / "activations")
    for plant in material.fleet.plants:
        local = _store(plant, material=material).local_path("packs")
        folders["packs"].add(local or material.cache / "packs")
    taken = {
        kind: sum(f.stat().st_size for at in places for f in at.rglob("*") if f.is_file())
        for kind, places in folders.items()
    }
    store = sum(entry.size for entry in material.store.list(f"runs/{plan.plan_id}"))
    return {"cache_bytes": taken["activations"], "pack_bytes": taken["packs"], "store_bytes": store}


def _rates(material: Material, *, settings: Settings, gpu: float, cuts: Sequence[int]) -> Rates:
    """Measured here where Ray is embedded, else by a worker of the cluster."""
    if settings.is_embedded:
        return probe.rates(material, threads=settings.threads, cuts=cuts)
    import ray

    task = ray.remote(num_cpus=1, num_gpus=gpu)(_rates_there)
    found: Rates = session.result(task.remote(material.to_config(), settings.threads, cuts))
    return found


def _rates_there(config: dict[str, object], threads: int, cuts: Sequence[int]) -> Rates:
    return probe.rates(Material.from_config(config), threads=threads, cuts=cuts)


def _store(plant: Plant, *, material: Material) -> Store:
    return pack_store(material.fleet, plant, cache=material.cache)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
