"""Lots are dealt once, fairly, for good; the test's answers can be taken away and put back."""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from plants.errors import InputError
from plants.hashing import unit_hash
from plants.plant import Shares
from plants.seal import ANSWERS, SEALED
from plants.splits import (
    GENESIS,
    ROLES,
    deal,
    digest,
    from_parquet,
    generation_of,
    no_assignments,
    realised,
    seal,
    to_parquet,
    unseal,
    verify,
    with_roles,
)

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
SEEDS = range(20)


def made(seed: int, *, num_lots: int = 60, plant: str = "werk-1", prefix: str = "") -> pd.DataFrame:
    """Label rows of lots of several frames: mostly ok, defects of three kinds, `rare` in exactly five lots."""
    rng = np.random.default_rng(seed)
    lots = [f"{prefix}{plant}-{i}" for i in range(num_lots)]
    with_rare = set(rng.choice(lots, 5, replace=False))
    rows = []
    for lot in lots:
        classes = list(rng.choice(["ok", "scratch", "dent"], rng.integers(2, 7), p=[0.7, 0.2, 0.1]))
        classes += ["rare"] if lot in with_rare else []
        rows += [{"lot": lot, "class": name, "plant": plant} for name in classes]
    frame = pd.DataFrame(rows)
    names = [f"{prefix}{plant}/{i}.png" for i in range(len(frame))]
    boxes = [[1, 2, 3, 4] if name != "ok" else None for name in frame["class"]]
    return frame.assign(frame=names, part_id=names, sha256=names, severity=0.5, box=pd.Series(boxes, dtype=object))


def dealt(rows: pd.DataFrame, *, seed: int = 0, before: pd.DataFrame | None = None, **options) -> pd.DataFrame:
    return deal(rows, assignments=before, shares=Shares(), seed=seed, now=NOW, **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_lot_straddles_two_roles(seed):
    rows = made(seed)
    roles = with_roles(rows, dealt(rows, seed=seed)).groupby("lot")["role"].nunique()
    assert (roles == 1).all()
    assert len(roles) == rows["lot"].nunique()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_moves_when_new_lots_come(seed):
    old, new = made(seed), made(seed + 100, num_lots=30, prefix="new-")
    before = dealt(old, seed=seed)
    after = dealt(pd.concat([old, new]), seed=seed, before=before)
    pd.testing.assert_frame_equal(after.head(len(before)), before)
    assert len(after) == len(before) + 30
    only_new = dealt(new, seed=seed, before=before)
    pd.testing.assert_frame_equal(only_new.head(len(before)), before)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_role_of_a_lot_does_not_depend_on_the_order_of_rows(seed):
    rows = made(seed)
    shuffled = rows.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(dealt(rows, seed=seed), dealt(shuffled, seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_shares_of_all_rows_come_out_within_three_points(seed):
    rows = made(seed, num_lots=120)
    table = realised(with_roles(rows, dealt(rows, seed=seed))).set_index(["class", "role"])
    for role in ROLES:
        assert table.loc[("*", role), "share"] == pytest.approx(getattr(Shares(), role), abs=0.03)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rarest_class_reaches_every_role_from_four_lots_on(seed):
    rows = made(seed)
    table = realised(with_roles(rows, dealt(rows, seed=seed))).set_index(["class", "role"])
    assert (table.loc["rare", "lots"] >= 1).all()


@pytest.mark.parametrize("num_lots", [4, 5, 7])
def test_a_class_of_a_few_single_images_reaches_every_role(num_lots):
    rows = pd.DataFrame({"lot": [f"L{i}" for i in range(num_lots)], "class": "rare", "plant": "werk-1"})
    assert set(dealt(rows)["role"]) == set(ROLES)


@pytest.mark.parametrize(
    ("num_lots", "roles"), [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "test", "decide"})]
)
def test_the_first_lots_are_learned_from_and_tested_on(num_lots, roles):
    rows = pd.DataFrame({"lot": [f"L{i}" for i in range(num_lots)], "class": "rare", "plant": "werk-1"})
    assert set(dealt(rows)["role"]) == roles


@pytest.mark.parametrize("seed", range(3))
def test_lots_that_come_one_by_one_are_dealt_as_fairly(seed):
    rows, record = made(seed), no_assignments()
    for lot in rows["lot"].unique():
        record = dealt(rows[rows["lot"].isin([*record["lot"], lot])], seed=seed, before=record)
    table = realised(with_roles(rows, record)).set_index(["class", "role"])
    for role in ROLES:
        assert table.loc[("*", role), "share"] == pytest.approx(getattr(Shares(), role), abs=0.08)
    assert (table.loc["rare", "lots"] >= 1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_single_images_are_dealt_to_each_class_at_its_share(seed):
    rng = np.random.default_rng(seed)
    names = [f"i{i}" for i in range(500)]
    rows = pd.DataFrame({"lot": names, "class": rng.choice(["a", "b"], 500, p=[0.9, 0.1]), "plant": "werk-1"})
    rows = rows.assign(frame=names, part_id=names)
    table = realised(with_roles(rows, dealt(rows, seed=seed))).set_index(["class", "role"])
    for name in ("a", "b"):
        for role in ROLES:
            assert table.loc[(name, role), "share"] == pytest.approx(getattr(Shares(), role), abs=0.03)


def test_a_lot_seen_at_two_plants_plays_one_role():
    here = made(0).assign(lot=lambda rows: rows["lot"].str.replace("werk-1-", "lot-"))
    there = made(1, plant="werk-2").assign(lot=lambda rows: rows["lot"].str.replace("werk-2-", "lot-"))
    record = dealt(pd.concat([here, there]))
    assert record["lot"].is_unique
    assert set(record["plant"]) == {"werk-1"}


@pytest.mark.parametrize("order", ["class", "time"])
def test_neighbours_in_the_record_do_not_tell_the_class_of_a_sealed_lot(order):
    """Guessed by the classes of the nearest lots in the record that are open."""
    rng = np.random.default_rng(0)
    words = rng.choice(["ok", "dent", "crack", "chip"], 600, p=[0.25] * 4)
    lots = [f"mill:{rng.integers(2**60):016x}" for _ in words]
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(rng.permutation(600), unit="h")
    rows = pd.DataFrame({"frame": lots, "lot": lots, "class": words, "captured_at": times})
    record = deal(rows, assignments=None, shares=Shares(order=order), seed=0, now=NOW, plant="mill")
    known = record["lot"].map(dict(zip(lots, words, strict=True))).where(record["role"] != "test")
    sealed = known.isna()
    guessed = known.ffill().where(known.ffill() == known.bfill())[sealed].dropna()
    truth = record.loc[guessed.index, "lot"].map(dict(zip(lots, words, strict=True)))
    assert sealed.sum() > 100
    assert (guessed == truth).mean() < 0.5


def test_another_seed_deals_other_lots():
    rows = made(0)
    first, second = (dealt(rows, seed=seed).set_index("lot")["role"] for seed in (0, 1))
    assert (first != second.reindex(first.index)).any()


def test_a_plant_can_be_named_for_rows_that_name_none():
    assert set(dealt(made(0).drop(columns="plant"), plant="werk-9")["plant"]) == {"werk-9"}


def test_rows_without_a_class_are_dealt_too():
    rows = made(0).assign(**{"class": None})
    assert set(dealt(rows)["role"]) == set(ROLES)


def test_dealing_again_changes_nothing():
    rows = made(0)
    record = dealt(rows)
    assert digest(dealt(rows, before=record)) == digest(record)


def test_other_shares_are_respected():
    rows = made(0, num_lots=200)
    shares = Shares(train=0.25, select=0.25, decide=0.25, test=0.25)
    record = deal(rows, assignments=None, shares=shares, seed=0, now=NOW)
    assert realised(with_roles(rows, record)).set_index(["class", "role"]).loc["*", "share"].between(0.2, 0.3).all()


# --- the record ------------------------------------------------------------------------------------------------------


def test_an_empty_record_has_the_name_of_the_beginning():
    assert digest(no_assignments()) == GENESIS
    verify(no_assignments())


@pytest.mark.parametrize(
    ("column", "value"),
    [("role", "train"), ("lot", "other"), ("plant", "werk-2"), ("generation", 7), ("prev", "0" * 64)],
)
def test_a_changed_cell_breaks_the_chain(column, value):
    record = dealt(made(0))
    row = int(np.flatnonzero(record["role"] == "test")[3])
    record.loc[row, column] = value
    with pytest.raises(InputError, match=f"row {row} .*chain"):
        verify(record)


def test_a_removed_row_breaks_the_chain():
    with pytest.raises(InputError, match="row 10"):
        verify(dealt(made(0)).drop(index=10))


def test_swapped_rows_break_the_chain():
    record = dealt(made(0))
    with pytest.raises(InputError, match="row 0"):
        verify(record.iloc[[1, 0, *range(2, len(record))]])


def test_a_cut_end_is_found_by_the_digest_of_an_earlier_run():
    record = dealt(made(0))
    verify(record, contains=digest(record.head(10)))
    with pytest.raises(InputError, match="cut off"):
        verify(record.head(10), contains=digest(record))


@pytest.mark.parametrize(("lot", "role"), [("werk-1-0", "train"), ("brand new", "winner")])
def test_a_second_role_or_an_unknown_one_is_found_even_in_a_sound_chain(lot, role):
    record = dealt(made(0))
    link = hashlib.sha256(f"{digest(record)}|{lot}|{role}|1|werk-1".encode()).hexdigest()
    forged = pd.concat(
        [record, record.tail(1).assign(lot=lot, role=role, prev=digest(record), digest=link)], ignore_index=True
    )
    with pytest.raises(InputError, match="twice or to no known role"):
        verify(forged)


def test_a_tampered_record_is_not_dealt_onto():
    record = dealt(made(0))
    record.loc[0, "role"] = "select" if record.loc[0, "role"] != "select" else "test"
    with pytest.raises(InputError, match=r"assignments\.parquet"):
        dealt(made(0), before=record)


def test_a_record_survives_storage():
    record = dealt(made(0))
    again = from_parquet(to_parquet(record))
    verify(again, contains=digest(record))
    assert to_parquet(again) == to_parquet(record)
    assert again["dealt_at"].iloc[0] == pd.Timestamp(NOW)


def test_a_time_without_a_zone_is_taken_as_utc():
    record = deal(made(0), assignments=None, shares=Shares(), seed=0, now=NOW.replace(tzinfo=None))
    assert record["dealt_at"].iloc[0] == pd.Timestamp(NOW)


def test_a_new_generation_holds_only_new_lots():
    old, new = made(0), made(1, prefix="new-")
    first = dealt(old)
    second = dealt(pd.concat([old, new]), before=first, is_new_generation=True)
    assert generation_of(first, plant="werk-1") == 1
    assert generation_of(second, plant="werk-1") == 2
    assert generation_of(second, plant="werk-2") == 1
    assert set(second.loc[second["generation"] == 2, "lot"]) == set(new["lot"])
    third = dealt(made(2, prefix="newer-"), before=second)
    assert set(third["generation"].tail(60)) == {2}


@pytest.mark.parametrize("seed", range(5))
def test_a_new_generation_is_dealt_at_its_own_shares_whatever_the_first_holds(seed):
    old = deal(
        made(seed), assignments=None, shares=Shares(train=0.97, select=0.01, decide=0.01, test=0.01), seed=seed, now=NOW
    )
    new = made(seed + 50, prefix="new-")
    rows = with_roles(new, dealt(pd.concat([made(seed), new]), before=old, seed=seed, is_new_generation=True))
    assert rows["role"].value_counts(normalize=True)["test"] == pytest.approx(0.2, abs=0.05)
    assert set(rows.loc[rows["class"] == "rare", "role"]) == set(ROLES)


def test_too_few_new_lots_are_no_generation():
    first = dealt(made(0))
    few = made(1, num_lots=5, prefix="new-")
    few = few[few["lot"].isin(few["lot"].unique()[:3])]
    with pytest.raises(InputError, match="plant werk-1: 3 new lots are too few for a new generation"):
        dealt(pd.concat([made(0), few]), before=first, is_new_generation=True)


# --- by time ---------------------------------------------------------------------------------------------------------

BY_TIME = Shares(order="time")


def timed(seed: int, *, start: str = "2026-01-01", **options) -> pd.DataFrame:
    """Rows whose lots follow one another by the day, in an order that their names do not tell."""
    rows = made(seed, **options)
    lots = np.random.default_rng(seed).permutation(rows["lot"].unique())
    day = {lot: pd.Timestamp(start, tz="UTC") + pd.Timedelta(days=i) for i, lot in enumerate(lots)}
    return rows.assign(captured_at=rows["lot"].map(day))


@pytest.mark.parametrize("seed", range(5))
def test_by_time_the_oldest_train_and_the_newest_test_at_their_shares(seed):
    rows = timed(seed)
    rows = with_roles(rows, deal(rows, assignments=None, shares=BY_TIME, seed=0, now=NOW))
    spans = rows.groupby("role")["captured_at"].agg(["min", "max"])
    for older, newer in itertools.pairwise(ROLES):
        assert spans.loc[older, "max"] < spans.loc[newer, "min"]
    shares = rows["role"].value_counts(normalize=True)
    assert all(abs(shares[role] - getattr(BY_TIME, role)) < 0.05 for role in ROLES)


def test_by_time_lots_that_come_later_move_none_and_are_split_among_themselves():
    first = deal(timed(0), assignments=None, shares=BY_TIME, seed=0, now=NOW)
    rows = pd.concat([timed(0), timed(1, start="2026-06-01", prefix="new-")])
    second = deal(rows, assignments=first, shares=BY_TIME, seed=0, now=NOW)
    pd.testing.assert_frame_equal(second.iloc[: len(first)], first)
    assert set(second["role"].iloc[len(first) :]) == set(ROLES)


def test_by_time_a_lot_without_one_is_an_error_that_names_it():
    rows = timed(0)
    rows.loc[rows["lot"] == "werk-1-7", "captured_at"] = pd.NaT
    with pytest.raises(InputError, match=r"plant werk-1.*captured_at.*lot werk-1-7 has no time"):
        deal(rows, assignments=None, shares=BY_TIME, seed=0, now=NOW)


@pytest.mark.parametrize("seed", range(10))
def test_sixty_lots_and_then_four_hundred_in_three_imports_leave_each_class_in_every_role(seed):
    rows, record = made(seed), None
    later = np.array_split(np.random.default_rng(seed).permutation(400), 3)
    more = made(seed + 100, num_lots=400, prefix="late-")
    for names in [None, *later]:
        if names is not None:
            lots = more["lot"].unique()[names]
            rows = pd.concat([rows, more[more["lot"].isin(lots)]]).sample(frac=1, random_state=seed)
        before, record = record, dealt(rows, seed=seed, before=record)
        if before is not None:
            pd.testing.assert_frame_equal(record.iloc[: len(before)], before)
        assert record["lot"].is_unique
        found = with_roles(rows, record)
        for name, group in found.groupby("class"):
            assert set(group["role"]) == set(ROLES), name
        assert found["role"].value_counts(normalize=True)["test"] == pytest.approx(0.2, abs=0.05)


# --- sealing ---------------------------------------------------------------------------------------------------------


def test_sealed_rows_keep_their_pixels_and_lose_their_answers():
    rows = with_roles(made(0), dealt(made(0)))
    open_rows, sealed_rows = seal(rows)
    is_test = rows["role"] == "test"
    assert open_rows.loc[is_test, ANSWERS].isna().all(axis=None)
    pd.testing.assert_frame_equal(open_rows[~is_test], rows[~is_test])
    assert open_rows["frame"].tolist() == rows["frame"].tolist()
    assert sealed_rows["class"].tolist() == rows.loc[is_test, "class"].tolist()
    assert is_test.sum() > 0


@pytest.mark.parametrize("column", ["other:defect_name", "smallest_box"])
def test_what_is_kept_of_test_rows_for_the_audit_alone_is_neither_open_nor_sealed(column):
    rows = with_roles(made(0), dealt(made(0)))
    is_test = rows["role"] == "test"
    open_rows, sealed_rows = seal(rows.assign(**{column: rows["class"]}))
    assert open_rows.loc[is_test, column].isna().all()
    assert open_rows.loc[~is_test, column].tolist() == rows.loc[~is_test, "class"].tolist()
    assert column not in sealed_rows


def test_answers_come_back_to_the_rows_they_belong_to():
    rows = with_roles(made(0), dealt(made(0)))
    open_rows, sealed_rows = seal(rows)
    shuffled = sealed_rows.sample(frac=1, random_state=0)
    opened = unseal(open_rows, shuffled)
    pd.testing.assert_frame_equal(opened, rows[rows["role"] == "test"])


def test_what_the_existing_inspection_said_of_test_rows_is_sealed_with_their_answers():
    plain = with_roles(made(0), dealt(made(0)))
    rows = plain.assign(incumbent=np.where(plain["class"] == "ok", "ok", "reject"))
    is_test = rows["role"] == "test"
    open_rows, sealed_rows = seal(rows)
    assert open_rows.loc[is_test, SEALED].isna().all(axis=None)
    assert open_rows.loc[~is_test, "incumbent"].tolist() == rows.loc[~is_test, "incumbent"].tolist()
    pd.testing.assert_frame_equal(unseal(open_rows, sealed_rows), rows[is_test])
    of_before = unseal(open_rows, sealed_rows.drop(columns="incumbent"))
    assert of_before["incumbent"].isna().all()
    assert of_before["class"].tolist() == rows.loc[is_test, "class"].tolist()


@pytest.mark.parametrize("column", ["frame", "sha256"])
def test_a_test_row_without_its_own_answer_is_an_error(column):
    open_rows, sealed_rows = seal(with_roles(made(0), dealt(made(0))))
    sealed_rows.loc[0, column] = "another"
    with pytest.raises(InputError, match="no sealed answer"):
        unseal(open_rows, sealed_rows)


def test_a_lot_that_was_never_dealt_is_an_error():
    with pytest.raises(InputError, match="new-werk-1-0 was never dealt"):
        with_roles(made(0, prefix="new-"), dealt(made(0)))


def test_realised_counts_lots_parts_and_rows():
    rows = pd.DataFrame(
        {
            "lot": ["a", "a", "b", "c"],
            "part_id": ["p", "p", "q", "r"],
            "frame": list("1234"),
            "class": ["ok", "ok", "ok", "dent"],
            "role": ["train", "train", "test", "train"],
        }
    )
    table = realised(rows).set_index(["class", "role"])
    assert table.loc[("ok", "train"), ["lots", "parts", "rows"]].tolist() == [1, 1, 2]
    assert table.loc[("ok", "train"), "share"] == pytest.approx(2 / 3)
    assert table.loc[("dent", "test"), "rows"] == 0
    assert table.loc[("*", "train"), "rows"] == 3


# --- hashing ---------------------------------------------------------------------------------------------------------


def test_hashes_of_different_purposes_are_independent():
    keys = [f"part-{i}" for i in range(4000)]
    split, canary = (np.array([unit_hash(purpose, "x", key) for key in keys]) for purpose in ("split", "canary"))
    assert abs(np.corrcoef(split, canary)[0, 1]) < 0.05
    assert abs(split.mean() - 0.5) < 0.02
    assert split.min() >= 0
    assert split.max() < 1
