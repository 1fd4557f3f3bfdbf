"""What stands between a replica's port and Ray Serve: a large body stays in the socket until the app asks for it.

Behind HAProxy a replica of Ray reads every body to its end the moment the request is there, into a queue without a
bound and before the app was asked: a plant that floods costs the event loop all of its bytes though each request is
refused by its headers, and what waits for its turn lies in memory that no limit of ours counts. Here the first
`receive` of a large body waits until the app has called for it, which `serving.asgi` does when a part is let in.
Ray loads `middlewares` by name, see `serving.ingress`; nothing in here imports more than a replica's port needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WANTED = "crossplant.wanted"
"""In the scope of a request whose body waits: what to call when it is wanted. From any thread, also more than once."""
MAX_UNREAD_BYTES = 256 << 10
"""A body larger than this waits; and where it was refused unread, the connection ends: reading megabytes away costs the
event loop more than the part would have."""


def is_large(scope: Scope) -> bool:
    """Whether a body comes, or may come, that is dearer to read away than a new connection."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return len(value) > 18 or not value.isdigit() or int(value) > MAX_UNREAD_BYTES
        if name == b"transfer-encoding":
            return True
    return False


class Front:
    """Lets Ray read a large body when the app has asked for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http" or not is_large(scope):
            await self._app(scope, receive, send)
            return
        loop, is_wanted = asyncio.get_running_loop(), asyncio.Event()

        async def when_wanted() -> Message:
            await is_wanted.wait()
            return await receive()

        scope[WANTED] = lambda: loop.call_soon_threadsafe(is_wanted.set)
        await self._app(scope, when_wanted, send)


def asking(scope: Scope, receive: Receive) -> Receive:
    """The app's `receive`: its first call says that the body is wanted, where it waits for that."""
    wanted: Callable[[], Any] | None = scope.pop(WANTED, None)
    if wanted is None:
        return receive

    async def asked() -> Message:
        nonlocal wanted
        if wanted is not None:
            wanted()
            wanted = None
        return await receive()

    return asked


def middlewares() -> list[Middleware]:
    """What Ray puts before itself: its `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`.

    Nothing in a proxy of Ray's own, which hands requests to another process.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        serve.get_replica_context()
    except RayServeException:
        return []
    return [Middleware(Front)]
