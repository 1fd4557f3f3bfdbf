"""A fleet file is read whole, every fault of it is reported at once, and class names mean what they should."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from plants.errors import InputError, ManyInputErrors, SealError
from plants.geometry import Geometry
from plants.plant import Costs, Fleet, Plant, Shares, Trunk, is_ok, load_fleet, projection

GOOD = """
fleet: steel
plants:
  - name: neu
    images: data/neu
    classes: {scratches: scratch, rolled: scale}
  - name: xsdd
    images: s3://frames/xsdd
    labels: tables/xsdd.csv
    golden: tables/golden.csv
    classes: {surface_scratch: scratch, plate: scale, temperature: scale, iron: iron}
    ok: []
  - name: tiles
    images: /data/tiles
    classes: {free: ok, Kratzer groß: tile_scratch}
    ok: [free]
"""

SOUND = "{name: sound, images: x, classes: {d: dent}}"


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return load_fleet(write(tmp_path, GOOD))


def faults(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        load_fleet(write(folder, text))
    assert all("fleet.yaml" in fault for fault in caught.value.faults)
    return caught.value.faults


# --- reading ---------------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_file_and_addresses_are_left_alone(fleet, tmp_path):
    assert fleet.plant("neu").images == str(tmp_path / "data/neu")
    assert fleet.plant("xsdd").images == "s3://frames/xsdd"
    assert fleet.plant("xsdd").labels == str(tmp_path / "tables/xsdd.csv")
    assert fleet.plant("xsdd").golden == str(tmp_path / "tables/golden.csv")
    assert fleet.plant("tiles").images == "/data/tiles"
    assert fleet.store == str(tmp_path / ".crossplant/steel")


def test_weights_are_a_word_or_a_path(tmp_path):
    text = GOOD + "trunks: [{backbone: resnet18, weights: hub}, {backbone: resnet18, weights: w/a.safetensors}]\n"
    hub, file = load_fleet(write(tmp_path, text)).trunks
    assert hub.weights == "hub"
    assert file.weights == str(tmp_path / "w/a.safetensors")
    assert hub.name == "resnet18@96"


def test_three_faults_are_reported_at_once_with_plant_and_field(tmp_path):
    text = """
fleet: steel
plants:
  - {name: neu, images: a, classes: {x: scratch}, colour: red}
  - {name: Bad Name, images: b, classes: {x: scratch}}
  - name: tiles
    images: c
    classes: {x: scratch}
    environments: {cam: {geometry: {fit: tiles}}}
  - {name: sound, images: d, classes: {x: scratch}}
"""
    found = faults(tmp_path, text)
    assert len(found) == 3
    assert "plant neu" in found[0]
    assert "field colour" in found[0]
    assert "Remove it" in found[0]
    assert "field name" in found[1]
    assert "fit: tiles needs tile_px" in found[2]
    assert "environments.cam.geometry" in found[2]


def test_a_missing_file_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file\. Name the fleet"):
        load_fleet(tmp_path / "nowhere.yaml")


def test_a_folder_instead_of_a_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_fleet(tmp_path)


def test_what_is_not_yaml_names_the_line(tmp_path):
    (found,) = faults(tmp_path, "fleet: steel\nplants: [}\n")
    assert "line 2" in found


@pytest.mark.parametrize("text", ["- a\n- b\n", "words", ""])
def test_what_is_no_mapping_is_an_error(tmp_path, text):
    (found,) = faults(tmp_path, text)
    assert "mapping" in found


def test_plants_that_are_no_mappings_are_named_by_their_place(tmp_path):
    assert any("plant 0" in fault for fault in faults(tmp_path, "fleet: f\nplants: [word]\n"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("classes: {'ok ': dent}", "classes: 'ok ' has white space at its ends; write 'ok'"),
        ("classes: {' ': dent}", "classes: ' ' is no name; write what the plant's labels say"),
        ("classes: {}", "at least 1"),
        ("{classes: {a: dent}, ok: [b]}", "'b' is not among classes"),
        ("{classes: {a: dent}, ok: [a]}", "its fleet class must be 'ok'"),
        ("{classes: {a: ok}}", "not listed under ok"),
        ("{classes: {a: dent}, lot_pattern: '('}", "not a regular expression"),
        ("{classes: {a: dent}, part_pattern: 'a'}", "exactly one group"),
        ("{classes: {a: dent}, environments: {}}", "at least one is needed"),
        ("{classes: {a: dent}, costs: {miss_by_class: {z: 1}}}", "unknown class 'z'; known classes: a"),
        ("{classes: {a: dent}, costs: {recall_floor_by_class: {z: 1}}}", "unknown class 'z'; known classes: a"),
        ("{classes: {a: dent}, costs: {defect_rate: [0.1, 0.2, 0.3]}}", "write [0.2, 0.1, 0.3]"),
        ("{classes: {a: dent}, costs: {defect_rate: [2, 1, 5]}}", "a share of the parts, so 2 % is 0.02"),
        ("{classes: {a: dent}, costs: {review_per_hour: 9}}", "review_per_hour needs parts_per_hour"),
        ("{classes: {a: {fleet: dent, state: sometimes}}}", "state"),
    ],
)
def test_a_plant_that_contradicts_itself_is_refused_in_words(tmp_path, line, words):
    body = line[1:-1] if line.startswith("{") else line
    text = f"fleet: f\nplants:\n  - {{name: werk-1, images: a, {body}}}\n  - {SOUND}\n"
    (found,) = faults(tmp_path, text)
    assert words in found
    assert "plant werk-1" in found


def test_a_fleet_of_only_faulty_plants_has_no_fault_but_theirs(tmp_path):
    text = "fleet: f\nplants:\n  - {name: a, images: x, classes: {d: dent}, colour: red}\n"
    (found,) = faults(tmp_path, text)
    assert "plant a" in found
    assert "field colour" in found


@pytest.mark.parametrize("line", ["plants: []", ""])
def test_a_fleet_without_plants_is_refused(tmp_path, line):
    (found,) = faults(tmp_path, f"fleet: f\n{line}\n")
    assert "plants" in found


def test_a_trunk_without_cut_zero_is_one_line_with_what_to_write(tmp_path):
    (found,) = faults(tmp_path, GOOD + "trunks: [{cuts: [1, 2]}]\n")
    assert "field trunks.0: cuts must contain 0, where training fits the head first; write cuts: [0, 1, 2]" in found


def test_part_ids_are_each_plants_own_or_the_fleets_and_nothing_else(tmp_path):
    assert load_fleet(write(tmp_path, GOOD)).part_ids == "plant"
    assert load_fleet(write(tmp_path, GOOD + "part_ids: fleet\n")).part_ids == "fleet"
    (found,) = faults(tmp_path, GOOD + "part_ids: everywhere\n")
    assert "field part_ids: Input should be 'plant' or 'fleet'" in found


def test_a_trunk_names_a_way_of_resizing_that_is_known_or_none(tmp_path):
    text = GOOD + "trunks: [{interpolation: INTERPOLATION}]\n"
    assert load_fleet(write(tmp_path, text.replace("INTERPOLATION", "bicubic"))).trunks[0].interpolation == "bicubic"
    assert load_fleet(write(tmp_path, GOOD)).trunks[0].interpolation is None
    (found,) = faults(tmp_path, text.replace("INTERPOLATION", "nearest"))
    assert "field trunks.0.interpolation: Input should be 'bilinear' or 'bicubic'" in found


@pytest.mark.parametrize("num", [0, 3])
def test_a_fleet_shares_one_or_two_trunks(tmp_path, num):
    (found,) = faults(tmp_path, GOOD + f"trunks: [{', '.join(['{}'] * num)}]\n")
    assert f"field trunks: a fleet shares one or two trunks, not {num}" in found


def test_a_plant_named_twice_is_refused(tmp_path):
    text = "fleet: f\nplants:\n" + 2 * "  - {name: a, images: x, classes: {d: dent}}\n"
    assert "used twice: a" in faults(tmp_path, text)[0]


@pytest.mark.parametrize(
    "geometry",
    [
        {"fit": "tiles"},
        {"fit": "tiles", "tile_px": 32, "overlap_px": 32},
        {"roi": (5, 0, 5, 9)},
        {"roi": (-1, 0, 5, 9)},
        {"bit_depth": 12, "window": (0, 4096)},
        {"window": (9, 9)},
        {"bit_depth": 10},
    ],
)
def test_an_impossible_geometry_is_refused(geometry):
    with pytest.raises(ValidationError):
        Geometry(**geometry)


def test_shares_must_be_a_division_of_the_whole():
    with pytest.raises(ValidationError, match="sum to 1"):
        Shares(train=0.9)
    with pytest.raises(ValidationError, match="positive"):
        Shares(train=0.9, select=0.1, decide=0.0, test=0.0)


@pytest.mark.parametrize("rate", [(0.02, 0.005, 0.05), (0.1, 0.1, 0.1), (0, 0, 1)])
def test_a_defect_rate_is_an_estimate_between_its_ends(rate):
    assert Costs(defect_rate=rate).defect_rate == rate


@pytest.mark.parametrize(
    "rate", [(0.1, 0.2, 0.3), (0.4, 0.2, 0.3), (0.2, 0.3, 0.1), (-0.1, -0.1, 0.2), (0.5, 0, 1.1), (float("nan"), 0, 1)]
)
def test_an_estimate_outside_its_ends_or_no_share_is_refused(rate):
    with pytest.raises(ValidationError, match="defect_rate"):
        Costs(defect_rate=rate)


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        ((1,), r"cuts must contain 0.*write cuts: \[0, 1\]"),
        ((), r"write cuts: \[0\]"),
        ((0, -1), "not be negative"),
        ((0, 1, 1), "twice"),
    ],
)
def test_cuts_that_training_cannot_start_from_are_refused_with_what_to_write(cuts, words):
    with pytest.raises(ValidationError, match=words):
        Fleet(
            fleet="f", store="s", trunks=[{"cuts": cuts}], plants=[{"name": "a", "images": "x", "classes": {"d": "d"}}]
        )


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Trunk().size_px = 3


# --- classes ---------------------------------------------------------------------------------------------------------


def test_an_unknown_plant_is_refused_with_the_known_ones(fleet):
    with pytest.raises(InputError, match=r"plant paris: .*neu, xsdd, tiles"):
        fleet.plant("paris")


def test_a_class_that_some_plant_divides_has_a_leaf_for_each_division(fleet):
    assert fleet.divided()["scale"] == ("scale/plate", "scale/temperature")
    assert fleet.divided()["scratch"] == ("scratch",)


def test_a_plant_that_does_not_divide_a_class_labels_all_its_leaves(fleet):
    assert fleet.leaf_sets(fleet.plant("neu"))["rolled"] == ("scale/plate", "scale/temperature")
    assert fleet.leaf_sets(fleet.plant("xsdd"))["plate"] == ("scale/plate",)


def test_good_leaves_come_first(fleet):
    leaves = fleet.leaves(fleet.plants)
    assert leaves[0] == "ok"
    assert list(leaves[1:]) == sorted(leaves[1:])
    assert is_ok("ok/polished")
    assert not is_ok("okay")


def test_sisters_share_a_defect_class_and_not_only_ok(fleet):
    assert [p.name for p in fleet.sisters(fleet.plant("neu"))] == ["xsdd"]
    assert fleet.sisters(fleet.plant("tiles")) == ()


def test_sisters_of_sisters_are_sisters():
    chain = [{"a": "dent"}, {"a": "dent", "b": "tear"}, {"b": "tear"}]
    plants = tuple(Plant(name=f"p{i}", images="x", classes=classes) for i, classes in enumerate(chain))
    fleet = Fleet(fleet="f", store="s", plants=plants)
    assert [p.name for p in fleet.sisters(plants[0])] == ["p1", "p2"]


def test_defects_and_annotated_classes_keep_the_order_of_the_file():
    plant = Plant.model_validate(
        {
            "name": "p",
            "images": "x",
            "ok": ["gut"],
            "classes": {"z": "dent", "gut": "ok", "a": {"fleet": "tear", "state": "unannotated"}},
        }
    )
    assert plant.defects == ("z", "a")
    assert plant.annotated == ("z", "gut")


def test_projection_sums_leaves_into_plant_classes_and_leaves_the_impossible_out(fleet):
    neu = fleet.plant("neu")
    leaves = fleet.leaves([fleet.plant("neu"), fleet.plant("xsdd")])
    matrix = projection(leaves, fleet.leaf_sets(neu), neu.annotated)
    probs = np.full(len(leaves), 1 / len(leaves), dtype=np.float32)
    assert dict(zip(neu.annotated, (probs @ matrix).tolist(), strict=True)) == pytest.approx(
        {"scratches": 0.25, "rolled": 0.5}
    )


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_is_one_line_with_place_and_remedy():
    error = InputError("is\nwrong", plant="p", file="f", field="x", remedy="Do this")
    assert str(error) == "plant p: file f: field x: is wrong. Do this"
    assert error.faults == (str(error),)


@pytest.mark.parametrize("error", [InputError("a", plant="p"), ManyInputErrors(["a", "b"]), SealError("spent")])
def test_errors_survive_the_way_back_from_a_worker(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.faults == error.faults


def test_an_error_without_a_plant_is_given_one_and_one_with_a_plant_keeps_it():
    many = ManyInputErrors(["plant oven: wrong", "file f: gone"])
    assert many.at_plant("mill") == ("plant oven: wrong", "plant mill: file f: gone")
    assert InputError("is wrong", file="f").at_plant("mill") == ("plant mill: file f: is wrong",)
    assert InputError("is\nwrong", file="f").detail == "is wrong"
    assert (many.plant, many.detail) == (None, "plant oven: wrong; file f: gone")
