"""What it costs that an endpoint serves a thousand plants and not ten: latency, requests a second, memory, start-up.

`inside`: the app's `Service` without HTTP, opened with 10, 100 and 1,000 plants on one trunk, all on heads or one in
twenty on a last stage of its own, or all on adapters or on stages; a process each, slices of each alternate, requests
go to plants drawn evenly. `http`:
one replica of `crossplant serve` against Ray Serve's `@serve.multiplexed` with 16 models a replica, a session of trunk
and branch for each; both behind the same proxy, sides alternate, the same files and images. Answers are compared before
speed is spoken of.

Time on the clock is as busy as the machine was (`machine.load_1min`); CPU time a request is disturbed little by others:
`cpu_ms` inside is of the process, and `cpu_ms` over HTTP of the replica, the board and the proxy.

    .venv/bin/python tests/benchmarks/bench_plants.py                   both, heads and mixed
    .venv/bin/python tests/benchmarks/bench_plants.py --parts inside    without Ray
    .venv/bin/python tests/benchmarks/bench_plants.py --parts inside --kinds adapters stages    against a branch each
    .venv/bin/python tests/benchmarks/bench_plants.py --quick           10 and 40 plants; its figures mean nothing
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
from inside_plants import inside
from many_plants import CLASSES, home_of, names, published, requests_of
from measuring import Child, entry, machine, mean, note, percentile, say_ready

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
    fewest, most = min(given.plants), max(given.plants)
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
        "ours_cpu_ratio": _ratio(rows["ours"], "cpu_ms"),
        "ours_mb_a_plant": round(
            (rows["ours"][most]["replica_mb"] - rows["ours"][fewest]["replica_mb"]) / max(most - fewest, 1), 4
        ),
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
        before = _used(server.pid)
        found = Child(__file__, "load", load_task, folder=folder / side).result(timeout_s=given.seconds + 900)
        after = _used(server.pid)
        cpu_ms = {name: 1000 * (after[name][0] - before.get(name, (0.0, 0.0))[0]) / found["num_sent"] for name in after}
        return {**found, "start_s": start_s, "cpu_ms_by_process": cpu_ms, "replica_mb": after["replica"][1]}
    finally:
        server.release(timeout_s=60)


ROLES = {"replica": "ServeReplica", "board": "Board", "proxy": "haproxy"}


def _used(pid: int) -> dict[str, tuple[float, float]]:
    """Seconds on a CPU and resident MB of the processes that a request goes through, below the one that started Ray."""
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for process in psutil.Process(pid).children(recursive=True):
        try:
            words = " ".join(process.cmdline()) or process.name()
            times, rss = process.cpu_times(), process.memory_info().rss
        except psutil.Error:
            continue
        for role, word in ROLES.items():
            if word in words.split(" -")[0]:
                cpu_s, mb = found[role]
                found[role] = cpu_s + times.user + times.system, mb + rss / 1e6
    return dict(found)


def ours(task: dict[str, Any]) -> None:
    """One replica of the endpoints."""
    from cluster import session
    from cluster.settings import Settings
    from serving import app
    from serving.wiring import Tiers

    plants, tiers = names(task["kind"], task["num"]), Tiers(branch_mb=task["branch_mb"])
    settings = Settings(home=home_of(task, plants=plants), slots=1)
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
    requests, first = requests_of(task, **how), requests_of(task, **how, num=task["num"], in_turn=True)
    await _until_all_are_served(host, port, num=task["num"] if task["side"] == "ours" else 0)
    await _each_once(host, port, first)
    answers = [json.loads(body) for body in await _each_once(host, port, requests[:16])]
    clock = _Clock(warmup_s=task["warmup_s"], seconds=task["seconds"])
    await asyncio.gather(*(ask(host, port, requests, first=251 * i, clock=clock) for i in range(task["connections"])))
    return {
        "per_s": len(clock.latencies_ms) / task["seconds"],
        "latencies_ms": clock.latencies_ms,
        "num_failed": clock.num_failed,
        "num_sent": clock.num_sent + len(first) + len(answers),
        "answers": [answer["probabilities"] for answer in answers],
    }


async def _until_all_are_served(host: str, port: int, *, num: int) -> None:
    """A replica that starts with many plants serves those that it has after a minute; the bench waits for the rest."""
    from load import _each_once

    deadline = time.monotonic() + START_TIMEOUT_S
    while num and time.monotonic() < deadline:
        (body,) = await _each_once(host, port, [f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()])
        if json.loads(body)["plants"] >= num:
            return
        await asyncio.sleep(0.5)


# --- figures


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = [ms for row in rows for ms in row["latencies_ms"]]
    found = {
        "per_s": round(mean([row["per_s"] for row in rows]) or 0.0, 1),
        "p50_ms": round(percentile(latencies, 50) or 0.0, 2),
        "p99_ms": round(percentile(latencies, 99) or 0.0, 2),
        "num": len(latencies),
    }
    if "cpu_ms_by_process" in rows[0]:
        parts = {
            name: round(mean([row["cpu_ms_by_process"].get(name, 0.0) for row in rows]) or 0.0, 3) for name in ROLES
        }
        found |= {"cpu_ms": round(sum(parts.values()), 3), "cpu_ms_by_process": parts}
        found |= {"replica_mb": round(mean([row["replica_mb"] for row in rows]) or 0.0, 1)}
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
    parser.add_argument(
        "--kinds", nargs="+", choices=("heads", "mixed", "adapters", "stages"), default=["heads", "mixed"]
    )
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
