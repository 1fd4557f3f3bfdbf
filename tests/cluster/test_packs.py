from __future__ import annotations

import io
import os
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cluster import packs
from cluster.packs import Failure, Frame, Pack, build, build_shard, pack_key
from cluster.storage import PlantFiles, open_store
from plants.errors import InputError, Notice
from plants.geometry import Environment, Geometry, Photometry
from plants.hashing import sha256
from plants.images import decode
from plants.plant import Plant
from plants.views import views

TILED = Environment(geometry=Geometry(fit="tiles", tile_px=40, overlap_px=8))
DARK = Environment(photometry=Photometry(gain=2.0))
SIZE = 32


def make_plant(images, **environments) -> Plant:
    return Plant(
        name="steel", images=str(images), classes={"dent": "dent"}, environments=environments or {"a": TILED, "b": DARK}
    )


def make_rows(plant: Plant, num: int = 9, *, seed: int = 0) -> pd.DataFrame:
    """PNG frames of several sizes in the plant's folder, and the label rows that a pack needs."""
    random, store, rows = np.random.default_rng(seed), open_store(plant.images), []
    for i in range(num):
        width, height = 60 + 10 * (i % 3), 50
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
        frame = f"dent/{i:03d} ß.png"
        store.write(frame, buffer.getvalue())
        rows.append((frame, sha256(buffer.getvalue()), "ab"[i % 2], width, height))
    return pd.DataFrame(rows, columns=["frame", "sha256", "environment", "width_px", "height_px"])


@pytest.fixture
def plant(tmp_path) -> Plant:
    return make_plant(tmp_path / "images")


@pytest.fixture
def make(plant, tmp_path):
    """Builds the pack of some rows with a store and a cache of its own."""

    def _make(rows, *, plant=plant, **options) -> Pack:
        read = options.pop("read", partial(PlantFiles().read, plant.images))
        store = options.pop("store", open_store(tmp_path / "store"))
        options = {"trunk_size_px": SIZE, **options}
        return build(rows, plant=plant, read=read, store=store, cache_dir=tmp_path / "cache", **options)

    return _make


def expected(plant: Plant, row) -> tuple[np.ndarray, np.ndarray]:
    environment = plant.environments[row.environment]
    pixels = decode(PlantFiles().read(plant.images, row.frame))
    return views(pixels, geometry=environment.geometry, photometry=environment.photometry, size_px=SIZE)


def test_a_packs_rows_are_exactly_the_views_of_its_frames(plant, make, monkeypatch):
    monkeypatch.setattr(packs, "SHARD_FRAMES", 4)
    rows = make_rows(plant)
    pack = make(rows)
    assert pack.frames == sorted(rows["frame"])
    for row in rows.itertuples():
        pixels, boxes = expected(plant, row)
        at = pack.rows([row.frame])
        np.testing.assert_array_equal(pack.pixels[at], pixels)
        np.testing.assert_array_equal(pack.tile_boxes[at], boxes)
        assert {pack.frames[i] for i in pack.frame_index[at]} == {row.frame}
        assert pack.sha256s[pack.frame_index[at[0]]] == row.sha256
    assert len(pack) == pack.starts[-1] == len(pack.pixels)


def test_rows_come_in_the_order_asked_for(plant, make):
    pack = make(make_rows(plant))
    there = pack.rows(pack.frames)
    back = pack.rows(pack.frames[::-1])
    assert there.tolist() == list(range(len(pack)))
    assert sorted(back.tolist()) == there.tolist()
    assert back.tolist() != there.tolist()
    assert len(pack.rows([])) == 0
    with pytest.raises(KeyError):
        pack.rows(["none"])


def test_pixels_are_mapped_from_the_file_and_cannot_be_written(plant, make):
    pack = make(make_rows(plant))
    assert pack.pixels.dtype == np.uint8
    assert not pack.pixels.flags.owndata
    assert not pack.pixels.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        pack.pixels[0] = 0
    with open("/proc/self/maps") as maps:
        assert any(str(pack.path) in line for line in maps)


def test_a_pack_is_found_again_whatever_the_order_of_rows(plant, make):
    rows = make_rows(plant)
    first = make(rows)

    def refuse(_):
        raise AssertionError("read again")

    again = make(rows.sample(frac=1, random_state=1), read=refuse)
    assert (again.digest, again.path) == (first.digest, first.path)


def test_a_pack_travels_as_its_path(plant, make):
    pack = make(make_rows(plant))
    data = pickle.dumps(pack)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).pixels, pack.pixels)


def test_the_pack_of_each_way_of_resizing_holds_other_pixels(plant, make):
    rows = make_rows(plant)
    first, other = make(rows), make(rows, interpolation="bicubic")
    assert first.path != other.path
    assert not np.array_equal(first.pixels, other.pixels)
    assert np.array_equal(make(rows, interpolation="bilinear").pixels, first.pixels)


FRAMES = [Frame("x", "1", "a"), Frame("y", "2", "a")]
CHANGES = {
    "tile size": lambda p: make_plant(p.images, a=Environment(geometry=Geometry(fit="tiles", tile_px=41)), b=DARK),
    "light": lambda p: make_plant(p.images, a=TILED.model_copy(update={"photometry": Photometry(gamma=2)}), b=DARK),
}


@pytest.mark.parametrize("change", CHANGES)
def test_geometry_and_photometry_change_the_key(plant, change):
    assert pack_key(FRAMES, plant=CHANGES[change](plant), size_px=SIZE) != pack_key(FRAMES, plant=plant, size_px=SIZE)


def test_frames_and_size_change_the_key_order_and_labels_do_not(plant):
    key = pack_key(FRAMES, plant=plant, size_px=SIZE)
    others = [[*FRAMES, Frame("z", "3", "a")], [FRAMES[0]], [FRAMES[0], FRAMES[1]._replace(sha256="3")]]
    others += [[FRAMES[0], FRAMES[1]._replace(environment="b")]]
    assert len({key, *(pack_key(frames, plant=plant, size_px=SIZE) for frames in others)}) == 5
    assert pack_key(FRAMES, plant=plant, size_px=SIZE + 1) != key
    assert pack_key(FRAMES, plant=plant, size_px=SIZE, interpolation="bicubic") != key
    assert pack_key(FRAMES[::-1], plant=plant, size_px=SIZE) == key
    relabelled = plant.model_copy(update={"classes": {"other": plant.classes["dent"]}})
    assert pack_key(FRAMES, plant=relabelled, size_px=SIZE) == key


def test_an_unused_environment_does_not_change_the_key(plant):
    other = make_plant(plant.images, a=TILED, b=Environment(photometry=Photometry(gain=3)))
    assert pack_key(FRAMES, plant=other, size_px=SIZE) == pack_key(FRAMES, plant=plant, size_px=SIZE)


def test_frames_that_cannot_be_used_are_listed_and_the_rest_goes_on(plant, make):
    rows = make_rows(plant)
    store = open_store(plant.images)
    store.write(rows.frame[0], b"not an image")
    rows.loc[0, "sha256"] = sha256(b"not an image")
    store.write(rows.frame[3], store.read(rows.frame[4]))
    store.delete(rows.frame[5])
    pack = make(rows)
    assert pack.frames == [frame for i, frame in enumerate(rows.frame) if i not in (0, 3, 5)]
    reasons = {failure.frame: failure.reason for failure in pack.failed}
    assert "not a readable image" in reasons[rows.frame[0]]
    assert "has changed since it was imported" in reasons[rows.frame[3]]
    assert "no such file" in reasons[rows.frame[5]]
    assert all("steel" in reasons[rows.frame[i]] for i in (0, 3))


def test_a_frame_that_came_back_is_packed_after_all(plant, make):
    rows = make_rows(plant)
    store = open_store(plant.images)
    data = store.read(rows.frame[2])
    store.delete(rows.frame[2])
    assert [failure.frame for failure in make(rows).failed] == [rows.frame[2]]
    assert len(make(rows).frames) == 8
    store.write(rows.frame[2], data)
    pack = make(rows)
    assert pack.failed == []
    assert len(pack.frames) == 9


def test_when_no_frame_can_be_used_nothing_is_written(plant, make, tmp_path):
    rows = make_rows(plant, 2)
    rows["sha256"] = "0"
    with pytest.raises(InputError, match="not one frame can be used"):
        make(rows)
    assert open_store(tmp_path / "store").list() == []
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def test_a_store_that_is_away_is_an_error_not_a_pack_of_failures(plant, make):
    def away(_):
        raise InputError("the object store did not answer")

    with pytest.raises(InputError, match="did not answer"):
        make(make_rows(plant), read=away)


def test_a_file_that_is_not_a_pack_is_named(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"no")
    with pytest.raises(InputError, match=r"x\.arrow: is not a readable pack"):
        Pack.open(tmp_path / "x.arrow")
    with pytest.raises(InputError, match="is not a readable pack"):
        Pack.open(tmp_path / "none.arrow")


def test_a_damaged_pack_is_made_again(plant, make):
    rows = make_rows(plant)
    pack = make(rows)
    pixels = pack.pixels.copy()
    os.truncate(pack.path, 100)
    np.testing.assert_array_equal(make(rows).pixels, pixels)


def reading(plant: Plant) -> tuple[list[str], packs.Read]:
    """The frames that were read, and what reads them."""
    seen: list[str] = []

    def read(frame: str) -> bytes:
        seen.append(frame)
        return PlantFiles().read(plant.images, frame)

    return seen, read


@pytest.mark.parametrize("seed", range(4))
def test_of_more_frames_only_the_new_are_decoded_and_the_pack_is_as_if_made_at_once(plant, make, tmp_path, seed):
    rows = make_rows(plant, 12)
    few = rows.sample(np.random.default_rng(seed).integers(1, 12), random_state=seed)
    make(few)
    seen, read = reading(plant)
    pack, whole = make(rows, read=read), make(rows, store=open_store(tmp_path / "other"))
    assert sorted(seen) == sorted(set(rows.frame) - set(few.frame))
    assert pack.digest == whole.digest
    assert pack.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("change", ["light", "size", "way of resizing", "bytes"])
def test_what_changes_a_frames_pixels_has_it_decoded_again(plant, make, change):
    rows = make_rows(plant, 6)
    make(rows)
    given, changed = {}, set(rows.frame)
    if change == "light":
        given["plant"] = make_plant(plant.images, a=TILED, b=Environment(photometry=Photometry(gain=1.5)))
        changed = set(rows.frame[rows.environment == "b"])
    elif change == "size":
        given["trunk_size_px"] = SIZE + 1
    elif change == "way of resizing":
        given["interpolation"] = "bicubic"
    else:
        rows, changed = make_rows(plant, 6, seed=1), set(rows.frame)
    seen, read = reading(plant)
    make(rows, read=read, **given)
    assert set(seen) == changed


def test_a_damaged_view_of_another_pack_is_decoded_again_and_that_is_said(plant, make):
    rows = make_rows(plant, 6)
    old = make(rows.head(4))
    damage(old)
    seen, read = reading(plant)
    with pytest.warns(Notice, match=r"was damaged on disk and is deleted: .*arrow; its frames are decoded again"):
        pack = make(rows, read=read)
    assert rows.frame[0] in seen
    np.testing.assert_array_equal(packs.view_digests(pack.pixels), pack.digests)


def test_a_view_that_is_not_what_was_packed_is_refused_and_the_pack_is_made_again(plant, make):
    rows = make_rows(plant, 6)
    pack = make(rows)
    pixels = pack.pixels.copy()
    damage(pack)
    again = Pack.open(pack.path)
    np.testing.assert_array_equal(again.take(np.array([5, 3])), pixels[[5, 3]])
    with pytest.raises(
        InputError, match=r"plant steel: .*arrow: was damaged on disk and is deleted\. The same command"
    ):
        again.take(np.array([0]))
    np.testing.assert_array_equal(make(rows).take(np.arange(len(pixels))), pixels)


def damage(pack: Pack) -> None:
    """One bit of the first view's pixels is another one."""
    content = bytearray(pack.path.read_bytes())
    at = content.index(pack.pixels[0].tobytes())
    content[at + 7] ^= 16
    pack.path.write_bytes(content)


def test_a_region_outside_the_frame_fails_that_frame(plant, make):
    roi = Environment(geometry=Geometry(roi=(0, 0, 75, 50)))
    plant = make_plant(plant.images, a=roi, b=roi)
    pack = make(make_rows(plant), plant=plant)
    assert len(pack.frames) == 3
    assert all("geometry.roi" in failure.reason for failure in pack.failed)


def test_a_shard_keeps_the_order_of_its_frames(plant):
    rows = make_rows(plant, 12)
    frames = [Frame(*row) for row in rows[["frame", "sha256", "environment"]].itertuples(index=False, name=None)]
    frames.insert(5, Frame("gone", "0", "a"))
    shard = build_shard(frames, plant=plant, size_px=SIZE, read=partial(PlantFiles().read, plant.images))
    assert [bool(n) for n in shard.num_views] == [i != 5 for i in range(13)]
    assert sum(shard.num_views) == len(shard.pixels) == len(shard.boxes)
    assert [type(failure) for failure in shard.failed] == [Failure]


@pytest.mark.slow
def test_a_pack_goes_to_the_bucket_and_another_machine_takes_it_from_there(plant, make, bucket, tmp_path):
    source = make_plant(f"{bucket}/images")
    rows = make_rows(source)
    store = open_store(f"{bucket}/fleet")
    pack = make(rows, plant=source, store=store)
    ends = ("arrow", "frames.json", "json")
    assert sorted(entry.key for entry in store.list("packs")) == [f"packs/steel/{pack.digest}.{e}" for e in ends]
    assert pack.path.parent == tmp_path / "cache/packs/steel"
    pixels = pack.pixels.copy()
    pack.path.unlink()

    def refuse(_):
        raise AssertionError("read again")

    again = make(rows, plant=source, store=store, read=refuse)
    assert again.path == pack.path
    np.testing.assert_array_equal(again.pixels, pixels)
