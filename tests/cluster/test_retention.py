"""No place holds a frame for longer than its plant allows, and what may not leave a plant lies with the plant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pandas as pd
import pytest

from cluster import packs
from cluster.retention import cache_of, copy_record, enforce, pack_store, record, sweep
from cluster.storage import LocalStore, PlantFiles, open_store
from plants.errors import InputError
from plants.plant import Fleet, Plant
from tests.cluster.test_packs import SIZE, make_rows

NOW = datetime(2026, 3, 31, tzinfo=UTC)


def steel(folder, **changes) -> Plant:
    raw = {"name": "steel", "images": str(folder), "classes": {"dent": "dent"}, "environments": {"a": {}, "b": {}}}
    return Plant.model_validate({**raw, **changes})


def fleet_of(plant: Plant, store) -> Fleet:
    return Fleet.model_validate({"fleet": "f", "store": str(store), "plants": [plant.model_dump()]})


@pytest.fixture
def pack_of(tmp_path):
    """Builds the pack of frames that were taken so many days ago, in `store` and `cache`."""

    def build(plant: Plant, days_ago: list[float | None], *, now: datetime = NOW) -> packs.Pack:
        rows = make_rows(plant, len(days_ago))
        times = [None if days is None else NOW - timedelta(days=days) for days in days_ago]
        rows["captured_at"] = pd.to_datetime(times, utc=True)
        return packs.build(
            rows,
            plant=plant,
            trunk_size_px=SIZE,
            read=partial(PlantFiles().read, plant.images),
            store=open_store(tmp_path / "store"),
            cache_dir=tmp_path / "cache",
            now=lambda: now,
        )

    return build


def test_frames_that_are_too_old_are_not_packed(tmp_path, pack_of):
    plant = steel(tmp_path / "images", retention_days=30)
    assert len(pack_of(plant, [40, 10, None, 31]).frames) == 2
    with pytest.raises(InputError, match="not one frame can be used"):
        pack_of(plant, [40, 31])


@pytest.mark.parametrize("days_ago", [[20, 1], [None, None]])
def test_a_pack_that_holds_a_frame_for_too_long_is_deleted_when_the_next_is_built(tmp_path, pack_of, days_ago):
    plant = steel(tmp_path / "images", retention_days=30)
    old = pack_of(plant, days_ago)
    assert pack_of(plant, days_ago, now=NOW + timedelta(days=5)).path == old.path
    later = NOW + timedelta(days=12 if days_ago[0] else 31)
    new = pack_of(plant, days_ago, now=later)
    files = {p.name for p in (tmp_path / "store/packs/steel").iterdir()}
    assert files == {f"{new.digest}.arrow", f"{new.digest}.json", f"{new.digest}.frames.json"}
    assert len(new.frames) == (1 if days_ago[0] else 2)


def test_what_is_due_goes_with_all_its_files_and_everything_else_stays(tmp_path):
    store, plant = LocalStore(tmp_path), steel("i", retention_days=30)
    for name, age in (("old", 31), ("older", 31), ("young", 29)):
        record(store, f"activations/{name}", since={"steel": NOW - timedelta(days=age)})
        store.write(f"activations/{name}/cut0.npy", b"x")
    record(store, "activations/other", since={"press": NOW - timedelta(days=99)})
    store.write("activations/other/cut0.npy", b"x")
    assert sweep(store, "activations", plants=[plant], now=NOW) == ["activations/old", "activations/older"]
    assert {entry.key.split("/")[1].split(".")[0] for entry in store.list()} == {"young", "other"}
    assert sweep(store, "activations", plants=[steel("i")], now=NOW + timedelta(days=999)) == []


def test_every_place_of_a_fleet_is_swept(tmp_path):
    plant = steel("i", retention_days=30, may_leave=False, store=str(tmp_path / "own"))
    places = {"store": "packs/a", "own": "packs/b", "cache": "activations/c", "home": "reports/f/audit"}
    places["own/cache"] = "activations/d"
    for folder, stem in places.items():
        record(LocalStore(tmp_path / folder), stem, since={"steel": NOW})
        LocalStore(tmp_path / folder).write(f"{stem}.bin", b"x")
    given = {"cache": tmp_path / "cache", "home": tmp_path / "home"}
    fleet = fleet_of(plant, tmp_path / "store")
    assert enforce(fleet, now=NOW + timedelta(days=30), **given) == []
    gone = enforce(fleet, now=NOW + timedelta(days=30, seconds=1), **given)
    assert sorted(gone) == sorted(str(tmp_path / folder / stem) for folder, stem in places.items())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_copy_of_a_copy_is_as_old_as_the_first(tmp_path):
    a, b = LocalStore(tmp_path / "a"), LocalStore(tmp_path / "b")
    record(a, "packs/x", since={"steel": NOW - timedelta(days=31)})
    copy_record("packs/x", source=a, target=b)
    copy_record("packs/unknown", source=a, target=b)
    assert sweep(b, "packs", plants=[steel("i", retention_days=30)], now=NOW) == ["packs/x"]


def test_packs_and_caches_of_a_plant_that_may_not_leave_are_never_in_the_fleets_store(tmp_path):
    cache, own = tmp_path / "cache", str(tmp_path / "own")

    def places(**changes) -> tuple[str, str]:
        plant = steel("i", **changes)
        fleet = fleet_of(plant, tmp_path / "store")
        where = pack_store(fleet, plant, cache=cache).uri, str(cache_of(plant, cache=cache))
        return tuple(str(path).removeprefix(f"{tmp_path}/") for path in where)  # type: ignore[return-value]

    assert places() == ("store", "cache")
    assert places(store=own) == ("own", "cache")
    assert places(may_leave=False) == ("cache", "cache")
    assert places(may_leave=False, store=own) == ("own", "own/cache")
    assert places(may_leave=False, store="s3://mill/own")[1] == "cache"
