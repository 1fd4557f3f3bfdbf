"""Segments of the prediction log become Parquet files by plant and day, and no verdict is lost or counted twice.

What counts is the day's record (`serving.segments`), one object that is replaced at once: files are written and their
rows counted first, then the record names them, then what they were made of is deleted. Killed in between, the next run
deletes what the record does not name, or what it holds already. Writers are not waited for: their next segment has
another name. One compaction at a time, by a lock in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.lock import TTL_S, Claim, locked
from cluster.storage import Store
from plants.errors import CheckFailed
from plants.hashing import sha256
from serving.predictions import SCHEMA
from serving.segments import (
    NUM_READERS,
    PARQUET,
    RECORDS,
    SEGMENTS,
    Record,
    Segment,
    joined,
    load_record,
    parquet_key,
    record_key,
)

BATCH_SEGMENTS = 4000
BATCH_BYTES = 64 << 20
MAX_BATCHES = 8
"""A day that goes on is one file more a run; from so many on they become one. A day that is over is one file."""
RECENT_DAYS = 7
"""Days without new segments that are looked at all the same: to be merged once they are over, or to be tidied."""
_ROW_GROUP = 10_000


@dataclass(frozen=True, slots=True)
class Compacted:
    """What one run did for a day."""

    day: str
    segments: int = 0
    rows: int = 0
    """Of the whole day, all plants together."""
    files: int = 0
    """Written in this run."""
    unreadable: tuple[str, ...] = ()
    """Segments that are not what the log writes; they stay where they are."""


def compact(store: Store, *, today: str, since: str = "", until: str = "9999", ttl_s: float = TTL_S) -> list[Compacted]:
    """Every day from one to another is in Parquet but for what is written meanwhile. Safe to repeat.

    Raises CheckFailed, with nothing deleted, where a file does not hold the rows that it should.
    """
    found = []
    with locked(store, "log", ttl_s=ttl_s) as claim:
        days = {one.day for entry in store.list(SEGMENTS) if (one := Segment.of(entry.key))}
        days |= {entry.key.rpartition("/")[2].removesuffix(".json") for entry in store.list(RECORDS)[-RECENT_DAYS:]}
        for day in sorted(day for day in days if since <= day <= until):
            done = _compact_day(store, day, is_over=day < today, claim=claim)
            if done is not None:
                found.append(done)
    return found


def _compact_day(store: Store, day: str, *, is_over: bool, claim: Claim) -> Compacted | None:
    record = load_record(store, day)
    sizes = {one: entry.size for entry in store.list(f"{SEGMENTS}/{day}") if (one := Segment.of(entry.key))}
    _delete(store, [one.key for one in sizes if record.holds(one)])
    named = {key for plants in record.batches.values() for plant in plants for key in record.keys_of(plant)}
    _delete(store, [e.key for e in store.list(f"{PARQUET}/day={day}") if e.key not in named])
    fresh = sorted(one for one in sizes if not record.holds(one))
    done = Compacted(day)
    for chunk in _chunks(fresh, sizes=sizes):
        record, done = _add(store, record, chunk, done=done, claim=claim)
    if len(record.batches) > (1 if is_over else MAX_BATCHES):
        record, num_files = _merged(store, record, claim=claim)
        done = replace(done, files=done.files + num_files)
    return replace(done, rows=record.num_rows) if done.files or done.unreadable else None


def _chunks(segments: Sequence[Segment], *, sizes: dict[Segment, int]) -> Iterable[list[Segment]]:
    chunk: list[Segment] = []
    num_bytes = 0
    for one in segments:
        if chunk and (len(chunk) == BATCH_SEGMENTS or num_bytes + sizes[one] > BATCH_BYTES):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(one)
        num_bytes += sizes[one]
    if chunk:
        yield chunk


def _add(
    store: Store, record: Record, segments: list[Segment], *, done: Compacted, claim: Claim
) -> tuple[Record, Compacted]:
    """The record that holds these segments too; the segments are gone."""
    with ThreadPoolExecutor(NUM_READERS) as readers:
        tables = list(readers.map(lambda one: read_segment(store, one), segments))
    good = [(one, table) for one, table in zip(segments, tables, strict=True) if table is not None]
    unreadable = tuple(one.key for one, table in zip(segments, tables, strict=True) if table is None)
    if not good:
        return record, replace(done, unreadable=done.unreadable + unreadable)
    rows = pa.concat_tables([table for _, table in good])
    batch = sha256("\n".join(one.key for one, _ in good).encode())[:16]
    plants = _write(store, record.day, batch, rows)
    held = dict(record.held)
    for one, _ in good:
        held[one.owner] = joined([*held.get(one.owner, ()), (one.first, one.last)])
    found = replace(record, batches={**record.batches, batch: plants}, held=held)
    _commit(store, found, claim=claim)
    _delete(store, [one.key for one, _ in good])
    return found, replace(
        done,
        segments=done.segments + len(good),
        files=done.files + len(plants),
        unreadable=done.unreadable + unreadable,
    )


def _merged(store: Store, record: Record, *, claim: Claim) -> tuple[Record, int]:
    """The record whose day is one batch; the batches before are gone. One plant at a time is in memory."""
    batch = sha256("\n".join(sorted(record.batches)).encode())[:16]
    names = sorted({plant for plants in record.batches.values() for plant in plants})
    plants: dict[str, int] = {}
    for plant in names:
        rows = pa.concat_tables([read_parquet(store, key) for key in record.keys_of(plant)])
        plants |= _write(store, record.day, batch, rows)
    expected = {plant: sum(one.get(plant, 0) for one in record.batches.values()) for plant in names}
    if plants != expected:
        raise CheckFailed(f"the log of {record.day} lost rows while it was merged; nothing was deleted")
    found = replace(record, batches={batch: plants})
    _commit(store, found, claim=claim)
    _delete(store, [key for plant in names for key in record.keys_of(plant)])
    return found, len(plants)


def _write(store: Store, day: str, batch: str, rows: pa.Table) -> dict[str, int]:
    """Every plant's rows are a file, sorted by part, read back and the same. Returns plant -> rows."""
    ordered = rows.sort_by([("plant", "ascending"), ("part_id", "ascending"), ("at", "ascending")])
    runs = pc.run_end_encode(ordered["plant"].combine_chunks())
    ends, plants = runs.run_ends.to_pylist(), runs.values.to_pylist()
    pieces = [
        (plant, ordered.slice(start, end - start))
        for plant, start, end in zip(plants, [0, *ends[:-1]], ends, strict=True)
    ]

    def work(piece: tuple[str, pa.Table]) -> tuple[str, int]:
        plant, own = piece
        sink = pa.BufferOutputStream()
        pq.write_table(own, sink, compression="zstd", row_group_size=_ROW_GROUP)
        key, data = parquet_key(day, plant, batch), bytes(sink.getvalue())
        store.write(key, data)
        back = store.read(key)
        if back != data or pq.read_metadata(pa.BufferReader(back)).num_rows != own.num_rows:
            raise CheckFailed(f"{store.at(key)} does not hold the {own.num_rows} rows written; nothing was deleted")
        return plant, int(own.num_rows)

    with ThreadPoolExecutor(NUM_READERS) as writers:
        return dict(writers.map(work, pieces))


def _commit(store: Store, record: Record, *, claim: Claim) -> None:
    claim.check()
    store.write_json(record_key(record.day), record.to_json())
    claim.check()


def _delete(store: Store, keys: Sequence[str]) -> None:
    with ThreadPoolExecutor(NUM_READERS) as workers:
        list(workers.map(store.delete, keys))


def read_segment(store: Store, one: Segment) -> pa.Table | None:
    """The segment's rows, None where it is not what the log writes. Raises MissingFile.

    A column that an older crossplant did not write is null.
    """
    data = store.read(one.key)
    try:
        table = pa.ipc.open_file(data).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError):  # whatever a damaged byte makes of it
        return None
    is_ours = all(SCHEMA.get_field_index(it.name) >= 0 and SCHEMA.field(it.name).equals(it) for it in table.schema)
    if not is_ours or "request_id" not in table.schema.names or table.num_rows != one.num_rows:
        return None
    missing = [it for it in SCHEMA if it.name not in table.schema.names]
    for field in missing:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(SCHEMA.names)


def read_parquet(store: Store, key: str) -> pa.Table:
    """All rows of a compacted file."""
    return pq.read_table(pa.BufferReader(store.read(key)), schema=SCHEMA)
