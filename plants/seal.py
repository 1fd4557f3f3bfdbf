"""How often the sealed test may be opened, and what was corrected in it. Pure: the caller keeps the records.

A test that is looked at often enough becomes a validation set. A generation of test lots may be opened five times at a
plant; then new lots are needed, dealt as the next generation. A sealed answer may be corrected, never unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from pydantic import AwareDatetime, Field, ValidationError

from plants.config import Config
from plants.errors import InputError, SealError

BUDGET = 5
START = "0" * 64
ANSWERS = ["class", "severity", "box"]
SEALED = [*ANSWERS, "incumbent"]
"""What the table that anybody may read does not say of test rows. What the existing inspection said is no answer that
could be corrected, but tells it."""


class Opening(Config):
    """One look at the answers of a plant's test lots."""

    generation: int = Field(ge=1)
    plant: str = Field(min_length=1)
    who: str = Field(min_length=1)
    bundles: tuple[str, ...]
    """Digests of what was evaluated."""
    at: AwareDatetime
    prev: str = START
    """Digest of the opening before, so that none can be changed or taken out unseen."""

    @property
    def digest(self) -> str:
        """SHA-256 of the line."""
        return hashlib.sha256(self.line.encode()).hexdigest()

    @property
    def line(self) -> str:
        """The ledger's line, newline included."""
        record = {**self.model_dump(), "bundles": list(self.bundles), "at": self.at.astimezone(UTC).isoformat()}
        return json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"


def read_ledger(text: str) -> list[Opening]:
    """Every opening, oldest first.

    Raises InputError naming a line that is none or does not go on from the one before: such a ledger opens nothing.
    """
    openings: list[Opening] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            opening = Opening.model_validate_json(line)
        except ValidationError:
            raise _broken(f"line {number} is not an opening of the sealed test") from None
        if opening.prev != (openings[-1].digest if openings else START):
            raise _broken(f"line {number} does not go on from the line before: the ledger was changed")
        openings.append(opening)
    return openings


def check_whole(openings: Sequence[Opening], *, last: str | None) -> None:
    """Raises InputError where the opening with the digest `last`, kept elsewhere, is not among these."""
    if last is not None and last not in {opening.digest for opening in openings}:
        raise _broken("openings that were counted are missing: its end was cut off, or it is gone")


def _broken(what: str) -> InputError:
    remedy = "Restore the file from a backup; the seal stays closed until then"
    return InputError(what, file="sealed/ledger.jsonl", remedy=remedy)


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


def opened(
    *, plant: str, generation: int, who: str, bundles: Sequence[str], at: datetime, after: Sequence[Opening] = ()
) -> Opening:
    """The record of an opening after others. Raises SealError when it does not say who, for what and when."""
    chain = {"prev": after[-1].digest} if after else {}
    try:
        return Opening(generation=generation, plant=plant, who=who, bundles=tuple(bundles), at=at, **chain)
    except ValidationError as error:
        fault = error.errors()[0]
        raise SealError(
            f"an opening must say who, for which bundles and when: {fault['msg']}",
            plant=plant,
            field=".".join(str(part) for part in fault["loc"]),
        ) from None


def corrections(before: pd.DataFrame, after: pd.DataFrame, *, plant: str, at: datetime, trace: str = "") -> list[str]:
    """A JSON line for every sealed answer that a new import changes, with what it was and what it is.

    before, after: Sealed rows (`frame`, `sha256` and the answers). A frame that is sealed no more is `removed`, one
        that is sealed again is removed no more; one that is sealed for the first time is no correction.
    trace: Every line written so far. What its last line of a frame and answer says already is not said again: an
        import that was killed after writing the trace is repeated.
    """
    told, new = _last_told(trace), after.set_index("frame")
    changes: dict[str, dict[str, tuple[Any, Any]]] = {}
    for old in before.to_dict("records"):
        frame = old["frame"]
        is_gone = frame not in new.index
        changes[frame] = {"removed": (False, True)} if is_gone else _changes(old, new.loc[frame].to_dict())
    for frame in new.index.difference(before["frame"].tolist()):
        if told.get((plant, frame), {}).get("removed") == (False, True):
            changes[frame] = {"removed": (True, False)}
    lines = []
    for frame, pairs in changes.items():
        for what, (was, now) in pairs.items():
            if told.get((plant, frame), {}).get(what) != (was, now):
                record = {
                    "plant": plant,
                    "frame": frame,
                    "what": what,
                    "before": was,
                    "after": now,
                    "at": at.isoformat(),
                }
                lines.append(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")
    return lines


def _last_told(trace: str) -> dict[tuple[str, str], dict[str, tuple[Any, Any]]]:
    """The last change told of each answer by plant and frame; what was told before a frame's removal is forgotten."""
    told: dict[tuple[str, str], dict[str, tuple[Any, Any]]] = {}
    for line in trace.split("\n"):
        if line:
            record = json.loads(line)
            key = record["plant"], record["frame"]
            known = {} if record["what"] == "removed" else told.get(key, {})
            told[key] = known | {record["what"]: (record["before"], record["after"])}
    return told


def _changes(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {what: (_plain(old[what]), _plain(new[what])) for what in (*ANSWERS, "sha256")}
    return {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, str | float) else [int(number) for number in value]
