"""Which frames of an import are copies of others, here and at the other plants, and which could not be compared.

Equal files are found in any number. What only looks the same is found while the fleet is not too large to hold and the
frames that are asked about are not too many to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from plants import copies
from plants.alignment import SIDE_PX, Pixels
from plants.duplicates import Pair, near_duplicates
from plants.errors import InputError
from plants.governance import kept
from plants.plant import Plant

MAX_ASKED = 20_000
"""Frames that one import compares with all others. Measured, one core: 39 ms each among 20,000 frames, 67 ms among
100,000, 100 ms among 200,000, so 13 to 33 minutes for so many, beside reading them."""
MAX_FRAMES = 200_000
"""Frames of a fleet above which only equal files are found; so many take 2.7 GB."""


class Looked(NamedTuple):
    """What frames look like."""

    signatures: Pixels
    """[N, 64, 64], as `plants.duplicates.signature`; zeros where not known."""
    is_known: npt.NDArray[np.bool_]
    """[N]"""


Look = Callable[[Plant, pd.DataFrame, bool], Looked]
"""What the frames of label rows look like, which are read or, if not, only known. Raises InputError."""
Tables = Sequence[tuple[Plant, pd.DataFrame]]


class Compared(NamedTuple):
    """Copies by position in the rows and after them in those of the other plants, and what was not compared."""

    pairs: list[Pair]
    notes: list[str]


def compared(
    rows: pd.DataFrame, *, plant: Plant, recorded: pd.DataFrame | None, others: Tables, look: Look | None
) -> Compared:
    """Which of a plant's rows are copies of one another and of the other plants' rows.

    recorded: What an earlier import has recorded of the plant. Where the fleet has more than `MAX_ASKED` frames, only
        frames that are not in it are asked about, and those that no import has looked at.
    """
    if look is None:
        return Compared([], [])
    pairs = copies.equal_files(pd.concat([rows, *(table for _, table in others)]), num_asked=len(rows))
    num = len(rows) + sum(len(table) for _, table in others)
    if num > MAX_FRAMES:
        words = "only equal files were taken for copies, not what looks alike"
        return Compared(pairs, [f"the fleet's {num:,} frames are more than {MAX_FRAMES:,}: {words}"])
    asked = np.ones(len(rows), dtype=np.bool_)
    if num > MAX_ASKED:
        asked = _is_new(rows, recorded) | _is_unseen(rows, plant=plant, look=look)
        if asked.sum() > MAX_ASKED:
            words = "only equal files were taken for copies, not what looks alike"
            return Compared(pairs, [f"{asked.sum():,} frames to compare are more than {MAX_ASKED:,}: {words}"])
    if not asked.any():
        return Compared(pairs, [])
    order = np.argsort(~asked, kind="stable")
    first, rest = rows.iloc[order[: asked.sum()]], rows.iloc[order[asked.sum() :]]
    thumbs, notes = _thumbs([(plant, first, True), (plant, rest, False), *((*other, False) for other in others)], look)
    places = np.concatenate([order, np.arange(len(rows), num)])
    for i, j, score in near_duplicates(thumbs, num_asked=len(first)):
        low, high = sorted((int(places[i]), int(places[j])))
        pairs.append(Pair(low, high, score))
    return Compared(pairs, notes)


def _is_unseen(rows: pd.DataFrame, *, plant: Plant, look: Look) -> npt.NDArray[np.bool_]:
    """Which rows [N] no import has looked at, though it may."""
    may = rows["frame"].isin(kept(plant, rows, now=datetime.now(UTC))["frame"]).to_numpy(bool)
    return may & ~look(plant, rows, False).is_known


def _is_new(rows: pd.DataFrame, recorded: pd.DataFrame | None) -> npt.NDArray[np.bool_]:
    """Which rows [N] show an image that their frame has not shown before."""
    if recorded is None:
        return np.ones(len(rows), dtype=np.bool_)
    before = set(zip(recorded["frame"], recorded["sha256"], strict=True))
    return np.array([image not in before for image in zip(rows["frame"], rows["sha256"], strict=True)], dtype=np.bool_)


def _thumbs(tables: Sequence[tuple[Plant, pd.DataFrame, bool]], look: Look) -> tuple[Pixels, list[str]]:
    """Signatures [N, 64, 64] of rows that are read or only known, the first plant's own first, and what is not known.

    A plant that may not leave is not looked at for another one's import, nor one whose signatures cannot be reached.
    """
    own, num = tables[0][0], sum(len(table) for _, table, _ in tables)
    thumbs, notes, at = np.zeros((num, SIDE_PX, SIDE_PX), dtype=np.uint8), [], 0
    for plant, table, is_read in tables:
        is_known, why = np.zeros(len(table), dtype=np.bool_), ""
        if plant is not own and not plant.may_leave:
            why = f"its may_leave is false; its own import compares them with those of {own.name}"
        elif len(table):
            try:
                thumbs[at : at + len(table)], is_known = look(plant, table, is_read)
            except InputError as error:
                if is_read:
                    raise
                why = str(error)
        if not is_known.all():
            why = why or _why_unknown(plant, is_read=is_read)
            notes.append(f"{(~is_known).sum():,} of {len(table):,} frames of {plant.name} were not compared: {why}")
        at += len(table)
    return thumbs, notes


def _why_unknown(plant: Plant, *, is_read: bool) -> str:
    old = f"older than its {plant.retention_days} days of retention"
    if is_read:
        return f"they are {old}"
    unseen = "no import has looked at them"
    return f"{unseen}, or they are {old}" if plant.retention_days else unseen
