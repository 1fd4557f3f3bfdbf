"""What weighting by class does to the other classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jobs.recipe import Recipe
from jobs.reweighting import effects, has_fallen, sentences
from jobs.supervision import Supervision
from jobs.train import fit
from tests.jobs.toys import ToyModel, toy_run


def supervision(run: dict[str, Any]) -> Supervision:
    return Supervision(run["data"], leaf_sets=run["leaf_sets"], leaves=run["leaves"], max_class_weight=5)


def row(found: int, plain: int, *, down: int, up: int) -> dict[str, Any]:
    counts = {"parts": 40, "found": found, "found_plain": plain, "lots_down": down, "lots_up": up}
    return {"plant": "north", "class": "good", **counts}


@pytest.mark.parametrize(
    ("found", "plain", "down", "up", "fallen"),
    [
        (38, 38, 0, 0, False),
        (34, 38, 4, 0, False),
        (33, 38, 5, 0, True),
        (20, 38, 1, 0, False),
        (33, 38, 6, 1, False),
        (32, 38, 7, 1, True),
        (30, 38, 9, 2, True),
        (30, 38, 9, 3, False),
        (38, 33, 0, 5, False),
        (39, 38, 5, 0, False),
    ],
)
def test_a_class_has_fallen_when_more_lots_went_down_than_chance_allows(found, plain, down, up, fallen):
    assert has_fallen(row(found, plain, down=down, up=up)) is fallen


def test_a_fall_is_said_in_counts_with_what_to_do():
    [said] = sentences([row(38, 38, down=0, up=0), row(31, 38, down=6, up=0)])
    assert "plant north" in said
    assert "'good': found in 31 of 40 select parts, without weights in 38 (6 lots down, 0 up)" in said
    assert "lower max_class_weight" in said


def test_counts_are_of_parts_and_their_lots(tmp_path):
    run = toy_run(tmp_path, "north", "south", num_train=8, num_select=12)
    for data in run["data"].plants:
        at = data.rows.index[data.num_train :]
        data.rows.loc[at, ["label", "truth"]] = "good"
        data.rows.loc[at[8:], ["label", "truth"]] = "crack"
        data.rows.loc[at[:3], "lot"] = "first"
    taught = supervision(run)
    all_good = torch.tensor([[9.0, 0.0]]).repeat(24, 1)
    mixed = all_good.clone()
    mixed[[0, 1, 2, 5]] = torch.tensor([0.0, 9.0])
    mixed[[20, 21]] = torch.tensor([0.0, 9.0])
    found = {(r["plant"], r["class"]): r for r in effects(taught, weighted=mixed, plain=all_good)}
    assert found["north", "good"] == {
        **{"plant": "north", "class": "good", "parts": 8, "found": 4, "found_plain": 8, "lots_down": 2, "lots_up": 0}
    }
    assert (found["north", "crack"]["found"], found["north", "crack"]["lots_up"]) == (0, 0)
    south = found["south", "crack"]
    assert (south["parts"], south["found"], south["found_plain"], south["lots_up"]) == (4, 2, 0, 1)


def imbalanced(tmp_path) -> dict[str, Any]:
    """45 cracks of 240 train rows are called so, and the classes overlap."""
    run = toy_run(tmp_path, num_train=240, num_select=160)
    [data] = run["data"].plants
    for view in (0, 1):
        file = data.folder / f"cut0.view{view}.npy"
        features = np.load(file)
        features[:, 0] += np.random.default_rng(view).normal(0, 0.3, len(features)).astype(np.float16)
        np.save(file, features)
    cracks = data.rows.index[(data.rows["label"] == "crack") & (data.rows.index < data.num_train)]
    data.rows.loc[cracks[45:], ["label", "truth"]] = "good"
    return run


def test_weights_that_buy_the_rare_class_are_seen_to_cost_the_other(tmp_path):
    run = imbalanced(tmp_path)
    fitted = fit(ToyModel(), **run, recipe=Recipe(stages=(), views=2, max_class_weight=20), seed=0)
    found = {r["class"]: r for r in fitted.reweighting}
    assert found["crack"]["found"] > found["crack"]["found_plain"]
    assert found["good"]["found"] < found["good"]["found_plain"]
    assert [note for note in fitted.notes if "'good'" in note] == sentences(fitted.reweighting)
    assert has_fallen(found["good"]) == bool(sentences(fitted.reweighting))


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_where_all_rows_weigh_alike_there_is_no_effect(tmp_path, balance):
    recipe = Recipe(stages=(), views=2, balance=balance, max_class_weight=1)
    assert fit(ToyModel(), **imbalanced(tmp_path), recipe=recipe, seed=0).reweighting == []


def test_neither_head_has_seen_what_it_is_judged_on(tmp_path):
    run = imbalanced(tmp_path)
    kept = {}
    for learned in (True, False):
        rows = run["data"].plants[0].rows
        rows["is_learned"] = learned | (rows["role"] == "train")
        kept[learned] = fit(ToyModel(), **run, recipe=Recipe(stages=(), views=2), seed=0)
    assert kept[True].reweighting == kept[False].reweighting != []
    assert not torch.equal(kept[True].state["head.weight"], kept[False].state["head.weight"])
