from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from plants.errors import InputError
from serving.client import Client


def client(
    answer: Callable[[httpx.Request], httpx.Response], waits: list[float] | None = None, **kwargs: Any
) -> Client:
    sleep = (waits if waits is not None else []).append
    return Client("http://line", token="t0k", sleep=sleep, transport=httpx.MockTransport(answer), **kwargs)


def test_a_part_of_two_frames_is_sent_as_one_request_with_its_fields():
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"verdict": "ok"})

    with client(answer) as line:
        found = line.predict("mill", [("a.jpg", b"A"), ("b.jpg", b"B")], part_id="7", deadline_ms=250)
    assert found == {"verdict": "ok"}
    body = seen[0].read()
    assert seen[0].url.path == "/plants/mill/predict"
    assert seen[0].headers["authorization"] == "Bearer t0k"
    assert body.count(b'name="image"') == 2
    assert b'name="part_id"\r\n\r\n7' in body
    assert b"environment" not in body


def test_a_dropped_connection_a_busy_replica_and_a_dead_one_are_tried_again():
    replies: list[Any] = [
        httpx.ReadError("reset"),
        httpx.Response(503, json={"error": "busy"}),
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(200, json={}),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    waits: list[float] = []
    assert client(answer, waits).status("mill") == {}
    assert len(waits) == 3
    assert waits == sorted(waits)


def test_a_refusal_is_not_repeated_and_names_plant_field_and_remedy():
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        return httpx.Response(422, json={"error": "no image", "plant": "mill", "field": "image", "remedy": "Send one"})

    with pytest.raises(InputError, match=r"plant mill: field image: no image\. Send one"):
        client(answer).metrics("mill")
    assert len(asked) == 1


def test_a_bug_in_a_replica_is_not_asked_for_again():
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        return httpx.Response(500, json={"error": "an internal error", "plant": "mill", "field": None, "remedy": None})

    with pytest.raises(InputError, match="an internal error"):
        client(answer).status("mill")
    assert len(asked) == 1


def test_an_address_where_nobody_answers_says_so_after_a_few_tries():
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(InputError, match=r"no answer after 3 tries.*crossplant serve"):
        client(answer, num_tries=3).predict("mill", [("a", b"x")])


def test_an_error_page_of_something_else_is_told_by_its_status():
    with pytest.raises(InputError, match="status 404"):
        client(lambda _: httpx.Response(404, text="<html>")).status("mill")
