"""The label row, and how a plant's folders or table become label rows. Nothing is lost: what is refused is listed.

A row is one frame. Boxes and sizes are in pixels of the upright frame (EXIF orientation applied). Where a frame has
several boxes (rows that differ in nothing else) the largest is kept and, for the audit alone, the smallest. What a
customer's table has beyond `LABEL_SCHEMA` is kept as text for the audit to look at, `OTHER` before its name; nothing is
learned from it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plants.cells import Cells, Ints, Objects
from plants.claims import MAX_LETTERS, described
from plants.errors import InputError
from plants.frames import NUM_READERS, SEEN, FrameReader, Memory, Progress, read_frames
from plants.images import MAX_BYTES, MAX_PIXELS
from plants.incumbent import INCUMBENT, with_verdicts
from plants.plant import Plant
from plants.seal import SEALED
from plants.tables import CORNERS, OTHER, Files, Listed, Rejected, others, raw_rows, to_arrow
from plants.views import view_boxes

RETURN = "return"
"""The `source` of a part that a customer sent back."""
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
        pa.field("smallest_box", pa.list_(pa.int32())),
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
        pa.field("environment", pa.string(), nullable=False),
        pa.field("annotator", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sample_prob", pa.float64(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("incumbent", pa.string()),
    ]
)
SMALLEST = [f"smallest_{corner}" for corner in CORNERS]


class NoUsableFrame(InputError):
    """No frame of a plant can be learned from; `rejected` says why of each."""

    rejected: Sequence[Rejected] = ()


@dataclass(frozen=True)
class Imported:
    """The label rows of one plant, what was refused, and what a person should know about the rest."""

    rows: pd.DataFrame
    rejected: list[Rejected]
    notes: list[str] = field(default_factory=list)
    num_frames: int = 0
    """Frames that could have become rows."""
    num_read: int = 0
    """How many of them were read; the others were remembered."""

    @property
    def counts(self) -> dict[str, int]:
        """Rows a class."""
        return {str(name): int(n) for name, n in self.rows["class"].value_counts().sort_index().items()}


def read_rows(
    plant: Plant,
    *,
    files: Files,
    memory: Memory | None = None,
    progress: Progress | None = None,
    num_readers: int = NUM_READERS,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Imported:
    """Every frame of the plant that can be learned from, as label rows sorted by frame; every image was decoded.

    Args:
        memory: What earlier imports read. A frame whose size and version are listed as they were then, under the same
            limits and bit depth, was decoded then and is not read again.

    Raises:
        InputError: when the folder or the table cannot be read, or when several environments are declared and nothing
            tells which one a frame is from.
        NoUsableFrame: when all rows are rejected.
    """
    listed, rejected = _listed(plant, files=files)
    table, refused, notes = raw_rows(plant, listed=listed, files=files)
    rejected += refused
    _check_environments(plant, table)
    rows = described(table, plant=plant, listed=listed, max_bytes=max_bytes, rejected=rejected)
    rows = with_verdicts(rows, plant=plant, files=files, notes=notes)
    own = others(table)
    del table
    rows = _without_duplicates(rows, rejected=rejected, notes=notes).sort_values("frame")
    cells = Cells(own.iloc[rows.index])
    rows = rows.assign(**{name: cells.column(name, _shortened) for name in own.columns}).reset_index(drop=True)
    reader = FrameReader(plant, files=files, max_bytes=max_bytes, max_pixels=max_pixels)
    frames = read_frames(rows, reader=reader, listed=listed, memory=memory, num_readers=num_readers, progress=progress)
    num_frames = len(rows)
    rows = _completed(rows, frames.seen, plant=plant, rejected=rejected)
    rows = _without_straddling_parts(rows, rejected=rejected)
    mixed = rows.groupby("part_id")["class"].nunique()
    if (mixed > 1).any():
        first = f"{(mixed > 1).sum()} parts have frames of several classes, first {mixed.index[mixed > 1][0]!r}"
        notes.append(f"{first}: such a part is what most of its frames with a defect show")
    rejected.sort()
    if not len(rows):
        first = f"; the first of {len(rejected)}: {rejected[0].frame}: {rejected[0].reason}" if rejected else ""
        text = f"no usable frame in {plant.labels or plant.images}{first}"
        error = NoUsableFrame(text, plant=plant.name, field="images")
        error.rejected = rejected
        raise error
    found = set(rows["class"].unique())
    notes += [f"class {name!r} is declared but has no usable frame" for name in plant.annotated if name not in found]
    return Imported(from_table(_table(rows)), rejected, notes, num_frames=num_frames, num_read=frames.num_read)


def truth_of_parts(classes: npt.NDArray[Any], parts: npt.NDArray[np.intp], *, ok: Sequence[str]) -> npt.NDArray[Any]:
    """What parts [P] are whose frames [N] were labelled one by one; parts: number of each frame's part, all of 0..P-1.

    A defect that one frame shows is the part's, as in pooling; of several the most frequent, of equals the first by
    name.
    """
    counts = pd.DataFrame({"part": parts, "class": classes}).value_counts(sort=False).reset_index()
    counts["is_ok"] = counts["class"].isin(list(ok))
    ranked = counts.sort_values(["part", "is_ok", "count", "class"], ascending=[True, True, False, True])
    return np.asarray(ranked.drop_duplicates("part")["class"].to_numpy(dtype=object))


def to_parquet(rows: pd.DataFrame) -> bytes:
    """Label rows as the bytes of a Parquet file with `LABEL_SCHEMA` and the customer's own columns."""
    buffer = io.BytesIO()
    pq.write_table(to_arrow(rows, schema=_schema(rows.columns)), buffer)
    return buffer.getvalue()


def from_parquet(data: bytes) -> pd.DataFrame:
    """Label rows from the bytes of `to_parquet`."""
    names = pq.read_schema(io.BytesIO(data)).names
    return from_table(pq.read_table(io.BytesIO(data), schema=_schema(names)))


def from_table(table: pa.Table) -> pd.DataFrame:
    """Label rows as pandas: strings as `str`, missing ones NaN; a box is a list of four ints, or None.

    `smallest_box` is None where a frame has not several.
    """
    frame: pd.DataFrame = table.to_pandas()
    for name in ("box", "smallest_box"):
        frame[name] = pd.Series(table.column(name).to_pylist(), index=frame.index, dtype=object)
    return frame


def _listed(plant: Plant, *, files: Files) -> tuple[dict[str, Listed], list[Rejected]]:
    """The plant's files by their path, and those whose names no table can hold."""
    listed, rejected = {}, []
    for one in files.list(plant.images):
        name = one.path.encode("utf-8", "backslashreplace").decode()
        if name == one.path:
            listed[name] = one
        else:
            rejected.append(Rejected(name, "the file's name is not UTF-8; rename it"))
    if not listed:
        raise InputError(
            f"there are no files in {plant.images}", plant=plant.name, field="images", remedy="Correct the address"
        )
    return listed, rejected


def _check_environments(plant: Plant, table: pd.DataFrame) -> None:
    if len(plant.environments) > 1 and not plant.environment_pattern:
        named = Cells(table).column("environment")
        if all(name is None for name in named):
            raise InputError(
                "several environments are declared, but nothing tells which one a frame is from",
                plant=plant.name,
                field="environment_pattern",
                remedy="Set environment_pattern, or add a column environment to the table",
            )


def _without_duplicates(rows: pd.DataFrame, *, rejected: list[Rejected], notes: list[str]) -> pd.DataFrame:
    """One row a frame: repeated rows are refused, contradicting ones all; of several boxes the largest stays.

    The one whose longer side is the shortest stands in `SMALLEST`, zeros where a frame has not several.
    """
    group = pd.factorize(rows["frame"])[0]
    if INCUMBENT in rows:
        said = rows.groupby("frame")[INCUMBENT].transform("first")
        rows = rows.assign(**{INCUMBENT: rows[INCUMBENT].where(rows[INCUMBENT].notna(), said)})
    first = np.unique(group, return_index=True)[1][group]
    names = [name for name in rows.columns if name not in ("frame", *CORNERS)]
    codes = {name: pd.factorize(rows[name])[0] for name in names}
    differs = {name: code != code[first] for name, code in codes.items()}
    is_bad = np.isin(group, group[np.any([*differs.values()], axis=0)])
    rejected += _contradictions(
        rows[names], frames=rows["frame"].to_numpy(), at=_pieces(group, is_bad), differs=differs
    )
    rows = rows[~is_bad]
    is_repeated = rows.duplicated(["frame", *CORNERS])
    rejected += [Rejected(frame, "duplicate row of this frame") for frame in rows.loc[is_repeated, "frame"]]
    rows = rows[~is_repeated]
    several = rows.loc[rows["frame"].duplicated(keep=False) & (rows["x1"] > 0), ["frame", *CORNERS]]
    if num := several["frame"].nunique():
        notes.append(f"{num} frames have several boxes; the largest is kept, and for `audit` the smallest")
    corners = several[CORNERS].to_numpy()
    longer = (corners[:, 2:] - corners[:, :2]).max(axis=1)
    smallest = several.iloc[np.argsort(longer, kind="stable")].drop_duplicates("frame").set_index("frame")
    area = (rows["x1"] - rows["x0"]) * (rows["y1"] - rows["y0"])
    rows = rows.loc[area.sort_values(ascending=False, kind="stable").index].drop_duplicates("frame")
    found = smallest.reindex(rows["frame"], fill_value=0).to_numpy()
    return rows.assign(**dict(zip(SMALLEST, found.T, strict=True)))


def _pieces(group: Ints, chosen: npt.NDArray[np.bool_]) -> list[Ints]:
    """Where the chosen rows of each group stand."""
    at = np.flatnonzero(chosen)
    at = at[np.argsort(group[at], kind="stable")]
    return np.split(at, np.flatnonzero(np.diff(group[at])) + 1) if len(at) else []


def _contradictions(
    rows: pd.DataFrame, *, frames: Objects, at: list[Ints], differs: Mapping[str, npt.NDArray[np.bool_]]
) -> Iterator[Rejected]:
    """Answers are named without their values: the list is open, and the frame may be one of the sealed test."""
    columns = {name: rows[name].to_numpy(dtype=object) for name in rows.columns}
    for piece in at:
        said = {name: columns[name][piece] for name in rows.columns if differs[name][piece].any()}
        values = "; ".join(
            name if name in SEALED else f"{name}: {_some({str(None if pd.isna(v) else v) for v in of})}"
            for name, of in said.items()
        )
        remedy = (
            "a frame has one class: keep the rows of the one that its part is to be judged by"
            if "class" in said
            else "write the same in all of them"
        )
        reason = f"{len(piece)} rows of this frame contradict each other ({values}); {remedy}"
        yield from [Rejected(frames[piece[0]], reason)] * len(piece)


def _completed(rows: pd.DataFrame, seen: pd.DataFrame, *, plant: Plant, rejected: list[Rejected]) -> pd.DataFrame:
    """The rows of frames that could be read, with what was seen of them."""
    cells = Cells(rows)
    told, digests = rows["sha256"].to_numpy(dtype=object), seen["sha256"].to_numpy(dtype=object)
    is_other = rows["sha256"].notna().to_numpy() & seen["sha256"].notna().to_numpy() & (told != digests)
    unfit = np.full(len(rows), None, dtype=object)
    unfit[is_other] = "the file's SHA-256 is not the one in the table: it was changed or swapped"
    cells.refuse(unfit)
    cells.refuse(seen["reason"].to_numpy(dtype=object))
    rows = rows.assign(**{name: seen[name].to_numpy() for name in SEEN})
    sizes: dict[Any, Any] = rows.groupby(["environment", *SEEN[1:]]).indices
    for (environment, width, height), at in sizes.items():
        try:
            view_boxes(int(width), int(height), geometry=plant.environments[environment].geometry)
        except InputError as error:
            unfit[at] = str(error)
    cells.refuse(unfit)
    for corners in (CORNERS, SMALLEST):
        leaves = ((rows[corners[2]] > rows["width_px"]) | (rows[corners[3]] > rows["height_px"])).to_numpy()
        for i in np.flatnonzero(leaves):
            x0, y0, x1, y1, width, height = rows[[*corners, *SEEN[1:]]].iloc[i].tolist()
            unfit[i] = f"the box {(x0, y0, x1, y1)} leaves the frame of {width} x {height} pixels"
    cells.refuse(unfit)
    is_good = pd.isna(cells.reasons)
    rejected += map(Rejected, rows["frame"].to_numpy()[~is_good], cells.reasons[~is_good])
    rows = rows[is_good]
    own = f"{plant.name}:" + rows["sha256"].astype(str).str[:16]
    return rows.assign(lot_known=rows["lot"].notna(), lot=rows["lot"].where(rows["lot"].notna(), own))


def _without_straddling_parts(rows: pd.DataFrame, *, rejected: list[Rejected]) -> pd.DataFrame:
    """Only rows of parts that lie in one lot: a part in two would be learned from and tested on."""
    straddles = rows.groupby("part_id")["lot"].transform("nunique") > 1
    bad = rows[straddles]
    lots = {part: _some(set(of)) for part, of in bad.groupby("part_id")["lot"]}
    rejected += [
        Rejected(frame, f"part {part!r} is in several lots ({lots[part]}); name parts uniquely, lot included")
        for frame, part in zip(bad["frame"], bad["part_id"], strict=True)
    ]
    return rows[~straddles]


def _some(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first}, ..."


def _table(rows: pd.DataFrame) -> pa.Table:
    rows = rows.assign(box=_boxes(rows[CORNERS]), smallest_box=_boxes(rows[SMALLEST]))
    return to_arrow(rows, schema=_schema(rows.columns))


def _boxes(corners: pd.DataFrame) -> Objects:
    return pd.Series([box if box[2] else None for box in corners.to_numpy().tolist()], dtype=object).to_numpy()


def _schema(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([*LABEL_SCHEMA, *(pa.field(name, pa.string()) for name in columns if name.startswith(OTHER))])


def _shortened(cell: str) -> str:
    return cell.strip()[:MAX_LETTERS]
