"""Does the test stand for the line: stations, products and months that are in the data but not in the test split.

Where and when a frame was taken is open for sealed rows too; what it shows is not.
"""

from __future__ import annotations

import pandas as pd

from plants.findings import Found
from plants.plant import Plant


def unrepresented(plant: Plant, rows: pd.DataFrame, *, is_by_time: bool) -> Found:
    """What of the line the data, or the test split, leave out. is_by_time: the newest lots are the test by order."""
    months = _months(rows)
    seen = set(rows["environment"])
    for name in (name for name in plant.environments if name not in seen):
        yield (
            "warning",
            "empty_environment",
            f"environment {name} is declared but has no image",
            "Import images of it, or remove it",
        )
    gaps = _gaps(months)
    if gaps:
        yield (
            "warning",
            "months_without_images",
            f"between the first and the last image, nothing was taken in: {', '.join(gaps)}",
            "Import images of these months, or say why the line stood still",
        )
    elif months.isna().all():
        yield (
            "info",
            "times_unknown",
            "no image has a time: nobody can tell which months the data and the test stand for",
            "Add the column captured_at",
        )
    if "role" not in rows.columns:
        return
    is_test = rows["role"] == "test"
    products = rows["product"] if "product" in rows.columns else pd.Series(None, index=rows.index, dtype=object)
    for kind, column in (("environment", rows["environment"]), ("product", products), ("month", months)):
        absent = _absent(column, is_test=is_test)
        if not absent:
            continue
        is_meant = kind == "month" and is_by_time
        why = "the newest lots are the test, as `shares.order` says" if is_meant else "no figure will hold there"
        yield (
            "info" if is_meant else "warning",
            f"{kind}_not_tested",
            f"missing from the test split: {kind} {', '.join(absent)}: {why}",
            "None; for the record" if is_meant else "Import more lots of it",
        )


def _absent(column: pd.Series, *, is_test: pd.Series) -> list[str]:
    """The values, with how many frames they have, that no frame of the test has."""
    counts = column[~column.isin(set(column[is_test].dropna()))].value_counts().sort_index()
    return [f"{value} ({n} frames)" for value, n in counts.items()]


def _months(rows: pd.DataFrame) -> pd.Series:
    """Year and month of each row, in UTC; missing where the time is."""
    if "captured_at" not in rows.columns:
        return pd.Series(None, index=rows.index, dtype=object)
    at = pd.to_datetime(rows["captured_at"], utc=True)
    return at.dt.strftime("%Y-%m").astype(object).where(at.notna(), None)


def _gaps(months: pd.Series) -> list[str]:
    """Months without any row between the first and the last."""
    seen = set(months.dropna())
    if not seen:
        return []
    every = pd.period_range(min(seen), max(seen), freq="M").strftime("%Y-%m")
    return [month for month in every if month not in seen]
