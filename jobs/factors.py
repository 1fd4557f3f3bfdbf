"""A branch that learned by adapters as what it is: stages that every plant shares, and small factors of its own.

Merged, each such branch is a file and a session as large as whole stages. Here the pretrained stages are one file for
all plants whose adapters lie in the same layers, with the factors and the head among its inputs; a plant brings its
own with every request. Factors are taken of the exported files themselves, so that what was folded into a layer
(BatchNorm) is in them, whatever the training library calls its parts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from jobs.compress import BranchExporter
from jobs.model import Branch, CutModel
from jobs.parity import agrees, compared, open_session

Arrays = dict[str, np.ndarray]

HEAD = ("head.weight", "head.bias")
LARGEST_REST = 1e-5
"""What a low rank may leave of a layer's change, as a fraction of the largest weight: float32 rounds so much."""


class Split(NamedTuple):
    """A branch in two."""

    stages: bytes
    """An ONNX file, the same for every plant: as `branch.onnx`, its factors and head are inputs."""
    factors: Arrays
    """By the names of those inputs: of a layer `{weight}.a` [r, ...] and `{weight}.b` [O, r, ...]; and the head."""


def split(branch: Branch, *, model: CutModel, rank: int) -> Split | None:
    """The merged branch in two; None where its graph keeps no parameters apart, or the two do not answer alike."""
    exporter = BranchExporter(model, branch.cut)
    own, shared = exporter.filled(branch), exporter.filled(model.new_branch(branch.cut, branch.leaves))
    if own is None or shared is None or branch.cut == 0:
        return None
    theirs, ours = _arrays(shared), _arrays(own)
    changed = [name for name in theirs if name not in HEAD and not np.array_equal(theirs[name], ours[name])]
    users = {name: _only_user(shared.graph, name) for name in changed}
    factors: Arrays = {name: ours[name] for name in HEAD}
    for name in changed:
        found = _factors(ours[name] - theirs[name], rank=rank, scale=float(np.abs(theirs[name]).max()))
        if users[name] is None or found is None:
            return None
        factors[f"{name}.a"], factors[f"{name}.b"] = found
    for name in changed:
        _insert(shared.graph, name, shapes=(factors[f"{name}.a"].shape, factors[f"{name}.b"].shape))
    _open_head(shared.graph)
    stages = shared.SerializeToString(deterministic=True)
    return Split(stages, factors) if _is_same(own.SerializeToString(), stages, factors, shape=exporter.shape) else None


def _arrays(model: onnx.ModelProto) -> Arrays:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def _only_user(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    """The one layer whose weight this is, where a low rank can stand beside it."""
    users = [node for node in graph.node if name in node.input]
    if len(users) != 1 or list(users[0].input).index(name) != 1:
        return None
    node, attributes = users[0], _attributes(users[0])
    is_gemm = node.op_type == "Gemm" and attributes.get("transB") == 1 and not attributes.get("transA")
    is_plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    return node if node.op_type == "Conv" or (is_gemm and is_plain) else None


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _factors(change: np.ndarray, *, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray] | None:
    """`a` [r, ...] and `b` [O, r] or [O, r, 1, 1] whose product is the change [O, ...]; None where there are none."""
    flat = change.reshape(len(change), -1).astype(np.float64)
    _, vectors = np.linalg.eigh(flat @ flat.T)
    b = vectors[:, -rank:]
    a = b.T @ flat
    if np.abs(flat - b @ a).max() > LARGEST_REST * scale:
        return None
    spare = [1] * (change.ndim - 2)
    return a.reshape(-1, *change.shape[1:]).astype(np.float32), b.reshape(*b.shape, *spare).astype(np.float32)


def _insert(graph: onnx.GraphProto, name: str, *, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Beside the layer of this weight stand two small ones, whose weights are inputs; their output is added."""
    at, node = next((at, node) for at, node in enumerate(graph.node) if name in node.input)
    made, a, b = node.output[0], f"{name}.a", f"{name}.b"
    node.output[0] = f"{made}.shared"
    first, second = _attributes(node), {} if node.op_type == "Conv" else {"transB": 1}
    new = [
        helper.make_node(node.op_type, [node.input[0], a], [f"{made}.low"], name=f"{name}.low", **first),
        helper.make_node(node.op_type, [f"{made}.low", b], [f"{made}.change"], name=f"{name}.change", **second),
        helper.make_node("Add", [f"{made}.shared", f"{made}.change"], [made], name=f"{name}.sum"),
    ]
    for offset, one in enumerate(new, start=1):
        graph.node.insert(at + offset, one)
    dims = (["rank", *shapes[0][1:]], [shapes[1][0], "rank", *shapes[1][2:]])
    for given, shape in zip((a, b), dims, strict=True):
        graph.input.append(helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, shape))


def _open_head(graph: onnx.GraphProto) -> None:
    """The head's numbers are inputs, of any number of leaves."""
    for one in [one for one in graph.initializer if one.name in HEAD]:
        shape = ["leaves", *list(one.dims)[1:]]
        graph.input.append(helper.make_tensor_value_info(one.name, onnx.TensorProto.FLOAT, shape))
        graph.initializer.remove(one)
    (logits,) = (one for one in graph.output if one.name == "logits")
    logits.type.tensor_type.shape.dim[1].ClearField("dim_value")
    logits.type.tensor_type.shape.dim[1].dim_param = "leaves"


def _is_same(own: bytes, stages: bytes, factors: Arrays, *, shape: tuple[int, ...]) -> bool:
    """Whether both answer alike to activations that were drawn."""
    drawn = {"activation": np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)}
    feeds = ((own, drawn), (stages, {**drawn, **factors}))
    expected, found = (open_session(data).run(["logits", "features"], given) for data, given in feeds)
    return agrees(compared(expected, found))
