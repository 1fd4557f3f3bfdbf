"""A part that is sent again with the same `Idempotency-Key` is judged, counted and logged once.

A replica keeps its answers by plant and key for a minute. Another replica knows nothing of them: there the part is
judged a second time, and both rows of the prediction log carry the key, by which they can be told to be one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serving.schemas import Refusal

T = TypeVar("T")

KEEP_S = 60.0
MAX_KEPT = 4096
"""Answers a replica keeps, a few KB each."""
MAX_KEPT_OF_PLANT = 256


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    digest: str
    task: asyncio.Task[T]
    at_s: float


class Repeats(Generic[T]):
    """The latest answers by plant and key. For one event loop."""

    def __init__(self, *, keep_s: float = KEEP_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    async def once(self, plant: str, key: str, *, digest: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer of `work`, or the one that this key already got here; also while the first still waits.

        `digest` says what was sent. Raises Refusal 422 where the key was used for something else, and what `work`
        raises; a refused request is not kept.
        """
        self._forget_old()
        entry = self._entries.get((plant, key))
        if entry is None:
            entry = _Entry(digest, asyncio.get_running_loop().create_task(work()), self._clock())
            self._keep(plant, key, entry)
            entry.task.add_done_callback(lambda task: self._forget_failed(plant, key, task))
        elif entry.digest != digest:
            raise Refusal(
                "the key was used for another part",
                plant=plant,
                field="Idempotency-Key",
                remedy="A new key for every part, the same for its retries",
            )
        return await asyncio.shield(entry.task)

    def _keep(self, plant: str, key: str, entry: _Entry[T]) -> None:
        if self._counts.get(plant, 0) >= MAX_KEPT_OF_PLANT:
            self._drop(next(one for one in self._entries if one[0] == plant))
        elif len(self._entries) >= MAX_KEPT:
            self._drop(next(iter(self._entries)))
        self._entries[plant, key] = entry
        self._counts[plant] = self._counts.get(plant, 0) + 1

    def _forget_old(self) -> None:
        oldest = self._clock() - self._keep_s
        while self._entries:
            at, entry = next(iter(self._entries.items()))
            if entry.at_s > oldest:
                return
            self._drop(at)

    def _forget_failed(self, plant: str, key: str, task: asyncio.Task[T]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and (entry := self._entries.get((plant, key))) is not None and entry.task is task:
            self._drop((plant, key))

    def _drop(self, at: tuple[str, str]) -> None:
        del self._entries[at]
        self._counts[at[0]] -= 1
        if not self._counts[at[0]]:
            del self._counts[at[0]]
