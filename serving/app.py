"""The Ray Serve app: HTTP around a `Service`, and one deployment of it. Decisions live elsewhere; this is the rim.

`build_app` is plain FastAPI, so everything but Ray is tested without Ray. `run` starts the deployment on a Ray that
runs, or starts one. Counters of several replicas meet on a board, see `serving.board`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import math
import random
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from cluster import session
from cluster.settings import Settings
from plants.errors import InputError
from serving import ingress
from serving.asgi import harden
from serving.board import APP, Poster, end_board
from serving.direct import Direct, upload
from serving.openapi import PREDICT_BODY, PROMOTE_BODY, describe, refusals
from serving.schemas import Answer, PlantStatus, RouteAnswer
from serving.service import Service
from serving.wiring import TIERS, Tiers, open_service

log = logging.getLogger("crossplant.serving")

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What a replica needs to open its handles itself. Picklable, no secrets beyond the journal's address."""

    settings: Settings
    store_uri: str
    fleet: str
    plants: tuple[str, ...] = ()
    """The plants served, all that have a route when empty."""
    declared: tuple[str, ...] = ()
    """The fleet's plants, as far as its file knew them; see `open_service`."""
    max_waiting: int = 64
    tiers: Tiers = TIERS


def build_app(service: Service) -> FastAPI:
    """The HTTP face of a service. Every error is one JSON line {error, plant, field, remedy}."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    api = FastAPI(title="crossplant", lifespan=lifespan, redirect_slashes=False, redoc_url=None)
    api.add_middleware(Direct, service=service)
    harden(api, service)
    describe(api)

    @api.post(
        "/plants/{plant}/predict",
        response_model=Answer,
        responses=refusals(404, 408, 413, 415, 422, 429),
        openapi_extra=PREDICT_BODY,
    )
    async def predict(plant: str, request: Request) -> Response:  # as `Direct` does it; for the description
        answer = await service.predict(plant, upload(request.scope, request.receive))
        return Response(answer.model_dump_json(), media_type="application/json")

    @api.get("/plants/{plant}", responses=refusals(404))
    async def status(plant: str, request: Request) -> PlantStatus:
        return await service.status(plant, authorization=request.headers.get("authorization"))

    @api.get("/plants/{plant}/metrics", responses=refusals(404))
    async def report(plant: str, request: Request) -> dict[str, Any]:
        return await service.report(plant, authorization=request.headers.get("authorization"))

    @api.post("/plants/{plant}/promote", responses=refusals(404, 408, 409, 413, 422), openapi_extra=PROMOTE_BODY)
    async def promote(plant: str, request: Request) -> RouteAnswer:
        return await service.promote(plant, request.stream(), authorization=request.headers.get("authorization"))

    @api.post("/plants/{plant}/rollback", responses=refusals(404, 409))
    async def rollback(plant: str, request: Request) -> RouteAnswer:
        return await service.rollback(plant, authorization=request.headers.get("authorization"))

    text = {"description": "Prometheus text", "content": {PROMETHEUS: {"schema": {"type": "string"}}}}

    @api.get("/metrics", response_class=Response, responses={200: text, **refusals()})
    async def prometheus(request: Request) -> Response:
        body = await service.prometheus(authorization=request.headers.get("authorization"))
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(body, media_type=PROMETHEUS)
        packed = await asyncio.to_thread(gzip.compress, body, 3)  # of a thousand plants 2.5 MB become 0.1
        return Response(packed, media_type=PROMETHEUS, headers={"Content-Encoding": "gzip"})

    @api.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return service.health()

    return api


class Replica:
    """The deployment: a `Service` with its handles opened in this process."""

    def __init__(self, config: ServeConfig) -> None:
        from ray import serve

        replica = serve.get_replica_context().replica_id.unique_id
        self.service = open_service(
            config.settings,
            store_uri=config.store_uri,
            fleet=config.fleet,
            plants=config.plants,
            declared=config.declared,
            replica=replica,
            max_waiting=config.max_waiting,
            tiers=config.tiers,
        )
        own, telemetry = self.service.own_view, self.service.telemetry
        self.service.view = Poster(config.fleet, replica=replica, telemetry=telemetry, own=own)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self.service)

    def check_health(self) -> None:
        """Raises when a thread that a request depends on has ended: Serve then replaces the replica."""
        self.service.check()


def run(
    settings: Settings,
    *,
    store_uri: str,
    fleet: str,
    plants: Sequence[str] = (),
    declared: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    num_replicas: int = 1,
    cpus_per_replica: float = 1.0,
    tiers: Tiers = TIERS,
    timeout_s: float = 120.0,
) -> str:
    """The app answers at the address returned.

    Raises InputError when the port is taken or the CPUs for the replicas are not there.
    """
    port = _free_port(host, port)
    from ray import serve  # two seconds that a taken port should not cost

    session.start(settings, num_slots=math.ceil(num_replicas * cpus_per_replica), variables=ingress.variables)
    session.require({"CPU": cpus_per_replica}, copies=num_replicas)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=quiet)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="plants",
        num_replicas=num_replicas,
        max_ongoing_requests=64,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": cpus_per_replica},
        logging_config=quiet,
    )
    config = ServeConfig(settings, store_uri, fleet, tuple(plants), tuple(declared), tiers=tiers)
    serve.run(deployment.bind(config), name=APP, route_prefix="/")
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    _wait_until_healthy(address, timeout_s=timeout_s)
    return address


def stop(fleet: str) -> None:
    """The app and its board are gone; Ray itself runs on."""
    from ray import serve

    serve.shutdown()
    end_board(fleet)


def _free_port(host: str, port: int) -> int:
    """The port, or for 0 a free one that neither Ray nor the system gives to others before it is used."""
    tries = [port] if port else random.sample(range(20_000, 32_768), 20)
    for number, one in enumerate(tries, start=1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, one))
            except OSError as error:
                if number < len(tries):
                    continue
                raise InputError(
                    f"{host}:{one} cannot be used ({error.strerror})", field="port", remedy="Choose another --port"
                ) from None
            break
    return one


def _wait_until_healthy(address: str, *, timeout_s: float) -> None:
    import httpx

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/healthz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise InputError(f"the app did not answer within {timeout_s:g} s", file=address, remedy="Look at Ray's logs")
