"""Findings name the plant, the place, the numbers and the remedy; a sound plant has none to worry about."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from plants.audit import audit
from plants.balance import fleet_classes, strategy
from plants.findings import EVERY_PLANT, Finding
from plants.geometry import Geometry
from plants.plant import Fleet, Plant
from plants.splits import ROLES, seal

CLASSES = {"gut": "ok", "Kratzer groß": "scratch", "Delle": "dent"}
BY_ROLE = {"train": 72, "select": 12, "decide": 12, "test": 24}


def plant(**changes) -> Plant:
    fields = {"name": "werk-1", "images": "x", "classes": CLASSES, "ok": ("gut",)}
    return Plant.model_validate({**fields, **changes})


def sound_rows(*, size: tuple[int, int] = (256, 256), side_px: int = 40) -> pd.DataFrame:
    """360 images, 120 a class, three a lot, in roles at their shares; every defect has a box."""
    roles = np.repeat(list(BY_ROLE), list(BY_ROLE.values()))
    rows = [
        {"lot": f"L{lot}", "class": name, "frame": f"{name}/{lot}.png", "role": role}
        for lot, role in enumerate(roles)
        for name in CLASSES
    ]
    table = pd.DataFrame(rows)
    boxes = [None if name == "gut" else [10, 20, 10 + side_px, 20 + side_px // 2] for name in table["class"]]
    return table.assign(
        sha256=table["frame"],
        part_id=table["frame"],
        lot_known=True,
        severity=np.nan,
        source="import",
        environment="default",
        box=pd.Series(boxes, dtype=object),
        smallest_box=pd.Series([None] * len(table), dtype=object),
        width_px=size[0],
        height_px=size[1],
    )


def findings(rows: pd.DataFrame, *, size_px: int = 96, others: tuple[Plant, ...] = (), **changes) -> list[Finding]:
    this = plant(**changes)
    fleet = Fleet(fleet="f", store="s", plants=(this, *others))
    return audit(this, rows, fleet=fleet, trunk_size_px=size_px)


def kinds(found: list[Finding], *, level: str | None = None) -> set[str]:
    return {finding.kind for finding in found if level in (None, finding.level)}


def the(found: list[Finding], kind: str) -> Finding:
    (finding,) = (f for f in found if f.kind == kind)
    return finding


def with_geometry(**geometry) -> dict:
    return {"environments": {"default": {"geometry": geometry}}}


def test_a_sound_plant_has_no_finding_above_info():
    found = findings(sound_rows())
    assert kinds(found, level="error") | kinds(found, level="warning") == set()
    assert {finding.plant for finding in found} == {"werk-1"}


def test_errors_come_first():
    rows = sound_rows(side_px=6).assign(lot_known=False)
    levels = [finding.level for finding in findings(rows)]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)
    assert levels[0] == "error"


# --- defect size -----------------------------------------------------------------------------------------------------


def test_small_defects_in_large_frames_are_refused_with_camera_sizes_and_remedy():
    found = the(findings(sound_rows(size=(2048, 1536), side_px=24), **with_geometry(fit="whole")), "small_defects")
    assert found.level == "error"
    for word in ("environment default", "'Delle'", "2048 x 1536", "24 px", "1.1 px", "96 px", "fit: whole"):
        assert word in found.detail
    assert "fit: tiles" in found.remedy


@pytest.mark.parametrize("fit", ["whole", "letterbox"])
@pytest.mark.parametrize("side_px", [20, 24, 30])
def test_the_remedy_is_one(fit, side_px):
    rows = sound_rows(size=(2048, 1536), side_px=side_px)
    before = the(
        findings(rows, **with_geometry(fit=fit, min_defect_px=side_px), classes={"a": "dent"}, ok=()), "small_defects"
    )
    tile, overlap = (int(n) for n in re.findall(r"_px: (\d+)", before.remedy))
    assert Geometry(fit="tiles", tile_px=tile, overlap_px=overlap)
    assert overlap >= side_px
    assert "small_defects" not in kinds(findings(rows, **with_geometry(fit="tiles", tile_px=tile, overlap_px=overlap)))


def test_a_declared_smallest_defect_is_checked_without_any_box():
    rows = sound_rows(size=(1000, 800)).assign(box=None)
    found = the(findings(rows, **with_geometry(fit="letterbox", min_defect_px=30)), "small_defects")
    assert found.level == "error"
    assert "30 px in a frame of 1000 x 800, is 2.9 px" in found.detail


def test_a_smallest_defect_declared_on_the_part_is_checked_likewise():
    rows = sound_rows(size=(1000, 800)).assign(box=None)
    found = the(findings(rows, **with_geometry(min_defect_mm=1.5, px_per_mm=20)), "small_defects")
    assert "30 px (1.5 mm) in a frame of 1000 x 800, is 2.9 px" in found.detail


def test_defects_where_nothing_is_judged_are_counted_and_not_measured():
    rows = sound_rows(size=(1000, 800), side_px=3)
    whole = ((0, 0), (999, 0), (999, 799), (0, 799))
    found = findings(rows, **with_geometry(mask=[((990, 790), (999, 790), (999, 799))]))
    assert the(found, "unjudged_defects").level == "warning"
    assert "small_defects" not in kinds(found)
    assert "unjudged_defects" not in kinds(findings(rows, **with_geometry(mask=[whole])))


def test_a_region_of_interest_enlarges_defects():
    rows = sound_rows(size=(1000, 800), side_px=30)
    assert "small_defects" in kinds(findings(rows))
    assert "small_defects" not in kinds(findings(rows, **with_geometry(roi=[0, 0, 200, 200])))


def test_one_small_defect_among_many_is_a_warning():
    rows = sound_rows()
    rows.at[2, "box"] = [0, 0, 5, 5]
    assert the(findings(rows), "small_defects").level == "warning"


@pytest.mark.parametrize(("num_defects", "level"), [(1, "error"), (5, "warning")])
def test_one_small_defect_is_an_error_only_where_it_is_all_there_is(num_defects, level):
    rows = sound_rows()
    rows.at[2, "box"] = [0, 0, 5, 5]
    few = rows["class"].eq("gut") | (rows["class"].eq("Delle") & rows["class"].eq("Delle").cumsum().le(num_defects))
    assert the(findings(rows[few]), "small_defects").level == level


def with_second_box(box: list[int], *, num: int) -> pd.DataFrame:
    """Sound rows; the first of class Delle have this box too, smaller than their 40 px."""
    rows = sound_rows()
    for i in rows.index[rows["class"] == "Delle"][:num]:
        rows.at[i, "smallest_box"] = box
    return rows


def test_a_small_defect_beside_a_larger_one_of_its_frame_is_a_warning_with_its_size():
    found = the(findings(with_second_box([10, 20, 12, 21], num=30)), "small_defects")
    assert found.level == "warning"
    assert "30 of 30 frames with several boxes" in found.detail
    assert "median 2 px in the frame, 0.8 px at the input" in found.detail


def test_a_second_defect_that_is_seen_or_not_judged_is_no_finding():
    assert "small_defects" not in kinds(findings(with_second_box([10, 20, 40, 30], num=30)))
    tiny = with_second_box([200, 200, 202, 202], num=30)
    assert "small_defects" in kinds(findings(tiny))
    assert "small_defects" not in kinds(findings(tiny, **with_geometry(roi=[0, 0, 150, 150])))


def test_a_box_on_a_good_part_says_nothing_about_defects():
    rows = sound_rows()
    rows["box"] = pd.Series([[0, 0, 2, 2] if name == "gut" else None for name in rows["class"]], dtype=object)
    assert "small_defects" not in kinds(findings(rows))


def test_tiles_that_are_too_large_should_become_smaller():
    found = findings(sound_rows(size=(2048, 2048), side_px=24), **with_geometry(fit="tiles", tile_px=1024))
    assert "Set a smaller tile_px" in the(found, "small_defects").remedy


def test_a_defect_of_a_pixel_needs_another_camera():
    found = findings(sound_rows(side_px=1).assign(box=None), **with_geometry(min_defect_px=1))
    assert "camera" in the(found, "small_defects").remedy


# --- classes, environments -------------------------------------------------------------------------------------------


def test_an_empty_class_and_one_of_a_single_image_are_named():
    rows = sound_rows()
    keep = (rows["class"] == "gut") | (rows.index == rows.index[rows["class"] == "Delle"][0])
    found = findings(rows[keep])
    assert "'Kratzer groß'" in the(found, "empty_class").detail
    assert "'Delle'" in the(found, "single_image_class").detail


def test_a_class_declared_absent_is_not_called_empty():
    rows = sound_rows()
    absent = {**CLASSES, "Delle": {"fleet": "dent", "state": "absent"}}
    assert "empty_class" not in kinds(findings(rows[rows["class"] != "Delle"], classes=absent))


def test_rare_classes_are_named_with_their_counts():
    rows = sound_rows()
    few = rows["class"].eq("Delle").cumsum().le(5) | rows["class"].ne("Delle")
    found = findings(rows[few])
    assert "'Delle' (5)" in the(found, "rare_classes").detail
    assert "'Delle' (5)" in the(found, "few_labels").detail


def test_classes_that_are_rare_in_all_plants_together_are_named_by_the_fleets_word():
    rows = sound_rows()
    few = rows["class"].eq("Delle").cumsum().le(5) | rows["class"].ne("Delle")
    sister = Plant(name="werk-2", images="y", classes={"ding": "dent", "good": "ok"}, ok=("good",))
    fleet = Fleet(fleet="f", store="s", plants=(plant(), sister))
    theirs = pd.DataFrame({"class": ["ding"] * 4 + ["good"] * 200})
    (found,) = fleet_classes(fleet, {"werk-1": rows[few], "werk-2": theirs})
    assert (found.level, found.kind, found.plant) == ("warning", "rare_fleet_classes", EVERY_PLANT)
    assert "in 2 plants together, beside the largest class (320 images): 'dent' (9)" in found.detail
    many = pd.DataFrame({"class": ["ding"] * 60})
    assert fleet_classes(fleet, {"werk-1": rows[few], "werk-2": many}) == []
    assert fleet_classes(fleet, {"werk-1": rows[few]}) == []


@pytest.mark.parametrize(
    ("num_labelled", "words"),
    [
        (0, "normality only"),
        (19, "normality only"),
        (20, "frozen features"),
        (199, "frozen features"),
        (200, "gradual unfreezing or LoRA"),
        (1_000, "full fine-tuning"),
    ],
)
def test_the_strategy_follows_the_number_of_labels(num_labelled, words):
    assert strategy(num_labelled) == words


def test_good_images_do_not_count_as_labelled_defects():
    found = the(findings(sound_rows()), "strategy")
    assert "gut" not in found.detail
    assert "frozen features" in found.detail


def test_environments_without_images_and_without_test_images_are_named():
    rows = sound_rows()
    rows.loc[(rows["role"] == "train") & (rows.index % 2 == 0), "environment"] = "night"
    environments = {"default": {}, "night": {}, "dusk": {}}
    found = findings(rows, environments=environments)
    assert "dusk" in the(found, "empty_environment").detail
    assert "night" in the(found, "environment_not_tested").detail


# --- lots, duplicates, roles -----------------------------------------------------------------------------------------


def test_no_known_lot_is_said_plainly():
    found = the(findings(sound_rows().assign(lot_known=False)), "unknown_lots")
    assert found.level == "warning"
    assert "no lot is known" in found.detail
    assert "flattered" in found.detail


def test_a_few_unknown_lots_are_counted():
    rows = sound_rows()
    rows.loc[:3, "lot_known"] = False
    assert "4 of 360" in the(findings(rows), "unknown_lots").detail


def test_exact_copies_are_counted():
    rows = sound_rows()
    rows.loc[3, "sha256"] = rows.loc[0, "sha256"]
    assert "1 images" in the(findings(rows), "duplicates").detail


def test_a_copy_in_another_role_is_an_error():
    rows = sound_rows()
    train, test = (rows.index[(rows["role"] == role) & (rows["class"] == "gut")][0] for role in ("train", "test"))
    rows.loc[test, "sha256"] = rows.loc[train, "sha256"]
    assert the(findings(rows), "straddling_duplicates").level == "error"


def test_realised_shares_are_written_down():
    detail = the(findings(sound_rows()), "shares").detail
    assert "train 60.0% of 60% (72 lots)" in detail
    assert "test 20.0% of 20% (24 lots)" in detail


def test_few_lots_and_odd_shares_are_warnings():
    rows = sound_rows()
    found = findings(rows[(rows["role"] == "train") | rows["lot"].isin(["L80", "L90", "L100"])])
    assert "select (1)" in the(found, "few_lots").detail
    assert "train" in the(found, "shares_off").detail


def test_rows_that_were_never_dealt_say_so():
    assert "not_dealt" in kinds(findings(sound_rows().drop(columns="role")))


def test_sealed_rows_are_audited_without_their_answers():
    rows = sound_rows(size=(2048, 2048))
    is_test = rows["role"] == "test"
    found = findings(seal(rows).open_rows)
    assert f"of {(~is_test).sum() // 3} of class" in the(found, "small_defects").detail
    assert all(role in the(found, "shares").detail for role in ROLES)


def test_a_plant_with_shares_of_its_own_is_held_to_those():
    shares = {"train": 0.1, "select": 0.1, "decide": 0.4, "test": 0.4}
    assert "train" in the(findings(sound_rows(), shares=shares), "shares_off").detail


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        ("{name}/{lot}.png", True),
        ("2026/{name} 2/{lot}.png", True),
        ("all/{name}_{lot}.png", True),
        ("frames/{lot}-{number}.png", False),
        ("gut/{lot}-{number}.png", False),
    ],
)
def test_paths_that_name_the_class_are_told_of_frames_outside_the_seal(frame, told):
    rows = sound_rows()
    cells = zip(rows["class"], rows["lot"], range(len(rows)), strict=True)
    named = rows.assign(frame=[frame.format(name=name, lot=lot[1:], number=n) for name, lot, n in cells])
    found = findings(seal(named).open_rows)
    assert ("paths_tell_class" in kinds(found, level="info")) == told
    if told:
        assert "of 288 of 288 frames" in the(found, "paths_tell_class").detail


def test_parts_that_customers_sent_back_are_counted_by_what_they_are_and_sealed_ones_not_told():
    rows = sound_rows()
    assert "returned" not in kinds(findings(rows))
    sealed = seal(rows)[0]
    is_back = sealed["lot"].isin(["L0", "L1", "L119"]) & (sealed["class"] != "gut")
    found = the(findings(sealed.assign(source=np.where(is_back, "Return ", "import"))), "returned")
    assert found.level == "info"
    assert found.detail.startswith("7 parts came back from customers")
    assert "'Delle' (2)" in found.detail
    assert "'Kratzer groß' (2)" in found.detail
    assert "gut" not in found.detail


def test_a_plant_alone_in_its_classes_is_told_so():
    other = Plant(name="werk-2", images="y", classes={"tear": "tear"})
    assert "no_sister" in kinds(findings(sound_rows(), others=(other,)))
    sister = Plant(name="werk-2", images="y", classes={"ding": "dent"})
    assert "no_sister" not in kinds(findings(sound_rows(), others=(sister,)))
