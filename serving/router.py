"""Which model judges a plant's parts, now: the journal polled, bundles loaded beside the traffic, swapped at once.

The decisions are pure functions (`to_load`, `retry_at`). A thread asks the journal for all routes in one query per
poll, loads what changed while the old models go on serving, then replaces the whole table by one assignment: a request
sees either all of the old or all of the new. A route that cannot be loaded isolates its plant, which keeps its last
good one. What was last good is kept on disk, so that a replica starts and serves while the database is away.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.storage import replaced
from serving.predictor import Predictor

log = logging.getLogger("crossplant.serving")


@dataclass(frozen=True, slots=True)
class Target:
    """What a route asks for."""

    bundle: str
    policy: str
    sequence: int


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

    @property
    def problems(self) -> dict[str, str]:
        """Plant -> why its newest route is not live."""
        return {plant: failure.reason for plant, failure in self.failures.items()}


def retry_at(failure: Failure) -> float:
    """When to try a failed route again: after 1, 2, 4, ... seconds, a minute at most."""
    return failure.at + min(60.0, 2.0 ** (failure.attempts - 1))


def to_load(
    wanted: Mapping[str, Target], *, live: Mapping[str, Live], failures: Mapping[str, Failure], now: float
) -> dict[str, Target]:
    """The routes to load at this poll: new or changed ones, and failed ones whose time has come.

    A plant that the journal no longer knows keeps what it has: routes are never deleted, so that is a damaged journal.
    """
    found = {}
    for plant, target in wanted.items():
        if plant in live and live[plant].target == target:
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poll = poll
        self._load = load
        self._state = state
        self._poll_s = poll_s
        self._clock = clock
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.table = Table()

    def start(self) -> None:
        """Every route that can be loaded is live, and a thread keeps it so."""
        self.refresh()
        self._thread = threading.Thread(target=self._work, name="router", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The thread has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def refresh(self) -> None:
        """The table is as the journal was a moment ago, or as it was where the journal or a bundle failed."""
        with self._turn:
            before = self.table
            try:
                wanted, problem = self._poll(), None
            except Exception as error:  # the database is away: serve on with what is known
                problem = f"the route journal cannot be read ({type(error).__name__})"
                wanted = {} if before.live else self._last_good()
            live, failures = dict(before.live), dict(before.failures)
            now = self._clock()
            for plant, target in to_load(wanted, live=live, failures=failures, now=now).items():
                self._try(plant, target, live=live, failures=failures)
            for plant in [p for p, failure in failures.items() if p in wanted and wanted[p] != failure.target]:
                del failures[plant]
            if problem and problem != before.journal_problem:
                log.warning("%s; serving the last good routes", problem)
            self.table = Table(live, failures, problem, before.polls + 1)
            if {p: one.target for p, one in live.items()} != {p: one.target for p, one in before.live.items()}:
                self._keep(live)

    def _try(self, plant: str, target: Target, *, live: dict[str, Live], failures: dict[str, Failure]) -> None:
        try:
            live[plant] = Live(target, self._load(plant, target))
            failures.pop(plant, None)
            return
        except Exception as error:  # one bad bundle isolates its plant, whatever is wrong with it
            before = failures.get(plant)
            attempts = before.attempts + 1 if before and before.target == target else 1
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            failures[plant] = Failure(target, reason, attempts, self._clock())
            if attempts == 1:
                log.warning("plant %s: route %d is not live: %s", plant, target.sequence, reason)
        good = self._last_good().get(plant)
        if plant not in live and good is not None and good != target:
            try:
                live[plant] = Live(good, self._load(plant, good))
            except Exception as error:
                log.warning("plant %s: nor is its last good route: %s", plant, " ".join(str(error).split())[:500])

    def _last_good(self) -> dict[str, Target]:
        try:
            raw = json.loads(self._state.read_text(encoding="utf-8"))
            return {str(plant): Target(**target) for plant, target in raw.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s)", self._state.name, type(error).__name__)
            return {}

    def _keep(self, live: Mapping[str, Live]) -> None:
        text = json.dumps({plant: asdict(one.target) for plant, one in sorted(live.items())}, indent=1)
        with replaced(self._state) as part:
            part.write_text(text, encoding="utf-8")

    def _work(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.refresh()
            except Exception:  # the poll must go on: without it no rollback reaches this replica
                log.exception("a poll of the routes failed")
