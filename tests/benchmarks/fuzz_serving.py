"""Bad requests for minutes: no 5xx, no crash, memory flat. Not a benchmark; `make bench` does not run it.

    python tests/benchmarks/fuzz_serving.py --seconds 300

One uvicorn process of the app, four senders, requests of `tests/serving/fuzzing.py` by seed, a good part of another
plant among every fifty that must be judged as ever. The last line is one JSON object; exit 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.serving import fuzzing
from tests.serving.toys import GREEN, Works, plant_view, png
from tests.serving.uvicorn_server import Server


class Sender:
    """Threads that send until told to stop; what they saw."""

    def __init__(self, server: Server, *, tokens: dict[str, str], seed: int) -> None:
        self._server = server
        self._tokens = tokens
        self._seed = seed
        self._lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.num_good = 0
        self.stop = threading.Event()

    def work(self) -> None:
        """Sends one request after another."""
        while not self.stop.is_set():
            with self._lock:
                self._seed += 1
                seed = self._seed
            try:
                self._one(seed)
            except Exception as error:
                self.faults.append(f"seed {seed}: {type(error).__name__} {error}")

    def _one(self, seed: int) -> None:
        sent = fuzzing.request(random.Random(seed), plant="mill", token=self._tokens["mill"])
        reply = fuzzing.asked(self._server.port, sent)
        with self._lock:
            self.statuses[reply.status] += 1
        if (wrong := fuzzing.fault(reply)) is not None:
            self.faults.append(f"seed {seed}: {wrong}")
        if seed % 50 == 0:
            headers = {"Authorization": f"Bearer {self._tokens['foundry']}"}
            url = f"{self._server.address}/plants/foundry/predict?environment=cam-1&part_id={seed}"
            answer = httpx.post(url, headers=headers, content=png(GREEN), timeout=30).json()
            if (answer.get("verdict"), answer.get("plant"), answer.get("part_id")) != ("ok", "foundry", str(seed)):
                self.faults.append(f"seed {seed}: a good part of the other plant got {answer}")
            self.num_good += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        works = Works(Path(folder))
        tokens = {name: works.token(plant=name)["Authorization"].split()[1] for name in ("mill", "foundry")}
        bundle = works.bundle("own", serves={name: plant_view() for name in tokens})
        for name in tokens:
            works.promote(name, bundle=bundle, policy=works.policy(name))
        with Server(Path(folder), body_s=0.3) as server:
            found = fuzz(server, tokens=tokens, seconds=args.seconds, seed=args.seed)
            found["tracebacks_logged"] = server.log.read_text(errors="replace").count("Traceback")
    print(json.dumps(found))
    return 1 if found["faults"] or found["tracebacks_logged"] else 0


def fuzz(server: Server, *, tokens: dict[str, str], seconds: float, seed: int) -> dict[str, object]:
    """What four senders saw, and the server's memory: at a fifth of the time, when all paths are warm, and later."""
    sender = Sender(server, tokens=tokens, seed=seed)
    threads = [threading.Thread(target=sender.work) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun, memory = time.monotonic(), []
    while time.monotonic() - begun < seconds:
        time.sleep(min(5.0, seconds / 10))
        memory.append(round(server.memory_mb, 1))
        if len(memory) % 6 == 0:
            print(f"{time.monotonic() - begun:.0f} s  {sender.statuses.total()} sent  {memory[-1]} MB", flush=True)
    sender.stop.set()
    for thread in threads:
        thread.join()
    warm = len(memory) // 5
    return {
        "name": "fuzz_serving",
        "seconds": seconds,
        "requests": sender.statuses.total(),
        "good_parts_judged": sender.num_good,
        "statuses": dict(sorted(sender.statuses.items())),
        "faults": sender.faults[:20],
        "num_faults": len(sender.faults),
        "memory_mb": {"warm": memory[warm], "half": memory[len(memory) // 2], "end": memory[-1], "most": max(memory)},
    }


if __name__ == "__main__":
    sys.exit(main())
