"""What a customer hands over, as raw rows: class folders (with a `boxes.csv` at the top), a CSV or a Parquet table.

Nothing is judged here but what is not a row at all; what a row means is decided in `plants.labels`, from the cells
read here. Also the way back: rows as an Arrow table with a schema.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plants.errors import InputError
from plants.plant import Plant

BOXES_FILE = "boxes.csv"

Box = tuple[int, int, int, int]


class Files(Protocol):
    """Where a plant's frames lie: a folder, or a prefix in a bucket."""

    def list(self, uri: str) -> Sequence[tuple[str, int]]:
        """Relative path and size in bytes of every file below `uri`."""
        ...

    def read(self, uri: str, relpath: str) -> bytes:
        """The bytes of one file. Raises InputError or OSError."""
        ...


class Rejected(NamedTuple):
    """A row or file that was not taken, and why."""

    frame: str
    reason: str


class Refused(Exception):
    """One row cannot be taken; the text is the reason."""


class RawRows(NamedTuple):
    """Rows as written: `frame`, `class` and any other named cell that is not blank."""

    rows: list[dict[str, Any]]
    rejected: list[Rejected]
    notes: list[str]


def raw_rows(plant: Plant, *, sizes: Mapping[str, int], files: Files) -> RawRows:
    """One dict a row as the customer wrote it. `sizes` holds every file of the plant's folder.

    Raises:
        InputError: when the table cannot be read or lacks a column.
    """
    return _from_table(plant, sizes=sizes, files=files) if plant.labels else _from_folders(plant, sizes, files=files)


def _from_folders(plant: Plant, sizes: Mapping[str, int], *, files: Files) -> RawRows:
    raw = RawRows([], [], [])
    boxes = _boxes(plant, sizes=sizes, files=files, rejected=raw.rejected)
    for path in sorted(sizes):
        folder, slash, _ = path.partition("/")
        if slash:
            raw.rows.extend({"frame": path, "class": folder, **box} for box in boxes.get(path, [{}]))
        elif path != BOXES_FILE:
            raw.rejected.append(Rejected(path, "lies in no class folder; put frames into <class>/"))
    return raw


def _boxes(
    plant: Plant, *, sizes: Mapping[str, int], files: Files, rejected: list[Rejected]
) -> dict[str, list[dict[str, Any]]]:
    if BOXES_FILE not in sizes:
        return {}
    table = _parsed(plant, data=files.read(plant.images, BOXES_FILE), address=f"{plant.images}/{BOXES_FILE}")
    table = table.rename(columns={"image": "frame"})
    columns = ["x0", "y0", "x1", "y1"]
    if not {"frame", *columns} <= set(table.columns):
        rejected.append(Rejected(BOXES_FILE, f"lacks one of the columns frame, {', '.join(columns)}"))
        return {}
    boxes: dict[str, list[dict[str, Any]]] = {}
    for record in table.to_dict("records"):
        frame = _path(record["frame"])
        if frame in sizes:
            boxes.setdefault(frame, []).append({"box": [record[column] for column in columns]})
        else:
            rejected.append(Rejected(f"{BOXES_FILE}: {frame}", "no such file in the plant's folder"))
    return boxes


def _from_table(plant: Plant, *, sizes: Mapping[str, int], files: Files) -> RawRows:
    address = str(plant.labels)
    folder, _, name = address.rpartition("/")
    try:
        data = files.read(folder, name)
    except (InputError, OSError) as error:
        raise _unread(error, plant=plant, address=address) from None
    table = _parsed(plant, data=data, address=address)
    missing = [column for column in ("frame", "class") if column not in table.columns]
    if missing:
        raise InputError(
            f"lacks the column {' and '.join(missing)}; it has {', '.join(table.columns)}",
            plant=plant.name,
            file=address,
            field="labels",
            remedy="Rename the columns; `frame` is a path relative to `images`",
        )
    rows = []
    for record in table.to_dict("records"):
        row = {str(key): value for key, value in record.items() if not _is_blank(value)}
        rows.append({**row, "frame": _path(row.get("frame", ""))})
    unnamed = len(set(sizes) - {row["frame"] for row in rows} - {address.removeprefix(f"{plant.images}/")})
    notes = [f"{unnamed} files in {plant.images} are not named in {address}"] if unnamed else []
    return RawRows(rows, [], notes)


def _unread(error: InputError | OSError, *, plant: Plant, address: str) -> InputError:
    """Why the table cannot be read, for the person who wrote its address."""
    if isinstance(error, FileNotFoundError):
        remedy = "Correct `labels` in the fleet file"
        return InputError("there is no such file", plant=plant.name, file=address, field="labels", remedy=remedy)
    if isinstance(error, InputError):
        at = {"file": error.file or address, "field": error.field or "labels", "remedy": error.remedy}
        return InputError(error.detail, plant=plant.name, **at)
    reason = (error.strerror or type(error).__name__).lower()
    remedy = "Check the path and its rights"
    return InputError(reason, plant=plant.name, file=address, field="labels", remedy=remedy)


def _parsed(plant: Plant, *, data: bytes, address: str) -> pd.DataFrame:
    try:
        if address.lower().endswith((".parquet", ".pq")):
            table: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
        else:
            text = data.decode("utf-8-sig")
            separator = max(",;\t", key=text.partition("\n")[0].count)
            table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", plant=plant.name, file=address, remedy="Save it as CSV UTF-8") from None
    except (pa.ArrowInvalid, ValueError) as error:
        words = str(error).strip().split("\n")[0]
        raise InputError(f"is not a readable table ({words})", plant=plant.name, file=address) from None
    return table.rename(columns=lambda name: re.sub(r"^([xy][01])_px$", r"\1", str(name).strip()))


def _path(value: Any) -> str:
    """A frame's path as the plant's folder is listed: forward slashes, no leading `./`."""
    return str(value).replace("\\", "/").removeprefix("./")


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return bool(value is None or (pd.api.types.is_scalar(value) and pd.isna(value)))


def text_cell(raw: Mapping[str, Any], key: str) -> str | None:
    """The cell as text, None where it is blank."""
    value = raw.get(key)
    return None if value is None or not str(value).strip() else str(value)


def number_cell(raw: Mapping[str, Any], key: str, *, default: float | None) -> float | None:
    """The cell as a number. Raises Refused when it is none."""
    text = text_cell(raw, key)
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        raise Refused(f"{key} {text!r} is not a number") from None


def time_cell(raw: Mapping[str, Any]) -> pd.Timestamp | None:
    """The cell `captured_at` in UTC; without a zone it is taken as UTC. Raises Refused when it is no time."""
    value = raw.get("captured_at")
    if value is None:
        return None
    try:
        stamp = pd.Timestamp(value)
    except (TypeError, ValueError):
        raise Refused(f"captured_at {value!r} is not a time; write it like 2026-03-31T14:05:00Z") from None
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")


def box_cell(raw: Mapping[str, Any]) -> Box | None:
    """x0, y0, x1, y1 from a cell `box` or from four cells. Raises Refused when they are no box."""
    value = raw.get("box")
    if value is None:
        value = [raw.get(key) for key in ("x0", "y0", "x1", "y1")]
        if all(number is None for number in value):
            return None
    numbers = re.split(r"[\s,;]+", value.strip(" []()")) if isinstance(value, str) else list(value)
    try:
        x0, y0, x1, y1 = (round(float(number)) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"the box {value!r} is not four numbers x0, y0, x1, y1") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise Refused(f"the box {x0}, {y0}, {x1}, {y1} is empty or inverted; it is x0, y0, x1, y1")
    return x0, y0, x1, y1


def to_arrow(frame: pd.DataFrame, *, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, exactly typed and without pandas' metadata: equal rows give equal bytes."""
    columns = []
    for field in schema:
        values = frame[field.name]
        zone = getattr(values.dt, "tz", None) if pd.api.types.is_datetime64_any_dtype(values.dtype) else None
        plain = values.dt.tz_convert(None) if zone is not None else values
        columns.append(pa.array(plain.to_numpy(), type=field.type, from_pandas=True))
    return pa.Table.from_arrays(columns, schema=schema)
