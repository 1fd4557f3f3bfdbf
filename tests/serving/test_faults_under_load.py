"""What is killed, away or corrupt while parts come without pause: the client sees no failure, nor another's answer.

Two plants, two uvicorn processes on one journal, store and home, and a client for each. The same behind Ray Serve, with
a replica killed and a promotion under load, is in `test_serve.py`.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.client import Client
from tests.serving.toys import GREEN, RED, Works, plant_view, png, spoil
from tests.serving.uvicorn_server import Server

pytestmark = pytest.mark.slow

PLANTS = {"mill": ("ok", GREEN), "foundry": ("reject", RED)}
"""Each plant has parts of its own colour, so another's answer shows."""


class Lines:
    """Parts of both plants, from a thread for each plant and server, until the end; every answer is checked."""

    def __init__(self, works: Works, servers: list[Server]) -> None:
        self._stop = threading.Event()
        self._works = works
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._work, args=(server, plant)) for server in servers for plant in PLANTS
        ]

    def __enter__(self) -> Lines:
        for thread in self._threads:
            thread.start()
        self.wait_for_more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """So many parts more were judged."""
        target, begun = len(self.answers) + count, time.monotonic()
        while len(self.answers) < target:
            assert time.monotonic() - begun < 60, self.failures[-3:]
            time.sleep(0.01)

    def _work(self, server: Server, plant: str) -> None:
        verdict, colour = PLANTS[plant]
        token = self._works.token(plant=plant)["Authorization"].removeprefix("Bearer ")
        with Client(server.address, token=token, num_tries=12) as client:
            while not self._stop.is_set():
                part_id = uuid.uuid4().hex
                image = png(colour, size=(40 + len(self.answers) % 9, 40))
                try:
                    answer = client.predict(plant, [("a.png", image)], part_id=part_id, environment="cam-1")
                except Exception as error:
                    self.failures.append(str(error))
                    continue
                said = (answer["plant"], answer["part_id"], answer["verdict"], answer["frames"][0]["sha256"])
                if said != (plant, part_id, verdict, hashlib.sha256(image).hexdigest()):
                    self.failures.append(f"another's answer: {said}")
                self.answers.append(answer)


@pytest.fixture
def works(tmp_path: Path) -> Works:
    found = Works(tmp_path)
    for plant in PLANTS:
        found.token(plant=plant)
    bundle = found.bundle("own", serves={plant: plant_view() for plant in PLANTS})
    for plant in PLANTS:
        found.promote(plant, bundle=bundle, policy=found.policy(plant))
    return found


@pytest.fixture
def servers(works: Works) -> Iterator[list[Server]]:
    found = [Server(works.root, replica=name) for name in ("r1", "r2")]
    for server in found:
        server.start()
    for server in found:
        server.wait()
    yield found
    for server in found:
        server.__exit__()


def test_a_process_killed_under_load_and_started_again_costs_no_part_and_mixes_up_none(
    works: Works, servers: list[Server]
):
    with Lines(works, servers) as lines:
        for _ in range(2):
            servers[0].kill()
            time.sleep(0.5)
            servers[0].start()
            servers[0].wait()
            lines.wait_for_more(50)
    assert lines.failures == []


def health(server: Server) -> list[str]:
    found: list[str] = httpx.get(f"{server.address}/healthz").json()["problems"]
    return found


def until(is_so: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < 20
        time.sleep(0.05)


def test_with_the_database_and_the_bucket_away_parts_are_judged_and_what_was_decided_meanwhile_follows(
    works: Works, servers: list[Server]
):
    database = Path(works.settings.journal_url.removeprefix("sqlite:///"))
    store, away = Path(works.store.root), works.root / "store.away"
    with Lines(works, servers) as lines:
        kept = database.read_bytes()
        database.write_bytes(b"x" * len(kept))  # renamed, it would stay open and be read on
        store.rename(away)
        store.write_text("not a folder")
        until(lambda: all("tokens" in str(health(server)) and "log" in str(health(server)) for server in servers))
        lines.wait_for_more(100)
        servers[0].kill()
        servers[0].start()
        servers[0].wait()
        lines.wait_for_more(100)
        store.unlink()
        away.rename(store)
        database.write_bytes(kept)
        until(lambda: not any(health(server) for server in servers))
        strict = works.policy(pass_below=0.1)
        works.promote(bundle=lines.answers[-1]["model"]["bundle"], policy=strict)
        until(lambda: {one["model"]["policy"] for one in lines.answers[-8:] if one["plant"] == "mill"} == {strict})
    assert lines.failures == []


def test_a_corrupt_bundle_under_load_isolates_nobody_from_the_last_good_one_and_the_next_good_one_goes_live(
    works: Works, servers: list[Server]
):
    with Lines(works, servers) as lines:
        before = lines.answers[-1]["model"]["bundle"]
        broken = works.bundle("broken", serves={"mill": plant_view()}, cut=1)
        spoil(works.store.root / "bundles" / broken / "branch.onnx")
        works.promote(bundle=broken, policy=works.policy())
        url, token = f"{servers[0].address}/plants/mill", works.token()
        until(lambda: httpx.get(url, headers=token).json()["problem"] is not None)
        lines.wait_for_more(100)
        assert {one["model"]["bundle"] for one in lines.answers} == {before}
        good = works.bundle("good", serves={"mill": plant_view()}, cut=1, sharpness=30.0)
        works.promote(bundle=good, policy=works.policy())
        until(lambda: {one["model"]["bundle"] for one in lines.answers[-8:] if one["plant"] == "mill"} == {good})
    assert lines.failures == []


def test_a_replica_needs_no_tracking_server_to_serve(works: Works, servers: list[Server]):
    """MLflow may be away, as nothing that serves has ever loaded it."""
    maps = Path(f"/proc/{servers[0].pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert not (works.settings.home / "mlflow.db").exists()


def test_a_journal_that_is_locked_for_seconds_stops_no_part(works: Works, servers: list[Server]):
    database = Path(works.settings.journal_url.removeprefix("sqlite:///"))
    with Lines(works, servers) as lines, sqlite3.connect(database) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        lines.wait_for_more(100)
        time.sleep(max(0.0, 3 - (time.monotonic() - begun)))
        lines.wait_for_more(20)
        writer.rollback()
    assert lines.failures == []
