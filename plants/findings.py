"""What an audit says: one thing that somebody should know, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
EVERY_PLANT = "*"
"""Stands for the plant in a finding about the whole fleet; no plant may be called so."""


class Finding(NamedTuple):
    """One thing that somebody should know, and what to do about it."""

    level: Level
    kind: str
    plant: str
    detail: str
    remedy: str


Found = Iterator[tuple[Level, str, str, str]]
"""Findings of one plant, without its name: level, kind, detail, remedy."""
