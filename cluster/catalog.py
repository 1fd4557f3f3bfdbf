"""The recorded tables of a fleet in its store: label rows, split assignments, and the sealed labels of test rows.

The seal is a store of its own, so that a credential can end before it. It is written at import, which also reads it to
tell corrections, and opened for the one job that evaluates, after its ledger has counted the opening.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import pandas as pd

from cluster import snapshots
from cluster.likeness import Compared, Look, compared
from cluster.lock import Claim, locked
from cluster.readings import Readings, write_rejects
from cluster.storage import Store, open_store
from plants import copies, seal, splits
from plants.copies import Quarantined
from plants.duplicates import Pair
from plants.errors import InputError
from plants.hashing import sha256
from plants.labels import Imported as Labelled
from plants.labels import NoUsableFrame, from_parquet, read_rows, to_parquet
from plants.plant import Fleet, Plant
from plants.tables import Files, Rejected

ASSIGNMENTS = "assignments.parquet"
DEALT = "assignments-head.json"
"""In the seal, the digest of the record's end: a record that lost it, or is gone, deals nothing and opens nothing."""
CORRECTIONS = "corrections.jsonl"


class Dealt(NamedTuple):
    """How a plant's rows are dealt, for whoever audits it."""

    by: Literal["lot", "image", "time"]
    """What is kept together: lots; images, where not every lot is known; lots in the order of time."""
    shares: dict[str, float]
    """Declared, by role."""
    realised: dict[str, float]
    """Of the rows."""
    generation: int
    digest: str
    """Of the record of all plants' lots."""


@dataclass(frozen=True)
class Imported:
    """What an import of one plant brought."""

    plant: str
    rows: int
    new_rows: int
    classes: dict[str, int]
    splits: dict[str, int]
    """Parts by role."""
    dealt: Dealt
    rejected: list[Rejected]
    notes: list[str]
    lots_known: bool
    quarantined: list[Quarantined]
    rejects: str
    """Where the list of rejects lies."""
    num_frames: int
    num_read: int
    """Frames that were read; the others were remembered from an earlier import."""


class Catalog:
    """Reads and writes the recorded tables of one fleet."""

    def __init__(self, store: Store, *, seal: Store | None = None) -> None:
        self.store = store
        self.seal = seal or open_store(store.at("sealed"))
        self._verified: tuple[str, pd.DataFrame] | None = None
        """The record whose chain was followed last, by its file's digest: it holds every plant's lots."""

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
        is_reread: bool = False,
        progress: Callable[[int, int], None] | None = None,
        look: Look | None = None,
    ) -> Imported:
        """The plant's rows are recorded; lots seen for the first time are dealt, all others stay where they are.

        Args:
            is_new_generation: The new lots are a generation of their own, whose sealed test has a budget of its own.
            is_reread: Frames are read again that an earlier import has read and that are listed as they were.
            look: What the frames of rows look like, see `cluster.likeness`. With it pictures that show the
                same share a lot where none is known, and where one is do not play two roles.
        """
        self.check_seal()
        memory = Readings(self.store, plant.name, is_forgetful=is_reread)
        while True:
            version = self._version(plant.name)
            found = self._read(plant, files=files, memory=memory, progress=progress)
            known, others = self._recorded(plant.name), self._others(fleet, plant)
            same = compared(found.rows, plant=plant, recorded=known, others=others, look=look)
            with locked(self.store, "import") as claim:
                if self._version(plant.name) != version:
                    continue  # imported meanwhile, from a listing that may be the newer one
                there = self._others(fleet, plant)
                if _images(there) != _images(others):  # another plant's import ended meanwhile
                    others = there
                    same = compared(found.rows, plant=plant, recorded=known, others=there, look=look)
                return self._imported(
                    fleet,
                    plant,
                    found,
                    same=same,
                    others=others,
                    now=now,
                    is_new_generation=is_new_generation,
                    claim=claim,
                )

    def _imported(
        self,
        fleet: Fleet,
        plant: Plant,
        found: Labelled,
        *,
        same: Compared,
        others: Sequence[tuple[Plant, pd.DataFrame]],
        now: datetime,
        is_new_generation: bool,
        claim: Claim,
    ) -> Imported:
        """What was read is dealt, set apart and recorded; called under the lock."""
        recorded, record = self._recorded(plant.name), self.checked_record()
        before = frozenset() if recorded is None else frozenset(recorded["frame"])
        was = None
        if recorded is not None:
            was = copies.dealt_first(splits.with_roles(recorded, record), self._quarantined(plant.name))
        shares = plant.shares or fleet.shares
        rows, assignments = _dealt(
            found.rows,
            was=was,
            record=record,
            pairs=same.pairs,
            deal={
                "shares": shares,
                "seed": fleet.seed,
                "now": now,
                "plant": plant.name,
                "is_new_generation": is_new_generation,
            },
        )
        joined = self._joined(others, assignments)
        parts_apart = copies.same_parts(rows, joined)
        pairs = [*same.pairs, *(parts_apart if fleet.part_ids == "fleet" else ())]
        quarantined = self._set_apart(plant.name, rows, was=was, pairs=pairs, others=joined, known_frames=before)
        num_corrected = self._record(
            plant.name, rows, assignments=assignments, quarantined=quarantined, now=now, claim=claim
        )
        rows = copies.apart(rows, quarantined)
        parts = rows.drop_duplicates("part_id")
        notes = [
            *found.notes,
            *same.notes,
            *_shares_told(rows, assignments, plant=plant.name),
            *(_parts_told(rows, joined, pairs=parts_apart) if fleet.part_ids == "plant" else ()),
            *_moves_told(quarantined),
            *self._told(num_corrected),
        ]
        generation = splits.generation_of(assignments, plant=plant.name)
        if is_new_generation and len(assignments) == len(record):
            notes.append(f"no new lots: the test stays that of generation {generation}")
        return Imported(
            plant=plant.name,
            rows=len(rows),
            new_rows=len(set(rows["frame"]) - before),
            classes={str(k): int(v) for k, v in rows["class"].value_counts().items()},
            splits={role: int((parts["role"] == role).sum()) for role in splits.ROLES},
            dealt=Dealt(
                by="time" if shares.order == "time" else "lot" if rows["lot_known"].all() else "image",
                shares={role: getattr(shares, role) for role in splits.ROLES},
                realised=splits.realised_shares(rows),
                generation=generation,
                digest=splits.digest(assignments),
            ),
            rejected=list(found.rejected),
            notes=notes,
            lots_known=bool(rows["lot_known"].all()),
            quarantined=list(quarantined.values()),
            rejects=write_rejects(self.store, plant.name, found.rejected),
            num_frames=found.num_frames,
            num_read=found.num_read,
        )

    def _record(
        self,
        plant: str,
        rows: pd.DataFrame,
        *,
        assignments: pd.DataFrame,
        quarantined: Mapping[str, Quarantined],
        now: datetime,
        claim: Claim,
    ) -> int:
        """How many sealed answers changed. The trace of them is written first.

        Open rows last: an import that is killed before them is as if it had not begun when it is run again. What was
        sealed before its lot moved stays sealed.
        """
        kept = {frame for frame, row in quarantined.items() if row.was == "test"}
        open_rows, sealed_rows = splits.seal(rows.assign(role=rows["role"].where(~rows["frame"].isin(kept), "test")))
        trace = self.corrections()
        corrected = self._corrected(plant, sealed_rows, now=now, trace=trace)
        claim.check()
        if corrected:
            self.seal.write(CORRECTIONS, (trace + "".join(corrected)).encode())
        self._write(ASSIGNMENTS, assignments)
        self.seal.write_json(DEALT, {"digest": splits.digest(assignments)})
        self._write(f"{plant}.parquet", sealed_rows, store=self.seal)
        self.store.write_json(f"quarantine/{plant}.json", [row._asdict() for row in quarantined.values()])
        self.store.write(f"labels/{plant}.parquet", to_parquet(open_rows))
        return len(corrected)

    def _read(
        self, plant: Plant, *, files: Files, memory: Readings, progress: Callable[[int, int], None] | None
    ) -> Labelled:
        try:
            return read_rows(plant, files=files, memory=memory, progress=progress)
        except NoUsableFrame as error:
            remedy = f"All rejects are listed in {write_rejects(self.store, plant.name, error.rejected)}"
            raise InputError(error.detail, plant=plant.name, field=error.field, remedy=remedy) from None

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
        head = self.seal.read_json(DEALT)["digest"] if self.seal.exists(DEALT) else None
        if record is None and head is None and self.store.list("labels"):
            raise splits.tampered("the record of which lot plays which role is gone")
        record = splits.no_assignments() if record is None else record
        splits.check_contains(record, head or splits.GENESIS)
        return record

    def _version(self, plant: str) -> str | None:
        """Names the plant's recorded rows; None before its first import."""
        key = f"labels/{plant}.parquet"
        return sha256(self.store.read(key)) if self.store.exists(key) else None

    def require(self, plants: Sequence[str]) -> None:
        """Raises InputError for the first of these plants that has not been imported."""
        there = {entry.key for entry in self.store.list("labels")}
        for plant in plants:
            if f"labels/{plant}.parquet" not in there:
                raise _not_imported(plant)

    def rows(self, plant: str) -> pd.DataFrame:
        """The plant's label rows with their role; the class of test rows is null. Raises InputError before import.

        A row that plays no role because it shows what another one shows has `plants.copies.QUARANTINE` for one.
        """
        key = f"labels/{plant}.parquet"
        assignments = self.assignments()
        if assignments is None or not self.store.exists(key):
            raise _not_imported(plant)
        rows = splits.with_roles(from_parquet(self.store.read(key)), assignments)
        return copies.apart(rows, self._quarantined(plant))

    def sealed(self, plant: str) -> pd.DataFrame:
        """The answers of the plant's test rows. Asked by import, and by `jobs/evaluate.py` once that is counted."""
        return pd.read_parquet(io.BytesIO(self.seal.read(f"{plant}.parquet")))

    def corrections(self) -> str:
        """What was changed in the sealed answers since they were sealed, a JSON object a line; empty at first."""
        return self.seal.read(CORRECTIONS).decode() if self.seal.exists(CORRECTIONS) else ""

    def _corrected(self, plant: str, sealed_rows: pd.DataFrame, *, now: datetime, trace: str) -> list[str]:
        if not self.seal.exists(f"{plant}.parquet"):
            return []
        return seal.corrections(self.sealed(plant), sealed_rows, plant=plant, at=now, trace=trace)

    def _told(self, num_corrected: int) -> list[str]:
        where = self.seal.at(CORRECTIONS)
        return [f"{num_corrected} answers of the sealed test changed; the trace is in {where}"] if num_corrected else []

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

    def _recorded(self, plant: str) -> pd.DataFrame | None:
        key = f"labels/{plant}.parquet"
        return from_parquet(self.store.read(key)) if self.store.exists(key) else None

    def _others(self, fleet: Fleet, plant: Plant) -> list[tuple[Plant, pd.DataFrame]]:
        """The other plants that have been imported, and their rows."""
        found = [(other, self._recorded(other.name)) for other in fleet.plants if other.name != plant.name]
        return [(other, rows) for other, rows in found if rows is not None]

    def _set_apart(
        self,
        plant: str,
        rows: pd.DataFrame,
        *,
        was: pd.DataFrame | None,
        pairs: Sequence[Pair],
        others: pd.DataFrame,
        known_frames: frozenset[str],
    ) -> dict[str, Quarantined]:
        """What is quarantined by frame: what was and still shows the same image, and what is found now.

        was: The rows as recorded before this import, with their roles.
        """
        images = set(zip(rows["frame"], rows["sha256"], strict=True))
        kept = {k: row for k, row in self._quarantined(plant).items() if (k, row.sha256) in images and not row.was}
        kept |= {} if was is None else copies.moved(rows, was)
        new = copies.quarantine(copies.apart(rows, kept), pairs, others=others, known_frames=known_frames)
        return kept | {row.frame: row for row in new}

    def _joined(self, others: Sequence[tuple[Plant, pd.DataFrame]], assignments: pd.DataFrame) -> pd.DataFrame:
        """Rows of several plants with `plant` and `role`."""
        tables = [
            copies.apart(splits.with_roles(rows, assignments), self._quarantined(plant.name)).assign(plant=plant.name)
            for plant, rows in others
        ]
        columns = ["frame", "plant", "part_id", "role", "generation"]
        return (
            pd.concat(tables, ignore_index=True)
            if tables
            else pd.DataFrame({name: [] for name in columns}, dtype=object)
        )

    def check_seal(self) -> None:
        """Raises InputError where the seal was given another place after answers were sealed in the store."""
        if self.seal.uri != self.store.at("sealed") and self.store.list("sealed"):
            raise InputError(
                "answers and ledger of the sealed test still lie in the store",
                file=self.store.at("sealed"),
                field="sealed",
                remedy=f"Move what is there to {self.seal.uri}",
            )

    def _quarantined(self, plant: str) -> dict[str, Quarantined]:
        key = f"quarantine/{plant}.json"
        rows = self.store.read_json(key) if self.store.exists(key) else []
        return {row["frame"]: Quarantined(**row) for row in rows}

    def _write(self, key: str, table: pd.DataFrame, *, store: Store | None = None) -> None:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        (store or self.store).write(key, buffer.getvalue())


def _dealt(
    rows: pd.DataFrame, *, was: pd.DataFrame | None, record: pd.DataFrame, pairs: Sequence[Pair], deal: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows in their lots and roles, and the assignments with all of their lots.

    was: The rows as recorded before, with their roles. deal: How lots are dealt, of `plants.splits.deal`.
    """
    rows = copies.with_recorded_lots(rows, was)
    inside = [pair for pair in pairs if max(pair.i, pair.j) < len(rows)]
    rows = copies.linked(rows, inside, recorded=frozenset(record["lot"]))
    settled = {} if was is None else copies.settled(rows, was, dealt=record["lot"])
    assignments = splits.deal(rows, assignments=record, settled=settled, **deal)
    return splits.with_roles(rows, assignments), assignments


def _moves_told(quarantined: Mapping[str, Quarantined]) -> list[str]:
    """How many frames play no role because their lot was known too late."""
    num = sum(bool(row.was) for row in quarantined.values())
    words = (
        f"{num} frames were dealt before their lots were known as they are now, and to other roles than most of their "
        "lots: frames never move, so these play no role; a new `store:` deals everything anew"
    )
    return [words] if num else []


def _shares_told(rows: pd.DataFrame, assignments: pd.DataFrame, *, plant: str) -> list[str]:
    """Lots that were dealt at another plant, and classes that do not reach every role."""
    lots = set(rows.loc[rows["lot_known"], "lot"])
    theirs = assignments[assignments["lot"].isin(lots) & (assignments["plant"] != plant)]
    said = [
        f"{len(group)} of {len(lots)} lots are lots of {other} too, first {group['lot'].iloc[0]!r}, and keep the roles "
        f"they have there; where these are other parts, give their lots names of their own"
        for other, group in theirs.groupby("plant")
    ]
    held = splits.realised(rows)
    for name, group in held[held["class"] != "*"].groupby("class"):
        if not group["rows"].all():
            absent = ", ".join(group.loc[group["rows"] == 0, "role"])
            said.append(f"class {name!r} lies in {group['lots'].sum()} lots, none of them in {absent}")
    return said


def _parts_told(rows: pd.DataFrame, others: pd.DataFrame, *, pairs: Sequence[Pair]) -> list[str]:
    """Part ids that play another role at another plant; pairs as `plants.copies.same_parts`."""
    found = pd.DataFrame(
        {
            "part_id": rows["part_id"].iloc[[pair.i for pair in pairs]].to_numpy(),
            "plant": others["plant"].iloc[[pair.j - len(rows) for pair in pairs]].to_numpy(),
        }
    )
    return [
        f"{group['part_id'].nunique():,} part ids also occur at {other} in other roles, first "
        f"{group['part_id'].iloc[0]!r}; they are taken for other parts: where they are the same, set part_ids: fleet"
        for other, group in found.groupby("plant")
    ]


def _images(tables: Sequence[tuple[Plant, pd.DataFrame]]) -> list[tuple[str, list[str]]]:
    return [(plant.name, rows["sha256"].tolist()) for plant, rows in tables]


def _not_imported(plant: str) -> InputError:
    return InputError("has not been imported", plant=plant, remedy="Run `crossplant import --fleet FILE` first")
