"""Blocks: rows of one array in a file that says by itself whether it is whole, and what each row is.

A block is a plain `.npy`, so that numpy maps it into memory; behind the array stand a key of 16 bytes a row and the
SHA-256 of all before it. It appears at once or not at all, so a writer may be killed at any moment, and two may write
the same one. Not for what must not be lost: a damaged block is deleted, and its rows are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.storage import FULL, no_space, replaced
from plants.errors import InputError

KEY_BYTES = 16
_PIECE = 1 << 22

Keys = npt.NDArray[np.uint8]
"""[N, KEY_BYTES]"""


class Block(NamedTuple):
    """What a file holds."""

    rows: npt.NDArray[Any]
    """[N, ...], mapped from the file, read-only."""
    keys: Keys


@contextlib.contextmanager
def writing(
    path: Path, *, keys: Keys, room: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """A function that takes the rows of a block piece by piece; the block is there when the `with` ends well.

    room: told once how many bytes are going to be written; raises where they may not.
    Raises NoSpace when the disk is full; nothing is left behind then.
    """
    try:
        with replaced(path) as part, part.open("wb") as file:
            writer = _Writer(file, keys=keys, room=room)
            yield writer.add
            writer.end()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_space(str(path), reason="the disk is full") from None


class _Writer:
    def __init__(self, file: Any, *, keys: Keys, room: Callable[[int], None]) -> None:
        self.file, self.keys, self.room = file, keys, room
        self.hash = hashlib.sha256()
        self.shape: tuple[int, ...] | None = None
        self.count = 0

    def add(self, rows: npt.NDArray[Any]) -> None:
        if self.shape is None:
            self.shape = rows.shape[1:]
            num = len(self.keys)
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (num, *self.shape)}
            np.lib.format.write_array_header_2_0(_Hashed(self), header)
            num_bytes = num * (rows.dtype.itemsize * math.prod(self.shape) + KEY_BYTES) + self.hash.digest_size
            self.room(num_bytes)
            os.posix_fallocate(self.file.fileno(), 0, self.file.tell() + num_bytes)  # a full disk is told now
        assert rows.shape[1:] == self.shape, "rows of one block are alike"
        self.count += len(rows)
        self.put(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")

    def put(self, data: Any) -> None:
        self.hash.update(data)
        self.file.write(data)

    def end(self) -> None:
        assert self.count == len(self.keys), "a row has a key"
        self.put(np.ascontiguousarray(self.keys).tobytes())
        self.file.write(self.hash.digest())
        self.file.flush()


class _Hashed:
    """What numpy writes a header to."""

    def __init__(self, writer: _Writer) -> None:
        self.write = writer.put


def keys_of(path: Path) -> Keys | None:
    """The keys of a block whose size is right, None of anything else."""
    try:
        return _opened(path).keys
    except (OSError, ValueError, EOFError):
        return None


_WHOLE: dict[Path, tuple[int, ...]] = {}
"""Files that this process has read through, and what they were then."""


def read(path: Path) -> Block:
    """The block in a file, which is what was written: read through once by every process.

    Raises FileNotFoundError, and InputError for what is damaged.
    """
    try:
        stat = path.stat()
        found = _opened(path)
        version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if _WHOLE.get(path) != version:
            _check(path)
            _WHOLE[path] = version
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError):
        raise InputError("is damaged", file=str(path), remedy="Delete it; it is made again") from None
    return found


def _opened(path: Path) -> Block:
    """Raises ValueError where the file's size is not what its header says."""
    rows: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    end = rows.offset + rows.nbytes
    if path.stat().st_size != end + len(rows) * KEY_BYTES + hashlib.sha256().digest_size:
        raise ValueError("size")
    keys = np.fromfile(path, dtype=np.uint8, count=len(rows) * KEY_BYTES, offset=end).reshape(-1, KEY_BYTES)
    return Block(rows, keys)


def _check(path: Path) -> None:
    """Raises ValueError where the file's bytes do not have the digest at its end."""
    hashed, left = hashlib.sha256(), path.stat().st_size - hashlib.sha256().digest_size
    with path.open("rb") as file:
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise ValueError("end")
            hashed.update(piece)
            left -= len(piece)
        if file.read() != hashed.digest():
            raise ValueError("digest")
