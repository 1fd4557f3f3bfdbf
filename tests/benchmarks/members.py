"""What `bench_ensemble.py` serves: five heads and five last stages on one trunk, alone and joined in three ways."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from many_plants import CLASSES, _exported, _policy
from served import _images

NUM = 5
WEIGHTS = {
    "average": (0.2,) * NUM,
    "weighted": (0.4, 0.25, 0.2, 0.1, 0.05),
    "stacked": (0.7, 0.5, 0.3, 0.2, 0.1),
}
RULES = {"average": "mean", "weighted": "mean", "stacked": "log"}
KINDS = {"heads": "head", "stages": "stage"}


def member_names(kind: str) -> list[str]:
    """The plants whose models are the members."""
    return [f"{KINDS[kind]}-{number:05d}" for number in range(NUM)]


def ensemble_name(kind: str, way: str) -> str:
    """The plant that the ensemble serves."""
    return f"{kind}-{way}"


def published(folder: Path, *, given: argparse.Namespace) -> dict[str, Any]:
    """Members and ensembles are in a store with routes and tokens; the task that every side gets."""
    from cluster.access import Access
    from cluster.registry import Bundles, Journal
    from cluster.settings import Settings
    from cluster.storage import LocalStore

    images = _images(folder / "images", size=given.image)
    store = LocalStore(folder / "store")
    settings = Settings(home=folder / "home", slots=given.replicas)
    bundles, journal, access = Bundles(store), Journal(settings.journal_url), Access(settings.journal_url)
    plants = [name for kind in KINDS for name in member_names(kind)]
    folders = dict(_exported(folder / "exports", plants=plants, images=images, given=given))
    digests = {plant: bundles.publish(where) for plant, where in folders.items()}
    for kind in KINDS:
        members = tuple(digests[name] for name in member_names(kind))
        for way in WEIGHTS:
            name = ensemble_name(kind, way)
            where = folder / "exports" / name
            _write_ensemble(where, name=name, way=way, members=members, like=folders[member_names(kind)[0]])
            digests[name] = bundles.publish(where)
    bundles.publish_trunk(folder / "exports" / "trunk.onnx")
    routes = {}
    for plant, digest in digests.items():
        policy = _policy(plant, digest)
        store.write(f"policies/{policy.digest}.json", policy.to_json().encode())
        journal.promote(plant, bundle=digest, policy=policy.digest, who="bench")
        routes[plant] = [digest, policy.digest]
    return {
        "store": store.uri,
        "home": str(settings.home),
        "shelf": str(folder / "shelf"),
        "replicas": given.replicas,
        "trunk": str(folder / "exports" / "trunk.onnx"),
        "bundles": {plant: str(where) for plant, where in folders.items()},
        "routes": routes,
        "tokens": {plant: access.issue("plant", plant=plant, ttl=timedelta(days=1)) for plant in digests},
        "images": images,
    }


def _write_ensemble(folder: Path, *, name: str, way: str, members: tuple[str, ...], like: Path) -> None:
    from plants import bundle

    one, _ = bundle.read(like)
    (view,) = one.serves.values()
    folder.mkdir(parents=True, exist_ok=True)
    changes = {
        "kind": "ensemble",
        "name": name,
        "run_id": name,
        "members": members,
        "weights": WEIGHTS[way],
        "rule": RULES[way],
        "serves": {name: view},
        "files": {},
    }
    bundle.write(folder, one.model_copy(update=changes))


def joined(said: list[np.ndarray], *, way: str) -> np.ndarray:
    """What members that said this together say [C], in numpy alone: a weighted mean, or a log-linear pool."""
    weights = np.array(WEIGHTS[way])
    if RULES[way] == "mean":
        return np.asarray((weights[:, None] * np.stack(said)).sum(axis=0) / weights.sum())
    logs = (weights[:, None] * np.log(np.maximum(np.stack(said), 1e-6))).sum(axis=0)
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


__all__ = ["CLASSES", "KINDS", "NUM", "WEIGHTS", "ensemble_name", "joined", "member_names", "published"]
