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
from plain_model import TASK, made


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
    plain = _judge_of(task)
    return {
        "per_s": sum(one["count"] / one["seconds"] for one in found),
        "latencies_ms": [ms for one in found for ms in one["latencies_ms"]],
        "cpu_ms_a_request": 1000 * sum(one["cpu_s"] for one in found) / sum(one["count"] for one in found),
        "answers": [plain.answer(item)["probabilities"] for item in _items(task)],
    }


def _judge_of(task: dict[str, Any]) -> Any:
    return Ours(task) if task.get("judge") else made(task)


def _items(task: dict[str, Any]) -> list[Any]:
    """The images, or groups of as many as a part has, as the load generator groups them."""
    images, frames = [Path(file).read_bytes() for file in task["images"]], task.get("frames", 1)
    groups = [[images[(at + k) % len(images)] for k in range(frames)] for at in range(len(images))]
    return images if frames == 1 else groups


class Ours:
    """The predictor behind an endpoint, without anything around it."""

    def __init__(self, task: dict[str, Any]) -> None:
        from serving.local import local_predictor

        self.plant = task["plant"]
        self.predictor = local_predictor(task["bundle"], plant=self.plant, trunk=task["trunk"])

    def answer(self, asked: Any) -> dict[str, Any]:
        """The probabilities by class."""
        return {"probabilities": self.probabilities(asked)}

    def probabilities(self, asked: Any) -> Any:
        """By class, of an image's bytes or of a part's."""
        from serving.intake import Frame, PartRequest

        frames = [asked] if isinstance(asked, bytes) else asked
        part = PartRequest(self.plant, tuple(Frame(f"{at}.jpg", data) for at, data in enumerate(frames)))
        return self.predictor.predict(part).probabilities


def _judge_all(task: dict[str, Any], barrier: Any, results: Any) -> None:
    even_niceness()
    plain = _judge_of(task)
    images = _items(task)
    _judge_for(plain, images=images, seconds=task["warmup_s"])
    barrier.wait()
    results.put(_judge_for(plain, images=images, seconds=task["seconds"]))


def _judge_for(plain: Any, *, images: Sequence[Any], seconds: float) -> dict[str, Any]:
    latencies: list[float] = []
    begun, spent = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) - begun < seconds:
        plain.probabilities(images[len(latencies) % len(images)])
        latencies.append((time.perf_counter() - now) * 1000)
    return {
        "count": len(latencies),
        "seconds": time.perf_counter() - begun,
        "cpu_s": time.process_time() - spent,
        "latencies_ms": latencies,
    }


def make_app() -> Any:
    """FastAPI around the two sessions, one image a request, as a tutorial has it but on the event loop: fastest."""
    even_niceness()
    plain = made(json.loads(os.environ[TASK]))
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
