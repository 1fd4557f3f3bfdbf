"""What every frame looks like, in a few kilobytes each: for copies across splits and plants, and for cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cluster.likeness import Looked
from cluster.signatures import Signatures
from cluster.storage import PlantFiles
from plants.cameras import Fault, FrameSummary, faults, summary
from plants.conflicts import contradict
from plants.duplicates import SIDE_PX, near_duplicates, signature
from plants.findings import Finding
from plants.governance import kept, oldest
from plants.images import decode
from plants.plant import Fleet, Plant
from plants.tones import GAP, MIN_FRAMES, gap, match, seen_by, tones

NUM_READERS = 4
PIECE = 2_000
"""Frames after which signatures are saved: a killed import goes on from there."""
NUM_NAMED = 5


@dataclass(frozen=True)
class Seen:
    """A plant's label rows and, in their order, what each frame looks like."""

    plant: Plant
    rows: pd.DataFrame
    signatures: list[npt.NDArray[np.uint8]]
    summaries: list[FrameSummary]
    tones: list[npt.NDArray[np.float64]]


def look_at(plant: Plant, rows: pd.DataFrame, *, read: Callable[[str], bytes]) -> Seen:
    """Every frame decoded once, in the order in which it was taken, or of its name where that is not known."""
    rows = rows.sort_values(["captured_at", "frame"], na_position="first").reset_index(drop=True)

    def one(row: Mapping[str, Any]) -> tuple[npt.NDArray[np.uint8], FrameSummary, npt.NDArray[np.float64]]:
        pixels = _pixels(row, plant=plant, read=read)
        return (
            signature(pixels),
            summary(pixels),
            tones(pixels, roi=plant.environments[row["environment"]].geometry.roi),
        )

    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="looks") as pool:
        found = list(pool.map(one, rows[["frame", "environment"]].to_dict("records")))
    signatures, summaries, of_tones = ([one[k] for one in found] for k in range(3))
    return Seen(plant, rows, signatures, summaries, of_tones)


def _pixels(row: Mapping[str, Any], *, plant: Plant, read: Callable[[str], bytes]) -> npt.NDArray[np.uint8]:
    geometry, frame = plant.environments[row["environment"]].geometry, str(row["frame"])
    return decode(read(frame), bit_depth=geometry.bit_depth, window=geometry.window, source=frame)


class Looks:
    """What plants' frames look like, read once and then known to the whole fleet: `cluster.likeness.Look`."""

    def __init__(self, fleet: Fleet, *, cache: Path, say: Callable[[int, int], None] | None = None) -> None:
        self.fleet, self.cache, self.say = fleet, cache, say

    def __call__(self, plant: Plant, rows: pd.DataFrame, is_read: bool) -> Looked:
        """Frames that are older than the plant keeps them are not looked at."""
        now = datetime.now(UTC)
        may = kept(plant, rows, now=now).drop_duplicates("sha256")
        signatures = Signatures(self.fleet, plant, cache=self.cache)
        seen = signatures.read(may["sha256"].tolist(), now=now)
        new = may[~may["sha256"].isin(list(seen))] if is_read else may.iloc[:0]
        for first in range(0, len(new), PIECE):
            piece = new.iloc[first : first + PIECE]
            found = dict(zip(piece["sha256"], self._read(plant, piece), strict=True))
            signatures.write(found, since=oldest(piece, now=now))
            seen |= found
            if self.say:
                self.say(first + len(piece), len(new))
        is_known = rows["sha256"].isin(list(seen)).to_numpy(bool)
        thumbs = np.zeros((len(rows), SIDE_PX, SIDE_PX), dtype=np.uint8)
        for i in np.flatnonzero(is_known):
            thumbs[i] = seen[rows["sha256"].iloc[i]]
        return Looked(thumbs, is_known)

    @staticmethod
    def _read(plant: Plant, rows: pd.DataFrame) -> list[npt.NDArray[np.uint8]]:
        files = PlantFiles()

        def one(row: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
            return signature(_pixels(row, plant=plant, read=lambda frame: files.read(plant.images, frame)))

        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="looks") as pool:
            return list(pool.map(one, rows[["frame", "environment"]].to_dict("records")))


def camera_faults(
    rows: pd.DataFrame, summaries: Sequence[FrameSummary]
) -> Iterator[tuple[str, npt.NDArray[np.intp], Fault]]:
    """Which camera, the places of the frames in `rows`, and what is wrong; products apart: their brightness may differ.

    rows: Label rows in the order taken, as `look_at` sorts them.
    """
    for (environment, product), group in rows.groupby(["environment", rows["product"].fillna("")], sort=True):
        at = group.index.to_numpy()
        for fault in faults([summaries[i] for i in at], is_timed=group["captured_at"].notna().to_numpy(bool)):
            where = f"environment {environment}" + (f", product {product}" if product else "")
            yield where, at[list(fault.frames)], fault


def camera_findings(seen: Seen) -> list[Finding]:
    """The faults of each environment's camera, and of which frames only half of them can be told."""
    findings = _unjudged_runs(seen)
    for where, at, fault in camera_faults(seen.rows, seen.summaries):
        frames = seen.rows["frame"].iloc[at].tolist()
        span = frames[0] if len(frames) == 1 else f"{len(frames)} frames from {frames[0]} to {frames[-1]}"
        findings.append(
            Finding(
                "warning",
                f"camera_{fault.kind}",
                seen.plant.name,
                f"{where}: {span}: {fault.detail}",
                "Look at the camera and its light; leave these frames out, or import them as an environment",
            )
        )
    return findings


def tone_findings(seen: Seen) -> list[Finding]:
    """The environments whose tones lie far from those of the plant's largest one, and the photometry that undoes it.

    Judged on frames that may be learned from, of good parts where the plant has good classes, and of products that both
    environments have seen.
    """
    plant, rows = seen.plant, seen.rows.reset_index(drop=True)
    rows = rows[rows["role"].isin(["train", "select"]) & rows["class"].isin(plant.ok or plant.annotated)]
    sizes = rows.groupby("environment").size().sort_index().sort_values(ascending=False, kind="stable")
    findings = []
    for name in sizes.index[1:]:
        first = str(sizes.index[0])
        one, base = (
            rows[rows["environment"] == at].assign(kind=lambda r: r["product"].fillna("")) for at in (name, first)
        )
        shared = set(one["kind"]) & set(base["kind"])
        one, base = one[one["kind"].isin(shared)], base[base["kind"].isin(shared)]
        if min(len(one), len(base)) < MIN_FRAMES:
            continue
        own, want = (np.median([seen.tones[i] for i in some.index], axis=0) for some in (one, base))
        want = seen_by(want, plant.environments[first].photometry)
        now = gap(seen_by(own, plant.environments[str(name)].photometry), want)
        found = match(own, want)
        then = gap(seen_by(own, found), want)
        if now < GAP or then > now / 2:
            continue
        words = ", ".join(f"{key}: {value:g}" for key, value in found.model_dump().items())
        detail = (
            f"the tones of environment {name} lie {now:.0f} grey levels from those of {first}, "
            f"{then:.0f} with the photometry named here ({len(one)} and {len(base)} frames)"
        )
        remedy = (
            f"If both show the same parts, write into environments.{name}: photometry: {{{words}}}; `compare` judges"
        )
        findings.append(Finding("info", "tones_differ", plant.name, detail, remedy))
    return findings


def _unjudged_runs(seen: Seen) -> list[Finding]:
    is_unknown = seen.rows["captured_at"].isna()
    if not is_unknown.any():
        return []
    where = ", ".join(
        f"{unknown.sum()} of {len(unknown)} in environment {environment}"
        for environment, unknown in is_unknown.groupby(seen.rows["environment"], sort=True)
        if unknown.any()
    )
    detail = (
        f"camera runs not judged: the times of {is_unknown.sum()} of {len(is_unknown)} frames are unknown ({where}), "
        "so of them only black and saturated ones are told, not what is stuck, dimmed, defocused or shifted"
    )
    remedy = "Name their times in a column captured_at of the label table"
    return [Finding("info", "camera_runs_not_judged", seen.plant.name, detail, remedy)]


def copy_findings(seen: Sequence[Seen]) -> list[Finding]:
    """Pictures that are copies of one another, by what that spoils: a split, a label, or nothing but time."""
    plants = {one.plant.name: one.plant for one in seen}
    rows = pd.concat([one.rows.assign(plant=one.plant.name) for one in seen], ignore_index=True)
    pairs = near_duplicates([signed for one in seen for signed in one.signatures])
    kinds: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        a, b = rows.loc[pair.i], rows.loc[pair.j]
        is_equal = a["sha256"] == b["sha256"]
        if is_equal and a["plant"] == b["plant"]:
            continue  # exact copies are the tables' finding
        is_known = isinstance(a["class"], str) and isinstance(b["class"], str)
        if a["role"] != b["role"]:
            kind = "straddling_near_duplicates"
        elif is_known and not is_equal and contradict(plants[a["plant"]], a["class"], plants[b["plant"]], b["class"]):
            kind = "conflicting_near_duplicates"
        else:
            kind = "near_duplicates"
        kinds.setdefault((kind, str(a["plant"])), []).append(f"{_named(a)} and {_named(b)}")
    return [_copies(kind, plant=plant, words=words) for (kind, plant), words in kinds.items()]


def _named(row: pd.Series) -> str:
    label = row["class"] if isinstance(row["class"], str) else "sealed"
    return f"{row['plant']}:{row['frame']} ({row['role']}, {label})"


def _copies(kind: str, *, plant: str, words: Sequence[str]) -> Finding:
    first = "; ".join(words[:NUM_NAMED]) + (f"; and {len(words) - NUM_NAMED} more" if len(words) > NUM_NAMED else "")
    what, level, remedy = {
        "straddling_near_duplicates": (
            "pairs of pictures show the same and lie on both sides of a split, so figures flatter",
            "warning",
            "Give pictures of one part the same part_id or lot and import into a new store",
        ),
        "conflicting_near_duplicates": (
            "pairs of pictures show the same under different labels",
            "warning",
            "Look at both and correct the label",
        ),
        "near_duplicates": (
            "pairs of pictures show the same within one role",
            "info",
            "None; they teach little twice",
        ),
    }[kind]
    return Finding(level, kind, plant, f"{len(words)} {what}: {first}", remedy)  # type: ignore[arg-type]
