"""What a customer hands over, as raw rows: class folders (with a `boxes.csv` at the top), a CSV or a Parquet table.

Nothing is judged here but what is not a row at all; what a row means is decided in `plants.labels`, from the cells
read here. Also the way back: rows as an Arrow table with a schema.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plants.errors import InputError
from plants.plant import Plant

BOXES_FILE = "boxes.csv"
CORNERS = ["x0", "y0", "x1", "y1"]
COLUMNS = (
    *("frame", "class", "sha256", "part_id", "product", "pose", "lot", "severity", "box", *CORNERS),
    *("captured_at", "environment", "annotator", "source", "sample_prob", "incumbent"),
)
"""What is read of a label table."""
OTHER = "other:"
"""What stands before the name of a column of a customer's own in the label table."""
MAX_OTHERS = 20


class Listed(NamedTuple):
    """One file of a listing."""

    path: str
    """Relative to what was listed, with `/`."""
    size: int
    """In bytes."""
    version: str = ""
    """Differs whenever the bytes may: an ETag, or the times of a file. Empty where nothing says so."""


class Files(Protocol):
    """Where a plant's frames lie: a folder, or a prefix in a bucket."""

    def list(self, uri: str) -> Sequence[Listed]:
        """Every file below `uri`."""
        ...

    def read(self, uri: str, relpath: str) -> bytes:
        """The bytes of one file. Raises InputError or OSError."""
        ...


class Rejected(NamedTuple):
    """A row or file that was not taken, and why."""

    frame: str
    reason: str


class RawRows(NamedTuple):
    """Rows as written: a table with `frame`, `class` and whatever other columns there are."""

    table: pd.DataFrame
    rejected: list[Rejected]
    notes: list[str]


def raw_rows(plant: Plant, *, listed: Mapping[str, Listed], files: Files) -> RawRows:
    """One row each as the customer wrote it. `listed` holds every file of the plant's folder by its path.

    Raises:
        InputError: when the table cannot be read or lacks a column.
    """
    return _from_table(plant, listed, files=files) if plant.labels else _from_folders(plant, listed, files=files)


def _from_folders(plant: Plant, listed: Mapping[str, Listed], *, files: Files) -> RawRows:
    rejected: list[Rejected] = []
    boxes = _boxes(plant, listed, files=files, rejected=rejected)
    paths = [path for path in sorted(listed) if "/" in path]
    own = (BOXES_FILE, (plant.incumbent or "").removeprefix(f"{plant.images}/"))
    stray = [path for path in sorted(listed) if "/" not in path and path not in own]
    rejected += [Rejected(path, "lies in no class folder; put frames into <class>/") for path in stray]
    table = pd.DataFrame({"frame": paths, "class": [path.partition("/")[0] for path in paths]}, dtype=str)
    return RawRows(table.merge(boxes, on="frame", how="left"), rejected, [])


def _boxes(plant: Plant, listed: Mapping[str, Listed], *, files: Files, rejected: list[Rejected]) -> pd.DataFrame:
    """Frame and `box`, a list of what stands in the four columns."""
    none = pd.DataFrame({"frame": pd.Series(dtype=str), "box": pd.Series(dtype=object)})
    if BOXES_FILE not in listed:
        return none
    table = _parsed(plant, data=files.read(plant.images, BOXES_FILE), address=f"{plant.images}/{BOXES_FILE}")
    table = table.rename(columns={"image": "frame"})
    if not {"frame", *CORNERS} <= set(table.columns):
        rejected.append(Rejected(BOXES_FILE, f"lacks one of the columns frame, {', '.join(CORNERS)}"))
        return none
    frames = _paths(table["frame"])
    is_there = frames.isin(listed)
    rejected += [
        Rejected(f"{BOXES_FILE}: {frame}", "no such file in the plant's folder") for frame in frames[~is_there]
    ]
    boxes = pd.Series(table[CORNERS].to_numpy(dtype=object).tolist(), index=table.index, dtype=object)
    return pd.DataFrame({"frame": frames, "box": boxes})[is_there]


def _from_table(plant: Plant, listed: Mapping[str, Listed], *, files: Files) -> RawRows:
    address = str(plant.labels)
    table = read_named(plant, address=address, field="labels", files=files)
    missing = [column for column in ("frame", "class") if column not in table.columns]
    if missing:
        raise InputError(
            f"lacks the column {' and '.join(missing)}; it has {', '.join(table.columns)}",
            plant=plant.name,
            file=address,
            field="labels",
            remedy="Rename the columns; `frame` is a path relative to `images`",
        )
    unnamed = len(listed.keys() - set(table["frame"].unique()) - {address.removeprefix(f"{plant.images}/")})
    notes = [f"{unnamed} files in {plant.images} are not named in {address}"] if unnamed else []
    return RawRows(table, [], [*notes, *_unused(table.columns)])


def read_named(plant: Plant, *, address: str, field: str, files: Files) -> pd.DataFrame:
    """A table that this field of the fleet file names, its frames as the plant's folder is listed.

    Raises InputError when it cannot be read.
    """
    folder, _, name = address.rpartition("/")
    try:
        data = files.read(folder, name)
    except (InputError, OSError) as error:
        raise _unread(error, plant=plant, address=address, field=field) from None
    table = _parsed(plant, data=data, address=address)
    return table.assign(frame=_paths(table["frame"])) if "frame" in table else table


def others(table: pd.DataFrame) -> pd.DataFrame:
    """The first columns that are none of `COLUMNS`, under `OTHER`; not those of bytes or lists."""
    names = [name for name in table.columns if name not in COLUMNS and _is_plain(table[name])]
    return table[names[:MAX_OTHERS]].add_prefix(OTHER)


def _is_plain(column: pd.Series) -> bool:
    return all(pd.api.types.is_scalar(cell) and not isinstance(cell, bytes) for cell in column.dropna().head(1))


def _unused(columns: Iterable[str]) -> list[str]:
    """What is said of columns that are none of `COLUMNS`: each with the one that it may have been meant for."""
    there = list(columns)
    absent = [name for name in COLUMNS if name not in there]
    told = []
    for name in there:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name.casefold(), absent, n=1, cutoff=0.8)
            name = "".join(letter if letter.isprintable() else "?" for letter in name)
            told.append(f"{name} (did you mean {near[0]}?)" if near else name)
    more = f" and {len(told) - MAX_OTHERS} more" if len(told) > MAX_OTHERS else ""
    only = f"; `audit` alone reads them{f', {MAX_OTHERS} at most' if more else ''}, for shortcuts"
    return [f"columns not used: {', '.join(told[:MAX_OTHERS])}{more}{only}"] if told else []


def _unread(error: InputError | OSError, *, plant: Plant, address: str, field: str) -> InputError:
    """Why the table cannot be read, for the person who wrote its address."""
    if isinstance(error, FileNotFoundError):
        remedy = f"Correct `{field}` in the fleet file"
        return InputError("there is no such file", plant=plant.name, file=address, field=field, remedy=remedy)
    if isinstance(error, InputError):
        at = {"file": error.file or address, "field": error.field or field, "remedy": error.remedy}
        return InputError(error.detail, plant=plant.name, **at)
    reason = (error.strerror or type(error).__name__).lower()
    remedy = "Check the path and its rights"
    return InputError(reason, plant=plant.name, file=address, field=field, remedy=remedy)


def _parsed(plant: Plant, *, data: bytes, address: str) -> pd.DataFrame:
    try:
        if address.lower().endswith((".parquet", ".pq")):
            table: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
        else:
            head = data.partition(b"\n")[0]
            separator = max(",;\t", key=lambda sign: head.count(sign.encode()))
            table = pd.read_csv(io.BytesIO(data), sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", plant=plant.name, file=address, remedy="Save it as CSV UTF-8") from None
    except (pa.ArrowInvalid, ValueError) as error:
        words = str(error).strip().split("\n")[0]
        raise InputError(f"is not a readable table ({words})", plant=plant.name, file=address) from None
    table = table.rename(columns=lambda name: re.sub(r"^([xy][01])_px$", r"\1", str(name).strip()))
    return table.loc[:, ~table.columns.duplicated(keep="last")]


def _paths(values: pd.Series[str]) -> pd.Series[str]:
    """Frames' paths as the plant's folder is listed: forward slashes, no leading `./`; empty where blank."""
    text = values.astype(str).where(values.notna(), "").str.replace("\\", "/", regex=False)
    return text.where(text.str.strip() != "", "").str.removeprefix("./")


def to_arrow(frame: pd.DataFrame, *, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, exactly typed and without pandas' metadata: equal rows give equal bytes."""
    columns = []
    for field in schema:
        values = frame[field.name]
        zone = getattr(values.dt, "tz", None) if pd.api.types.is_datetime64_any_dtype(values.dtype) else None
        plain = values.dt.tz_convert(None) if zone is not None else values
        columns.append(pa.array(plain.to_numpy(), type=field.type, from_pandas=True))
    return pa.Table.from_arrays(columns, schema=schema)
