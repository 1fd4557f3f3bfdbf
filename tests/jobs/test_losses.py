"""Losses over leaves."""

import numpy as np
import pytest
import torch

from jobs.losses import (
    balanced_weights,
    expected_cost,
    focal,
    label_targets,
    money_at_stake,
    partial_cross_entropy,
    surprise,
    surprise_and_slope,
)
from plants.plant import Fleet, Plant


def steel() -> Fleet:
    return Fleet.model_validate(
        {
            "fleet": "steel",
            "store": "unused",
            "plants": [
                {"name": "coarse", "images": "a", "classes": {"scale": "scale", "crazing": "crazing"}},
                {
                    "name": "fine",
                    "images": "b",
                    "classes": {
                        "plate": "scale",
                        "heat": "scale",
                        "red": {"fleet": "red", "state": "unannotated"},
                    },
                },
            ],
        }
    )


@pytest.mark.parametrize("scale", [1.0, 200.0], ids=["ordinary logits", "where exp would overflow"])
def test_the_slope_of_surprise_is_its_gradient(scale):
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(50, 6, generator=generator)).double().requires_grad_()
    mask = torch.rand(50, 6, generator=generator) > 0.3
    targets = mask & (torch.rand(50, 6, generator=generator) > 0.5)
    taught = targets.any(1)
    logits_, mask, targets = logits[taught], mask[taught], targets[taught]
    lost = surprise(logits_, targets, mask)
    (expected,) = torch.autograd.grad(lost.sum(), logits_)
    found, slope = surprise_and_slope(logits_.detach().T, (~targets).T, (~mask).T)
    torch.testing.assert_close(found, lost.detach())
    torch.testing.assert_close(slope.T, expected)


def test_a_coarse_label_costs_nothing_once_its_leaves_hold_all_the_mass():
    logits = torch.tensor([[0.0, 20.0, 20.0]])
    targets = torch.tensor([[False, True, True]])
    loss = partial_cross_entropy(logits, targets, torch.ones(1, 3, dtype=torch.bool), torch.ones(1))
    assert float(loss) < 1e-6


def test_a_single_leaf_label_is_plain_cross_entropy():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 5
    targets = torch.nn.functional.one_hot(labels, 5).bool()
    ours = partial_cross_entropy(logits, targets, torch.ones(8, 5, dtype=torch.bool), torch.ones(8))
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(logits, labels))


def test_a_class_that_was_not_annotated_neither_costs_nor_learns():
    logits = torch.tensor([[1.0, 0.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    partial_cross_entropy(logits, torch.tensor([[True, False, False]]), mask, torch.ones(1)).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 2]) == 0.0
    assert float(logits.grad[0, 0]) < 0


def test_a_plant_that_says_only_scale_labels_all_leaves_of_scale():
    fleet = steel()
    leaves = fleet.leaves(fleet.plants)
    plant = fleet.plant("coarse")
    targets, mask = label_targets(["scale"], plant=plant, leaf_sets=fleet.leaf_sets(plant), leaves=leaves)
    assert {leaf for leaf, hit in zip(leaves, targets[0], strict=True) if hit} == {"scale/plate", "scale/heat"}
    assert mask.all()


def test_leaves_that_a_plant_does_not_annotate_are_masked_there():
    fleet = steel()
    leaves = fleet.leaves(fleet.plants)
    plant = fleet.plant("fine")
    _, mask = label_targets(["heat"], plant=plant, leaf_sets=fleet.leaf_sets(plant), leaves=leaves)
    assert [leaf for leaf, used in zip(leaves, mask[0], strict=True) if not used] == ["red"]


def test_plants_weigh_alike_and_rare_classes_more_up_to_the_limit():
    labels = ["ok"] * 100 + ["crack"] + ["ok"] * 10
    plants = ["big"] * 101 + ["small"] * 10
    weights = balanced_weights(labels, plants=plants, max_class_weight=5)
    assert np.isclose(weights[:101].sum(), weights[101:].sum())
    assert np.isclose(weights.mean(), 1)
    assert np.isclose(weights[100] / weights[0], 5)


def partial_labels():
    """Logits [64, 4], labels of one to three leaves, masks that leave one out here and there, weights."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 4, generator=draw) * 3
    targets = torch.rand(64, 4, generator=draw) < 0.4
    targets[torch.arange(64), torch.arange(64) % 4] = True
    targets[:, 3] &= ~targets[:, :3].any(1)
    mask = targets | (torch.rand(64, 4, generator=draw) < 0.8)
    return logits, targets, mask, torch.rand(64, generator=draw) + 0.5


def test_focal_loss_without_focus_is_the_weighted_one():
    logits, targets, mask, weights = partial_labels()
    plain = partial_cross_entropy(logits, targets, mask, weights)
    torch.testing.assert_close(focal(logits, targets, mask, weights, gamma=0), plain)


@pytest.mark.parametrize(
    ("p", "gamma", "expected"), [(0.9, 2, 0.001054), (0.5, 2, 0.1733), (0.1, 2, 1.8651), (0.9, 1, 0.01054)]
)
def test_focal_loss_of_a_coarse_label_by_the_probability_of_its_leaves(p, gamma, expected):
    logits = torch.log(torch.tensor([[1 - p, p / 3, 2 * p / 3, 5.0]]))
    targets, mask = torch.tensor([[False, True, True, False]]), torch.tensor([[True, True, True, False]])
    assert float(focal(logits, targets, mask, torch.ones(1), gamma=gamma)) == pytest.approx(expected, rel=1e-3)


def test_expected_cost_is_the_money_times_the_probability_among_annotated_leaves():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 7.0], [0.1, 0.6, 0.3, 7.0]]))
    mask = torch.tensor([[True, True, True, False]]).repeat(2, 1)
    wrong = torch.tensor([[False, True, True, True], [True, False, False, False]])
    cost = expected_cost(logits, wrong, mask, torch.tensor([2.0, 30.0]))
    assert float(cost) == pytest.approx((2 * 0.5 + 30 * 0.1) / 2)


def test_no_loss_moves_a_leaf_that_is_not_annotated_nor_breaks_on_certainty():
    _, targets, mask, weights = partial_labels()
    for scale in (1.0, 1e4):
        for gamma in (0.0, 0.5, 2.0):
            logits = (partial_labels()[0] * scale).requires_grad_()
            loss = focal(logits, targets, mask, weights, gamma=gamma) + expected_cost(logits, ~targets, mask, weights)
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(logits.grad).all()
            assert not logits.grad[~mask].any()


def test_where_nothing_wrong_is_annotated_a_row_costs_nothing():
    logits = torch.randn(1, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    cost = expected_cost(logits, ~mask, mask, torch.ones(1))
    cost.backward()
    assert cost.item() == 0
    assert not logits.grad.any()


def works(name: str, **costs) -> Plant:
    classes = {"good": "ok", "crack": "crack", "pit": "pit"}
    return Plant.model_validate({"name": name, "images": "x", "classes": classes, "ok": ["good"], "costs": costs})


def test_a_row_stands_for_its_part_of_the_line_and_its_class_costs_what_the_plant_says():
    plant = works("w", miss=1000, miss_by_class={"pit": 4000}, false_alarm=100, defect_rate=[0.02, 0.01, 0.1])
    money = money_at_stake(["good"] * 6 + ["crack", "pit"], plants=[plant] * 8)
    assert money[7] / money[6] == pytest.approx(4)
    assert money[6] / money[0] == pytest.approx((0.1 * 1000 / 2) / (0.9 * 100 / 6))
    passing, rejecting = money[6:].sum() / 8, money[:6].sum() / 8
    assert min(passing, rejecting) == pytest.approx(1)


def test_plants_count_alike_in_money_whatever_their_rows_and_prices():
    big, small = works("big", miss=9e6, false_alarm=1e6), works("small")
    labels = ["good"] * 90 + ["crack"] * 10 + ["good", "pit"]
    money = money_at_stake(labels, plants=[big] * 100 + [small] * 2)
    assert min(money[:90].sum(), money[90:100].sum()) == pytest.approx(102 / 2)
    assert min(money[100], money[101]) == pytest.approx(102 / 2)


def test_surprise_is_what_a_label_of_all_leaves_never_causes():
    logits, _, mask, _ = partial_labels()
    assert torch.equal(surprise(logits, mask, mask), torch.zeros(64))
