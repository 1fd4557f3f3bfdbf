"""An adapted branch in two, stages that all share and factors of its own, answers as the merged one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs import lora
from jobs.compress import BranchExporter
from jobs.factors import Split, split
from jobs.model import Branch, CutModel
from jobs.parity import agrees, compared, open_session
from plants.errors import InputError
from plants.hashing import sha256
from serving.sessions import Adapted, FileRef, Recency, Session, open_branch
from tests.jobs.nets import model_of
from tests.jobs.test_lora import adapted
from tests.serving.toys import spoil

RANK = 4


@pytest.fixture(scope="module")
def model() -> CutModel:
    return model_of("test_resnet", cuts=(0, 1, 2), size_px=64)


def adapted_branch(model: CutModel, *, leaves: tuple[str, ...], seed: int, cut: int = 2) -> Branch:
    """Merged; batch statistics as no fresh net has them, so that folding matters."""
    branch = model.new_branch(cut, leaves, seed=seed)
    adapted(branch, torch.zeros(1, *model.shapes[cut]), rank=RANK)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in branch.named_parameters():
            if ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    lora.merge(branch)
    return branch.eval()


@pytest.fixture(scope="module")
def both(model: CutModel) -> tuple[list[Branch], list[Split]]:
    leaves = (("ok", "dent", "scratch"), ("ok", "stain"))
    branches = [adapted_branch(model, leaves=names, seed=seed) for seed, names in enumerate(leaves)]
    found = [split(branch, model=model, rank=RANK) for branch in branches]
    assert found[0] is not None
    assert found[1] is not None
    return branches, [one for one in found if one is not None]


@pytest.mark.slow
def test_the_stages_are_the_same_for_all_and_the_factors_make_each_answer_its_own(model, both, tmp_path):
    branches, splits = both
    assert splits[0].stages == splits[1].stages
    shared = open_session(splits[0].stages)
    activation = np.random.default_rng(0).normal(size=(4, *model.shapes[2])).astype(np.float32)
    for number, (branch, one) in enumerate(zip(branches, splits, strict=True)):
        BranchExporter(model, 2).write(branch, tmp_path / f"{number}.onnx")
        merged = open_session(str(tmp_path / f"{number}.onnx"))
        names = [output.name for output in merged.get_outputs()]
        expected = merged.run(names, {"activation": activation})
        found = shared.run(names, {"activation": activation, **one.factors})
        assert agrees(compared(expected[:2], found[:2]))
        for value, other in zip(expected, found, strict=True):  # the map too
            np.testing.assert_allclose(other, value, rtol=1e-3, atol=1e-4 * float(np.abs(value).max()))


@pytest.mark.slow
def test_factors_are_small_and_not_those_of_the_other(both):
    branches, (one, other) = both
    whole = sum(value.numel() for value in branches[0].state_dict().values())
    assert sum(value.size for value in one.factors.values()) < 0.5 * whole
    layers = [name for name in one.factors if name.endswith(".a")]
    assert len(layers) > 3
    assert one.factors[layers[0]].shape[0] == RANK
    assert any(not np.allclose(one.factors[name], other.factors[name]) for name in layers)


@pytest.mark.slow
def test_a_branch_whose_layers_learned_whole_is_not_split(model):
    branch = adapted_branch(model, leaves=("ok", "dent"), seed=3)
    with torch.no_grad():
        for value in branch.body.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    assert split(branch, model=model, rank=RANK) is None


@pytest.mark.slow
def test_a_head_and_a_branch_with_an_alignment_of_its_own_are_not_split(model):
    assert split(model.new_branch(0, ("ok", "dent")), model=model, rank=RANK) is None
    branch = adapted_branch(model, leaves=("ok", "dent"), seed=4)
    branch.align = nn.BatchNorm1d(model.feature_dim)
    assert split(branch, model=model, rank=RANK) is None


@pytest.mark.slow
def test_plants_on_the_same_stages_never_get_each_others_answers_and_share_one_session(model, both, tmp_path):
    branches, splits = both
    (tmp_path / "stages.onnx").write_bytes(splits[0].stages)
    stages = FileRef(tmp_path / "stages.onnx", sha256(splits[0].stages))
    opened: list[Path] = []
    recency: Recency[Session] = Recency(lambda path: opened.append(path) or open_branch(path), bound_mb=100)
    served, expected = [], []
    activation = np.random.default_rng(0).normal(size=(1, *model.shapes[2])).astype(np.float32)
    for number, (branch, one) in enumerate(zip(branches, splits, strict=True)):
        np.savez(tmp_path / f"{number}.npz", **one.factors)
        file = FileRef(tmp_path / f"{number}.npz", sha256((tmp_path / f"{number}.npz").read_bytes()))
        served.append(Adapted(stages, recency, factors=file, again=lambda: None))
        expected.append(branch(torch.from_numpy(activation))[0].detach().numpy())

    def asked(turn: int) -> bool:
        (logits,) = served[turn % 2].run(["logits"], {"activation": activation})
        return logits.shape == expected[turn % 2].shape and bool(np.allclose(logits, expected[turn % 2], atol=1e-3))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(asked, range(80)))
    assert opened == [stages.path]
    assert all(one.own_mb < 0.5 * one.size_mb for one in served)


@pytest.mark.slow
def test_damaged_factors_are_named(both, tmp_path):
    _, splits = both
    (tmp_path / "stages.onnx").write_bytes(splits[0].stages)
    np.savez(tmp_path / "factors.npz", **splits[0].factors)
    file = FileRef(tmp_path / "factors.npz", sha256((tmp_path / "factors.npz").read_bytes()))
    spoil(file.path)
    stages = FileRef(tmp_path / "stages.onnx", sha256(splits[0].stages))
    with pytest.raises(InputError, match=r"factors\.npz: its bytes are not what the bundle was made with"):
        Adapted(stages, Recency(open_branch, bound_mb=100), factors=file, again=lambda: None)
