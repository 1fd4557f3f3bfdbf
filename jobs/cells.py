"""Cells of the report: words from outside escaped, figures rounded for the eye and whole in the element's `value`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

Document = Mapping[str, Any]
"""What `compare` writes."""
Show = Callable[[float], str]

NONE = '<span class="none">–</span>'
SYNTHETIC = "These data are synthetic"


def text(value: Any) -> str:
    """The value as text that is no markup; a dash for nothing."""
    return NONE if value in (None, "") else escape(str(value))


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f}"


def money(value: float) -> str:
    """An amount."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def whole_money(value: float) -> str:
    """An amount beside larger ones."""
    return f"{value:,.0f}"


def count(value: float) -> str:
    """How many."""
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """A time."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def number(value: float | None, *, show: Any = percent) -> str:
    """The number for the eye, and as the document has it in `value`."""
    return NONE if value is None else f'<data value="{value!r}">{show(value)}</data>'


def figure_of(figure: Mapping[str, Any] | None, *, show: Any = percent) -> str:
    """A number with its range, or with the words that say why there is none."""
    if not figure or figure.get("value") is None:
        return NONE
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None:
        words = figure.get("words")
        return number(figure["value"], show=show) + (f' <span class="range">{text(words)}</span>' if words else "")
    if show is money and max(map(abs, (figure["value"], low, high))) >= 100:
        show = whole_money
    ends = f"({number(low, show=show)} to {number(high, show=show)})"
    return f'{number(figure["value"], show=show)} <span class="range">{ends}</span>'


def gap_of(figure: Mapping[str, Any] | None, *, show: Any) -> str:
    """A difference with its range, and what it says."""
    words = figure.get("words") if figure and figure.get("low") is not None else None
    return figure_of(figure, show=show) + (f' <span class="range">{text(words)}</span>' if words else "")


METRICS = (("macro_f1", percent), ("cost", money))
