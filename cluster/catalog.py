"""The recorded tables of a fleet in its store: label rows, split assignments, and the sealed labels of test rows.

The seal is a store of its own, so that a credential can end before it. It is written at import, which also reads it to
tell corrections, and opened for the one job that evaluates, after its ledger has counted the opening.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from cluster.lock import locked
from cluster.storage import Store, open_store
from plants import seal, splits
from plants.errors import InputError
from plants.labels import from_parquet, read_rows, to_parquet
from plants.plant import Fleet, Plant
from plants.tables import Files, Rejected

ASSIGNMENTS = "assignments.parquet"
CORRECTIONS = "corrections.jsonl"


@dataclass(frozen=True)
class Imported:
    """What an import of one plant brought."""

    plant: str
    rows: int
    new_rows: int
    classes: dict[str, int]
    splits: dict[str, int]
    rejected: list[Rejected]
    notes: list[str]
    lots_known: bool


class Catalog:
    """Reads and writes the recorded tables of one fleet."""

    def __init__(self, store: Store, *, seal: Store | None = None) -> None:
        self.store = store
        self.seal = seal or open_store(store.at("sealed"))

    @classmethod
    def of(cls, fleet: Fleet) -> Catalog:
        """The catalog of a fleet; contacts nothing."""
        return cls(open_store(fleet.store), seal=open_store(fleet.sealed) if fleet.sealed else None)

    def import_plant(
        self,
        fleet: Fleet,
        plant: Plant,
        *,
        files: Files,
        now: datetime,
        is_new_generation: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Imported:
        """The plant's rows are recorded; lots seen for the first time are dealt, all others stay where they are.

        is_new_generation: the new lots are a generation of their own, whose sealed test has a budget of its own.
        """
        found = read_rows(plant, files=files, progress=progress)
        with locked(self.store, "import") as claim:
            before = self._known_frames(plant.name)
            assignments = splits.deal(
                found.rows,
                assignments=self.assignments(),
                shares=plant.shares or fleet.shares,
                seed=fleet.seed,
                now=now,
                plant=plant.name,
                is_new_generation=is_new_generation,
            )
            rows = splits.with_roles(found.rows, assignments)
            open_rows, sealed_rows = splits.seal(rows)
            corrected = self._corrected(plant.name, sealed_rows, now=now)
            claim.check()
            if corrected:
                self.seal.write(CORRECTIONS, (self.corrections() + "".join(corrected)).encode())
            self._write(ASSIGNMENTS, assignments)
            self._write(f"{plant.name}.parquet", sealed_rows, store=self.seal)
            self.store.write(f"labels/{plant.name}.parquet", to_parquet(open_rows))
        parts = rows.drop_duplicates("part_id")
        return Imported(
            plant=plant.name,
            rows=len(rows),
            new_rows=len(set(rows["frame"]) - before),
            classes={str(k): int(v) for k, v in rows["class"].value_counts().items()},
            splits={role: int((parts["role"] == role).sum()) for role in splits.ROLES},
            rejected=list(found.rejected),
            notes=[*found.notes, *self._told(len(corrected))],
            lots_known=bool(rows["lot_known"].all()),
        )

    def assignments(self) -> pd.DataFrame | None:
        """The fleet's split assignments, their chain verified; None before the first import."""
        if not self.store.exists(ASSIGNMENTS):
            return None
        table = pd.read_parquet(io.BytesIO(self.store.read(ASSIGNMENTS)))
        splits.verify(table)
        return table

    def rows(self, plant: str) -> pd.DataFrame:
        """The plant's label rows with their role; the class of test rows is null. Raises InputError before import."""
        key = f"labels/{plant}.parquet"
        assignments = self.assignments()
        if assignments is None or not self.store.exists(key):
            raise InputError("has not been imported", plant=plant, remedy="Run `crossplant import --fleet FILE` first")
        return splits.with_roles(from_parquet(self.store.read(key)), assignments)

    def sealed(self, plant: str) -> pd.DataFrame:
        """The answers of the plant's test rows. Asked by import, and by `jobs/evaluate.py` once that is counted."""
        return pd.read_parquet(io.BytesIO(self.seal.read(f"{plant}.parquet")))

    def corrections(self) -> str:
        """What was changed in the sealed answers since they were sealed, a JSON object a line; empty at first."""
        return self.seal.read(CORRECTIONS).decode() if self.seal.exists(CORRECTIONS) else ""

    def _corrected(self, plant: str, sealed_rows: pd.DataFrame, *, now: datetime) -> list[str]:
        if not self.seal.exists(f"{plant}.parquet"):
            return []
        return seal.corrections(self.sealed(plant), sealed_rows, plant=plant, at=now)

    def _told(self, num_corrected: int) -> list[str]:
        where = self.seal.at(CORRECTIONS)
        return [f"{num_corrected} answers of the sealed test changed; the trace is in {where}"] if num_corrected else []

    def data_digest(self, plants: Sequence[str]) -> str:
        """Names what can be learned from: frames, labels and roles of the train and select rows of these plants."""
        digest = hashlib.sha256()
        for name in sorted(plants):
            rows = self.rows(name)
            rows = rows[rows["role"].isin(["train", "select"])].sort_values("frame")
            for column in ("frame", "sha256", "class", "role", "part_id", "environment", "box"):
                values = "\x1f".join(_text(value) for value in rows[column])
                digest.update(f"{name}|{column}|{values}\n".encode())
        return digest.hexdigest()

    def _known_frames(self, plant: str) -> set[str]:
        key = f"labels/{plant}.parquet"
        return set(from_parquet(self.store.read(key))["frame"]) if self.store.exists(key) else set()

    def _write(self, key: str, table: pd.DataFrame, *, store: Store | None = None) -> None:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        (store or self.store).write(key, buffer.getvalue())


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return ",".join(map(str, value)) if not isinstance(value, str) and hasattr(value, "__iter__") else str(value)
