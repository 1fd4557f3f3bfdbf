"""Trunk and branches: normalisation inside, frozen below, named by their leaves above."""

from __future__ import annotations

import pytest
import torch

from jobs.backbone import load_backbone
from jobs.compute import KINDS
from jobs.model import CutModel, load_model
from plants.errors import InputError
from plants.plant import Trunk
from tests.jobs.nets import images, model_of

LEAVES = ["ok", "crack", "scale"]


@pytest.fixture(scope="module")
def model():
    return model_of()


def test_the_trunk_normalises_uint8_images_as_the_weights_ask():
    trunk = Trunk(weights="none", size_px=32, cuts=(0, 5), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    x = torch.from_numpy(images())
    found = load_model(trunk).trunk(x)[5]
    expected = (x.permute(0, 3, 1, 2) / 255 - torch.tensor(trunk.mean).view(3, 1, 1)) / torch.tensor(trunk.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_the_trunk_stays_frozen_and_in_evaluation_whatever_it_is_told(model):
    model.trunk.train()
    assert not any(m.training for m in model.trunk.modules())
    assert not any(p.requires_grad for p in model.trunk.parameters())


def test_an_image_has_the_same_activations_alone_and_in_company(model):
    x = torch.from_numpy(images(5))
    alone, together = model.trunk(x[2:3]), model.trunk(x)
    for cut in model.cuts:
        torch.testing.assert_close(alone[cut][0], together[cut][2], atol=1e-5, rtol=1e-5)


def test_stages_are_listed_earliest_first_with_the_head_last_and_hold_every_parameter_once(model):
    branch = model.new_branch(2, LEAVES)
    names = {id(p): n for n, p in branch.named_parameters()}
    stages = [[names[id(p)] for p in stage] for stage in branch.stages()]
    assert len(stages) == 3
    assert all(n.startswith("body.layer3.") for n in stages[0])
    assert all(n.startswith("body.layer4.") for n in stages[1])
    assert stages[2] == ["head.weight", "head.bias"]
    assert sorted(n for stage in stages for n in stage) == sorted(names.values())


def test_a_deeper_branch_has_the_shallower_ones_names_so_that_it_can_start_from_it(model):
    shallow, deep = model.new_branch(1, LEAVES).state_dict(), model.new_branch(2, LEAVES).state_dict()
    assert set(shallow) < set(deep)
    assert all(deep[name].shape == value.shape for name, value in shallow.items())


def test_gradients_reach_every_parameter_of_a_branch_and_the_activation_is_left_alone(model):
    branch = model.new_branch(2, LEAVES)
    activation = torch.randn(4, *model.shapes[2])
    before = activation.clone()
    logits, features = branch(activation)
    assert logits.shape == (4, 3)
    assert features.shape == (4, model.feature_dim)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in branch.parameters())
    assert torch.equal(activation, before)


def test_the_head_follows_the_seed_and_nothing_else(model):
    torch.manual_seed(1)
    first = model.new_branch(0, LEAVES, seed=3)
    torch.manual_seed(2)
    again, other = model.new_branch(0, LEAVES, seed=3), model.new_branch(0, LEAVES, seed=4)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    bound = (6 / (model.feature_dim + len(LEAVES))) ** 0.5
    assert 0.8 * bound < float(first.head.weight.detach().abs().max()) <= bound
    assert not first.head.bias.detach().any()


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_statistics_of_batches_move_in_training_unless_they_are_frozen(model, freeze_norm):
    branch = model.new_branch(1, LEAVES, freeze_norm=freeze_norm).train()
    before = branch.state_dict()["body.layer4.0.bn1.running_mean"].clone()
    branch(torch.randn(8, *model.shapes[1]))
    moved = not torch.equal(branch.state_dict()["body.layer4.0.bn1.running_mean"], before)
    assert moved is not freeze_norm
    assert branch.dropout.training


def test_dropout_acts_in_training_only(model):
    branch = model.new_branch(0, LEAVES, dropout=0.5)
    x = torch.randn(4, model.feature_dim)
    branch.train()
    assert not torch.equal(branch(x)[0], branch(x)[0])
    branch.eval()
    assert torch.equal(branch(x)[0], branch(x)[0])


def test_head_rows_move_by_leaf_name_and_unknown_leaves_stay_as_they_are(model):
    source, target = model.new_branch(0, ["scale", "rust", "ok"], seed=1), model.new_branch(0, LEAVES, seed=2)
    torch.nn.init.normal_(source.head.bias)
    before = target.head.weight.detach().clone()
    found = target.adopt_head(source.head.weight, source.head.bias, source.leaves)
    assert found == ("ok", "scale")
    assert torch.equal(target.head.weight[0], source.head.weight[2])
    assert torch.equal(target.head.bias[2], source.head.bias[0])
    assert torch.equal(target.head.weight[1], before[1])


def test_a_saved_state_gives_the_same_answers_and_one_of_another_cut_is_refused(model):
    first, second = model.new_branch(1, LEAVES, seed=1).eval(), model.new_branch(1, LEAVES, seed=2).eval()
    second.load_state(first.state_dict())
    x = torch.randn(2, *model.shapes[1])
    assert torch.equal(first(x)[0], second(x)[0])
    with pytest.raises(InputError, match="does not fit a branch at cut 2"):
        model.new_branch(2, LEAVES).load_state(first.state_dict())


def test_cuts_that_do_not_exist_or_were_not_allowed_are_refused(model):
    with pytest.raises(InputError, match=r"cut 4 is not among the trunk's cuts \[0, 1, 2\]"):
        model.new_branch(4, LEAVES)
    with pytest.raises(InputError, match="test_resnet has 5 stages, so cut 6 does not exist"):
        model_of(cuts=(0, 6))
    for cuts in ((), (-1, 0)):
        with pytest.raises(InputError, match="cuts must be a list"):
            model_of(cuts=cuts)


def test_a_size_the_backbone_cannot_take_is_refused_by_field():
    with pytest.raises(InputError, match=r"field trunks\.size_px: efficientformer_l1 does not take 64 px"):
        model_of("efficientformer_l1", cuts=(0,), size_px=64)


def test_a_backbone_without_pooling_is_refused():
    with pytest.raises(InputError, match="resnet18 gives no pooled features"):
        model_of("resnet18", cuts=(0,), global_pool="")


def test_the_digest_names_weights_size_and_normalisation():
    def digest(seed=0, **values):
        trunk = Trunk(**{"weights": "none", "size_px": 32, "cuts": (0,), **values})
        return CutModel(trunk, load_backbone(trunk, seed=seed)).weights_digest

    same = digest()
    assert digest() == same == digest(cuts=(0, 1))
    different = [digest(seed=1), digest(size_px=64), digest(mean=(0.4, 0.5, 0.5)), digest(std=(0.4, 0.5, 0.5))]
    assert len({same, *different}) == 5


def test_a_trunk_without_cut_zero_still_knows_its_features():
    assert model_of(cuts=(1,)).feature_dim == 96


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_activations_are_float32_in_every_compute(kind):
    model = model_of()
    model.trunk.compute_in(kind)
    values = model.trunk(torch.from_numpy(images()))
    assert [v.dtype for v in values.values()] == [torch.float32] * 3


def test_a_model_is_a_head_a_branch_or_at_the_deepest_cut_a_net_of_its_own():
    model = model_of(cuts=(0, 1))
    assert [model.tier(cut) for cut in (0, 1, model.max_cut - 1, model.max_cut)] == [
        "head",
        "branch",
        "branch",
        "whole",
    ]
