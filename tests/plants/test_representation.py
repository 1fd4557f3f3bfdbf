"""What the test leaves out is named: each planted gap is found, and a test that covers the line has none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from plants.plant import Plant
from plants.representation import unrepresented

PLANT = Plant.model_validate(
    {
        "name": "mill",
        "images": "x",
        "classes": {"good": "ok", "crack": "crack"},
        "ok": ["good"],
        "environments": {"line1": {}, "line2": {}},
    }
)
MONTHS = pd.period_range("2025-07", "2026-06", freq="M")


def line(seed: int, *, num_lots: int = 720) -> pd.DataFrame:
    """Lots of three frames over a year, two lines and three products, a fifth of each month's lots in the test."""
    rng = np.random.default_rng(seed)
    lots = pd.DataFrame(
        {
            "environment": [f"line{n}" for n in rng.integers(1, 3, num_lots)],
            "product": rng.choice(["a", "b", "c"], num_lots).astype(object),
            "captured_at": [
                MONTHS[i % 12].start_time.tz_localize("UTC") + pd.Timedelta(days=3) for i in range(num_lots)
            ],
            "role": ["test" if i // 12 % 5 == 0 else "train" for i in range(num_lots)],
            "lot": [f"L{i}" for i in range(num_lots)],
        }
    )
    return lots.loc[lots.index.repeat(3)].reset_index(drop=True)


def kinds(rows: pd.DataFrame, *, is_by_time: bool = False) -> dict[str, tuple[str, str]]:
    """Kind -> level and sentence."""
    found = unrepresented(PLANT, rows, is_by_time=is_by_time)
    return {kind: (level, detail) for level, kind, detail, _ in found}


@pytest.mark.parametrize("seed", range(20))
def test_a_test_that_covers_the_line_has_no_finding(seed):
    assert kinds(line(seed)) == {}


PLANTED = {
    "environment_not_tested": ("environment", "line2"),
    "product_not_tested": ("product", "b"),
    "month_not_tested": ("month", "2025-11"),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", PLANTED)
def test_what_only_the_other_roles_hold_is_named_and_counted_and_nothing_else(kind, seed):
    column, value = PLANTED[kind]
    rows = line(seed)
    months = rows["captured_at"].dt.strftime("%Y-%m")
    here = (months if column == "month" else rows[column]) == value
    rows.loc[here, "role"] = "train"
    ((found, (level, detail)),) = kinds(rows).items()
    assert (found, level) == (kind, "warning")
    assert f"{column} {value} ({here.sum()} frames)" in detail


def test_months_without_any_image_are_named():
    rows = line(0)
    months = rows["captured_at"].dt.strftime("%Y-%m")
    ((kind, (level, detail)),) = kinds(rows[~months.isin(["2025-09", "2026-02"])]).items()
    assert (kind, level) == ("months_without_images", "warning")
    assert detail.endswith(": 2025-09, 2026-02")


def test_where_the_newest_lots_are_the_test_older_months_are_only_written_down():
    rows = line(0)
    rows["role"] = np.where(rows["captured_at"] < pd.Timestamp("2026-05-01", tz="UTC"), "train", "test")
    level, detail = kinds(rows, is_by_time=True)["month_not_tested"]
    assert level == "info"
    assert "the newest lots are the test" in detail
    assert "2026-05" not in detail


def test_without_times_nothing_is_said_about_months_but_that():
    rows = line(0).assign(captured_at=pd.NaT)
    assert set(kinds(rows)) == {"times_unknown"}
    assert set(kinds(rows.drop(columns="captured_at"))) == {"times_unknown"}


def test_rows_without_a_product_count_as_none():
    assert kinds(line(0).assign(product=None)) == {}
