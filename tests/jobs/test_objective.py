"""What the epoch loop minimises, and over which rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.losses import partial_cross_entropy
from jobs.objective import Objective, portions
from jobs.recipe import Recipe
from jobs.supervision import Supervision
from tests.jobs.toys import toy_run


def objective(run: dict[str, Any], **settings: Any) -> Objective:
    recipe = Recipe(**settings)
    given = {name: run[name] for name in ("leaf_sets", "leaves")}
    more = {"max_class_weight": recipe.max_class_weight, "is_balanced": recipe.balance != "none"}
    return Objective(Supervision(run["data"], **given, **more), recipe=recipe)


@pytest.fixture
def run(tmp_path) -> dict[str, Any]:
    """Two plants of unlike size, at one of which cracks are rare."""
    run = toy_run(tmp_path, "north", "south", num_train=120)
    north = run["data"].plants[0]
    cracks = north.rows.index[north.rows["label"] == "crack"]
    north.rows.loc[cracks[10:], ["label", "truth"]] = "good"
    return run


def test_by_default_an_epoch_is_every_row_once_and_the_loss_the_weighted_likelihood(run):
    goal = objective(run)
    order = goal.order(np.random.default_rng(3))
    assert order.tolist() == np.random.default_rng(3).permutation(goal.taught.train_ids).tolist()
    at, logits = torch.from_numpy(order[:16]), torch.randn(16, 2)
    taught = goal.taught
    plain = partial_cross_entropy(logits, taught.targets[at], taught.mask[at], taught.weights[at])
    assert torch.equal(goal(logits, at), plain)


def test_sampling_draws_rows_as_often_as_they_weigh_and_then_they_weigh_alike(run):
    goal = objective(run, balance="sampling")
    ids = goal.taught.train_ids
    drawn = np.concatenate([goal.order(np.random.default_rng(seed)) for seed in range(400)])
    assert len(drawn) == 400 * len(ids)
    often = np.bincount(drawn, minlength=drawn.max() + 1)[ids] / 400
    weights = goal.taught.weights[torch.from_numpy(ids)].numpy()
    for weight in np.unique(weights):
        assert often[weights == weight].mean() == pytest.approx(weight, rel=0.05)
    assert set(goal.weights.tolist()) == {1.0}
    assert len(np.unique(weights)) > 2


def test_the_same_epoch_draws_the_same_rows(run):
    goal = objective(run, balance="sampling")
    first, again, other = (goal.order(np.random.default_rng(seed)).tolist() for seed in (5, 5, 6))
    assert first == again != other


def test_without_balance_every_row_weighs_one(run):
    assert set(objective(run, balance="none").weights.tolist()) == {1.0}


@pytest.mark.parametrize("loss", ["weighted", "focal", "cost"])
def test_sampling_and_weights_have_the_same_mean_loss(run, loss):
    weighing, drawing = objective(run, loss=loss), objective(run, loss=loss, balance="sampling")
    ids = weighing.taught.train_ids
    logits = torch.randn(int(ids.max()) + 1, 2, generator=torch.Generator().manual_seed(0))
    drawn = np.concatenate([drawing.order(np.random.default_rng(seed)) for seed in range(400)])
    whole, sampled = (torch.from_numpy(rows) for rows in (ids, drawn))
    expected = float(weighing(logits[whole], whole))
    assert float(drawing(logits[sampled], sampled)) == pytest.approx(expected, rel=0.02)


def test_the_cost_of_a_miss_falls_on_good_leaves_and_of_a_false_alarm_on_the_others(run):
    goal, plain = objective(run, loss="cost", balance="none"), objective(run, balance="none")
    rows = run["data"].column("label")[goal.taught.train_ids]
    for label, sure in (("crack", [30.0, 0.0]), ("good", [0.0, 30.0])):
        at = torch.from_numpy(goal.taught.train_ids[rows == label])
        wrong = torch.tensor([sure]).repeat(len(at), 1)
        assert float(goal(wrong, at) - plain(wrong, at)) == pytest.approx(float(goal.money[at].mean()), rel=1e-4)
        assert float(goal(-wrong, at)) == pytest.approx(0, abs=1e-6)


def test_rows_that_are_not_trained_on_have_no_money(run):
    goal = objective(run, loss="cost")
    assert not goal.money[torch.from_numpy(goal.taught.select_ids)].any()
    assert (goal.money[torch.from_numpy(goal.taught.train_ids)] > 0).all()


@pytest.mark.parametrize(
    ("rows", "accumulate", "sizes"), [(16, 1, [16]), (16, 4, [4] * 4), (10, 3, [4, 3, 3]), (2, 8, [1, 1])]
)
def test_portions_hold_every_row_once(rows, accumulate, sizes):
    parts = list(portions(nn.Linear(1, 1), rows, accumulate=accumulate))
    assert [len(part) for part in parts] == sizes
    assert np.concatenate(parts).tolist() == list(range(rows))
