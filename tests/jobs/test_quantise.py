"""INT8 files: 8 bits inside, float32 at both ends, the head and the normalisation as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from jobs.compress import BranchExporter, export_trunk
from jobs.model import CutModel
from jobs.parity import Evaluator, open_session
from jobs.quantise import (
    float_nodes,
    has_layers,
    nodes_of,
    prepared,
    quantise,
    rows_normalised,
    some,
    worst_nodes,
)
from tests.jobs.nets import images, model_of

LEAVES = ["ok", "dent", "scratch"]


@pytest.fixture(scope="module")
def model() -> CutModel:
    return model_of(cuts=(0, 1), size_px=48)


@pytest.fixture(scope="module")
def folder(model: CutModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """trunk.onnx, branch.onnx (last stage), head.onnx, each also `.float.onnx`, prepared, and `.int8.onnx`."""
    root = tmp_path_factory.mktemp("files")
    export_trunk(model, root / "trunk.onnx")
    for name, cut in (("branch", 1), ("head", 0)):
        BranchExporter(model, cut).write(model.new_branch(cut, LEAVES).eval(), root / f"{name}.onnx")
        prepared(root / f"{name}.onnx", root / f"{name}.float.onnx")
    prepared(root / "trunk.onnx", root / "trunk.float.onnx")
    quantise(root / "trunk.float.onnx", root / "trunk.int8.onnx", inputs=images(16, size_px=48))
    quantise(root / "branch.float.onnx", root / "branch.int8.onnx", inputs=activations(root))
    return root


def activations(root: Path) -> np.ndarray:
    return Evaluator(root / "trunk.onnx").activations(images(16, size_px=48))[1]


def graph(path: Path) -> onnx.GraphProto:
    return onnx.load(str(path)).graph


def test_both_ends_of_both_files_are_the_same_so_that_either_branch_sits_on_either_trunk(folder):
    for name in ("trunk", "branch"):
        plain, quantised = graph(folder / f"{name}.onnx"), graph(folder / f"{name}.int8.onnx")
        for side in ("input", "output"):
            assert [(v.name, v.type.tensor_type.elem_type) for v in getattr(quantised, side)] == [
                (v.name, v.type.tensor_type.elem_type) for v in getattr(plain, side)
            ]
    shown = images(8, size_px=48, seed=1)
    trunks = [Evaluator(folder / f"trunk.{kind}.onnx") for kind in ("float", "int8")]
    for trunk in trunks:
        for kind in ("float", "int8"):
            logits, features = trunk.branch(folder / f"branch.{kind}.onnx", trunk.activations(shown)[1])
            assert logits.shape == (8, 3)
            assert logits.dtype == features.dtype == np.float32


def test_int8_answers_nearly_as_float_does_and_takes_a_third_of_the_bytes_or_less(folder):
    shown = images(16, size_px=48, seed=1)
    plain, quantised = (Evaluator(folder / f"trunk.{kind}.onnx").activations(shown) for kind in ("float", "int8"))
    for cut in (0, 1):
        far = np.abs(plain[cut] - quantised[cut]).max() / np.abs(plain[cut]).max()
        assert 0 < far < 0.15
    for name in ("trunk", "branch"):
        assert (folder / f"{name}.onnx").stat().st_size > 3 * (folder / f"{name}.int8.onnx").stat().st_size


def test_weights_are_signed_bytes_by_channel_and_activations_unsigned(folder):
    found = graph(folder / "trunk.int8.onnx")
    tensors = {tensor.name: tensor for tensor in found.initializer}
    convs = [node for node in found.node if node.op_type == "Conv"]
    by_output = {node.output[0]: node for node in found.node}
    assert len(convs) == 15
    for conv in convs:
        of_input, of_weight = (by_output[name] for name in conv.input[:2])
        assert tensors[of_weight.input[0]].data_type == TensorProto.INT8
        assert len(onnx.numpy_helper.to_array(tensors[of_weight.input[1]])) == tensors[of_weight.input[0]].dims[0]
        assert tensors[of_input.input[2]].data_type == TensorProto.UINT8


def test_the_head_and_the_normalisation_stay_float(folder):
    head = next(node for node in graph(folder / "branch.int8.onnx").node if "logits" in node.output)
    assert head.op_type == "Gemm"
    tensors = {tensor.name: tensor for tensor in graph(folder / "branch.int8.onnx").initializer}
    assert tensors[head.input[1]].data_type == TensorProto.FLOAT
    kinds = [node.op_type for node in graph(folder / "trunk.int8.onnx").node if node.op_type != "DequantizeLinear"]
    assert kinds[:7] == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose", "QuantizeLinear"]


def test_a_head_alone_has_nothing_to_quantise_and_a_stage_has(folder):
    assert not has_layers(folder / "head.onnx")
    assert has_layers(folder / "branch.onnx")
    assert has_layers(folder / "trunk.onnx")


def test_normalising_by_rows_gives_the_very_same_numbers(folder, tmp_path):
    path = tmp_path / "rows.onnx"
    onnx.save(rows_normalised(onnx.load(str(folder / "trunk.onnx"))), str(path))
    shown = {"images": images(4, size_px=48)}
    for one, other in zip(
        open_session(str(folder / "trunk.onnx")).run(None, shown), open_session(str(path)).run(None, shown), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_file_that_does_not_begin_with_a_normalisation_is_left_as_it_is(folder):
    before = onnx.load(str(folder / "branch.onnx"))
    assert rows_normalised(onnx.load(str(folder / "branch.onnx"))) == before


def test_the_same_inputs_give_the_same_file_and_other_methods_others(folder, tmp_path):
    source, values = folder / "branch.float.onnx", activations(folder)
    files = {}
    for name, method in (("a", "minmax"), ("b", "minmax"), ("c", "percentile"), ("d", "entropy")):
        quantise(source, tmp_path / name, inputs=values, method=method)
        files[name] = (tmp_path / name).read_bytes()
    assert files["a"] == files["b"]
    assert files["c"] != files["a"]


@pytest.mark.parametrize(("given", "expected"), [(100, 32), (33, 32), (30, 24), (13, 8), (8, 8), (5, 5)])
def test_histograms_take_whole_batches_of_inputs_from_first_to_last(given: int, expected: int):
    found = some(np.arange(given))
    assert len(found) == expected
    assert (found[0], found[-1]) == (0, given - 1)
    assert len(set(found)) == expected


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_any_number_of_inputs_can_be_calibrated_on(folder, tmp_path, method):
    quantise(folder / "branch.float.onnx", tmp_path / "x.onnx", inputs=activations(folder)[:13], method=method)
    assert (tmp_path / "x.onnx").exists()


def test_calibrating_says_nothing_on_stdout_where_a_document_may_go(folder, tmp_path, capfd):
    quantise(folder / "branch.float.onnx", tmp_path / "x.onnx", inputs=activations(folder), method="percentile")
    assert capfd.readouterr().out == ""


def test_layers_around_the_worst_tensors_stay_float_when_excluded(folder, tmp_path):
    source, values = folder / "trunk.float.onnx", images(16, size_px=48)
    worst = worst_nodes(source, folder / "trunk.int8.onnx", inputs=values, num=2)
    assert set(worst) < {node.name for node in graph(source).node}
    assert len(nodes_of(source, worst)) == len(worst)
    quantise(source, tmp_path / "some.onnx", inputs=values, exclude=worst)
    tensors = {tensor.name: tensor.data_type for tensor in graph(tmp_path / "some.onnx").initializer}
    convs = [node for node in graph(tmp_path / "some.onnx").node if node.op_type == "Conv"]
    plain = {node.name for node in convs if tensors.get(node.input[1]) == TensorProto.FLOAT}
    assert plain == {name for name in worst if name in {node.name for node in convs}}
    assert plain
    again, first = (
        np.abs(Evaluator(path).activations(values)[0] - Evaluator(source).activations(values)[0]).mean()
        for path in (tmp_path / "some.onnx", folder / "trunk.int8.onnx")
    )
    assert again < first


def test_what_lies_before_the_first_layer_and_the_head_are_float_by_name(folder):
    names = float_nodes(graph(folder / "branch.float.onnx"))
    kinds = {node.name: node.op_type for node in graph(folder / "branch.float.onnx").node}
    assert kinds[names[-1]] == "Gemm"
    assert all(kinds[name] != "Conv" for name in names)
