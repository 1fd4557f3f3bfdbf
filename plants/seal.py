"""How often the sealed test may be opened. Pure: the ledger is text, the caller keeps it in storage.

A test that is looked at often enough becomes a validation set. A generation of test lots may be opened five times at a
plant; then new lots are needed, dealt as the next generation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import AwareDatetime, Field, ValidationError

from plants.errors import InputError, SealError
from plants.plant import Config

BUDGET = 5


class Opening(Config):
    """One look at the answers of a plant's test lots."""

    generation: int = Field(ge=1)
    plant: str = Field(min_length=1)
    who: str = Field(min_length=1)
    bundles: tuple[str, ...]
    """Digests of what was evaluated."""
    at: AwareDatetime

    @property
    def line(self) -> str:
        """The ledger's line, newline included."""
        record = {**self.model_dump(), "bundles": list(self.bundles), "at": self.at.astimezone(UTC).isoformat()}
        return json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"


def read_ledger(text: str) -> list[Opening]:
    """Every opening, oldest first. Raises InputError naming a line that is none: an unreadable ledger opens nothing."""
    openings = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            openings.append(Opening.model_validate_json(line))
        except ValidationError:
            raise InputError(
                f"line {number} is not an opening of the sealed test",
                file="sealed/ledger.jsonl",
                remedy="Restore the file from a backup; the seal stays closed until then",
            ) from None
    return openings


def num_openings(openings: Sequence[Opening], *, plant: str, generation: int) -> int:
    """How often this plant's test of this generation was opened."""
    return sum(opening.plant == plant and opening.generation == generation for opening in openings)


def check_budget(openings: Sequence[Opening], *, plant: str, generation: int, budget: int = BUDGET) -> int:
    """How many openings remain after the one that is asked for.

    Raises:
        SealError: when the generation's budget is spent.
    """
    spent = num_openings(openings, plant=plant, generation=generation)
    if spent >= budget:
        last = max(o.at for o in openings if o.plant == plant and o.generation == generation) if spent else None
        when = f", last on {last:%Y-%m-%d}" if last else ""
        raise SealError(
            f"the sealed test of generation {generation} was opened {spent} times of {budget}{when}",
            plant=plant,
            file="sealed/ledger.jsonl",
            remedy="Go by `decide`, or import new lots as a new generation: `crossplant import --new-generation`",
        )
    return budget - spent - 1


def opened(*, plant: str, generation: int, who: str, bundles: Sequence[str], at: datetime) -> Opening:
    """The record of an opening. Raises SealError when it does not say who, for what and when."""
    try:
        return Opening(generation=generation, plant=plant, who=who, bundles=tuple(bundles), at=at)
    except ValidationError as error:
        fault = error.errors()[0]
        raise SealError(
            f"an opening must say who, for which bundles and when: {fault['msg']}",
            plant=plant,
            field=".".join(str(part) for part in fault["loc"]),
        ) from None
