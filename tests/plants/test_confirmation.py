"""A sealed test confirms, does not contradict, or contradicts; and it keeps or breaks what was promised."""

from __future__ import annotations

import numpy as np
import pytest

from plants.confirmation import against_promise, standing
from plants.stats import Rate


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("cost", -9.0, -1.0, "confirmed"),
        ("cost", -9.0, 1.0, "not contradicted"),
        ("cost", 1.0, 9.0, "contradicted"),
        ("macro_f1", 0.01, 0.1, "confirmed"),
        ("macro_f1", -0.1, -0.01, "contradicted"),
        ("macro_f1", None, None, None),
    ],
)
def test_less_money_and_more_macro_f1_confirm(metric, low, high, expected):
    assert standing({"metric": metric, "low": low, "high": high}) == expected
    assert standing(None) is None


def cell(*, f1: tuple[float, float, float], cost: tuple[float, float, float] | None = None) -> dict[str, float | None]:
    """A cell of the matrix."""
    of_cost = cost or (None, None, None)
    names = [f"{metric}{end}" for metric in ("macro_f1", "cost") for end in ("", "_low", "_high")]
    return dict(zip(names, (*f1, *of_cost), strict=True))


def test_money_comes_before_macro_f1_and_a_figure_without_an_interval_promises_nothing():
    good, poor = (0.9, 0.85, 0.95), (0.6, 0.5, 0.7)
    found = against_promise(cell(f1=poor, cost=(100, 80, 120)), cell(f1=good, cost=(105, 90, 130)))
    assert (found["metric"], found["diff"], found["words"]) == ("cost", -5, "as promised")
    found = against_promise(cell(f1=poor), cell(f1=good, cost=(105, 90, 130)))
    assert (found["metric"], found["words"]) == ("macro_f1", "worse than promised")
    assert against_promise(cell(f1=(0.9, None, None)), cell(f1=good)) is None
    dear = against_promise(cell(f1=good, cost=(300, 200, 400)), cell(f1=good, cost=(100, 80, 120)))
    assert dear["words"] == "worse than promised"
    assert against_promise(cell(f1=good, cost=(100, 80, 120)), cell(f1=good, cost=(300, 200, 400)))["words"] == (
        "better than promised"
    )


def test_what_was_promised_of_the_same_line_is_rarely_said_to_be_broken():
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(400):
        cells = []
        for _ in range(2):
            rate = Rate(int(rng.binomial(80, 0.8)), 80)
            interval = rate.interval()
            cells.append(cell(f1=(rate.value, interval.low, interval.high)))
        broken += against_promise(*cells)["words"] != "as promised"
    assert broken <= 32
