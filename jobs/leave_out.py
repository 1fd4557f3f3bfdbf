"""What a model is worth where it has never been: one plant, one environment or one product is left out of its learning.

Written `mill`, `mill/cam2` or `mill:product=B7`, and `all` for every plant in turn. Without a plant the others are
pooled; without an environment or a product the plant's other images teach a model of its own recipe. It is judged on
what was left out, beside the plant's own model, which has seen it: out-of-plant and in-plant are never the same figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from plants.errors import InputError
from plants.hashing import sha256
from plants.plant import Fleet

FIELD = "--leave-out"
ALL = "all"
"""Every plant that is pooled with two others, each left out in turn."""
What = Literal["plant", "environment", "product"]


@dataclass(frozen=True)
class LeftOut:
    """A plant, or one of its environments or products."""

    plant: str
    what: What = "plant"
    value: str = ""

    def __str__(self) -> str:
        joined = {"plant": "", "environment": f"/{self.value}", "product": f":product={self.value}"}
        return f"{self.plant}{joined[self.what]}"

    @property
    def slug(self) -> str:
        """A name for runs and files: plain characters, different for different values."""
        if self.what == "plant":
            return self.plant
        plain = re.sub(r"[^a-z0-9_]+", "-", self.value.lower()).strip("-")[:24]
        return f"{self.plant}-{self.what}-{plain}-{sha256(self.value.encode())[:6]}"

    def holds(self, rows: pd.DataFrame) -> pd.Series:
        """Which of the plant's label rows are left out [N], bool."""
        return pd.Series(True, index=rows.index) if self.what == "plant" else rows[self.what] == self.value

    def check(self, rows: pd.DataFrame) -> None:
        """Raises InputError when there is nothing to leave out, or nothing left to learn from."""
        out = self.holds(rows)
        given = {"plant": self.plant, "field": FIELD}
        if not out.any():
            known = ", ".join(sorted(map(str, rows[self.what].dropna().unique()))) or "none"
            raise InputError(f"no frame is of {self.what} {self.value!r}", remedy=f"There are: {known}", **given)
        if self.what != "plant" and not (rows.loc[~out, "role"] == "train").any():
            raise InputError(f"without {self.what} {self.value!r} nothing is left to learn from", **given)


def named(texts: Iterable[str], *, fleet: Fleet) -> list[LeftOut]:
    """What is named one by one: all but `ALL`. Raises InputError for what the fleet does not know."""
    return [parse(text, fleet=fleet) for text in dict.fromkeys(texts) if text != ALL]


def parse(text: str, *, fleet: Fleet | None = None) -> LeftOut:
    """What `--leave-out` names. Raises InputError for what the fleet, where it is given, does not know."""
    name, mark, rest = re.fullmatch(r"([^/:]*)([/:]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if fleet is not None:
        fleet.plant(name)
    if not mark:
        return LeftOut(name)
    value = rest if mark == "/" else rest.removeprefix("product=")
    if not value or (mark == ":" and value == rest):
        remedy = f"Write {name}, {name}/ENVIRONMENT or {name}:product=PRODUCT"
        raise InputError(f"{text!r} names no environment and no product", plant=name, field=FIELD, remedy=remedy)
    if mark == "/" and fleet is not None and value not in fleet.plant(name).environments:
        known = ", ".join(fleet.plant(name).environments)
        raise InputError(f"has no environment {value!r}", plant=name, field=FIELD, remedy=f"There are: {known}")
    return LeftOut(name, "environment" if mark == "/" else "product", value)
