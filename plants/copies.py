"""What pictures that show the same mean for lots and roles: kept in one lot where none is known, else kept apart.

A model that has learned from a picture is flattered by a copy of it in a split that judges. Where no lot is known each
picture is a lot of its own, so pictures that show the same can simply share one. Known lots, and pictures dealt before,
never move: of two copies in different roles one is quarantined, and plays no role from then on. So is a picture whose
lot becomes known, or is corrected, after it was dealt, where that lot has another role.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from plants.duplicates import Pair

MANY = 20
QUARANTINE = "quarantine"
"""In place of a role: the row is kept, and neither learned from nor judged on."""
_HELD_OUT = {"train": 0, "select": 1, "decide": 2, "test": 3}


class Quarantined(NamedTuple):
    """A frame that plays no role while it shows this image, the role of its lot, and why it plays none."""

    frame: str
    sha256: str
    role: str
    copy_of: str = ""
    was: str = ""
    """The role it was dealt before its lot was known as it is now; empty for copies."""
    was_generation: int = 0
    part: str = ""
    """The part that plays another role at another plant, where that is why; empty for copies."""

    @property
    def why(self) -> str:
        """In words."""
        if self.was:
            return f"it was dealt to {self.was} before its lot was known as it is now"
        return f"part {self.part} plays another role in {self.copy_of}" if self.part else f"a copy of {self.copy_of}"

    def to_json(self) -> dict[str, str | int]:
        """Plain data, without what is empty."""
        return {name: value for name, value in self._asdict().items() if value or name == "copy_of"}


def with_recorded_lots(rows: pd.DataFrame, recorded: pd.DataFrame | None) -> pd.DataFrame:
    """Label rows whose lot is unknown stay in the lot that an earlier import has recorded, also saved anew."""
    if recorded is None:
        return rows
    lots = dict(zip(recorded["frame"], recorded["lot"], strict=True))
    triples = zip(rows["frame"], rows["lot"], rows["lot_known"], strict=True)
    return rows.assign(lot=[lot if known else lots.get(frame, lot) for frame, lot, known in triples])


def settled(rows: pd.DataFrame, recorded: pd.DataFrame, *, dealt: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Role and generation of known lots that were never dealt and hold frames that were, under other lots.

    Those of most of these frames, of equals the less held out. recorded: Label rows with `role` and `generation`.
    """
    new = rows.loc[rows["lot_known"].astype(bool) & ~rows["lot"].isin(list(dealt)), ["frame", "lot"]]
    both = new.merge(recorded[["frame", "role", "generation"]], on="frame")
    counts = both.groupby(["lot", "role", "generation"]).size().reset_index(name="n")
    counts["rank"] = counts["role"].map(_HELD_OUT)
    first = counts.sort_values(["n", "rank", "generation"], ascending=[False, True, True]).drop_duplicates("lot")
    triples = zip(first["lot"], first["role"], first["generation"], strict=True)
    return {lot: (role, int(generation)) for lot, role, generation in triples}


def moved(rows: pd.DataFrame, was: pd.DataFrame) -> dict[str, Quarantined]:
    """Rows by frame whose lot has not the role, or of tests the generation, that the frame was dealt before.

    rows, was: Label rows with `role` and `generation`, as they are now and as they were dealt first.
    """
    both = rows[["frame", "sha256", "role", "generation"]].merge(
        was[["frame", "role", "generation"]], on="frame", suffixes=("", "_was")
    )
    is_test = (both["role"] == "test") & (both["generation"] != both["generation_was"])
    out = both[(both["role"] != both["role_was"]) | is_test]
    columns = (out[name].tolist() for name in ("frame", "sha256", "role", "role_was", "generation_was"))
    return {
        frame: Quarantined(frame, sha, role, was=before, was_generation=generation)
        for frame, sha, role, before, generation in zip(*columns, strict=True)
    }


def dealt_first(rows: pd.DataFrame, quarantined: Mapping[str, Quarantined]) -> pd.DataFrame:
    """Label rows with the `role` and `generation` that they were dealt before their lots were known."""
    first = {frame: row for frame, row in quarantined.items() if row.was}
    at = rows["frame"].isin(list(first)).to_numpy()
    role, generation = rows["role"].to_numpy(object).copy(), rows["generation"].to_numpy().copy()
    role[at] = [first[frame].was for frame in rows.loc[at, "frame"]]
    generation[at] = [first[frame].was_generation for frame in rows.loc[at, "frame"]]
    return rows.assign(role=role.astype(str), generation=generation)


def equal_files(rows: pd.DataFrame, *, num_asked: int) -> list[Pair]:
    """Positions of rows of equal `sha256`, of which one is among the first `num_asked`.

    Every pair of a few; of more than `MANY`, each with the first of them and with the next.
    """
    at: dict[str, list[int]] = {}
    for i, sha in enumerate(rows["sha256"]):
        at.setdefault(sha, []).append(i)
    pairs: list[tuple[int, int]] = []
    for same in at.values():
        if len(same) > MANY:
            pairs += [(same[0], j) for j in same[1:]] + list(pairwise(same))
        elif len(same) > 1:
            pairs += combinations(same, 2)
    return [Pair(i, j, 1.0) for i, j in pairs if i < num_asked]


def same_parts(rows: pd.DataFrame, others: pd.DataFrame) -> list[Pair]:
    """Positions of rows, and after them of other plants' rows of a part of the same id that plays another role there.

    Of each part and role at another plant the first row. An id that is but the frame's path says nothing.
    """
    mine = rows.assign(i=np.arange(len(rows)))[["i", "part_id", "role"]][rows["part_id"] != rows["frame"]]
    theirs = others.assign(j=np.arange(len(others)))[["j", "plant", "part_id", "role"]]
    theirs = theirs[others["part_id"] != others["frame"]].drop_duplicates(["plant", "part_id", "role"])
    both = mine.merge(theirs, on="part_id", suffixes=("", "_there"))
    is_apart = (both["role"] != both["role_there"]) & (both[["role", "role_there"]] != QUARANTINE).all(axis=1)
    return [Pair(i, len(rows) + j, 1.0) for i, j in both.loc[is_apart, ["i", "j"]].to_numpy(int).tolist()]


def linked(rows: pd.DataFrame, pairs: Iterable[Pair], *, recorded: frozenset[str] = frozenset()) -> pd.DataFrame:
    """The rows, those of unknown lots that show the same in one lot: that of a row whose lot is known or recorded.

    pairs: Positions in `rows`. recorded: Lots that were dealt before, of which rows never leave.
    """
    edges = np.array([(pair.i, pair.j) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(rows), len(rows)))
    _, group_of = connected_components(graph, directed=False)
    lots, known = rows["lot"].to_numpy(object).copy(), rows["lot_known"].to_numpy(bool)
    fixed = known | np.isin(lots.astype(str), list(recorded))
    for group in np.flatnonzero(np.bincount(group_of, minlength=1) > 1):
        at = np.flatnonzero(group_of == group)
        free = at[~fixed[at]]
        lots[free] = min(lots[at[fixed[at]]], default=min(lots[free], default=None)) if len(free) else None
    return rows.assign(lot=lots.astype(str))


def quarantine(
    rows: pd.DataFrame, pairs: Iterable[Pair], *, others: pd.DataFrame, known_frames: frozenset[str]
) -> list[Quarantined]:
    """Rows that may play no role, sorted: the newer one of two copies in different roles, else the more held out.

    Args:
        rows: Label rows of one plant, with `role` and `generation`. Only these are quarantined. The tests of two
            generations are kept apart as two roles are.
        pairs: Positions in `rows`, and after them in `others`.
        others: Label rows of the other plants, with `role` and `plant`, all imported before.
        known_frames: Frames of `rows` that an earlier import has recorded.
    """
    found: dict[str, Quarantined] = {}
    names = [
        *rows["frame"],
        *(f"{plant}:{frame}" for plant, frame in zip(others["plant"], others["frame"], strict=True)),
    ]
    roles: Sequence[str] = [*rows["role"], *others["role"]]
    parts = list(zip(roles, [*rows["generation"], *others["generation"]], strict=True))
    n = len(rows)
    for i, j, _ in pairs:
        is_apart = roles[i] != roles[j] or (roles[i] == "test" and parts[i] != parts[j])
        if not is_apart or QUARANTINE in (roles[i], roles[j]) or min(i, j) >= n:
            continue
        if max(i, j) >= n:
            out, other = min(i, j), max(i, j)
        else:
            age = {at: (names[at] not in known_frames, _HELD_OUT[roles[at]], names[at]) for at in (i, j)}
            out, other = (i, j) if age[i] > age[j] else (j, i)
        found.setdefault(names[out], Quarantined(names[out], rows["sha256"].iloc[out], roles[out], names[other]))
    return [found[name] for name in sorted(found)]


def apart(rows: pd.DataFrame, quarantined: Mapping[str, object]) -> pd.DataFrame:
    """The rows with `role`, those of quarantined frames without one."""
    return rows.assign(role=rows["role"].where(~rows["frame"].isin(list(quarantined)), QUARANTINE))
