"""Exported files answer as torch does, each is written in no time, and a wrong number in one is noticed."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pytest
import torch

from jobs import compress
from jobs.compress import BranchExporter, Evaluator, agrees, export_trunk, parity, parity_full
from jobs.compute import PLAIN, Compute
from tests.jobs.nets import images, model_of, randomise

pytestmark = pytest.mark.slow
LEAVES = ["ok", "crack", "scale", "rust"]


@pytest.fixture(scope="module")
def model():
    return model_of(cuts=(0, 1, 2))


@pytest.fixture(scope="module")
def trunk_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("trunk") / "trunk.onnx"
    export_trunk(model, path)
    return path


@pytest.fixture(scope="module")
def evaluator(trunk_path):
    return Evaluator(trunk_path)


def branch_of(model, cut, *, leaves=LEAVES, seed=1):
    branch = model.new_branch(cut, leaves, seed=seed)
    randomise(branch, seed=seed)
    return branch


def test_the_trunk_takes_uint8_images_of_any_number_and_gives_one_output_a_cut_and_the_map(
    model, trunk_path, evaluator
):
    graph = onnx.load(trunk_path).graph
    assert [i.name for i in graph.input] == ["images"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [o.name for o in graph.output] == ["cut0", "cut1", "cut2", "map"]
    for num in (1, 5):
        x = images(num)
        found = evaluator.activations(x, batch=2)
        for cut, value in model.trunk(torch.from_numpy(x)).items():
            assert found[cut].dtype == np.float32
            np.testing.assert_allclose(found[cut], value.numpy(), rtol=1e-4, atol=1e-5)
    assert evaluator.cuts == (0, 1, 2)
    assert evaluator.size_px == 32


def test_the_same_trunk_exported_again_is_the_same_file_whatever_it_computes_in(model, trunk_path, tmp_path):
    model.trunk.compute_in(Compute("bfloat16", "channels_last"))
    try:
        export_trunk(model, tmp_path / "again.onnx")
    finally:
        model.trunk.compute_in(PLAIN)
    assert (tmp_path / "again.onnx").read_bytes() == trunk_path.read_bytes()


def test_exported_files_hold_no_path_of_the_machine_that_wrote_them(model, trunk_path, tmp_path):
    BranchExporter(model, 1).write(branch_of(model, 1), tmp_path / "branch.onnx")
    for path in (trunk_path, tmp_path / "branch.onnx"):
        assert b".py" not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_branch_filled_into_the_form_answers_as_torch_does(model, trunk_path, tmp_path, cut):
    exporter = BranchExporter(model, cut, len(LEAVES))
    assert exporter.is_fast
    for seed in (1, 2):
        branch = branch_of(model, cut, seed=seed).train()
        exporter.write(branch, tmp_path / "branch.onnx")
        report = parity_full(model, branch, trunk_path, tmp_path / "branch.onnx", images(9), batch=4)
        assert report["n"] == 9
        assert report["max_rel"] < 1e-5
        assert report["max_rel_features"] < 1e-5
        assert agrees(report)
        assert branch.training


def test_branches_of_any_number_of_leaves_come_from_one_export(model, tmp_path, evaluator, monkeypatch):
    BranchExporter(model, 1, len(LEAVES))

    def never(*args, **kwargs):
        raise AssertionError("exported again")

    monkeypatch.setattr(compress, "_exported", never)
    activation = evaluator.activations(images())[1]
    for leaves in (["ok", "crack"], [f"leaf{i}" for i in range(11)]):
        branch = branch_of(model, 1, leaves=leaves)
        BranchExporter(model, 1, len(leaves)).write(branch, tmp_path / "branch.onnx")
        assert agrees(parity(branch, tmp_path / "branch.onnx", activation))
        logits, features = evaluator.branch(tmp_path / "branch.onnx", activation)
        assert logits.shape == (3, len(leaves))
        assert features.shape == (3, model.feature_dim)


def test_an_exporter_that_crossed_a_process_writes_the_same_bytes(model, tmp_path):
    branch, exporter = branch_of(model, 1), BranchExporter(model, 1)
    digest = exporter.write(branch, tmp_path / "a.onnx")
    assert pickle.loads(pickle.dumps(exporter)).write(branch, tmp_path / "b.onnx") == digest
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_normalisation_is_folded_into_convolutions_and_gone_from_the_graph(model, tmp_path):
    BranchExporter(model, 2).write(branch_of(model, 2), tmp_path / "branch.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "branch.onnx").graph.node}
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds


def test_a_branch_of_another_shape_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="cut 0 and 4 leaves"):
        BranchExporter(model, 1).write(branch_of(model, 0), tmp_path / "branch.onnx")
    with pytest.raises(ValueError, match="cut 1 and 4 leaves"):
        BranchExporter(model, 1, 3).write(branch_of(model, 1), tmp_path / "branch.onnx")


def test_a_form_that_gets_a_number_wrong_is_noticed_and_branches_are_exported_plainly(tmp_path, monkeypatch):
    model, honest = model_of(cuts=(0, 1)), compress.Template.filled

    def off_by_a_little(self, state):
        return honest(self, {**state, "head.bias": state["head.bias"] + 0.1})

    monkeypatch.setattr(compress.Template, "filled", off_by_a_little)
    exporter = BranchExporter(model, 1)
    assert not exporter.is_fast
    branch = branch_of(model, 1)
    exporter.write(branch, tmp_path / "branch.onnx")
    activation = np.random.default_rng(0).normal(size=(4, *model.shapes[1])).astype(np.float32)
    assert agrees(parity(branch, tmp_path / "branch.onnx", activation))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224"])
def test_other_families_are_filled_exactly_too(backbone, tmp_path):
    model = model_of(backbone, cuts=(0, 1))
    exporter = BranchExporter(model, 1)
    assert exporter.is_fast
    branch = branch_of(model, 1)
    exporter.write(branch, tmp_path / "branch.onnx")
    activations = model.trunk(torch.from_numpy(images(6)))[1].numpy()
    assert parity(branch, tmp_path / "branch.onnx", activations)["max_rel"] < 1e-4
