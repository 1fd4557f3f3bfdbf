"""Verdicts that were given and are not in the log: which, whose, and what became of them. Pure.

Sequences of an owner have no hole, so what is missing between two that are there is missing; what is missing after the
last is known where the owner, or who found its spool, left a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serving.segments import Index, Note, Range, Segment, joined, without

WAITS = "waits in the spool of this machine"
DROPPED = "dropped: the spool was full, or the row could not be written"
KILLED = "lost: the process was killed before it wrote them"
LOST = "lost: neither in the store nor in the spool when the process ended"
UNKNOWN = "not here yet: the process runs and may still send them, or its machine is gone"
FOR_GOOD = (DROPPED, KILLED, LOST)


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """Sequences of one owner that are not in the store."""

    owner: str
    first: int
    last: int
    since: str
    """The day of the last verdict before the gap."""
    until: str
    """The day of the first verdict after it, or on which its owner ended."""
    why: str

    @property
    def num_rows(self) -> int:
        """Verdicts that are missing."""
        return self.last - self.first + 1

    @property
    def is_lost(self) -> bool:
        """Whether they will never come."""
        return self.why in FOR_GOOD

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "replica": self.owner.partition("@")[0], "rows": self.num_rows, "is_lost": self.is_lost}


def gaps(index: Index, *, spooled: Iterable[Segment] = (), is_whole: bool = True) -> list[Gap]:
    """Everything that is missing, by owner. `is_whole`: the index begins with the log's first day."""
    there: dict[str, dict[str, list[Range]]] = {}
    for record in index.records.values():
        for owner, ranges in record.held.items():
            there.setdefault(owner, {}).setdefault(record.day, []).extend(ranges)
    for one in index.segments:
        there.setdefault(one.owner, {}).setdefault(one.day, []).append((one.first, one.last))
    waiting: dict[str, list[Range]] = {}
    for one in spooled:
        waiting.setdefault(one.owner, []).append((one.first, one.last))
    owners = sorted({*there, *waiting, *(index.notes if is_whole else ())})
    return [
        gap
        for owner in owners
        for gap in _of_owner(
            owner, there.get(owner, {}), note=index.notes.get(owner), waiting=waiting.get(owner, []), is_whole=is_whole
        )
    ]


def _of_owner(
    owner: str, there: Mapping[str, list[Range]], *, note: Note | None, waiting: list[Range], is_whole: bool
) -> list[Gap]:
    held = joined(one for ranges in there.values() for one in ranges)
    first = 1 if is_whole or not held else held[0][0]
    last = max([end for _, end in (*held, *waiting)] + [note.issued if note else 0])
    found = []
    for start, end in without([(first, last)], held) if last >= first else ():
        since, until = _days(there, start, end, ended=note.at[:10] if note else "")
        left = joined([(start, end)])
        is_tail = note is not None and end == note.issued
        for ranges, why in (
            (waiting, WAITS),
            (note.dropped if note else (), DROPPED),
            ([(start, end)], _otherwise(note, is_tail=is_tail)),
        ):
            rest = without(left, ranges)
            found += [Gap(owner, a, b, since, until, why) for a, b in without(left, rest)]
            left = rest
    return sorted(found)


def _otherwise(note: Note | None, *, is_tail: bool) -> str:
    if note is None or not note.ended:
        return UNKNOWN
    return KILLED if note.ended == "killed" and is_tail else LOST


def _days(there: Mapping[str, list[Range]], start: int, end: int, *, ended: str) -> tuple[str, str]:
    before = [day for day, ranges in there.items() for first, _ in ranges if first < start]
    after = [day for day, ranges in there.items() for _, last in ranges if last > end]
    since = max(before, default=min(after, default=ended))
    return since, min(after, default=max(ended, since))
