"""The app behind real HTTP: Ray Serve with two replicas."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from cluster.settings import Settings
from plants.errors import InputError
from serving import app
from serving.client import Client
from serving.intake import Frame, PartRequest
from serving.local import local_predictor, predict_local
from tests.serving.toys import BLUE, GREEN, RED, Works, plant_view, png

pytestmark = pytest.mark.slow


class Served:
    """A fleet with its address."""

    def __init__(self, works: Works, address: str) -> None:
        self.works = works
        self.address = address
        self.num_asked = 0
        token = works.token()
        self.http = httpx.Client(base_url=address, headers=token, timeout=30)
        self.token = token["Authorization"].removeprefix("Bearer ")

    def ask(self, image: bytes, **fields: Any) -> dict[str, Any]:
        query = {"environment": "cam-1"} | fields
        response = self.http.post("/plants/mill/predict", params=query, content=image)
        assert response.status_code == 200, response.text
        self.num_asked += 1
        found: dict[str, Any] = response.json()
        return found

    def replicas(self) -> set[str]:
        """The replicas that answer."""
        found: set[str] = set()
        for _ in range(100):
            found.add(self.ask(png(GREEN))["request_id"].rsplit("-", 1)[0])
            if len(found) == 2:
                break
        return found


@pytest.fixture(scope="module")
def served(ray_local: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    works = Works(tmp_path_factory.mktemp("works"))
    works.promote(bundle=works.bundle("own"), policy=works.policy())
    address = app.run(works.settings, store_uri=works.store.uri, fleet="toys", port=0, num_replicas=2)
    yield Served(works, address)
    app.stop("toys")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{address}/healthz", timeout=2)


def test_both_replicas_answer_and_either_tells_the_counts_of_both(served: Served):
    assert len(served.replicas()) == 2
    begun = time.monotonic()
    counts: set[int] = set()
    while counts != {served.num_asked} and time.monotonic() - begun < 5:
        time.sleep(0.3)
        counts = {served.http.get("/plants/mill/metrics").json()["requests"] for _ in range(6)}
    assert counts == {served.num_asked}


def test_either_replica_tells_prometheus_of_both(served: Served):
    auditor = served.works.token("auditor", plant=None)
    for _ in range(4):
        text = served.http.get("/metrics", headers=auditor).text
        verdicts = re.findall(r"^crossplant_verdicts_total\{.*\} (\S+)$", text, re.M)
        assert sum(map(float, verdicts)) == served.num_asked
        assert len(re.findall(r"^crossplant_replica_degraded\{.*\} 0.0$", text, re.M)) == 2
        time.sleep(0.6)


def test_a_board_that_dies_is_replaced_and_every_count_is_on_the_new_one(served: Served):
    import ray

    ray.kill(ray.get_actor("crossplant-board-toys", namespace="crossplant"))
    served.ask(png(RED))
    begun, counts = time.monotonic(), set()
    while counts != {served.num_asked} and time.monotonic() - begun < 15:
        time.sleep(0.5)
        counts = {served.http.get("/plants/mill/metrics").json()["requests"] for _ in range(6)}
    assert counts == {served.num_asked}


def test_a_part_whose_deadline_passed_is_never_passed_and_is_answered_at_once_though_both_replicas_are_busy(
    served: Served,
):
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=served.address, headers=served.http.headers, timeout=30) as line:
            while not stop.is_set():
                line.post("/plants/mill/predict?environment=cam-1", content=png(GREEN, size=(2000, 1500)))
                counted.append(1)

    counted: list[int] = []
    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    late = [served.ask(png(GREEN), deadline_ms=1) for _ in range(40)]
    stop.set()
    for thread in threads:
        thread.join()
    served.num_asked += len(counted)
    timed_out = [answer for answer in late if answer["probabilities"] == {}]
    assert len(timed_out) >= 30
    assert {answer["verdict"] for answer in timed_out} == {"reject"}
    assert sorted(answer["latency_ms"] for answer in timed_out)[len(timed_out) // 2] < 50
    assert served.ask(png(GREEN), deadline_ms=5000)["verdict"] == "ok"


def test_a_bundle_on_disk_and_the_endpoint_give_the_same_answer_from_the_same_tensor(served: Served):
    image = png((130, 90, 60), size=(120, 100))
    over_http = served.ask(image, environment="tiled", part_id="4711")
    folder = served.works.store.root / "bundles" / over_http["model"]["bundle"]
    policy = served.works.store.root / "policies" / f"{over_http['model']['policy']}.json"
    part = PartRequest("mill", (Frame("body", image),), environment="tiled", part_id="4711")
    (local,) = predict_local(local_predictor(folder, policy=policy), [part])
    assert not isinstance(local, InputError)
    on_disk = local.model_dump(mode="json")
    for key in ("verdict", "defect", "confidence", "probabilities", "frames", "location", "part_id", "why"):
        assert on_disk[key] == over_http[key]


def test_bad_requests_are_refused_over_real_http_and_the_next_one_is_served(served: Served):
    url = f"{served.address}/plants/mill/predict?environment=cam-1"
    headers = {"Authorization": f"Bearer {served.token}"}
    assert httpx.post(url, content=png(GREEN)).status_code == 401
    assert httpx.post(url, headers=headers, content=b"<html></html>").status_code == 422
    assert httpx.post(url, headers=headers, content=bytes(50 << 20), timeout=30).status_code == 413
    strange = served.works.token(plant="foundry")
    assert httpx.post(url, headers=strange, content=png(GREEN)).status_code == 403
    assert httpx.post(f"{served.address}/plants/%2e%2e/predict", headers=headers).status_code == 403
    assert served.ask(png(GREEN))["verdict"] == "ok"


def test_a_client_that_leaves_in_the_middle_does_not_stop_the_others(served: Served):
    for _ in range(10):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(
                f"{served.address}/plants/mill/predict?environment=tiled",
                headers={"Authorization": f"Bearer {served.token}"},
                content=png(GREEN, size=(900, 900)),
                timeout=httpx.Timeout(5, read=0.001),
            )
    assert served.ask(png(BLUE))["defect"] == "scratch"


class Line:
    """Parts that arrive without pause, on two threads, until told to stop."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._stop = threading.Event()
        self.answers: list[tuple[float, dict[str, Any]]] = []
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(2)]

    def __enter__(self) -> Line:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        with Client(self._served.address, token=self._served.token) as client:
            while not self._stop.is_set():
                sent, part_id = time.monotonic(), str(uuid.uuid4())
                image = png((20, int(sent * 1000) % 200, 20))
                try:
                    answer = client.predict("mill", [("a.png", image)], environment="cam-1", part_id=part_id)
                    assert (answer["plant"], answer["part_id"]) == ("mill", part_id), "another's answer"
                    assert answer["frames"][0]["sha256"] == hashlib.sha256(image).hexdigest(), "another's answer"
                    self.answers.append((sent, answer))
                except Exception as error:
                    self.errors.append(error)


def test_a_promotion_reaches_every_replica_within_two_seconds_and_no_request_fails(served: Served):
    works = served.works
    new = works.bundle("deeper", cut=1)
    with Line(served) as line:
        time.sleep(0.5)
        works.promote(bundle=new, policy=works.policy())
        promoted = time.monotonic()
        time.sleep(3)
    assert line.errors == []
    late = [sent - promoted for sent, answer in line.answers if answer["model"]["bundle"] != new]
    assert max(late) < 2
    assert {answer["model"]["bundle"] for sent, answer in line.answers if sent > promoted + 2} == {new}


def test_a_plant_added_while_serving_gets_its_endpoint(served: Served):
    works = served.works
    bundle = works.bundle("f", serves={"foundry": plant_view(("ok", "dent"))})
    works.promote("foundry", bundle=bundle, policy=works.policy("foundry", classes=("ok", "dent")))
    headers, url = works.token(plant="foundry"), f"{served.address}/plants/foundry/predict?environment=cam-1"
    begun = time.monotonic()
    while (response := httpx.post(url, headers=headers, content=png(RED))).status_code != 200:
        assert time.monotonic() - begun < 5
        time.sleep(0.1)
    assert response.json()["defect"] == "dent"


def test_every_verdict_reaches_the_log_and_its_sequence_has_no_gap(served: Served):
    ids = {served.ask(png(GREEN))["request_id"] for _ in range(10)}
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    while not ids <= {row["request_id"] for row in rows}:
        assert time.monotonic() - begun < 5
        time.sleep(0.2)
        rows = read_log(served.works)
    for replica in {row["replica"] for row in rows}:
        sequence = sorted(row["sequence"] for row in rows if row["replica"] == replica)
        assert sequence == list(range(1, len(sequence) + 1))


def read_log(works: Works) -> list[dict[str, Any]]:
    return [
        row
        for entry in works.store.list("log/segments")
        for row in pa.ipc.open_file(works.store.read(entry.key)).read_all().to_pylist()
    ]


def replica_processes() -> list[int]:
    """Processes of this test's own replicas: those below this process that call themselves so."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid, name in names.items() if "ServeReplica" in name and is_ours(pid)]


def test_a_replica_that_is_killed_under_load_costs_no_answer(served: Served):
    replicas = replica_processes()
    assert len(replicas) == 2
    with Line(served) as line:
        time.sleep(1)
        os.kill(replicas[0], signal.SIGKILL)
        time.sleep(4)
    assert line.errors == []
    begun = time.monotonic()
    while len(served.replicas()) < 2:
        assert time.monotonic() - begun < 60
        time.sleep(0.5)
