"""The recorded tables of a fleet in its store: label rows, split assignments, and the sealed labels of test rows.

The seal is a store of its own, so that a credential can end before it. It is written at import, which also reads it to
tell corrections, and opened for the one job that evaluates, after its ledger has counted the opening.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from cluster import snapshots
from cluster.storage import Store, open_store
from plants import copies, splits
from plants.copies import Quarantined
from plants.errors import InputError
from plants.hashing import sha256
from plants.labels import from_parquet
from plants.plant import Fleet

ASSIGNMENTS = "assignments.parquet"
DEALT = "assignments-head.json"
"""In the seal, the digest of the record's end: a record that lost it, or is gone, deals nothing and opens nothing."""
CORRECTIONS = "corrections.jsonl"


class Catalog:
    """Reads and writes the recorded tables of one fleet."""

    def __init__(self, store: Store, *, seal: Store | None = None) -> None:
        self.store = store
        self.seal = seal or open_store(store.at("sealed"))
        self._verified: tuple[str, pd.DataFrame] | None = None
        """The record whose chain was followed last, by its file's digest: it holds every plant's lots."""
        self._parsed: dict[str, tuple[str, Any]] = {}
        """By key, the version it was read in and what it held."""

    @classmethod
    def of(cls, fleet: Fleet) -> Catalog:
        """The catalog of a fleet; contacts nothing."""
        return cls(open_store(fleet.store), seal=open_store(fleet.sealed) if fleet.sealed else None)

    def assignments(self) -> pd.DataFrame | None:
        """The fleet's split assignments, their chain verified; None before the first import."""
        if not self.store.exists(ASSIGNMENTS):
            return None
        data = self.store.read(ASSIGNMENTS)
        digest, known = sha256(data), self._verified
        if known is None or known[0] != digest:
            table = pd.read_parquet(io.BytesIO(data))
            splits.verify(table)
            self._verified = known = (digest, table)
        return known[1].copy()

    def checked_record(self) -> pd.DataFrame:
        """The split assignments, empty before the first import.

        Raises InputError where they lack what they held at the last import. Needs a key to the seal.
        """
        record = self.assignments()
        if record is None:
            if self.store.list("labels"):
                raise splits.tampered("the record of which lot plays which role is gone")
            return splits.no_assignments()  # a new store, also where its seal has served another one
        splits.check_contains(
            record, self.seal.read_json(DEALT)["digest"] if self.seal.exists(DEALT) else splits.GENESIS
        )
        return record

    def versions(self) -> dict[str, str]:
        """Key -> version of every plant's recorded rows and quarantine, by a listing; a digest where it cannot tell.

        An import of one of a thousand plants needs all others: what is as it was listed before is not read again.
        """
        entries = [entry for folder in ("labels", "quarantine") for entry in self.store.list(folder)]
        return {entry.key: entry.version or sha256(self.store.read(entry.key)) for entry in entries}

    def require(self, plants: Sequence[str]) -> None:
        """Raises InputError for the first of these plants that has not been imported."""
        there = {entry.key for entry in self.store.list("labels")}
        for plant in plants:
            if labels_key(plant) not in there:
                raise _not_imported(plant)

    def rows(self, plant: str) -> pd.DataFrame:
        """The plant's label rows with their role; the class of test rows is null. Raises InputError before import.

        A row that plays no role because it shows what another one shows has `plants.copies.QUARANTINE` for one.
        """
        assignments, recorded = self.assignments(), self.recorded(plant)
        if assignments is None or recorded is None:
            raise _not_imported(plant)
        return copies.apart(splits.with_roles(recorded, assignments), self.quarantined(plant))

    def sealed(self, plant: str) -> pd.DataFrame:
        """The answers of the plant's test rows. Asked by import, and by `jobs/evaluate.py` once that is counted."""
        return pd.read_parquet(io.BytesIO(self.seal.read(f"{plant}.parquet")))

    def corrections(self) -> str:
        """What was changed in the sealed answers since they were sealed, a JSON object a line; empty at first."""
        return self.seal.read(CORRECTIONS).decode() if self.seal.exists(CORRECTIONS) else ""

    def data_digest(self, plants: Sequence[str]) -> str:
        """Names what can be learned from: frames, labels and roles of the train and select rows of these plants."""
        return snapshots.data_digest({name: self.rows(name) for name in plants})

    def snapshot(self, plant: str) -> str:
        """The digest of the plant's train and select rows as they are now, which are kept under it."""
        return snapshots.keep(self.rows(plant), store=self.store)

    def learned(self, plant: str, *, digest: str | None) -> pd.DataFrame:
        """The train and select rows that were kept under a digest; of None, a plan of before there were, today's."""
        if digest is None:
            rows = self.rows(plant)
            return rows[rows["role"].isin(snapshots.LEARNED)]
        return snapshots.read(digest, store=self.store)

    def recorded(self, plant: str, *, versions: Mapping[str, str] | None = None) -> pd.DataFrame | None:
        """The plant's label rows without roles, None before its first import. versions: As listed, read once each."""
        found: pd.DataFrame | None = self._read(labels_key(plant), parse=from_parquet, versions=versions)
        return None if found is None else found.copy(deep=False)

    def check_seal(self) -> None:
        """Raises InputError where the seal was given another place after answers were sealed in the store."""
        if self.seal.uri != self.store.at("sealed") and self.store.list("sealed"):
            raise InputError(
                "answers and ledger of the sealed test still lie in the store",
                file=self.store.at("sealed"),
                field="sealed",
                remedy=f"Move what is there to {self.seal.uri}",
            )

    def quarantined(self, plant: str, *, versions: Mapping[str, str] | None = None) -> dict[str, Quarantined]:
        """Frames that play no role, and why. versions: As listed, read once each."""
        rows = self._read(f"quarantine/{plant}.json", parse=json.loads, versions=versions) or []
        return {row["frame"]: Quarantined(**row) for row in rows}

    def _read(self, key: str, *, parse: Callable[[bytes], Any], versions: Mapping[str, str] | None) -> Any:
        """What an object holds, None where there is none."""
        if versions is None:
            return parse(self.store.read(key)) if self.store.exists(key) else None
        if key not in versions:
            return None
        if self._parsed.get(key, ("",))[0] != versions[key]:
            self._parsed[key] = versions[key], parse(self.store.read(key))
        return self._parsed[key][1]

    def write(self, key: str, table: pd.DataFrame, *, store: Store | None = None) -> None:
        """A table is in the store, or in another one, as Parquet."""
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        (store or self.store).write(key, buffer.getvalue())


def labels_key(plant: str) -> str:
    """Where a plant's label rows lie in the store."""
    return f"labels/{plant}.parquet"


def _not_imported(plant: str) -> InputError:
    return InputError("has not been imported", plant=plant, remedy="Run `crossplant import --fleet FILE` first")
