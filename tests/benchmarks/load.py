"""A load generator that costs little: keep-alive connections on one event loop, requests built beforehand."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def generate(task: dict[str, Any]) -> dict[str, Any]:
    """Requests a second and latencies at an address, what the generator itself cost, and an answer for each image."""
    return asyncio.run(_generate(task))


async def _generate(task: dict[str, Any]) -> dict[str, Any]:
    target = urlsplit(task["url"])
    host, port = target.hostname or "127.0.0.1", target.port or 80
    path = target.path + (f"?{target.query}" if target.query else "")
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: image/jpeg", *task.get("headers", [])]
    bodies = [Path(file).read_bytes() for file in task["images"]]
    requests = [("\r\n".join([*lines, f"Content-Length: {len(body)}"]) + "\r\n\r\n").encode() + body for body in bodies]
    answers = [json.loads(body) for body in await _each_once(host, port, requests)]
    clock = _Clock(warmup_s=task["warmup_s"], seconds=task["seconds"])
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    await asyncio.gather(*(_ask(host, port, requests, first=i, clock=clock) for i in range(task["connections"])))
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "per_s": len(clock.latencies_ms) / task["seconds"],
        "latencies_ms": clock.latencies_ms,
        "num_failed": clock.num_failed,
        "generator_cpu": cpu_s / wall,
        "generator_ms_a_request": 1000 * cpu_s / max(clock.num_sent, 1),
        "answers": [answer["probabilities"] for answer in answers],
    }


class _Clock:
    """What counts: answers that came after the warm-up and before the end."""

    def __init__(self, *, warmup_s: float, seconds: float) -> None:
        self.counts_from = time.perf_counter() + warmup_s
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
        status, _ = await _response(reader)
        clock.note(sent=sent, status=status)
        at += 1
    writer.close()


async def _each_once(host: str, port: int, requests: Sequence[bytes]) -> list[bytes]:
    reader, writer = await asyncio.open_connection(host, port)
    found = []
    for request in requests:
        writer.write(request)
        status, body = await _response(reader)
        if status != 200:
            raise SystemExit(f"{host}:{port} answered {status}: {body[:300]!r}")
        found.append(body)
    writer.close()
    return found


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, (_, found, rest) = int(head[9:12]), head.partition(b"content-length:")
    if found:
        return status, await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    if b"transfer-encoding: chunked" not in head:
        raise SystemExit("an answer without a length")
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return status, body
