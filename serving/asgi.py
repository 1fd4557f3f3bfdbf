"""What every answer has in common, whoever gives it: the shape of a refusal, the headers that close a browser's doors.

`Hardened` also sees to it that a token in the address, where every log on the way would keep it, is refused and gone
from what the server's own access log writes.
"""

from __future__ import annotations

import json
import logging
import re
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.front import asking, is_large
from serving.schemas import Refusal
from serving.service import Service

log = logging.getLogger("crossplant.serving")

CLOSED = "default-src 'none'; frame-ancestors 'none'"
SCRIPTED = "default-src 'self' https: data: 'unsafe-inline'; frame-ancestors 'none'"
"""For the page that draws the API's description, whose script comes from elsewhere."""
PAGE = "/docs"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": CLOSED,
}
_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_RAW_PAGE = [*_RAW[:-1], (_RAW[-1][0], SCRIPTED.encode())]
_CLOSE = [(b"connection", b"close")]
_TOKEN = re.compile(r"cp_[A-Za-z0-9_-]{43}")
"""As `cluster.access` issues them."""
_SECRET_NAMES = frozenset(("access_token", "api_key", "apikey", "authorization", "bearer", "key", "token"))


class Hardened:
    """Every answer has the headers; a request with a token in its address gets 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _RAW_PAGE if scope["path"].startswith(PAGE) else _RAW
        is_whole = not is_large(scope)
        receive = asking(scope, receive)

        async def watched() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = is_whole or not message.get("more_body", False)
            return message

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers, *(() if is_whole else _CLOSE)]
            await send(message)

        if scope["query_string"] and _has_token(scope["query_string"]):
            scope["query_string"] = b""  # in place: the access log reads it once more
            refusal = Refusal(
                "a token in the address would stand in every log",
                status=400,
                field="Authorization",
                remedy="Send `Authorization: Bearer TOKEN`, and have this one revoked",
            )
            await refused(refusal)(scope, watched, hardened)
            return
        await self._app(scope, watched, hardened)


def _has_token(query: bytes) -> bool:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return any(name.lower() in _SECRET_NAMES or _TOKEN.fullmatch(value) for name, value in pairs)


def refused(refusal: Refusal) -> JSONResponse:
    """The HTTP answer of a refusal."""
    return JSONResponse(refusal.body, status_code=refusal.status, headers=refusal.headers)


def harden(api: FastAPI, service: Service) -> None:
    """Every error of the app is one JSON line {error, plant, field, remedy}; every answer has the headers."""
    api.add_middleware(Hardened)

    @api.exception_handler(Refusal)
    async def refusal_of_ours(_: Request, refusal: Refusal) -> JSONResponse:
        return refused(refusal)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return refused(Refusal(str(first["msg"]), plant=request.path_params.get("plant"), field=field))

    @api.exception_handler(HTTPException)
    async def nowhere(request: Request, error: HTTPException) -> JSONResponse:
        path = request.scope["path"]
        try:
            if path.lstrip("/").startswith("plants"):
                await service.nowhere(path, authorization=request.headers.get("authorization"))
        except Refusal as refusal:
            return refused(refusal)
        remedy = "See /docs for the endpoints"
        found = refused(Refusal(str(error.detail), status=error.status_code, field="path", remedy=remedy))
        found.headers.update(error.headers or {})
        return found

    @api.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, json.dumps(request.url.path), exc_info=error)
        plant = request.path_params.get("plant")
        found = refused(
            Refusal("an internal error, logged by the replica", status=500, plant=plant, remedy="Try again")
        )
        found.headers.update(HEADERS)  # outside of the middleware
        return found
