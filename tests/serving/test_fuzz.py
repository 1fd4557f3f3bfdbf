"""Six hundred bad requests over real HTTP; `tests/benchmarks/fuzz_serving.py --seconds 300` sends them for minutes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.serving import fuzzing
from tests.serving.toys import GREEN, Works, png
from tests.serving.uvicorn_server import Server

pytestmark = pytest.mark.slow


def test_whatever_is_sent_is_answered_in_the_one_shape_and_the_next_part_is_judged(tmp_path: Path):
    works = Works(tmp_path)
    headers = works.token()
    works.promote(bundle=works.bundle("own"), policy=works.policy())
    token = headers["Authorization"].removeprefix("Bearer ")
    statuses: Counter[int] = Counter()
    with Server(tmp_path, body_s=0.3) as server:
        for seed in range(600):
            sent = fuzzing.request(random.Random(seed), plant="mill", token=token)
            reply = fuzzing.asked(server.port, sent)
            statuses[reply.status] += 1
            assert fuzzing.fault(reply) is None, (seed, fuzzing.fault(reply), sent[:500])
        url = f"{server.address}/plants/mill/predict?environment=cam-1"
        assert httpx.post(url, headers=headers, content=png(GREEN)).json()["verdict"] == "ok"
        assert "Traceback" not in server.log.read_text()
    assert {200, 400, 401, 403, 404, 415, 422} <= set(statuses)


def test_a_fault_of_the_server_would_be_noticed():
    for reply in (
        fuzzing.Reply(500, "HTTP/1.1 500", b"{}"),
        fuzzing.Reply(503, "HTTP/1.1 503", b"{}"),
        fuzzing.Reply(422, "HTTP/1.1 422", b"<html>"),
        fuzzing.Reply(422, "HTTP/1.1 422", b'{"error": "a", "plant": null}'),
    ):
        assert fuzzing.fault(reply)
