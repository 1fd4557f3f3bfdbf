"""One writer at a time for a store, whichever machines the writers run on.

Whoever wants to write puts a claim of its own and then lists all claims: alone, it has the lock. Of two that put before
either lists, both see the other, so that never both are alone. That takes a store that lists what was put, as folders
and S3 do; conditional puts are not needed, of which several may succeed on S3-compatible stores. A claim that is not
renewed lapses, so that a killed writer stops the others for `ttl_s` at most; clocks must agree to a fraction of it.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator

from cluster.storage import Store
from plants.errors import CheckFailed, InputError

TTL_S = 60.0
TIMEOUT_S = 180.0
PAUSE_S = 0.2


class Claim:
    """One writer's claim to a name; use `locked`."""

    def __init__(self, store: Store, name: str, *, ttl_s: float) -> None:
        self._store, self._prefix, self._ttl_s = store, f"locks/{name}", ttl_s
        self._id = uuid.uuid4().hex
        self._key: str | None = None

    def put(self) -> None:
        """Afterwards the claim is there for another `ttl_s`."""
        old, self._key = self._key, f"{self._prefix}/{self._id}.{time.time() + self._ttl_s:.3f}"
        self._store.write(self._key, b"")
        if old:
            self._store.delete(old)

    def withdraw(self) -> None:
        """Afterwards there is no claim."""
        if self._key:
            self._store.delete(self._key)
            self._key = None

    def others(self) -> list[str]:
        """The identities of all other writers whose claims have not lapsed.

        Looked at twice where there is none: a listing may miss a claim that is being renewed.
        """
        return self._listed() or self._listed()

    def _listed(self) -> list[str]:
        found = []
        for entry in self._store.list(self._prefix):
            owner = entry.key.rpartition("/")[2].partition(".")[0]
            if owner == self._id:
                continue
            if _lapses_at(entry.key) < time.time():
                self._store.delete(entry.key)
            else:
                found.append(owner)
        return found

    def acquire(self, *, timeout_s: float) -> None:
        """Afterwards this claim is the only one. Raises InputError when that takes too long.

        The lowest of several keeps its claim and waits for those before it; the others step back.
        """
        deadline = time.monotonic() + timeout_s
        self.put()
        while others := self.others():
            if time.monotonic() > deadline:
                self.withdraw()
                raise InputError(
                    f"another writer has held the store for {timeout_s:.0f} s",
                    file=self._store.at(self._prefix),
                    remedy="Wait for the other import to end; what a killed one left lapses by itself",
                )
            if min(others) < self._id:
                self.withdraw()
            time.sleep(PAUSE_S * random.uniform(0.2, 1))
            if self._left_s() < self._ttl_s / 2:
                self.put()

    def check(self) -> None:
        """The claim still stands. Raises CheckFailed when this process slept until it lapsed."""
        if self._left_s() <= 0:
            raise CheckFailed("the lock on the store lapsed while this process stood still: nothing was written")

    def _left_s(self) -> float:
        """Seconds until the claim lapses; 0 without one."""
        return _lapses_at(self._key) - time.time() if self._key else 0.0


@contextlib.contextmanager
def locked(store: Store, name: str, *, timeout_s: float = TIMEOUT_S, ttl_s: float = TTL_S) -> Iterator[Claim]:
    """Inside the block no other process holds this name; call `check` before what must not be written twice.

    Raises InputError when the name cannot be had in time.
    """
    claim, ended = Claim(store, name, ttl_s=ttl_s), threading.Event()
    claim.acquire(timeout_s=timeout_s)

    def renew() -> None:
        while not ended.wait(ttl_s / 4):
            with contextlib.suppress(InputError):
                claim.put()

    renewer = threading.Thread(target=renew, name=f"lock-{name}", daemon=True)
    renewer.start()
    try:
        yield claim
    finally:
        ended.set()
        renewer.join()
        claim.withdraw()


def _lapses_at(key: str) -> float:
    return float(key.rpartition("/")[2].partition(".")[2])
