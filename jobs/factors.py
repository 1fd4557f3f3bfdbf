"""A branch that learned by adapters as what it is: stages that every plant shares, and small factors of its own.

Merged, each such branch is a file and a session as large as whole stages. Here the pretrained stages are one file for
all plants whose adapters lie in the same layers, of whatever rank, with the factors and the head among its inputs; a
plant brings its own with every request. Factors are taken of the exported files themselves, so that what was folded
into a layer (BatchNorm) is in them, whatever the training library calls its parts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from jobs.compress import BranchExporter
from jobs.model import Branch, CutModel
from jobs.parity import agrees, compared, open_session

Arrays = dict[str, np.ndarray]

HEAD = ("head.weight", "head.bias")
OUTPUTS = ["logits", "features"]
LARGEST_REST = 1e-5
"""What a low rank may leave of a layer's change, as a fraction of the layer's largest weight: float32 rounds so."""
_NUM_DRAWN = 8


class Split(NamedTuple):
    """A branch in two."""

    stages: bytes
    """An ONNX file, the same for every plant: as `branch.onnx`, but factors and head are inputs."""
    factors: Arrays
    """By the names of those inputs: of a layer `{weight}.a` [r, ...] and `{weight}.b` [O, r, ...]; and the head."""


class _Layer(NamedTuple):
    """The one node that computes with a weight."""

    node: onnx.NodeProto
    is_turned: bool
    """The weight [O, I] is transposed by a node of its own, for a MatMul."""


def split(branch: Branch, *, model: CutModel, rank: int) -> Split | None:
    """The merged branch in two; None where its graph keeps no layers apart, or the two do not answer alike."""
    exporter = BranchExporter(model, branch.cut)
    if exporter.template is None or branch.cut == 0 or not isinstance(branch.align, nn.Identity):
        return None
    own = exporter.template.filled(_state(branch))
    shared = exporter.template.filled(_state(model.new_branch(branch.cut, branch.leaves)))
    theirs, ours = _arrays(shared), _arrays(own)
    changed = [name for name in theirs if name not in HEAD and not np.array_equal(theirs[name], ours[name])]
    factors: Arrays = {name: ours[name] for name in HEAD}
    for name in changed:
        layer = _layer(shared.graph, name)
        found = _factors(ours[name] - theirs[name], rank=rank, scale=float(np.abs(theirs[name]).max()))
        if layer is None or found is None:
            return None
        factors[f"{name}.a"], factors[f"{name}.b"] = found
        _insert(shared.graph, name, layer=layer, factors=found)
    _open_head(shared.graph)
    stages = shared.SerializeToString(deterministic=True)
    return Split(stages, factors) if _is_same(own.SerializeToString(), stages, factors, shape=exporter.shape) else None


def _state(branch: Branch) -> Arrays:
    return {name: value.detach().cpu().numpy() for name, value in branch.state_dict().items()}


def _arrays(model: onnx.ModelProto) -> Arrays:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def _layer(graph: onnx.GraphProto, name: str) -> _Layer | None:
    """The layer whose weight this is, where a low rank can stand beside it: a convolution or a linear layer."""
    node = _only_user(graph, name)
    if node is not None and node.op_type == "Transpose" and list(_attributes(node).get("perm", [1, 0])) == [1, 0]:
        user = _only_user(graph, node.output[0])
        is_second = user is not None and user.op_type == "MatMul" and user.input[1] == node.output[0]
        return _Layer(user, is_turned=True) if user is not None and is_second else None
    if node is None or list(node.input).index(name) != 1:
        return None
    words = _attributes(node)
    is_gemm = node.op_type == "Gemm" and words.get("transB") == 1 and not words.get("transA")
    is_plain = words.get("alpha", 1.0) == words.get("beta", 1.0) == 1.0
    return _Layer(node, is_turned=False) if node.op_type == "Conv" or (is_gemm and is_plain) else None


def _only_user(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    users = [node for node in graph.node if name in node.input]
    return users[0] if len(users) == 1 else None


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _factors(change: np.ndarray, *, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray] | None:
    """`a` [r, ...] and `b` [O, r] or [O, r, 1, 1] whose product is the change [O, ...]; None where there are none."""
    if change.ndim < 2:
        return None
    flat = change.reshape(len(change), -1).astype(np.float64)
    _, vectors = np.linalg.eigh(flat @ flat.T)
    b = vectors[:, -rank:]
    a = b.T @ flat
    if np.abs(flat - b @ a).max() > LARGEST_REST * scale:
        return None
    spare = [1] * (change.ndim - 2)
    return a.reshape(-1, *change.shape[1:]).astype(np.float32), b.reshape(*b.shape, *spare).astype(np.float32)


def _insert(graph: onnx.GraphProto, name: str, *, layer: _Layer, factors: tuple[np.ndarray, np.ndarray]) -> None:
    """Beside the layer of this weight stand two small ones, whose weights are inputs; their output is added."""
    node = layer.node
    made, source = node.output[0], node.input[0]
    low, change, a, b = f"{name}.low", f"{name}.change", f"{name}.a", f"{name}.b"
    for given, array, axis in ((a, factors[0], 0), (b, factors[1], 1)):
        shape = ["rank" if at == axis else length for at, length in enumerate(array.shape)]
        graph.input.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, shape))
    node.output[0] = f"{made}.shared"
    if layer.is_turned:
        new = [
            helper.make_node("Transpose", [one], [f"{one}.turned"], name=f"{one}.turned", perm=[1, 0]) for one in (a, b)
        ]
        new += [helper.make_node("MatMul", [source, f"{a}.turned"], [low], name=low)]
        new += [helper.make_node("MatMul", [low, f"{b}.turned"], [change], name=change)]
    else:
        first, second = _attributes(node), {} if node.op_type == "Conv" else {"transB": 1}
        new = [helper.make_node(node.op_type, [source, a], [low], name=low, **first)]
        new += [helper.make_node(node.op_type, [low, b], [change], name=change, **second)]
    new.append(helper.make_node("Add", [f"{made}.shared", change], [made], name=f"{name}.sum"))
    at = next(at for at, one in enumerate(graph.node) if one.output[0] == f"{made}.shared")
    for offset, one in enumerate(new, start=1):
        graph.node.insert(at + offset, one)


def _open_head(graph: onnx.GraphProto) -> None:
    """The head's numbers are inputs, of any number of leaves."""
    for one in [one for one in graph.initializer if one.name in HEAD]:
        graph.input.append(helper.make_tensor_value_info(one.name, TensorProto.FLOAT, ["leaves", *list(one.dims)[1:]]))
        graph.initializer.remove(one)
    logits = next(one for one in graph.output if one.name == "logits").type.tensor_type.shape.dim[1]
    logits.dim_param = "leaves"


def _is_same(own: bytes, stages: bytes, factors: Arrays, *, shape: tuple[int, ...]) -> bool:
    """Whether both answer alike to activations that were drawn."""
    drawn = np.random.default_rng(1).normal(size=(_NUM_DRAWN, *shape)).astype(np.float32)
    expected = open_session(own).run(OUTPUTS, {"activation": drawn})
    return agrees(compared(expected, open_session(stages).run(OUTPUTS, {"activation": drawn, **factors})))
