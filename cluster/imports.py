"""An import of one plant: rows are read, dealt to roles, set apart where they may play none, and recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import pandas as pd

from cluster.catalog import ASSIGNMENTS, CORRECTIONS, DEALT, Catalog
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
        version = catalog.version(plant.name)
        found = _read(catalog, plant, files=files, memory=memory, progress=progress)
        known, others = catalog.recorded(plant.name), _others(catalog, fleet, plant)
        same = compared(found.rows, plant=plant, recorded=known, others=others, look=look)
        with locked(catalog.store, "import") as claim:
            if catalog.version(plant.name) != version:
                continue  # imported meanwhile, from a listing that may be the newer one
            there = _others(catalog, fleet, plant)
            if _images(there) != _images(others):  # another plant's import ended meanwhile
                same = compared(found.rows, plant=plant, recorded=known, others=there, look=look)
            return _imported(
                catalog,
                fleet,
                plant,
                found,
                same=same,
                others=there,
                now=now,
                is_new_generation=is_new_generation,
                claim=claim,
            )


def _imported(
    catalog: Catalog,
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
    record = catalog.checked_record()
    was = _dealt_before(catalog, plant.name, record=record)
    before = frozenset() if was is None else frozenset(was["frame"])
    shares = plant.shares or fleet.shares
    rows, assignments = _dealt(
        found.rows,
        was=was,
        record=record,
        pairs=same.pairs,
        shares=shares,
        seed=fleet.seed,
        now=now,
        plant=plant.name,
        is_new_generation=is_new_generation,
    )
    joined = _joined(catalog, others, assignments)
    parts_apart = copies.same_parts(rows, joined)
    same_parts = parts_apart if fleet.part_ids == "fleet" else []
    quarantined = _set_apart(
        catalog, plant.name, rows, was=was, pairs=same.pairs, parts=same_parts, others=joined, known_frames=before
    )
    num_corrected = _record(
        catalog, plant.name, rows, assignments=assignments, quarantined=quarantined, now=now, claim=claim
    )
    rows = copies.apart(rows, quarantined)
    parts = rows.drop_duplicates("part_id")
    notes = [
        *found.notes,
        *same.notes,
        *_shares_told(rows, assignments, plant=plant.name),
        *(_parts_told(rows, joined, pairs=parts_apart) if fleet.part_ids == "plant" else ()),
        *_moves_told(quarantined),
        *_corrections_told(num_corrected, where=catalog.seal.at(CORRECTIONS)),
    ]
    if is_new_generation and len(assignments) == len(record):
        notes.append(
            f"no new lots: the test stays that of generation {splits.generation_of(assignments, plant=plant.name)}"
        )
    return Imported(
        plant=plant.name,
        rows=len(rows),
        new_rows=len(set(rows["frame"]) - before),
        classes={str(k): int(v) for k, v in rows["class"].value_counts().items()},
        splits={role: int((parts["role"] == role).sum()) for role in splits.ROLES},
        dealt=Dealt.of(rows, assignments=assignments, shares=shares, plant=plant.name),
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


def _others(catalog: Catalog, fleet: Fleet, plant: Plant) -> list[tuple[Plant, pd.DataFrame]]:
    """The other plants that have been imported, and their rows."""
    found = [(other, catalog.recorded(other.name)) for other in fleet.plants if other.name != plant.name]
    return [(other, rows) for other, rows in found if rows is not None]


def _dealt_before(catalog: Catalog, plant: str, *, record: pd.DataFrame) -> pd.DataFrame | None:
    """The rows as recorded, in the roles that they were dealt first; None before the first import."""
    recorded = catalog.recorded(plant)
    if recorded is None:
        return None
    return copies.dealt_first(splits.with_roles(recorded, record), catalog.quarantined(plant))


def _dealt(
    rows: pd.DataFrame, *, was: pd.DataFrame | None, record: pd.DataFrame, pairs: Sequence[Pair], **deal: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows in their lots and roles, and the assignments with all of their lots.

    was: The rows as dealt before. deal: How lots are dealt, of `plants.splits.deal`.
    """
    rows = copies.with_recorded_lots(rows, was)
    inside = [pair for pair in pairs if max(pair.i, pair.j) < len(rows)]
    rows = copies.linked(rows, inside, recorded=frozenset(record["lot"]))
    settled = {} if was is None else copies.settled(rows, was, dealt=record["lot"])
    assignments = splits.deal(rows, assignments=record, settled=settled, **deal)
    return splits.with_roles(rows, assignments), assignments


def _set_apart(
    catalog: Catalog,
    plant: str,
    rows: pd.DataFrame,
    *,
    was: pd.DataFrame | None,
    pairs: Sequence[Pair],
    parts: Sequence[Pair],
    others: pd.DataFrame,
    known_frames: frozenset[str],
) -> dict[str, Quarantined]:
    """What is quarantined by frame: what was and still shows the same image, and what is found now.

    was: The rows as recorded before this import, with their roles. parts: Pairs that are one part at two plants.
    """
    images = set(zip(rows["frame"], rows["sha256"], strict=True))
    kept = {
        k: row
        for k, row in catalog.quarantined(plant).items()
        if (k, row.sha256) in images and not row.was and not row.part
    }
    kept |= {} if was is None else copies.moved(rows, was)
    quarantine = functools.partial(copies.quarantine, others=others, known_frames=known_frames)
    kept |= {row.frame: row for row in quarantine(copies.apart(rows, kept), pairs)}
    part_of = dict(zip(rows["frame"], rows["part_id"], strict=True)) if parts else {}
    found = quarantine(copies.apart(rows, kept), parts)
    return kept | {row.frame: row._replace(part=part_of[row.frame]) for row in found}


def _joined(catalog: Catalog, others: Sequence[tuple[Plant, pd.DataFrame]], assignments: pd.DataFrame) -> pd.DataFrame:
    """Rows of several plants with `plant` and `role`."""
    tables = [
        copies.apart(splits.with_roles(rows, assignments), catalog.quarantined(plant.name)).assign(plant=plant.name)
        for plant, rows in others
    ]
    columns = ["frame", "plant", "part_id", "role", "generation"]
    return (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({name: [] for name in columns}, dtype=object)
    )


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
    catalog.store.write(f"labels/{plant}.parquet", to_parquet(open_rows))
    return len(corrected)


def _corrected(catalog: Catalog, plant: str, sealed_rows: pd.DataFrame, *, now: datetime, trace: str) -> list[str]:
    if not catalog.seal.exists(f"{plant}.parquet"):
        return []
    return seal.corrections(catalog.sealed(plant), sealed_rows, plant=plant, at=now, trace=trace)


def _moves_told(quarantined: Mapping[str, Quarantined]) -> list[str]:
    """How many frames play no role because their lot was known too late."""
    num = sum(bool(row.was) for row in quarantined.values())
    words = (
        f"{num} frames were dealt before their lots were known as they are now, and to other roles than their lots "
        "have: frames never move, so these play no role; a new `store:` deals everything anew"
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


def _corrections_told(num_corrected: int, *, where: str) -> list[str]:
    return [f"{num_corrected} answers of the sealed test changed; the trace is in {where}"] if num_corrected else []
