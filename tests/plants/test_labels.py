"""Folders and tables become label rows; what is refused is listed with its reason, and the rest goes on."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from plants.errors import InputError
from plants.geometry import Environment, Geometry
from plants.hashing import sha256
from plants.labels import LABEL_SCHEMA, Imported, from_parquet, read_rows, to_parquet, truth_of_parts
from plants.plant import Plant
from plants.splits import seal
from plants.tables import COLUMNS, Listed

CLASSES = {"gut": "ok", "Kratzer groß": "scratch", "Delle": "dent"}


class Folder:
    """Files in a local folder."""

    def list(self, uri: str) -> list[Listed]:
        root = Path(uri)
        return [Listed(p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file()]

    def read(self, uri: str, relpath: str) -> bytes:
        return (Path(uri) / relpath).read_bytes()


def plant(root: Path, **changes) -> Plant:
    fields = {"name": "werk-1", "images": str(root), "classes": CLASSES, "ok": ("gut",)}
    return Plant.model_validate({**fields, **changes})


def write(path: Path, *, seed: int = 0, size: tuple[int, int] = (20, 16), kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, format=kind)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images a class."""
    for number, name in enumerate(CLASSES):
        for i in range(2):
            write(tmp_path / "images" / name / f"{i}.png", seed=10 * number + i)
    return tmp_path / "images"


def imported(root: Path, **changes) -> Imported:
    return read_rows(plant(root, **changes), files=Folder())


def reasons(found: Imported) -> dict[str, str]:
    return dict(found.rejected)


def table(root: Path, rows: list[dict], *, name: str = "labels.csv") -> str:
    path = root.parent / name
    frame = pd.DataFrame(rows)
    if name.endswith(".csv"):
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return str(path)


# --- class folders ---------------------------------------------------------------------------------------------------


def test_class_folders_become_one_row_a_frame(root):
    found = imported(root)
    assert found.rejected == []
    assert found.counts == {"Delle": 2, "Kratzer groß": 2, "gut": 2}
    row = found.rows[found.rows["frame"] == "Kratzer groß/1.png"].iloc[0]
    assert row["sha256"] == sha256((root / "Kratzer groß/1.png").read_bytes())
    assert (row["width_px"], row["height_px"]) == (20, 16)
    assert row["part_id"] == "Kratzer groß/1.png"
    assert row["environment"] == "default"
    assert row["source"] == "import"
    assert row["sample_prob"] == 1.0


def test_where_no_lot_is_known_every_image_is_its_own_and_says_so(root):
    rows = imported(root).rows
    assert not rows["lot_known"].any()
    assert rows["lot"].nunique() == 6
    assert rows["lot"].iloc[0] == f"werk-1:{rows['sha256'].iloc[0][:16]}"


def test_the_same_image_twice_shares_a_lot_so_that_it_cannot_straddle(root):
    (root / "gut" / "copy.png").write_bytes((root / "gut" / "0.png").read_bytes())
    rows = imported(root).rows.set_index("frame")
    assert rows.loc["gut/copy.png", "lot"] == rows.loc["gut/0.png", "lot"]


def test_parts_whose_frames_have_several_classes_are_said(tmp_path):
    for name in ("gut/P1_front.png", "Riss/P1_back.png", "gut/P2_front.png"):
        write(tmp_path / name, seed=len(name))
    classes = {"gut": "ok", "Riss": "crack"}
    notes = imported(tmp_path, classes=classes, part_pattern=r"(P\d)_").notes
    assert (
        "1 parts have frames of several classes, first 'P1': such a part is what most of its frames with a defect show"
        in notes
    )


def test_patterns_tell_part_lot_and_environment(tmp_path):
    for name in ("L7_P1_cam1.png", "L7_P1_cam2.png", "L8_P2_cam1.png"):
        write(tmp_path / "gut" / name, seed=len(name))
    found = imported(
        tmp_path,
        lot_pattern=r"(L\d+)_",
        part_pattern=r"(L\d+_P\d+)_",
        environment_pattern=r"(cam\d)",
        environments={"cam1": {}, "cam2": {}},
    )
    assert found.rows["lot"].tolist() == ["L7", "L7", "L8"]
    assert found.rows["part_id"].tolist() == ["L7_P1", "L7_P1", "L8_P2"]
    assert found.rows["environment"].tolist() == ["cam1", "cam2", "cam1"]
    assert found.rows["lot_known"].all()


def test_a_part_without_a_lot_is_its_own_lot(tmp_path):
    for name in ("P1_a.png", "P1_b.png"):
        write(tmp_path / "gut" / name, seed=len(name))
    assert imported(tmp_path, part_pattern=r"(P\d)_").rows["lot"].tolist() == ["P1", "P1"]


def test_a_frame_that_no_lot_pattern_matches_has_no_known_lot(root):
    write(root / "gut" / "L9_x.png", seed=77)
    rows = imported(root, lot_pattern=r"(L\d)_").rows
    assert rows["lot_known"].sum() == 1


def test_an_undeclared_environment_is_refused_by_name(root):
    write(root / "gut" / "cam9.png", seed=5)
    for i, path in enumerate(root.rglob("?.png")):
        path.rename(path.with_name(f"cam1_{i}.png"))
    found = imported(root, environment_pattern=r"(cam\d)", environments={"cam1": {}, "cam2": {}})
    assert len(found.rows) == 6
    assert "unknown environment 'cam9'" in reasons(found)["gut/cam9.png"]


def test_several_environments_and_nothing_to_tell_them_apart_is_an_error(root):
    with pytest.raises(InputError, match="environment_pattern"):
        imported(root, environments={"cam1": {}, "cam2": {}})


def test_a_frame_that_the_environment_pattern_does_not_match_is_refused(root):
    write(root / "gut" / "cam1.png", seed=5)
    found = imported(root, environment_pattern=r"(cam\d)", environments={"cam1": {}})
    assert found.rows["frame"].tolist() == ["gut/cam1.png"]
    assert "does not match" in reasons(found)["gut/0.png"]


def test_an_unknown_class_folder_is_refused_and_the_rest_goes_on(root):
    write(root / "Riss" / "0.png", seed=9)
    found = imported(root)
    assert len(found.rows) == 6
    assert "unknown class 'Riss'" in reasons(found)["Riss/0.png"]


def test_a_class_name_with_white_space_at_its_end_is_refused_by_that_name(root):
    write(root / "gut " / "0.png", seed=9)
    assert "white space" in reasons(imported(root))["gut /0.png"]


def test_a_folder_name_as_a_mac_writes_it_is_the_same_class(tmp_path):
    write(tmp_path / "Ro\u0308te" / "0.png")
    found = imported(tmp_path, classes={"R\u00f6te": "stain"}, ok=())
    assert found.counts == {"R\u00f6te": 1}


@pytest.mark.parametrize("state", ["absent", "unannotated"])
def test_a_label_of_a_class_declared_not_to_be_labelled_is_refused(root, state):
    found = imported(root, classes={**CLASSES, "Delle": {"fleet": "dent", "state": state}})
    assert len(found.rows) == 4
    assert f"declared {state}" in reasons(found)["Delle/0.png"]


def test_an_empty_class_is_a_note_and_not_an_end(root):
    for path in (root / "Delle").iterdir():
        path.unlink()
    found = imported(root)
    assert len(found.rows) == 4
    assert any("'Delle'" in note for note in found.notes)


def test_a_class_with_one_image_is_imported(root):
    (root / "Delle" / "0.png").unlink()
    assert imported(root).counts["Delle"] == 1


def test_an_image_in_no_class_folder_is_listed(root):
    write(root / "stray.png")
    assert "class folder" in reasons(imported(root))["stray.png"]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match="nowhere") as caught:
        imported(tmp_path / "nowhere")
    assert "werk-1" in str(caught.value)


def test_a_folder_without_a_usable_image_is_an_error_with_the_first_reason(tmp_path):
    (tmp_path / "gut").mkdir()
    (tmp_path / "gut" / "a.jpg").write_text("words")
    with pytest.raises(InputError, match=r"gut/a\.jpg.*not a readable image"):
        imported(tmp_path)


# --- every kind of bad file, all at once -----------------------------------------------------------------------------


def bomb(*, side: int) -> bytes:
    """A valid black PNG, 100 KB on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bad_files(folder: Path) -> dict[str, str]:
    """Name -> a word of the reason. Also writes odd files that are fine."""
    whole = write(folder / "whole.jpg", seed=1, size=(64, 64)).read_bytes()
    (folder / "corrupt.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("these are words")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(bomb(side=30_000))
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(3)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(folder / "deep.png")
    Image.new("CMYK", (8, 8), (0, 9, 9, 0)).save(folder / "cmyk.jpg")
    Image.new("P", (8, 8), 3).save(folder / "palette.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(folder / "turned.jpg", exif=exif)
    return {
        "corrupt.jpg": "corrupt",
        "text.jpg": "not a readable image",
        "nothing.png": "0 bytes",
        "bomb.png": "pixels",
        "film.gif": "several frames",
        "deep.png": "bit_depth",
    }


def test_every_bad_file_is_listed_with_its_own_reason_and_every_odd_one_is_read(root):
    bad = bad_files(root / "gut")
    found = imported(root)
    assert {name.removeprefix("gut/") for name in reasons(found)} == set(bad)
    for name, word in bad.items():
        assert word in reasons(found)[f"gut/{name}"]
    rows = found.rows.set_index("frame")
    assert {"gut/cmyk.jpg", "gut/palette.png", "gut/alpha.png", "gut/whole.jpg"} <= set(rows.index)
    assert rows.loc["gut/turned.jpg", ["width_px", "height_px"]].tolist() == [6, 8]
    assert len(found.rows) + len(found.rejected) == sum(path.is_file() for path in root.rglob("*"))


def test_a_twelve_bit_plant_takes_its_deep_frames_and_refuses_the_others(tmp_path):
    write(tmp_path / "gut" / "flat.png")
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "gut" / "deep.png")
    environment = Environment(geometry=Geometry(bit_depth=12))
    found = imported(tmp_path, environments={"default": environment})
    assert found.rows["frame"].tolist() == ["gut/deep.png"]
    assert "8-bit" in reasons(found)["gut/flat.png"]


def test_a_frame_that_the_region_of_interest_leaves_is_refused(root):
    write(root / "gut" / "small.png", size=(8, 8))
    found = imported(root, environments={"default": {"geometry": {"roi": [0, 0, 16, 16]}}})
    assert len(found.rows) == 6
    assert "roi" in reasons(found)["gut/small.png"]


def test_a_file_over_the_byte_limit_is_refused_unread(root):
    found = read_rows(plant(root), files=Folder(), max_bytes=10_000)
    assert not found.rejected
    big = write(root / "gut" / "big.png", size=(200, 200))
    found = read_rows(plant(root), files=Folder(), max_bytes=big.stat().st_size - 1)
    assert "MiB" in reasons(found)["gut/big.png"]


def test_a_file_that_vanishes_while_reading_is_listed(root):
    class Vanishing(Folder):
        def read(self, uri: str, relpath: str) -> bytes:
            if relpath == "gut/0.png":
                raise FileNotFoundError(relpath)
            return super().read(uri, relpath)

    found = read_rows(plant(root), files=Vanishing())
    assert len(found.rows) == 5
    assert "gut/0.png" in reasons(found)


def test_progress_counts_up_to_every_candidate(root):
    seen: list[tuple[int, int]] = []
    read_rows(plant(root), files=Folder(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


# --- tables ----------------------------------------------------------------------------------------------------------

FULL = {
    "frame": "gut/0.png",
    "class": "gut",
    "part_id": "P1",
    "lot": "L1",
    "product": "A7",
    "pose": "top",
    "severity": "0.5",
    "box": "1,2,9,10",
    "captured_at": "2026-03-31T14:05:00+02:00",
    "environment": "default",
    "annotator": "kim",
    "source": "return",
    "sample_prob": "0.25",
}


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_a_table_gives_every_column_of_the_row(root, name):
    row = imported(root, labels=table(root, [FULL], name=name)).rows.iloc[0]
    assert row["captured_at"] == pd.Timestamp("2026-03-31T12:05:00Z")
    assert list(row["box"]) == [1, 2, 9, 10]
    assert row["lot_known"]
    for column in ("part_id", "lot", "product", "pose", "annotator", "source"):
        assert row[column] == FULL[column]
    assert (row["severity"], row["sample_prob"]) == (0.5, 0.25)


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_columns_without_a_use_are_named_with_what_they_may_have_been_meant_for(root, name):
    rows = [{"frame": "gut/0.png", "class": "gut", "Lot": "L1", "operator": "ada", "PartID": "P1", "shift": 2}]
    (note,) = (n for n in imported(root, labels=table(root, rows, name=name)).notes if n.startswith("columns"))
    told = "columns not used: Lot (did you mean lot?), operator, PartID (did you mean part_id?), shift"
    assert note == f"{told}; `audit` alone reads them, for shortcuts"


def test_a_table_of_nothing_but_known_columns_says_nothing_of_columns(root):
    row = {**dict.fromkeys(COLUMNS, ""), "frame": "gut/0.png", "class": "gut"}
    notes = imported(root, labels=table(root, [row])).notes
    assert not [note for note in notes if note.startswith("columns")]


def test_of_very_many_columns_without_a_use_the_first_are_named(root):
    rows = [{"frame": "gut/0.png", "class": "gut", **{f"reading{i}": "1" for i in range(50)}}]
    (note,) = (n for n in imported(root, labels=table(root, rows)).notes if n.startswith("columns"))
    assert note.endswith("reading18, reading19 and 30 more; `audit` alone reads them, 20 at most, for shortcuts")


OWN = {"operator": " ada ", "shift": 2, "remark": "x" * 500, "Lot": None}


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_columns_of_the_customers_own_are_kept_as_short_text_and_change_nothing_else(root, name):
    found = imported(root, labels=table(root, [{**FULL, **OWN}, {"frame": "gut/1.png", "class": "gut"}], name=name))
    row, other = found.rows.to_dict("records")
    assert row["other:operator"] == "ada"
    assert float(row["other:shift"]) == 2
    assert row["other:remark"] == "x" * 80
    assert pd.isna(row["other:Lot"])
    assert pd.isna(other["other:operator"])
    bare = imported(root, labels=table(root, [FULL, {"frame": "gut/1.png", "class": "gut"}], name=name))
    assert to_parquet(found.rows[LABEL_SCHEMA.names]) == to_parquet(bare.rows)
    assert to_parquet(from_parquet(to_parquet(found.rows))) == to_parquet(found.rows)


def test_own_columns_follow_their_frame_past_rejects_and_whatever_the_order_of_the_rows(root):
    frames = ["Delle/1.png", "gut/none.png", "gut/1.png", "Delle/0.png", "gut/0.png"]
    rows = [{"frame": frame, "class": frame.split("/")[0], "bench": f"of {frame}"} for frame in frames]
    kept = imported(root, labels=table(root, rows)).rows
    assert len(kept) == 4
    assert (kept["other:bench"] == "of " + kept["frame"]).all()


def test_boxes_that_differ_in_an_own_column_do_not_contradict_each_other(root):
    rows = [{**FULL, "box_id": 1}, {**FULL, "box": "0,0,15,15", "box_id": 2}]
    found = imported(root, labels=table(root, rows))
    assert found.rejected == []
    assert found.rows["other:box_id"].tolist() == ["2"]


def test_twenty_own_columns_are_kept_and_none_of_bytes_or_lists(root):
    own = {"image": b"bytes", "polygon": [1, 2, 3], **{f"reading{i}": str(i) for i in range(50)}}
    found = imported(root, labels=table(root, [{"frame": "gut/0.png", "class": "gut", **own}], name="labels.parquet"))
    assert [name for name in found.rows if name.startswith("other:")] == [f"other:reading{i}" for i in range(20)]


def test_a_table_says_how_many_files_it_does_not_name(root):
    found = imported(root, labels=table(root, [FULL]))
    assert any(note.startswith("5 files") for note in found.notes)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_as_excel_writes_it_is_read(root, separator):
    path = root.parent / "labels.csv"
    text = f"frame{separator}class\ngut\\0.png{separator}gut\nKratzer groß/0.png{separator}Kratzer groß\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert imported(root, labels=str(path)).counts == {"Kratzer groß": 1, "gut": 1}


def test_a_table_in_another_encoding_is_refused_with_the_remedy(root):
    path = root.parent / "labels.csv"
    path.write_bytes("frame,class\nx.png,Kratzer groß\n".encode("cp1252"))
    with pytest.raises(InputError, match="UTF-8"):
        imported(root, labels=str(path))


@pytest.mark.parametrize(
    ("name", "data"), [("a.parquet", b"PAR1 not really"), ("a.csv", b""), ("a.csv", b"a,b\n1,2,3\n4")]
)
def test_what_is_not_a_table_is_refused_by_name(root, name, data):
    (root.parent / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        imported(root, labels=str(root.parent / name))


def test_a_missing_table_is_refused_by_name(root):
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        imported(root, labels=str(root.parent / "nowhere.csv"))


def test_a_table_without_its_columns_says_which_it_has(root):
    with pytest.raises(InputError, match="lacks the column frame and class; it has image, label"):
        imported(root, labels=table(root, [{"image": "a", "label": "b"}]))


def test_a_row_that_names_none_of_several_environments_is_refused(root):
    rows = [{**FULL, "environment": "cam1"}, {"frame": "gut/1.png", "class": "gut"}]
    found = imported(root, labels=table(root, rows), environments={"cam1": {}, "cam2": {}})
    assert found.rows["environment"].tolist() == ["cam1"]
    assert "names no environment" in reasons(found)["gut/1.png"]


def test_repeated_rows_are_refused_once_each_and_the_first_stays(root):
    found = imported(root, labels=table(root, [FULL, FULL, FULL]))
    assert len(found.rows) == 1
    assert [r.reason for r in found.rejected] == ["duplicate row of this frame"] * 2


def test_contradicting_rows_are_all_refused(root):
    rows = [FULL, {**FULL, "class": "Delle"}, {**FULL, "frame": "gut/1.png", "part_id": "P2"}]
    found = imported(root, labels=table(root, rows))
    assert found.rows["frame"].tolist() == ["gut/1.png"]
    assert len(found.rejected) == 2
    said, _, remedy = found.rejected[0].reason.partition("; ")
    assert said.endswith("contradict each other (class)"), "the frame may lie in the sealed test"
    assert "keep the rows of the one" in remedy


def test_what_is_no_answer_is_named_with_its_contradicting_values(root):
    rows = [FULL, {**FULL, "annotator": "bo"}, {**FULL, "frame": "gut/1.png", "part_id": "P2"}]
    found = imported(root, labels=table(root, rows))
    assert re.search(r"contradict each other \(annotator: .*bo", found.rejected[0].reason)


def test_of_several_boxes_the_largest_is_kept_and_it_is_said(root):
    found = imported(root, labels=table(root, [FULL, {**FULL, "box": "0,0,15,15"}]))
    assert found.rows[["box", "smallest_box"]].iloc[0].tolist() == [[0, 0, 15, 15], [1, 2, 9, 10]]
    assert found.rejected == []
    assert any("1 frames have several boxes" in note for note in found.notes)


def test_the_smallest_box_is_the_one_whose_longer_side_is_the_shortest_and_a_single_one_is_none(root):
    several = [{**FULL, "box": box} for box in ("0,0,1,14", "0,0,15,15", "3,3,7,7", "")]
    single = {"frame": "gut/1.png", "class": "gut", "box": "1,1,3,3"}
    found = imported(root, labels=table(root, [*several, single]))
    assert found.rows["smallest_box"].tolist() == [[3, 3, 7, 7], None]
    assert from_parquet(to_parquet(found.rows))["smallest_box"].tolist() == [[3, 3, 7, 7], None]


def test_a_smallest_box_that_leaves_its_frame_is_refused_as_the_largest_is(root):
    found = imported(
        root,
        labels=table(root, [FULL, {**FULL, "box": "18,14,24,15"}, {**FULL, "frame": "gut/1.png", "part_id": "P2"}]),
    )
    assert found.rows["frame"].tolist() == ["gut/1.png"]
    assert "(18, 14, 24, 15) leaves the frame" in found.rejected[0].reason


def test_label_tables_written_before_there_was_a_smallest_box_are_read(root):
    rows = imported(root).rows
    buffer = io.BytesIO()
    rows.drop(columns="smallest_box").to_parquet(buffer, index=False)
    assert to_parquet(from_parquet(buffer.getvalue())) == to_parquet(rows)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"frame": "gut/none.png"}, "no such file"),
        ({"frame": "../secret.png"}, "leaves the plant's folder"),
        ({"frame": "/etc/passwd"}, "leaves the plant's folder"),
        ({"frame": ""}, "names no frame"),
        ({"class": ""}, "no class"),
        ({"class": "gut "}, "white space"),
        ({"class": "Riss"}, "unknown class"),
        ({"severity": "high"}, "severity 'high'"),
        ({"severity": "3"}, "severity 3 is not within 0..1"),
        ({"severity": "inf"}, "severity inf is not within 0..1"),
        ({"sample_prob": "0"}, "sample_prob"),
        ({"sample_prob": "nan"}, "sample_prob"),
        ({"captured_at": "yesterday-ish"}, "captured_at"),
        ({"environment": "moon"}, "unknown environment"),
        ({"box": "1,2,3"}, "four numbers"),
        ({"box": "0,0,inf,9"}, "four numbers"),
        ({"box": "9,9,1,1"}, "inverted"),
        ({"box": "0,0,500,500"}, "leaves the frame"),
        ({"sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_a_row_with_a_bad_cell_is_refused_and_the_rest_goes_on(root, change, word):
    good = {"frame": "gut/1.png", "class": "gut"}
    found = imported(root, labels=table(root, [good, {**FULL, **change}]))
    assert found.rows["frame"].tolist() == ["gut/1.png"]
    assert len(found.rejected) == 1
    assert word in found.rejected[0].reason


def test_a_part_in_two_lots_is_refused(root):
    rows = [FULL, {**FULL, "frame": "gut/1.png", "lot": "L2"}, {"frame": "Delle/0.png", "class": "Delle"}]
    found = imported(root, labels=table(root, rows))
    assert found.rows["frame"].tolist() == ["Delle/0.png"]
    assert all("several lots (L1, L2)" in r.reason for r in found.rejected)


def test_a_class_named_na_is_a_class(root):
    found = imported(root, labels=table(root, [{"frame": "gut/0.png", "class": "NA"}]), classes={"NA": "stain"}, ok=())
    assert found.counts == {"NA": 1}


def test_whole_numbers_serve_as_class_names_in_parquet(root):
    labels = table(root, [{"frame": "gut/0.png", "class": 3}], name="labels.parquet")
    assert imported(root, labels=labels, classes={"3": "stain"}, ok=()).counts == {"3": 1}


# --- boxes beside class folders --------------------------------------------------------------------------------------


def test_boxes_beside_class_folders_are_read_and_bad_ones_listed(root):
    lines = ["image,x0_px,y0_px,x1_px,y1_px", "Delle/0.png,1,2,5,6", "Delle/0.png,0,0,9,9", "Delle/none.png,1,2,3,4"]
    (root / "boxes.csv").write_text("\n".join(lines))
    found = imported(root)
    boxes = found.rows.set_index("frame")["box"]
    assert list(boxes["Delle/0.png"]) == [0, 0, 9, 9]
    assert boxes["gut/0.png"] is None
    assert reasons(found) == {"boxes.csv: Delle/none.png": "no such file in the plant's folder"}


def test_a_boxes_file_without_its_columns_is_listed(root):
    (root / "boxes.csv").write_text("a,b\n1,2\n")
    found = imported(root)
    assert len(found.rows) == 6
    assert "lacks" in reasons(found)["boxes.csv"]


# --- storage ---------------------------------------------------------------------------------------------------------


def test_label_rows_survive_parquet_byte_for_byte(root):
    rows = imported(root, labels=table(root, [FULL, {"frame": "gut/1.png", "class": "gut"}])).rows
    data = to_parquet(rows)
    assert to_parquet(from_parquet(data)) == data
    assert list(from_parquet(data).columns) == LABEL_SCHEMA.names


def test_sealed_label_rows_can_be_stored_too(root):
    rows = imported(root, labels=table(root, [FULL])).rows.assign(role="test")
    again = from_parquet(to_parquet(seal(rows).open_rows))
    assert again[["class", "severity", "box"]].isna().all(axis=None)


def test_rows_do_not_depend_on_the_order_of_the_listing(root):
    class Reversed(Folder):
        def list(self, uri: str) -> list[Listed]:
            return sorted(super().list(uri), reverse=True)

    assert to_parquet(read_rows(plant(root), files=Reversed()).rows) == to_parquet(imported(root).rows)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["good", "good"], "good"),
        (["good", "dent"], "dent"),
        (["good", "good", "crack", "dent", "dent"], "dent"),
        (["fine", "good", "good"], "good"),
        (["dent", "crack"], "crack"),
    ],
)
def test_a_part_is_the_defect_that_most_of_its_frames_with_one_show(words, expected):
    classes = np.array(["other", *words, "other"], dtype=object)
    parts = np.array([0, *[1] * len(words), 2])
    assert truth_of_parts(classes, parts, ok=("good", "fine")).tolist() == ["other", expected, "other"]


def test_a_column_of_the_existing_inspection_is_kept_as_written_and_never_costs_a_row(root):
    rows = [
        {"frame": "gut/0.png", "class": "gut", "incumbent": "OK "},
        {"frame": "gut/1.png", "class": "gut", "incumbent": "perhaps"},
        {"frame": "Delle/0.png", "class": "Delle", "incumbent": "Kratzer groß"},
        {"frame": "Delle/1.png", "class": "Delle", "incumbent": ""},
    ]
    found = imported(root, labels=table(root, rows))
    kept = found.rows.set_index("frame")["incumbent"]
    assert kept.dropna().to_dict() == {"gut/0.png": "OK", "gut/1.png": "perhaps", "Delle/0.png": "Kratzer groß"}
    assert found.rejected == []
    assert [note for note in found.notes if "incumbent" in note] == [
        "1 of 3 verdicts of the incumbent inspection are none: 'perhaps' (1); "
        "known: ok, reject, review and the plant's classes"
    ]


def test_class_folders_take_the_verdicts_of_the_existing_inspection_from_a_table_among_them(root):
    pd.DataFrame({"part_id": ["0", "1"], "incumbent": ["reject", "ok"]}).to_csv(root / "line.csv", index=False)
    found = imported(root, incumbent=f"{root}/line.csv", part_pattern=r"(\d)\.png")
    assert found.rejected == []
    assert found.rows.groupby("part_id")["incumbent"].unique().map(list).to_dict() == {"0": ["reject"], "1": ["ok"]}
