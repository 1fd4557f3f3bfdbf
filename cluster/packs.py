"""Packs: the decoded views of a plant's frames in one memory-mapped Arrow file, made once and shared by every process.

A pack is named by what its pixels depend on: the frames' digests, each environment's geometry and photometry, the input
size and how frames are resized to it. Labels, roles and recipes are not part of it, so new labels need no new pack.
Frames that another pack of the plant on this machine holds alike are copied from there; only new ones are decoded.
Frames that cannot be decoded are listed in the pack and tried again when it is opened; the rest goes on.
Every view has its digest: what is copied or computed from is known to be what was packed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cluster import retention
from cluster.eviction import hold
from cluster.storage import LocalStore, MissingFile, Store, file_sha256, replaced
from plants import governance
from plants.errors import InputError, Notice
from plants.geometry import Interpolation
from plants.hashing import sha256 as sha256_of
from plants.plant import Plant
from plants.views import Views, read_views, view_boxes

FORMAT = 4
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
    digests: Pixels
    """[T, 16]"""
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
        self._names = batch.column("name").dictionary
        digests = batch.column("digest").buffers()[1]
        self.digests: Pixels = np.frombuffer(digests, np.uint8, count=batch.num_rows * 16).reshape(-1, 16)
        """[N, 16]: the first half of the SHA-256 of each view's pixels."""
        self.failed = [Failure(*pair) for pair in about["failed"]]
        self.starts: npt.NDArray[np.int64] = np.searchsorted(self.frame_index, np.arange(len(self.frames) + 1))
        """[F + 1]: the views of frame i are rows starts[i] to starts[i + 1]."""

    @cached_property
    def index(self) -> dict[str, int]:
        """Name of a frame's views (`views_names`) -> the frame's number."""
        return {name: i for i, name in enumerate(self._names.to_pylist())}

    @classmethod
    def open(cls, path: Path | str) -> Pack:
        """The pack in a file. Raises InputError for what is not a pack."""
        try:
            return cls(Path(path))
        except (OSError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
            raise InputError("is not a readable pack", file=str(path), remedy="Delete it; it is made again") from None

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Pixels:
        """The pixels of these rows, uint8 [n, S, S, 3], which are what was packed.

        Raises InputError where they are not; the file is gone then, so that the next to ask makes it again.
        """
        pixels = np.ascontiguousarray(self.pixels[rows])
        if not np.array_equal(view_digests(pixels), self.digests[rows]):
            self.path.unlink(missing_ok=True)
            raise InputError(
                "was damaged on disk and is deleted",
                plant=self.plant,
                file=str(self.path),
                remedy="The same command makes it again",
            )
        return pixels

    def rows(self, frames: Sequence[str]) -> npt.NDArray[np.int64]:
        """The row numbers of these frames' views, in the order given. Raises KeyError for one that is not packed."""
        index = {frame: i for i, frame in enumerate(self.frames)}
        spans = [np.arange(self.starts[i], self.starts[i + 1]) for i in (index[frame] for frame in frames)]
        return np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.frame_index)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack.open, (str(self.path),)


def view_digests(pixels: Pixels) -> Pixels:
    """The first half of the SHA-256 of each view's pixels, uint8 [N, 16]."""
    found = b"".join(hashlib.sha256(view.data).digest()[:16] for view in pixels)
    return np.frombuffer(found, np.uint8).reshape(-1, 16)


def pack_key(frames: Sequence[Frame], *, plant: Plant, size_px: int, interpolation: Interpolation = "bilinear") -> str:
    """The name of the pack of these frames: equal for equal pixels, whatever the order of the frames."""
    names = views_names(frames, plant=plant, size_px=size_px, interpolation=interpolation)
    text = [plant.name, *sorted([frame.frame, frame.environment, names[frame]] for frame in frames)]
    return sha256_of(json.dumps(text).encode())


def views_names(
    frames: Iterable[Frame], *, plant: Plant, size_px: int, interpolation: Interpolation
) -> dict[Frame, str]:
    """What each frame's views are named by: its bytes and all that decides about their pixels."""
    frames = list(frames)
    ways = {
        name: json.dumps(
            {
                "format": FORMAT,
                "size_px": size_px,
                "interpolation": interpolation,
                "environment": plant.environments[name].model_dump(mode="json", include=PIXELS_COME_FROM),
            },
            sort_keys=True,
        )
        for name in {frame.environment for frame in frames}
    }
    return {frame: sha256_of(f"{frame.sha256}|{ways[frame.environment]}".encode())[:32] for frame in frames}


def frames_of(rows: pd.DataFrame) -> list[Frame]:
    """The frames of label rows in the order in which a pack holds them."""
    return sorted(Frame(*row) for row in rows[["frame", "sha256", "environment"]].itertuples(index=False, name=None))


def place_of(stem: str, *, store: Store, cache_dir: Path | str) -> Path:
    """Where on this machine the pack of that stem (`packs/PLANT/KEY`) lies, or will."""
    return store.local_path(f"{stem}.arrow") or LocalStore(cache_dir).root / f"{stem}.arrow"


def build_shard(
    frames: Sequence[Frame],
    *,
    plant: Plant,
    size_px: int,
    read: Read,
    interpolation: Interpolation = "bilinear",
    older: Sequence[Pack] = (),
) -> Shard:
    """The views of these frames, from older packs that hold them alike, else decoded.

    A frame that is missing, has changed or cannot be decoded becomes a Failure.
    """
    pixels: list[Pixels] = []
    boxes: list[Indices] = []
    digests: list[Pixels] = []
    num_views: list[int] = []
    failed: list[Failure] = []
    names = views_names(frames, plant=plant, size_px=size_px, interpolation=interpolation) if older else {}
    known = _known(names, older=older)
    fresh = _read_ahead([frame for frame in frames if frame not in known], read)
    for frame in frames:
        if frame in known:
            pixels.append(known[frame][0])
            boxes.append(known[frame][1])
            digests.append(known[frame][2])
            num_views.append(len(boxes[-1]))
            continue
        _, data = next(fresh)
        try:
            found = _views(frame, data, plant=plant, size_px=size_px, interpolation=interpolation)
        except (_FrameFault, MissingFile) as fault:
            failed.append(Failure(frame.frame, str(fault)))
            num_views.append(0)
            continue
        pixels.append(found.pixels)
        boxes.append(found.boxes)
        digests.append(view_digests(found.pixels))
        num_views.append(len(found.pixels))
    whole = np.concatenate([np.empty((0, size_px, size_px, 3), np.uint8), *pixels])
    of_all = (
        np.concatenate([np.empty((0, 4), np.int32), *boxes]),
        np.concatenate([np.empty((0, 16), np.uint8), *digests]),
    )
    return Shard(whole, *of_all, num_views, failed)


def _known(names: Mapping[Frame, str], *, older: Sequence[Pack]) -> dict[Frame, tuple[Pixels, Indices, Pixels]]:
    """Pixels, boxes and digests of the frames that an older pack holds undamaged."""
    found: dict[Frame, tuple[Pixels, Indices, Pixels]] = {}
    for pack in older:
        for frame, name in names.items():
            at = pack.index.get(name)
            if at is None or frame in found:
                continue
            rows = np.arange(pack.starts[at], pack.starts[at + 1])
            try:
                found[frame] = pack.take(rows), pack.tile_boxes[rows], pack.digests[rows]
            except InputError as fault:
                warnings.warn(Notice(f"{fault.detail}: {pack.path}; its frames are decoded again"), stacklevel=2)
                break
    return found


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
    way: dict[str, Any] = {"plant": plant, "size_px": trunk_size_px, "interpolation": interpolation}
    key = pack_key(frames, **way)
    stem = f"packs/{plant.name}/{key}"
    path = place_of(stem, store=store, cache_dir=cache_dir)
    if path.is_relative_to(LocalStore(cache_dir).root):
        hold(LocalStore(cache_dir).root, stem)
    make_shard = partial(build_shard, read=read, **way)
    pack = _found(path, stem, store=store, cache=LocalStore(cache_dir))
    if pack is not None and not _has_recovered(pack, frames, make_shard):
        return pack
    places = (store,) if store.local_path("packs") else (store, LocalStore(cache_dir))
    since = {plant.name: governance.oldest(rows, now=now())}
    for place in places:
        retention.record(place, stem, since=retention.as_old_as(place, f"packs/{plant.name}", since=since))
    names = views_names(frames, **way)
    make_shard = partial(make_shard, older=_older(path.parent, names=set(names.values())))
    shards = _shards(frames, rows, plant=plant, size_px=trunk_size_px)
    about = {"digest": key, "plant": plant.name, "size_px": trunk_size_px, "format": FORMAT}
    try:
        _write(path, frames, map_tasks(make_shard, shards), about=about, names=names)
    except InputError:
        for place in places:
            place.delete(f"{stem}{retention.RECORD}")
        raise
    sha256 = file_sha256(path) if store.local_path("packs") else store.upload(path, f"{stem}.arrow")
    store.write_json(f"{stem}.json", {"sha256": sha256, "bytes": path.stat().st_size})
    return Pack.open(path)


def _older(folder: Path, *, names: set[str]) -> list[Pack]:
    """The packs in a folder that hold any of these views; what cannot be read there counts as none."""
    found = []
    for path in sorted(folder.glob("*.arrow")):
        with contextlib.suppress(InputError):
            pack = Pack.open(path)
            found += [pack] if names & pack.index.keys() else []
    return found


def known_digests(
    folder: Path, frames: Sequence[Frame], *, plant: Plant, size_px: int, how: Interpolation
) -> dict[str, npt.NDArray[np.uint8]]:
    """Frame -> the digests [n, 16] of its views, of the frames that a pack in the folder holds alike."""
    names = views_names(frames, plant=plant, size_px=size_px, interpolation=how)
    found = {}
    for pack in _older(folder, names=set(names.values())):
        for frame, name in names.items():
            at = pack.index.get(name)
            if at is not None:
                found[frame.frame] = np.asarray(pack.digests[pack.starts[at] : pack.starts[at + 1]])
    return found


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


def _found(path: Path, stem: str, *, store: Store, cache: Store) -> Pack | None:
    """The pack in the cache or the store, or None. A damaged cache file counts as none."""
    if path.exists():
        try:
            return Pack.open(path)
        except InputError:
            path.unlink(missing_ok=True)
    if store.local_path("packs") or not store.exists(f"{stem}.json"):
        return None
    about = store.read_json(f"{stem}.json")
    retention.copy_record(stem, source=store, target=cache)
    return Pack.open(store.download(f"{stem}.arrow", path, sha256=about["sha256"]))


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


def _write(
    path: Path, frames: Sequence[Frame], shards: Iterable[Shard], *, about: dict[str, Any], names: Mapping[Frame, str]
) -> None:
    """Afterwards the pack is at `path`, whole. Holds one shard in memory at a time."""
    boxes: list[Indices] = []
    digests: list[Pixels] = []
    num_views: list[int] = []
    failed: list[Failure] = []
    with replaced(path) as part:
        raw = part.with_name(f"{part.name}.part")
        try:
            with raw.open("wb") as file:
                for shard in shards:
                    file.write(shard.pixels.data)
                    boxes.append(shard.boxes)
                    digests.append(shard.digests)
                    num_views += shard.num_views
                    failed += shard.failed
            if not sum(num_views):
                first = failed[0].reason if failed else "there are no rows"
                raise InputError(f"not one frame can be used: {first}")
            pixels = pa.py_buffer(np.memmap(raw, dtype=np.uint8, mode="r"))
            kept = [(frame, names[frame], n) for frame, n in zip(frames, num_views, strict=True) if n]
            views = np.concatenate(boxes), np.concatenate(digests)
            batch = _batch(kept, pixels, *views, about={**about, "failed": failed})
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
        finally:
            raw.unlink(missing_ok=True)


def _batch(
    kept: Sequence[tuple[Frame, str, int]], pixels: Any, boxes: Indices, digests: Pixels, *, about: dict[str, Any]
) -> Any:
    """kept: frames, what their views are named by, and how many there are."""
    index = pa.array(np.repeat(np.arange(len(kept), dtype=np.int32), [n for *_, n in kept]))
    width = about["size_px"] ** 2 * 3
    columns = {
        "pixels": pa.Array.from_buffers(pa.binary(width), len(index), [None, pixels]),
        "digest": pa.Array.from_buffers(pa.binary(16), len(index), [None, pa.py_buffer(np.ascontiguousarray(digests))]),
        "frame": pa.DictionaryArray.from_arrays(index, pa.array([frame.frame for frame, *_ in kept])),
        "sha256": pa.DictionaryArray.from_arrays(index, pa.array([frame.sha256 for frame, *_ in kept])),
        "name": pa.DictionaryArray.from_arrays(index, pa.array([name for _, name, _ in kept])),
        "box": pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1)), 4),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    return batch.replace_schema_metadata({"pack": json.dumps(about)})
