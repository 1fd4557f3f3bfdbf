"""The newest route of every plant, kept up by asking the journal only for what is new.

A replica polls twice a second. Reading the route of every plant each time costs more the more plants there are, for
rows that hardly ever change; asking for the rows after the last one seen costs the same at 10 plants and at 10,000.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from cluster.registry import Journal, Route

OVERLAP = 32
"""Rows asked for again at every poll. On Postgres a row may be committed after one of a higher number; and as long as
the last row seen comes back, the journal is the one that was read before."""
REREAD_S = 60.0
"""How often all routes are read anyway."""


class Follower:
    """One reader's view of a journal. Not for several threads at once."""

    def __init__(self, journal: Journal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._routes: dict[str, Route] = {}
        self._last = 0
        self._read_at: float | None = None
        self.version = 0
        """Another number after every `current` that found a change."""

    def current(self) -> Mapping[str, Route]:
        """The route of every plant that has one, in one short query. Raises DatabaseAway; the next call catches up.

        The journal is read in full at first, once a minute, and when it is not the one that was read before.
        """
        now = self._clock()
        if self._read_at is None or now - self._read_at >= REREAD_S:
            return self._reread(now)
        rows = self._journal.since(self._last - OVERLAP)
        if self._last and all(number != self._last for number, _ in rows):
            return self._reread(now)
        for number, route in rows:
            known = self._routes.get(route.plant)
            if known is None or known.sequence < route.sequence:
                self._routes[route.plant] = route
                self.version += 1
            self._last = max(self._last, number)
        return self._routes

    def _reread(self, now: float) -> Mapping[str, Route]:
        last = self._journal.last()  # before the routes, so that a row written in between is asked for again
        routes = self._journal.current()
        self.version += routes != self._routes
        self._routes = routes
        self._last, self._read_at = last, now
        return self._routes
