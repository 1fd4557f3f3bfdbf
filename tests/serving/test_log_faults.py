"""What the prediction log loses when its process is killed and when its bucket is away, by doing it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest
from object_store import ObjectStore, free_port
from starlette.testclient import TestClient

from cluster.s3 import Retry, S3Store
from serving.app import build_app
from serving.gaps import DROPPED, KILLED, gaps
from serving.segments import load_index
from serving.spool import waiting_on_disk
from serving.wiring import open_service
from tests.serving.judgements import everything, log_one, make
from tests.serving.plain_app import PlainApp
from tests.serving.toys import GREEN, RED, Works, png

pytestmark = pytest.mark.slow


def ask(address: str, token: dict[str, str], *, answered: list[tuple[int, float]], ended: threading.Event) -> None:
    """Parts are sent until told otherwise; every answer's sequence and time are noted."""
    images, at = [png(GREEN), png(RED)], 0
    with httpx.Client(headers=token, timeout=10) as http:
        while not ended.is_set():
            at += 1
            url = f"{address}/plants/mill/predict?environment=cam-1&part_id={at}"
            with contextlib.suppress(httpx.HTTPError):
                answer = http.post(url, content=images[at % 2]).json()
                answered.append((int(answer["request_id"].rpartition("-")[2]), time.monotonic()))


def test_a_process_killed_under_load_loses_two_seconds_at_most_and_the_gap_is_known_to_the_verdict(
    live: Works,
):
    answered: list[tuple[int, float]] = []
    ended = threading.Event()
    app = PlainApp(live, port=free_port(), replica="r1")
    asking = threading.Thread(
        target=ask, args=(app.address, live.token()), kwargs={"answered": answered, "ended": ended}
    )
    asking.start()
    time.sleep(2.7)
    app.kill()
    killed_at = time.monotonic()
    ended.set()
    asking.join()
    assert len(answered) > 10

    PlainApp(live, port=free_port(), replica="r2").stop()
    index = load_index(live.store)
    there = {n for one in index.segments if one.owner.startswith("r1@") for n in range(one.first, one.last + 1)}
    lost = [(sequence, at) for sequence, at in answered if sequence not in there]
    assert all(killed_at - at < 2 for _, at in lost)
    found = [gap for gap in gaps(index) if gap.owner.startswith("r1@")]
    missing = {n for gap in found for n in range(gap.first, gap.last + 1)}
    assert {sequence for sequence, _ in lost} <= missing
    assert len(missing) <= len(lost) + 1, "but for the one request that was being answered"
    assert {gap.why for gap in found} <= {KILLED}
    assert waiting_on_disk(live.settings.home / "spool" / "toys") == []


def test_a_bucket_that_is_away_for_a_while_loses_nothing_and_the_line_goes_on(
    object_store: ObjectStore, bucket: str, tmp_path: Path
):
    store = S3Store(bucket.removeprefix("s3://"), retry=Retry(attempts=2, first_s=0.05))
    log = make(store, tmp_path, flush_s=0.2)
    slowest, num = 0.0, 0
    for phase_s, is_away in ((1.0, False), (4.0, True), (0.5, False)):
        if is_away:
            object_store.stop("proxy")
        elif num:
            assert log.problem is not None
            assert "wait in the spool" in log.problem
            assert log.spool.num_segments > 5
            object_store.start("proxy")
        until = time.monotonic() + phase_s
        while time.monotonic() < until:
            begun = time.perf_counter()
            log_one(log)
            slowest, num = max(slowest, time.perf_counter() - begun), num + 1
            time.sleep(0.01)
    log.close()
    assert log.problem is None
    assert slowest < 0.5
    assert everything(store) == list(range(1, num + 1))
    assert gaps(load_index(store)) == []


def test_a_full_spool_is_said_by_health_status_and_prometheus_and_every_part_is_judged_all_the_same(live: Works):
    settings = live.settings.model_copy(update={"spool_mb": 0.01})
    live.token("auditor", plant=None)
    service = open_service(settings, store_uri=live.store.uri, fleet="toys", replica="r1")
    with TestClient(build_app(service)) as http:
        shutil.rmtree(live.store.root / "log", ignore_errors=True)
        (live.store.root / "log").write_text("a file where the log's folder should be")
        for _ in range(6):
            url = "/plants/mill/predict?environment=cam-1"
            assert http.post(url, content=png(RED), headers=live.token()).json()["verdict"] == "reject"
            service.log.flush()
        health = http.get("/healthz").json()
        status = http.get("/plants/mill", headers=live.token()).json()
        text = http.get("/metrics", headers=live.token("auditor", plant=None)).text
        (live.store.root / "log").unlink()
        service.log.flush()
        again = http.get("/healthz").json()
    dropped = service.log.spool.dropped_rows
    assert dropped > 0
    assert health["status"] == "degraded"
    for said in (health["problems"][0], status["problem"]):
        assert f"{dropped} verdicts are NOT logged" in said
    assert f'crossplant_log_dropped_rows_total{{replica="r1"}} {dropped}.0' in text
    assert 'crossplant_replica_degraded{replica="r1"} 1.0' in text
    assert (again["status"], again["problems"]) == ("ok", [])
    assert {gap.why for gap in gaps(load_index(live.store))} == {DROPPED}


def test_a_bucket_compacts_and_traces_as_a_folder_does(bucket: str, tmp_path: Path):
    from serving.compaction import compact
    from serving.tracing import find

    store = S3Store(bucket.removeprefix("s3://"))
    log = make(store, tmp_path)
    for number in range(30):
        log_one(log, part_id=str(number))
        if number % 10 == 9:
            log.flush()
    log.close()
    (done,) = compact(store, today="2026-05-05")
    assert (done.segments, done.rows, done.files) == (3, 30, 1)
    assert [row["sequence"] for row in find(store, plant="mill", part_id="17").rows] == [18]
    assert store.list("log/segments") == []
