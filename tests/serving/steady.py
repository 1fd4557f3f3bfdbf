"""A steady load from the Python client whose every answer is checked to be that plant's, and what it met.

What an answer must be is what `crossplant predict --bundle` says of the image with the bundle and the policy that the
answer names; no two plants have an answer in common.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from serving.client import Client
from serving.verbs import predict_files
from tests.serving.toys import png

ENVIRONMENT = "cam-1"
TOLERANCE = 2e-6
"""Of a probability: answers carry six digits."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and all its tries."""

    plant: str
    begun: float
    ended: float
    tries: int
    request_id: str = ""
    bundle: str = ""
    failure: str = ""
    """Why there was no answer."""
    wrong: str = ""
    """What was wrong with the answer."""

    @property
    def replica(self) -> str:
        """Who answered."""
        return self.request_id.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what requests met during one fault."""

    fault: str
    seconds: float
    requests: int
    failed: int
    retried: int
    wrong: int
    p50_ms: float
    p99_ms: float
    note: str = ""

    @classmethod
    def of(cls, asked: Iterable[Asked], *, fault: str, begun: float, ended: float, note: str = "") -> Row:
        """The requests under way between the two moments."""
        rows = [one for one in asked if one.ended >= begun and one.begun < ended]
        took = [1000 * (one.ended - one.begun) for one in rows] or [0.0]
        return cls(
            fault,
            round(ended - begun, 1),
            len(rows),
            sum(bool(one.failure) for one in rows),
            sum(one.tries > 1 for one in rows),
            sum(bool(one.wrong) for one in rows),
            round(float(np.percentile(took, 50)), 1),
            round(float(np.percentile(took, 99)), 1),
            note,
        )


def table(rows: Iterable[Row]) -> str:
    """For people."""
    lines = [f"{'fault':<34}{'s':>6}{'requests':>10}{'failed':>8}{'retried':>9}{'wrong':>7}{'p50 ms':>9}{'p99 ms':>9}"]
    for row in rows:
        numbers = f"{row.seconds:>6}{row.requests:>10}{row.failed:>8}{row.retried:>9}{row.wrong:>7}"
        lines.append(f"{row.fault:<34}{numbers}{row.p50_ms:>9}{row.p99_ms:>9}  {row.note}")
    return "\n".join(lines)


def documents(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """For `--json`."""
    return [asdict(row) for row in rows]


class Answers:
    """What each bundle says of each image, by `crossplant predict` from the bundle on disk."""

    def __init__(self, folder: Path, *, num_images: int = 6) -> None:
        """folder: holds `bundles`, `policies` and `trunks`."""
        self._folder = folder
        self.known: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        self.images = [png(tuple(rng.integers(0, 256, 3).tolist()), size=(48 + n, 40)) for n in range(num_images)]
        for number, image in enumerate(self.images):
            (images / f"{number}.png").write_bytes(image)

    def learn(self, plant: str, *, bundle: str, policy: str, settings: Any) -> None:
        """Answers of this plant by this bundle and policy are known from now on."""
        files = [self._folder / "images" / f"{number}.png" for number in range(len(self.images))]
        where = {"bundle": self._folder / "bundles" / bundle, "policy": self._folder / "policies" / f"{policy}.json"}
        found = predict_files(files, settings=settings, plant=plant, environment=ENVIRONMENT, **where)
        for number, row in enumerate(found["predictions"]):
            self.known[plant, bundle, policy, number] = row

    def fault(self, answer: Mapping[str, Any], *, plant: str, part_id: str, number: int) -> str:
        """What shows that this is not the plant's answer to its image; nothing where it is."""
        model = answer["model"]
        known = self.known.get((plant, model["bundle"], model["policy"], number))
        if known is None:
            return f"judged by bundle {model['bundle'][:12]}, which is none of the plant's"
        said = {"plant": plant, "part_id": part_id, "verdict": known["verdict"], "defect": known["defect"]}
        for name, value in said.items():
            if answer[name] != value:
                return f"{name} is {answer[name]!r} instead of {value!r}"
        if answer["frames"][0]["sha256"] != known["frames"][0]["sha256"]:
            return "another image's"
        ours, theirs = answer["probabilities"], known["probabilities"]
        if ours.keys() != theirs.keys() or any(abs(ours[name] - theirs[name]) > TOLERANCE for name in ours):
            return f"probabilities are {ours} instead of {theirs}"
        return ""


class Counting(httpx.HTTPTransport):
    """Real HTTP, with the tries counted."""

    tries = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.tries += 1
        return super().handle_request(request)


@dataclass
class Load:
    """So many requests a second to each plant in turn, from threads with a client each, until the block ends."""

    address: str
    answers: Answers
    tokens: dict[str, str]
    """Of the plants asked; one that is put here meanwhile is asked from then on."""
    threads: int = 6
    per_s: float = 48.0
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(self.threads)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        clients: dict[str, tuple[Client, Counting]] = {}
        period, chance = self.threads / self.per_s, random.Random(number)
        due = time.monotonic() + period * number / self.threads
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + period, time.monotonic() - period)
            plant = chance.choice(list(self.tokens))
            if plant not in clients:
                line = Counting()
                clients[plant] = Client(self.address, token=self.tokens[plant], transport=line), line
            self._ask(plant, *clients[plant], number=chance.randrange(len(self.answers.images)))
        for client, _ in clients.values():
            client.close()

    def _ask(self, plant: str, client: Client, line: Counting, *, number: int) -> None:
        part_id, line.tries, begun = uuid.uuid4().hex, 0, time.monotonic()
        answer: dict[str, Any] = {}
        failure = wrong = ""
        try:
            image = self.answers.images[number]
            answer = client.predict(plant, [("a.png", image)], part_id=part_id, environment=ENVIRONMENT)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        ended = time.monotonic()
        if answer:
            wrong = self.answers.fault(answer, plant=plant, part_id=part_id, number=number)
        self.asked.append(
            Asked(
                plant,
                begun,
                ended,
                line.tries,
                request_id=answer.get("request_id", ""),
                bundle=answer.get("model", {}).get("bundle", ""),
                failure=failure,
                wrong=wrong,
            )
        )
