"""The cut is exact for families of backbones that have little in common, and says so where it cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from jobs.cut import CannotCut, Cutter, Stages, is_batch_norm
from plants.errors import InputError
from tests.jobs.nets import images, model_of

FAMILIES = {
    "test_resnet": 5,
    "resnet18": 5,
    "mobilenetv2_035": 8,
    "mobilenetv3_small_100": 7,
    "efficientnet_b0": 8,
    "convnext_atto": 5,
    "vit_tiny_patch16_224": 13,
}


SLOW = {"vit_tiny_patch16_224", "mobilenetv3_small_100", "efficientnet_b0"}


@pytest.mark.parametrize(
    ("backbone", "num_stages"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if pair[0] in SLOW else []) for pair in FAMILIES.items()],
)
@pytest.mark.slow
def test_trunk_and_branch_equal_the_whole_backbone_at_every_cut(backbone, num_stages):
    model = model_of(backbone, cuts=tuple(range(num_stages + 1)))
    x = torch.from_numpy(images(2))
    whole, activations = model.whole(x), model.trunk(x)
    assert whole.std() > 0.01
    for cut in model.cuts:
        branch = model.new_branch(cut, ["a", "b"]).eval()
        with torch.no_grad():
            _, features = branch(activations[cut])
        assert (features - whole).abs().max() <= 1e-6 * whole.abs().max()


@pytest.mark.parametrize(
    ("backbone", "above", "below"),
    [
        ("test_resnet", ("layer4.",), ("conv1", "bn1", "layer1.", "layer2.", "layer3.")),
        ("mobilenetv2_035", ("blocks.6.", "conv_head.", "bn2."), ("conv_stem.", "bn1.", "blocks.5.")),
        ("mobilenetv3_small_100", ("blocks.5.", "conv_head."), ("conv_stem.", "bn1.", "blocks.4.")),
        ("convnext_atto", ("stages.3.", "head.norm."), ("stem.", "stages.2.")),
        ("vit_tiny_patch16_224", ("blocks.11.", "norm."), ("cls_token", "pos_embed", "patch_embed.", "blocks.10.")),
    ],
)
def test_the_last_stage_holds_its_own_parameters_and_statistics_and_no_others(backbone, above, below):
    model = model_of(backbone, cuts=(1,))
    branch, trunk = model.new_branch(1, ["a"]), model.trunk.below
    in_branch = set(branch.body.state_dict())
    in_trunk = set(trunk.state_dict())
    assert in_branch
    assert all(name.startswith(above) for name in in_branch)
    assert not any(name.startswith(above) for name in in_trunk)
    for prefix in below:
        assert any(name.startswith(prefix) for name in in_trunk)
    assert in_branch | in_trunk == set(model.backbone.state_dict())


def test_cut_zero_is_the_pooled_features_and_the_deepest_cut_is_the_image_itself():
    model = model_of(cuts=(0, 5))
    assert model.shapes == {0: (96,), 5: (3, 32, 32)}


def test_what_remains_of_the_classifiers_group_counts_with_the_stage_below_it():
    model = model_of("convnext_atto", cuts=(0,))
    stages = Stages(model.backbone)
    assert stages.of["head.norm.weight"] == stages.of["stages.3.blocks.0.conv_dw.weight"] == stages.num - 1


def test_a_branch_is_a_copy_so_that_training_it_leaves_the_trunk_and_other_branches_alone():
    model = model_of(cuts=(1,))
    first, second = model.new_branch(1, ["a"]), model.new_branch(1, ["a"])
    before = copy.deepcopy(model.backbone.state_dict())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    first(torch.randn(4, *model.shapes[1]))
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert not torch.equal(first.head.weight, second.head.weight)


def test_a_backbone_where_several_values_cross_is_refused_with_the_choice_that_works():
    with pytest.raises(InputError, match=r"xcit_nano_12_p16_224 cannot be cut: 3 values cross.*Use cuts: \[0\]"):
        model_of("xcit_nano_12_p16_224", cuts=(0, 3))
    assert model_of("xcit_nano_12_p16_224", cuts=(0,)).shapes[0] == (128,)


def test_a_forward_that_branches_on_values_is_refused_in_words():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(CannotCut, match=r"torch\.fx cannot follow"):
        Cutter(Moody())


def test_batch_norms_of_timm_are_recognised_and_layer_norms_are_not():
    resnet, convnext = model_of("mobilenetv2_035", cuts=(0,)), model_of("convnext_atto", cuts=(0,))
    assert any(is_batch_norm(m) for m in resnet.backbone.modules())
    assert not any(is_batch_norm(m) for m in convnext.backbone.modules())
