"""An import of one plant: rows are read, dealt to roles, set apart where they may play none, and recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

import pandas as pd

from cluster import told
from cluster.catalog import ASSIGNMENTS, CORRECTIONS, DEALT, Catalog, labels_key
from cluster.likeness import Compared, Look, compared
from cluster.lock import Claim, locked
from cluster.readings import Readings, write_rejects
from plants import copies, seal, splits
from plants.copies import Quarantined
from plants.duplicates import Pair
from plants.errors import InputError
from plants.labels import Imported as Labelled
from plants.labels import NoUsableFrame, read_rows, to_parquet
from plants.plant import Fleet, Plant, Shares
from plants.tables import Files, Rejected


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

    @classmethod
    def of(cls, rows: pd.DataFrame, *, assignments: pd.DataFrame, shares: Shares, plant: str) -> Dealt:
        """Of a plant's rows with their roles."""
        return cls(
            by="time" if shares.order == "time" else "lot" if rows["lot_known"].all() else "image",
            shares={role: getattr(shares, role) for role in splits.ROLES},
            realised=splits.realised_shares(rows),
            generation=splits.generation_of(assignments, plant=plant),
            digest=splits.digest(assignments),
        )


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


def import_plant(
    catalog: Catalog,
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
    catalog.check_seal()
    memory = Readings(catalog.store, plant.name, is_forgetful=is_reread)
    while True:
        before = catalog.versions()
        found = _read(catalog, plant, files=files, memory=memory, progress=progress)
        known = _known(catalog, fleet, plant, versions=before)
        same = compared(found.rows, plant=plant, recorded=known.own, others=known.others, look=look)
        with locked(catalog.store, "import") as claim:
            there = catalog.versions()
            if there.get(labels_key(plant.name)) != before.get(labels_key(plant.name)):
                continue  # imported meanwhile, from a listing that may be the newer one
            if there != before:  # another plant's import ended meanwhile
                known = _known(catalog, fleet, plant, versions=there)
                same = compared(found.rows, plant=plant, recorded=known.own, others=known.others, look=look)
            return _imported(
                catalog, fleet, plant, found, same=same, known=known, now=now, is_new=is_new_generation, claim=claim
            )


def _imported(
    catalog: Catalog,
    fleet: Fleet,
    plant: Plant,
    found: Labelled,
    *,
    same: Compared,
    known: Known,
    now: datetime,
    is_new: bool,
    claim: Claim,
) -> Imported:
    """What was read is dealt, set apart and recorded; called under the lock. is_new: A generation of its own."""
    record = catalog.checked_record()
    was = None if known.own is None else copies.dealt_first(splits.with_roles(known.own, record), known.quarantined)
    before = frozenset() if was is None else frozenset(was["frame"])
    rows, assignments = _dealt(
        fleet, plant, found.rows, was=was, record=record, pairs=same.pairs, now=now, is_new=is_new
    )
    joined = known.joined(assignments)
    parts_apart = copies.same_parts(rows, joined)
    same_parts = parts_apart if fleet.part_ids == "fleet" else []
    quarantined = _set_apart(
        rows, before=known.quarantined, was=was, pairs=same.pairs, parts=same_parts, others=joined, known_frames=before
    )
    num_corrected = _record(
        catalog, plant.name, rows, assignments=assignments, quarantined=quarantined, now=now, claim=claim
    )
    rows = copies.apart(rows, quarantined)
    parts = rows.drop_duplicates("part_id")
    notes = [
        *found.notes,
        *same.notes,
        *told.shares_told(rows, assignments, plant=plant.name),
        *(told.parts_told(rows, joined, pairs=parts_apart) if fleet.part_ids == "plant" else ()),
        *told.moves_told(quarantined),
        *told.corrections_told(num_corrected, where=catalog.seal.at(CORRECTIONS)),
    ]
    dealt = Dealt.of(rows, assignments=assignments, shares=plant.shares or fleet.shares, plant=plant.name)
    if is_new and len(assignments) == len(record):
        notes.append(f"no new lots: the test stays that of generation {dealt.generation}")
    return Imported(
        plant=plant.name,
        rows=len(rows),
        new_rows=len(set(rows["frame"]) - before),
        classes={str(k): int(v) for k, v in rows["class"].value_counts().items()},
        splits={role: int((parts["role"] == role).sum()) for role in splits.ROLES},
        dealt=dealt,
        rejected=list(found.rejected),
        notes=notes,
        lots_known=bool(rows["lot_known"].all()),
        quarantined=list(quarantined.values()),
        rejects=write_rejects(catalog.store, plant.name, found.rejected),
        num_frames=found.num_frames,
        num_read=found.num_read,
    )


def _read(
    catalog: Catalog, plant: Plant, *, files: Files, memory: Readings, progress: Callable[[int, int], None] | None
) -> Labelled:
    try:
        return read_rows(plant, files=files, memory=memory, progress=progress)
    except NoUsableFrame as error:
        remedy = f"All rejects are listed in {write_rejects(catalog.store, plant.name, error.rejected)}"
        raise InputError(error.detail, plant=plant.name, field=error.field, remedy=remedy) from None


class Known(NamedTuple):
    """What the store held of a plant and its sisters before an import."""

    own: pd.DataFrame | None
    """Label rows, None before the plant's first import."""
    quarantined: dict[str, Quarantined]
    others: list[tuple[Plant, pd.DataFrame]]
    """The other plants that have been imported, and their rows."""
    set_apart: dict[str, dict[str, Quarantined]]
    """Of the others, by plant."""

    def joined(self, assignments: pd.DataFrame) -> pd.DataFrame:
        """The others' rows with `plant` and `role`."""
        none = pd.DataFrame(columns=["frame", "plant", "part_id", "role", "generation"], dtype=object)
        tables = [
            copies.apart(splits.with_roles(rows, assignments), self.set_apart[plant.name]).assign(plant=plant.name)
            for plant, rows in self.others
        ]
        return pd.concat(tables, ignore_index=True) if tables else none


def _known(catalog: Catalog, fleet: Fleet, plant: Plant, *, versions: Mapping[str, str]) -> Known:
    tables = {one.name: catalog.recorded(one.name, versions=versions) for one in fleet.plants}
    others = [(one, rows) for one in fleet.plants if one.name != plant.name and (rows := tables[one.name]) is not None]
    apart = {one.name: catalog.quarantined(one.name, versions=versions) for one in fleet.plants}
    return Known(tables[plant.name], apart[plant.name], others=others, set_apart=apart)


def _dealt(
    fleet: Fleet,
    plant: Plant,
    rows: pd.DataFrame,
    *,
    was: pd.DataFrame | None,
    record: pd.DataFrame,
    pairs: Sequence[Pair],
    now: datetime,
    is_new: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows in their lots and roles, and the assignments with all of their lots. was: The rows as dealt before."""
    rows = copies.with_recorded_lots(rows, was)
    inside = [pair for pair in pairs if max(pair.i, pair.j) < len(rows)]
    rows = copies.linked(rows, inside, recorded=frozenset(record["lot"]))
    assignments = splits.deal(
        rows,
        assignments=record,
        shares=plant.shares or fleet.shares,
        seed=fleet.seed,
        now=now,
        plant=plant.name,
        is_new_generation=is_new,
        settled={} if was is None else copies.settled(rows, was, dealt=record["lot"]),
    )
    return splits.with_roles(rows, assignments), assignments


def _set_apart(
    rows: pd.DataFrame,
    *,
    before: Mapping[str, Quarantined],
    was: pd.DataFrame | None,
    pairs: Sequence[Pair],
    parts: Sequence[Pair],
    others: pd.DataFrame,
    known_frames: frozenset[str],
) -> dict[str, Quarantined]:
    """What is quarantined by frame: what was and still shows the same image, and what is found now.

    before: What was quarantined by frame. was: The rows as recorded before this import, with the roles that they were
    dealt first. parts: Pairs that are one part at two plants.
    """
    images = set(zip(rows["frame"], rows["sha256"], strict=True))
    copied = {k: row for k, row in before.items() if not row.was and not row.part}
    kept = {k: row for k, row in copied.items() if (k, row.sha256) in images}
    kept |= {} if was is None else copies.moved(rows, was)
    quarantine = functools.partial(copies.quarantine, others=others, known_frames=known_frames)
    kept |= {row.frame: row for row in quarantine(copies.apart(rows, kept), pairs)}
    part_of = dict(zip(rows["frame"], rows["part_id"], strict=True)) if parts else {}
    found = quarantine(copies.apart(rows, kept), parts)
    return kept | {row.frame: row._replace(part=part_of[row.frame]) for row in found}


def _record(
    catalog: Catalog,
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
    trace = catalog.corrections()
    corrected = _corrected(catalog, plant, sealed_rows, now=now, trace=trace)
    claim.check()
    if corrected:
        catalog.seal.write(CORRECTIONS, (trace + "".join(corrected)).encode())
    catalog.write(ASSIGNMENTS, assignments)
    catalog.seal.write_json(DEALT, {"digest": splits.digest(assignments)})
    catalog.write(f"{plant}.parquet", sealed_rows, store=catalog.seal)
    catalog.store.write_json(f"quarantine/{plant}.json", [row.to_json() for row in quarantined.values()])
    catalog.store.write(labels_key(plant), to_parquet(open_rows))
    return len(corrected)


def _corrected(catalog: Catalog, plant: str, sealed_rows: pd.DataFrame, *, now: datetime, trace: str) -> list[str]:
    if not catalog.seal.exists(f"{plant}.parquet"):
        return []
    return seal.corrections(catalog.sealed(plant), sealed_rows, plant=plant, at=now, trace=trace)
