"""Which lot plays which role, recorded once and never recomputed.

Roles: `train` is learned from, `select` chooses epochs and recipes (a head on features that stay as they are then
learns from it as well), `decide` calibrates, compares and promotes, `test` is sealed. The record is append-only and
chained: each row's digest covers the one before, so that an earlier row cannot be changed unseen. A lot is dealt once
for the whole fleet, whatever plants it is seen at.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plants.errors import InputError
from plants.hashing import unit_hash
from plants.plant import Shares
from plants.seal import SEALED
from plants.tables import OTHER, to_arrow

ROLES = ("train", "select", "decide", "test")
REACHED_FIRST = ("train", "test", "decide", "select")
"""The order in which the first lots of a class reach the roles: with one lot it is learned, with two also tested."""
SEALED_COLUMNS = ["frame", "sha256", *SEALED]
GENESIS = "0" * 64
ASSIGNMENT_SCHEMA = pa.schema(
    [
        pa.field("lot", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("generation", pa.int64(), nullable=False),
        pa.field("dealt_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("plant", pa.string(), nullable=False),
        pa.field("prev", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)


class Sealed(NamedTuple):
    """Label rows whose test answers are blank, and the answers."""

    open_rows: pd.DataFrame
    sealed_rows: pd.DataFrame


def no_assignments() -> pd.DataFrame:
    """The record before the first import."""
    empty: pd.DataFrame = ASSIGNMENT_SCHEMA.empty_table().to_pandas()
    return empty


def deal(
    rows: pd.DataFrame,
    *,
    assignments: pd.DataFrame | None,
    shares: Shares,
    seed: int,
    now: datetime,
    plant: str | None = None,
    is_new_generation: bool = False,
    settled: Mapping[str, tuple[str, int]] | None = None,
) -> pd.DataFrame:
    """The record with every lot of `rows` in it; what was recorded before is unchanged and comes first.

    Plant by plant, the lots of the rarest class are dealt first, each to the role that is furthest below its share of
    that class. A class with four lots or more reaches every role. Independent of the order of `rows`. With
    `shares.order` time the oldest new lots go to train, then select and decide, the newest to test.

    Args:
        rows: Label rows, those of lots dealt earlier included: they count towards the shares. A column `plant` tells
            plants apart; without one, `plant` names the plant of all of them.
        is_new_generation: The new lots are a generation of their own, dealt as if there had been none before. Without
            any, the generation stays.
        settled: Role and generation of lots that hold rows which were dealt before, under other lots.

    Raises:
        InputError: when the record was tampered with, when new lots have no time though they are dealt by it, and when
            there are too few of them for a new generation.
    """
    record, settled = no_assignments() if assignments is None else assignments, settled or {}
    verify(record)
    roles = dict(zip(record["lot"], record["role"], strict=True)) | {lot: role for lot, (role, _) in settled.items()}
    named = rows if "plant" in rows.columns else rows.assign(plant=plant or "")
    new: list[tuple[str, str, int, str]] = []
    for name, group in named.groupby("plant", sort=True):
        number = generation_of(record, plant=str(name))
        kept = {lot: settled[lot] for lot in group["lot"].unique() if lot in settled}
        is_next = is_new_generation and not group["lot"].isin(list(roles)).all()
        if is_next:
            number = _latest(record, group) + 1
            group = group[~group["lot"].isin(list(roles))]
        if shares.order == "time":
            dealt = _dealt_by_time(group, roles=roles, shares=shares, plant=str(name))
        else:
            dealt = _dealt(_class_counts(group), roles=roles, shares=shares, seed=seed)
        if is_next and set(dealt.values()) != set(ROLES):
            raise InputError(
                f"{len(dealt)} new lots are too few for a new generation: every role needs one",
                plant=str(name),
                remedy="Import more lots first, or import them into the generation there is",
            )
        roles.update(dealt)
        said = kept | {lot: (role, number) for lot, role in dealt.items()}
        # Not in the order of dealing, which is class by class: neighbours in the record would tell a sealed answer.
        shuffled = sorted(said, key=lambda lot: unit_hash("record", seed, lot))
        new.extend((lot, *said[lot], str(name)) for lot in shuffled)
    return _appended(record, new, now=now)


def _latest(record: pd.DataFrame, rows: pd.DataFrame) -> int:
    """The highest generation of the lots of these rows, whichever plant dealt them; 0 of none."""
    numbers = record.loc[record["lot"].isin(rows["lot"]), "generation"]
    return int(numbers.max()) if len(numbers) else 0


def _dealt_by_time(rows: pd.DataFrame, *, roles: Mapping[str, str], shares: Shares, plant: str) -> dict[str, str]:
    """Role of each new lot of one plant: older lots before newer ones, a lot being as old as its first frame."""
    fresh = rows[~rows["lot"].isin(list(roles))]
    if not len(fresh):
        return {}
    lots = fresh.groupby("lot").agg(at=("captured_at", "min"), rows=("frame", "size")).reset_index()
    if lots["at"].isna().any():
        raise InputError(
            f"lot {lots.loc[lots['at'].isna(), 'lot'].iloc[0]} has no time, but lots are dealt by time",
            plant=plant,
            field="captured_at",
            remedy="Add the column captured_at to the labels, or set order: class in `shares`",
        )
    lots = lots.sort_values(["at", "lot"])
    middle = (lots["rows"].cumsum() - lots["rows"] / 2) / lots["rows"].sum()
    ends = np.cumsum([getattr(shares, role) for role in ROLES])[:-1]
    return {lot: ROLES[at] for lot, at in zip(lots["lot"], np.searchsorted(ends, middle), strict=True)}


def _class_counts(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Lot -> class -> rows, lots sorted by name. Rows without a class count as a class of their own."""
    table = pd.DataFrame({"lot": rows["lot"], "class": rows["class"].fillna("")}).value_counts(sort=False).reset_index()
    counts: dict[str, dict[str, int]] = {lot: {} for lot in sorted(table["lot"].unique())}
    for lot, name, n in zip(table["lot"], table["class"], table["count"], strict=True):
        counts[lot][name] = int(n)
    return counts


def _dealt(
    counts: Mapping[str, Mapping[str, int]], *, roles: Mapping[str, str], shares: Shares, seed: int
) -> dict[str, str]:
    """Role of each lot of one plant that has none yet, in the order of dealing."""
    lots_of: dict[str, list[str]] = {}
    total: dict[str, int] = {}
    for lot, classes in counts.items():
        for name, n in classes.items():
            lots_of.setdefault(name, []).append(lot)
            total[name] = total.get(name, 0) + n
    tally = _Tally(total, shares=shares)
    for lot, classes in counts.items():
        if lot in roles:
            tally.add(classes, role=roles[lot])
    dealt: dict[str, str] = {}
    for name in sorted(lots_of, key=lambda name: (len(lots_of[name]), total[name], name)):
        fresh = [lot for lot in lots_of[name] if lot not in roles and lot not in dealt]
        fresh.sort(key=lambda lot: (-counts[lot][name], unit_hash("split", seed, lot), lot))
        for lot in fresh:
            dealt[lot] = tally.most_wanting(name)
            tally.add(counts[lot], role=dealt[lot])
    return dealt


class _Tally:
    """Rows and lots of each class that each role holds, against its share."""

    def __init__(self, total: Mapping[str, int], *, shares: Shares) -> None:
        self._share = {role: float(getattr(shares, role)) for role in ROLES}
        self._total = total
        self._all = sum(total.values())
        self._held = {name: dict.fromkeys(ROLES, 0) for name in total}
        self._held_of_all = dict.fromkeys(ROLES, 0)

    def add(self, classes: Mapping[str, int], *, role: str) -> None:
        for name, n in classes.items():
            self._held[name][role] += n
            self._held_of_all[role] += n

    def most_wanting(self, name: str) -> str:
        """A role that has none of the class, else the one furthest below its share of it."""
        held, total = self._held[name], self._total[name]
        for role in REACHED_FIRST:
            if not held[role]:
                return role
        return max(
            ROLES,
            key=lambda role: (
                round(self._share[role] * total - held[role], 6),
                self._share[role] * self._all - self._held_of_all[role],
            ),
        )


# --- the chain -----------------------------------------------------------------------------------------------------


def _link(prev: str, *, lot: str, role: str, generation: int, plant: str) -> str:
    text = f"{prev}|{lot}|{role}|{generation}|{plant}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _appended(record: pd.DataFrame, new: Iterable[tuple[str, str, int, str]], *, now: datetime) -> pd.DataFrame:
    stamp = pd.Timestamp(now if now.tzinfo else now.replace(tzinfo=UTC)).tz_convert("UTC")
    prev = digest(record)
    added = []
    for lot, role, generation, plant in new:
        link = _link(prev, lot=lot, role=role, generation=generation, plant=plant)
        added.append((lot, role, generation, stamp, plant, prev, link))
        prev = link
    columns = list(zip(*added, strict=True)) or [()] * len(ASSIGNMENT_SCHEMA)
    arrays = [pa.array(column, type=f.type) for column, f in zip(columns, ASSIGNMENT_SCHEMA, strict=True)]
    old = to_arrow(record, schema=ASSIGNMENT_SCHEMA)
    dealt: pd.DataFrame = pa.concat_tables([old, pa.Table.from_arrays(arrays, schema=ASSIGNMENT_SCHEMA)]).to_pandas()
    return dealt


def to_parquet(assignments: pd.DataFrame) -> bytes:
    """The record as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(to_arrow(assignments, schema=ASSIGNMENT_SCHEMA), buffer)
    return buffer.getvalue()


def from_parquet(data: bytes) -> pd.DataFrame:
    """The record from the bytes of `to_parquet`, not yet verified."""
    record: pd.DataFrame = pq.read_table(io.BytesIO(data), schema=ASSIGNMENT_SCHEMA).to_pandas()
    return record


def digest(assignments: pd.DataFrame) -> str:
    """The name of the whole record: the last link of its chain."""
    return str(assignments["digest"].iloc[-1]) if len(assignments) else GENESIS


def verify(assignments: pd.DataFrame, *, contains: str | None = None) -> None:
    """Nothing was changed, removed from the middle or dealt twice; and the record goes on from `contains`, an earlier
    `digest`, when one is given (which finds a record whose end was cut off).

    Raises:
        InputError: naming the first row that breaks the chain.
    """
    prev, seen = GENESIS, set()
    columns = (assignments[name].tolist() for name in ("lot", "role", "generation", "plant", "prev", "digest"))
    for number, (lot, role, generation, plant, claimed_prev, claimed) in enumerate(zip(*columns, strict=True)):
        link = _link(prev, lot=lot, role=role, generation=generation, plant=plant)
        if claimed_prev != prev or claimed != link:
            raise tampered(f"row {number} (lot {lot}) breaks the chain: the record was changed")
        if role not in ROLES or lot in seen:
            raise tampered(f"row {number}: lot {lot} is dealt twice or to no known role")
        seen.add(lot)
        prev = link
    if contains is not None:
        check_contains(assignments, contains)


def check_contains(assignments: pd.DataFrame, head: str) -> None:
    """Raises InputError unless the record goes on from `head`, an earlier `digest` of it."""
    if head != GENESIS and not (assignments["digest"] == head).any():
        raise tampered(f"the record does not contain its earlier state {head[:12]}: its end was cut off or replaced")


def tampered(message: str) -> InputError:
    return InputError(message, file="assignments.parquet", remedy="Restore the file from a backup; do not deal again")


# --- rows in their roles -------------------------------------------------------------------------------------------


def with_roles(rows: pd.DataFrame, assignments: pd.DataFrame) -> pd.DataFrame:
    """The rows with columns `role` and `generation`. Raises InputError when a lot was never dealt."""
    at = pd.Index(assignments["lot"]).get_indexer(pd.Index(rows["lot"]))
    if (at < 0).any():
        lot = rows["lot"].iloc[int((at < 0).argmax())]
        raise InputError(f"lot {lot} was never dealt to a role", file="assignments.parquet", remedy="Run import again")
    return rows.assign(
        role=assignments["role"].to_numpy()[at].astype(str), generation=assignments["generation"].to_numpy()[at]
    )


def generation_of(assignments: pd.DataFrame, *, plant: str) -> int:
    """The latest generation that a plant dealt lots in; 1 at first. It is judged on the test lots of this one, and on
    those of later ones that other plants dealt."""
    numbers = assignments.loc[assignments["plant"] == plant, "generation"]
    return int(numbers.max()) if len(numbers) else 1


def seal(rows: pd.DataFrame) -> Sealed:
    """Rows with `role`, split in two: all rows with the answers of test rows blank, and those answers alone.

    What is kept for the audit alone, the smallest box and a customer's own columns, is blank there and not sealed.
    """
    is_test = (rows["role"] == "test").to_numpy()
    open_rows = rows.copy()
    told = [name for name in rows.columns if name in (*SEALED, "smallest_box") or name.startswith(OTHER)]
    for column in told:
        values = open_rows[column].astype(object)
        values[is_test] = None
        open_rows[column] = values if column == "box" else values.astype(rows[column].dtype)
    kept = [name for name in SEALED_COLUMNS if name in rows.columns]
    return Sealed(open_rows, rows.loc[is_test, kept].reset_index(drop=True))


def unseal(open_rows: pd.DataFrame, sealed_rows: pd.DataFrame) -> pd.DataFrame:
    """The test rows with their answers. Only `jobs/evaluate.py` calls this, after the ledger has counted it.

    Raises:
        InputError: when a test row has no sealed answer, or the answer is that of another image.
    """
    test = open_rows[open_rows["role"] == "test"]
    answers = sealed_rows.set_index("frame").reindex(test["frame"])
    unanswered = (answers["sha256"].to_numpy() != test["sha256"].to_numpy()).nonzero()[0]
    if len(unanswered):
        frame = test["frame"].iloc[int(unanswered[0])]
        raise InputError("a test row has no sealed answer for this image", file=str(frame), remedy="Run import again")
    return test.assign(**{column: answers[column].to_numpy() for column in SEALED if column in answers})


def realised_shares(rows: pd.DataFrame) -> dict[str, float]:
    """What share of the rows each role holds."""
    held = rows["role"].value_counts(normalize=True)
    return {role: float(held.get(role, 0.0)) for role in ROLES}


def realised(rows: pd.DataFrame) -> pd.DataFrame:
    """What the roles hold: one row a class and role, and `*` for all classes: lots, parts, rows, share of the rows."""
    counted = rows[["class", "role", "lot", "part_id", "frame"]]
    every = pd.concat([counted, counted.assign(**{"class": "*"})])
    found = every.groupby(["class", "role"], sort=True).agg(
        lots=("lot", "nunique"), parts=("part_id", "nunique"), rows=("frame", "size")
    )
    classes = sorted(every["class"].dropna().unique())
    index = pd.MultiIndex.from_product([classes, ROLES], names=["class", "role"])
    full = found.reindex(index, fill_value=0).reset_index()
    return full.assign(share=full["rows"] / full.groupby("class")["rows"].transform("sum"))
