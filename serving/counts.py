"""Counters of one plant's environment, since the start and in windows, in memory that traffic does not make grow.

A series is one growing total a cell. What a window saw is the difference to the total at the window's beginning, so a
series keeps copies of its totals: one at most for each slot of each window, made when the first count of a slot comes.
A quiet plant makes no copies, and 46 are the most that a busy one has.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

Cell = tuple[str | int, ...]
"""What is counted, e.g. ("verdict", "champion", "ok") or ("latency", 27), a bucket."""
Totals = dict[Cell, int]
Key = tuple[str, str]
"""Plant and environment."""

WINDOWS: Mapping[str, tuple[int, int]] = {"1m": (60, 10), "5m": (300, 60), "1h": (3600, 600), "24h": (86_400, 3600)}
"""Seconds of a window and of its slots: a window begins with a slot, so it is up to a slot longer than it says."""
_TICK_S = 10
MAX_SERIES = 4096
MAX_NAMES = 64
"""Names of one kind (defects, statuses) in a series; later ones are counted together."""
OTHER = "(other)"


class Series:
    """The counters of one environment of one plant."""

    __slots__ = ("_marks", "totals")

    def __init__(self) -> None:
        self.totals: Totals = {}
        self._marks: list[tuple[int, array[int]]] = []

    def open_slot(self, at: float) -> None:
        """What is counted from now on belongs to the slot of this time."""
        tick = int(at // _TICK_S)
        if not self._marks or self._marks[-1][0] < tick:
            values = list(self.totals.values())
            self._marks.append((tick, array("I" if max(values, default=0) < 1 << 32 else "Q", values)))
            if len(self._marks) > 50:
                self._marks = _thinned(self._marks, tick=tick)

    def add(self, counts: Mapping[Cell, int], *, at: float) -> None:
        """So much more was counted, at this time."""
        self.open_slot(at)
        for cell, count in counts.items():
            self.totals[cell] = self.totals.get(cell, 0) + count

    def add_history(self, counts: Mapping[Cell, int]) -> None:
        """So much more was counted since the start, nobody knows when: no window holds it."""
        before = [dict(zip(self.totals, values, strict=False)) for _, values in self._marks]
        for cell, count in counts.items():
            self.totals[cell] = self.totals.get(cell, 0) + count
        for number, (tick, _) in enumerate(self._marks):
            values = [before[number].get(cell, 0) + counts.get(cell, 0) for cell in self.totals]
            self._marks[number] = (tick, array("Q", values))

    def window(self, name: str, *, now: float) -> Totals:
        """What a window that ends now saw; cells that saw nothing are not in it."""
        window_s, step_s = WINDOWS[name]
        edge = int((now - window_s) // step_s) * step_s
        found = next((values for tick, values in self._marks if tick * _TICK_S >= edge), None)
        if found is None:
            return {}
        known = len(found)
        differences = (
            (cell, total - found[place] if place < known else total)
            for place, (cell, total) in enumerate(self.totals.items())
        )
        return {cell: count for cell, count in differences if count}


def _thinned(marks: list[tuple[int, array[int]]], *, tick: int) -> list[tuple[int, array[int]]]:
    """The first copy in each slot of each window that still reaches so far back."""
    kept: list[tuple[int, array[int]]] = []
    seen: set[tuple[int, int]] = set()
    for mark in marks:
        at = mark[0] * _TICK_S
        slots = {
            (step_s, at // step_s) for window_s, step_s in WINDOWS.values() if at >= tick * _TICK_S - window_s - step_s
        }
        if slots - seen:
            kept.append(mark)
        seen |= slots
    return kept


class Counts:
    """The series of all plants. Not thread-safe."""

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self._series: dict[Key, Series] = {}
        self._max_series = max_series

    def series(self, key: Key) -> tuple[Key, Series]:
        """The series of a plant's environment and the name that it is kept by: one more than the limit is `OTHER`."""
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= self._max_series and key != (OTHER, ""):
                return self.series((OTHER, ""))
            found = self._series[key] = Series()
        return key, found

    def of_plant(self, plant: str) -> dict[str, Series]:
        """The plant's series by environment, those alone that were counted."""
        return {environment: one for (name, environment), one in sorted(self._series.items()) if name == plant}

    def items(self) -> Iterator[tuple[Key, Series]]:
        """Every series, sorted by plant and environment."""
        return iter(sorted(self._series.items(), key=lambda item: item[0]))

    def __len__(self) -> int:
        return len(self._series)
