"""A micro-batcher: requests that wait together go through the trunk together, whatever plant they are from.

Nobody waits for company: the one worker thread takes what is there, up to `max_batch` and `MAX_WEIGHT`, so a lone
request is served at once and the event loop is never blocked. Turns are fair by plant and weight (weighted fair
queueing): a plant that was idle goes before the backlog of one that floods, and waits for one batch at most. Time goes
on with the work that is done, shared by the plants that wait: where a thousand plants come one after another, one that
comes again waits for as many turns as there are plants in line, not until no other comes. Source: Demers, Keshav and
Shenker, Analysis and Simulation of a Fair Queueing Algorithm, 1989.

A client that left costs nothing: its future is done and is skipped, before the work and again before the result is set
(setting it would end the loop for everybody after).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_WEIGHT = 2 << 20
"""Bytes of frames in one batch, unless one job alone has more: large frames gain nothing by company."""
MIN_WEIGHT = 64 << 10
"""What a job counts for in turns at least; small frames cost about this much beside their bytes."""

Job = TypeVar("Job")
Result = TypeVar("Result")


class Busy(Exception):
    """More requests wait than the batcher is willing to hold."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Job, Result]):
    job: Job
    future: asyncio.Future[Result]
    loop: asyncio.AbstractEventLoop
    arrival: int
    weight: int


class Batcher(Generic[Job, Result]):
    """One worker thread over a bounded queue.

    `handle` gets the jobs that waited and returns one result or exception for each, in order; an exception that it
    raises fails the whole batch, and only that.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Job]], Sequence[Result | Exception]],
        *,
        max_batch: int = 16,
        max_waiting: int = 64,
    ) -> None:
        self._handle = handle
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._lanes: dict[str, deque[_Waiting[Job, Result]]] = {}
        """Jobs that wait, by lane; none is empty."""
        self._arrivals = itertools.count()
        self._starts: dict[str, float] = {}
        """Where each lane's next job starts, in bytes of virtual time: of lanes that wait or are ahead of it."""
        self._now = 0.0
        """Virtual time: bytes that every such lane was served, or could have been."""
        self._in_service = 0
        """Bytes of the work that was taken last."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    async def submit(self, job: Job, *, lane: str = "", weight: int = 0) -> Result:
        """The result for this job of `weight` bytes; jobs of one `lane` keep their order, lanes share the turns.

        Raises Busy when the queue is full, or what `handle` returned for the job.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        with self._changed:
            if self.num_waiting >= self._max_waiting:
                self._forget_gone()
            if self._closed or self.num_waiting >= self._max_waiting:
                raise Busy
            if lane not in self._lanes:
                self._lanes[lane] = deque()
                self._starts[lane] = max(self._now, self._starts.get(lane, 0.0))
            self._lanes[lane].append(_Waiting(job, future, loop, next(self._arrivals), weight))
            self._changed.notify()
        return await future

    @property
    def num_waiting(self) -> int:
        """How many jobs no thread has taken up yet."""
        return sum(len(jobs) for jobs in list(self._lanes.values()))

    @property
    def is_alive(self) -> bool:
        """Whether somebody works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """No job is accepted any more, and those that wait have been answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def _forget_gone(self) -> None:
        """Jobs whose sender left, or whose deadline passed, hold no place."""
        kept = {lane: deque(one for one in jobs if not one.future.done()) for lane, jobs in self._lanes.items()}
        self._lanes = {lane: jobs for lane, jobs in kept.items() if jobs}

    def _advance(self) -> None:
        """Time goes on by the work that is done, shared by the lanes that wait and one that may come.

        Without that one a flood that is alone would start level with who comes next, and go first.
        """
        self._now, self._in_service = self._now + self._in_service / (len(self._lanes) + 1), 0
        self._starts = {a: start for a, start in self._starts.items() if start > self._now or a in self._lanes}

    def _take(self) -> list[_Waiting[Job, Result]]:
        with self._changed:
            while not self._lanes and not self._closed:
                self._changed.wait()
            taken: list[_Waiting[Job, Result]] = []
            room = MAX_WEIGHT
            self._advance()
            while self._lanes and len(taken) < self._max_batch:
                lane = min(self._lanes, key=lambda lane: (self._starts[lane], self._lanes[lane][0].arrival))
                one = self._lanes[lane][0]
                if taken and not one.future.done() and one.weight > room:
                    break
                self._lanes[lane].popleft()
                if not self._lanes[lane]:
                    del self._lanes[lane]
                if not one.future.done():  # what was never done costs its lane no turn
                    taken.append(one)
                    room -= one.weight
                    self._now = max(self._now, self._starts[lane])
                    self._starts[lane] += max(one.weight, MIN_WEIGHT)
                    self._in_service += max(one.weight, MIN_WEIGHT)
            return taken

    def _work(self) -> None:
        while True:
            taken = self._take()
            if not taken:
                if self._closed and not self._lanes:
                    return
                continue
            results: Sequence[Result | Exception]
            try:
                results = self._handle([one.job for one in taken])
            except Exception as error:  # the batch is lost, the loop is not: every waiting request hears of it
                results = [error] * len(taken)
            for one, result in zip(taken, results, strict=True):
                _post(one.loop, one.future, result)


def _post(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Result], result: Result | Exception) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(_settle, future, result)


def _settle(future: asyncio.Future[Result], result: Result | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
