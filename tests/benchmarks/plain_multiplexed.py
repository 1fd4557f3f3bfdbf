"""The peer of `bench_plants.py`: Ray Serve's own way to serve many models, sixteen of them in a replica at a time.

Each plant has a session of its own for the trunk and for its branch, opened when it is asked for and not there. The
same bytes, decoder, views and files as crossplant's; no token, decision, log or count. Loads run beside the event loop.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from plain_model import Plain

NUM_MODELS = 16


def deployment(task: dict[str, Any]) -> Any:
    """The application of one replica."""
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
    class Multiplexed:
        @serve.multiplexed(max_num_models_per_replica=NUM_MODELS)
        async def model(self, plant: str) -> Plain:
            folder = Path(task["bundles"][plant])
            files = {"trunk": Path(task["trunk"]), "branch": folder / "branch.onnx"}
            return await asyncio.to_thread(Plain, folder=folder, plant=plant, **files)

        async def __call__(self, request: Request) -> dict[str, Any]:
            plain = await self.model(request.headers["serve_multiplexed_model_id"])
            return plain.answer(await request.body())

    return Multiplexed.bind()
