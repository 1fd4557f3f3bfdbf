"""Adapters: what is pretrained stands still, the merged branch is the adapted one, a small file makes it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from jobs import lora
from jobs.activations import RunData
from jobs.compress import BranchExporter, agrees, parity
from jobs.model import Branch, load_model
from jobs.recipe import Recipe, Stage
from jobs.schedule import rate_groups
from jobs.train import Checkpoints, Fitted, Parent, World, fit, load_parent
from plants.errors import InputError
from plants.plant import Trunk
from tests.jobs.nets import images, model_of
from tests.jobs.toys import toy_run

LEAVES = ("ok", "dent", "scratch")
BACKBONES = {
    "convolutions": ("test_resnet", 2, 64, {}),
    "whole convolutional model": ("test_resnet", 5, 64, {}),
    "whole model padded as TensorFlow does": ("mobilenetv2_035", 8, 64, {"pad_type": "same"}),
    "transformer": ("vit_tiny_patch16_224", 2, 32, {}),
    "whole transformer": ("vit_tiny_patch16_224", 13, 32, {}),
    "convolutions of another kind": ("test_nfnet", 1, 64, {}),
}
STAGES = tuple(Stage(cut=cut, epochs=4, lr_backbone=0.01) for cut in (1, 2))
RECIPE = Recipe(stages=STAGES, views=2, dropout=0, lora_rank=4)
FIRST = RECIPE.model_copy(update={"stages": RECIPE.stages[:1]})
TRUNK = Trunk(size_px=32, cuts=(0, 1, 2))


class Killed(Exception):
    """Stands for a kill -9 between two epochs."""


@torch.no_grad()
def adapted(branch: Any, activation: torch.Tensor, *, rank: int = 4) -> lora.Choice:
    """The branch has adapters that do something."""
    chosen = lora.choose(branch, rank=rank, sample=activation[:1])
    lora.attach(branch, rank=rank, layers=chosen.layers)
    generator = torch.Generator().manual_seed(0)
    for name, value in branch.named_parameters():
        if ".lora_B." in name:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    branch.eval()
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_merged_branch_answers_as_the_adapted_one_in_torch_as_a_file_and_from_its_adapter(kind, tmp_path):
    backbone, cut, size_px, options = BACKBONES[kind]
    model = model_of(backbone, cuts=(0, 1, cut) if cut > 1 else (0, 1), size_px=size_px, **options)
    activation = model.trunk(torch.from_numpy(images(3, size_px=size_px)))[cut].clone()
    branch = model.new_branch(cut, LEAVES).eval()
    plain = branch(activation)[1].detach()
    adapted(branch, activation)
    expected = branch(activation)[0].detach()
    moved = (branch(activation)[1].detach() - plain).norm() / plain.norm()
    assert moved > 1e-3, "adapters that do nothing prove nothing"
    adapter, state = lora.taken(branch)
    merged, grown = model.new_branch(cut, LEAVES).eval(), model.new_branch(cut, LEAVES, seed=9).eval()
    merged.load_state(state)
    lora.apply(grown, lora.pack(adapter, words={"rank": 4}))
    for found in (branch, merged, grown):
        torch.testing.assert_close(found(activation)[0].detach(), expected, atol=1e-5, rtol=1e-5)
    if not kind.startswith("whole"):
        BranchExporter(model, cut).write(merged, tmp_path / "branch.onnx")
        assert agrees(parity(merged, tmp_path / "branch.onnx", activation.numpy()))


NORMED = ("conv1", "conv2", "conv2b", "conv3")
"""Convolutions that take their weights' mean away each time."""


@pytest.mark.parametrize(
    ("backbone", "left"),
    [
        ("mobilenetv2_035", ("blocks.6.0.conv_dw",)),
        ("test_nfnet", ("final_conv", *(f"stages.3.0.{c}" for c in NORMED), "stages.3.0.downsample.conv")),
        ("test_byobnet", ()),
    ],
)
def test_depthwise_convolutions_and_layers_with_weights_of_their_own_kind_are_left_alone_and_named(backbone, left):
    model = model_of(backbone, cuts=(0, 1), size_px=64)
    chosen = lora.choose(model.new_branch(1, LEAVES), rank=4, sample=torch.zeros(1, *model.shapes[1]))
    assert chosen.left == left
    assert chosen.layers
    assert all(name in chosen.words for name in left)


class Past(nn.Module):
    """A linear layer that is called, and one whose weight is read past its call, as some transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.scattered = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(nn.functional.linear(x, self.read.weight, self.read.bias))


def branch_of(body: nn.Module, *, feature_dim: int = 32) -> Branch:
    names = dict.fromkeys(dict(body.named_parameters()), 0)
    return Branch(
        body, cut=1, leaves=LEAVES, feature_dim=feature_dim, stage_of=names, seed=0, dropout=0.0, freeze_norm=True
    )


def test_an_adapter_lies_only_where_it_takes_part_in_the_forward_pass():
    chosen = lora.choose(branch_of(Past()), rank=4, sample=torch.zeros(1, 32))
    assert (chosen.layers, chosen.left) == (("called",), ("read", "scattered"))


def test_a_layer_that_shares_the_end_of_its_name_with_an_adapted_one_gets_no_adapter():
    body = nn.Sequential()
    body.add_module("conv", nn.Conv2d(32, 32, 1))
    body.add_module("inner", nn.Sequential())
    body.inner.add_module("conv", nn.Conv2d(32, 32, 3, padding=1, groups=32))
    branch = branch_of(body)
    lora.attach(branch, rank=4, layers=["conv"])
    assert type(branch.body.inner.conv) is nn.Conv2d


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(32, 32, 3, padding=1, groups=4),
        nn.Conv2d(32, 4, 1),
        nn.Conv1d(32, 32, 1),
    ],
    ids=["dilated", "reflected", "grouped", "no larger than its adapter", "of one dimension"],
)
def test_where_no_layer_can_be_adapted_one_line_says_what_to_do(layer):
    body = nn.Sequential(
        layer, nn.AdaptiveAvgPool2d(1) if layer.weight.ndim == 4 else nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    branch, sample = (
        branch_of(body, feature_dim=len(layer.weight)),
        torch.zeros(1, 32, *([8] * (layer.weight.ndim - 2))),
    )
    with pytest.raises(
        InputError, match=r"field lora_rank: none of the 1 layers above cut 1 .* rank 4\. Leave lora_rank out"
    ):
        lora.choose(branch, rank=4, sample=sample)
    assert not layer._forward_hooks


def test_a_recipe_is_refused_whose_rank_is_too_much_for_every_layer_of_the_trunks_cut():
    model = model_of("test_nfnet", cuts=(0, 1), size_px=64)
    stages = (Stage(cut=1),)
    lora.check_adapters(model, recipe=Recipe(stages=stages))
    lora.check_adapters(model, recipe=Recipe(stages=stages, lora_rank=4))
    with pytest.raises(InputError, match=r"lora_rank: none of the 8 layers above cut 1 can have an adapter of rank 32"):
        lora.check_adapters(model, recipe=Recipe(stages=stages, lora_rank=32))


@pytest.mark.parametrize("data", [b"nonsense", lora.pack({"head.bias": torch.zeros(3)}, words={})])
def test_a_file_that_is_no_adapter_of_the_branch_is_refused_by_name(data):
    with pytest.raises(InputError, match=r"file adapter.safetensors: is not"):
        lora.apply(branch_of(nn.Linear(32, 32)), data)


def test_only_adapters_and_head_learn_each_at_its_rate():
    branch = branch_of(nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)))
    lora.attach(branch, rank=4, layers=["0"])
    names = {id(value): name for name, value in branch.named_parameters()}
    groups = rate_groups(branch, stage=Stage(cut=1, lr_head=2e-3, lr_backbone=5e-3), recipe=RECIPE)
    assert {group["lr"]: {names[id(value)] for value in group["params"]} for group in groups} == {
        2e-3: {"head.weight", "head.bias"},
        5e-3: {"body.0.lora_A.default.weight", "body.0.lora_B.default.weight"},
    }


@pytest.fixture(scope="module")
def model():
    return load_model(TRUNK)


@torch.inference_mode()
def real_run(folder: Path, model: Any) -> dict[str, Any]:
    """A run on noise, seen by the embedded trunk. `select` repeats `train`: what learns more of it by heart wins."""
    run = toy_run(folder, num_train=192, num_select=192)
    (data,) = run["data"].plants
    rows = data.rows
    for column in ("label", "truth"):
        rows.loc[192:, column] = rows[column].to_numpy()[:192]
    pixels = np.kron(images(192, size_px=16), np.ones((2, 2, 1), np.uint8))
    for cut, values in model.trunk(torch.from_numpy(pixels)).items():
        block = values.numpy().astype(np.float16)
        np.save(data.folder / f"cut{cut}.view0.npy", np.concatenate([block, block]))
        np.save(data.folder / f"cut{cut}.view1.npy", block)
    return {**run, "data": RunData((replace(data, cuts=TRUNK.cuts),))}


@pytest.fixture(scope="module")
def given(model, tmp_path_factory):
    return real_run(tmp_path_factory.mktemp("given"), model)


@pytest.fixture(scope="module")
def fitted(model, given) -> Fitted:
    """Two stages, both kept."""
    torch.set_num_threads(1)
    found = fit(model, **given, recipe=RECIPE, seed=0)
    assert found.cut == 2, found.notes
    return found


@pytest.mark.slow
def test_what_is_pretrained_stands_still_but_for_a_low_rank_that_the_adapter_knows(model, given, fitted):
    pretrained = model.new_branch(2, fitted.leaves).state_dict()
    layers = {key.partition(".lora_")[0] + ".weight" for key in fitted.adapter if ".lora_" in key}
    assert layers
    for key, value in fitted.state.items():
        if key in layers:
            change = (value - pretrained[key]).flatten(1).double()
            strengths = torch.linalg.svdvals(change)
            assert strengths[0] > 1e-3
            assert strengths[4] < 1e-4 * strengths[0]
        elif not key.startswith("head."):
            assert torch.equal(value, pretrained[key]), key


@pytest.mark.slow
def test_a_small_file_makes_the_branch_again_from_the_pretrained_stages(model, fitted):
    file = lora.pack(fitted.adapter, words={"rank": 4})
    assert 10_000 < len(file) < sum(v.nbytes for v in fitted.state.values()) / 10
    grown = model.new_branch(2, fitted.leaves, seed=7)
    lora.apply(grown, file)
    assert grown.state_dict().keys() == fitted.state.keys()
    for key, value in grown.state_dict().items():
        torch.testing.assert_close(value, fitted.state[key], atol=1e-6, rtol=1e-6)
    assert any("LoRA of rank 4 in 7 layers" in note for note in fitted.notes)


@pytest.mark.slow
def test_a_child_starts_from_the_merged_branch_and_its_adapter_lies_on_that(model, given):
    fitted = fit(model, **given, recipe=FIRST, seed=0)
    assert (fitted.cut, bool(fitted.adapter)) == (1, True)
    parent = Parent(cut=fitted.cut, leaves=fitted.leaves, state=fitted.start)
    still = fit(model, **given, recipe=RECIPE.model_copy(update={"stages": ()}), seed=1, parent=parent)
    assert still.adapter == {}
    bodies = [key for key in fitted.state if key.startswith("body.")]
    assert all(torch.equal(still.state[key], fitted.state[key]) for key in bodies)
    child = fit(model, **given, recipe=RECIPE, seed=1, parent=parent)
    assert child.adapter, child.notes
    grown = model.new_branch(child.cut, child.leaves)
    load_parent(grown, parent=parent, leaves=child.leaves)
    lora.apply(grown, lora.pack(child.adapter, words={}))
    for key, value in grown.state_dict().items():
        torch.testing.assert_close(value, child.state[key], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_adapters_that_do_not_win_on_select_are_not_kept(model, given):
    wild = FIRST.model_copy(update={"stages": (Stage(cut=1, epochs=2, lr_head=0.1, lr_backbone=0.1, warmup_epochs=0),)})
    found = fit(model, **given, recipe=wild, seed=0)
    assert (found.cut, found.adapter) == (0, {})
    assert any("did not win" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("die_in", [(1, 2), (2, 2)])
def test_a_run_killed_amid_its_adapters_ends_as_if_it_had_not_been(model, given, fitted, die_in):
    saved: list[bytes] = []

    def on_epoch(row):
        if (row["stage"], row["epoch"]) == die_in:
            raise Killed

    keep = Checkpoints(save=saved.append, every_s=0)
    with pytest.raises(Killed):
        fit(model, **given, recipe=RECIPE, seed=0, checkpoints=keep, on_epoch=on_epoch)
    resumed = fit(model, **given, recipe=RECIPE, seed=0, checkpoints=Checkpoints(load=lambda: saved[-1]))
    assert resumed.history == fitted.history
    assert resumed.notes == fitted.notes
    for got, whole in ((resumed.state, fitted.state), (resumed.adapter, fitted.adapter)):
        assert got.keys() == whole.keys()
        assert all(torch.equal(got[key], whole[key]) for key in whole)


SHORT = RECIPE.model_copy(update={"stages": (Stage(cut=1, epochs=2, lr_backbone=0.01),)})
"""Later AdamW makes much of rounding where a gradient is nearly 0: alone, inputs that were off by 1e-7 moved single
factors by 0.008 in four epochs."""


def fit_with_another(rank: int, folder: Path) -> None:
    """One of two processes that fit the run together; the first writes what came out."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = load_model(TRUNK)
    fitted = fit(model, **real_run(folder / f"{rank}", model), recipe=SHORT, seed=0, world=World(rank=rank, size=2))
    if rank == 0:
        torch.save({"history": fitted.history, "adapter": fitted.adapter}, folder / "fitted.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_adapt_as_one_does_alone(model, given, tmp_path):
    alone = fit(model, **given, recipe=SHORT, seed=0)
    multiprocessing.spawn(fit_with_another, args=(tmp_path,), nprocs=2)
    together = torch.load(tmp_path / "fitted.pt")
    assert alone.adapter
    assert together["adapter"].keys() == alone.adapter.keys()
    assert [row.get("loss") for row in together["history"]] == pytest.approx(
        [row.get("loss") for row in alone.history], abs=1e-5
    )
    for key, value in alone.adapter.items():
        torch.testing.assert_close(together["adapter"][key], value, atol=2e-4, rtol=0)
