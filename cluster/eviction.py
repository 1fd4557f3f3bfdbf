"""A machine's cache stays within its bound: what was not used for longest goes first, what is in use never.

What may go is what holds pixels and can be made again: packs and activations, each with a record beside it, as
`cluster.retention` keeps them. A process says what it uses by a shared lock on a file, which the system lets go when
the process ends, however it ends. Not for the fleet's store, whose packs are every machine's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.retention import RECORD
from cluster.storage import LocalStore, no_space
from plants.errors import Notice

FOLDERS = ("packs", "activations")
LOCK = ".lock"
DEAD_S = 3600.0
"""A file that was begun and not written to for so long has lost its writer."""

_HELD: dict[Path, int] = {}
"""Lock file -> its descriptor, open until this process ends."""


class Entry(NamedTuple):
    """Something that may be evicted."""

    used_at: float
    stem: str
    files: tuple[Path, ...]
    num_bytes: int


def hold(cache: Path, stem: str) -> None:
    """The entry counts as used now, and is not evicted while this process lives."""
    lock = cache / f"{stem}{LOCK}"
    while lock not in _HELD or not _is_at(_HELD[lock], lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        if lock in _HELD:  # deleted with its entry, e.g. as `retention_days` asks
            os.close(_HELD.pop(lock))
        _HELD[lock] = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(_HELD[lock], fcntl.LOCK_SH)
    os.utime(lock)


def make_room(cache: Path, *, num_bytes: int, bound_gb: float) -> None:
    """So many bytes more fit into the bound, after entries that nobody uses have gone; each is said.

    Raises NoSpace when all that could go has gone and it is not enough.
    """
    bound = bound_gb * 1e9
    found = sorted(entries(cache))
    total = sum(entry.num_bytes for entry in found) + num_bytes
    for entry in found:
        if total <= bound:
            return
        if _evict(entry, cache=cache):
            total -= entry.num_bytes
            days = (time.time() - entry.used_at) / 86400
            said = f"{entry.stem} ({entry.num_bytes / 1e9:.2f} GB, not used for {days:.1f} days)"
            warnings.warn(Notice(f"evicted from the cache: {said}"), stacklevel=2)
    if total > bound:
        reason = (
            f"the cache may hold {bound_gb:g} GB (CROSSPLANT_CACHE_GB) and {total / 1e9:.2f} GB are in use or needed"
        )
        raise no_space(str(cache), reason=reason)


def entries(cache: Path) -> Iterator[Entry]:
    """Everything in the cache that may go; files whose writers died long ago are gone."""
    for folder in FOLDERS:
        for record in (cache / folder).rglob(f"*{RECORD}"):
            stem = record.relative_to(cache).as_posix().removesuffix(RECORD)
            base = cache / stem
            files = [*base.parent.glob(f"{base.name}.*"), *base.glob("*")]
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                lock = base.with_name(f"{base.name}{LOCK}")
                used_at = (lock if lock.exists() else record).stat().st_mtime
                alive = [path for path in files if not _is_dead(path)]
                yield Entry(used_at, stem, tuple(alive), sum(path.stat().st_size for path in alive))


def _is_dead(path: Path) -> bool:
    if path.suffix != ".part" or path.stat().st_mtime > time.time() - DEAD_S:
        return False
    path.unlink(missing_ok=True)
    return True


def _evict(entry: Entry, *, cache: Path) -> bool:
    """Whether nobody used the entry; it is gone then, its record last but for the lock."""
    lock = cache / f"{entry.stem}{LOCK}"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, lock):
            return False
        store, record = LocalStore(cache), cache / f"{entry.stem}{RECORD}"
        base = cache / entry.stem
        now = {*entry.files, *base.parent.glob(f"{base.name}.*"), *base.glob("*")}  # a holder may have written since
        for path in sorted(now, key=lambda path: (path == lock, path == record)):
            store.delete(path.relative_to(cache).as_posix())
        lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (cache / entry.stem).rmdir()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
