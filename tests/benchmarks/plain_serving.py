"""The peers of `bench_serving.py`: the limit, which is ONNX Runtime without any server, and FastAPI around the same.

Both decode the same bytes by the same code into the same views and run the same two files on one thread; neither
checks a token, pools frames, decides, logs or counts. `make_our_app` is crossplant's own app without Ray, which says
what of the loss is Ray's and what is ours.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from measuring import even_niceness
from plain_model import TASK, Plain


def limit(task: dict[str, Any], *, num_processes: int) -> dict[str, Any]:
    """Images a second of that many processes that do nothing else, and the answers that everybody must give."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(num_processes), context.Queue()
    workers = [context.Process(target=_judge_all, args=(task, barrier, results)) for _ in range(num_processes)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=task["seconds"] + task["warmup_s"] + 120) for _ in workers]
    for worker in workers:
        worker.join()
    plain = Plain.of(task)
    return {
        "per_s": sum(one["count"] / one["seconds"] for one in found),
        "latencies_ms": [ms for one in found for ms in one["latencies_ms"]],
        "answers": [plain.answer(Path(file).read_bytes())["probabilities"] for file in task["images"]],
    }


def _judge_all(task: dict[str, Any], barrier: Any, results: Any) -> None:
    even_niceness()
    plain = Plain.of(task)
    images = [Path(file).read_bytes() for file in task["images"]]
    _judge_for(plain, images=images, seconds=task["warmup_s"])
    barrier.wait()
    results.put(_judge_for(plain, images=images, seconds=task["seconds"]))


def _judge_for(plain: Plain, *, images: Sequence[bytes], seconds: float) -> dict[str, Any]:
    latencies: list[float] = []
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        plain.probabilities(images[len(latencies) % len(images)])
        latencies.append((time.perf_counter() - now) * 1000)
    return {"count": len(latencies), "seconds": time.perf_counter() - begun, "latencies_ms": latencies}


def make_app() -> Any:
    """FastAPI around the two sessions, one image a request, as a tutorial has it but on the event loop: fastest."""
    even_niceness()
    plain = Plain.of(json.loads(os.environ[TASK]))
    api = FastAPI()

    @api.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return plain.answer(await request.body())

    return api


def make_our_app() -> Any:
    """crossplant's app in a plain uvicorn worker."""
    from cluster.settings import Settings
    from serving.app import build_app
    from serving.wiring import open_service

    even_niceness()
    task = json.loads(os.environ[TASK])
    settings = Settings(home=Path(task["home"]), slots=task["replicas"])
    return build_app(open_service(settings, store_uri=task["store"], fleet="bench", replica=f"r{os.getpid()}"))
