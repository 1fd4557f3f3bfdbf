"""Which model, policy and frames judged a part: found in the log by the part's id, compacted or not.

Only the files of the plant and the days asked for are opened, and of those only the row groups that may hold the part:
compacted files are sorted by part. What is compacted while it is read is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from cluster.database import DatabaseAway
from cluster.registry import Journal, Route
from cluster.storage import MissingFile, Store
from plants.errors import InputError
from serving.compaction import read_segment
from serving.predictions import SCHEMA
from serving.segments import NUM_READERS, Index, load_index

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Found:
    """What the log says of a part."""

    rows: list[dict[str, Any]]
    """Every judgement of it, the oldest first, as the log's rows."""
    index: Index
    """The names that were looked through."""


def find(store: Store, *, plant: str, part_id: str, since: str = "", until: str = "9999") -> Found:
    """Every judgement of a part, or of one request by its id, from one day to another, both with."""
    for attempt in range(_TRIES):
        index = load_index(store, since=since, until=until)
        try:
            rows = _compacted(store, index, plant=plant, part_id=part_id)
            rows += _fresh(store, index, plant=plant, part_id=part_id)
            return Found(sorted(rows, key=lambda row: (row["at"], row["sequence"])), index)
        except FileNotFoundError:  # compacted, or merged, between the look at the names and the reading
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _compacted(store: Store, index: Index, *, plant: str, part_id: str) -> list[dict[str, Any]]:
    keys = [key for record in index.records.values() for key in record.keys_of(plant)]
    if not keys:
        return []
    filesystem, root = store.filesystem()
    files = ds.dataset([f"{root}/{key}" for key in keys], schema=SCHEMA, format="parquet", filesystem=filesystem)
    return _rows(files.to_table(filter=(ds.field("part_id") == part_id) | (ds.field("request_id") == part_id)))


def _fresh(store: Store, index: Index, *, plant: str, part_id: str) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(NUM_READERS) as readers:
        tables = readers.map(lambda one: read_segment(store, one), index.segments)
        kept = []
        for table in tables:
            if table is not None:
                is_it = pc.or_(pc.equal(table["part_id"], part_id), pc.equal(table["request_id"], part_id))
                kept.append(table.filter(pc.and_(pc.equal(table["plant"], plant), pc.fill_null(is_it, False))))
    return _rows(pa.concat_tables(kept)) if kept else []


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{**row, "probabilities": dict(row["probabilities"] or ())} for row in table.to_pylist()]


def judged_by(store: Store, journal: Journal, *, plant: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with `model` {bundle, policy, arm, name, kind} and `route` {sequence, action, who, at}, or why not."""
    try:
        routes, problem = journal.history(plant), None
    except DatabaseAway as error:
        routes, problem = [], str(error)
    names = {digest: _named(store, digest) for digest in {row["bundle"] for row in rows}}
    found = []
    for row in rows:
        route = _route_of(row, routes)
        said = route.model_dump(include={"sequence", "action", "who", "at"}) if route else None
        model = {"bundle": row["bundle"], "policy": row["policy"], "arm": row["arm"], **names[row["bundle"]]}
        found.append({**row, "at": row["at"].isoformat(timespec="milliseconds"), "model": model, "route": said})
        if said is None:
            found[-1]["route_problem"] = problem or "the journal has no such route before that time"
    return found


def _route_of(row: dict[str, Any], routes: Sequence[Route]) -> Route | None:
    """The newest route of this bundle and policy that was decided before the verdict."""
    at = row["at"].isoformat(timespec="milliseconds")
    fits = (
        route
        for route in reversed(routes)
        if row["bundle"] in (route.bundle, route.challenger) and route.policy == row["policy"] and route.at <= at
    )
    return next(fits, None)


def _named(store: Store, digest: str) -> dict[str, Any]:
    try:
        manifest = store.read_json(f"bundles/{digest}/manifest.json")
    except MissingFile:
        return {"name": None, "kind": None}
    except InputError as error:
        return {"name": None, "kind": None, "problem": str(error)}
    return {"name": manifest.get("name"), "kind": manifest.get("kind")}
