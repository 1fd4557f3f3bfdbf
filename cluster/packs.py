"""Packs: the decoded views of a plant's frames in one memory-mapped Arrow file, made once and shared by every process.

A pack is named by what its pixels depend on: the frames' digests, each environment's geometry and photometry, the input
size and how frames are resized to it. Labels, roles and recipes are not part of it, so new labels need no new pack.
Frames that cannot be decoded are listed in the pack and tried again when it is opened; the rest goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cluster import retention
from cluster.storage import LocalStore, MissingFile, Store, file_sha256, replaced
from plants import governance
from plants.errors import InputError
from plants.geometry import Interpolation
from plants.hashing import sha256 as sha256_of
from plants.plant import Plant
from plants.views import Views, read_views, view_boxes

FORMAT = 3
PIXELS_COME_FROM: dict[str, Any] = {
    "photometry": True,
    "geometry": {"roi", "mask", "ignore", "fit", "tile_px", "overlap_px", "bit_depth", "window"},
}
"""What of an environment decides about pixels: declaring a scale or a smallest defect makes no pack anew."""
SHARD_BYTES = 32 << 20
SHARD_FRAMES = 512
NUM_READERS = 8

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int32]
Read = Callable[[str], bytes]
"""Frame path -> its bytes. Picklable where shards are built by Ray tasks."""


class Frame(NamedTuple):
    """What a pack needs to know of a label row."""

    frame: str
    sha256: str
    environment: str


class Failure(NamedTuple):
    """A frame that is not in the pack, and why."""

    frame: str
    reason: str


class Shard(NamedTuple):
    """The views of some frames."""

    pixels: Pixels
    """[T, S, S, 3]"""
    boxes: Indices
    """[T, 4]"""
    num_views: list[int]
    """Views of each frame, in order; 0 for one that failed."""
    failed: list[Failure]


class MapTasks(Protocol):
    """Like `map`: applies a function to items, possibly elsewhere, and yields results in order, few held at once."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]: ...


class Pack:
    """The views of many frames, read from disk as they are touched. Frames are sorted by path, views stay together."""

    def __init__(self, path: Path) -> None:
        source = pa.memory_map(str(path))
        batch = pa.ipc.open_file(source).get_batch(0)
        about = json.loads(batch.schema.metadata[b"pack"])
        size = int(about["size_px"])
        self.path = path
        self.digest: str = about["digest"]
        self.plant: str = about["plant"]
        self.size_px = size
        flat = np.frombuffer(
            batch.column("pixels").buffers()[1], dtype=np.uint8, count=batch.num_rows * size * size * 3
        )
        self.pixels: Pixels = flat.reshape(batch.num_rows, size, size, 3)
        """[N, S, S, 3], read-only, mapped from the file without a copy."""
        frames = batch.column("frame")
        self.frame_index: Indices = frames.indices.to_numpy(zero_copy_only=True)
        """[N]: which of `frames` each view belongs to."""
        self.tile_boxes: Indices = batch.column("box").values.to_numpy(zero_copy_only=True).reshape(-1, 4)
        """[N, 4]: x0, y0, x1, y1 in pixels of the frame."""
        self.frames: list[str] = frames.dictionary.to_pylist()
        self.sha256s: list[str] = batch.column("sha256").dictionary.to_pylist()
        self.failed = [Failure(*pair) for pair in about["failed"]]
        self.starts: npt.NDArray[np.int64] = np.searchsorted(self.frame_index, np.arange(len(self.frames) + 1))
        """[F + 1]: the views of frame i are rows starts[i] to starts[i + 1]."""

    @classmethod
    def open(cls, path: Path | str) -> Pack:
        """The pack in a file. Raises InputError for what is not a pack."""
        try:
            return cls(Path(path))
        except (OSError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
            raise InputError("is not a readable pack", file=str(path), remedy="Delete it; it is made again") from None

    def rows(self, frames: Sequence[str]) -> npt.NDArray[np.int64]:
        """The row numbers of these frames' views, in the order given. Raises KeyError for one that is not packed."""
        index = {frame: i for i, frame in enumerate(self.frames)}
        spans = [np.arange(self.starts[i], self.starts[i + 1]) for i in (index[frame] for frame in frames)]
        return np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.frame_index)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack.open, (str(self.path),)


def pack_key(frames: Sequence[Frame], *, plant: Plant, size_px: int, interpolation: Interpolation = "bilinear") -> str:
    """The name of the pack of these frames: equal for equal pixels, whatever the order of the frames."""
    used = sorted({frame.environment for frame in frames})
    text = json.dumps(
        {
            "format": FORMAT,
            "plant": plant.name,
            "size_px": size_px,
            "interpolation": interpolation,
            "environments": {
                name: plant.environments[name].model_dump(mode="json", include=PIXELS_COME_FROM) for name in used
            },
            "frames": sorted(frames),
        },
        sort_keys=True,
    )
    return sha256_of(text.encode())


def frames_of(rows: pd.DataFrame) -> list[Frame]:
    """The frames of label rows in the order in which a pack holds them."""
    return sorted(Frame(*row) for row in rows[["frame", "sha256", "environment"]].itertuples(index=False, name=None))


def place_of(key: str, *, store: Store, cache_dir: Path | str) -> Path:
    """Where on this machine the pack of that name lies, or will."""
    return store.local_path(f"packs/{key}.arrow") or Path(cache_dir) / "packs" / f"{key}.arrow"


def build_shard(
    frames: Sequence[Frame], *, plant: Plant, size_px: int, read: Read, interpolation: Interpolation = "bilinear"
) -> Shard:
    """The views of these frames. A frame that is missing, has changed or cannot be decoded becomes a Failure."""
    pixels: list[Pixels] = []
    boxes: list[Indices] = []
    num_views: list[int] = []
    failed: list[Failure] = []
    for frame, data in _read_ahead(frames, read):
        try:
            found = _views(frame, data, plant=plant, size_px=size_px, interpolation=interpolation)
        except (_FrameFault, MissingFile) as fault:
            failed.append(Failure(frame.frame, str(fault)))
            num_views.append(0)
            continue
        pixels.append(found.pixels)
        boxes.append(found.boxes)
        num_views.append(len(found.pixels))
    empty = np.empty((0, size_px, size_px, 3), np.uint8), np.empty((0, 4), np.int32)
    return Shard(np.concatenate([empty[0], *pixels]), np.concatenate([empty[1], *boxes]), num_views, failed)


def build(
    rows: pd.DataFrame,
    *,
    plant: Plant,
    trunk_size_px: int,
    interpolation: Interpolation = "bilinear",
    read: Read,
    store: Store,
    cache_dir: Path | str,
    map_tasks: MapTasks = map,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Pack:
    """The pack of these label rows: the cached one, else the store's, else made now and put into the store.

    Frames beyond the plant's `retention_days` are left out, and its packs that hold such frames are deleted.
    Raises InputError when not one frame can be decoded.
    """
    rows = governance.kept(plant, rows, now=now())
    for place in (store, LocalStore(cache_dir)):
        retention.sweep(place, "packs", plants=[plant], now=now())
    frames = frames_of(rows)
    key = pack_key(frames, plant=plant, size_px=trunk_size_px, interpolation=interpolation)
    path = place_of(key, store=store, cache_dir=cache_dir)
    make_shard = partial(build_shard, plant=plant, size_px=trunk_size_px, read=read, interpolation=interpolation)
    pack = _found(path, key, store=store, cache=LocalStore(cache_dir))
    if pack is not None and not _has_recovered(pack, frames, make_shard):
        return pack
    places = (store,) if store.local_path("packs") else (store, LocalStore(cache_dir))
    for place in places:
        retention.record(place, f"packs/{key}", since={plant.name: governance.oldest(rows, now=now())})
    shards = _shards(frames, rows, plant=plant, size_px=trunk_size_px)
    about = {"digest": key, "plant": plant.name, "size_px": trunk_size_px, "format": FORMAT}
    try:
        _write(path, frames, map_tasks(make_shard, shards), about=about)
    except InputError:
        for place in places:
            place.delete(f"packs/{key}{retention.RECORD}")
        raise
    sha256 = file_sha256(path) if store.local_path("packs") else store.upload(path, f"packs/{key}.arrow")
    store.write_json(f"packs/{key}.json", {"sha256": sha256, "bytes": path.stat().st_size})
    return Pack.open(path)


class _FrameFault(InputError):
    """This frame cannot be used; others may."""


def _read_ahead(frames: Sequence[Frame], read: Read) -> Iterator[tuple[Frame, bytes | MissingFile]]:
    """Every frame with its bytes, or why it is missing; a bucket is asked for a few at a time."""

    def attempt(frame: Frame) -> bytes | MissingFile:
        try:
            return read(frame.frame)
        except MissingFile as fault:
            return fault

    with ThreadPoolExecutor(NUM_READERS) as pool:
        for start in range(0, len(frames), NUM_READERS):
            chunk = frames[start : start + NUM_READERS]
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)


def _views(
    frame: Frame, data: bytes | MissingFile, *, plant: Plant, size_px: int, interpolation: Interpolation
) -> Views:
    environment = plant.environments[frame.environment]
    if isinstance(data, MissingFile):
        raise data
    if sha256_of(data) != frame.sha256:
        raise _FrameFault(
            "has changed since it was imported", plant=plant.name, file=frame.frame, remedy="Import again"
        )
    try:
        return read_views(
            data,
            geometry=environment.geometry,
            photometry=environment.photometry,
            size_px=size_px,
            interpolation=interpolation,
            source=frame.frame,
        )
    except InputError as fault:
        raise _FrameFault(str(fault), plant=plant.name) from None


def _found(path: Path, key: str, *, store: Store, cache: Store) -> Pack | None:
    """The pack in the cache or the store, or None. A damaged cache file counts as none."""
    if path.exists():
        try:
            return Pack.open(path)
        except InputError:
            path.unlink(missing_ok=True)
    if store.local_path("packs") or not store.exists(f"packs/{key}.json"):
        return None
    about = store.read_json(f"packs/{key}.json")
    retention.copy_record(f"packs/{key}", source=store, target=cache)
    return Pack.open(store.download(f"packs/{key}.arrow", path, sha256=about["sha256"]))


def _has_recovered(pack: Pack, frames: Sequence[Frame], make_shard: Callable[[Sequence[Frame]], Shard]) -> bool:
    """Whether a frame that failed when the pack was made can be used now."""
    names = {failure.frame for failure in pack.failed}
    return any(sum(make_shard([frame]).num_views) for frame in frames if frame.frame in names)


def _shards(frames: list[Frame], rows: pd.DataFrame, *, plant: Plant, size_px: int) -> Iterator[list[Frame]]:
    """Runs of frames whose views take about SHARD_BYTES together."""
    sizes = dict(zip(rows["frame"], zip(rows["width_px"], rows["height_px"], strict=True), strict=True))
    shard: list[Frame] = []
    held = 0
    for frame in frames:
        shard.append(frame)
        width, height = sizes[frame.frame]
        held += _num_views(int(width), int(height), plant=plant, environment=frame.environment) * size_px**2 * 3
        if held >= SHARD_BYTES or len(shard) >= SHARD_FRAMES:
            yield shard
            shard, held = [], 0
    if shard:
        yield shard


def _num_views(width: int, height: int, *, plant: Plant, environment: str) -> int:
    try:
        return len(view_boxes(width, height, geometry=plant.environments[environment].geometry))
    except InputError:  # reported for the frame when its shard is built
        return 1


def _write(path: Path, frames: Sequence[Frame], shards: Iterable[Shard], *, about: dict[str, Any]) -> None:
    """Afterwards the pack is at `path`, whole. Holds one shard in memory at a time."""
    boxes: list[Indices] = []
    num_views: list[int] = []
    failed: list[Failure] = []
    with replaced(path) as part:
        raw = part.with_name(f"{part.name}.part")
        try:
            with raw.open("wb") as file:
                for shard in shards:
                    file.write(shard.pixels.data)
                    boxes.append(shard.boxes)
                    num_views += shard.num_views
                    failed += shard.failed
            if not sum(num_views):
                first = failed[0].reason if failed else "there are no rows"
                raise InputError(f"not one frame can be used: {first}")
            pixels = pa.py_buffer(np.memmap(raw, dtype=np.uint8, mode="r"))
            batch = _batch(frames, pixels, np.concatenate(boxes), num_views, about={**about, "failed": failed})
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
        finally:
            raw.unlink(missing_ok=True)


def _batch(frames: Sequence[Frame], pixels: Any, boxes: Indices, num_views: list[int], *, about: dict[str, Any]) -> Any:
    kept = [(frame, n) for frame, n in zip(frames, num_views, strict=True) if n]
    index = pa.array(np.repeat(np.arange(len(kept), dtype=np.int32), [n for _, n in kept]))
    width = about["size_px"] ** 2 * 3
    columns = {
        "pixels": pa.Array.from_buffers(pa.binary(width), len(index), [None, pixels]),
        "frame": pa.DictionaryArray.from_arrays(index, pa.array([frame.frame for frame, _ in kept])),
        "sha256": pa.DictionaryArray.from_arrays(index, pa.array([frame.sha256 for frame, _ in kept])),
        "box": pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1)), 4),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    return batch.replace_schema_metadata({"pack": json.dumps(about)})
