"""Who may come in, before a body is read: token buckets, requests in flight and bytes in memory, plant by plant.

The rules are pure functions of counts and a clock. One `Ingress` a replica holds the counts; it is used on the event
loop alone and needs no lock. A request that is turned away costs no slot, no memory and no turn of the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from plants.limits import Limits
from serving.schemas import Refusal

MB = 1 << 20
MAX_HELD_BYTES = 256 * MB
"""Bodies in a replica's memory; one plant may hold half of them."""
BURST_S = 2.0
"""How many seconds' worth of bytes may come at once."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens left at a moment. Below zero is a debt that time pays off."""

    level: float
    at_s: float


def refilled(bucket: Bucket, *, rate: float, burst: float, now_s: float) -> Bucket:
    """The bucket at a later moment: `rate` tokens a second were added, up to `burst`."""
    return Bucket(min(burst, bucket.level + rate * max(0.0, now_s - bucket.at_s)), now_s)


def wait_s(bucket: Bucket, *, rate: float) -> float:
    """Seconds until the bucket holds something; 0 where it does."""
    return max(0.0, -bucket.level / rate) if bucket.level <= 0 else 0.0


def drawn(bucket: Bucket, amount: float) -> Bucket:
    """The bucket without `amount`, which may be more than it holds: a large body is paid for by a longer wait."""
    return Bucket(bucket.level - amount, bucket.at_s)


def has_room(mine: int, *, limit: int, total: int, num_plants: int, capacity: int) -> bool:
    """Whether a plant with `mine` requests in flight may have one more of the replica's `capacity`.

    The last quarter is kept for plants that hold less than an equal share of it, so several plants that flood cannot
    shut out one that does not. `num_plants` have a request in flight.
    """
    if mine >= limit or total >= capacity:
        return False
    return total < capacity - capacity // 4 or mine < max(1, capacity // (4 * (num_plants + 1)))


@dataclass(slots=True)
class _Plant:
    requests: Bucket
    bytes: Bucket
    in_flight: int = 0
    held: int = 0


@dataclass(slots=True)
class Ticket:
    """A request that was let in. Use it as a context manager: what it holds is given back at the end."""

    ingress: Ingress
    plant: str
    held: int = 0

    def hold(self, num_bytes: int) -> None:
        """So many bytes of the body more are in memory. Raises Refusal 503 where the replica holds too many."""
        self.ingress.hold(self, num_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ingress.leave(self)


@dataclass
class Ingress:
    """Counts of one replica."""

    capacity: int = 64
    """Requests in flight, of all plants."""
    max_held_bytes: int = MAX_HELD_BYTES
    clock: Callable[[], float] = time.monotonic
    total: int = 0
    held: int = 0
    _plants: dict[str, _Plant] = field(default_factory=dict)
    _num_plants: int = 0
    """Plants with a request in flight."""

    def enter(self, plant: str, *, length: int | None, limits: Limits | None = None) -> Ticket:
        """A ticket for a body of `length` bytes, None where it is not declared.

        Raises Refusal: 429 beyond the plant's rate, 503 beyond what it, or the replica, may have in flight; both say
        when to come back.
        """
        limits = limits or Limits()
        now, rate = self.clock(), limits.mb_per_s * MB
        mine = self._plants.get(plant) or _Plant(Bucket(limits.burst, now), Bucket(BURST_S * rate, now))
        self._plants[plant] = mine
        mine.requests = refilled(mine.requests, rate=limits.requests_per_s, burst=limits.burst, now_s=now)
        mine.bytes = refilled(mine.bytes, rate=rate, burst=BURST_S * rate, now_s=now)
        wait = max(wait_s(mine.requests, rate=limits.requests_per_s), wait_s(mine.bytes, rate=rate))
        if wait > 0:
            raise self._too_fast(plant, wait=wait, is_bytes=mine.bytes.level <= 0, limits=limits)
        total = self.total
        if not has_room(
            mine.in_flight, limit=limits.in_flight, total=total, num_plants=self._num_plants, capacity=self.capacity
        ):
            raise _full(plant, "too many requests of this plant wait" if mine.in_flight else "too many requests wait")
        self._check_memory(mine, plant=plant, more=length or 0)
        mine.requests, mine.bytes = drawn(mine.requests, 1), drawn(mine.bytes, length or 0)
        self._num_plants += mine.in_flight == 0
        mine.in_flight += 1
        self.total += 1
        return Ticket(self, plant)

    def hold(self, ticket: Ticket, num_bytes: int) -> None:
        """See `Ticket.hold`."""
        mine = self._plants[ticket.plant]
        self._check_memory(mine, plant=ticket.plant, more=num_bytes)
        ticket.held += num_bytes
        mine.held += num_bytes
        self.held += num_bytes

    def leave(self, ticket: Ticket) -> None:
        """The request's slot and bytes are free again."""
        mine = self._plants[ticket.plant]
        mine.in_flight -= 1
        mine.held -= ticket.held
        self._num_plants -= mine.in_flight == 0
        self.total -= 1
        self.held -= ticket.held

    def charge(self, plant: str, num_bytes: int) -> None:
        """The plant's rate of bytes knows of a body whose length was not declared."""
        self._plants[plant].bytes = drawn(self._plants[plant].bytes, num_bytes)

    def _check_memory(self, mine: _Plant, *, plant: str, more: int) -> None:
        if self.held + more > self.max_held_bytes or mine.held + more > self.max_held_bytes // 2:
            raise _full(plant, "too many bodies are being read")

    def _too_fast(self, plant: str, *, wait: float, is_bytes: bool, limits: Limits) -> Refusal:
        allowed = f"{limits.mb_per_s:g} MB" if is_bytes else f"{limits.requests_per_s:g} requests"
        return Refusal(
            f"more than {allowed} a second",
            status=429,
            plant=plant,
            field="costs.limits.mb_per_s" if is_bytes else "costs.limits.requests_per_s",
            remedy="Wait as Retry-After says, or raise the plant's limit in its policy",
            retry_after_s=math.ceil(wait),
        )


def _full(plant: str, error: str) -> Refusal:
    return Refusal(error, status=503, plant=plant, field=None, remedy="Try again", retry_after_s=1)
