"""Where in a picture a model's logits come from: class activation maps, exact for a linear head on a pooled map.

A trunk or branch gets one more output, `map`, the tensor that is pooled. A small file beside the branch turns it into
evidence: for every leaf a map whose sum, with the head's bias, is the leaf's logit. Of a mean every place has its
share, of a maximum the place where it is taken has all. Source: Zhou et al., Learning Deep Features for Discriminative
Localization, 2016. Not for heads that see more than a pooled map (MobileNetV3, ConvNeXt and transformers compute on
what they pooled): those have no map, and the card says so.

One output more costs nothing worth naming: ResNet-18 at 224 px, one thread, 0.998 of the time in float and 1.006 in
INT8, the embedded backbone 1.01 and 0.99; logits and features are equal to the bit, and INT8 has the same nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plants.bundle import MAP

Pool = Literal["mean", "max"]
_SHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Identity"})
_POOLS: dict[str, Pool] = {
    "ReduceMean": "mean",
    "GlobalAveragePool": "mean",
    "ReduceMax": "max",
    "GlobalMaxPool": "max",
}


class Pooled(NamedTuple):
    """How features come about: pools of one map, side by side."""

    map: str
    """The map's name, [N, C, h, w]."""
    pools: tuple[Pool, ...]


def pooled(graph: onnx.GraphProto, features: str) -> Pooled | None:
    """Of which map, and how, these features [N, F] are pooled; None where they are anything else."""
    made_by = {name: node for node in graph.node for name in node.output}
    found = _pools(graph, made_by.get(features), made_by)
    if not found or len({name for name, _ in found}) > 1:
        return None
    return Pooled(found[0][0], tuple(pool for _, pool in found))


def _pools(
    graph: onnx.GraphProto, node: onnx.NodeProto | None, made_by: dict[str, onnx.NodeProto]
) -> list[tuple[str, Pool]]:
    """The map and the kind of each pool, in the features' order; nothing where something else is on the way."""
    while node is not None and node.op_type in _SHAPES:
        node = made_by.get(node.input[0])
    if node is None:
        return []
    if node.op_type in _POOLS:
        is_global = node.op_type.startswith("Global") or _axes(graph, node) in ([2, 3], [-2, -1])
        return [(node.input[0], _POOLS[node.op_type])] if is_global else []
    if node.op_type == "Concat" and _attribute(node, "axis") == 1:
        each = [_pools(graph, made_by.get(name), made_by) for name in node.input]
        return [pool for one in each for pool in one] if all(each) else []
    return []


def _axes(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[int]:
    if len(node.input) < 2:
        return sorted(_attribute(node, "axes") or [])
    known = [tensor for tensor in graph.initializer if tensor.name == node.input[1]]
    return sorted(numpy_helper.to_array(known[0]).tolist()) if known else []


def _attribute(node: onnx.NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), None)


def with_map(model: onnx.ModelProto, *, features: str) -> onnx.ModelProto:
    """The model, changed in place, gives what its features are pooled of as `map`, where they are pooled of one."""
    graph = model.graph
    found = pooled(graph, features)
    if found is None or any(output.name == MAP for output in graph.output):
        return model
    if any(value.name == found.map for value in (*graph.input, *graph.output)):
        graph.node.append(helper.make_node("Identity", [found.map], [MAP], name=MAP))
    else:
        for node in graph.node:
            node.input[:] = [MAP if name == found.map else name for name in node.input]
            node.output[:] = [MAP if name == found.map else name for name in node.output]
    shape = ["batch", "channels", "rows", "columns"]
    graph.output.append(helper.make_tensor_value_info(MAP, TensorProto.FLOAT, shape))
    return model


def evidence(source: onnx.ModelProto, *, features: str, weight: np.ndarray) -> onnx.ModelProto | None:
    """`map` [N, C, h, w] to `evidence` [N, L, h, w], whose sum over places is the head's product with the features.

    source: the file that gives `map`. weight: the head's, [L, F]. None where the file gives no map.
    """
    found = pooled(source.graph, features)
    if found is None or all(output.name != MAP for output in source.graph.output):
        return None
    parts = np.split(np.asarray(weight, np.float32), len(found.pools), axis=1)
    nodes: list[onnx.NodeProto] = []
    tensors = {"places": np.array([2, 3], np.int64), "first": np.array([2], np.int64), "last": np.array([4], np.int64)}
    for at, (pool, part) in enumerate(zip(found.pools, parts, strict=True)):
        tensors[f"weight{at}"] = np.ascontiguousarray(part)[:, :, None, None]
        nodes += [*_shares(pool, f"share{at}"), _node("Conv", [f"share{at}", f"weight{at}"], f"part{at}")]
    nodes.append(_node("Sum", [f"part{at}" for at in range(len(parts))], "evidence"))
    graph = helper.make_graph(
        nodes,
        "evidence",
        [helper.make_tensor_value_info(MAP, TensorProto.FLOAT, ["batch", parts[0].shape[1], "rows", "columns"])],
        [helper.make_tensor_value_info("evidence", TensorProto.FLOAT, ["batch", len(weight), "rows", "columns"])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _shares(pool: Pool, name: str) -> list[onnx.NodeProto]:
    """What every place gives to a channel's pooled value [N, C, h, w]; several maxima share."""
    if pool == "mean":
        return [
            _node("Shape", [MAP], f"{name}.shape"),
            _node("Slice", [f"{name}.shape", "first", "last"], f"{name}.sides"),
            _node("ReduceProd", [f"{name}.sides"], f"{name}.num", keepdims=1),
            _node("Cast", [f"{name}.num"], f"{name}.of", to=TensorProto.FLOAT),
            _node("Div", [MAP, f"{name}.of"], name),
        ]
    return [
        _node("ReduceMax", [MAP, "places"], f"{name}.top", keepdims=1),
        _node("Equal", [MAP, f"{name}.top"], f"{name}.is"),
        _node("Cast", [f"{name}.is"], f"{name}.at", to=TensorProto.FLOAT),
        _node("ReduceSum", [f"{name}.at", "places"], f"{name}.num", keepdims=1),
        _node("Mul", [MAP, f"{name}.at"], f"{name}.all"),
        _node("Div", [f"{name}.all", f"{name}.num"], name),
    ]


def _node(op: str, inputs: Sequence[str], output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)
