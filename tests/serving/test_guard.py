"""What the endpoint does to those who should not be there, and to those who come too often, too slowly or twice."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from starlette.testclient import TestClient

from plants.limits import Limits
from plants.plant import Costs
from serving.app import build_app
from serving.service import Service
from serving.wiring import open_service
from tests.serving.toys import GREEN, RED, Works, plant_view, png
from tests.serving.uvicorn_server import Server

pytestmark = pytest.mark.slow

SECURE = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Works:
    """Two plants, `mill` and `foundry`, live."""
    works = Works(tmp_path_factory.mktemp("works"))
    for role in ("lead", "auditor"):
        works.token(role, plant=None)
    for plant in ("mill", "foundry", "nowhere"):
        works.token(plant=plant)
    views = {"mill": plant_view(), "foundry": plant_view()}
    bundle = works.bundle("own", serves=views)
    works.promote("mill", bundle=bundle, policy=works.policy())
    works.promote("foundry", bundle=bundle, policy=works.policy("foundry"))
    return works


@pytest.fixture(scope="module")
def server(fleet: Works) -> Iterator[Server]:
    with Server(fleet.root) as found:
        yield found


def spoken(server: Server, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> tuple[str, bytes]:
    """The answer's head, without its date, and body, to a request sent byte by byte as written."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        received = b""
        while piece := line.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return re.sub(r"date: [^\r]*", "", head.decode()), body


ENDPOINTS = [
    ("POST", "/plants/{}/predict"),
    ("GET", "/plants/{}"),
    ("GET", "/plants/{}/metrics"),
    ("POST", "/plants/{}/promote"),
    ("POST", "/plants/{}/rollback"),
    ("PUT", "/plants/{}/predict"),
    ("GET", "/plants/{}/"),
    ("POST", "/plants/{}/predict/"),
    ("POST", "/plants/{}/feedback"),
    ("GET", "/plants/{}/queue"),
    ("POST", "/plants/mill/../{}/predict"),
    ("POST", "/plants/mill/%2e%2e/{}/predict"),
    ("POST", "/plants/mill%2f..%2f{}/predict"),
    ("POST", "/plants/{}/..;/predict"),
    ("GET", "/plants//{}"),
    ("GET", "//plants/{}"),
]
WRITTEN = [
    "{}",
    "%66{}",
    "{}%00",
    "{}%20",
    "%2e%2e%2f{}",
    "%252e%252e%252f{}",
    "..%5c{}",
    "..;/{}",
    "%C0%AE{}",
    "%EF%AC%80{}",
]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_a_token_at_another_plants_endpoint_gets_the_same_403_whether_or_not_the_plant_exists(
    server: Server, fleet: Works, method: str, path: str
):
    mine, found = fleet.token(), set()
    for written in WRITTEN:
        for plant in ("foundry", "moonbase", "FOUNDRY", "nowhere"):
            target = path.format(written.format(plant)).encode().decode("latin-1")
            head, body = spoken(server, method, target, mine, png(GREEN))
            assert head.split()[1] == "403", (target, head)
            found.add((head, body))
    assert len(found) == 1


@pytest.mark.parametrize(("method", "path"), [*ENDPOINTS, ("GET", "/metrics")])
def test_without_a_token_every_address_is_401_before_its_body_is_looked_at(server: Server, method: str, path: str):
    found = {spoken(server, method, path.format(plant), {}, b"{broken") for plant in ("foundry", "moonbase")}
    ((head, _),) = found
    assert head.split()[1] == "401"


def test_a_plants_token_reads_nothing_of_the_fleet_and_a_lead_is_told_what_is_not_there(server: Server, fleet: Works):
    assert spoken(server, "GET", "/metrics", fleet.token())[0].split()[1] == "403"
    lead = fleet.token("lead", plant=None)
    assert spoken(server, "GET", "/plants/moonbase", lead)[0].split()[1] == "404"
    assert spoken(server, "PUT", "/plants/foundry/predict", lead)[0].split()[1] == "405"
    assert spoken(server, "PUT", "/plants/mill/predict", fleet.token())[0].split()[1] == "405"


def test_every_answer_closes_a_browsers_doors_and_tells_no_version(server: Server, fleet: Works):
    address, token = server.address, fleet.token()
    answers = [
        httpx.get(f"{address}/healthz"),
        httpx.get(f"{address}/openapi.json"),
        httpx.get(f"{address}/nothing"),
        httpx.delete(f"{address}/healthz"),
        httpx.get(f"{address}/plants/mill"),
        httpx.get(f"{address}/plants/mill", headers=token),
        httpx.get(f"{address}/plants/mill?token=x", headers=token),
        httpx.get(f"{address}/metrics", headers=fleet.token("auditor", plant=None)),
        httpx.post(f"{address}/plants/mill/predict?environment=cam-1", headers=token, content=png(GREEN)),
        httpx.post(f"{address}/plants/mill/predict?environment=cam-1", headers=token, content=b"none"),
        httpx.post(f"{address}/plants/mill/promote", headers=fleet.token("lead", plant=None), content=b"{"),
    ]
    assert {answer.status_code for answer in answers} == {200, 400, 401, 404, 405, 422}
    for answer in answers:
        assert {name: answer.headers.get(name) for name in SECURE} == SECURE
        assert not re.search(r"\d", answer.headers.get("server", ""))
    page = httpx.get(f"{address}/docs")
    assert "script" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_a_fault_of_ours_has_the_same_headers(http: TestClient, live: Works, service: Service):
    def broken(jobs: Any) -> Any:
        raise ZeroDivisionError

    service.batcher._handle = broken
    answer = http.post("/plants/mill/predict?environment=cam-1", headers=live.token(), content=png(GREEN))
    assert answer.status_code == 500
    assert {name: answer.headers.get(name) for name in SECURE} == SECURE


def test_no_token_reaches_a_log_in_whatever_place_it_was_sent(server: Server, fleet: Works, caplog: Any):
    token = fleet.token()["Authorization"].removeprefix("Bearer ")
    wrong = "cp_" + "w" * 43
    url = f"{server.address}/plants/mill/predict"
    with caplog.at_level(logging.DEBUG):
        for one in (token, wrong):
            bearer = {"Authorization": f"Bearer {one}"}
            for query in (f"token={one}", f"access_token={one}", f"Authorization=Bearer%20{one}", f"part_id={one}"):
                refused = httpx.post(f"{url}?{query}", headers=bearer, content=png(GREEN))
                assert (refused.status_code, refused.json()["field"]) == (400, "Authorization")
                assert one not in refused.text
            httpx.post(f"{url}?environment=cam-1", headers=bearer, content=png(GREEN))
            httpx.post(url, headers={**bearer, "Content-Type": "multipart/form-data"}, content=b"x")
            httpx.post(url, headers={"Authorization": f"Basic {one}"})
            httpx.post(url, headers={"X-Api-Key": one, "Cookie": f"token={one}"})
            httpx.post(url, headers=bearer, data={"token": one})
    written = server.log.read_text()
    assert "POST /plants/mill/predict" in written
    ours = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    )
    for one in (token, wrong):
        assert one not in written
        assert one not in ours


def begun_to_send(target: str, token: dict[str, str]) -> bytes:
    """A request of which four bytes of a thousand have come."""
    lines = [f"POST {target} HTTP/1.1", "Host: x", "Content-Length: 1000", f"Authorization: {token['Authorization']}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n\x89PNG"


def reply(line: socket.socket) -> tuple[str, bytes]:
    """Head and body of the one answer that comes."""
    received = b""
    while not (
        found := re.search(rb"content-length: (\d+)\r\n(?s:.*?)\r\n\r\n|content-length: (\d+)\r\n\r\n", received)
    ):
        received += line.recv(65536)
    end = found.end() + int(found[1] or found[2])
    while len(received) < end:
        received += line.recv(65536)
    return received[: found.end()].decode(), received[found.end() : end]


def test_a_body_that_does_not_come_is_given_up_and_its_place_is_free_again(server: Server, fleet: Works):
    begun_request = begun_to_send("/plants/mill/predict?environment=cam-1", fleet.token())
    lines = []
    for _ in range(32):
        line = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        line.sendall(begun_request)
        lines.append(line)
    time.sleep(0.3)
    url = f"{server.address}/plants/mill/predict?environment=cam-1"
    refused = httpx.post(url, headers=fleet.token(), content=png(GREEN))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    other = httpx.post(url.replace("mill", "foundry"), headers=fleet.token(plant="foundry"), content=png(GREEN))
    assert other.status_code == 200
    answers = [reply(line) for line in lines]
    assert {head.split()[1] for head, _ in answers} == {"408"}
    assert {json.loads(body)["error"] for _, body in answers} == {"the body was not there within 2 s"}
    assert {line.recv(1) for line in lines} == {b""}
    assert httpx.post(url, headers=fleet.token(), content=png(GREEN)).status_code == 200
    for line in lines:
        line.close()


def test_a_slow_body_with_a_deadline_is_answered_at_the_deadline(server: Server, fleet: Works):
    target = "/plants/mill/predict?environment=cam-1&part_id=7&deadline_ms=300"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        begun = time.monotonic()
        line.sendall(begun_to_send(target, fleet.token()))
        _, body = reply(line)
        took = time.monotonic() - begun
    answer = json.loads(body)
    assert (answer["verdict"], answer["part_id"], answer["frames"]) == ("reject", "7", [])
    assert 0.29 < took < 0.6


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


FIELD = b'Content-Disposition: form-data; name="part_id"\r\n\r\n1'


@pytest.mark.parametrize(
    "body",
    [
        form(*[FIELD] * 300_000),
        form(*[b'Content-Disposition: form-data; name="image"\r\n\r\n'] * 300_000),
        form(b"X: y\r\n" * 3_000_000 + FIELD),
        form(b"X: " + b"y" * 30_000_000 + b"\r\n" + FIELD),
        form(b"X" * 30_000_000 + b": y\r\n" + FIELD),
        b"\r" * 30_000_000,
        b"--b\r\n" + FIELD[:-1] + b"\r\n--" * 8_000_000,
        b"--b" * 10_000_000,
    ],
    ids=["fields", "images", "headers", "long-header", "long-name", "returns", "nearly-boundaries", "boundaries"],
)
def test_a_form_of_thousands_of_parts_or_headers_is_refused_in_a_moment(server: Server, fleet: Works, body: bytes):
    headers = {**fleet.token(), "Content-Type": "multipart/form-data; boundary=b"}
    begun = time.monotonic()
    answer = httpx.post(f"{server.address}/plants/mill/predict", headers=headers, content=body, timeout=60)
    assert (answer.status_code, answer.json()["field"]) in ((422, "body"), (422, "image"))
    assert time.monotonic() - begun < 5


def test_pixels_that_cost_no_bytes_are_counted_before_one_is_decoded(server: Server, fleet: Works):
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(buffer, "WEBP", lossless=True, method=0)
    files = [("image", (f"{n}.webp", buffer.getvalue())) for n in range(6)]
    begun = time.monotonic()
    answer = httpx.post(f"{server.address}/plants/mill/predict", headers=fleet.token(), files=files, timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (413, "384 megapixels in one request, 320 are the most")
    assert time.monotonic() - begun < 1


def test_a_promotion_of_megabytes_is_refused_and_one_by_a_stranger_is_not_read(server: Server, fleet: Works):
    url = f"{server.address}/plants/mill/promote"
    assert httpx.post(url, headers=fleet.token("lead", plant=None), content=bytes(1 << 20)).status_code == 413
    assert httpx.post(url, content=bytes(1 << 20)).status_code == 401
    deep = b'{"bundle":' + b"[" * 60_000
    assert httpx.post(url, headers=fleet.token("lead", plant=None), content=deep).status_code == 422


def test_an_odd_idempotency_key_is_refused(server: Server, fleet: Works):
    url = f"{server.address}/plants/mill/predict?environment=cam-1"
    for key in ("", "x" * 201):
        answer = httpx.post(url, headers={**fleet.token(), "Idempotency-Key": key}, content=png(GREEN))
        assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


def test_a_part_that_is_sent_twice_with_its_key_is_judged_counted_and_logged_once(
    http: TestClient, live: Works, service: Service
):
    url, headers = "/plants/mill/predict?environment=cam-1", {**live.token(), "Idempotency-Key": "part-1"}
    first = http.post(url, headers=headers, content=png(GREEN)).json()
    assert http.post(f"{url}&deadline_ms=900", headers=headers, content=png(GREEN)).json() == first
    clash = http.post(url, headers=headers, content=png(RED))
    assert (clash.status_code, clash.json()["field"]) == (422, "Idempotency-Key")
    other = http.post(url, headers=live.token(), content=png(GREEN)).json()
    assert other["request_id"] != first["request_id"]
    report = http.get("/plants/mill/metrics", headers=live.token()).json()
    assert report["requests"] == 2
    service.log.flush()
    keys = [
        row["request_key"]
        for entry in live.store.list("log/segments")
        for row in pa.ipc.open_file(live.store.read(entry.key)).read_all().to_pylist()
    ]
    assert keys == ["part-1", None]


def test_two_replicas_on_one_database_refuse_a_revoked_token_within_ten_seconds_also_after_a_restart(live: Works):
    def opened(name: str) -> Service:
        return open_service(live.settings, store_uri=live.store.uri, fleet="toys", replica=name)

    def status(http: TestClient) -> int:
        return http.get("/plants/mill", headers={"Authorization": f"Bearer {token}"}).status_code

    token = live.access.issue("plant", plant="mill", ttl=timedelta(hours=1))
    with TestClient(build_app(opened("r1"))) as one, TestClient(build_app(opened("r2"))) as two:
        assert (status(one), status(two)) == (200, 200)
        live.access.revoke(token)
        begun = time.monotonic()
        while (status(one), status(two)) != (401, 401):
            assert time.monotonic() - begun < 10
            time.sleep(0.05)
    database = Path(live.settings.journal_url.removeprefix("sqlite:///"))
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    service = opened("r3")
    with TestClient(build_app(service)) as three:
        assert service.gate.problem is not None
        assert status(three) == 503


def test_a_plants_limits_come_with_its_policy_and_change_while_it_is_served(http: TestClient, live: Works):
    url, headers = "/plants/mill/predict?environment=cam-1", live.token()
    tight = live.policy(costs=Costs(limits=Limits(requests_per_s=0.1, burst=2)))
    bundle = http.post(url, headers=headers, content=png(GREEN)).json()["model"]["bundle"]
    live.promote(bundle=bundle, policy=tight)
    begun = time.monotonic()
    statuses: list[int] = []
    while 429 not in statuses:
        assert time.monotonic() - begun < 5
        answer = http.post(url, headers=headers, content=png(GREEN))
        statuses.append(answer.status_code)
        time.sleep(0.02)
    assert set(statuses) == {200, 429}
    assert int(answer.headers["retry-after"]) >= 1
    assert "costs.limits.requests_per_s" in answer.json()["field"]


def noise(size_px: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_under_load_an_answer_at_the_deadline_comes_at_the_deadline(server: Server, fleet: Works):
    """The load keeps the model busy for longer than the deadline; how late answers are is the event loop's doing."""
    stop, large = threading.Event(), noise(1400)

    def load() -> None:
        with httpx.Client(headers=fleet.token(), timeout=60) as line:
            while not stop.is_set():
                line.post(f"{server.address}/plants/mill/predict?environment=cam-1", content=large)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    late, url = [], f"{server.address}/plants/foundry/predict?environment=cam-1"
    with httpx.Client(headers=fleet.token(plant="foundry"), timeout=60) as line:
        for n in range(60):
            answer = line.post(f"{url}&deadline_ms={1 + n % 8}", content=png(GREEN)).json()
            if not answer["frames"]:
                late.append(answer["latency_ms"] - (1 + n % 8))
                assert answer["verdict"] == "reject"
    stop.set()
    for thread in threads:
        thread.join()
    assert len(late) > 10
    assert statistics.median(late) < 10


def test_a_plant_that_floods_with_megabytes_is_turned_away_and_another_is_always_served(server: Server, fleet: Works):
    """Forty senders of 2 MB without pause; how the quiet plant's latency bears it is `bench_flood.py`'s."""
    stop, large, seen = threading.Event(), noise(1400), Counter[Any]()

    def flood() -> None:
        with httpx.Client(headers=fleet.token(), timeout=60) as line:
            while not stop.is_set():
                try:
                    reply = line.post(f"{server.address}/plants/mill/predict?environment=cam-1", content=large)
                    seen[reply.status_code, "retry-after" in reply.headers] += 1
                except httpx.TransportError as error:
                    seen[type(error).__name__] += 1
                    time.sleep(0.05)

    threads = [threading.Thread(target=flood) for _ in range(40)]
    for thread in threads:
        thread.start()
    try:
        url = f"{server.address}/plants/foundry/predict?environment=cam-1"
        with httpx.Client(headers=fleet.token(plant="foundry"), timeout=60) as line:
            answers = [line.post(url, content=png(RED)) for _ in range(20)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["plant"] for answer in answers} == {"foundry"}
    assert seen[503, True] + seen[429, True] > 0, seen
    assert {key for key in seen if isinstance(key, tuple)} <= {(200, False), (503, True), (429, True)}
