"""A folder on this machine's disk where log segments wait for the store, one for each process of a replica.

Segments are written here before they are sent, so neither a store that is away nor a killed process loses what was
flushed. A file mapped into memory tells how far the process counted: it outlives `kill -9`, and the next process on the
machine finds by a lock that is free that the owner is gone, sends what it left and notes what never was written.
What is there is kept when the folder is full, and what comes then is dropped and counted: one gap, at its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cluster.storage import replaced
from serving.segments import Note, Range, Segment, joined

_COUNT = struct.Struct("<q")
_LOCK, _ISSUED, _DROPPED = "lock", "issued", "dropped.json"


class SpoolFull(OSError):
    """The spool holds as much as it may."""


@dataclass
class Spool:
    """The folder of one owner. One thread keeps, another sends."""

    root: Path
    owner: str
    limit_bytes: int = 1 << 30
    num_segments: int = field(default=0, init=False)
    num_bytes: int = field(default=0, init=False)
    dropped: tuple[Range, ...] = field(default=(), init=False)
    problem: str | None = field(default=None, init=False)
    """Why nothing can be kept on this disk, or None."""

    def __post_init__(self) -> None:
        self._lock: BinaryIO | None = None
        self._issued: mmap.mmap | None = None
        self._turn = threading.Lock()
        try:
            self._open()
        except OSError as error:
            self.close(is_empty=False)
            self.problem = (error.strerror or type(error).__name__).lower()

    @property
    def folder(self) -> Path:
        """Where this owner's segments wait."""
        return self.root / self.owner

    @property
    def dropped_rows(self) -> int:
        """Verdicts that could not be kept."""
        return sum(last - first + 1 for first, last in self.dropped)

    def issue(self, sequence: int) -> None:
        """The sequence is known to be given away, also after this process was killed."""
        if self._issued is not None:
            _COUNT.pack_into(self._issued, 0, sequence)

    def keep(self, segment: Segment, data: bytes) -> None:
        """The segment waits on disk. Raises SpoolFull, or OSError where the disk takes nothing."""
        if self.num_bytes + len(data) > self.limit_bytes:
            raise SpoolFull("the spool is full")
        with replaced(self.folder / f"{segment.day}_{segment.first}-{segment.last}.arrow") as part:
            part.write_bytes(data)
        self._count(1, len(data))
        if self._lock is not None:  # what was wrong has passed
            self.problem = None

    def drop(self, segment: Segment) -> None:
        """The segment's verdicts are lost, and that is on record."""
        self.dropped = joined([*self.dropped, (segment.first, segment.last)])
        with contextlib.suppress(OSError):  # a full disk: it is in memory, and goes to the store with the next note
            (self.folder / _DROPPED).write_text(json.dumps(self.dropped), encoding="utf-8")

    def waiting(self) -> list[tuple[Segment, Path]]:
        """Every segment that waits, the oldest first."""
        found = [(Segment.of(path.name, owner=self.owner), path) for path in self.folder.glob("[!.]*.arrow")]
        return sorted((segment, path) for segment, path in found if segment is not None)

    def sent(self, path: Path) -> None:
        """A segment that is in the store waits no more."""
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._count(-1, -size)

    def note(self, *, ended: str = "", at: str = "") -> Note:
        """What the store should know of this owner."""
        issued = _COUNT.unpack_from(self._issued, 0)[0] if self._issued is not None else 0
        return Note(self.owner, issued, self.dropped, ended, at)

    def close(self, *, is_empty: bool) -> None:
        """The folder is let go, and gone where nothing waits in it."""
        if is_empty and self.problem is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _count(self, num_segments: int, num_bytes: int) -> None:
        with self._turn:
            self.num_segments += num_segments
            self.num_bytes += num_bytes

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / _LOCK).open("ab")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (self.folder / _ISSUED).open("ab") as file:
            file.truncate(_COUNT.size)
        with (self.folder / _ISSUED).open("r+b") as file:
            self._issued = mmap.mmap(file.fileno(), _COUNT.size)
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.dropped = joined(json.loads((self.folder / _DROPPED).read_text(encoding="utf-8")))
        sizes = [path.stat().st_size for _, path in self.waiting()]
        self.num_segments, self.num_bytes = len(sizes), sum(sizes)


def orphans(root: Path, *, but: str = "") -> Iterator[Spool]:
    """The spools of this machine whose owner is gone, each held by this process until it is closed."""
    for folder in sorted(path.parent for path in root.glob(f"*/{_ISSUED}") if path.parent.name != but):
        spool = Spool(root, folder.name)
        if spool.problem is None:
            yield spool


def waiting_on_disk(root: Path) -> list[Segment]:
    """Every segment that waits on this machine, whoever owns it."""
    found = (Segment.of(path.name, owner=path.parent.name) for path in root.glob("*/[!.]*.arrow"))
    return sorted(segment for segment in found if segment is not None)
