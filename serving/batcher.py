"""A micro-batcher: requests that wait together go through the trunk together, whatever plant they are from.

Nobody waits for company: the one worker thread takes what is there, up to `max_batch`, so a lone request is served at
once and the event loop is never blocked. A client that left costs nothing: its future is done and is skipped, before
the work and again before the result is set (setting it would end the loop for everybody after).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Busy(Exception):
    """More requests wait than the batcher is willing to hold."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Job, Result]):
    job: Job
    future: asyncio.Future[Result]
    loop: asyncio.AbstractEventLoop


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
        self._waiting: deque[_Waiting[Job, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    async def submit(self, job: Job) -> Result:
        """The result for this job. Raises Busy when the queue is full, or what `handle` returned for the job."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        with self._changed:
            if self._closed or len(self._waiting) >= self._max_waiting:
                raise Busy
            self._waiting.append(_Waiting(job, future, loop))
            self._changed.notify()
        return await future

    @property
    def num_waiting(self) -> int:
        """How many jobs no thread has taken up yet."""
        return len(self._waiting)

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

    def _take(self) -> list[_Waiting[Job, Result]]:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            taken: list[_Waiting[Job, Result]] = []
            while self._waiting and len(taken) < self._max_batch:
                one = self._waiting.popleft()
                if not one.future.done():
                    taken.append(one)
            return taken

    def _work(self) -> None:
        while True:
            taken = self._take()
            if not taken:
                if self._closed and not self._waiting:
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
