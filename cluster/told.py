"""What a person should know of how an import dealt rows: lots and parts of other plants, moves, corrections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from plants import splits
from plants.copies import Quarantined
from plants.duplicates import Pair


def moves_told(quarantined: Mapping[str, Quarantined]) -> list[str]:
    """How many frames play no role because their lot was known too late."""
    num = sum(bool(row.was) for row in quarantined.values())
    words = (
        f"{num} frames were dealt before their lots were known as they are now, and to other roles than their lots "
        "have: frames never move, so these play no role; a new `store:` deals everything anew"
    )
    return [words] if num else []


def shares_told(rows: pd.DataFrame, assignments: pd.DataFrame, *, plant: str) -> list[str]:
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


def parts_told(rows: pd.DataFrame, others: pd.DataFrame, *, pairs: Sequence[Pair]) -> list[str]:
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


def corrections_told(num_corrected: int, *, where: str) -> list[str]:
    """That sealed answers changed, and where the trace of them lies."""
    return [f"{num_corrected} answers of the sealed test changed; the trace is in {where}"] if num_corrected else []
