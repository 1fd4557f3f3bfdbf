"""ANCHORS goal 12: counting by plant and environment, and the prediction log, cost at most 2 % of p50.

Two apps of the same kind (plain uvicorn, one process each, the same model file), one with counters and log, one with
both switched off, are asked in turns: single JPEG frames through a tiny trunk, so that what is counted weighs most.
Besides: CPU microseconds on the calling thread and in all threads a verdict, and what a scrape of 1,000 plants x 2
environments costs in bytes and milliseconds.

    python tests/benchmarks/bench_metrics.py --rounds 60 --seconds 0.5
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.client
import os
import pickle
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import Child, entry, even_niceness, machine, say_ready

from cluster.storage import LocalStore
from serving.exposition import prometheus_text
from serving.predictions import PredictionLog, log_row
from serving.telemetry import Telemetry

PLANTS, ENVIRONMENTS = 1000, 2
NUM_CALLS = 20_000


class Off:
    """A log and counters that do nothing."""

    problem = None
    spool: Any = None

    def __init__(self) -> None:
        self._at = 0

    def next_id(self) -> tuple[str, int]:
        """An id, which an answer needs."""
        self._at += 1
        return f"off-{self._at}", self._at

    def nothing(self, *_: Any, **__: Any) -> None:
        """No work."""

    append = answered = refused = start = close = flush = nothing


def serve(task: dict[str, Any]) -> None:
    """An app with or without counters and log, until the parent lets go."""
    import threading

    import uvicorn

    from cluster.settings import Settings
    from serving.app import build_app
    from serving.wiring import open_service

    even_niceness()
    settings = Settings(home=Path(task["home"]), slots=1)
    service = open_service(settings, store_uri=task["store"], fleet="bench", replica=task["replica"])
    if not task["is_on"]:
        service.telemetry.close()
        service.log.close()
        off: Any = Off()
        service.telemetry = service.log = off
    config = uvicorn.Config(build_app(service), port=task["port"], log_level="error", access_log=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    say_ready(task["ready"], pid=os.getpid())
    server.should_exit = True
    time.sleep(0.5)


def works(folder: Path) -> Any:
    """A tiny fleet with a real trunk."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.serving.toys import Works

    found = Works(folder)
    found.token()
    found.promote(bundle=found.bundle("own"), policy=found.policy())
    return found


class Line:
    """A client that keeps its connection, and what its server's process spends."""

    def __init__(self, port: int, *, headers: dict[str, str], body: bytes, pid: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._headers, self._body, self._pid = headers, body, pid
        self.medians_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.num_asked = 0

    def ask(self, *, seconds: float, is_counted: bool = True) -> None:
        """Requests one after another: their median and the server's CPU a request are noted."""
        found, cpu, until = [], self._cpu_s(), time.perf_counter() + seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            path = "/plants/mill/predict?environment=cam-1"
            self._connection.request("POST", path, body=self._body, headers=self._headers)
            answer = self._connection.getresponse()
            answer.read()
            found.append((time.perf_counter() - begun) * 1000)
            if answer.status != 200:
                raise SystemExit(f"answered {answer.status}")
        if is_counted:
            self.medians_ms.append(statistics.median(found))
            self.cpu_ms.append((self._cpu_s() - cpu) * 1000 / len(found))
            self.num_asked += len(found)

    def _cpu_s(self) -> float:
        words = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def over_http(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """p50 on and off, round by round in turns, and the ratio of the two with its scatter."""
    import io

    import numpy as np
    from object_store import free_port
    from PIL import Image

    fleet, children, ports, pids = works(folder / "works"), {}, {}, {}
    pixels = np.random.default_rng(0).integers(0, 256, (given.size_px, given.size_px, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    for name in ("off", "on"):
        ports[name], ready = free_port(), folder / f"{name}.ready"
        task = {"home": str(fleet.settings.home), "store": fleet.store.uri, "port": ports[name]}
        task |= {"ready": str(ready), "is_on": name == "on", "replica": name}
        children[name] = Child(__file__, "serve", task, folder=folder / name)
        pids[name] = children[name].ready(ready, timeout_s=60)["pid"]
    lines = {
        name: Line(ports[name], headers=fleet.token(), body=buffer.getvalue(), pid=pids[name]) for name in ("off", "on")
    }
    for turn in range(given.rounds + 1):
        for name in ("off", "on") if turn % 2 else ("on", "off"):
            lines[name].ask(seconds=given.seconds if turn else 2.0, is_counted=turn > 0)
    for child in children.values():
        child.release(timeout_s=20)
    on, off = lines["on"], lines["off"]
    pairs = list(zip(on.medians_ms, off.medians_ms, strict=True))
    return {
        "p50_on_ms": statistics.median(on.medians_ms),
        "p50_off_ms": statistics.median(off.medians_ms),
        "ratio": _over_all(pairs),
        "interval": _interval(pairs),
        "server_cpu_on_ms": statistics.fmean(on.cpu_ms),
        "server_cpu_off_ms": statistics.fmean(off.cpu_ms),
        "requests": {name: line.num_asked for name, line in lines.items()},
    }


def _over_all(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(a / b for a, b in pairs)


def _interval(pairs: Sequence[tuple[float, float]], *, num: int = 2000) -> list[float]:
    """95 % of the ratio, by bootstrap over turns."""
    draw = random.Random(0)
    found = sorted(_over_all(draw.choices(pairs, k=len(pairs))) for _ in range(num))
    return [round(found[int(num * q)], 4) for q in (0.025, 0.975)]


def calls(folder: Path) -> dict[str, float]:
    """CPU microseconds a verdict: on the thread that calls, and of the whole process, folding and writing included."""
    from serving.schemas import Answer, FrameAnswer, ModelRef

    frame = FrameAnswer(
        image="a.jpg", sha256="a" * 64, tensor_digest="b" * 64, num_views=1, probabilities={}, score=0.1, tiles=[]
    )
    answer = Answer(
        request_id="r-1", plant="mill", environment="cam-1", part_id="4711",
        model=ModelRef(bundle="b" * 64, policy="c" * 64),
        verdict="ok", defect=None, confidence=0.98, why="likely good", probabilities={"ok": 0.98, "dent": 0.02},
        impossible=0.0, novelty=0.4, location=None, severity=None, frames=[frame], latency_ms=8.0,
    )  # fmt: skip
    telemetry = Telemetry()
    telemetry.start()
    log = PredictionLog(LocalStore(folder / "store"), replica="r", spool=folder / "spool")

    def count() -> None:
        telemetry.answered(
            "mill", "cam-1", verdict="ok", defect=None, confidence=0.98, latency_ms=8.0, novelty=0.4, arm="champion"
        )

    def write() -> None:
        _, sequence = log.next_id()
        log.append(functools.partial(log_row, answer, product=None), sequence=sequence)

    def on_thread(work: Any) -> float:
        best = []
        for _ in range(5):
            begun = time.thread_time()
            for _ in range(NUM_CALLS // 5):
                work()
            best.append((time.thread_time() - begun) / (NUM_CALLS // 5) * 1e6)
        return min(best)

    found = {"answered_us": on_thread(count), "append_us": on_thread(write)}
    telemetry.fold()
    log.flush()
    begun = time.process_time()
    for _ in range(2000):
        count()
        write()
    telemetry.fold()
    log.flush()
    found["everything_us"] = (time.process_time() - begun) / 2000 * 1e6
    telemetry.close()
    log.close()
    return found


def scrape() -> dict[str, Any]:
    """What 1,000 plants x 2 environments, all asked within five minutes, cost a scrape, a post and the memory."""
    now = [1_000_000.0]
    tracemalloc.start()
    telemetry = Telemetry(clock=lambda: now[0])
    for turn in range(20):
        now[0] += 10
        for plant in range(PLANTS):
            for environment in range(ENVIRONMENTS):
                verdict = ("ok", "ok", "reject", "review")[(turn + plant) % 4]
                defect = f"class-{turn % 4}" if verdict == "reject" else None
                telemetry.answered(
                    f"plant-{plant:04d}",
                    f"cam-{environment}",
                    verdict=verdict,
                    defect=defect,
                    confidence=0.5 + (turn % 10) / 20,
                    latency_ms=5.0 + (plant % 40) + turn,
                    novelty=0.2 + turn / 20,
                )
        telemetry.fold()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    full = len(pickle.dumps(telemetry.changed()))
    takt_s = {f"plant-{plant:04d}": 2.0 for plant in range(PLANTS)}
    begun = time.process_time()
    text = telemetry.read(lambda counts, at: prometheus_text(counts, now=at, takt_s=takt_s))
    spent = time.process_time() - begun
    for plant in range(100):
        telemetry.answered(f"plant-{plant:04d}", "cam-0", verdict="ok", defect=None, confidence=0.9, latency_ms=7.0)
    return {
        "bytes": len(text),
        "gzip_bytes": len(gzip.compress(text, 6)),
        "samples": text.count(b"\n") - text.count(b"#"),
        "cpu_ms": spent * 1000,
        "memory_kb_a_plant": memory / 1000 / PLANTS,
        "post_everything_bytes": full,
        "post_100_changed_bytes": len(pickle.dumps(telemetry.changed())),
    }


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    even_niceness()
    with tempfile.TemporaryDirectory() as folder:
        asked = over_http(given, Path(folder)) if given.rounds else {}
        return {
            "name": "metrics",
            "ratio": asked.get("ratio"),
            "goal": "<= 1.02",
            "ours": asked.get("p50_on_ms"),
            "peer": asked.get("p50_off_ms"),
            "http": asked,
            "calls": calls(Path(folder) / "calls"),
            "scrape": scrape(),
            "equal_quality": {"same": "one model file, one image; the peer neither counts nor logs"},
            "machine": machine(threads={"uvicorn": 1, "client": 1}),
        }


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=60, help="Turns of both; 0 leaves HTTP out.")
    words.add_argument("--seconds", type=float, default=0.5, help="Of one side in a turn.")
    words.add_argument("--size-px", type=int, default=224, help="Side of the frame that is sent.")
    entry({"serve": serve}, parser=words, compare=compare)
