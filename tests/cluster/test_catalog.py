"""The recorded tables of a fleet: what an import writes, what stays, and what the seal keeps back."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from scipy.ndimage import gaussian_filter

from cluster import snapshots
from cluster.catalog import ASSIGNMENTS, Catalog, labels_key
from cluster.imports import Imported, import_plant
from cluster.likeness import Look, Looked
from cluster.storage import LocalStore, PlantFiles
from plants import splits
from plants.audit import audit
from plants.copies import Quarantined
from plants.errors import InputError
from plants.plant import Fleet, Plant, load_fleet
from tests.fleets import NOW, drawn_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return load_fleet(drawn_fleet(tmp_path, "north", "south"))


@pytest.fixture
def catalog(fleet: Fleet) -> Catalog:
    return Catalog.of(fleet)


def read(catalog: Catalog, fleet: Fleet, name: str = "north") -> Imported:
    return import_plant(catalog, fleet, fleet.plant(name), files=PlantFiles(), now=NOW)


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


def with_own_columns(fleet: Fleet, **columns: str) -> Fleet:
    """North has a label table; in the texts of its own columns stand frame and class. Everything else is as before."""
    plant = fleet.plant("north")
    table = Path(plant.images).with_name("north.csv")
    frames = sorted(path.relative_to(plant.images).as_posix() for path in Path(plant.images).rglob("*.png"))
    rows = [{"frame": frame, "class": frame.split("/")[0]} for frame in frames]
    own = [{name: text.format(**row) for name, text in columns.items()} for row in rows]
    pd.DataFrame([row | cells for row, cells in zip(rows, own, strict=True)]).to_csv(table, index=False)
    changed = Plant.model_validate({**plant.model_dump(), "labels": str(table)})
    return fleet.model_copy(update={"plants": (changed, *fleet.plants[1:])})


def test_what_own_columns_say_of_sealed_frames_is_written_nowhere(catalog, fleet):
    fleet = with_own_columns(fleet, defect_name="of {frame}: {class}")
    read(catalog, fleet)
    rows = catalog.rows("north")
    is_test = rows["role"] == "test"
    assert rows.loc[is_test, "other:defect_name"].isna().all()
    assert rows.loc[~is_test, "other:defect_name"].str.startswith("of ").all()
    written = b"".join(path.read_bytes() for path in Path(fleet.store).rglob("*") if path.is_file())
    assert f"of {rows.loc[~is_test, 'frame'].iloc[0]}".encode() in written
    assert not [frame for frame in rows.loc[is_test, "frame"] if f"of {frame}".encode() in written]


def test_own_columns_are_the_same_bytes_after_a_second_import_and_change_nothing_that_is_learned_from(catalog, fleet):
    read(catalog, fleet)
    bare = catalog.data_digest(["north"])
    fleet = with_own_columns(fleet, operator="{class}", remark="of {frame}")
    found = read(catalog, fleet)
    table = catalog.store.read("labels/north.parquet")
    assert found.new_rows == 0
    assert catalog.data_digest(["north"]) == bare
    read(catalog, fleet)
    assert catalog.store.read("labels/north.parquet") == table


def test_audit_names_the_own_column_that_tells_the_class_from_the_rows_that_are_not_sealed(catalog, fleet):
    fleet = with_own_columns(fleet, operator="of the {class} ones", remark="of {frame}")
    read(catalog, fleet)
    found = audit(fleet.plant("north"), catalog.rows("north"), fleet=fleet, trunk_size_px=32)
    (shortcut,) = (finding.detail for finding in found if finding.kind == "shortcut")
    assert shortcut.startswith("operator alone goes 100%")


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


@pytest.mark.slow
def test_a_lot_that_passes_through_two_plants_has_one_role(catalog, fleet):
    for name in ("north", "south"):
        read(catalog, fleet, name)
    roles = [catalog.rows(name).groupby("lot")["role"].first() for name in ("north", "south")]
    assert roles[0].equals(roles[1])
    (note,) = read(catalog, fleet, "south").notes
    assert note.startswith("20 of 20 lots are lots of north too, first 'L")
    assert read(catalog, fleet, "north").notes == []


def test_a_class_that_does_not_reach_every_role_is_said(catalog, fleet):
    cracked = sorted(Path(fleet.plant("north").images, "crack").glob("*.png"))
    for frame in cracked[2:]:
        frame.unlink()
    (note,) = read(catalog, fleet).notes
    assert note == "class 'crack' lies in 2 lots, none of them in select, decide"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_correction_whose_import_was_killed_after_telling_is_told_once_and_a_later_one_again(catalog, fleet):
    def answered(name: str) -> None:
        buffer = io.BytesIO()
        sealed.assign(**{"class": [name, *sealed["class"][1:]]}).to_parquet(buffer, index=False)
        catalog.seal.write("north.parquet", buffer.getvalue())

    read(catalog, fleet)
    sealed, table = catalog.sealed("north"), catalog.seal.read("north.parquet")
    true = str(sealed["class"].iloc[0])
    answered("elsewhat")
    read(catalog, fleet)
    assert catalog.seal.read("north.parquet") == table
    answered("elsewhat")  # as if the trace had been written and the table not
    read(catalog, fleet)
    answered("another")
    read(catalog, fleet)
    answered("elsewhat")
    read(catalog, fleet)
    changes = [(line["before"], line["after"]) for line in map(json.loads, catalog.corrections().splitlines())]
    assert changes == [("elsewhat", true), ("another", true), ("elsewhat", true)]


@pytest.mark.slow
def test_a_sealed_frame_that_goes_comes_back_and_goes_again_leaves_three_traces(catalog, fleet):
    read(catalog, fleet)
    frame = next(f for f in catalog.sealed("north")["frame"] if f.startswith("crack/"))
    image = Path(fleet.plant("north").images) / frame
    kept = image.read_bytes()
    for is_there in (False, True, False, False):
        image.write_bytes(kept) if is_there else image.unlink(missing_ok=True)
        read(catalog, fleet)
    lines = [json.loads(line) for line in catalog.corrections().split("\n") if line]
    changes = [(line["what"], line["before"], line["after"]) for line in lines if line["frame"] == frame]
    assert changes == [("removed", False, True), ("removed", True, False), ("removed", False, True)]


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


def test_the_record_of_roles_is_followed_once_as_long_as_it_is_the_same_and_a_reader_cannot_change_it(
    catalog, fleet, monkeypatch
):
    read(catalog, fleet)
    followed: list[int] = []
    verify = splits.verify
    monkeypatch.setattr(splits, "verify", lambda table: (followed.append(len(table)), verify(table))[1])
    catalog = Catalog.of(fleet)
    first = catalog.assignments()
    mine = catalog.assignments()
    mine["role"] = "train"
    pd.testing.assert_frame_equal(catalog.assignments(), first)
    assert followed == [len(first)]
    add_frame(fleet, "good/L99-0.png")
    read(catalog, fleet)
    assert len(catalog.assignments()) == len(first) + 1
    assert followed[-1] == len(first) + 1


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


def looks(marks: dict[str, int]) -> Look:
    """Frames of one mark are copies of one picture, all others show grain of their own."""

    def look(plant: Plant, rows: pd.DataFrame, is_read: bool) -> Looked:
        seeds = [marks.get(f"{plant.name}:{frame}", 1000 + int(sha[:6], 16)) for frame, sha in rows_of(rows)]
        grain = [gaussian_filter(np.random.default_rng(seed).normal(0, 1, (64, 64)), 1.5) for seed in seeds]
        thumbs = np.stack([np.clip(128 + 40 * one / one.std(), 0, 255).astype(np.uint8) for one in grain])
        return Looked(thumbs, np.ones(len(rows), dtype=bool))

    return look


def rows_of(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["frame"], rows["sha256"], strict=True))


def read_with(catalog: Catalog, fleet: Fleet, look: Look, name: str = "north") -> Imported:
    return import_plant(catalog, fleet, fleet.plant(name), files=PlantFiles(), now=NOW, look=look)


def frames_of(catalog: Catalog, role: str, plant: str = "north") -> list[str]:
    rows = catalog.rows(plant)
    return rows.loc[rows["role"] == role, "frame"].tolist()


@pytest.mark.slow
def test_a_copy_that_straddles_a_split_is_quarantined_for_good_and_told(catalog, fleet):
    read(catalog, fleet)
    learned, tested = frames_of(catalog, "train")[0], frames_of(catalog, "test")[0]
    found = read_with(catalog, fleet, looks({f"north:{learned}": 1, f"north:{tested}": 1}))
    rows = catalog.rows("north").set_index("frame")
    assert found.quarantined == [Quarantined(tested, rows.loc[tested, "sha256"], "test", learned)]
    assert rows.loc[tested, "role"] == "quarantine"
    assert pd.isna(rows.loc[tested, "class"])
    assert len(rows) == 60
    assert [row.frame for row in read(catalog, fleet).quarantined] == [tested], "also without another look"
    assert catalog.rows("north").set_index("frame").loc[tested, "role"] == "quarantine"
    add_frame(fleet, tested, shade=231)
    assert read(catalog, fleet).quarantined == [], "the file shows something else now"
    assert catalog.rows("north").set_index("frame").loc[tested, "role"] == "test"


@pytest.mark.slow
def test_a_copy_of_another_plants_picture_is_quarantined(catalog, fleet):
    read(catalog, fleet)
    learned = frames_of(catalog, "train")[0]
    read(catalog, fleet, "south")
    tested = frames_of(catalog, "test", "south")[0]
    found = read_with(catalog, fleet, looks({f"north:{learned}": 1, f"south:{tested}": 1}), "south")
    (one,) = found.quarantined
    assert (one.frame, one.role, one.copy_of) == (tested, "test", f"north:{learned}")


@pytest.fixture
def travelling(fleet: Fleet) -> Fleet:
    """The same part ids at both plants, in lots of other names."""
    south = fleet.plant("south")
    for frame in Path(south.images).rglob("*.png"):
        frame.rename(frame.with_name(frame.name.replace("L", "S")))
    part = {"part_pattern": r"[LS](\d+-\d)"}
    plants = (
        fleet.plant("north").model_copy(update=part),
        south.model_copy(update={**part, "lot_pattern": r"(S\d+)-"}),
    )
    return fleet.model_copy(update={"plants": plants, "seed": 3})


def parts_apart(catalog: Catalog) -> set[str]:
    """Part ids that play one role at north and another one at south."""
    roles = [catalog.rows(name).groupby("part_id")["role"].first() for name in ("north", "south")]
    return set(roles[0].index[roles[0] != roles[1].reindex(roles[0].index)])


@pytest.mark.slow
def test_part_ids_in_other_roles_at_another_plant_are_told_and_under_fleet_their_frames_play_no_role(travelling):
    catalog = Catalog.of(travelling)
    read(catalog, travelling)
    found = read(catalog, travelling, "south")
    apart = parts_apart(catalog)
    assert len(apart) > 3
    assert found.quarantined == []
    (note,) = (note for note in found.notes if "part ids" in note)
    assert note.startswith(f"{len(apart)} part ids also occur at north in other roles, first ")
    together = travelling.model_copy(update={"part_ids": "fleet"})
    again = read(catalog, together, "south")
    rows = catalog.rows("south")
    assert {row.frame for row in again.quarantined} == set(rows.loc[rows["part_id"].isin(apart), "frame"])
    assert {row.part for row in again.quarantined} == apart
    assert not [note for note in again.notes if "part ids" in note]
    assert read(catalog, together, "north").quarantined == [], "what is set apart at south is in nobody's way"
    assert read(catalog, travelling, "south").quarantined == [], "and it is taken back with the setting"


@pytest.mark.slow
def test_an_unchanged_import_quarantines_nothing_more(catalog, fleet):
    names = [f"crack/L{lot:02d}-2.png" for lot in range(6)]
    look = looks({f"north:{name}": 1 for name in names})
    first = read_with(catalog, fleet, look)
    assert first.quarantined
    assert read_with(catalog, fleet, look).quarantined == first.quarantined
    assert read_with(catalog, fleet, look, "south").rows == 60


def test_a_seal_that_moves_takes_its_answers_and_its_ledger_along(catalog, fleet, tmp_path):
    read(catalog, fleet)
    moved = fleet.model_copy(update={"sealed": str(tmp_path / "vault")})
    with pytest.raises(InputError, match=r"still lie in the store.*Move what is there to"):
        read(Catalog.of(moved), moved)
    (tmp_path / "store/sealed").rename(tmp_path / "vault")
    assert read(Catalog.of(moved), moved).new_rows == 0


@pytest.mark.slow
def test_pictures_of_unknown_lots_that_show_the_same_lie_in_one_role_also_when_they_come_later(catalog, fleet):
    plant = fleet.plant("north").model_copy(update={"lot_pattern": None})
    fleet = fleet.model_copy(update={"plants": (plant, fleet.plant("south"))})
    names = [f"good/L{lot:02d}-0.png" for lot in range(12)]
    found = read_with(catalog, fleet, looks({f"north:{name}": 1 for name in names}))
    rows = catalog.rows("north").set_index("frame")
    assert rows.loc[names, "lot"].nunique() == rows.loc[names, "role"].nunique() == 1
    assert rows["lot"].nunique() == 60 - 11
    assert found.quarantined == []
    add_frame(fleet, "good/late.png", shade=210)
    marks = {f"north:{name}": 1 for name in [*names, "good/late.png"]}
    assert read_with(catalog, fleet, looks(marks)).quarantined == []
    later = catalog.rows("north").set_index("frame")
    assert later.loc["good/late.png", "lot"] == rows.loc[names[0], "lot"]
    assert later.loc[rows.index, "lot"].equals(rows["lot"])
    again = read(catalog, fleet)
    assert again.new_rows == 0
    assert catalog.rows("north").set_index("frame")["lot"].equals(later["lot"]), "also without another look"


# --- lots that become known late -------------------------------------------------------------------------------------


def without_lots(fleet: Fleet) -> Fleet:
    plant = fleet.plant("north").model_copy(update={"lot_pattern": None})
    return fleet.model_copy(update={"plants": (plant, fleet.plant("south"))})


def test_no_frame_moves_when_its_lot_becomes_known_after_it_was_dealt(catalog, fleet):
    read(catalog, without_lots(fleet))
    before = catalog.rows("north").set_index("frame")["role"]
    found = read(catalog, fleet)
    rows = catalog.rows("north").set_index("frame")
    after = rows["role"]
    stays = after != "quarantine"
    assert (after[stays] == before[stays]).all()
    assert rows[stays].groupby("lot")["role"].nunique().max() == 1, "and no lot lies in two roles"
    assert {row.frame: row.was for row in found.quarantined} == before[~stays].to_dict()
    assert before[~stays].eq("test").any()
    assert rows.loc[before == "test", "class"].isna().all(), "what was sealed stays sealed"
    assert any(f"{len(found.quarantined)} frames were dealt before their lots were known" in n for n in found.notes)
    held = (
        pd.DataFrame({"lot": rows["lot"], "was": before}).groupby("lot")["was"].agg(lambda of: of.value_counts().max())
    )
    assert stays.groupby(rows["lot"]).sum().equals(held.astype(int)), "the role of most of its frames"
    assert [row.frame for row in read(catalog, fleet).quarantined] == [row.frame for row in found.quarantined]


def test_a_lot_pattern_that_is_taken_back_gives_the_frames_their_roles_again(catalog, fleet):
    read(catalog, without_lots(fleet))
    before = catalog.rows("north")["role"].tolist()
    assert read(catalog, fleet).quarantined
    names = [f"{label}/L{lot:02d}-{i}.png" for lot in range(20) for i, label in enumerate(("good", "good", "crack"))]
    back = fleet.plant("north").model_copy(update={"lot_pattern": f"^({'|'.join(names)})$"})
    again = read(catalog, fleet.model_copy(update={"plants": (back, fleet.plant("south"))}))
    assert again.quarantined == []
    assert catalog.rows("north")["role"].tolist() == before


def test_a_frame_whose_lot_is_corrected_to_one_of_another_role_plays_none(catalog, fleet):
    read(catalog, fleet)
    rows = catalog.rows("north")
    learned, tested = (rows[rows["role"] == role]["lot"].iloc[0] for role in ("train", "test"))
    plant = fleet.plant("north").model_copy(update={"lot_pattern": r"(L\d+)-"})
    folder = Path(plant.images) / "good"
    table = rows[["frame", "lot"]].assign(**{"class": [frame.partition("/")[0] for frame in rows["frame"]]})
    wrong = f"good/{learned}-0.png"
    table.loc[table["frame"] == wrong, "lot"] = tested
    table.to_csv(folder.parent / "labels.csv", index=False)
    told = plant.model_copy(update={"lot_pattern": None, "labels": str(folder.parent / "labels.csv")})
    found = read(catalog, fleet.model_copy(update={"plants": (told, fleet.plant("south"))}))
    assert [(row.frame, row.role, row.was) for row in found.quarantined] == [(wrong, "test", "train")]
    after = catalog.rows("north").set_index("frame")["role"]
    assert after.drop(wrong).equals(rows.set_index("frame")["role"].drop(wrong))


@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_frame_that_was_saved_anew_keeps_its_role_or_plays_none_too(catalog, fleet, is_at_once):
    read(catalog, without_lots(fleet))
    before = catalog.rows("north").set_index("frame")["role"]
    if not is_at_once:
        read(catalog, fleet)
    for frame in before.index:
        image = Image.open(Path(fleet.plant("north").images) / frame).convert("RGB")
        image.save(Path(fleet.plant("north").images) / frame, compress_level=1, pnginfo=info(frame))
    found = read(catalog, fleet)
    rows = catalog.rows("north").set_index("frame")
    stays = rows["role"] != "quarantine"
    assert (rows["role"][stays] == before[stays]).all()
    assert {row.frame: row.was for row in found.quarantined} == before[~stays].to_dict()
    assert rows.loc[before == "test", "class"].isna().all()


def info(text: str) -> PngImagePlugin.PngInfo:
    """By which a file differs, and its picture does not."""
    words = PngImagePlugin.PngInfo()
    words.add_text("saved", text)
    return words


# --- the record that all of this stands on ---------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [None, 5])
def test_a_record_that_lost_its_end_deals_nothing_and_opens_nothing(catalog, fleet, rows):
    read(catalog, fleet)
    path = Path(fleet.store) / ASSIGNMENTS
    path.unlink() if rows is None else path.write_bytes(splits.to_parquet(pd.read_parquet(path).head(rows)))
    labels = (Path(fleet.store) / "labels/north.parquet").read_bytes()
    why = "its end was cut off or replaced" if rows else "the record of which lot plays which role is gone"
    with pytest.raises(InputError, match=f"{why}.*Restore the file from a backup"):
        read(Catalog.of(fleet), fleet)
    assert (Path(fleet.store) / "labels/north.parquet").read_bytes() == labels


def test_a_record_that_is_gone_with_the_seal_is_not_begun_anew(catalog, fleet):
    read(catalog, fleet)
    (Path(fleet.store) / ASSIGNMENTS).unlink()
    shutil.rmtree(Path(fleet.store) / "sealed")
    with pytest.raises(InputError, match="the record of which lot plays which role is gone"):
        read(Catalog.of(fleet), fleet)


class Slow(PlantFiles):
    """Files of a plant, listed; another import of the same plant ends before they are dealt."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.meanwhile = [meanwhile]

    def list(self, uri: str) -> Any:
        listed = list(super().list(uri))
        if self.meanwhile:
            self.meanwhile.pop()()
        return listed


def test_an_import_that_listed_before_another_of_the_same_plant_ended_lists_again(catalog, fleet):
    read(catalog, fleet)

    def more() -> None:
        for lot in range(30, 50):
            add_frame(fleet, f"good/L{lot}-0.png", shade=lot)
        read(Catalog.of(fleet), fleet)

    found = import_plant(catalog, fleet, fleet.plant("north"), files=Slow(more), now=NOW)
    assert (found.rows, found.new_rows) == (80, 0)
    assert len(catalog.rows("north")) == 80
    assert catalog.corrections() == ""


def test_a_new_generation_that_was_killed_is_finished_by_the_same_command_and_one_of_nothing_is_said(catalog, fleet):
    read(catalog, fleet)
    for lot in range(30, 50):
        add_frame(fleet, f"good/L{lot}-0.png", shade=lot)
    labels = Path(fleet.store) / "labels/north.parquet"
    before = labels.read_bytes()
    given = {"files": PlantFiles(), "now": NOW, "is_new_generation": True}
    first = import_plant(catalog, fleet, fleet.plant("north"), **given)
    record = catalog.assignments()
    labels.write_bytes(before)
    again = import_plant(catalog, fleet, fleet.plant("north"), **given)
    assert (again.dealt, again.splits) == (first.dealt, first.splits)
    assert first.dealt.generation == 2
    assert catalog.assignments().equals(record)
    assert "no new lots: the test stays that of generation 2" in again.notes


def test_an_import_says_how_rows_were_dealt_and_by_which_record(catalog, fleet):
    found = read(catalog, fleet)
    assert (found.dealt.by, found.dealt.generation) == ("lot", 1)
    assert found.dealt.digest == splits.digest(catalog.assignments())
    assert sum(found.dealt.realised.values()) == pytest.approx(1)
    assert read(catalog, without_lots(fleet), "north").dealt.by == "image"


# --- what was learned from -------------------------------------------------------------------------------------------


def test_what_was_learned_from_can_be_built_again_after_the_labels_changed(catalog, fleet):
    read(catalog, fleet)
    before, digest = catalog.data_digest(["north"]), catalog.snapshot("north")
    learned = catalog.learned("north", digest=digest)
    (Path(fleet.plant("north").images) / learned["frame"].iloc[0]).unlink()
    add_frame(fleet, learned["frame"].iloc[1], shade=77)
    read(catalog, fleet)
    assert catalog.data_digest(["north"]) != before
    kept = catalog.learned("north", digest=digest)
    assert snapshots.data_digest({"north": kept}) == before
    assert set(kept["role"]) == {"train", "select"}
    (Path(fleet.store) / f"snapshots/{digest}.parquet").write_bytes(b"other rows")
    with pytest.raises(InputError, match="the rows a model learned from were changed"):
        catalog.learned("north", digest=digest)


def test_a_new_store_may_begin_anew_also_under_a_seal_of_its_own_place(catalog, fleet, tmp_path):
    sealed = fleet.model_copy(update={"sealed": str(tmp_path / "vault")})
    read(Catalog.of(sealed), sealed)
    anew = sealed.model_copy(update={"store": str(tmp_path / "anew")})
    assert read(Catalog.of(anew), anew).new_rows == 60
    assert Catalog.of(anew).checked_record() is not None


def test_an_import_reads_its_sisters_tables_once_while_they_stay_as_they_are(catalog, fleet, monkeypatch):
    read(catalog, fleet, "south")
    os.utime(Path(fleet.store) / "labels/south.parquet", (1e9, 1e9))
    os.utime(Path(fleet.store) / "quarantine/south.json", (1e9, 1e9))
    seen: list[str] = []
    plain = LocalStore.read
    monkeypatch.setattr(LocalStore, "read", lambda self, key: seen.append(key) or plain(self, key))
    monkeypatch.setattr("cluster.storage.SETTLED_S", -1.0)
    for _ in range(3):
        read(catalog, fleet)
    assert [key for key in seen if "south" in key] == ["labels/south.parquet", "quarantine/south.json"]
    add_frame(fleet, "good/L77-0.png", plant="south")
    read(Catalog.of(fleet), fleet, "south")
    seen.clear()
    assert any("south" in note for note in read(catalog, fleet).notes)
    assert "labels/south.parquet" in seen


def test_what_the_existing_inspection_said_is_kept_over_imports_added_later_and_sealed_of_test_rows(catalog, fleet):
    first = read(catalog, fleet)
    assert catalog.rows("north")["incumbent"].isna().all()
    sealed = catalog.sealed("north")
    catalog.write("north.parquet", sealed.drop(columns="incumbent"), store=catalog.seal)  # as older imports wrote it
    table = Path(fleet.plant("north").images).parent / "line.csv"
    said = {frame: "reject" if "crack" in frame else "ok" for frame in catalog.rows("north")["frame"]}
    pd.DataFrame({"frame": list(said), "incumbent": list(said.values())}).to_csv(table, index=False)
    plants = tuple(one.model_copy(update={"incumbent": str(table)}) for one in fleet.plants[:1])
    later = fleet.model_copy(update={"plants": (*plants, *fleet.plants[1:])})
    digest = catalog.snapshot("north")
    for _ in range(2):
        found = read(catalog, later)
        rows = catalog.rows("north")
        is_test = rows["role"] == "test"
        assert rows.loc[is_test, "incumbent"].isna().all()
        assert dict(zip(rows.loc[~is_test, "frame"], rows.loc[~is_test, "incumbent"], strict=True)) == {
            frame: said[frame] for frame in rows.loc[~is_test, "frame"]
        }
        answers = splits.unseal(rows, catalog.sealed("north"))
        assert answers["incumbent"].tolist() == [said[frame] for frame in answers["frame"]]
        assert found.splits == first.splits
    assert catalog.corrections() == "", "no answer of the sealed test was corrected"
    assert catalog.snapshot("north") == digest, "nothing is learned from it"


def test_label_rows_that_were_written_before_there_was_an_incumbent_are_read(catalog, fleet):
    read(catalog, fleet)
    table = pq.read_table(io.BytesIO(catalog.store.read(labels_key("north"))))
    buffer = io.BytesIO()
    pq.write_table(table.drop_columns(["incumbent"]), buffer)
    catalog.store.write(labels_key("north"), buffer.getvalue())
    assert catalog.rows("north")["incumbent"].isna().all()
