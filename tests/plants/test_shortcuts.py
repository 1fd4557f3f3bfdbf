"""A column that tells the class is named, one that does not is not, and a lot does not vouch for itself."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from plants.shortcuts import shortcuts

VALUES = {"environment": ["a", "b"], "annotator": ["ada", "bob"], "product": ["p", "q"], "suffix": ["png", "jpg"]}


def rows(seed: int, *, telling: str | None = None, num: int = 400, faith: float = 0.95) -> pd.DataFrame:
    """Rows in lots of four; the values of `telling` follow the class in this share of the rows, all others do not."""
    rng = np.random.default_rng(seed)
    is_bad = rng.random(num) < 0.25
    cells = {name: rng.integers(0, 2, num) for name in VALUES}
    if telling:
        cells[telling] = np.where(rng.random(num) < faith, is_bad, ~is_bad).astype(int)
    words = {name: np.array(VALUES[name], dtype=object)[at] for name, at in cells.items()}
    suffix = words.pop("suffix")
    return pd.DataFrame(
        {
            "frame": [f"{i}.{end}" for i, end in enumerate(suffix)],
            "class": np.where(is_bad, "dent", "ok").astype(object),
            "lot": [f"lot{i // 4}" for i in range(num)],
            "captured_at": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 10_000, num), "min"),
            "width_px": rng.integers(100, 110, num),
            **words,
        }
    )


@pytest.mark.parametrize("telling", [*VALUES])
def test_the_column_that_tells_the_class_is_named_with_what_it_tells(telling):
    (found,) = shortcuts(rows(1, telling=telling))
    assert found.column == telling
    assert found.strength > 0.7
    assert found.what == "the class"
    assert found.words.endswith(("are 'ok'", "are 'dent'"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("telling", ["annotator", "environment"])
def test_a_column_that_tells_one_class_of_many_is_named_with_that_class(telling, seed):
    table = rows(seed, num=600)
    rng = np.random.default_rng(seed)
    table["class"] = rng.choice(["ok", "dent", "scratch", "stain", "crack", "chip"], len(table)).astype(object)
    is_told = (table["class"] == "crack").to_numpy() ^ (rng.random(len(table)) < 0.05)
    (found,) = shortcuts(table.assign(**{telling: np.where(is_told, "x", "y")}))
    assert (found.column, found.what) == (telling, "which frames are 'crack'")
    assert found.strength > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_columns_that_tell_nothing_are_not_named(seed):
    assert shortcuts(rows(seed)) == []


def own(table: pd.DataFrame, values) -> pd.DataFrame:
    """The table with a column of the customer's own, as an import keeps it."""
    return table.assign(**{"other:operator": pd.Series(values, index=table.index).astype(str)})


@pytest.mark.parametrize("values", [("ada", "bob"), ("3", "4.5"), ("", "inf")])
def test_a_column_of_the_customers_own_that_tells_the_class_is_named_as_it_is_written(values):
    table = rows(1)
    is_told = (table["class"] == "dent").to_numpy() ^ (np.random.default_rng(0).random(len(table)) < 0.05)
    (found,) = shortcuts(own(table, np.where(is_told, *values)))
    assert found.column == "operator"
    assert found.strength > 0.7
    assert re.search(f"with ({'|'.join(values)}) are", found.words)


def test_numbers_of_the_customers_own_are_numbers_to_their_last_digit():
    table = rows(5)
    order = np.argsort((table["class"] == "dent").to_numpy(), kind="stable")
    serial = np.empty(len(table), dtype=int)
    serial[order] = 20_240_131_093_000 + np.arange(len(table))
    (found,) = shortcuts(own(table, serial))
    assert found.column == "operator"
    assert found.words == "40 of 40 with 20240131093000 to 20240131093039 are 'ok'"


@pytest.mark.parametrize("seed", range(3))
def test_an_id_of_each_row_is_not_named_though_no_two_rows_share_one(seed):
    ids = np.random.default_rng(seed).permutation(400)
    assert shortcuts(own(rows(seed), ids)) == []
    assert shortcuts(own(rows(seed), np.char.add("id-", ids.astype(str)))) == []


def test_few_lots_name_no_column_of_chance_among_many_of_the_customers_own():
    named = 0
    for seed in range(2):
        table, rng = rows(seed, num=40), np.random.default_rng(seed)
        chance = {f"other:{i}": rng.choice(["a", "b", "c", "d", "e", "f"], len(table)) for i in range(20)}
        named += len(shortcuts(table.assign(**chance)))
    assert named <= 1


def test_defects_photographed_on_other_days_are_named():
    table = rows(2)
    late = table["class"] == "dent"
    table.loc[late, "captured_at"] += pd.Timedelta(days=30)
    words = {one.column: one.words for one in shortcuts(table)}
    assert re.search(r"with 2026-0[12]-\d\d( to 2026-0[12]-\d\d)? are 'dent'|with 2026-01-0\d.* are 'ok'", words["day"])


def test_defects_filed_in_folders_of_their_own_are_named_and_folders_that_are_the_class_are_not():
    table = rows(4)
    is_bad = (table["class"] == "dent").to_numpy()
    by_class = table.assign(frame=table["class"] + "/" + table["frame"].str.replace(r"[0-9]+", "f", regex=True))
    assert shortcuts(by_class) == []
    nights = np.where(is_bad, "night/", "day/") + by_class["frame"]
    (found,) = shortcuts(by_class.assign(frame=nights))
    assert found.column == "folder"
    assert re.search("with (night|day) are", found.words)


def test_classes_that_lie_apart_in_the_numbering_are_named():
    table = rows(5)
    is_bad = (table["class"] == "dent").to_numpy()
    order = np.argsort(is_bad, kind="stable")
    at = np.empty(len(table), dtype=int)
    at[order] = np.arange(len(table))
    (found,) = shortcuts(table.assign(frame=[f"cam2_{number:06d}-0.png" for number in at]))
    assert found.column == "number"
    assert found.strength > 0.9
    assert found.words == "40 of 40 with 0 to 39 are 'ok'"


def test_a_folder_named_like_a_class_tells_nothing_where_all_frames_lie_in_it():
    table = rows(6)
    assert shortcuts(table.assign(frame="dent/" + table["frame"].str.replace(r"[0-9]+", "f", regex=True))) == []


@pytest.mark.parametrize("start", [20_240_131_093_015, 10**60])
def test_numbers_of_many_digits_are_told_apart_to_the_last_one(start):
    table = rows(7)
    order = np.argsort((table["class"] == "dent").to_numpy(), kind="stable")
    at = np.empty(len(table), dtype=int)
    at[order] = np.arange(len(table))
    (found,) = shortcuts(table.assign(frame=[f"{start + int(number)}.png" for number in at]))
    assert found.words == f"40 of 40 with {start} to {start + 39} are 'ok'"


def test_a_value_of_each_lot_tells_nothing_about_other_lots():
    table = rows(3)
    table["class"] = table.groupby("lot")["class"].transform("first")
    table["product"] = table["lot"]
    assert "product" not in [one.column for one in shortcuts(table)]


@pytest.mark.parametrize("num", [0, 20])
def test_too_few_rows_tell_nothing(num):
    assert shortcuts(rows(0, telling="annotator").head(num)) == []
