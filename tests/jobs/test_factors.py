"""An adapted branch in two answers as the merged one, and every plant's stages are the same file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jobs import factors, lora
from jobs.compress import BranchExporter, agrees
from jobs.model import Aligned, CutModel
from jobs.parity import compared, open_session, torch_answers
from tests.jobs.nets import images, model_of

pytestmark = pytest.mark.slow
KINDS = {"convolutions": ("test_resnet", 2, 64), "transformer": ("vit_tiny_patch16_224", 1, 32)}
MODELS: dict[str, CutModel] = {}


def model(kind: str) -> CutModel:
    if kind not in MODELS:
        backbone, cut, size_px = KINDS[kind]
        MODELS[kind] = model_of(backbone, cuts=(0, cut), size_px=size_px)
    return MODELS[kind]


def merged(kind: str, *, seed: int, rank: int = 4, leaves: tuple[str, ...] = ("ok", "dent", "scratch")) -> Any:
    """A branch whose adapters do something, merged."""
    cut = KINDS[kind][1]
    branch = model(kind).new_branch(cut, leaves, seed=seed)
    chosen = lora.choose(branch, rank=rank, sample=torch.zeros(1, *model(kind).shapes[cut]))
    lora.attach(branch, rank=rank, layers=chosen.layers, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in branch.named_parameters():
            if ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    lora.merge(branch)
    return branch.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_shared_stages_with_a_plants_factors_answer_as_torch_and_as_its_merged_file(kind, tmp_path):
    _, cut, size_px = KINDS[kind]
    activation = model(kind).trunk(torch.from_numpy(images(5, size_px=size_px)))[cut].numpy().copy()
    plants = [merged(kind, seed=0), merged(kind, seed=1, rank=8, leaves=("ok", "dent"))]
    found = [factors.split(one, model=model(kind), rank=rank) for one, rank in zip(plants, (4, 8), strict=True)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].stages == found[1].stages, "whatever the rank and the leaves"
    session = open_session(found[0].stages)
    for branch, one in zip(plants, found, strict=True):
        assert one is not None
        expected = torch_answers(branch, activation, batch=5)
        answers = session.run(["logits", "features"], {"activation": activation, **one.factors})
        assert agrees(compared(expected, answers))
        BranchExporter(model(kind), cut).write(branch, tmp_path / "branch.onnx")
        file = open_session(str(tmp_path / "branch.onnx"))
        assert agrees(compared(file.run(["logits", "features"], {"activation": activation}), answers))
        pretrained = torch_answers(model(kind).new_branch(cut, branch.leaves).eval(), activation, batch=5)
        assert not agrees(compared(pretrained, answers)), "adapters that do nothing prove nothing"
        assert sum(value.nbytes for value in one.factors.values()) < len(one.stages) / 5


def test_what_no_low_rank_makes_of_the_pretrained_stages_is_not_split():
    branch = merged("convolutions", seed=0)
    assert factors.split(branch, model=model("convolutions"), rank=3) is None, "less than its rank"
    with torch.no_grad():
        norm = next(one for name, one in branch.body.named_parameters() if one.ndim == 1)
        norm.mul_(1.1)
    assert factors.split(branch, model=model("convolutions"), rank=4) is None, "a norm that learned"
    aligned = merged("convolutions", seed=0)
    aligned.align = Aligned(torch.ones(1), torch.zeros(1))
    assert factors.split(aligned, model=model("convolutions"), rank=4) is None


def test_every_factor_has_the_shape_that_its_input_asks_for():
    found = factors.split(merged("convolutions", seed=0), model=model("convolutions"), rank=4)
    assert found is not None
    wanted = {one.name: one.shape for one in open_session(found.stages).get_inputs() if one.name != "activation"}
    assert wanted.keys() == found.factors.keys()
    for name, shape in wanted.items():
        assert all(isinstance(b, str) or a == b for a, b in zip(found.factors[name].shape, shape, strict=True))
    assert {value.dtype for value in found.factors.values()} == {np.dtype(np.float32)}
