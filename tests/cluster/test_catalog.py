"""The recorded tables of a fleet: what an import writes, what stays, and what the seal keeps back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from cluster.catalog import ASSIGNMENTS, Catalog, Imported
from cluster.storage import PlantFiles
from plants.errors import InputError
from plants.plant import Fleet, load_fleet
from tests.fleets import NOW, drawn_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return load_fleet(drawn_fleet(tmp_path, "north", "south"))


@pytest.fixture
def catalog(fleet: Fleet) -> Catalog:
    return Catalog.of(fleet)


def read(catalog: Catalog, fleet: Fleet, name: str = "north") -> Imported:
    return catalog.import_plant(fleet, fleet.plant(name), files=PlantFiles(), now=NOW)


def add_frame(fleet: Fleet, name: str, *, plant: str = "north", shade: int = 255) -> None:
    Image.new("RGB", (8, 8), (shade, 1, 2)).save(Path(fleet.plant(plant).images) / name)


def test_an_import_says_what_it_brought(catalog, fleet):
    found = read(catalog, fleet)
    assert (found.rows, found.new_rows, found.classes) == (60, 60, {"good": 40, "crack": 20})
    assert sum(found.splits.values()) == 60
    assert min(found.splits.values()) > 0
    assert found.lots_known
    assert found.rejected == []


def test_frames_that_cannot_be_read_are_listed_and_the_rest_goes_on(catalog, fleet):
    (Path(fleet.plant("north").images) / "good" / "L00-9.jpg").write_text("not an image")
    found = read(catalog, fleet)
    assert found.rows == 60
    assert [r.frame for r in found.rejected] == ["good/L00-9.jpg"]


def test_the_answers_of_the_test_are_in_the_seal_and_nowhere_else(catalog, fleet):
    read(catalog, fleet)
    rows = catalog.rows("north")
    is_test = rows["role"] == "test"
    assert rows.loc[is_test, ["class", "severity", "box"]].isna().all().all()
    assert rows.loc[~is_test, "class"].notna().all()
    sealed = catalog.sealed("north")
    assert set(sealed["frame"]) == set(rows.loc[is_test, "frame"])
    assert sealed["class"].notna().all()


def test_a_second_import_moves_no_lot_and_deals_only_the_new_ones(catalog, fleet):
    read(catalog, fleet)
    before = catalog.rows("north").set_index("lot")["role"].to_dict()
    add_frame(fleet, "good/L00-7.png", shade=200)
    add_frame(fleet, "crack/L77-0.png", shade=201)
    found = read(catalog, fleet)
    after = catalog.rows("north").set_index("lot")["role"].to_dict()
    assert found.new_rows == 2
    assert {lot: after[lot] for lot in before} == before
    assert set(after) - set(before) == {"L77"}


def test_a_lot_that_passes_through_two_plants_has_one_role(catalog, fleet):
    for name in ("north", "south"):
        read(catalog, fleet, name)
    roles = [catalog.rows(name).groupby("lot")["role"].first() for name in ("north", "south")]
    assert roles[0].equals(roles[1])


def test_a_corrected_answer_of_the_test_leaves_a_trace_and_nothing_else_does(catalog, fleet):
    read(catalog, fleet)
    sealed = catalog.sealed("north")
    frame = next(f for f in sealed["frame"] if f.startswith("crack/"))
    assert read(catalog, fleet).notes == []
    images = Path(fleet.plant("north").images)
    (images / frame).unlink()
    (found,) = read(catalog, fleet).notes
    assert found.startswith("1 answers of the sealed test changed")
    (line,) = catalog.corrections().splitlines()
    assert json.loads(line) == {
        "plant": "north", "frame": frame, "what": "removed", "before": False, "after": True, "at": NOW.isoformat()
    }  # fmt: skip


def test_before_an_import_there_are_no_rows_and_the_remedy_is_named(catalog, fleet):
    assert catalog.assignments() is None
    with pytest.raises(InputError, match=r"plant north.*has not been imported.*crossplant import"):
        catalog.rows("north")
    read(catalog, fleet)
    with pytest.raises(InputError, match="plant south"):
        catalog.rows("south")


def test_assignments_that_were_edited_are_refused(catalog, fleet):
    read(catalog, fleet)
    table = pd.read_parquet(io.BytesIO(catalog.store.read(ASSIGNMENTS)))
    at = table.index[table["role"] == "test"][0]
    table.loc[at, "role"] = "train"
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    catalog.store.write(ASSIGNMENTS, buffer.getvalue())
    with pytest.raises(InputError, match=r"assignments"):
        catalog.rows("north")


@pytest.mark.parametrize(("role", "changes"), [("train", True), ("select", True), ("decide", False), ("test", False)])
def test_the_digest_of_what_can_be_learned_from_follows_train_and_select_only(catalog, fleet, role, changes):
    read(catalog, fleet)
    before = catalog.data_digest(["north"])
    assert before == catalog.data_digest(["north"])
    rows = catalog.rows("north")
    frame = rows.loc[rows["role"] == role, "frame"].iloc[0]
    add_frame(fleet, frame, shade=222)
    read(catalog, fleet)
    assert (catalog.data_digest(["north"]) != before) is changes


def test_the_digest_does_not_depend_on_the_order_of_plants(catalog, fleet):
    for name in ("north", "south"):
        read(catalog, fleet, name)
    assert catalog.data_digest(["north", "south"]) == catalog.data_digest(["south", "north"])
    assert catalog.data_digest(["north"]) != catalog.data_digest(["south"])
