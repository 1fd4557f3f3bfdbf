"""What annotators say of frames, and the two tables that keep it: every verdict in `golden`, what all say in `labels`.

Both are CSV files that a customer may have begun and goes on editing, so only rows of frames that are judged now
change: all others keep the very characters they were written in, and a changed row keeps its other cells. Not for
learning, see `plants.labels`, nor for measuring how far people agree, see `plants.agreement`.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from plants.errors import InputError
from plants.plant import Plant

LABEL_COLUMNS = ("frame", "class", "annotator")
GOLDEN_COLUMNS = (*LABEL_COLUMNS, "sha256")
"""With the digest, for a frame that people disagree on has no label row that the audit could know it by."""

UNKNOWN = "labels"
"""Who said what a label table says without naming anybody."""
Verdicts = dict[str, dict[str, str]]
"""Frame -> annotator -> class."""
Said = Mapping[str, str | None]
"""Frame -> class, None where nothing is said of it any more."""


class Row(NamedTuple):
    """One row, and the characters it was written in, line ending included."""

    text: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A CSV file as it was written."""

    head: Row
    rows: tuple[Row, ...] = ()
    delimiter: str = ","
    mark: str = ""
    """The byte order mark that Excel puts first, or nothing."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each column stands; of several of one name the last, as `plants.tables` reads it."""
        return {column.strip(): place for place, column in enumerate(self.head.cells)}

    def cell(self, row: Row, name: str) -> str:
        """What the row says in a column, empty where it says nothing."""
        place = self.places.get(name, len(row.cells))
        return row.cells[place] if place < len(row.cells) else ""

    def frame(self, row: Row) -> str:
        """The row's frame, as the plant's folder is listed; see `plants.tables`."""
        return self.cell(row, "frame").replace("\\", "/").removeprefix("./")

    def written(self, given: Mapping[str, str], *, over: Row | None = None) -> Row:
        """A row with these cells, as far as there are such columns, and the other cells of `over`."""
        cells = list(over.cells if over else ())
        cells += [""] * (len(self.head.cells) - len(cells))
        for name, value in given.items():
            if name in self.places:
                cells[self.places[name]] = value
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator=_ending(self.head.text)).writerow(cells)
        return Row(text.getvalue(), tuple(cells))

    def to_bytes(self) -> bytes:
        """The file."""
        return "".join([self.mark, *(row.text for row in (self.head, *self.rows))]).encode()


@dataclass(frozen=True)
class Tables:
    """The two tables of a plant."""

    labels: Table
    golden: Table


@dataclass(frozen=True)
class Action:
    """What one annotator did at once, and what is needed to take it back."""

    annotator: str
    said: Said
    before: Verdicts
    """What everybody had said of these frames."""
    rows: Mapping[str, tuple[Row, ...]]
    """Frame -> its label rows as they were."""
    written: Mapping[str, tuple[Row, ...]]
    """The same afterwards."""
    head: Row
    """Of the label table that holds these rows."""
    adopted: Mapping[str, Mapping[str, str]]
    """Annotator -> frame -> class of the labels that became verdicts thereby."""


def table_addresses(plant: Plant) -> tuple[str, str]:
    """Where labels and verdicts of the plant are written. Raises InputError where the fleet file names no CSV."""
    for field, columns in (("labels", LABEL_COLUMNS), ("golden", LABEL_COLUMNS)):
        address = getattr(plant, field)
        remedy = f"Write `{field}: {plant.name}-{field}.csv` in the fleet file; the file need not exist yet"
        if not address:
            what = f"the fleet file names no table for the columns {', '.join(columns)}"
            raise InputError(what, plant=plant.name, field=field, remedy=remedy)
        if not address.lower().endswith(".csv"):
            raise InputError("verdicts are written to CSV", plant=plant.name, file=address, field=field, remedy=remedy)
    labels, golden = str(plant.labels), str(plant.golden)
    if labels == golden:
        what = "is the table of labels too, which holds one row a frame"
        raise InputError(what, plant=plant.name, file=golden, field="golden", remedy="Name another file")
    return labels, golden


def read_table(data: bytes | None, *, columns: Sequence[str], plant: str, address: str) -> Table:
    """The table in a file, empty with these columns where there is none. Raises InputError for what is no such table.

    Columns beyond `LABEL_COLUMNS` are added where they are missing; a label table needs no annotator.
    """
    at = {"plant": plant, "file": address}
    try:
        text = (data or b"").decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", **at, remedy="Save it as CSV UTF-8") from None
    mark, text = text[: text.startswith("\ufeff")], text.removeprefix("\ufeff")
    if not text.strip():
        text = ",".join(columns) + "\n"
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    try:
        first, *rows = _records(text if text.endswith(("\n", "\r")) else text + _ending(text), delimiter=delimiter)
    except csv.Error as error:
        raise InputError(f"is not a readable table ({error})", **at, remedy="Correct its quotes") from None
    table = Table(first, tuple(rows), delimiter, mark)
    needed = columns[:2] if columns == LABEL_COLUMNS else LABEL_COLUMNS
    if missing := [name for name in needed if name not in table.places]:
        raise InputError(f"lacks the column {' and '.join(missing)}", **at, remedy="Add it")
    new = [name for name in columns[len(LABEL_COLUMNS) :] if name not in table.places]
    return replace(table, head=table.written({}, over=Row("", (*first.cells, *new)))) if new else table


def read_verdicts(golden: Table, *, plant: Plant) -> Verdicts:
    """Everything that was said: of several rows of a frame and annotator the last counts."""
    declared, found = {_nfc(name): name for name in plant.classes}, Verdicts()
    for row in golden.rows:
        frame, who, word = golden.frame(row), golden.cell(row, "annotator"), golden.cell(row, "class")
        if frame and who and word:
            found.setdefault(frame, {})[who] = declared.get(_nfc(word), word)
    return found


def labelled_frames(labels: Table) -> set[str]:
    """The frames of which the label table names a class."""
    return {labels.frame(row) for row in labels.rows if labels.cell(row, "class").strip()}


def agreed(said: Mapping[str, str]) -> str | None:
    """The class that everybody says, None where nobody says one or they differ."""
    words = set(said.values())
    return words.pop() if len(words) == 1 else None


def judge(
    tables: Tables, *, plant: Plant, annotator: str, said: Said, digests: Mapping[str, str]
) -> tuple[Tables, Action]:
    """Both tables after one annotator's verdicts, and how to take them back; digests: SHA-256 of each of the frames.

    A label row has a class where all who judged its frame agree. Where they do not it has none, and is gone unless it
    holds more than that (a lot, a box). A label that was there before anybody judged its frame is the verdict of the
    annotator beside it: it is contradicted, never overwritten. Verdicts that were never given are not taken away.
    """
    verdicts = read_verdicts(tables.golden, plant=plant)
    said = {f: name for f, name in said.items() if name is not None or annotator in verdicts.get(f, {})}
    adopted = _given_before(tables.labels, frames=said.keys() - verdicts.keys(), plant=plant)
    adopted.pop(annotator, None)
    golden = tables.golden
    given: dict[str, Said] = {**adopted, annotator: said}
    for who, words in given.items():
        golden = _with_verdicts(golden, annotator=who, said=words, digests=digests)
    labels = _with_labels(tables.labels, said=read_verdicts(golden, plant=plant), frames=said, first=annotator)
    rows, written = _rows_of(said, labels=tables.labels), _rows_of(said, labels=labels)
    before = {frame: verdicts.get(frame, {}) for frame in said}
    return Tables(labels, golden), Action(annotator, dict(said), before, rows, written, labels.head, adopted)


def take_back(tables: Tables, *, plant: Plant, action: Action, digests: Mapping[str, str]) -> Tables:
    """The tables as if the action had not been, where nothing was said since: what came later stands.

    Frames of which the same is said as before, and whose label rows nobody has edited, have their very rows back.
    """
    verdicts = read_verdicts(tables.golden, plant=plant)
    stands = [f for f, name in action.said.items() if verdicts.get(f, {}).get(action.annotator) == name]
    said = {frame: action.before[frame].get(action.annotator) for frame in stands}
    given, _ = judge(tables, plant=plant, annotator=action.annotator, said=said, digests=digests)
    for who, words in action.adopted.items():
        now = read_verdicts(given.golden, plant=plant)
        alone = {frame: None for frame, word in words.items() if frame in said and now.get(frame) == {who: word}}
        given = replace(given, golden=_with_verdicts(given.golden, annotator=who, said=alone, digests=digests))
    after, there = read_verdicts(given.golden, plant=plant), _rows_of(said, labels=tables.labels)
    back = {
        frame: action.rows[frame]
        for frame in said
        if after.get(frame, {}) == action.before[frame]
        and there[frame] == action.written[frame]
        and tables.labels.head == action.head
    }
    return replace(given, labels=_with_rows(given.labels, rows=back))


def _given_before(labels: Table, *, frames: Iterable[str], plant: Plant) -> dict[str, dict[str, str]]:
    """Annotator -> frame -> class of the labels of these frames; `UNKNOWN` where no annotator stands there."""
    wanted, declared = set(frames), {_nfc(name): name for name in plant.classes}
    found: dict[str, dict[str, str]] = {}
    for row in labels.rows:
        word = labels.cell(row, "class").strip()
        if labels.frame(row) in wanted and word:
            who = labels.cell(row, "annotator").strip() or UNKNOWN
            found.setdefault(who, {})[labels.frame(row)] = declared.get(_nfc(word), word)
    return found


def _rows_of(frames: Iterable[str], *, labels: Table) -> dict[str, tuple[Row, ...]]:
    found: dict[str, tuple[Row, ...]] = dict.fromkeys(frames, ())
    for row in labels.rows:
        if (frame := labels.frame(row)) in found:
            found[frame] += (row,)
    return found


def _with_rows(labels: Table, *, rows: Mapping[str, tuple[Row, ...]]) -> Table:
    """These rows in place of all others of their frames, at the end where there were none."""
    kept, todo = list[Row](), dict(rows)
    for row in labels.rows:
        frame = labels.frame(row)
        kept += todo.pop(frame, ()) if frame in rows else (row,)
    return replace(labels, rows=(*kept, *(row for new in todo.values() for row in new)))


def _with_verdicts(golden: Table, *, annotator: str, said: Said, digests: Mapping[str, str]) -> Table:
    rows, todo = [], dict(said)
    for row in golden.rows:
        frame = golden.frame(row)
        if frame not in said or golden.cell(row, "annotator") != annotator:
            rows.append(row)
        elif name := todo.pop(frame, None):
            rows.append(golden.written({"class": name, "sha256": digests[frame]}, over=row))
    rows += [
        golden.written({"frame": frame, "class": name, "annotator": annotator, "sha256": digests[frame]})
        for frame, name in todo.items()
        if name
    ]
    return replace(golden, rows=tuple(rows))


def _with_labels(labels: Table, *, said: Verdicts, frames: Said, first: str) -> Table:
    """`first` stands as the annotator of a changed row, if it is among those who agree."""
    rows, todo = [], dict.fromkeys(frames)
    for row in labels.rows:
        frame = labels.frame(row)
        if frame not in frames:
            rows.append(row)
            continue
        todo.pop(frame, None)
        cells = _label(said.get(frame, {}), first=first)
        if cells["class"] and _nfc(labels.cell(row, "class")) == _nfc(cells["class"]):
            rows.append(row)
        elif cells["class"] or _holds_more(labels, row):
            rows.append(labels.written(cells, over=row))
    new = {frame: _label(said.get(frame, {}), first=first) for frame in todo}
    rows += [labels.written({"frame": frame, **cells}) for frame, cells in new.items() if cells["class"]]
    return replace(labels, rows=tuple(rows))


def _label(said: Mapping[str, str], *, first: str) -> dict[str, str]:
    name = agreed(said)
    who = first if first in said else next(iter(said), "")
    return {"class": name or "", "annotator": who if name else ""}


def _holds_more(labels: Table, row: Row) -> bool:
    own = {labels.places.get(name) for name in LABEL_COLUMNS}
    return any(cell.strip() for i, cell in enumerate(row.cells) if i not in own)


def _records(text: str, *, delimiter: str) -> Iterator[Row]:
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            taken.append(line)
            yield line

    for cells in csv.reader(lines(), delimiter=delimiter, strict=True):
        yield Row("".join(taken), tuple(cells))
        taken.clear()


def _ending(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
