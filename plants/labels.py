"""The label row, and how a plant's folders or table become label rows. Nothing is lost: what is refused is listed.

A row is one frame. Boxes and sizes are in pixels of the upright frame (EXIF orientation applied). Where a frame has
several boxes (rows that differ in nothing else) the largest is kept, and a note says so.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plants.errors import InputError
from plants.hashing import sha256
from plants.images import MAX_BYTES, MAX_PIXELS, decode, view_boxes
from plants.plant import Plant
from plants.tables import (
    Files,
    Refused,
    Rejected,
    box_cell,
    number_cell,
    raw_rows,
    text_cell,
    time_cell,
    to_arrow,
)

LABEL_SCHEMA = pa.schema(
    [
        pa.field("frame", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("part_id", pa.string(), nullable=False),
        pa.field("product", pa.string()),
        pa.field("pose", pa.string()),
        pa.field("lot", pa.string(), nullable=False),
        pa.field("lot_known", pa.bool_(), nullable=False),
        pa.field("class", pa.string()),
        pa.field("severity", pa.float64()),
        pa.field("box", pa.list_(pa.int32())),
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
        pa.field("environment", pa.string(), nullable=False),
        pa.field("annotator", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sample_prob", pa.float64(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
    ]
)
NUM_READERS = 8

Progress = Callable[[int, int], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """The label rows of one plant, what was refused, and what a person should know about the rest."""

    rows: pd.DataFrame
    rejected: list[Rejected]
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Rows a class."""
        return {str(name): int(n) for name, n in self.rows["class"].value_counts().sort_index().items()}


def read_rows(
    plant: Plant,
    *,
    files: Files,
    progress: Progress | None = None,
    num_readers: int = NUM_READERS,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Imported:
    """Every frame of the plant that can be learned from, as label rows sorted by frame; every image was decoded.

    Raises:
        InputError: when the folder or the table cannot be read or holds no usable row, or when several environments
            are declared and nothing tells which one a frame is from.
    """
    sizes = dict(files.list(plant.images))
    if not sizes:
        raise InputError(
            f"there are no files in {plant.images}", plant=plant.name, field="images", remedy="Correct the address"
        )
    raw, rejected, notes = raw_rows(plant, sizes=sizes, files=files)
    _check_environments(plant, raw)
    declared = {_nfc(name): name for name in plant.classes}
    rows: list[Row] = []
    for cells in raw:
        try:
            rows.append(_described(cells, plant=plant, declared=declared, sizes=sizes, max_bytes=max_bytes))
        except Refused as refusal:
            rejected.append(Rejected(str(cells["frame"]), str(refusal)))
    rows = _without_duplicates(rows, rejected=rejected, notes=notes)
    reader = _Reader(plant, files=files, max_bytes=max_bytes, max_pixels=max_pixels)
    rows = _completed(rows, reader=reader, num_readers=num_readers, progress=progress, rejected=rejected)
    rows = _without_straddling_parts(rows, rejected=rejected)
    rejected.sort()
    if not rows:
        first = f"; the first of {len(rejected)}: {rejected[0].frame}: {rejected[0].reason}" if rejected else ""
        raise InputError(f"no usable frame in {plant.labels or plant.images}{first}", plant=plant.name, field="images")
    found = {row["class"] for row in rows}
    notes += [f"class {name!r} is declared but has no usable frame" for name in plant.annotated if name not in found]
    return Imported(from_table(pa.Table.from_pylist(rows, schema=LABEL_SCHEMA)), rejected, notes)


def to_parquet(rows: pd.DataFrame) -> bytes:
    """Label rows as the bytes of a Parquet file with `LABEL_SCHEMA`."""
    buffer = io.BytesIO()
    pq.write_table(to_arrow(rows, schema=LABEL_SCHEMA), buffer)
    return buffer.getvalue()


def from_parquet(data: bytes) -> pd.DataFrame:
    """Label rows from the bytes of `to_parquet`."""
    return from_table(pq.read_table(io.BytesIO(data), schema=LABEL_SCHEMA))


def from_table(table: pa.Table) -> pd.DataFrame:
    """Label rows as pandas: strings as `str`, missing ones NaN; a box is a list of four ints, or None."""
    frame: pd.DataFrame = table.to_pandas()
    frame["box"] = pd.Series(table.column("box").to_pylist(), index=frame.index, dtype=object)
    return frame


def _nfc(text: str) -> str:
    """The composed form: a Mac writes `ö` in folder names as two characters."""
    return unicodedata.normalize("NFC", text)


def _described(
    raw: Mapping[str, Any], *, plant: Plant, declared: Mapping[str, str], sizes: Mapping[str, int], max_bytes: int
) -> dict[str, Any]:
    """The row without what only its bytes can tell. Raises Refused with the reason."""
    frame = str(raw["frame"])
    if not frame:
        raise Refused("the row names no frame")
    if frame.startswith("/") or ".." in frame.split("/"):
        raise Refused("leaves the plant's folder")
    name = _class(raw.get("class"), plant=plant, declared=declared)
    if frame not in sizes:
        raise Refused("no such file in the plant's folder")
    if sizes[frame] > max_bytes:
        raise Refused(f"{sizes[frame] / 2**20:.0f} MiB are more than the limit of {max_bytes / 2**20:.0f} MiB")
    part = text_cell(raw, "part_id") or _matched(plant.part_pattern, frame)
    sample_prob = number_cell(raw, "sample_prob", default=1.0)
    if not sample_prob or not 0 < sample_prob <= 1:
        raise Refused(f"sample_prob {sample_prob} is not within 0..1")
    return {
        "frame": frame,
        "sha256": text_cell(raw, "sha256"),
        "part_id": part or frame,
        "product": text_cell(raw, "product"),
        "pose": text_cell(raw, "pose"),
        "lot": text_cell(raw, "lot") or _matched(plant.lot_pattern, frame) or part,
        "class": name,
        "severity": number_cell(raw, "severity", default=None),
        "box": box_cell(raw),
        "captured_at": time_cell(raw),
        "environment": _environment(raw, plant=plant, frame=frame),
        "annotator": text_cell(raw, "annotator"),
        "source": text_cell(raw, "source") or "import",
        "sample_prob": sample_prob,
    }


def _class(value: Any, *, plant: Plant, declared: Mapping[str, str]) -> str:
    written = "" if value is None else str(value)
    if not written.strip():
        raise Refused("the row has no class")
    name = declared.get(_nfc(written))
    if name is None and written != written.strip():
        raise Refused(f"the class name {written!r} has white space at its ends; rename it to {written.strip()!r}")
    if name is None:
        raise Refused(f"unknown class {written!r}; known: {', '.join(plant.classes)}")
    state = plant.classes[name].state
    if state != "occurs":
        raise Refused(f"class {name!r} is declared {state} at this plant; set its state to occurs")
    return name


def _environment(raw: Mapping[str, Any], *, plant: Plant, frame: str) -> str:
    known = ", ".join(plant.environments)
    name = text_cell(raw, "environment")
    if name is None and plant.environment_pattern:
        name = _matched(plant.environment_pattern, frame)
        if name is None:
            raise Refused(f"environment_pattern does not match; known environments: {known}")
    if name is None and len(plant.environments) == 1:
        return next(iter(plant.environments))
    if name is None:
        raise Refused(f"the row names no environment; known: {known}")
    if name not in plant.environments:
        raise Refused(f"unknown environment {name!r}; known: {known}")
    return name


def _matched(pattern: str | None, frame: str) -> str | None:
    match = re.search(pattern, frame) if pattern else None
    return (match.group(1) or None) if match else None


def _area(row: Row) -> int:
    x0, y0, x1, y1 = row["box"] or (0, 0, 0, 0)
    return int((x1 - x0) * (y1 - y0))


def _check_environments(plant: Plant, raw: list[Row]) -> None:
    if len(plant.environments) > 1 and not plant.environment_pattern and not any("environment" in row for row in raw):
        raise InputError(
            "several environments are declared, but nothing tells which one a frame is from",
            plant=plant.name,
            field="environment_pattern",
            remedy="Set environment_pattern, or add a column environment to the table",
        )


def _without_duplicates(rows: list[Row], *, rejected: list[Rejected], notes: list[str]) -> list[Row]:
    """One row a frame: repeated rows are refused, contradicting ones all; of several boxes the largest stays."""
    by_frame: dict[str, list[Row]] = {}
    for row in rows:
        by_frame.setdefault(row["frame"], []).append(row)
    kept, num_boxed = [], 0
    for frame, group in by_frame.items():
        differing = [key for key in group[0] if key != "box" and any(row[key] != group[0][key] for row in group)]
        if differing:
            values = "; ".join(f"{key}: {_listed({str(row[key]) for row in group})}" for key in differing)
            rejected += [Rejected(frame, f"{len(group)} rows of this frame contradict each other ({values})")] * len(
                group
            )
            continue
        boxes = {row["box"] for row in group}
        rejected += [Rejected(frame, "duplicate row of this frame")] * (len(group) - len(boxes))
        num_boxed += len(boxes) > 1
        kept.append(max(group, key=_area))
    if num_boxed:
        notes.append(f"{num_boxed} frames have several boxes; the largest is kept")
    return kept


def _without_straddling_parts(rows: list[Row], *, rejected: list[Rejected]) -> list[Row]:
    """Only rows of parts that lie in one lot: a part in two would be learned from and tested on."""
    lots: dict[str, set[str]] = {}
    for row in rows:
        lots.setdefault(row["part_id"], set()).add(row["lot"])
    kept = []
    for row in rows:
        part = row["part_id"]
        if len(lots[part]) == 1:
            kept.append(row)
        else:
            reason = f"part {part!r} is in several lots ({_listed(lots[part])}); name parts uniquely, lot included"
            rejected.append(Rejected(row["frame"], reason))
    return kept


def _listed(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first}, ..."


@dataclass(frozen=True)
class _Reader:
    """Reads one frame, decodes it whole, and completes its row."""

    plant: Plant
    files: Files
    max_bytes: int
    max_pixels: int

    def __call__(self, row: Row) -> Row | Rejected:
        try:
            data = self.files.read(self.plant.images, row["frame"])
            return self._completed(row, data)
        except (InputError, OSError, Refused) as error:
            return Rejected(row["frame"], str(error) or type(error).__name__)

    def _completed(self, row: Row, data: bytes) -> Row:
        digest = sha256(data)
        if row["sha256"] not in (None, digest):
            raise Refused("the file's SHA-256 is not the one in the table: it was changed or swapped")
        geometry = self.plant.environments[row["environment"]].geometry
        pixels = decode(
            data,
            bit_depth=geometry.bit_depth,
            window=geometry.window,
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
        )
        height, width = pixels.shape[:2]
        view_boxes(width, height, geometry=geometry)
        if row["box"] and (row["box"][2] > width or row["box"][3] > height):
            raise Refused(f"the box {row['box']} leaves the frame of {width} x {height} pixels")
        lot = row["lot"] or f"{self.plant.name}:{digest[:16]}"
        known = row["lot"] is not None
        return {**row, "sha256": digest, "lot": lot, "lot_known": known, "width_px": width, "height_px": height}


def _completed(
    rows: list[Row], *, reader: _Reader, num_readers: int, progress: Progress | None, rejected: list[Rejected]
) -> list[Row]:
    kept = []
    with ThreadPoolExecutor(num_readers, thread_name_prefix="read-rows") as pool:
        for done, answer in enumerate(pool.map(reader, sorted(rows, key=lambda row: str(row["frame"]))), start=1):
            if isinstance(answer, Rejected):
                rejected.append(answer)
            else:
                kept.append(answer)
            if progress:
                progress(done, len(rows))
    return kept
