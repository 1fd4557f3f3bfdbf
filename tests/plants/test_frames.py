"""What was read once is not read again, and what changed is; the rows are the same either way."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from plants import frames
from plants.frames import KEY, SEEN
from plants.labels import Imported, read_rows, to_parquet
from plants.plant import Plant
from plants.tables import Listed


class Folder:
    """Files in a local folder that counts what is read; a version says which content a file has."""

    def __init__(self, *, is_versioned: bool = True) -> None:
        self.read_paths: list[str] = []
        self.dies_after: int | None = None
        self.is_versioned = is_versioned

    def list(self, uri: str) -> list[Listed]:
        paths = [p for p in Path(uri).rglob("*") if p.is_file()]
        return [
            Listed(p.relative_to(uri).as_posix(), p.stat().st_size, str(hash(p.read_bytes())) * self.is_versioned)
            for p in paths
        ]

    def read(self, uri: str, relpath: str) -> bytes:
        if len(self.read_paths) == self.dies_after:
            raise KeyboardInterrupt
        self.read_paths.append(relpath)
        return (Path(uri) / relpath).read_bytes()


class Kept:
    """A memory in this process."""

    def __init__(self) -> None:
        self.table = pd.DataFrame(
            {name: pd.Series(dtype="int64" if "_" in name or name == "size" else str) for name in KEY + SEEN}
        )

    def known(self) -> pd.DataFrame:
        return self.table

    def add(self, seen: pd.DataFrame) -> None:
        self.table = pd.concat([self.table, seen], ignore_index=True)

    def settle(self, seen: pd.DataFrame) -> None:
        self.table = seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("RGB", (20, 16), (i, len(name), 9)).save(tmp_path / name / f"{i}.bmp")
    return tmp_path


def imported(root: Path, *, files: Folder, memory: Kept | None, **changes) -> Imported:
    fields = {"name": "mill", "images": str(root), "classes": {"good": "ok", "bad": "dent"}, "ok": ("good",)}
    limits = {name: changes.pop(name) for name in ("max_pixels", "progress") if name in changes}
    return read_rows(Plant.model_validate({**fields, **changes}), files=files, memory=memory, num_readers=1, **limits)


def test_a_second_reading_reads_nothing_and_says_the_same(root):
    memory = Kept()
    first = imported(root, files=Folder(), memory=memory)
    files = Folder()
    again = imported(root, files=files, memory=memory)
    assert files.read_paths == []
    assert to_parquet(again.rows) == to_parquet(first.rows)
    assert (first.num_frames, first.num_read, again.num_frames, again.num_read) == (12, 12, 12, 0)


def test_only_what_is_new_or_changed_is_read_also_under_the_same_name_and_size(root):
    memory = Kept()
    imported(root, files=Folder(), memory=memory)
    size = (root / "good/0.bmp").stat().st_size
    Image.new("RGB", (20, 16), (200, 1, 1)).save(root / "good/0.bmp")
    Image.new("RGB", (20, 16), (201, 1, 1)).save(root / "good/new.bmp")
    assert (root / "good/0.bmp").stat().st_size == size
    files = Folder()
    found = imported(root, files=files, memory=memory)
    assert sorted(files.read_paths) == ["good/0.bmp", "good/new.bmp"]
    assert to_parquet(found.rows) == to_parquet(imported(root, files=Folder(), memory=None).rows)


def test_where_the_listing_has_no_version_every_frame_is_read_each_time(root):
    memory = Kept()
    for _ in range(2):
        files = Folder(is_versioned=False)
        imported(root, files=files, memory=memory)
        assert len(files.read_paths) == 12


def test_a_reading_that_was_cut_off_is_taken_up_where_it_was(root, monkeypatch):
    monkeypatch.setattr(frames, "CHUNK", 4)
    memory, files = Kept(), Folder()
    files.dies_after = 9
    with pytest.raises(KeyboardInterrupt):
        imported(root, files=files, memory=memory)
    again = Folder()
    found = imported(root, files=again, memory=memory)
    assert len(again.read_paths) == 4
    assert to_parquet(found.rows) == to_parquet(imported(root, files=Folder(), memory=None).rows)


@pytest.mark.parametrize(
    ("changes", "num_rejected"),
    [
        ({"max_pixels": 100}, 12),
        ({"environments": {"default": {"geometry": {"bit_depth": 12}}}}, 12),
        ({"environments": {"default": {"geometry": {"roi": [0, 0, 50, 50]}}}}, 12),
        ({"environments": {"default": {"geometry": {"roi": [0, 0, 10, 10]}}}}, 0),
    ],
)
def test_nothing_remembered_outlives_a_changed_limit_or_geometry(root, changes, num_rejected):
    memory = Kept()
    imported(root, files=Folder(), memory=memory)
    Image.new("RGB", (8, 8)).save(root / "good/small.png")  # so that some import succeeds
    ends = []
    for known in (memory, None):
        try:
            ends.append(to_parquet(imported(root, files=Folder(), memory=known, **changes).rows))
        except ValueError as error:
            ends.append(str(error))
    assert ends[0] == ends[1]
    assert isinstance(ends[0], str) == (num_rejected == 12 and "max_pixels" not in changes)


def test_a_frame_that_could_not_be_read_is_read_again(root):
    (root / "good/0.bmp").write_text("words")
    memory = Kept()
    for _ in range(2):
        files = Folder()
        found = imported(root, files=files, memory=memory)
        assert "good/0.bmp" in files.read_paths
        assert [r.frame for r in found.rejected] == ["good/0.bmp"]


def test_a_digest_in_the_table_is_held_against_what_is_remembered_too(root):
    memory = Kept()
    imported(root, files=Folder(), memory=memory)
    table = root.parent / f"{root.name}.csv"
    table.write_text(f"frame,class,sha256\ngood/0.bmp,good,{'0' * 64}\ngood/1.bmp,good,\n")
    files = Folder()
    found = imported(root, files=files, memory=memory, labels=str(table))
    assert [r.frame for r in found.rejected] == ["good/0.bmp"]
    assert "SHA-256" in found.rejected[0].reason


def test_progress_begins_with_what_is_known(root):
    memory, seen = Kept(), []
    imported(root, files=Folder(), memory=memory)
    Image.new("RGB", (20, 16), (201, 1, 1)).save(root / "good/new.bmp")
    imported(root, files=Folder(), memory=memory, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(12, 13), (13, 13)]
