"""What people say is merged into both tables, and no row that is not concerned loses a character."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pandas as pd
import pytest

from plants.annotations import (
    GOLDEN_COLUMNS,
    LABEL_COLUMNS,
    UNKNOWN,
    Action,
    Table,
    Tables,
    judge,
    labelled_frames,
    read_table,
    read_verdicts,
    table_addresses,
    take_back,
)
from plants.errors import InputError
from plants.plant import Plant

ODD = ("good", "Riß, tief", 'a "quoted" one', "=cmd()|'/C calc'!A0", "Öl;fleck\tzwei", "two\nlines")
PLANT = Plant.model_validate(
    {
        "name": "mill",
        "images": "mill",
        "labels": "mill-labels.csv",
        "golden": "mill-golden.csv",
        "classes": {name: "ok" if name == "good" else f"defect {i}" for i, name in enumerate(ODD)},
        "ok": ["good"],
    }
)


def table(text: str | bytes | None, *columns: str) -> Table:
    data = text.encode() if isinstance(text, str) else text
    return read_table(data, columns=columns or LABEL_COLUMNS, plant="mill", address="x.csv")


def tables(labels: str | bytes | None = None, golden: str | None = None) -> Tables:
    return Tables(table(labels), table(golden, *GOLDEN_COLUMNS))


def say(at: Tables, who: str, **said: str | None) -> tuple[Tables, Action]:
    return told(at, who, {f"{frame}.png": name for frame, name in said.items()})


def told(at: Tables, who: str, said: Mapping[str, str | None]) -> tuple[Tables, Action]:
    changed, action = judge(at, plant=PLANT, annotator=who, said=said, digests=Digests())
    return Tables(table(changed.labels.to_bytes()), table(changed.golden.to_bytes(), *GOLDEN_COLUMNS)), action


def undone(at: Tables, action: Action) -> Tables:
    return take_back(at, plant=PLANT, action=action, digests=Digests())


class Digests(dict[str, str]):
    def __missing__(self, frame: str) -> str:
        return f"digest of {frame}"


def rows(found: Table) -> list[tuple[str, ...]]:
    """As everything else here reads the file."""
    frame = pd.read_csv(io.BytesIO(found.to_bytes()), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    return [tuple(row) for row in frame.to_numpy()]


def test_a_first_verdict_is_a_row_of_both_tables_that_did_not_exist():
    found, _ = say(tables(), "ada", a="good")
    assert found.labels.to_bytes() == b"frame,class,annotator\na.png,good,ada\n"
    assert found.golden.to_bytes() == b"frame,class,annotator,sha256\na.png,good,ada,digest of a.png\n"


def test_a_frame_has_a_label_while_all_who_judged_it_agree():
    one, _ = say(tables(), "ada", a="good", b="good")
    two, _ = say(one, "bob", a="good", b=ODD[1])
    assert rows(two.labels) == [("a.png", "good", "ada")]
    assert [row[:3] for row in rows(two.golden)] == [
        ("a.png", "good", "ada"),
        ("b.png", "good", "ada"),
        ("a.png", "good", "bob"),
        ("b.png", ODD[1], "bob"),
    ]
    three, _ = say(two, "ada", b=ODD[1])
    assert rows(three.labels) == [("a.png", "good", "ada"), ("b.png", ODD[1], "ada")]


def test_of_one_annotator_the_latest_verdict_counts_and_is_the_only_one():
    one, _ = say(tables(), "ada", a="good")
    two, _ = say(one, "ada", a=ODD[2])
    assert rows(two.labels) == [("a.png", ODD[2], "ada")]
    assert len(rows(two.golden)) == 1
    three, _ = say(two, "ada", a=None)
    assert (rows(three.labels), rows(three.golden)) == ([], [])


def test_a_verdict_taken_away_leaves_the_label_that_the_others_gave():
    one, _ = say(tables(), "ada", a="good")
    two, _ = say(one, "bob", a=ODD[1])
    three, _ = say(two, "ada", a=None)
    assert rows(three.labels) == [("a.png", ODD[1], "bob")]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("frame", ["a.png", 'Blech, "A"; ö.png', "=1+1.png", " a.png", "@x\ty.png"])
def test_names_of_any_characters_come_back_as_they_were(frame, name):
    found, _ = told(tables(), "=ada, b", {frame: name})
    assert rows(found.labels) == [(frame, name, "=ada, b")]
    assert read_verdicts(found.golden, plant=PLANT) == {frame: {"=ada, b": name}}


WRITTEN = (
    "\ufefflot;frame;class ;x0_px;note\r\n"
    '"L1";"other.png";"good";07;"semi;colon"\r\n'
    "L1;./sub\\a.png;good;1.50;  keep \r\n"
    "\r\n"
    "L2;short.png;good\r\n"
    'L3;"q""uote.png";=cmd;"two\r\nlines";x\r\n'
)


def test_rows_of_other_frames_keep_every_character_and_a_changed_row_its_other_cells():
    found, _ = told(tables(WRITTEN), "ada", {"sub/a.png": "Riß, tief", "new.png": "good"})
    text = found.labels.to_bytes().decode()
    assert text == WRITTEN.replace("L1;./sub\\a.png;good;", "L1;./sub\\a.png;;") + ";new.png;good;;\r\n"


def test_a_label_that_was_there_is_contradicted_and_not_overwritten_and_counts_as_its_annotators():
    before = tables("frame,class,annotator\nx.png,good,eve\ny.png,good,\nz.png,good,ada\n")
    found, _ = told(before, "ada", dict.fromkeys(["x.png", "y.png", "z.png"], ODD[1]))
    assert rows(found.labels) == [("z.png", ODD[1], "ada")]
    assert read_verdicts(found.golden, plant=PLANT) == {
        "x.png": {"eve": "good", "ada": ODD[1]},
        "y.png": {UNKNOWN: "good", "ada": ODD[1]},
        "z.png": {"ada": ODD[1]},
    }
    settled, _ = told(found, UNKNOWN, {"y.png": ODD[1]})
    assert ("y.png", ODD[1], UNKNOWN) in rows(settled.labels)


def test_a_verdict_that_was_never_given_is_not_taken_away_nor_the_label_with_it():
    before = tables("frame,class,annotator\nx.png,good,eve\n")
    found, action = told(before, "ada", {"x.png": None, "new.png": None})
    assert (found.labels.to_bytes(), found.golden.to_bytes()) == (before.labels.to_bytes(), before.golden.to_bytes())
    assert undone(found, action).labels.to_bytes() == before.labels.to_bytes()


def test_a_row_of_a_customers_table_that_says_the_same_is_not_touched_at_all():
    found, _ = told(tables(WRITTEN), "ada", {"other.png": "good"})
    assert found.labels.to_bytes() == WRITTEN.encode()


def test_where_people_differ_a_row_that_holds_more_than_a_label_stays_without_a_class():
    one, _ = told(tables("frame,class,lot\nx.png,good,L1\ny.png,good,\n"), "ada", {"x.png": "good", "y.png": "good"})
    two, _ = told(one, "bob", {"x.png": ODD[1], "y.png": ODD[1]})
    assert two.labels.to_bytes() == b"frame,class,lot\nx.png,,L1\n"
    assert labelled_frames(two.labels) == set()
    three, _ = told(two, "ada", {"x.png": ODD[1]})
    four, _ = told(three, UNKNOWN, {"x.png": ODD[1]})
    assert (rows(three.labels), rows(four.labels)) == ([("x.png", "", "L1")], [("x.png", ODD[1], "L1")])


def test_undoing_everything_in_turn_gives_both_files_back_byte_for_byte():
    golden = "frame,class,annotator,sha256\nother.png,good,eve,s\n"
    at = start = tables(WRITTEN, golden)
    actions = []
    for who, said in [
        ("ada", {"sub/a.png": ODD[1], "short.png": ODD[2], "new.png": "good"}),
        ("ada", {"sub/a.png": "good", "other.png": ODD[1]}),
        ("ada", {"new.png": None}),
    ]:
        at, action = told(at, who, said)
        actions.append(action)
    for action in reversed(actions):
        at = undone(at, action)
    assert at.labels.to_bytes() == start.labels.to_bytes()
    assert at.golden.to_bytes() == start.golden.to_bytes()


def test_undoing_takes_nothing_back_that_was_said_later_by_oneself_or_others():
    one, action = say(tables(), "ada", a="good", b="good")
    two, _ = say(one, "bob", a="good")
    three, _ = say(two, "ada", b=ODD[1])
    found = undone(three, action)
    assert sorted(rows(found.labels)) == [("a.png", "good", "ada"), ("b.png", ODD[1], "ada")]
    assert read_verdicts(found.golden, plant=PLANT) == {"a.png": {"bob": "good"}, "b.png": {"ada": ODD[1]}}


def test_undoing_keeps_what_somebody_wrote_into_the_label_row_meanwhile():
    one, action = say(tables("frame,class,lot\na.png,good,L1\n"), "ada", a=ODD[3])
    edited = tables(one.labels.to_bytes().replace(b"L1", b"L7"), one.golden.to_bytes().decode())
    assert edited.labels.to_bytes() == b"frame,class,lot\na.png,,L7\n"
    found = undone(edited, action)
    assert (rows(found.labels), rows(found.golden)) == ([("a.png", "good", "L7")], [])


def test_a_golden_table_without_digests_gains_a_column_and_its_rows_stay():
    found, _ = told(tables(None, "annotator,class,frame\neve,good,x.png\n"), "ada", {"y.png": "good"})
    assert found.golden.to_bytes().decode() == (
        "annotator,class,frame,sha256\neve,good,x.png\nada,good,y.png,digest of y.png\n"
    )


def test_a_class_is_the_same_however_a_mac_writes_it():
    mac = "O\u0308l;fleck\tzwei"
    labels, golden = f"frame,class\na.png,{mac}\n", f"frame,class,annotator,sha256\na.png,{mac},ada,s\n"
    found, _ = say(tables(labels, golden), "bob", a=ODD[4])
    assert found.labels.to_bytes().decode() == labels
    assert read_verdicts(found.golden, plant=PLANT) == {"a.png": {"ada": ODD[4], "bob": ODD[4]}}


@pytest.mark.parametrize(
    ("data", "columns", "words"),
    [
        (b"\xff\xfe,x\n", LABEL_COLUMNS, "is not UTF-8"),
        (b'frame,class\n"a.png,good\n', LABEL_COLUMNS, "not a readable table"),
        (b"frame,kind\n", LABEL_COLUMNS, "lacks the column class"),
        (b"frame,class\n", GOLDEN_COLUMNS, "lacks the column annotator"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_by_name(data, columns, words):
    with pytest.raises(InputError, match=words) as raised:
        table(data, *columns)
    assert str(raised.value).startswith("plant mill: file x.csv")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, "plant mill: field labels: .* Write `labels: mill-labels.csv`"),
        ({"golden": None}, "plant mill: field golden: .* Write `golden: mill-golden.csv`"),
        ({"labels": "x.parquet"}, "plant mill: file x.parquet: field labels: verdicts are written to CSV"),
        ({"golden": "mill-labels.csv"}, "field golden: is the table of labels too"),
    ],
)
def test_a_plant_that_names_no_place_for_verdicts_is_told_what_to_write(change, words):
    with pytest.raises(InputError, match=words):
        table_addresses(PLANT.model_copy(update=change))
