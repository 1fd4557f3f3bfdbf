"""A replica's port behind Ray: what was refused by its headers is never read, what was let in is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving.asgi import Hardened
from serving.front import MAX_UNREAD_BYTES, Front, asking, middlewares

LARGE = MAX_UNREAD_BYTES + 1


class Eager:
    """Reads ahead as Ray Serve's direct ingress does: every message at once, whether the app asks or not."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def ahead() -> None:
            while True:
                await queue.put(await receive())

        task = asyncio.create_task(ahead())
        await asyncio.sleep(0.02)
        await self.app(scope, queue.get, send)
        task.cancel()


class Socket:
    """A body that lies in a socket, in pieces."""

    def __init__(self, *, num_bytes: int) -> None:
        self.left, self.num_read = num_bytes, 0

    async def receive(self) -> Any:
        if self.num_read and not self.left:
            await asyncio.Event().wait()  # the sender waits for the answer
        piece = min(self.left, 1 << 16)
        self.left, self.num_read = self.left - piece, self.num_read + piece
        return {"type": "http.request", "body": bytes(piece), "more_body": self.left > 0}


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 429, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def reading(scope: Any, receive: Any, send: Any) -> None:
    total, is_more = 0, True
    while is_more:
        message = await receive()
        total, is_more = total + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(total).encode()})


def asked(app: Any, *, num_bytes: int, length: bool = True) -> tuple[int, bytes, Socket, list[Any]]:
    """Status, body, what was read, and headers of one request through the front, Ray's reader and our headers."""
    body, sent = Socket(num_bytes=num_bytes), []
    headers = [(b"content-length", str(num_bytes).encode())] if length else [(b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "path": "/plants/mill/predict", "query_string": b"", "headers": headers}

    async def send(message: Any) -> None:
        sent.append(message)

    async def go() -> None:
        async with asyncio.timeout(10):
            await Front(Eager(Hardened(app)))(scope, body.receive, send)

    asyncio.run(go())
    return sent[0]["status"], sent[-1]["body"], body, sent[0]["headers"]


@pytest.mark.parametrize("length", [True, False], ids=["declared", "chunked"])
def test_a_large_body_that_is_refused_by_its_headers_is_not_read_and_the_connection_ends(length: bool):
    status, _, body, headers = asked(refusing, num_bytes=2 << 20, length=length)
    assert (status, body.num_read) == (429, 0)
    assert (b"connection", b"close") in headers


@pytest.mark.parametrize("num_bytes", [1, MAX_UNREAD_BYTES, LARGE, 5 << 20])
def test_a_body_that_the_app_reads_arrives_whole(num_bytes: int):
    status, answer, body, headers = asked(reading, num_bytes=num_bytes)
    assert (status, answer, body.left) == (200, str(num_bytes).encode(), 0)
    assert (b"connection", b"close") not in headers


def test_a_small_body_waits_for_nobody():
    _, _, body, headers = asked(refusing, num_bytes=1000)
    assert body.num_read == 1000
    assert (b"connection", b"close") not in headers or body.left == 0


def test_an_app_in_another_thread_may_ask_for_the_body():
    async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
        first = asyncio.ensure_future(receive())
        await asyncio.sleep(0.01)
        assert not first.done()
        await asyncio.to_thread(lambda: asyncio.run(_ask(scope)))
        assert len((await first)["body"]) == 1 << 16
        await refusing(scope, receive, send)

    async def _ask(scope: Any) -> None:
        async def nothing() -> Any:
            return {}

        await asking(scope, nothing)()

    async def go() -> None:
        body = Socket(num_bytes=2 << 20)
        scope = {"type": "http", "headers": [(b"content-length", b"2097152")]}

        async def send(_: Any) -> None:
            pass

        async with asyncio.timeout(10):
            await Front(elsewhere)(scope, body.receive, send)

    asyncio.run(go())


def test_a_proxy_of_rays_own_which_is_no_replica_gets_no_front():
    assert middlewares() == []
