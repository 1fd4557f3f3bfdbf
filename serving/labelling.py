"""The labelling page: HTTP around a `Desk`, on this machine, for one annotator, until it is ended. No Ray, no model.

Every address begins with a token that is made anew each time; without it there is nothing to be found. The page is one
file without anything from elsewhere.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import secrets
import signal
import socket
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import Field, StrictInt, StrictStr, ValidationError
from starlette.exceptions import HTTPException

from plants.errors import CheckFailed, InputError
from plants.plant import Plant
from serving.desk import PAGE, THUMBNAIL_PX, Desk, Which
from serving.intake import read_body
from serving.schemas import Refusal, Wire

log = logging.getLogger("crossplant.labelling")

HOST = "127.0.0.1"
"""The token travels in the address, without TLS: for nobody but this machine."""
MAX_BODY_BYTES = 1 << 20
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PLAIN = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
KEPT = {**PLAIN, "Cache-Control": "private, max-age=3600"}
NOT_KEPT = {**PLAIN, "Cache-Control": "no-store"}


class Judgement(Wire):
    """What is said of frames by their numbers: one class for all, or null, which takes verdicts away."""

    frames: Annotated[list[StrictInt], Field(min_length=1, max_length=PAGE)]
    name: Annotated[StrictStr | None, Field(alias="class")]


def label(plant: Plant, *, annotator: str | None, port: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The page was served until Ctrl-C or SIGTERM; what was done there. Raises InputError before anything is served."""
    desk = Desk(plant, annotator=_user() if annotator is None else annotator)
    token = secrets.token_urlsafe(32)
    try:
        bound = socket.create_server((HOST, port))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"cannot listen at port {port}: {reason}", field="--port") from None
    if desk.num_left_out:
        say(f"{desk.num_left_out} frames are left out: no table can hold their names; rename them")
    say(f"{plant.name}: {len(desk.frames)} frames, annotator {desk.annotator}; Ctrl-C ends it")
    config = uvicorn.Config(
        build_page(desk, token=token), log_level="warning", access_log=False, timeout_graceful_shutdown=5
    )
    with bound, contextlib.suppress(KeyboardInterrupt):
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises again, when it has ended, what it was ended by
            signal.signal(number, signal.default_int_handler)
        say(f"http://{HOST}:{bound.getsockname()[1]}/{token}/")
        uvicorn.Server(config).run(sockets=[bound])
    done = desk.summary()
    say(f"{done['labelled']} frames labelled, {done['unlabelled']} still have no label; {done['disagreements']} differ")
    return done


def build_page(desk: Desk, *, token: str) -> FastAPI:
    """The HTTP face of a desk. Every error is one JSON object {error, plant, field, remedy}."""

    def checked(given: str) -> None:
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise Refusal("there is nothing here", status=404, field="path", remedy="Open the address as printed")

    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _handle_errors(api)
    router = APIRouter(prefix="/{given}", dependencies=[Depends(checked)])

    @router.get("/")
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        text = files("serving").joinpath("labelling.html").read_text("utf-8").replace("{{nonce}}", nonce)
        return HTMLResponse(text, headers={**NOT_KEPT, "Content-Security-Policy": POLICY.format(nonce)})

    @router.get("/plant")
    def plant() -> JSONResponse:
        classes = [{"name": name, "is_ok": name in desk.plant.ok} for name in desk.plant.annotated]
        return _json({"plant": desk.plant.name, "annotator": desk.annotator, "classes": classes, "page": PAGE})

    @router.get("/frames")
    def frames(which: Which = "todo", after: Annotated[int, Query(ge=-1)] = -1, before: int | None = None) -> Response:
        return _json(desk.view(which, after=after, before=before))

    @router.get("/thumbnails/{number}")
    def thumbnail(number: int) -> Response:
        return Response(desk.picture(number, longest_px=THUMBNAIL_PX), media_type="image/jpeg", headers=KEPT)

    @router.get("/pictures/{number}")
    def picture(number: int) -> Response:
        return Response(desk.picture(number), media_type="image/jpeg", headers=KEPT)

    @router.post("/label")
    async def judge(request: Request) -> JSONResponse:
        judgement = await _judgement(request, plant=desk.plant.name)
        return _json(await run_in_threadpool(desk.label, judgement.frames, judgement.name))

    @router.post("/undo")
    def undo() -> JSONResponse:
        return _json(desk.undo())

    api.include_router(router)
    return api


async def _judgement(request: Request, *, plant: str) -> Judgement:
    length = request.headers.get("content-length")
    body = await read_body(request.stream(), length=length, limit=MAX_BODY_BYTES, plant=plant)
    try:
        return Judgement.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise Refusal("the body is not JSON", status=400, plant=plant, field="body") from None
        field = ".".join(str(part) for part in first["loc"])
        remedy = f"Send {{frames: [0, 1], class: name}}, at most {PAGE} frames"
        raise Refusal(first["msg"], plant=plant, field=field, remedy=remedy) from None


def _handle_errors(api: FastAPI) -> None:
    @api.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _json(refusal.body, status=refusal.status)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _json(
            Refusal(str(first["msg"]), field=".".join(str(part) for part in first["loc"][1:])).body, status=422
        )

    @api.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        return _json(Refusal(str(error.detail), field="path").body, status=error.status_code)

    @api.exception_handler(InputError)
    @api.exception_handler(CheckFailed)
    async def not_kept(_: Request, error: Exception) -> JSONResponse:
        return _json(Refusal(str(error), remedy="Do it again").body, status=503)

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("%s failed", request.method, exc_info=error)  # the path holds the token
        return _json(Refusal("an internal error, see the terminal", remedy="Do it again").body, status=500)


def _json(document: Any, *, status: int = 200) -> JSONResponse:
    return JSONResponse(document, status_code=status, headers=NOT_KEPT)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError("the system knows no user name", field="--annotator", remedy="Name yourself") from None
