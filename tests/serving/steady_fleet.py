"""A fleet as a cluster has it: the journal on PostgreSQL, bundles and log in a bucket, two replicas of Ray Serve."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from cluster.access import Access
from cluster.registry import Bundles, Journal
from cluster.settings import Settings
from cluster.storage import LocalStore, open_store
from plants.costs import Policy
from serving import app
from serving.gaps import Gap, gaps
from serving.segments import Index, load_index
from serving.spool import waiting_on_disk
from serving.wiring import Tiers
from tests.processes import cmdline, descendants
from tests.serving.steady import Answers, Asked
from tests.serving.toys import LEAVES, Works, make_trunk, plant_view

FLEET = "toys"


@dataclass
class Cluster(Works):
    """A fleet's store in a bucket, its journal in PostgreSQL; what is published lies on disk too, for `predict`."""

    bucket: str
    journal_url: str
    tracking_uri: str

    def __post_init__(self) -> None:
        self.store: Any = open_store(self.bucket)
        uris = {"journal_url": self.journal_url, "tracking_uri": self.tracking_uri}
        self.settings = Settings(home=self.root / "home", slots=2, object_store_mb=160, **uris)
        self.bundles = Bundles(self.store)
        self.journal = Journal(self.journal_url)
        self.access = Access(self.journal_url)
        self.trunk = make_trunk(self.root / "trunk.onnx")
        self.trunk_sha256 = self.bundles.publish_trunk(self.trunk)
        self.disk = LocalStore(self.root / "disk")
        Bundles(self.disk).publish_trunk(self.trunk)
        self.answers = Answers(self.disk.root)
        self.tokens = {}
        self.num_made = 0

    def made(self, plant: str) -> tuple[str, str]:
        """A new bundle of the plant, unlike any other's, and its policy."""
        self.num_made += 1
        name = f"{plant}-{self.num_made}"
        options = {"cut": self.num_made % 2, "sharpness": 3.0 + 0.9 * self.num_made}
        bundle = self.bundle(name, serves={plant: plant_view()}, **options)
        Bundles(self.disk).publish(self.root / "exports" / name)
        limits = {"pass_below": 0.2, "reject_above": 0.6}
        policy = Policy(plant=plant, bundle=bundle, classes=LEAVES, ok=("ok",), **limits)
        for store in (self.store, self.disk):
            store.write(f"policies/{policy.digest}.json", policy.to_json().encode())
        self.answers.learn(plant, bundle=bundle, policy=policy.digest, settings=self.settings)
        return bundle, policy.digest

    def bearer(self, role: Any = "plant", *, plant: str | None = None) -> str:
        """The token of this role."""
        return self.token(role, plant=plant)["Authorization"].removeprefix("Bearer ")


@dataclass(frozen=True)
class Lost:
    """What the log lacks in the end."""

    index: Index
    missing: list[Gap]

    @classmethod
    def of(cls, works: Cluster) -> Lost:
        """Read when every replica has ended."""
        index = load_index(works.store)
        return cls(index, gaps(index, spooled=waiting_on_disk(works.settings.home / "spool" / FLEET)))

    def of_answers(self, asked: list[Asked]) -> list[Asked]:
        """Answers that the client has and the log has not."""
        held: dict[str, list[tuple[int, int]]] = {}
        for one in self.index.segments:
            held.setdefault(one.owner.partition("@")[0], []).append((one.first, one.last))
        return [
            one
            for one in asked
            if one.request_id
            and not any(
                first <= int(one.request_id.rpartition("-")[2]) <= last for first, last in held.get(one.replica, [])
            )
        ]


def deploy(works: Cluster, *, tiers: Tiers, max_waiting: int) -> None:
    """The app that runs is replaced by one of these settings, replica by replica, as a changed RayService does it."""
    from ray import serve

    config = app.ServeConfig(works.settings, works.store.uri, FLEET, max_waiting=max_waiting, tiers=tiers)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    deployment = serve.deployment(
        serve.ingress()(app.Replica),
        name="plants",
        num_replicas=2,
        max_ongoing_requests=64,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": 1},
        logging_config=quiet,
    )
    serve.run(deployment.bind(config), name=app.APP, route_prefix="/")


def replica_processes() -> list[int]:
    """The replicas that this process has started."""
    return [pid for pid in descendants(os.getpid()) if "ServeReplica" in cmdline(pid)]
