"""Which model judges a plant's parts, now: the journal polled, bundles loaded beside the traffic, swapped at once.

The decisions are pure functions (`to_load`, `retry_at`). A thread asks the journal in one query per poll for routes
that changed; a few more load them while the old models go on serving, so that a bundle that loads slowly holds no other
plant up. Each that is loaded makes a new table, put in place by one assignment: a request sees all of the old or all of
the new. A route that cannot be loaded isolates its plant, which keeps its last good one. What was last good is kept on
disk, so that a replica starts and serves while the database is away.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.storage import replaced
from serving.predictor import Predictor

log = logging.getLogger("crossplant.serving")

NUM_LOADERS = 4
"""Bundles that load at the same time: one that takes long leaves the others three."""
START_WAIT_S = 60.0
"""How long a replica that starts waits for its plants before it serves those that it has."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a route asks for."""

    bundle: str
    policy: str
    sequence: int
    action: str = field(default="", compare=False)
    who: str = field(default="", compare=False)
    at: str = field(default="", compare=False)
    """What the journal says of it; empty where the route is known from disk."""


@dataclass(frozen=True, slots=True)
class Live:
    """A route that is loaded."""

    target: Target
    predictor: Predictor


@dataclass(frozen=True, slots=True)
class Failure:
    """A route that could not be loaded, and how often it was tried."""

    target: Target
    reason: str
    attempts: int
    at: float


@dataclass(frozen=True, slots=True)
class Table:
    """Everything a request needs to know about routes. Never changed, only replaced."""

    live: Mapping[str, Live] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    journal_problem: str | None = None
    """Why the journal could not be read at the last poll, or None."""
    polls: int = 0
    loading: Mapping[str, Target] = field(default_factory=dict)
    """Plant -> the route that is being loaded, or waits for it."""

    @property
    def problems(self) -> dict[str, str]:
        """Plant -> why its newest route is not live."""
        return {plant: failure.reason for plant, failure in self.failures.items()}


def retry_at(failure: Failure) -> float:
    """When to try a failed route again: after 1, 2, 4, ... seconds, a minute at most."""
    return failure.at + min(60.0, 2.0 ** (failure.attempts - 1))


def to_load(
    wanted: Mapping[str, Target],
    *,
    live: Mapping[str, Live],
    failures: Mapping[str, Failure],
    now: float,
    loading: Mapping[str, Target] | None = None,
) -> dict[str, Target]:
    """The routes to load at this poll: new or changed ones, and failed ones whose time has come; none that loads now.

    A plant that the journal no longer knows keeps what it has: routes are never deleted, so that is a damaged journal.
    """
    found = {}
    for plant, target in wanted.items():
        if plant in live and live[plant].target == target:
            continue
        if loading and loading.get(plant) == target:
            continue
        failure = failures.get(plant)
        if failure is None or failure.target != target or retry_at(failure) <= now:
            found[plant] = target
    return found


class Router:
    """Keeps a `Table` true to the journal. `table` may be read from any thread at any time."""

    def __init__(
        self,
        *,
        poll: Callable[[], Mapping[str, Target]],
        load: Callable[[str, Target], Predictor],
        state: Path,
        poll_s: float = 0.5,
        start_wait_s: float = START_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poll = poll
        self._load = load
        self._state = LastGood(state)
        self._poll_s = poll_s
        self._start_wait_s = start_wait_s
        self._clock = clock
        self._turn = threading.Lock()
        self._change = threading.Lock()
        self._keeping = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(max_workers=NUM_LOADERS, thread_name_prefix="load")
        self._loads: dict[str, Future[None]] = {}
        self._kept: Mapping[str, Live] | None = None
        self.table = Table()

    def start(self) -> None:
        """Every route that can be loaded in time is live, and threads keep it so and load the rest."""
        self.refresh(wait_s=self._start_wait_s)
        self._thread = threading.Thread(target=self._work, name="router", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The threads have ended, but for loads that began, which come to nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def refresh(self, *, plant: str | None = None, wait_s: float | None = None) -> None:
        """The table is as the journal was a moment ago, or as it was where the journal or a bundle failed.

        Waits for what has to be loaded, wait_s at most; with `plant` for that plant's alone.
        """
        self._read_journal()
        with self._change:
            loads = [load for name, load in self._loads.items() if plant in (None, name)]
        wait(loads, timeout=wait_s)
        self._keep()

    def _read_journal(self) -> None:
        """What changed is being loaded."""
        with self._turn:
            before = self.table
            try:
                wanted, problem = self._poll(), None
            except Exception as error:  # the database is away: serve on with what is known
                problem = f"the route journal cannot be read ({type(error).__name__})"
                wanted = {} if before.live else self._state.read()
            if problem and problem != before.journal_problem:
                log.warning("%s; serving the last good routes", problem)
            with self._change:
                now = self.table
                found = to_load(wanted, live=now.live, failures=now.failures, now=self._clock(), loading=now.loading)
                gone = [p for p, failure in now.failures.items() if p in wanted and wanted[p] != failure.target]
                failures = {p: failure for p, failure in now.failures.items() if p not in gone or p in found}
                loading = {**now.loading, **found}
                self.table = replace(
                    now, failures=failures, journal_problem=problem, polls=now.polls + 1, loading=loading
                )
                for plant, target in found.items():
                    self._loads[plant] = self._pool.submit(self._try, plant, target)

    def _try(self, plant: str, target: Target) -> None:
        try:
            self._settle(plant, target, Live(target, self._load(plant, target)))
            return
        except Exception as error:  # one bad bundle isolates its plant, whatever is wrong with it
            before = self.table.failures.get(plant)
            attempts = before.attempts + 1 if before and before.target == target else 1
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            if attempts == 1:
                log.warning("plant %s: route %d is not live: %s", plant, target.sequence, reason)
        earlier = None
        good = self._state.read().get(plant)
        if plant not in self.table.live and good is not None and good != target:
            try:
                earlier = Live(good, self._load(plant, good))
            except Exception as error:
                log.warning("plant %s: nor is its last good route: %s", plant, " ".join(str(error).split())[:500])
        self._settle(plant, target, earlier, failure=Failure(target, reason, attempts, self._clock()))

    def _settle(self, plant: str, target: Target, one: Live | None, *, failure: Failure | None = None) -> None:
        """What was loaded is live, and what failed is said, unless the journal says something newer by now."""
        with self._change:
            now = self.table
            if now.loading.get(plant) != target:
                return
            live = now.live if one is None else {**now.live, plant: one}
            failures = {p: other for p, other in now.failures.items() if p != plant}
            if failure is not None:
                failures[plant] = failure
            loading = {p: other for p, other in now.loading.items() if p != plant}
            self._loads.pop(plant, None)
            self.table = replace(now, live=live, failures=failures, loading=loading)

    def _keep(self) -> None:
        """Also what is not live yet: it may be loading, and what was good then still is."""
        with self._keeping:
            live = self.table.live
            if live is self._kept:  # a table is never changed, only replaced
                return
            good = self._state.read()
            self._state.write({**good, **{plant: one.target for plant, one in live.items()}})
            self._kept = live

    def _work(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self._read_journal()
                self._keep()
            except Exception:  # the poll must go on: without it no rollback reaches this replica
                log.exception("a poll of the routes failed")


class LastGood:
    """The routes that were live last, on disk. Damaged files are as good as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, Target] | None = None

    def read(self) -> dict[str, Target]:
        """Plant -> route, as written last, here or by the process before."""
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return self._known

    def write(self, routes: dict[str, Target]) -> None:
        """These are on disk. Costs nothing where they are what was written last."""
        if not routes or routes == self.read():
            return
        with self._lock:
            rows = {p: {"bundle": t.bundle, "policy": t.policy, "sequence": t.sequence} for p, t in routes.items()}
            with replaced(self._path) as part:
                part.write_text(json.dumps(dict(sorted(rows.items())), indent=1), encoding="utf-8")
            self._known = routes

    def _read(self) -> dict[str, Target]:
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(plant): Target(**target) for plant, target in raw.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s)", self._path.name, type(error).__name__)
            return {}
