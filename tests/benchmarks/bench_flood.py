"""One plant floods 300 requests a second of 2 MB; another sends two a second. What does the other feel?

    python tests/benchmarks/bench_flood.py [--ray] [--replicas 2] [--rounds 3] [--seconds 20] [--quick]

Rounds alternate: the quiet plant alone; beside the same flood sent to a sink, a port that refuses from the headers and
is no part of crossplant; beside the flood sent to the app. Without `--ray` one uvicorn process answers, with it
`app.run` behind Ray Serve's own ingress. The flood is open-loop from a process of its own, whose CPU is stated: it
shares the machine, which is no fault of the app's, so the peer is the quiet plant beside the sink. `ratio` is p99
beside the flood over p99 beside the sink, goal <= 2, and nothing but 200 for the quiet plant; `ratio_alone` is over p99
alone. `--no-limits` raises the flooding plant's limits out of the way, which leaves the fair turns alone. Quality is
equal where every answer is the quiet plant's own, as before the flood. `--quick` is a smoke run.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from measuring import even_niceness

from plants.limits import Limits
from plants.plant import Costs
from tests.serving.toys import Works, plant_view
from tests.serving.uvicorn_server import Server

QUIET_PER_S = 2.0
FLOOD_PER_S = 300.0
MAX_CONNECTIONS = 256


def jpeg(size_px: int, *, quality: int, scale: int) -> bytes:
    """A JPEG of noise with structure `scale` pixels wide."""
    small = np.random.default_rng(0).integers(0, 256, (size_px // scale, size_px // scale, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((size_px, size_px)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


async def asked(connections: list[Any], *, url: str, request: bytes) -> tuple[int, bytes]:
    """Status and body, over a connection of the pool."""
    target = urlsplit(url)
    if connections:
        reader, writer = connections.pop()
    else:
        reader, writer = await asyncio.open_connection(target.hostname, target.port, limit=1 << 20)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()
        return 0, b""
    if b"connection: close" in head:
        writer.close()
    else:
        connections.append((reader, writer))
    return int(head[9:12]), body


def as_request(url: str, *, token: str, body: bytes) -> bytes:
    """The bytes of the request."""
    target = urlsplit(url)
    lines = [f"POST {target.path}?{target.query} HTTP/1.1", f"Host: {target.netloc}", f"Authorization: {token}"]
    return (
        "\r\n".join([*lines, "Content-Type: image/jpeg", f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body
    )


async def _flood(task: dict[str, Any], stop: Any) -> dict[str, Any]:
    request = as_request(task["url"], token=task["token"], body=task["body"])
    connections: list[Any] = []
    statuses: Counter[Any] = Counter()
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        status, _ = await asked(connections, url=task["url"], request=request)
        statuses[status] += 1

    begun, sent = time.perf_counter(), 0
    while not stop.is_set():
        due = int((time.perf_counter() - begun) * FLOOD_PER_S)
        while sent < due:
            sent += 1
            if len(running) >= MAX_CONNECTIONS:
                statuses["not sent"] += 1
                continue
            task_of_one = asyncio.create_task(one())
            running.add(task_of_one)
            task_of_one.add_done_callback(running.discard)
        await asyncio.sleep(0.002)
    wall = time.perf_counter() - begun
    for left in running:
        left.cancel()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "per_s": sum(count for status, count in statuses.items() if status != "not sent") / wall,
        "statuses": {str(status): count for status, count in statuses.items()},
        "generator_cpu": (used.ru_utime + used.ru_stime) / wall,
    }


def flood(task: dict[str, Any], stop: Any, results: Any) -> None:
    """In a process of its own, until told to stop."""
    if task["is_niced"]:
        even_niceness()
    results.put(asyncio.run(_flood(task, stop)))


async def _quiet(task: dict[str, Any], seconds: float) -> dict[str, Any]:
    request = as_request(task["url"], token=task["token"], body=task["body"])
    connections: list[Any] = []
    latencies, statuses, wrong = [], Counter(), 0
    for _ in range(int(seconds * QUIET_PER_S)):
        begun = time.perf_counter()
        status, body = await asked(connections, url=task["url"], request=request)
        latencies.append((time.perf_counter() - begun) * 1000)
        statuses[status] += 1
        wrong += status == 200 and json.loads(body)["plant"] != task["plant"]
        await asyncio.sleep(max(0.0, 1 / QUIET_PER_S - (time.perf_counter() - begun)))
    return {"latencies_ms": latencies, "statuses": dict(statuses), "wrong": wrong}


@contextmanager
def served(works: Works, *, use_ray: bool, replicas: int) -> Iterator[str]:
    """The address."""
    if not use_ray:
        with Server(works.root) as server:
            yield server.address
        return
    from serving import app

    yield app.run(works.settings, store_uri=works.store.uri, fleet="toys", port=0, num_replicas=replicas)
    app.stop("toys")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke run, its figures mean nothing")
    parser.add_argument("--no-limits", action="store_true")
    parser.add_argument("--small", action="store_true", help="The quiet plant sends 50 KB, not 2 MB.")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 3.0
    large, small = jpeg(2560, quality=70, scale=3), jpeg(400, quality=70, scale=3)
    print(f"flood {len(large) / 2**20:.2f} MB a request, quiet {len(small if args.small else large) / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory() as folder:
        works = Works(Path(folder))
        if args.ray:
            works.settings = works.settings.model_copy(update={"slots": args.replicas})
        views = {name: plant_view() for name in ("quiet", "flood")}
        tokens = {name: works.token(plant=name)["Authorization"] for name in views}
        bundle = works.bundle("own", serves=views)
        wide = Costs(limits=Limits(requests_per_s=1e6, burst=1e6, mb_per_s=1e6, in_flight=64))
        works.promote("quiet", bundle=bundle, policy=works.policy("quiet"))
        works.promote(
            "flood", bundle=bundle, policy=works.policy("flood", **({"costs": wide} if args.no_limits else {}))
        )
        with served(works, use_ray=args.ray, replicas=args.replicas) as address:
            tasks = {
                name: {
                    "plant": name,
                    "url": f"{address}/plants/{name}/predict?environment=cam-1",
                    "token": tokens[name],
                    "is_niced": args.ray,
                    "body": small if args.small and name == "quiet" else large,
                }
                for name in views
            }
            found = measured(tasks, rounds=args.rounds, seconds=args.seconds)
    print(json.dumps({"name": "flood", "ray": args.ray, "replicas": args.replicas, **found}))


KINDS = ("alone", "sink", "flooded")


def measured(tasks: dict[str, dict[str, Any]], *, rounds: int, seconds: float) -> dict[str, Any]:
    """p50 and p99 of the quiet plant, of each kind in turn."""
    asyncio.run(_quiet(tasks["quiet"], 3.0))
    seen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    floods: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        seen["alone"].append(asyncio.run(_quiet(tasks["quiet"], seconds)))
        with _child(sink, tasks["flood"]["is_niced"]) as port:
            task = {**tasks["flood"], "url": f"http://127.0.0.1:{port}/plants/flood/predict"}
            seen["sink"].append(_beside(task, tasks["quiet"], seconds=seconds, floods=floods, kind="sink"))
        seen["flooded"].append(_beside(tasks["flood"], tasks["quiet"], seconds=seconds, floods=floods, kind="flooded"))
        print(f"round {number + 1}: {floods}", flush=True)
    latencies = {kind: [ms for one in ones for ms in one["latencies_ms"]] for kind, ones in seen.items()}
    quantiles = {
        kind: {f"p{q}": round(float(np.percentile(ms, q)), 1) for q in (50, 99)} for kind, ms in latencies.items()
    }
    statuses = sum((Counter(one["statuses"]) for one in seen["flooded"]), Counter())
    return {
        "ratio": round(quantiles["flooded"]["p99"] / quantiles["sink"]["p99"], 2),
        "ratio_p50": round(quantiles["flooded"]["p50"] / quantiles["sink"]["p50"], 2),
        "ratio_alone": round(quantiles["flooded"]["p99"] / quantiles["alone"]["p99"], 2),
        "ours": quantiles["flooded"],
        "peer": quantiles["sink"],
        "alone": quantiles["alone"],
        "requests_of_the_quiet": sum(statuses.values()),
        "statuses_of_the_quiet": dict(statuses),
        "flood": floods["flooded"],
        "flood_at_the_sink": floods["sink"],
        "load_1min": round(os.getloadavg()[0], 2),
        "equal_quality": {"answers_of_another_plant": sum(one["wrong"] for ones in seen.values() for one in ones)},
    }


def _beside(
    flooding: dict[str, Any], quiet: dict[str, Any], *, seconds: float, floods: dict[str, Any], kind: str
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    process = context.Process(target=flood, args=(flooding, stop, results))
    process.start()
    time.sleep(3)
    found = asyncio.run(_quiet(quiet, seconds))
    stop.set()
    floods[kind] = results.get(timeout=60)
    process.join()
    time.sleep(1)
    return found


@contextmanager
def _child(target: Any, *args: Any) -> Iterator[int]:
    """The port that a process of its own listens on."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*args, there), daemon=True)
    process.start()
    yield int(here.recv())
    process.terminate()
    process.join()


def sink(is_niced: bool, pipe: Any) -> None:
    """Refuses every request from its headers and closes, as cheaply as Python can."""
    if is_niced:
        even_niceness()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


if __name__ == "__main__":
    main()
