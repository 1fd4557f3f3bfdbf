"""What each raw row claims about its frame, in the plant's words; rows that claim what cannot be are refused.

The checks stand in the order in which a person would want to hear of them: of each row the first that fails is said.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from plants.cells import Cells, Objects, Refused, is_blank, number
from plants.plant import Plant
from plants.tables import CORNERS, Listed, Rejected

MAX_LETTERS = 80
"""What is kept of a cell that is kept as it was written."""


def described(
    table: pd.DataFrame, *, plant: Plant, listed: Mapping[str, Listed], max_bytes: int, rejected: list[Rejected]
) -> pd.DataFrame:
    """The rows without what only their frames' bytes can tell, None where nothing is known; a box is four columns.

    The index is each row's place in the table. The order of the lines is the order of the checks.
    """
    cells = Cells(table)
    cells.judged(table["frame"], _checked_path)
    names = cells.judged(table["class"], _Classes(plant))
    cells.judged(table["frame"], functools.partial(_check_file, listed=listed, max_bytes=max_bytes))
    frame = table["frame"].to_numpy(dtype=object)
    part = _first(cells.column("part_id"), cells.judged(table["frame"], _matcher(plant.part_pattern)))
    lot = _first(cells.column("lot"), cells.judged(table["frame"], _matcher(plant.lot_pattern)))
    prob = _first(cells.column("sample_prob", _sample_prob), np.full(len(table), 1.0, dtype=object))
    claims = {
        "frame": frame,
        "sha256": cells.column("sha256"),
        "part_id": _first(part, frame),
        "product": cells.column("product"),
        "pose": cells.column("pose"),
        "lot": _first(lot, part),
        "class": names,
        "severity": cells.column("severity", _severity),
        **dict(zip(CORNERS, cells.boxes().T, strict=True)),
        "captured_at": cells.times("captured_at").array,
        "environment": _environments(cells, plant=plant),
        "annotator": cells.column("annotator"),
        "source": _first(cells.column("source"), np.full(len(table), "import", dtype=object)),
        "sample_prob": prob,
        "incumbent": cells.column("incumbent", lambda text: text.strip()[:MAX_LETTERS]),
    }
    is_good = pd.isna(cells.reasons)
    rejected += map(Rejected, frame[~is_good], cells.reasons[~is_good])
    return pd.DataFrame({name: values[is_good] for name, values in claims.items()}, index=np.flatnonzero(is_good))


def _checked_path(frame: str) -> None:
    if not frame:
        raise Refused("the row names no frame")
    if frame.startswith("/") or ".." in frame.split("/"):
        raise Refused("leaves the plant's folder")


def _check_file(frame: str, *, listed: Mapping[str, Listed], max_bytes: int) -> None:
    if frame not in listed:
        raise Refused("no such file in the plant's folder")
    if (size := listed[frame].size) > max_bytes:
        raise Refused(f"{size / 2**20:.0f} MiB are more than the limit of {max_bytes / 2**20:.0f} MiB")


class _Classes:
    """A written class as the plant declares it. Raises Refused."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.declared = {_nfc(name): name for name in plant.classes}

    def __call__(self, value: Any) -> str:
        written = "" if is_blank(value) else str(value)
        if not written:
            raise Refused("the row has no class")
        name = self.declared.get(_nfc(written))
        if name is None and written != written.strip():
            raise Refused(f"the class name {written!r} has white space at its ends; rename it to {written.strip()!r}")
        if name is None:
            raise Refused(f"unknown class {written!r}; known: {', '.join(self.plant.classes)}")
        state = self.plant.classes[name].state
        if state != "occurs":
            raise Refused(f"class {name!r} is declared {state} at this plant; set its state to occurs")
        return name


def _severity(text: str) -> float:
    severity = number(text, name="severity")
    if not 0 <= severity <= 1:
        raise Refused(f"severity {severity:g} is not within 0..1")
    return severity


def _sample_prob(text: str) -> float:
    prob = number(text, name="sample_prob")
    if not 0 < prob <= 1:
        raise Refused(f"sample_prob {prob} is not within 0..1")
    return prob


def _environments(cells: Cells, *, plant: Plant) -> Objects:
    known = ", ".join(plant.environments)

    def declared(name: Any) -> str:
        if is_blank(name) and plant.environment_pattern:
            raise Refused(f"environment_pattern does not match; known environments: {known}")
        if is_blank(name) and len(plant.environments) == 1:
            return next(iter(plant.environments))
        if is_blank(name):
            raise Refused(f"the row names no environment; known: {known}")
        if name not in plant.environments:
            raise Refused(f"unknown environment {name!r}; known: {known}")
        return str(name)

    named = _first(cells.column("environment"), cells.judged(cells.table["frame"], _matcher(plant.environment_pattern)))
    return cells.judged(named, declared)


def _first(values: Objects, others: Objects) -> Objects:
    """The values, and where they are None the others."""
    return np.where(pd.isna(values), others, values)


def _matcher(pattern: str | None) -> Callable[[str], str | None]:
    """What the pattern finds in a frame's path, or None."""

    def matched(frame: str) -> str | None:
        match = re.search(pattern, frame) if pattern else None
        return (match.group(1) or None) if match else None

    return matched


def _nfc(text: str) -> str:
    """The composed form: a Mac writes `ö` in folder names as two characters."""
    return unicodedata.normalize("NFC", text)
