"""A block is whole or it is not there, and says what each of its rows is."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from cluster import blocks
from plants.errors import InputError, NoSpace


def keys(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, blocks.KEY_BYTES), dtype=np.uint8)


def written(path, rows: np.ndarray, *, piece: int = 3, **more) -> None:
    with blocks.writing(path, keys=keys(len(rows)), **more) as add:
        for start in range(0, max(len(rows), 1), piece):
            add(rows[start : start + piece])


@pytest.mark.parametrize("shape", [(7, 2, 3), (1, 5), (0, 1)])
def test_what_was_written_piece_by_piece_is_read_and_numpy_reads_it_too(tmp_path, shape):
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    written(path := tmp_path / "a.npy", rows)
    found = blocks.read(path)
    assert np.array_equal(found.rows, rows)
    assert np.array_equal(found.keys, keys(len(rows)))
    assert np.array_equal(blocks.keys_of(path), keys(len(rows)))
    assert np.array_equal(np.load(path, mmap_mode="r"), rows)
    assert os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("at", [0, 20, 130, 180, -40, -1])
def test_a_byte_that_changed_anywhere_is_found(tmp_path, at):
    written(path := tmp_path / "a.npy", np.arange(60, dtype=np.float16).reshape(20, 3))
    assert len(blocks.read(path).rows) == 20
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy: is damaged\. Delete it"):
        blocks.read(path)


def test_a_file_of_another_size_has_no_keys_and_a_missing_one_is_missing(tmp_path):
    written(path := tmp_path / "a.npy", np.zeros((20, 3), np.float16))
    os.truncate(path, path.stat().st_size - 1)
    assert blocks.keys_of(path) is None
    assert blocks.keys_of(tmp_path / "none.npy") is None
    with pytest.raises(FileNotFoundError):
        blocks.read(tmp_path / "none.npy")


def test_the_room_that_is_asked_for_is_what_is_written_and_where_there_is_none_nothing_is(tmp_path):
    asked: list[int] = []
    written(path := tmp_path / "a.npy", np.zeros((20, 3), np.float16), room=asked.append)
    assert asked == [path.stat().st_size - 128]

    def refuse(num_bytes: int) -> None:
        raise NoSpace("no")

    with pytest.raises(NoSpace):
        written(tmp_path / "b.npy", np.zeros((20, 3), np.float16), room=refuse)
    assert os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_one_line_and_other_faults_stay_what_they_are(tmp_path, monkeypatch, code):
    def fail(descriptor: int, offset: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.posix_fallocate", fail)
    with pytest.raises(NoSpace, match=r"a\.npy: the disk is full\. Make space there; then the same command goes on"):
        written(tmp_path / "a.npy", np.zeros((2, 3), np.float16))
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        written(tmp_path / "a.npy", np.zeros((2, 3), np.float16))
    assert os.listdir(tmp_path) == []
