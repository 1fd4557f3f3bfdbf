"""What only a frame's bytes can tell: their SHA-256 and the frame's size, once every pixel was decoded.

Decoding is nearly all of an import's time, so what was read is handed to a memory while reading goes on; an import that
was killed, and the next one, reads only what is new or changed. Frames that cannot be read are never remembered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pandas as pd
import PIL

from plants.errors import InputError
from plants.geometry import Geometry
from plants.hashing import sha256
from plants.images import decode
from plants.plant import Plant
from plants.tables import Files, Listed

NUM_READERS = 8
CHUNK = 2_000
"""Frames between two additions to the memory: what a kill costs at most."""
KEY = ["frame", "size", "version", "settings"]
SEEN = ["sha256", "width_px", "height_px"]

Progress = Callable[[int, int], None]


class Memory(Protocol):
    """Where what was read of one plant's frames is kept between imports: tables with the columns `KEY` and `SEEN`."""

    def known(self) -> pd.DataFrame:
        """All that was added."""
        ...

    def add(self, seen: pd.DataFrame) -> None:
        """Afterwards these are kept, whatever happens next."""
        ...

    def settle(self, seen: pd.DataFrame) -> None:
        """Afterwards exactly these are kept."""
        ...


class Reading(NamedTuple):
    """What one frame's bytes told; `sha256` is None where they could not be had, `reason` where nothing is wrong."""

    sha256: str | None
    width_px: int = 0
    height_px: int = 0
    reason: str | None = None


class Frames(NamedTuple):
    """The readings of some frames."""

    seen: pd.DataFrame
    """A row a frame, in the order asked for: `SEEN` and `reason`."""
    num_read: int
    """How many were read now; the others were remembered."""


@dataclass(frozen=True)
class FrameReader:
    """Reads a plant's frames, each decoded whole."""

    plant: Plant
    files: Files
    max_bytes: int
    max_pixels: int

    def read(self, frame: str, *, environment: str) -> Reading:
        """What the frame's bytes tell."""
        digest = None
        try:
            data = self.files.read(self.plant.images, frame)
            digest = sha256(data)
            geometry = self.plant.environments[environment].geometry
            pixels = decode(
                data,
                bit_depth=geometry.bit_depth,
                window=geometry.window,
                max_bytes=self.max_bytes,
                max_pixels=self.max_pixels,
            )
        except (InputError, OSError) as error:
            return Reading(digest, reason=str(error) or type(error).__name__)
        return Reading(digest, pixels.shape[1], pixels.shape[0])

    def settings(self, geometry: Geometry) -> str:
        """Names everything that decides whether bytes can be decoded, so that nothing is remembered across a change."""
        limits = f"{self.max_bytes}|{self.max_pixels}"
        return sha256(f"reading|1|{geometry.bit_depth}|{geometry.window}|{limits}|{PIL.__version__}".encode())[:16]


def read_frames(
    rows: pd.DataFrame,
    *,
    reader: FrameReader,
    listed: Mapping[str, Listed],
    memory: Memory | None = None,
    num_readers: int = NUM_READERS,
    progress: Progress | None = None,
) -> Frames:
    """Every frame of `rows` (`frame`, each once, and `environment`) as it was read now or remembered."""
    settings = {name: reader.settings(one.geometry) for name, one in reader.plant.environments.items()}
    wanted = pd.DataFrame({
        "frame": rows["frame"].astype(str).array,
        "size": [listed[frame].size for frame in rows["frame"]],
        "version": pd.array([listed[frame].version for frame in rows["frame"]], dtype=str),
        "settings": rows["environment"].map(settings).astype(str).array,
    })  # fmt: skip
    known = memory.known().drop_duplicates(KEY) if memory else wanted.iloc[:0].assign(**dict.fromkeys(SEEN))
    seen = _remembered(wanted, known=known)
    todo = seen.index[seen["sha256"].isna()]
    ticks = itertools.count(len(seen) - len(todo) + 1)
    if progress and len(todo) < len(seen):
        progress(len(seen) - len(todo), len(seen))
    parts = [seen.drop(todo)]
    with ThreadPoolExecutor(num_readers, thread_name_prefix="read-frames") as pool:
        for at in (todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)):
            asked = zip(rows["frame"].iloc[at], rows["environment"].iloc[at], strict=True)
            found = []
            for reading in pool.map(lambda one: reader.read(one[0], environment=one[1]), asked):
                found.append(reading)
                if progress:
                    progress(next(ticks), len(seen))
            part = pd.DataFrame(found, index=at, columns=[*SEEN, "reason"])
            parts.append(pd.concat([wanted.loc[at], part], axis=1))
            if memory:
                memory.add(_worth_keeping(parts[-1]))
    whole = pd.concat(parts).sort_index()
    if memory:
        is_other = known["frame"].isin(listed.keys() - set(wanted["frame"]))  # not asked for by today's labels
        memory.settle(pd.concat([known[is_other], _worth_keeping(whole)], ignore_index=True))
    return Frames(whole[[*SEEN, "reason"]], len(todo))


def _remembered(wanted: pd.DataFrame, *, known: pd.DataFrame) -> pd.DataFrame:
    """The wanted frames with what is known of them; `sha256` is missing where they are to be read."""
    seen = wanted.merge(known, on=KEY, how="left")
    seen[SEEN[1:]] = seen[SEEN[1:]].fillna(0).astype("int64")
    return seen.assign(reason=None)


def _worth_keeping(seen: pd.DataFrame) -> pd.DataFrame:
    """What was read well, of files that tell when they change."""
    return seen.loc[seen["reason"].isna() & (seen["version"] != ""), [*KEY, *SEEN]]
