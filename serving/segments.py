"""Where the prediction log lies in a store, and which sequences of which replica each piece of it holds.

    log/segments/DAY/OWNER-FIRST-LAST.arrow      what a replica wrote, one file a flush, all plants together
    log/parquet/day=DAY/plant=PLANT/BATCH.parquet   the same, compacted
    log/compacted/DAY.json                       which batches count, and which sequences they hold: the only truth
    log/notes/OWNER.json                         what a replica says of itself: how far it counted, how it ended

An owner is one process of one replica. A segment holds every sequence from FIRST to LAST, so names alone tell what is
missing. A segment whose sequences the day's record holds is a leftover and never read; nor is a batch that it does not
name. Days are those of UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import MissingFile, Store

Range = tuple[int, int]
"""First and last sequence, both there."""
SEGMENTS, PARQUET, RECORDS, NOTES = "log/segments", "log/parquet", "log/compacted", "log/notes"
_SEGMENT = re.compile(r"(?:.*/)?(\d{4}-\d\d-\d\d)[/_](?:(.+)-)?(\d+)-(\d+)\.arrow")
NUM_READERS = 16


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """The name of a segment, which says what it holds."""

    day: str
    owner: str
    first: int
    last: int

    @property
    def key(self) -> str:
        """Where it lies in the store."""
        return f"{SEGMENTS}/{self.day}/{self.owner}-{self.first}-{self.last}.arrow"

    @property
    def num_rows(self) -> int:
        """How many verdicts it holds."""
        return self.last - self.first + 1

    @classmethod
    def of(cls, key: str, *, owner: str = "") -> Segment | None:
        """The segment of this key, or of a spool's file name and its owner; None where it is none."""
        found = _SEGMENT.fullmatch(key)
        return cls(found[1], found[2] or owner, int(found[3]), int(found[4])) if found else None


@dataclass(frozen=True, slots=True)
class Record:
    """What of one day is compacted."""

    day: str
    batches: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Batch -> plant -> rows."""
    held: Mapping[str, tuple[Range, ...]] = field(default_factory=dict)
    """Owner -> its sequences of this day."""

    def holds(self, segment: Segment) -> bool:
        """Whether every row of the segment is in a batch."""
        return any(first <= segment.first and segment.last <= last for first, last in self.held.get(segment.owner, ()))

    def keys_of(self, plant: str) -> list[str]:
        """The plant's files of this day."""
        return [parquet_key(self.day, plant, batch) for batch, plants in self.batches.items() if plant in plants]

    @property
    def num_rows(self) -> int:
        """Verdicts of all plants."""
        return sum(sum(plants.values()) for plants in self.batches.values())

    def to_json(self) -> dict[str, Any]:
        """As it lies in the store."""
        return {"day": self.day, "batches": self.batches, "held": self.held}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Record:
        """What `to_json` wrote."""
        held = {owner: tuple((int(a), int(b)) for a, b in ranges) for owner, ranges in raw["held"].items()}
        return cls(str(raw["day"]), raw["batches"], held)


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of an owner beside its segments."""

    owner: str
    issued: int
    """The last sequence that it gave a request."""
    dropped: tuple[Range, ...] = ()
    """Sequences whose verdicts it could not keep, because its spool was full."""
    ended: str = ""
    """`closed`, `killed`, or nothing while it runs."""
    at: str = ""

    @property
    def key(self) -> str:
        """Where it lies in the store."""
        return f"{NOTES}/{self.owner}.json"

    def to_bytes(self) -> bytes:
        """As it lies in the store."""
        words = {name: getattr(self, name) for name in ("owner", "issued", "dropped", "ended", "at")}
        return json.dumps(words).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Note:
        """What `to_bytes` wrote."""
        raw = json.loads(data)
        dropped = tuple((int(a), int(b)) for a, b in raw["dropped"])
        return cls(str(raw["owner"]), int(raw["issued"]), dropped, str(raw["ended"]), str(raw["at"]))


@dataclass(frozen=True, slots=True)
class Index:
    """All names of the log: what is there, without reading a row."""

    records: Mapping[str, Record]
    segments: tuple[Segment, ...]
    """Those alone that no record holds."""
    notes: Mapping[str, Note]

    @property
    def days(self) -> list[str]:
        """Every day that has a verdict."""
        return sorted({*self.records, *(segment.day for segment in self.segments)})


def load_index(store: Store, *, since: str = "", until: str = "9999") -> Index:
    """The log's names from one day to another, both with. Segments are listed first: what is compacted meanwhile is
    then found in the record.
    """
    listed = [
        found for entry in store.list(SEGMENTS) if (found := Segment.of(entry.key)) and since <= found.day <= until
    ]
    days = [entry.key.rpartition("/")[2].removesuffix(".json") for entry in store.list(RECORDS)]
    with ThreadPoolExecutor(NUM_READERS) as readers:
        wanted = [day for day in days if since <= day <= until]
        records = dict(zip(wanted, readers.map(lambda day: load_record(store, day), wanted), strict=True))
        notes = [Note.from_bytes(data) for data in readers.map(store.read, [entry.key for entry in store.list(NOTES)])]
    none = Record("")
    fresh = tuple(sorted(s for s in listed if not records.get(s.day, none).holds(s)))
    return Index(records, fresh, {note.owner: note for note in notes})


def load_record(store: Store, day: str) -> Record:
    """The day's record; an empty one where nothing is compacted."""
    try:
        return Record.from_json(store.read_json(record_key(day)))
    except MissingFile:
        return Record(day)


def record_key(day: str) -> str:
    """Where a day's record lies."""
    return f"{RECORDS}/{day}.json"


def parquet_key(day: str, plant: str, batch: str) -> str:
    """Where a plant's verdicts of a batch lie."""
    return f"{PARQUET}/day={day}/plant={plant}/{batch}.parquet"


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same sequences in as few ranges as there can be, in order."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def without(ranges: Iterable[Range], taken: Iterable[Range]) -> tuple[Range, ...]:
    """The sequences of the first that are not among the second."""
    left = list(joined(ranges))
    for start, end in joined(taken):
        left = [
            piece
            for first, last in left
            for piece in ((first, min(last, start - 1)), (max(first, end + 1), last))
            if piece[0] <= piece[1] and not (start <= piece[0] and piece[1] <= end)
        ]
    return joined(left)
