"""Faults one after another under a steady load, and a fleet of fifty plants under load for minutes.

    python tests/benchmarks/bench_steady.py                 every fault, ten seconds of load after each
    python tests/benchmarks/bench_steady.py --quick         two seconds after each
    python tests/benchmarks/bench_steady.py --soak 600      no faults: fifty plants at 70 % of capacity for 600 s

Faults: Ray Serve behind HAProxy with two replicas, the journal on Debian's PostgreSQL, bundles and log in OpenStack
Swift's S3, an MLflow server; every answer of the Python client is compared with what `crossplant predict` says of the
image with that bundle. Exit 1 where a request failed, an answer was another's, a route took over 2 s, or the log lacks
what it does not report. The soak finds the capacity first, the least of three slices of closed-loop load, and says of
each replica how its memory grows, with an interval over blocks of ten seconds, and p50 and p99 of each third beside the
load average, as others on the machine move them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from many_plants import names, published, requests_of
from measuring import Child, entry, even_niceness, machine, note, percentile, say_ready

SAMPLE_S = 2.0
BLOCK_S = 10.0
WARM_S = 60.0
"""After so long every path of the allocator and of the libraries was taken."""


# --- faults


def faults(folder: Path, *, pause_s: float, per_s: float) -> dict[str, Any]:
    """The table, and what was shown."""
    from object_store import started

    from tests.serving.steady import documents, table
    from tests.serving.steady_faults import LIVE_S, Faults, under_load
    from tests.serving.steady_fleet import Lost

    store = started(folder / "object-store")
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_S3_"))]:
        del os.environ[name]
    os.environ.update(store.env)
    try:
        with under_load(folder / "works", store=store, pause_s=pause_s, per_s=per_s) as met:
            for fault in Faults.ALL:
                note(fault.__name__)
                fault(met)
        lost = Lost.of(met.works)
        answers = lost.of_answers(met.load.asked)
    finally:
        store.stop()
    print(table(met.rows))
    live_s = {fault: max(by_replica.values()) for fault, by_replica in met.live_s.items()}
    killed = {gap.owner for gap in lost.missing}
    shown = {
        "failed": [one.failure for one in met.load.asked if one.failure],
        "wrong": [one.wrong for one in met.load.asked if one.wrong],
        "retried": sum(one.tries > 1 for one in met.load.asked),
        "retried_but_for_the_kill": sum(row.retried for row in met.rows if "killed" not in row.fault),
        "route_live_s": {fault: round(seconds, 2) for fault, seconds in live_s.items()},
        "mlflow_said": met.told,
        "log": {
            "answers": len(met.load.asked),
            "lost": len(answers),
            "lost_s_before_the_kill": round(max((met.killed_at - one.ended for one in answers), default=0.0), 2),
            "reported": sum(gap.num_rows for gap in lost.missing),
            "replicas_with_a_gap": len(killed),
            "why": sorted({gap.why for gap in lost.missing}),
        },
    }
    log = shown["log"]
    is_told = log["lost"] <= log["reported"] and log["replicas_with_a_gap"] <= 1 and log["lost_s_before_the_kill"] < 2
    is_well = not (shown["failed"] or shown["wrong"]) and max(live_s.values()) < LIVE_S and is_told
    return {"rows": documents(met.rows), **shown, "is_well": is_well}


# --- soak


@dataclass
class Memory:
    """Resident memory of processes over time."""

    pids: list[int]
    seen: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def sample(self, at: float) -> None:
        """In MB."""
        for pid in self.pids:
            pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
            self.seen.setdefault(pid, []).append((at, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))

    def growth(self, *, after: float) -> list[dict[str, Any]]:
        """Of each process: MB at the beginning and the end, and MB a minute with a 95 % interval."""
        return [slope(rows, after=after) for rows in self.seen.values()]


def slope(rows: list[tuple[float, float]], *, after: float) -> dict[str, Any]:
    """The line through the means of blocks of ten seconds; single samples resemble their neighbours too much.

    Neighbouring blocks still do, so the interval counts as many blocks as their lag-1 correlation leaves independent.
    """
    from scipy.special import stdtrit

    blocks: dict[int, list[float]] = {}
    for at, mb in rows:
        if at >= after:
            blocks.setdefault(int((at - after) / BLOCK_S), []).append(mb)
    x = np.array(sorted(blocks)) * BLOCK_S / 60
    y = np.array([np.mean(blocks[key]) for key in sorted(blocks)])
    found: dict[str, Any] = {
        "mb_at_first": round(float(y[0]), 1),
        "mb_at_last": round(float(y[-1]), 1),
        "blocks": len(y),
    }
    if len(y) < 5:
        return {**found, "mb_a_minute": None, "low": None, "high": None}
    a, b = np.polyfit(x, y, 1)
    rest = y - a * x - b
    spread = float((rest**2).sum())
    alike = max(0.0, float((rest[1:] * rest[:-1]).sum()) / spread) if spread else 0.0
    num = max(4.0, len(y) * (1 - alike) / (1 + alike))
    error = np.sqrt(spread / (len(y) - 2) / ((x - x.mean()) ** 2).sum() * len(y) / num)
    half = float(stdtrit(num - 2, 0.975) * error)
    return {
        **found,
        "mb_a_minute": round(float(a), 3),
        "low": round(float(a) - half, 3),
        "high": round(float(a) + half, 3),
    }


def served(task: dict[str, Any]) -> None:
    """Two replicas of fifty plants, until let go."""
    from cluster import session
    from cluster.settings import Settings
    from serving import app
    from tests.serving.steady_fleet import replica_processes

    settings = Settings(home=Path(task["home"]), slots=2)
    address = app.run(settings, store_uri=task["store"], fleet="bench", port=0, num_replicas=2)
    say_ready(task["ready"], url=address, pids=replica_processes())
    app.stop("bench")
    session.stop()


def loaded(task: dict[str, Any]) -> dict[str, Any]:
    """Requests at random moments at a rate, or closed-loop without one; latencies by the moment they were due."""
    import asyncio
    from urllib.parse import urlsplit

    from load import _ask, _Clock, _each_once, _open

    even_niceness()

    class Dated(_Clock):
        def __init__(self, **words: float) -> None:
            super().__init__(**words)
            self.dated: list[tuple[float, float]] = []
            self.statuses: Counter[str] = Counter()

        def note(self, *, sent: float, status: int) -> None:
            super().note(sent=sent, status=status)
            self.statuses[str(status or "none, or not sent as 256 were open")] += 1
            now = time.perf_counter()
            if status == 200 and self.counts_from <= now < self.ends_at:
                self.dated.append((now - self.counts_from, (now - sent) * 1000))

    async def run() -> dict[str, Any]:
        target = urlsplit(task["url"])
        host, port = str(target.hostname), int(target.port or 80)
        requests = requests_of(task, plants=list(task["tokens"]), url=task["url"], side="ours")
        each = requests_of(task, plants=list(task["tokens"]), url=task["url"], side="ours", num=100, in_turn=True)
        await _each_once(host, port, each)
        clock = Dated(warmup_s=task["warmup_s"], seconds=task["seconds"])
        if rate := task.get("rate_per_s"):
            await _open(host, port, requests, rate_per_s=rate, clock=clock)
        else:
            await asyncio.gather(*(_ask(host, port, requests, first=97 * i, clock=clock) for i in range(8)))
        return {"per_s": len(clock.dated) / task["seconds"], "statuses": dict(clock.statuses), "dated": clock.dated}

    return asyncio.run(run())


def soak(folder: Path, *, seconds: float, num_plants: int, share: float) -> dict[str, Any]:
    """Fifty plants, one in twenty on a last stage of its own, at a share of what the machine can do."""
    given = argparse.Namespace(
        image="10kB", plants=[num_plants], kinds=["mixed"], backbone="test_resnet", weights="embedded", size_px=128,
        seconds=0.0, warmup_s=0.0, connections=8, branch_mb=1024.0,
    )  # fmt: skip
    task = published(folder, given=given)
    assert len(task["tokens"]) == len(names("mixed", num_plants))
    ready = folder / "ready.json"
    server = Child(__file__, "served", {**task, "ready": str(ready)}, folder=folder / "served")
    try:
        there = server.ready(ready, timeout_s=400)
        ask = {**task, "url": there["url"], "warmup_s": 3.0}
        slices = []
        for _ in range(3):
            closed = Child(__file__, "loaded", {**ask, "seconds": min(10.0, seconds / 6)}, folder=folder / "closed")
            slices.append(closed.result(timeout_s=300)["per_s"])
        capacity = min(slices)
        note(f"capacity {slices} requests/s closed-loop; now {share:.0%} of the least for {seconds:.0f} s")
        words = {**ask, "seconds": seconds, "rate_per_s": share * capacity}
        load = Child(__file__, "loaded", words, folder=folder / "open")
        memory, loads, begun = Memory(there["pids"]), [], time.monotonic()
        while (at := time.monotonic() - begun) < seconds:
            memory.sample(at)
            loads.append(os.getloadavg()[0])
            time.sleep(SAMPLE_S)
        found = load.result(timeout_s=300)
    finally:
        server.release(timeout_s=120)
    return _soaked(found, memory=memory, loads=loads, capacity=capacity, seconds=seconds)


def _soaked(
    found: dict[str, Any], *, memory: Memory, loads: list[float], capacity: float, seconds: float
) -> dict[str, Any]:
    thirds = [[ms for at, ms in found["dated"] if at // (seconds / 3) == third] for third in range(3)]
    p99, p50 = ([round(percentile(rows, q) or 0.0, 1) for rows in thirds] for q in (99, 50))
    third = max(1, len(loads) // 3)
    return {
        "seconds": seconds,
        "capacity_per_s": round(capacity, 1),
        "per_s": round(found["per_s"], 1),
        "requests": len(found["dated"]),
        "statuses": found["statuses"],
        "failed": sum(count for status, count in found["statuses"].items() if status != "200"),
        "p50_ms_by_third": p50,
        "p99_ms_by_third": p99,
        "p99_last_over_first": round(p99[2] / max(p99[0], 1e-9), 2),
        "load_average_by_third": [round(float(np.mean(loads[i * third : (i + 1) * third])), 1) for i in range(3)],
        "memory": memory.growth(after=min(WARM_S, seconds / 4)),
    }


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures. Raises SystemExit 1, with the figures printed, where something is wrong."""
    figures: dict[str, Any] = {"name": "steady", "is_smoke_run": given.quick}
    with tempfile.TemporaryDirectory() as folder:
        if given.soak:
            figures |= soak(Path(folder), seconds=given.soak, num_plants=given.plants, share=given.share)
        else:
            os.environ["HOME"], os.environ["RAY_AUTH_MODE"] = folder, "disabled"
            figures |= faults(Path(folder), pause_s=2.0 if given.quick else 10.0, per_s=given.per_s)
    figures["machine"] = machine(threads={"replicas": 2, "replica": 1})
    if not figures.get("is_well", not figures["failed"]):
        print(json.dumps(figures))
        raise SystemExit(1)
    return figures


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seconds of load after each fault")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--plants", type=int, default=50)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--per-s", type=float, default=48.0, help="requests a second under faults")
    return parser


if __name__ == "__main__":
    entry({"served": served, "loaded": loaded}, parser=arguments(), compare=compare)
