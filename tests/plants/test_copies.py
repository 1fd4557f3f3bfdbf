"""Pictures that show the same share a lot where none is known; else one of two in different roles plays none."""

from __future__ import annotations

import pandas as pd
import pytest

from plants.copies import QUARANTINE, apart, equal_files, linked, quarantine, same_parts, with_recorded_lots
from plants.duplicates import Pair


def rows(*lots: str, known: bool = False, roles: tuple[str, ...] = ()) -> pd.DataFrame:
    """A row a lot, with frames f0, f1, ..."""
    table = pd.DataFrame({"frame": [f"f{i}" for i in range(len(lots))], "lot": list(lots)})
    table = table.assign(sha256=[f"s{i}" for i in range(len(lots))], lot_known=known)
    return table.assign(role=list(roles), generation=1) if roles else table


def pairs(*edges: tuple[int, int]) -> list[Pair]:
    return [Pair(i, j, 0.9) for i, j in edges]


def other_plant(*roles: str) -> pd.DataFrame:
    table = pd.DataFrame({"frame": [f"o{i}" for i in range(len(roles))], "role": list(roles)})
    return table.assign(plant="south", generation=1)


def test_pictures_of_unknown_lots_that_show_the_same_share_one_lot_through_others():
    found = linked(rows("a", "b", "c", "d", "e"), pairs((0, 2), (2, 4)))
    assert found["lot"].tolist() == ["a", "b", "a", "d", "a"]


def test_a_known_lot_stays_and_takes_the_unknown_ones_in():
    table = rows("z", "a", "b").assign(lot_known=[True, False, False])
    assert linked(table, pairs((0, 1), (1, 2)))["lot"].tolist() == ["z", "z", "z"]
    assert linked(rows("z", "a", known=True), pairs((0, 1)))["lot"].tolist() == ["z", "a"]


def test_a_lot_that_was_dealt_stays_and_a_new_picture_joins_it():
    found = linked(rows("m", "a", "b"), pairs((0, 1), (0, 2)), recorded=frozenset({"m", "b"}))
    assert found["lot"].tolist() == ["m", "b", "b"]


def test_without_pairs_nothing_changes():
    table = rows("a", "b")
    pd.testing.assert_frame_equal(linked(table, []), table)


def test_a_frame_keeps_the_lot_it_was_recorded_in_also_when_it_was_saved_anew():
    before = rows("joined", "joined")
    now = rows("s0-own", "s1-own").assign(sha256=["s0", "other"])
    assert with_recorded_lots(now, before)["lot"].tolist() == ["joined", "joined"]
    assert with_recorded_lots(now, None) is now
    known = rows("L1", "L2", known=True)
    assert with_recorded_lots(known, before)["lot"].tolist() == ["L1", "L2"]


@pytest.mark.parametrize(
    ("roles", "known_frames", "out"),
    [
        (("train", "test"), (), "f1"),
        (("decide", "select"), (), "f0"),
        (("train", "test"), ("f1",), "f0"),
        (("train", "test"), ("f0", "f1"), "f1"),
    ],
)
def test_the_newer_of_two_copies_is_quarantined_else_the_more_held_out(roles, known_frames, out):
    table = rows("a", "b", known=True, roles=roles)
    (found,) = quarantine(table, pairs((0, 1)), others=other_plant(), known_frames=frozenset(known_frames))
    assert found.frame == out
    assert found.copy_of == ({"f0", "f1"} - {out}).pop()
    assert found.role == dict(zip(("f0", "f1"), roles, strict=True))[out]


def test_copies_in_one_role_stay():
    table = rows("a", "b", known=True, roles=("test", "test"))
    assert quarantine(table, pairs((0, 1)), others=other_plant(), known_frames=frozenset()) == []


def test_a_copy_in_the_test_of_another_generation_is_quarantined():
    table = rows("a", "b", known=True, roles=("test", "test")).assign(generation=[1, 2])
    known = frozenset({"f0"})
    (found,) = quarantine(table, pairs((0, 1)), others=other_plant(), known_frames=known)
    assert found.frame == "f1"


def test_equal_files_are_pairs_each_with_each_while_they_are_few():
    table = rows("a", "b", "c", "d").assign(sha256=["x", "y", "x", "x"])
    assert [(p.i, p.j) for p in equal_files(table, num_asked=4)] == [(0, 2), (0, 3), (2, 3)]
    assert [(p.i, p.j) for p in equal_files(table.assign(sha256=["x", "y", "z", "z"]), num_asked=2)] == []
    many = pd.concat([table.iloc[:1]] * 30, ignore_index=True)
    assert len(equal_files(many, num_asked=30)) < 60


def test_of_equal_files_in_three_roles_one_stays():
    table = rows("a", "b", "c", known=True, roles=("test", "train", "decide")).assign(sha256="x")
    found = quarantine(table, equal_files(table, num_asked=3), others=other_plant("train"), known_frames=frozenset())
    assert [one.frame for one in found] == ["f0", "f2"]


def test_a_copy_of_another_plants_picture_is_quarantined_here_and_names_it():
    table = rows("a", "b", known=True, roles=("test", "train"))
    others = other_plant("train", "train")
    (found,) = quarantine(table, pairs((0, 2), (1, 3), (2, 3)), others=others, known_frames=frozenset())
    assert (found.frame, found.role, found.copy_of) == ("f0", "test", "south:o0")


def test_a_quarantined_row_plays_no_role():
    table = rows("a", "b", known=True, roles=("test", "train"))
    assert apart(table, {"f0": None})["role"].tolist() == [QUARANTINE, "train"]


def test_a_part_of_another_plants_part_in_another_role_is_paired_with_it_frame_by_frame():
    table = rows("a", "a", "b", "c", roles=("test", "test", "train", "test"), known=True)
    table = table.assign(part_id=["P1", "P1", "P2", "P3"])
    others = other_plant("train", "train", "train", "quarantine").assign(part_id=["P1", "P1", "P2", "P3"])
    assert [(pair.i, pair.j) for pair in same_parts(table, others)] == [(0, 4), (1, 4)]
    found = quarantine(table, same_parts(table, others), others=others, known_frames=frozenset(table["frame"]))
    assert [(row.frame, row.copy_of) for row in found] == [("f0", "south:o0"), ("f1", "south:o0")]


def test_a_part_that_is_known_by_its_path_alone_is_no_other_plants_part():
    table = rows("a", known=True, roles=("test",)).assign(part_id="f0")
    others = other_plant("train").assign(frame="f0", part_id="f0")
    assert same_parts(table, others) == []
