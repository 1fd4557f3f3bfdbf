"""The `inside` part of `bench_plants.py`: services of several sizes, each in a process of its own, asked in turns.

A process each, so that neither shares the other's collector, caches or background threads. Besides time on the clock,
which whoever else uses the machine disturbs, it says the CPU time of a request and of each kind of thread, which they
disturb little.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from many_plants import home_of, names
from measuring import even_niceness, mean, note, percentile

START_TIMEOUT_S = 900


def inside(task: dict[str, Any]) -> dict[str, Any]:
    """Start-up, memory and polls of a service with so many plants, then slices of load at each in turn."""
    context = multiprocessing.get_context("spawn")
    sides: dict[int, tuple[Any, Any]] = {}
    rows: dict[int, dict[str, Any]] = {}
    for num in sorted(task["plants"]):
        here, there = context.Pipe()
        process = context.Process(target=_side, args=(task, num, there), daemon=True)
        process.start()
        sides[num] = process, here
        if not here.poll(START_TIMEOUT_S):
            raise SystemExit(f"{num} plants were not served within {START_TIMEOUT_S} s")
        rows[num] = here.recv()
        note(f"inside, {task['kind']}, {num} plants: {rows[num]}")
    slices: dict[int, list[dict[str, Any]]] = {num: [] for num in sides}
    for turn in range(task["rounds"] + 1):
        for num, (_, pipe) in sides.items():
            pipe.send("go")
            slices[num] += [pipe.recv()] if turn else [][: pipe.recv() is None]
    for num, (process, pipe) in sides.items():
        pipe.send("end")
        rows[num] |= {**pipe.recv(), **_summary(slices[num])}
        process.join(timeout=60)
    return {"plants": rows, **_ratios(rows, slices)}


def _ratios(rows: Mapping[int, Mapping[str, Any]], slices: Mapping[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """The largest fleet's figures over the smallest's: medians of the ratios of slices that followed one another."""
    low, high = min(rows), max(rows)
    pairs = list(zip(slices[low], slices[high], strict=True))

    def ratio(key: str) -> float:
        return round(float(np.median([after[key] / before[key] for before, after in pairs])), 3)

    return {
        "p50_ratio": ratio("p50_ms"),
        "p99_ratio": ratio("p99_ms"),
        "throughput_ratio": ratio("per_s"),
        "cpu_ratio": ratio("cpu_ms"),
        "mb_a_plant": round((rows[high]["rss_mb"] - rows[low]["rss_mb"]) / max(high - low, 1), 4),
    }


def _summary(slices: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all slices."""
    threads = sorted({name for one in slices for name in one["cpu_ms_by_thread"]})
    return {
        "per_s": round(mean([one["per_s"] for one in slices]) or 0.0, 1),
        **{key: round(float(np.median([one[key] for one in slices])), 3) for key in ("p50_ms", "p99_ms", "cpu_ms")},
        "num": sum(one["num"] for one in slices),
        "cpu_ms_by_thread": {
            name: round(mean([one["cpu_ms_by_thread"].get(name, 0.0) for one in slices]) or 0.0, 4) for name in threads
        },
        "full_collections": sum(one["full_collections"] for one in slices),
        "longest_collection_ms": round(max(one["longest_collection_ms"] for one in slices), 1),
    }


# --- in the process of one side


def _side(task: dict[str, Any], num: int, pipe: Any) -> None:
    even_niceness()
    plants = names(task["kind"], num)
    before, begun, cpu = rss_mb(), time.perf_counter(), time.process_time()
    service = _service(task, plants=plants)
    row = {
        "start_s": round(time.perf_counter() - begun, 2),
        "start_cpu_s": round(time.process_time() - cpu, 2),
        "rss_mb": round(rss_mb() - before, 2),
        "live": len(service.router.table.live),
        "poll_cpu_ms": round(_poll_cpu_ms(service), 3),
        "full_collection_cpu_ms": round(_collection_cpu_ms(), 1),
    }
    asyncio.run(_each_plant_once(service, task, plants=plants))
    pipe.send({**row, "rss_used_mb": round(rss_mb() - before, 2)})
    while pipe.recv() == "go":
        pipe.send(asyncio.run(_driven(service, task, plants=plants)))
    service.close()
    pipe.send({"branches": str(service.branches())})


def _service(task: dict[str, Any], *, plants: list[str]) -> Any:
    from cluster.settings import Settings
    from serving.wiring import Tiers, open_service

    return open_service(
        Settings(home=home_of(task, plants=plants), slots=1),
        store_uri=task["store"],
        fleet="bench",
        plants=plants,
        replica=f"r{len(plants)}",
        tiers=Tiers(branch_mb=task["branch_mb"]),
        start_wait_s=START_TIMEOUT_S,
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

    collector = _Collector()
    threads, cpu = _cpu_s_by_thread(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(task["connections"])))
    cpu_ms, after = 1000 * (time.process_time() - cpu), _cpu_s_by_thread()
    collector.end()
    num = max(len(latencies), 1)
    return {
        "per_s": len(latencies) / (ends - counts_from),
        "p50_ms": percentile(latencies, 50) or 0.0,
        "p99_ms": percentile(latencies, 99) or 0.0,
        "num": len(latencies),
        "cpu_ms": cpu_ms / num,
        "cpu_ms_by_thread": {name: 1000 * (after[name] - threads.get(name, 0.0)) / num for name in after},
        "full_collections": collector.num_full,
        "longest_collection_ms": collector.longest_ms,
    }


class _Collector:
    """Watches the garbage collector."""

    def __init__(self) -> None:
        self.num_full, self.longest_ms, self._begun = 0, 0.0, 0.0
        gc.callbacks.append(self._note)

    def end(self) -> None:
        """It is watched no more."""
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._begun = time.perf_counter()
            return
        self.num_full += info["generation"] == 2
        self.longest_ms = max(self.longest_ms, 1000 * (time.perf_counter() - self._begun))


def _cpu_s_by_thread() -> dict[str, float]:
    """Seconds on a CPU of this process's threads, those of one name but for a number together."""
    found: dict[str, float] = defaultdict(float)
    for thread in threading.enumerate():
        stat = Path(f"/proc/self/task/{thread.native_id}/schedstat")
        if stat.exists():
            found[thread.name.rstrip("0123456789_-()") or thread.name] += int(stat.read_text().split()[0]) / 1e9
    return dict(found)


def _poll_cpu_ms(service: Any) -> float:
    times = []
    for _ in range(20):
        begun = time.thread_time()
        service.router._read_journal()
        service.router._keep()
        times.append(1000 * (time.thread_time() - begun))
    return float(np.median(times))


def _collection_cpu_ms() -> float:
    """What a full collection takes, in which nothing else runs."""
    begun = time.thread_time()
    gc.collect()
    return 1000 * (time.thread_time() - begun)


def rss_mb() -> float:
    """Resident memory of this process, after what is free was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    words = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(words.split("VmRSS:")[1].split()[0]) / 1000
