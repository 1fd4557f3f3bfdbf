from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.heads import Heads, affine, gathered, side_by_side
from serving.sessions import open_session

NUM_FEATURES = 24


def branch(path: Path, *, weights: np.ndarray, bias: np.ndarray, bend: bool = False) -> Path:
    """features [N, F] -> logits; `bend` puts a ReLU in front, so that it is no affine map."""
    num_leaves, num_features = weights.shape
    nodes = [
        helper.make_node("Relu" if bend else "Identity", ["activation"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "branch",
        [helper.make_tensor_value_info("activation", TensorProto.FLOAT, ["n", num_features])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", num_leaves]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", num_features]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def head(rng: np.random.Generator, *, num_leaves: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    weights = rng.normal(0, scale, (num_leaves, NUM_FEATURES)).astype(np.float32)
    return weights, rng.normal(0, 3, num_leaves).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-4, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_heads_weights_and_bias_are_read_out_of_its_branch_to_the_last_bit(tmp_path: Path, seed: int, scale: float):
    weights, bias = head(np.random.default_rng(seed), num_leaves=seed + 2, scale=scale)
    weights[0, 0] = 0.0
    found = affine(open_session(branch(tmp_path / "b.onnx", weights=weights, bias=bias)), num_features=NUM_FEATURES)
    assert found is not None
    np.testing.assert_allclose(found[0], weights, rtol=2e-7, atol=1e-8)
    np.testing.assert_array_equal(found[1], bias)


def test_a_branch_that_is_no_affine_map_is_not_taken_for_a_head(tmp_path: Path):
    weights, bias = head(np.random.default_rng(0), num_leaves=3)
    bent = branch(tmp_path / "b.onnx", weights=weights, bias=bias, bend=True)
    assert affine(open_session(bent), num_features=NUM_FEATURES) is None


@pytest.mark.parametrize("seed", range(8))
def test_each_view_gets_its_own_heads_answer_whatever_heads_come_and_go(seed: int):
    rng = np.random.default_rng(seed)
    heads, live = Heads(), []
    for _ in range(60):
        if live and rng.random() < 0.35:
            live.pop(int(rng.integers(len(live))))
        one = head(rng, num_leaves=int(rng.integers(2, 6)))
        live.append((heads.put(*one), *one))
        picked = [live[at] for at in rng.integers(len(live), size=int(rng.integers(1, 20)))]
        features = rng.normal(size=(len(picked), NUM_FEATURES)).astype(np.float32)
        found = gathered([slot for slot, _, _ in picked], features)
        for said, row, (slot, weights, bias) in zip(found, features, picked, strict=True):
            np.testing.assert_allclose(said, weights @ row + bias, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(said, slot.logits(row[None])[0])  # bit by bit as alone


def test_the_place_of_a_head_that_nobody_uses_is_used_again():
    rng = np.random.default_rng(0)
    heads = Heads()
    kept = [heads.put(*head(rng, num_leaves=3)) for _ in range(4)]
    for _ in range(100):
        heads.put(*head(rng, num_leaves=3))
    assert len(kept[0].table.bias) < 20


def test_one_more_plant_costs_the_bytes_of_its_head():
    rng = np.random.default_rng(0)
    slot = Heads().put(rng.normal(size=(5, 512)).astype(np.float32), np.zeros(5, np.float32))
    assert slot.size_mb == pytest.approx(5 * 513 * 4 / 1e6)


@pytest.mark.parametrize("num_views", [1, 7, 48])
def test_heads_side_by_side_say_to_the_bit_what_each_says_alone(num_views: int):
    rng, heads = np.random.default_rng(num_views), Heads()
    slots = [heads.put(*head(rng, num_leaves=3)) for _ in range(5)]
    features = rng.normal(0, 1, (num_views, NUM_FEATURES)).astype(np.float32)
    found = side_by_side([slots[at] for at in (4, 0, 2)], features)
    assert found is not None
    for one, at in zip(found, (4, 0, 2), strict=True):
        np.testing.assert_array_equal(one, slots[at].logits(features))


def test_heads_of_different_shapes_are_not_taken_side_by_side():
    rng, heads = np.random.default_rng(0), Heads()
    slots = [heads.put(*head(rng, num_leaves=number)) for number in (3, 4)]
    assert side_by_side(slots, np.zeros((2, NUM_FEATURES), np.float32)) is None
