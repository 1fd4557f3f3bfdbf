"""Copies of frames that are too old are gone: packs, activations, contact sheets, in every place that holds them.

Whatever holds pixels has a record beside it, written first: `<stem>.frames.json`, plant -> since when its oldest frame
is held. What is due is found by records alone, so a copy without one would never be found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from cluster.storage import LocalStore, MissingFile, Store, open_store
from plants.governance import is_due
from plants.plant import Fleet, Plant

RECORD = ".frames.json"
PLACES = ("packs", "activations", "looks", "reports")


def record(store: Store, stem: str, *, since: Mapping[str, datetime]) -> None:
    """It is on record whose frames `<stem>.*` or `<stem>/*` is going to hold, and since when the oldest is held."""
    store.write_json(f"{stem}{RECORD}", {plant: at.isoformat() for plant, at in since.items()})


def copy_record(stem: str, *, source: Store, target: Store) -> None:
    """A copy is as old as what it was copied from."""
    if source.exists(f"{stem}{RECORD}"):
        target.write(f"{stem}{RECORD}", source.read(f"{stem}{RECORD}"))


def as_old_as(store: Store, prefix: str, *, since: Mapping[str, datetime]) -> dict[str, datetime]:
    """Since when something made now counts as held, if it may have copied from what lies below the prefix."""
    found = dict(since)
    for entry in store.list(prefix):
        if entry.key.endswith(RECORD):
            with contextlib.suppress(MissingFile):  # another process of the fleet has deleted it
                held = store.read_json(entry.key)
                found = {
                    name: min(at, datetime.fromisoformat(held.get(name, at.isoformat()))) for name, at in found.items()
                }
    return found


def sweep(store: Store, prefix: str, *, plants: Sequence[Plant], now: datetime) -> list[str]:
    """Everything below the prefix that holds a frame of these plants for too long is deleted; returns the stems."""
    governed = {plant.name: plant for plant in plants if plant.retention_days is not None}
    if not governed:
        return []
    keys, gone = [entry.key for entry in store.list(prefix)], []
    for key in keys:
        if not key.endswith(RECORD):
            continue
        with contextlib.suppress(MissingFile):  # another process of the fleet was faster
            if _is_due(store.read_json(key), plants=governed, now=now):
                stem = key.removesuffix(RECORD)
                for other in keys:
                    if other != key and other.startswith((f"{stem}.", f"{stem}/")):
                        store.delete(other)
                store.delete(key)
                gone.append(stem)
    return gone


def _is_due(held: Mapping[str, str], *, plants: Mapping[str, Plant], now: datetime) -> bool:
    found = [(plants[name], datetime.fromisoformat(at)) for name, at in held.items() if name in plants]
    return any(is_due(plant, since=at, now=now) for plant, at in found)


def enforce(fleet: Fleet, *, cache: Path, home: Path, now: datetime) -> list[str]:
    """No place of the fleet that this machine reaches holds a frame for too long; returns what was deleted."""
    if all(plant.retention_days is None for plant in fleet.plants):
        return []
    own = [plant.store for plant in fleet.plants if plant.store]
    caches = [cache_of(plant, cache=cache) for plant in fleet.plants]
    places: list[str | Path] = [fleet.store, *own, cache, *caches, home]
    stores = {store.uri: store for store in map(open_store, places)}
    return [
        store.at(stem)
        for store in stores.values()
        for prefix in PLACES
        for stem in sweep(store, prefix, plants=fleet.plants, now=now)
    ]


def pack_store(fleet: Fleet, plant: Plant, *, cache: Path) -> Store:
    """Where packs of the plant lie: its own store; else the fleet's; in the cache alone where they may not leave."""
    if plant.store:
        return open_store(plant.store)
    return open_store(fleet.store) if plant.may_leave else LocalStore(cache)


def cache_of(plant: Plant, *, cache: Path) -> Path:
    """Where activations of the plant are cached: in its own store where they may not leave and it is a folder."""
    own = open_store(plant.store).local_path("cache") if plant.store and not plant.may_leave else None
    return own or cache
