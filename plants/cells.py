"""Whole columns of cells as customers write them, read at once; of each row the first thing that is wrong is kept.

Each different cell is judged once, by a function of one cell that says what is wrong with it, so that a million rows
cost about as much as their different values. Boxes and times, which may differ in every row, are read by numpy and
pandas; only what those cannot read is judged alone, for the sake of its words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from plants.tables import CORNERS

Objects = npt.NDArray[np.object_]
Ints = npt.NDArray[np.int64]
MAX_PX = 2**31 - 1


class Refused(Exception):
    """One cell cannot be taken; the text is the reason."""


class Cells:
    """The cells of a table, N rows, and why rows are refused."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self.reasons: Objects = np.full(len(table), None, dtype=object)
        """[N] the first reason of each row, None where there is none."""

    def refuse(self, reasons: Objects) -> None:
        """Rows that had no reason have this one, where it is not None or NaN."""
        self.reasons = np.where(pd.isna(self.reasons) & pd.notna(reasons), reasons, self.reasons)

    def judged(self, values: Any, judge: Callable[[Any], Any]) -> Objects:
        """What the function makes of each value, None where it refuses or gives nothing. Values [N], out [N]."""
        try:
            codes, different = pd.factorize(values, use_na_sentinel=False)
        except TypeError:  # lists, in a Parquet file
            codes, different = pd.factorize(np.array([str(value) for value in values], dtype=object))
        made, why = np.full((2, len(different)), None, dtype=object)
        for i, value in enumerate(different.tolist()):
            try:
                made[i] = judge(value)
            except Refused as refusal:
                why[i] = str(refusal)
        self.refuse(why[codes])
        return made[codes]

    def column(self, name: str, judge: Callable[[Any], Any] = lambda cell: cell) -> Objects:
        """A column's cells as `judge` reads them from their text, None where blank or where there is no column."""
        if name not in self.table.columns:
            return np.full(len(self.table), None, dtype=object)
        return self.judged(self.table[name], lambda cell: None if is_blank(cell) else judge(str(cell)))

    def times(self, name: str) -> pd.Series[pd.Timestamp]:
        """A column's cells in UTC, NaT where blank; those without a zone are taken as UTC."""
        if name not in self.table.columns:
            return pd.Series(pd.NaT, index=self.table.index, dtype="datetime64[us, UTC]")
        codes, different = pd.factorize(self.table[name], use_na_sentinel=False)
        values = pd.Series(different)
        is_time = pd.api.types.is_datetime64_any_dtype(values.dtype)
        texts = values if is_time else values.where(values.map(lambda cell: isinstance(cell, str)))
        read = pd.to_datetime(texts, utc=True, errors="coerce", format=None if is_time else "ISO8601")
        read = read.astype("datetime64[us, UTC]")
        why = np.full(len(values), None, dtype=object)
        for i in np.flatnonzero(read.isna()):
            try:
                read.iloc[int(i)] = None if is_blank(values.iloc[i]) else _time(values.iloc[i], name=name)
            except Refused as refusal:
                why[i] = str(refusal)
        self.refuse(why[codes])
        found: pd.Series[pd.Timestamp] = read.take(codes).set_axis(self.table.index)
        return found

    def boxes(self) -> Ints:
        """[N, 4] x0, y0, x1, y1 from a column `box` or from four columns; zeros where there is none."""
        found = np.zeros((len(self.table), 4), dtype=np.int64)
        present = [name for name in ("box", *CORNERS) if name in self.table.columns]
        if not present:
            return found
        alone = np.ones(len(found), dtype=bool)
        if set(CORNERS) <= set(present):
            numbers = np.column_stack([pd.to_numeric(self.table[name], errors="coerce") for name in CORNERS])
            numbers = np.rint(numbers.astype(float))
            x0, y0, x1, y1 = numbers.T
            alone = ~((x0 >= 0) & (x0 < x1) & (y0 >= 0) & (y0 < y1) & (numbers <= MAX_PX).all(axis=1))
            found[~alone] = numbers[~alone]
        if "box" in present:
            alone |= self.table["box"].notna().to_numpy()
        why = np.full(len(found), None, dtype=object)
        columns = {name: self.table[name].to_numpy(dtype=object) for name in present}
        for i in np.flatnonzero(alone):
            try:
                found[i] = _box({name: cells[i] for name, cells in columns.items() if not is_blank(cells[i])})
            except Refused as refusal:
                why[i] = str(refusal)
        self.refuse(why)
        return found


def is_blank(value: Any) -> bool:
    """Whether nothing was written: white space, None, NaN."""
    if isinstance(value, str):
        return not value.strip()
    return bool(value is None or (pd.api.types.is_scalar(value) and pd.isna(value)))


def number(text: str, *, name: str) -> float:
    """A cell as a float. Raises Refused."""
    try:
        return float(text)
    except ValueError:
        raise Refused(f"{name} {text!r} is not a number") from None


def _time(value: Any, *, name: str) -> pd.Timestamp:
    try:
        stamp = pd.Timestamp(value)
    except (TypeError, ValueError):
        raise Refused(f"{name} {value!r} is not a time; write it like 2026-03-31T14:05:00Z") from None
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")


def _box(cells: dict[str, Any]) -> tuple[int, ...]:
    """Four whole numbers, zeros where all cells are blank. Raises Refused."""
    if not cells:
        return 0, 0, 0, 0
    value = cells.get("box", [cells.get(name) for name in CORNERS])
    if not isinstance(value, str) and all(is_blank(number) for number in value):
        return 0, 0, 0, 0
    numbers = re.split(r"[\s,;]+", value.strip(" []()")) if isinstance(value, str) else list(value)
    try:
        x0, y0, x1, y1 = (round(float(number)) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"the box {value!r} is not four numbers x0, y0, x1, y1") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise Refused(f"the box {x0}, {y0}, {x1}, {y1} is empty or inverted; it is x0, y0, x1, y1")
    if max(x1, y1) > MAX_PX:
        raise Refused(f"the box {x0}, {y0}, {x1}, {y1} leaves every frame")
    return x0, y0, x1, y1
