from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from plants.errors import InputError
from serving.client import Client, Part


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


def test_a_part_that_is_sent_again_keeps_its_key_and_two_parts_have_two():
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        return httpx.Response(200 if len(keys) > 1 else 503, json={})

    line = client(answer)
    line.predict("mill", [("a", b"x")])
    line.predict("mill", [("a", b"x")])
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("status", "jitter"), [(429, 0.0), (503, 0.999)])
def test_the_wait_is_what_the_endpoint_asked_for_or_a_little_more(status: int, jitter: float):
    replies = [
        httpx.Response(status, json={"error": "busy"}, headers={"Retry-After": "7"}),
        httpx.Response(200, json={}),
    ]
    waits: list[float] = []
    client(lambda _: replies.pop(0), waits, jitter=lambda: jitter).status("mill")
    assert 7 <= waits[0] <= 7 * 1.25
    assert (waits[0] > 7) == (jitter > 0)


def test_two_clients_that_were_turned_away_together_do_not_come_back_together():
    def waits_of(jitter: float) -> list[float]:
        waits: list[float] = []
        with pytest.raises(InputError):
            client(lambda _: httpx.Response(503, json={}), waits, jitter=lambda: jitter).status("mill")
        return waits

    assert all(a < b for a, b in zip(waits_of(0.1), waits_of(0.9), strict=True))


def test_a_retry_has_what_is_left_of_the_deadline_and_none_is_sent_after_it():
    left: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        left.append(float(request.read().split(b'name="deadline_ms"\r\n\r\n')[1].split(b"\r\n")[0]))
        raise httpx.ReadError("reset")

    line = Client("http://line", token="t0k", transport=httpx.MockTransport(answer), jitter=lambda: 0.0)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"plant mill: .*no answer within 700 ms \(reset\)"):
        line.predict("mill", [("a", b"x")], deadline_ms=700)
    assert len(left) == 2
    assert left[0] > 690
    assert 300 < left[1] <= 400
    assert time.monotonic() - begun < 2


def parts(count: int) -> Iterator[Part]:
    return (Part([("a.png", b"x")], part_id=str(n)) for n in range(count))


def part_id(request: httpx.Request) -> str:
    return request.read().split(b'name="part_id"\r\n\r\n')[1].split(b"\r\n")[0].decode()


def test_many_parts_are_answered_in_their_order_and_four_at_once():
    lock, now, most = threading.Lock(), [0], [0]

    def answer(request: httpx.Request) -> httpx.Response:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02 if int(part_id(request)) % 2 else 0.001)
        with lock:
            now[0] -= 1
        return httpx.Response(200, json={"part_id": part_id(request)})

    found = list(client(answer).predict_many("mill", parts(40), concurrency=4))
    assert [one["part_id"] for one in found if isinstance(one, dict)] == [str(n) for n in range(40)]
    assert most[0] == 4


def test_a_refused_part_among_many_is_an_error_in_its_place():
    def answer(request: httpx.Request) -> httpx.Response:
        is_bad = part_id(request) == "1"
        return httpx.Response(422 if is_bad else 200, json={"error": "no image"} if is_bad else {})

    good, bad, also_good = client(answer).predict_many("mill", parts(3))
    assert (good, also_good) == ({}, {})
    assert isinstance(bad, InputError)


def test_an_endless_line_of_parts_is_read_only_as_it_is_judged():
    taken: list[int] = []

    def endless() -> Iterator[Part]:
        while True:
            taken.append(1)
            yield Part([("a", b"x")])

    answers = client(lambda _: httpx.Response(200, json={})).predict_many("mill", endless(), concurrency=2)
    assert [next(answers) for _ in range(3)] == [{}, {}, {}]
    answers.close()  # type: ignore[attr-defined]
    assert len(taken) <= 3 + 2 * 2


def test_the_client_needs_httpx_and_nothing_of_what_trains_or_serves():
    heavy = [
        "numpy",
        "pandas",
        "pyarrow",
        "pydantic",
        "yaml",
        "ray",
        "torch",
        "onnxruntime",
        "fastapi",
        "sqlalchemy",
        "PIL",
    ]
    code = f"import sys, serving.client; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
