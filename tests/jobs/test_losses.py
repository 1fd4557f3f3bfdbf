"""Losses over leaves."""

import numpy as np
import torch

from jobs.losses import balanced_weights, label_targets, partial_cross_entropy
from plants.plant import Fleet


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
