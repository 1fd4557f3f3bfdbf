"""An import that is repeated, killed, or read over a bad line ends with the same rows, and every reject on record."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flaky_proxy import FlakyProxy

from cluster import storage
from cluster.catalog import Catalog
from cluster.imports import Imported, import_plant
from cluster.readings import Readings
from cluster.storage import PlantFiles, open_store
from plants import frames
from plants.errors import InputError
from plants.plant import Fleet, load_fleet
from tests.fleets import NOW, drawn_fleet, into_bucket

LABELS = "labels/north.parquet"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch) -> Fleet:
    monkeypatch.setattr(storage, "SETTLED_S", -1.0)
    return load_fleet(drawn_fleet(tmp_path, "north", num_lots=8))


def read(fleet: Fleet, **options) -> Imported:
    plant, store = fleet.plant("north"), open_store(fleet.store)
    return import_plant(Catalog(store), fleet, plant, files=PlantFiles(), now=NOW, **options)


@pytest.mark.slow
def test_an_unchanged_plant_is_not_read_again_unless_asked(fleet):
    store = open_store(fleet.store)
    assert read(fleet).num_read == 24
    before = store.read(LABELS)
    assert read(fleet).num_read == 0
    assert store.read(LABELS) == before
    assert read(fleet, is_reread=True).num_read == 24
    assert store.read(LABELS) == before
    assert read(fleet).num_read == 0


def test_a_file_that_was_changed_keeping_its_size_and_time_is_found(fleet):
    read(fleet)
    path = Path(fleet.plant("north").images) / "good" / "L00-0.png"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read(fleet).num_read == 1


def test_a_file_that_was_just_written_has_no_version_yet(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    assert open_store(tmp_path).list()[0].version == ""


def test_pieces_become_one_when_the_import_ends(fleet, monkeypatch):
    monkeypatch.setattr(frames, "CHUNK", 7)
    read(fleet)
    assert [entry.key for entry in open_store(fleet.store).list("imports")] == ["imports/north/whole.parquet"]


def test_a_broken_piece_is_named_with_what_to_do(fleet):
    open_store(fleet.store).write("imports/north/whole.parquet", b"words")
    with pytest.raises(InputError, match=r"imports/north/whole\.parquet.*Delete it"):
        read(fleet)


def test_every_reject_is_on_record_and_goes_when_its_cause_goes(fleet):
    folder = Path(fleet.plant("north").images) / "good"
    for i in range(15):
        (folder / f'L00-{i}, "x".jpg').write_text("words")
    found = read(fleet)
    with Path(found.rejects).open(encoding="utf-8", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("frame", "reason"), *found.rejected]
    for path in folder.glob("*.jpg"):
        path.unlink()
    assert Path(read(fleet).rejects).read_text(encoding="utf-8").splitlines() == ["frame,reason"]


def test_where_every_frame_is_rejected_the_list_is_on_record_all_the_same(fleet):
    for path in Path(fleet.plant("north").images).rglob("*.png"):
        path.write_text("words")
    with pytest.raises(InputError, match=r"no usable frame.* All rejects are listed in .*north\.csv"):
        read(fleet)
    assert len((Path(fleet.store) / "rejects/north.csv").read_text(encoding="utf-8").splitlines()) == 25


def test_a_file_whose_name_is_not_utf8_is_rejected_by_a_name_that_can_be_printed(fleet):
    folder = os.fsencode(fleet.plant("north").images) + b"/good/"
    with open(folder + b"caf\xe9.png", "wb") as file:
        file.write(b"x")
    assert [r.frame for r in read(fleet).rejected] == ["good/caf\\udce9.png"]


KILLED = """\
import sys, time
from pathlib import Path
from datetime import UTC, datetime
from cluster import storage
from cluster.catalog import Catalog
from cluster.imports import import_plant
from cluster.storage import PlantFiles, open_store
from plants import frames
from plants.plant import load_fleet

class Slow(PlantFiles):
    def read(self, uri, relpath):
        time.sleep(0.4)
        return super().read(uri, relpath)

storage.SETTLED_S, frames.CHUNK = -1.0, 8
fleet = load_fleet(Path(sys.argv[1]))
import_plant(Catalog(open_store(fleet.store)), fleet, fleet.plants[0], files=Slow(), now=datetime.now(UTC))
"""


@pytest.mark.slow
def test_after_kill_9_only_the_rest_is_read_and_the_rows_are_those_of_an_undisturbed_import(fleet, tmp_path):
    undisturbed = load_fleet(drawn_fleet(tmp_path / "other", "north", num_lots=8))
    read(undisturbed)
    expected = open_store(undisturbed.store).read(LABELS)
    store = open_store(fleet.store)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "fleet.yaml")])
    deadline = time.monotonic() + 60
    while len(store.list("imports")) < 2 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not store.exists(LABELS)
    num_known = len(Readings(store, "north").known())
    assert 0 < num_known < 24
    assert read(fleet).num_read == 24 - num_known
    assert store.read(LABELS) == expected


@pytest.mark.slow
def test_over_a_line_that_fails_one_call_in_ten_no_row_is_lost(object_store, bucket, tmp_path, monkeypatch):
    local = drawn_fleet(tmp_path, "north", num_lots=10)
    (tmp_path / "north" / "labels.csv").write_text(
        "frame,class\n"
        + "".join(f"{p.relative_to(tmp_path / 'north')},{p.parent.name}\n" for p in tmp_path.glob("north/*/*.png"))
    )
    fleet = load_fleet(into_bucket(local, bucket=bucket))
    with FlakyProxy(object_store.endpoint, share=0.1, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        found = read(fleet)
        assert (found.rows, found.rejected) == (30, [])
        assert proxy.spoiled >= 2
        assert read(fleet).num_read == 0
