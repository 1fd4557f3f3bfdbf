"""Where the counters of several replicas meet: a Ray actor, so that the answer of any one replica speaks for all.

Twice a second a replica posts the totals of the cells that changed since its last post; the board adds the differences
to its own counters and keeps the windows. Totals make a post that arrives twice harmless, and what a dead replica
counted stays.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from serving.counts import Cell, Counts, Key, Totals
from serving.exposition import Condition, prometheus_text
from serving.telemetry import Telemetry, plant_report

log = logging.getLogger("crossplant.serving")

APP = "crossplant"
POST_S = 0.5
GONE_S = 15.0
"""A replica that has not posted for so long is no longer shown; what it counted stays."""
FORGET_S = 3600.0
"""After so long without a post its totals are no longer held for comparison: of a thousand plants they are megabytes,
and each replica has a name of its own. One that comes back all the same counts anew from its first post."""
_TEXT_S = 1.0


class View(Protocol):
    """Everything that was counted, by whichever replicas."""

    def report(self, plant: str) -> dict[str, Any]:
        """The JSON of a plant's counters."""

    def text(self) -> bytes:
        """Every plant's counters as Prometheus text."""


class OwnView:
    """What this replica counted: all there is where it is the only one."""

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        replica: str,
        condition: Callable[[], Condition],
        takt_s: Callable[[], Mapping[str, float]],
    ) -> None:
        self._telemetry, self._replica = telemetry, replica
        self.condition, self.takt_s = condition, takt_s

    def report(self, plant: str) -> dict[str, Any]:
        """The JSON of a plant's counters."""
        return self._telemetry.report(plant)

    def text(self) -> bytes:
        """Every plant's counters as Prometheus text."""
        conditions, takt_s = {self._replica: self.condition()}, self.takt_s()
        return self._telemetry.read(
            lambda counts, now: prometheus_text(counts, now=now, conditions=conditions, takt_s=takt_s)
        )


class Board:
    """A Ray actor that keeps the sum of what all replicas counted, also of those that are gone."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._id = uuid.uuid4().hex
        self._counts = Counts()
        self._posted: dict[str, dict[Key, Totals]] = {}
        self._returned: set[str] = set()
        self._cells: dict[Cell, Cell] = {}
        """One tuple for a cell of all series; every message brings its own."""
        self._seen: dict[str, tuple[float, Condition]] = {}
        self._takt_s: dict[str, float] = {}
        self._text: tuple[float, bytes] = (-_TEXT_S, b"")

    def post(
        self,
        replica: str,
        totals: Mapping[Key, Totals],
        *,
        condition: Condition,
        takt_s: Mapping[str, float] | None = None,
        known: str = "",
        is_history: bool = False,
    ) -> str:
        """This replica's totals are on the board, whose identity is returned.

        Nothing is taken when the replica knew another board before (`known`): it must send everything then, as history,
        because it was counted before this board stood and belongs to no window.
        """
        if known not in ("", self._id):
            return self._id
        now = self._clock()
        if replica not in self._posted:
            self._forget_gone(now)
            if known:
                self._returned.add(replica)
        posted, is_back = self._posted.setdefault(replica, {}), replica in self._returned
        for key, cells in totals.items():
            before, grown = posted.setdefault(key, {}), {}
            for brought, count in cells.items():
                cell = self._cells.setdefault(brought, brought)
                more = count - before.get(cell, count if is_back else 0)
                if more < 0:  # a post that a later one overtook
                    continue
                before[cell] = count
                if more:
                    grown[cell] = more
            _, series = self._counts.series(key)
            if is_history:
                series.add_history(grown)
            elif grown:
                series.add(grown, at=now)
        self._seen[replica] = (now, condition)
        self._takt_s.update(takt_s or {})
        return self._id

    def _forget_gone(self, now: float) -> None:
        """A new replica mostly comes for one that is gone."""
        for replica in [who for who, (at, _) in self._seen.items() if now - at > FORGET_S]:
            del self._seen[replica], self._posted[replica]
            self._returned.discard(replica)

    @property
    def num_held(self) -> int:
        """Series whose totals are held for comparison, of all replicas."""
        return sum(len(series) for series in self._posted.values())

    def report(self, plant: str) -> dict[str, Any]:
        """The JSON of a plant's counters, over all replicas."""
        return plant_report(plant, self._counts, now=self._clock())

    def text(self) -> bytes:
        """Every plant's counters as Prometheus text, over all replicas; at most a second old."""
        now = self._clock()
        if not 0 <= now - self._text[0] < _TEXT_S:
            here = {who: condition for who, (at, condition) in self._seen.items() if now - at < GONE_S}
            self._text = now, prometheus_text(self._counts, now=now, conditions=here, takt_s=self._takt_s)
        return self._text[1]


def _board(fleet: str) -> Any:
    import ray

    return (
        ray.remote(Board)
        .options(name=f"{APP}-board-{fleet}", namespace=APP, get_if_exists=True, lifetime="detached", num_cpus=0)
        .remote()
    )


class Poster:
    """Posts a replica's counters on the board and reads everybody's. A board that is away costs nothing but news."""

    def __init__(self, fleet: str, *, replica: str, telemetry: Telemetry, own: OwnView) -> None:
        self._fleet, self._replica = fleet, replica
        self._telemetry, self._own = telemetry, own
        self._turn = threading.Lock()
        self._handle: Any = None
        self._board_id = ""
        self._takt_s: Mapping[str, float] = {}
        threading.Thread(target=self._work, name="board", daemon=True).start()

    def report(self, plant: str) -> dict[str, Any]:
        """The JSON of a plant's counters, over all replicas; of this one alone while the board is away."""
        found = self._asked(lambda board: board.report.remote(plant))
        return self._own.report(plant) if found is None else found

    def text(self) -> bytes:
        """Every plant's counters as Prometheus text, likewise."""
        found = self._asked(lambda board: board.text.remote())
        return self._own.text() if found is None else found

    def _asked(self, question: Callable[[Any], Any]) -> Any:
        import ray

        try:
            self._post()
            return ray.get(question(self._board()), timeout=5)
        except Exception as error:
            log.warning("the counters of other replicas are missing (%s)", type(error).__name__)
            return None

    def _post(self) -> None:
        """Everything counted until now is on the board. Raises when it is away."""
        with self._turn:
            known = self._board_id
            found = self._send(known=known)
            if known not in ("", found):
                self._telemetry.all_changed()
                self._takt_s = {}
                self._send(is_history=True)
            self._board_id = found

    def _send(self, *, known: str = "", is_history: bool = False) -> str:
        import ray

        totals, takt_s = self._telemetry.changed(), self._own.takt_s()
        words = {
            "condition": self._own.condition(),
            "takt_s": None if takt_s == self._takt_s else takt_s,
            "known": known,
            "is_history": is_history,
        }
        try:
            found: str = ray.get(self._board().post.remote(self._replica, totals, **words), timeout=5)
        except Exception:
            self._telemetry.unposted(totals)
            self._handle = None
            raise
        self._takt_s = takt_s
        return found

    def _board(self) -> Any:
        if self._handle is None:
            self._handle = _board(self._fleet)
        return self._handle

    def _work(self) -> None:
        while True:
            time.sleep(POST_S)
            with contextlib.suppress(Exception):  # the next post carries it
                self._post()


def end_board(fleet: str) -> None:
    """The board is gone, if there was one."""
    import ray

    with contextlib.suppress(ValueError):  # no replica has counted anything yet
        ray.kill(ray.get_actor(f"{APP}-board-{fleet}", namespace=APP))
