"""A load generator that costs little: keep-alive connections on one event loop, requests built beforehand.

Closed: each connection sends its next request when it has its answer, which finds the capacity. Open (`rate_per_s`):
requests are due at random moments whatever the server does, and a latency counts from then, as a line would feel it.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

BOUNDARY = "crossplant-bench"
MAX_OPEN = 256
"""Connections of an open load; what is due beyond them is counted as failed."""


def generate(task: dict[str, Any]) -> dict[str, Any]:
    """Requests a second and latencies at an address, what the generator itself cost, and an answer for each image."""
    return asyncio.run(_generate(task))


def requests_of(task: dict[str, Any]) -> list[bytes]:
    """The requests in full: the image as the body, or a form with `frames` images in the field named by `form`."""
    target = urlsplit(task["url"])
    path = target.path + (f"?{target.query}" if target.query else "")
    images = [Path(file).read_bytes() for file in task["images"]]
    frames, field = task.get("frames", 1), task.get("form")
    if frames > 1 or field:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        groups = [[images[(i + k) % len(images)] for k in range(frames)] for i in range(len(images))]
        bodies = [_form(group, field=field or "image") for group in groups]
    else:
        kind, bodies = "image/jpeg", images
    lines = [f"POST {path} HTTP/1.1", f"Host: {target.hostname}:{target.port}", f"Content-Type: {kind}"]
    head = "\r\n".join([*lines, *task.get("headers", [])])
    return [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def _form(images: Sequence[bytes], *, field: str) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="%d.jpg"\r\n'
    parts = [f"{head % i}Content-Type: image/jpeg\r\n\r\n".encode() + data for i, data in enumerate(images)]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


async def _generate(task: dict[str, Any]) -> dict[str, Any]:
    target, requests = urlsplit(task["url"]), requests_of(task)
    host, port = target.hostname or "127.0.0.1", target.port or 80
    answers = [json.loads(body) for body in await _each_once(host, port, requests)]
    clock = _Clock(warmup_s=task["warmup_s"], seconds=task["seconds"])
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    if rate := task.get("rate_per_s"):
        await _open(host, port, requests, rate_per_s=rate, clock=clock)
    else:
        await asyncio.gather(*(_ask(host, port, requests, first=i, clock=clock) for i in range(task["connections"])))
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "per_s": len(clock.latencies_ms) * task.get("frames", 1) / task["seconds"],
        "latencies_ms": clock.latencies_ms,
        "num_failed": clock.num_failed,
        "num_sent": len(requests) + clock.num_sent,
        "generator_cpu": cpu_s / wall,
        "generator_ms_a_request": 1000 * cpu_s / max(clock.num_sent, 1),
        "answers": [answer["probabilities"] for answer in answers],
    }


class _Clock:
    """What counts: answers that came after the warm-up and before the end."""

    def __init__(self, *, warmup_s: float, seconds: float) -> None:
        self.begins_at = time.perf_counter()
        self.counts_from = self.begins_at + warmup_s
        self.ends_at = self.counts_from + seconds
        self.latencies_ms: list[float] = []
        self.num_sent = self.num_failed = 0

    def note(self, *, sent: float, status: int) -> None:
        now = time.perf_counter()
        self.num_sent += 1
        if status != 200:
            self.num_failed += 1
        elif self.counts_from <= now < self.ends_at:
            self.latencies_ms.append((now - sent) * 1000)


async def _ask(host: str, port: int, requests: Sequence[bytes], *, first: int, clock: _Clock) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    at = first
    while time.perf_counter() < clock.ends_at:
        sent = time.perf_counter()
        writer.write(requests[at % len(requests)])
        status, _, is_last = await _response(reader)
        clock.note(sent=sent, status=status)
        if is_last:
            writer.close()
            reader, writer = await asyncio.open_connection(host, port)
        at += 1
    writer.close()


async def _open(host: str, port: int, requests: Sequence[bytes], *, rate_per_s: float, clock: _Clock) -> None:
    rng, due, tasks = random.Random(0), clock.begins_at, set()
    idle: list[Streams] = []

    async def one(number: int, due: float) -> None:
        is_reused = bool(idle)
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, port)
        writer.write(requests[number % len(requests)])
        try:
            status, _, is_last = await _response(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            if not is_reused:
                clock.note(sent=due, status=0)
                return
            reader, writer = await asyncio.open_connection(host, port)  # it lay idle for too long, as clients know
            writer.write(requests[number % len(requests)])
            status, _, is_last = await _response(reader)
        clock.note(sent=due, status=status)
        if is_last:
            writer.close()
        else:
            idle.append((reader, writer))

    number = 0
    while (due := due + rng.expovariate(rate_per_s)) < clock.ends_at:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(tasks) >= MAX_OPEN:
            clock.note(sent=due, status=0)
            continue
        task = asyncio.create_task(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()


async def _each_once(host: str, port: int, requests: Sequence[bytes]) -> list[bytes]:
    found = []
    for request in requests:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        status, body, _ = await _response(reader)
        if status != 200:
            raise SystemExit(f"{host}:{port} answered {status}: {body[:300]!r}")
        found.append(body)
        writer.close()
    return found


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the server closes the connection: HAProxy does when it takes up new replicas."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, (_, found, rest) = int(head[9:12]), head.partition(b"content-length:")
    is_last = b"connection: close" in head
    if found:
        return status, await reader.readexactly(int(rest.partition(b"\r\n")[0])), is_last
    if b"transfer-encoding: chunked" not in head:
        raise SystemExit("an answer without a length")
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return status, body, is_last
