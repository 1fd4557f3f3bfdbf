"""What one machine has looked at the others know, unless it may not leave; and no place keeps it for too long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cluster.catalog import Catalog
from cluster.imports import Imported, import_plant
from cluster.retention import enforce
from cluster.storage import PlantFiles
from jobs.pictures import Looks
from plants.errors import InputError
from plants.plant import Fleet
from tests.jobs.test_pictures import cropped, picture


def written(folder: Path, pictures: list[np.ndarray], *, lot: str) -> None:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{lot}{i:02d}-0.png")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Two plants of a dozen frames; each of the second shows the middle of one of the first, in lots of its own."""
    pictures = [picture(seed) for seed in range(12)]
    written(tmp_path / "north/good", pictures, lot="N")
    written(tmp_path / "south/good", [cropped(one) for one in pictures], lot="S")
    plants = [
        {
            "name": name,
            "images": str(tmp_path / name),
            "classes": {"good": "ok"},
            "ok": ["good"],
            "lot_pattern": f"({lot}..)-",
        }
        for name, lot in (("north", "N"), ("south", "S"))
    ]
    return Fleet.model_validate({"fleet": "f", "store": str(tmp_path / "store"), "seed": 1, "plants": plants})


def with_north(fleet: Fleet, **changes) -> Fleet:
    return fleet.model_copy(update={"plants": (fleet.plant("north").model_copy(update=changes), fleet.plant("south"))})


def read(fleet: Fleet, name: str, *, home: Path) -> Imported:
    """An import on the machine with this home."""
    look = Looks(fleet, cache=home / "cache")
    now = datetime.now(UTC)
    return import_plant(Catalog.of(fleet), fleet, fleet.plant(name), files=PlantFiles(), now=now, look=look)


def apart(fleet: Fleet) -> set[str]:
    """Frames of south that play another role than the picture of north that they show."""
    roles = [Catalog.of(fleet).rows(name).set_index("lot")["role"] for name in ("north", "south")]
    return {f"good/S{lot[1:]}-0.png" for lot in roles[0].index if roles[0][lot] != roles[1][f"S{lot[1:]}"]}


def looked_at(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.npz") if "looks" in path.parts]


def test_what_one_machine_has_looked_at_another_one_finds_copies_of(tmp_path, fleet):
    read(fleet, "north", home=tmp_path / "first")
    found = read(fleet, "south", home=tmp_path / "second")
    assert {row.frame for row in found.quarantined} == apart(fleet)
    assert len(found.quarantined) > 2
    assert not [note for note in found.notes if "not compared" in note]
    assert looked_at(tmp_path / "first") == looked_at(tmp_path / "second") == []


@pytest.mark.slow
def test_in_a_bucket_too_and_what_is_fetched_from_there_goes_with_it(tmp_path, fleet, bucket):
    fleet = with_north(fleet, retention_days=30).model_copy(update={"store": f"{bucket}/store"})
    read(fleet, "north", home=tmp_path / "first")
    found = read(fleet, "south", home=tmp_path / "second")
    assert {row.frame for row in found.quarantined} == apart(fleet)
    assert len(looked_at(tmp_path / "second")) == 1
    given, now = {"cache": tmp_path / "second/cache", "home": tmp_path / "second"}, datetime.now(UTC)
    gone = enforce(fleet, now=now + timedelta(days=31), **given)
    assert len(gone) == 2
    assert looked_at(tmp_path / "second") == []
    assert [entry.key for entry in Catalog.of(fleet).store.list("looks") if "north" in entry.key] == []


def test_a_second_import_reads_no_frame_again(tmp_path, fleet, monkeypatch):
    read(fleet, "north", home=tmp_path / "first")
    monkeypatch.setattr(Looks, "_read", None)
    assert read(fleet, "north", home=tmp_path / "second").quarantined == []


def test_what_nobody_has_looked_at_is_said(tmp_path, fleet):
    catalog = Catalog.of(fleet)
    import_plant(catalog, fleet, fleet.plant("north"), files=PlantFiles(), now=datetime.now(UTC))
    found = read(fleet, "south", home=tmp_path / "home")
    assert found.quarantined == []
    assert "12 of 12 frames of north were not compared: no import has looked at them" in found.notes


@pytest.mark.parametrize("own", ["", "own"])
def test_what_may_not_leave_is_kept_in_the_plants_own_store_or_on_the_machine_and_told(tmp_path, fleet, own):
    fleet = with_north(fleet, may_leave=False, store=str(tmp_path / own) if own else None)
    read(fleet, "north", home=tmp_path / "first")
    assert looked_at(tmp_path / "store") == []
    assert len(looked_at(tmp_path / (own or "first"))) == 1
    found = read(fleet, "south", home=tmp_path / "first")
    assert any("12 of 12 frames of north were not compared: its may_leave is false" in note for note in found.notes)
    assert found.quarantined == []
    expected = {f"south:{frame}" for frame in apart(fleet)}
    assert {row.copy_of for row in read(fleet, "north", home=tmp_path / "first").quarantined} == expected


def test_what_frames_look_like_goes_when_the_oldest_of_them_is_too_old(tmp_path, fleet):
    fleet = with_north(fleet, retention_days=30)
    read(fleet, "north", home=tmp_path / "first")
    given, now = {"cache": tmp_path / "first/cache", "home": tmp_path / "first"}, datetime.now(UTC)
    assert enforce(fleet, now=now + timedelta(days=29), **given) == []
    assert len(looked_at(tmp_path / "store")) == 1
    (gone,) = enforce(fleet, now=now + timedelta(days=31), **given)
    assert "/looks/north-" in gone
    assert looked_at(tmp_path) == []


def test_frames_that_are_too_old_are_not_looked_at(tmp_path, fleet):
    plant = fleet.plant("north").model_copy(update={"retention_days": 30})
    taken = datetime.now(UTC) - timedelta(days=40)
    rows = pd.DataFrame({"frame": ["good/N00-0.png", "good/N01-0.png"], "sha256": ["a", "b"], "environment": "default"})
    rows["captured_at"] = pd.to_datetime([taken, datetime.now(UTC)], utc=True)
    thumbs, is_known = Looks(fleet, cache=tmp_path)(plant, rows, True)
    assert is_known.tolist() == [False, True]
    assert not thumbs[0].any()
    assert thumbs[1].any()


def test_a_damaged_file_is_named_with_what_to_do(tmp_path, fleet):
    read(fleet, "north", home=tmp_path / "first")
    (piece,) = (tmp_path / "store/looks").rglob("*.npz")
    piece.write_bytes(piece.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"looks/north-.*not a readable file of signatures.*Delete it"):
        read(fleet, "north", home=tmp_path / "first")
    piece.unlink()
    assert read(fleet, "north", home=tmp_path / "first").quarantined == []
