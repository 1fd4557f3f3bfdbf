"""The inspection that stands there already, people or rules, as one more model to compare with. It is never served.

Its verdicts stand in a column `incumbent` of the plant's label table, or in a table of their own that `incumbent` names
in the fleet file: `frame` or `part_id`, and `incumbent`. A verdict is ok, reject, review, or a class of the plant. What
is written there is kept as it is and read when it is judged; of test rows it is sealed with the answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from plants.errors import InputError
from plants.findings import Found
from plants.plant import Plant
from plants.policy import OK, REJECT, REVIEW, VERDICTS, Policy
from plants.scores import Mask, PartScores
from plants.tables import Files, read_named

INCUMBENT = "incumbent"
"""The column, the field of the fleet file, and the row of the matrix."""
NUM_NAMED = 3
BETWEEN = 0.5
"""The defect mass of a part that is left to a person."""


@dataclass(frozen=True)
class Word:
    """One verdict."""

    verdict: int
    """An index into `plants.policy.VERDICTS`."""
    named: str | None = None
    """The class that it names, if any."""


def read_word(text: Any, *, plant: Plant) -> Word | None:
    """What was written as a verdict, None where it is none. A class of the plant comes before the three words."""
    written = str(text).strip()
    if written in plant.classes:
        return Word(OK if written in plant.ok else REJECT, written)
    word = written.casefold()
    return Word([*VERDICTS].index(word), None) if word in VERDICTS else None


def verdict_of_part(words: Sequence[Word]) -> Word:
    """The verdict on a part whose frames were judged one by one: one that is stopped stops it, else a person looks.

    Of several defects that are named the most frequent, of equals the first by name.
    """
    for verdict in (REJECT, REVIEW):
        found = [word for word in words if word.verdict == verdict]
        if found:
            names = Counter(word.named for word in found if word.named)
            return Word(verdict, min(names, key=lambda name: (-names[name], name)) if names else None)
    return words[0]


def with_verdicts(rows: pd.DataFrame, *, plant: Plant, files: Files, notes: list[str]) -> pd.DataFrame:
    """The rows with what the plant's own table of verdicts says of their frames or parts, where there is one.

    Raises InputError for a table that cannot be read, lacks a column or contradicts itself.
    """
    if plant.incumbent:
        rows = rows.assign(incumbent=_from_table(rows, plant=plant, files=files, notes=notes))
    if words := nonsense(rows[INCUMBENT], plant=plant):
        notes.append(words)
    return rows


def _from_table(rows: pd.DataFrame, *, plant: Plant, files: Files, notes: list[str]) -> npt.NDArray[Any]:
    address = str(plant.incumbent)
    table = read_named(plant, address=address, field=INCUMBENT, files=files)
    at = {"plant": plant.name, "file": address, "field": INCUMBENT}
    keys = [name for name in ("frame", "part_id") if name in table]
    if not keys or INCUMBENT not in table:
        what = f"needs a column frame or part_id, and a column {INCUMBENT}; it has {', '.join(table.columns)}"
        raise InputError(what, **at, remedy="Rename the columns")
    key = keys[0]
    said = table[[key, INCUMBENT]].astype(str).apply(lambda column: column.str.strip()).drop_duplicates()
    said = said[(said[INCUMBENT] != "") & ~said[key].isin(["", "nan", "None"])]
    same = said.assign(_word=[read_word(word, plant=plant) or word for word in said[INCUMBENT]])
    said = said[~same.duplicated([key, "_word"])]
    twice = said.loc[said[key].duplicated(), key]
    if len(twice):
        what = f"{twice.nunique()} of them have two verdicts, the first is {key} {twice.iloc[0]!r}"
        raise InputError(what, **at, remedy="Write one verdict for each")
    is_known = said[key].isin(rows[key])
    if not is_known.all():
        first = said.loc[~is_known, key].iloc[0]
        unknown = f"{(~is_known).sum()} of {len(said)} verdicts in {address} are of no known {key}, first {first!r}"
        notes.append(unknown)
    found = rows[key].map(dict(zip(said[key], said[INCUMBENT], strict=True)))
    return found.where(found.notna(), rows[INCUMBENT]).to_numpy(dtype=object)


def nonsense(said: pd.Series[Any], *, plant: Plant) -> str | None:
    """What is written as a verdict and is none, in one line; None where there is nothing of the sort."""
    counts = said.dropna().value_counts()
    odd = {str(text): int(n) for text, n in counts.items() if read_word(text, plant=plant) is None}
    if not odd:
        return None
    first = ", ".join(f"{text!r} ({n})" for text, n in list(odd.items())[:NUM_NAMED])
    more = f" and {len(odd) - NUM_NAMED} other words" if len(odd) > NUM_NAMED else ""
    return (
        f"{sum(odd.values())} of {counts.sum()} verdicts of the incumbent inspection are none: {first}{more}; "
        f"known: {', '.join(VERDICTS)} and the plant's classes"
    )


def findings(plant: Plant, rows: pd.DataFrame) -> Found:
    """What the audit says of the incumbent's verdicts."""
    if INCUMBENT in rows.columns and (words := nonsense(rows[INCUMBENT], plant=plant)):
        yield (
            "warning",
            "incumbent_verdicts",
            words,
            "Correct them; until then they count as no verdict",
        )


@dataclass(frozen=True)
class Incumbent:
    """The existing inspection on the labelled parts that it has judged, N of them."""

    rows: Mask
    """[P] which of the parts these are."""
    scores: PartScores
    """Its verdicts as defect mass: none, half, or all of a part's mass outside the good classes."""
    policy: Policy
    """Turns that mass into the verdicts again, at the plant's prices."""
    named: PartScores | None
    """What it calls the parts, a part that it only stops by no class at all; None where it names no defect."""


def judged(
    parts: PartScores, *, said: npt.NDArray[Any], part_of: npt.NDArray[np.intp], plant: Plant
) -> Incumbent | None:
    """The incumbent at a plant; None where it has judged none of the parts [P].

    said: What it says of each frame [F], None or NaN where nothing. part_of: Each frame's part [F].
    """
    words: dict[int, list[Word]] = {}
    for text, part in zip(said, part_of, strict=True):
        word = None if pd.isna(text) else read_word(text, plant=plant)
        if word is not None:
            words.setdefault(int(part), []).append(word)
    if not words:
        return None
    rows = np.isin(np.arange(len(parts)), list(words))
    verdicts = [verdict_of_part(words[i]) for i in np.flatnonzero(rows).tolist()]
    these = parts.take(rows)
    names = any(word.named is not None and word.verdict == REJECT for word in verdicts)
    policy = Policy(
        plant=plant.name,
        classes=parts.classes,
        ok=parts.ok,
        pass_below=BETWEEN / 2,
        reject_above=1 - BETWEEN / 2,
        impossible_above=1.0,
        costs=plant.costs,
    )
    return Incumbent(rows, _scores(these, verdicts), policy, _named(these, verdicts) if names else None)


def _scores(parts: PartScores, verdicts: Sequence[Word]) -> PartScores:
    """Mass on good classes 1, a half or 0, by the verdict; what is rejected has its mass nowhere."""
    probs = np.zeros((len(parts), len(parts.classes)))
    good = int(np.argmax(parts.ok_mask))
    if parts.ok:
        mass = {OK: 1.0, REVIEW: 1 - BETWEEN, REJECT: 0.0}
        probs[:, good] = [mass[word.verdict] for word in verdicts]
    return _of(parts, probs, classes=parts.classes)


def _named(parts: PartScores, verdicts: Sequence[Word]) -> PartScores:
    """Mass 1 on the class that is named; a last class without a name takes what is stopped without one.

    A plain ok says of a good part that it is of whatever good class it is.
    """
    classes = (*parts.classes, "")
    probs = np.zeros((len(parts), len(classes)))
    for row, word, truth in zip(probs, verdicts, parts.truth, strict=True):
        is_plain_ok = word.verdict == OK and word.named is None and bool(parts.ok)
        name = (truth if truth in parts.ok else parts.ok[0]) if is_plain_ok else word.named
        row[classes.index(name) if name in classes else -1] = 1.0
    return _of(parts, probs, classes=classes)


def _of(parts: PartScores, probs: npt.NDArray[np.float64], *, classes: tuple[str, ...]) -> PartScores:
    return PartScores(
        part_ids=parts.part_ids,
        lots=parts.lots,
        environments=parts.environments,
        truth=parts.truth,
        probs=probs,
        classes=classes,
        ok=parts.ok,
    )
