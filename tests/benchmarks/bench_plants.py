"""What it costs that an endpoint serves a thousand plants and not ten: latency, requests a second, memory, start-up.

`inside`: the app's `Service` without HTTP, opened with 10, 100 and 1,000 plants on one trunk, all on heads or one in
twenty on a last stage of its own; slices of each alternate, requests go to plants drawn evenly. `http`: one replica of
`crossplant serve` against Ray Serve's `@serve.multiplexed` with 16 models a replica, a session of trunk and branch for
each; both behind the same proxy, sides alternate, the same files and images. Answers are compared before speed is
spoken of.

    .venv/bin/python tests/benchmarks/bench_plants.py                   both, heads and mixed
    .venv/bin/python tests/benchmarks/bench_plants.py --parts inside    without Ray
    .venv/bin/python tests/benchmarks/bench_plants.py --quick           10 and 40 plants; its figures mean nothing
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from many_plants import CLASSES, names, published, requests_of
from measuring import Child, entry, even_niceness, machine, mean, note, percentile, say_ready

START_TIMEOUT_S = 400
TOLERANCE = 1e-4


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of all parts."""
    if given.quick:
        given.plants, given.seconds, given.warmup_s, given.rounds = [10, 40], 1.5, 0.5, 1
    given.weights = "embedded" if given.backbone == "test_resnet" else "none"
    given.size_px = given.size_px or (128 if given.backbone == "test_resnet" else 224)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-plants-"))
    begun = time.perf_counter()
    task = published(folder, given=given)
    note(f"{len(task['tokens'])} bundles published in {time.perf_counter() - begun:.0f} s")
    found: dict[str, Any] = {"name": "plants", "is_smoke_run": given.quick}
    for kind in given.kinds:
        words = {**task, "kind": kind, "plants": given.plants, "rounds": given.rounds}
        if "inside" in given.parts:
            child = Child(__file__, "inside", words, folder=folder / "inside" / kind)
            found[f"inside_{kind}"] = child.result(timeout_s=3600)
        if "http" in given.parts:
            found[f"http_{kind}"] = _over_http(words, folder=folder / "http" / kind, given=given)
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    found["machine"] = machine(threads={"replicas": 1, "replica": 1})
    found["backbone"] = f"{given.backbone}, weights {given.weights}, {given.size_px} px, images of {given.image}"
    found["connections"], found["seconds"], found["rounds"] = given.connections, given.seconds, given.rounds
    return found


# --- without HTTP


def inside(task: dict[str, Any]) -> dict[str, Any]:
    """Start-up, memory and polls of a service with so many plants, then slices of load at each in turn."""
    even_niceness()
    services, rows = {}, {}
    for num in sorted(task["plants"]):
        before, begun, cpu = _rss_mb(), time.perf_counter(), time.process_time()
        services[num] = service = _service(task, plants=names(task["kind"], num))
        rows[num] = {
            "start_s": round(time.perf_counter() - begun, 2),
            "start_cpu_s": round(time.process_time() - cpu, 2),
            "rss_mb": round(_rss_mb() - before, 2),
            "live": len(service.router.table.live),
            "poll_cpu_ms": round(_poll_cpu_ms(service), 3),
        }
        note(f"inside, {task['kind']}, {num} plants: {rows[num]}")
        asyncio.run(_each_plant_once(service, task, plants=names(task["kind"], num)))
    slices: dict[int, list[dict[str, Any]]] = {num: [] for num in services}
    for turn in range(task["rounds"] + 1):
        for num, service in services.items():
            row = asyncio.run(_driven(service, task, plants=names(task["kind"], num)))
            slices[num] += [row] if turn else []
    for num, service in services.items():
        rows[num] |= _summary(slices[num])
        rows[num]["branches"] = str(service.branches())
        service.close()
    low, high = sorted(rows)[-2:]  # the first also pays for imports
    return {
        "plants": rows,
        "p50_ratio": _ratio(rows, "p50_ms"),
        "p99_ratio": _ratio(rows, "p99_ms"),
        "throughput_ratio": _ratio(rows, "per_s"),
        "mb_a_plant": round((rows[high]["rss_mb"] - rows[low]["rss_mb"]) / (high - low), 4),
    }


def _service(task: dict[str, Any], *, plants: list[str]) -> Any:
    from cluster.settings import Settings
    from serving.wiring import Tiers, open_service

    return open_service(
        Settings(home=Path(task["home"]), slots=1),
        store_uri=task["store"],
        fleet="bench",
        plants=plants,
        replica=f"r{len(plants)}",
        tiers=Tiers(branch_mb=task["branch_mb"]),
    )


async def _ask(service: Any, task: dict[str, Any], *, plant: str, image: bytes) -> None:
    from serving.service import Upload

    async def body() -> AsyncIterator[bytes]:
        yield image

    bearer = f"Bearer {task['tokens'][plant]}"
    answer = await service.predict(plant, Upload(body(), str(len(image)), "image/jpeg", {}, bearer))
    assert answer.plant == plant


async def _each_plant_once(service: Any, task: dict[str, Any], *, plants: list[str]) -> None:
    """Every token was checked and every plant has judged: what a first request costs more is not this bench's."""
    image = Path(task["images"][0]).read_bytes()
    for plant in plants:
        await _ask(service, task, plant=plant, image=image)


async def _driven(service: Any, task: dict[str, Any], *, plants: list[str]) -> dict[str, Any]:
    rng, latencies = np.random.default_rng(1), []
    images = [Path(file).read_bytes() for file in task["images"]]
    begun = time.perf_counter()
    ends, counts_from = begun + task["seconds"], begun + min(0.3, task["seconds"] / 4)

    async def ask() -> None:
        while (sent := time.perf_counter()) < ends:
            plant, image = plants[int(rng.integers(len(plants)))], images[int(rng.integers(len(images)))]
            await _ask(service, task, plant=plant, image=image)
            if sent >= counts_from:
                latencies.append((time.perf_counter() - sent) * 1000)

    cpu = time.process_time()
    await asyncio.gather(*(ask() for _ in range(task["connections"])))
    cpu_ms = 1000 * (time.process_time() - cpu) / max(len(latencies), 1)
    return {"per_s": len(latencies) / (ends - counts_from), "latencies_ms": latencies, "cpu_ms": cpu_ms}


def _poll_cpu_ms(service: Any) -> float:
    times = []
    for _ in range(20):
        begun = time.thread_time()
        service.router._read_journal()
        times.append(1000 * (time.thread_time() - begun))
    return float(np.median(times))


def _rss_mb() -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    words = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(words.split("VmRSS:")[1].split()[0]) / 1000


# --- over HTTP


def _over_http(task: dict[str, Any], *, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, dict[int, list[dict[str, Any]]]] = {side: {num: [] for num in given.plants} for side in SIDES}
    for turn in range(given.rounds):
        for num in given.plants:
            for side in SIDES:
                row = _measured(side, task={**task, "num": num}, folder=folder / f"{turn}-{num}", given=given)
                found[side][num].append(row)
                figures = _summary([row])
                note(f"http, {task['kind']}, {num} plants, {side}: {figures}")
    rows = {side: {num: _summary(found[side][num]) for num in given.plants} for side in SIDES}
    worst = max(
        abs(a[name] - b[name])
        for num in given.plants
        for a, b in zip(found["ours"][num][0]["answers"], found["peer"][num][0]["answers"], strict=True)
        for name in CLASSES
    )
    return {
        **rows,
        "equal_quality": {"is_equal": worst <= TOLERANCE, "largest_difference": worst},
        "ratios": {
            num: {
                "per_s": round(rows["ours"][num]["per_s"] / max(rows["peer"][num]["per_s"], 1e-9), 2),
                "p50": round(rows["ours"][num]["p50_ms"] / max(rows["peer"][num]["p50_ms"], 1e-9), 3),
                "p99": round(rows["ours"][num]["p99_ms"] / max(rows["peer"][num]["p99_ms"], 1e-9), 3),
            }
            for num in given.plants
        },
        "ours_p50_ratio": _ratio(rows["ours"], "p50_ms"),
        "ours_p99_ratio": _ratio(rows["ours"], "p99_ms"),
        "ours_throughput_ratio": _ratio(rows["ours"], "per_s"),
    }


SIDES = ("ours", "peer")


def _measured(side: str, *, task: dict[str, Any], folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    ready = folder / side / "ready.json"
    server = Child(__file__, side, {**task, "ready": str(ready)}, folder=folder / side)
    try:
        begun = time.perf_counter()
        url = server.ready(ready, timeout_s=START_TIMEOUT_S)["url"]
        start_s = time.perf_counter() - begun
        load_task = {**task, "url": url, "side": side}
        found = Child(__file__, "load", load_task, folder=folder / side).result(timeout_s=given.seconds + 300)
        return {**found, "start_s": start_s}
    finally:
        server.release(timeout_s=60)


def ours(task: dict[str, Any]) -> None:
    """One replica of the endpoints."""
    from cluster import session
    from cluster.settings import Settings
    from serving import app
    from serving.wiring import Tiers

    settings = Settings(home=Path(task["home"]), slots=1)
    plants, tiers = names(task["kind"], task["num"]), Tiers(branch_mb=task["branch_mb"])
    address = app.run(settings, store_uri=task["store"], fleet="bench", plants=plants, port=0, tiers=tiers)
    say_ready(task["ready"], url=address)
    app.stop("bench")
    session.stop()


def peer(task: dict[str, Any]) -> None:
    """One replica of the peer, behind the same proxy."""
    from plain_multiplexed import deployment
    from ray import serve

    from cluster import session
    from cluster.settings import Settings
    from serving import app, ingress

    port = app._free_port("127.0.0.1", 0)
    session.start(Settings(home=Path(task["home"]), slots=1), num_slots=1, variables=ingress.variables)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    serve.run(deployment(task), name="peer", route_prefix="/")
    say_ready(task["ready"], url=f"http://127.0.0.1:{port}")
    serve.shutdown()
    session.stop()


def load(task: dict[str, Any]) -> dict[str, Any]:
    """The load generator."""
    return asyncio.run(_loaded(task))


async def _loaded(task: dict[str, Any]) -> dict[str, Any]:
    from urllib.parse import urlsplit

    from load import _ask as ask
    from load import _Clock, _each_once

    target = urlsplit(task["url"])
    host, port = str(target.hostname), int(target.port or 80)
    how: Any = {"plants": names(task["kind"], task["num"]), "url": task["url"], "side": task["side"]}
    requests = requests_of(task, **how)
    await _each_once(host, port, requests_of(task, **how, num=task["num"], in_turn=True))
    answers = [json.loads(body) for body in await _each_once(host, port, requests[:16])]
    clock = _Clock(warmup_s=task["warmup_s"], seconds=task["seconds"])
    await asyncio.gather(*(ask(host, port, requests, first=251 * i, clock=clock) for i in range(task["connections"])))
    return {
        "per_s": len(clock.latencies_ms) / task["seconds"],
        "latencies_ms": clock.latencies_ms,
        "num_failed": clock.num_failed,
        "answers": [answer["probabilities"] for answer in answers],
    }


# --- figures


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = [ms for row in rows for ms in row["latencies_ms"]]
    found = {
        "per_s": round(mean([row["per_s"] for row in rows]) or 0.0, 1),
        "p50_ms": round(percentile(latencies, 50) or 0.0, 2),
        "p99_ms": round(percentile(latencies, 99) or 0.0, 2),
        "num": len(latencies),
    }
    if "cpu_ms" in rows[0]:
        found["cpu_ms_a_request"] = round(mean([row["cpu_ms"] for row in rows]) or 0.0, 3)
    if "num_failed" in rows[0]:
        found |= {"failed": sum(row["num_failed"] for row in rows)}
        found |= {"start_s": round(mean([row["start_s"] for row in rows if "start_s" in row]) or 0.0, 1)}
    return found


def _ratio(rows: dict[int, dict[str, Any]], key: str) -> float:
    """The largest fleet's figure over the smallest's."""
    return round(rows[max(rows)][key] / max(rows[min(rows)][key], 1e-9), 3)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 and 40 plants, a second and a half each: a smoke run")
    parser.add_argument("--parts", nargs="+", choices=("inside", "http"), default=["inside", "http"])
    parser.add_argument("--kinds", nargs="+", choices=("heads", "mixed"), default=["heads", "mixed"])
    parser.add_argument("--plants", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=8.0, help="of load, each side or slice")
    parser.add_argument("--warmup-s", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--branch-mb", type=float, default=1024.0, help="memory for branches, of ours")
    parser.add_argument("--image", default="10kB")
    parser.add_argument("--backbone", default="test_resnet", help="a timm backbone; others than this are not trained")
    parser.add_argument("--size-px", type=int, help="128 for the embedded backbone, else 224")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    return parser


if __name__ == "__main__":
    entry({"inside": inside, "ours": ours, "peer": peer, "load": load}, parser=arguments(), compare=compare)
