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


def test_once_nobody_answered_every_request_is_tried_once_until_somebody_does():
    asked: list[int] = []
    is_back = False

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        if not is_back:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={})

    line = client(answer, num_tries=3)
    for num_asked in (3, 4, 5):
        with pytest.raises(InputError, match="no answer"):
            line.status("mill")
        assert len(asked) == num_asked
    is_back = True
    assert line.status("mill") == {}
    is_back = False
    with pytest.raises(InputError, match="no answer after 3 tries"):
        line.status("mill")


def test_a_check_of_an_address_where_nobody_listens_asks_once():
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        raise httpx.ConnectError("refused")

    with pytest.raises(InputError, match=r"file http://line: nobody answers \(refused\)\. Is `crossplant serve`"):
        client(answer).check("mill")
    assert len(asked) == 1


def test_a_check_bears_a_busy_replica_and_gives_the_plants_status():
    replies = [httpx.Response(503, json={"error": "busy"}), httpx.Response(200, json={"plant": "mill"})]
    assert client(lambda _: replies.pop(0)).check("mill") == {"plant": "mill"}


@pytest.mark.parametrize(
    "address",
    ["", "line", "127.0.0.1:8000", "localhost:80", "ftp://line", "http://", "http://h:port", "http://h:99999"],
)
def test_what_is_no_address_is_refused_before_any_request(address):
    with pytest.raises(InputError, match=r"field --address: is not .* Write it like http://127\.0\.0\.1:8000"):
        Client(address, token="t0k")


@pytest.mark.parametrize("token", ["schlüssel", "a\nb"])
def test_a_token_that_no_header_can_carry_is_refused_without_repeating_it(token):
    with pytest.raises(InputError, match="CROSSPLANT_TOKEN") as caught:
        Client("http://line", token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("plant", ["..", ".", "", "a/b", "MILL", "mill\n", "x" * 64])
def test_what_is_no_plants_name_is_refused_before_any_request(plant):
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError("asked")

    line = client(answer)
    for ask in (line.status, line.metrics, line.check, lambda name: line.predict(name, [("a", b"x")])):
        with pytest.raises(InputError, match="is not a plant's name"):
            ask(plant)


def test_a_page_of_something_else_that_says_yes_is_not_taken_for_an_answer():
    with pytest.raises(InputError, match="something else than crossplant answers"):
        client(lambda _: httpx.Response(200, text="<html>")).status("mill")


def test_an_error_page_of_something_else_is_told_by_its_status():
    with pytest.raises(InputError, match="status 404"):
        client(lambda _: httpx.Response(404, text="<html>")).status("mill")
