"""Faults one after another under a steady load: what each does, and what must be seen before the next one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from object_store import ObjectStore

from cluster.tracking import mirror
from serving import app
from serving.wiring import Tiers
from tests.mlflow_server import MlflowServer
from tests.postgres import Postgres
from tests.serving.steady import Load, Row
from tests.serving.steady_fleet import FLEET, Cluster, deploy, replica_processes

LIVE_S = 2.0
PLANTS = ("mill", "foundry", "mint")
ADDED = "forge"


@dataclass
class Faults:
    """The fleet under load, and what was seen of each fault."""

    works: Cluster
    address: str
    load: Load
    store: ObjectStore
    database: Postgres
    tracking: MlflowServer | None
    """None: nobody listens where MLflow should be, from the beginning."""
    pause_s: float = 2.5
    """Of load after each fault, and while something is away."""
    rows: list[Row] = field(default_factory=list)
    live_s: dict[str, dict[str, float]] = field(default_factory=dict)
    """Fault -> replica -> seconds from the journal's row to when its last answer by the old route was asked for."""
    is_patient: bool = True
    """Whether the bucket stays away until the replicas have given up asking for it, which takes a quarter minute."""
    killed_at: float = 0.0
    told: list[str | None] = field(default_factory=list)
    """What the mirror said, with MLflow there and away."""

    @contextlib.contextmanager
    def during(self, fault: str) -> Iterator[None]:
        """A row of the table for the block and a pause after it."""
        begun = time.monotonic()
        yield
        time.sleep(self.pause_s)
        ended = time.monotonic()
        note = ""
        if fault in self.live_s:
            slowest = max(self.live_s[fault].values(), default=0.0)
            note = f"live everywhere after {slowest:.2f} s at the latest"
        self.rows.append(Row.of(list(self.load.asked), fault=fault, begun=begun, ended=ended, note=note))

    def changed(self, fault: str, *, plant: str, change: Callable[[], Any], bundle: str) -> None:
        """The change is made, and how long each replica went on answering by the route before is on record."""
        change()
        route = self.works.journal.route(plant)
        assert route is not None
        at = time.monotonic() - (time.time() - datetime.fromisoformat(route.at).timestamp())
        time.sleep(LIVE_S + 1)
        later = [one for one in list(self.load.asked) if one.plant == plant and one.begun >= at and one.request_id]
        late = {(one.replica, one.bundle[:12]) for one in later if one.begun > at + LIVE_S and one.bundle != bundle}
        assert not late, f"{fault}: not {bundle[:12]} after {LIVE_S} s, but {late}: {self._problems()}"
        self.live_s[fault] = {
            replica: max(
                (one.begun - at for one in later if one.replica == replica and one.bundle != bundle), default=0.0
            )
            for replica in {one.replica for one in later}
        }

    def as_lead(self, plant: str, verb: str, **body: Any) -> httpx.Response:
        """A lead's promotion or rollback over HTTP."""
        token = {"Authorization": f"Bearer {self.works.bearer('lead')}"}
        return httpx.post(f"{self.address}/plants/{plant}/{verb}", headers=token, json=body or None, timeout=30)

    # --- the faults

    def nothing(self) -> None:
        with self.during("none"):
            pass

    def killed(self) -> None:
        """kill -9 of a replica; another takes its place."""
        (first, *_) = replicas = replica_processes()
        assert len(replicas) == 2
        with self.during("a replica killed with -9"):
            os.kill(first, signal.SIGKILL)
            self.killed_at = time.monotonic()
            self.until(lambda: len(self._answering(since=self.killed_at + 0.5)) == 2, seconds=90)

    def promoted(self) -> None:
        bundle, policy = self.works.made("mill")
        with self.during(fault := "promotion"):
            self.changed(fault, plant="mill", bundle=bundle, change=lambda: self._promoted("mill", bundle, policy))

    def rolled_back(self) -> None:
        history = self.works.journal.history("mill")
        with self.during(fault := "rollback"):
            self.changed(
                fault,
                plant="mill",
                bundle=history[0].bundle,
                change=lambda: self.as_lead("mill", "rollback").raise_for_status(),
            )

    def added(self) -> None:
        """A plant that nobody knew gets its token and its first route, and is asked at once."""
        bundle, policy = self.works.made(ADDED)
        token = self.works.bearer(plant=ADDED)
        headers = {"Authorization": f"Bearer {token}"}
        with self.during("a plant added"):
            self.works.promote(ADDED, bundle=bundle, policy=policy)
            self.until(
                lambda: all(httpx.get(f"{self.address}/plants/{ADDED}", headers=headers).is_success for _ in range(8))
            )
            self.load.tokens[ADDED] = token

    def redeployed(self) -> None:
        """Other settings: every replica is replaced by one that has them."""
        before = self._answering(since=time.monotonic() - 2)
        with self.during("redeployed with other settings"):
            deploy(self.works, tiers=Tiers(branch_mb=64.0, pinned=("mill",)), max_waiting=48)
            self.until(lambda: len(self._answering(since=time.monotonic() - 2) - before) == 2, seconds=90)
            self.until(lambda: not before & self._answering(since=time.monotonic() - 2))

    def tracking_away(self) -> None:
        """MLflow is killed; a promotion goes live all the same, and says that MLflow was not told."""
        if self.tracking is None:
            return
        how = {"fleet": FLEET, "source": f"{self.works.store.uri}/bundles"}
        route = self.works.journal.route("mint")
        self.told.append(mirror(self.tracking.address, route=route, **how))
        bundle, policy = self.works.made("mint")
        with self.during(fault := "MLflow's server down"):
            self.tracking.kill()
            self.changed(
                fault,
                plant="mint",
                bundle=bundle,
                change=lambda: self.works.promote("mint", bundle=bundle, policy=policy),
            )
            self.told.append(mirror(self.tracking.address, route=self.works.journal.route("mint"), **how))

    def database_away(self) -> None:
        """The journal's database ends as in a crash and comes back; the next promotion goes live."""
        with self.during("the journal's database down"):
            self.database.stop()
            self.until(lambda: "journal" in self._problems(), seconds=30)
            refused = self.as_lead("mill", "rollback")
            assert refused.status_code in (409, 503), refused.text
            time.sleep(self.pause_s)
            self.database.start()
            self.until(lambda: not self._problems(), seconds=30)
        bundle, policy = self.works.made("foundry")
        with self.during(fault := "promotion after the database"):
            self.changed(
                fault, plant="foundry", bundle=bundle, change=lambda: self._promoted("foundry", bundle, policy)
            )

    def bucket_away(self) -> None:
        """Verdicts wait on this machine's disk; given the time, the health says so."""
        with self.during("the bucket down"):
            self.store.stop("proxy")
            if self.is_patient:
                self.until(lambda: "spool" in self._problems(), seconds=60)
            time.sleep(2 * self.pause_s)
            self.store.start("proxy")
            self.until(lambda: not self._problems(), seconds=60)

    def corrupt(self) -> None:
        """A bundle that was damaged in the bucket: refused over HTTP, and isolated where the journal names it."""
        bundle, policy = self.works.made("mint")
        key = f"bundles/{bundle}/branch.onnx"
        data = bytearray(self.works.store.read(key))
        data[len(data) // 2] ^= 1
        self.works.store.write(key, bytes(data))
        headers = {"Authorization": f"Bearer {self.works.bearer(plant='mint')}"}
        with self.during("a corrupt bundle promoted"):
            refused = self.as_lead("mint", "promote", bundle=bundle, policy=policy)
            assert refused.status_code == 422, refused.text
            begun = time.monotonic()
            self.works.promote("mint", bundle=bundle, policy=policy)
            self.until(
                lambda: all(
                    httpx.get(f"{self.address}/plants/mint", headers=headers).json()["problem"] for _ in range(6)
                )
            )
            time.sleep(self.pause_s)
        assert bundle not in {one.bundle for one in list(self.load.asked) if one.begun > begun}
        good, policy = self.works.made("mint")
        with self.during(fault := "promotion after the corrupt one"):
            self.changed(fault, plant="mint", bundle=good, change=lambda: self._promoted("mint", good, policy))

    ALL = (
        nothing,
        killed,
        promoted,
        rolled_back,
        added,
        redeployed,
        tracking_away,
        database_away,
        bucket_away,
        corrupt,
    )

    # --- what is seen

    def _promoted(self, plant: str, bundle: str, policy: str) -> None:
        answer = self.as_lead(plant, "promote", bundle=bundle, policy=policy)
        assert answer.status_code == 200, answer.text

    def _answering(self, *, since: float) -> set[str]:
        return {one.replica for one in list(self.load.asked) if one.begun >= since and one.replica}

    def _problems(self) -> str:
        """What any replica lacks; each is met within a few tries."""
        found = set()
        for _ in range(8):
            found |= set(httpx.get(f"{self.address}/healthz", timeout=10).json()["problems"])
        return " ".join(found)

    def until(self, is_so: Callable[[], bool], *, seconds: float = 20.0) -> None:
        """It is so."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, [one.failure for one in self.load.asked if one.failure][-3:]
            time.sleep(0.1)


@contextlib.contextmanager
def under_load(
    root: Path, *, store: ObjectStore, pause_s: float, per_s: float = 48.0, is_whole: bool = True
) -> Iterator[Faults]:
    """A fleet of three plants that is served and asked; the app has ended afterwards, and the log is whole.

    is_whole: with an MLflow server, and the bucket away until that is told; a minute more.
    Raises PostgresUnavailable.
    """
    with contextlib.ExitStack() as ends:
        tracking = MlflowServer(root / "mlflow")
        if is_whole:
            ends.callback(tracking.kill)
            tracking.start()
        database = ends.enter_context(Postgres())
        works = Cluster(root, store.new_bucket(), database.url, tracking.address)
        tokens = {plant: works.bearer(plant=plant) for plant in PLANTS}
        works.bearer("lead")
        for plant in PLANTS:
            bundle, policy = works.made(plant)
            works.promote(plant, bundle=bundle, policy=policy)
        ends.callback(app.stop, FLEET)
        address = app.run(works.settings, store_uri=works.store.uri, fleet=FLEET, port=0, num_replicas=2)
        if is_whole:
            tracking.wait()
        load = ends.enter_context(Load(address, works.answers, tokens, per_s=per_s))
        served_by = tracking if is_whole else None
        faults = Faults(works, address, load, store, database, served_by, pause_s=pause_s, is_patient=is_whole)
        faults.until(lambda: len(faults._answering(since=0)) == 2)
        yield faults
