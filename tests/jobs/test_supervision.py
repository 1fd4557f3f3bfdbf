"""What a run is taught with and judged by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.supervision import Supervision
from tests.jobs.toys import ToyModel, toy_run


def supervision(run) -> Supervision:
    return Supervision(run["data"], leaf_sets=run["leaf_sets"], leaves=run["leaves"], max_class_weight=5)


def select_rows(run, i: int = 0):
    data = run["data"].plants[i]
    return data.rows.loc[data.num_train :]


def test_a_lot_lies_in_one_fold_also_where_several_plants_have_seen_it(tmp_path):
    run = toy_run(tmp_path, "north", "south")
    lots = []
    for i, data in enumerate(run["data"].plants):
        data.rows["lot"] = [f"L{n // (2 + i)}" for n in range(len(data.rows))]
        lots += list(select_rows(run, i)["lot"])
    folds = supervision(run).folds(3)
    assert set(folds) == {0, 1, 2}
    by_lot = {lot: {fold for fold, other in zip(folds, lots, strict=True) if other == lot} for lot in lots}
    assert len(set(lots)) < len(lots) / 2
    assert all(len(found) == 1 for found in by_lot.values())


def test_lots_with_a_rare_defect_are_spread_over_the_folds(tmp_path):
    run = toy_run(tmp_path, num_select=36)
    data = run["data"].plants[0]
    data.rows["lot"] = [f"L{n // 6}" for n in range(len(data.rows))]
    at = select_rows(run).index
    data.rows.loc[at, "label"] = "good"
    rare = [at[1], at[8], at[16]]
    data.rows.loc[rare, "label"] = "crack"
    folds = supervision(run).folds(3)
    assert sorted(folds[np.isin(at, rare)]) == [0, 1, 2]


def test_select_rows_in_running_order_are_judged_as_the_branch_is_plant_by_plant(tmp_path):
    run = toy_run(tmp_path, "north", "south")
    taught = supervision(run)
    branch = ToyModel().new_branch(0, run["leaves"]).eval()
    with torch.inference_mode():
        logits = branch(run["data"].fetch(0, ids=taught.select_ids))[0]
    assert taught.judge_rows(logits) == taught.judge_branch(branch, cut=0)
    assert taught.judge_rows(logits.flip(0)) != taught.judge_branch(branch, cut=0)


@pytest.mark.parametrize("known", [True, False])
def test_a_select_row_weighs_what_a_train_row_of_its_plant_and_class_does(tmp_path, known):
    run = toy_run(tmp_path)
    rows = run["data"].plants[0].rows
    if not known:
        rows.loc[rows["role"] == "train", "label"] = "good"
    taught = supervision(run)
    train, select = taught.train_ids, taught.select_ids
    assert float(taught.weights[train].mean()) == pytest.approx(1, abs=1e-5)
    for label in ("good", "crack"):
        here = taught.weights[select[rows["label"].to_numpy()[select] == label]]
        there = taught.weights[train[rows["label"].to_numpy()[train] == label]]
        assert set(here.tolist()) == (set(there.tolist()) or {1.0})
