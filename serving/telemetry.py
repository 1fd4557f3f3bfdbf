"""Counters per plant and environment: requests, verdicts, classes, confidence, novelty, latency, review, arm, errors.

A request only puts what happened on a queue: no lock, no dictionary, no I/O, about a microsecond. A thread folds the
queue into counters twice a second, in blocks. Several replicas' counters meet on a board (`serving.board`), so the
answer of any one replica speaks for all of them; Prometheus must scrape the address, not each replica.

Cardinality is the cost of metrics: environments are those that the plant declares, a plant that is not ours is counted
without a name, names of classes and the number of series are bounded (`serving.counts`), and histograms stay in the
JSON: the Prometheus text holds counters and quantiles of the last five minutes (`serving.exposition`).
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from serving.counts import MAX_NAMES, MAX_SERIES, OTHER, WINDOWS, Cell, Counts, Key, Series, Totals
from serving.tally import (
    CONFIDENCE_UNIT,
    LATENCY_UNIT_MS,
    NUM_CONFIDENCE_BINS,
    Tally,
    confidence_bin,
    latency_bucket,
    novelty_bucket,
)

log = logging.getLogger("crossplant.serving")

FLUSH_S = 0.5
BLOCK = 20_000
"""So many events wait at most; one more, and they are folded at once by whoever brought it."""

_CONFIDENCE: tuple[Cell, ...] = tuple(("confidence", place) for place in range(NUM_CONFIDENCE_BINS))
_FRAMES: Cell = ("frames",)
_LATE: Cell = ("late",)
_LATENCY_SUM: Cell = ("latency_sum",)
_CONFIDENCE_SUM: Cell = ("confidence_sum",)


class _Answered(NamedTuple):
    at: float
    key: Key
    verdict: str
    defect: str | None
    confidence: float
    latency_ms: float
    frames: int
    novelty: float | None
    arm: str
    is_late: bool


class Telemetry:
    """The counters of one replica. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.time, max_series: int = MAX_SERIES) -> None:
        self._clock = clock
        self._queue: deque[tuple[Any, ...]] = deque()
        self._counts = Counts(max_series=max_series)
        self._changed: dict[Key, set[Cell]] = {}
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """A thread folds what is counted, twice a second, until `close`."""
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The thread has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def answered(
        self,
        plant: str,
        environment: str,
        *,
        verdict: str,
        defect: str | None,
        confidence: float,
        latency_ms: float,
        frames: int = 1,
        novelty: float | None = None,
        arm: str = "champion",
        is_late: bool = False,
    ) -> None:
        """One verdict is counted. `is_late`: the answer is the plant's `on_timeout`, so it has no confidence."""
        self._queue.append(
            (
                self._clock(),
                (plant, environment),
                verdict,
                defect,
                confidence,
                latency_ms,
                frames,
                novelty,
                arm,
                is_late,
            )
        )
        if len(self._queue) > BLOCK:
            self.fold()

    def refused(self, plant: str, environment: str, *, status: int) -> None:
        """One request without a verdict is counted. Pass "" for a plant that is not ours."""
        self._queue.append((self._clock(), (plant, environment), status))
        if len(self._queue) > BLOCK:
            self.fold()

    def fold(self) -> None:
        """Everything that was counted before this call is in the counters."""
        with self._turn:
            for _ in range(len(self._queue)):
                event = self._queue.popleft()
                key, series = self._counts.series(event[1])
                series.open_slot(event[0])
                changed = self._changed.setdefault(key, set())
                if len(event) == 3:
                    _add(series, _named(series, "error", str(event[2])), changed)
                    continue
                try:
                    _count(series, _Answered._make(event), changed)
                except ValueError:  # not a number: the thread must count on
                    log.exception("a verdict of plant %s cannot be counted in full", event[1][0])

    def changed(self) -> dict[Key, Totals]:
        """The totals of every cell that was counted in since the last call, to be posted."""
        self.fold()
        with self._turn:
            changed, self._changed = self._changed, {}
            found = {}
            for key, cells in changed.items():
                totals = self._counts.series(key)[1].totals
                found[key] = {cell: totals[cell] for cell in cells}
            return found

    def all_changed(self) -> None:
        """The next `changed` holds every series."""
        with self._turn:
            self._changed = {key: set(series.totals) for key, series in self._counts.items()}

    def unposted(self, totals: Mapping[Key, Totals]) -> None:
        """The next `changed` holds these again: they did not arrive."""
        with self._turn:
            for key, cells in totals.items():
                self._changed.setdefault(key, set()).update(cells)

    def report(self, plant: str) -> dict[str, Any]:
        """The JSON of the plant, as counted here."""
        self.fold()
        with self._turn:
            return plant_report(plant, self._counts, now=self._clock())

    def read(self, work: Callable[[Counts, float], bytes]) -> bytes:
        """What a reader makes of the counters and the time, while nothing is folded."""
        self.fold()
        with self._turn:
            return work(self._counts, self._clock())

    def _work(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self.fold()


def _count(series: Series, event: _Answered, changed: set[Cell]) -> None:
    _add(series, _cell("verdict", event.arm, event.verdict), changed)
    _add(series, _FRAMES, changed, event.frames)
    _add(series, _cell("latency", latency_bucket(event.latency_ms)), changed)
    _add(series, _LATENCY_SUM, changed, round(event.latency_ms / LATENCY_UNIT_MS))
    _add(series, _CONFIDENCE[confidence_bin(event.confidence)], changed)
    _add(series, _CONFIDENCE_SUM, changed, round(event.confidence / CONFIDENCE_UNIT))
    if event.defect is not None:
        _add(series, _named(series, "defect", event.defect), changed)
    if event.novelty is not None:
        _add(series, _cell("novelty", novelty_bucket(event.novelty)), changed)
    if event.is_late:
        _add(series, _LATE, changed)


@functools.cache
def _cell(*words: str | int) -> Cell:
    """One tuple for a cell of all series: the same object is small in memory and on the wire."""
    return words


def _named(series: Series, kind: str, name: str) -> Cell:
    """The cell of a name, which is `OTHER` where the series knows too many."""
    if (kind, name) in series.totals:
        return _cell(kind, name)
    num_known = sum(cell[0] == kind for cell in series.totals)
    return _cell(kind, name if num_known < MAX_NAMES else OTHER)


def _add(series: Series, cell: Cell, changed: set[Cell], count: int = 1) -> None:
    totals = series.totals
    totals[cell] = totals.get(cell, 0) + count
    changed.add(cell)


def plant_report(plant: str, counts: Counts, *, now: float) -> dict[str, Any]:
    """The JSON of `GET /plants/{plant}/metrics`: one entry per environment that was asked or refused.

    An environment says what was counted since the start, and under `windows` the same of the last minute, five minutes,
    hour and day.
    """
    environments = {
        name: {
            **Tally(series.totals).document(),
            "windows": {window: Tally(series.window(window, now=now)).document() for window in WINDOWS},
        }
        for name, series in counts.of_plant(plant).items()
    }
    return {
        "plant": plant,
        "requests": sum(one["requests"] for one in environments.values()),
        "errors": sum(sum(one["errors"].values()) for one in environments.values()),
        "environments": environments,
    }
