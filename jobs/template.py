"""A branch's ONNX graph as a form to fill in: initialisers by parameter name, BatchNorm folded by a recorded recipe.

Works on what torch's exporter writes unoptimised, where every initialiser still is one parameter under its own name.
Who makes a template tries it on other numbers before trusting it (`jobs.compress.BranchExporter`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jobs.evidence import with_map

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Fold:
    """A BatchNorm that became part of the convolution before it: the names of all that goes in."""

    weight: str
    bias: str
    had_bias: bool
    norm: tuple[str, str, str, str]
    """Scale, shift, running mean, running variance."""
    epsilon: float

    def arrays(self, state: Arrays) -> dict[str, np.ndarray]:
        scale, shift, mean, var = (state[name].astype(np.float64) for name in self.norm)
        factor = scale / np.sqrt(var + self.epsilon)
        weight = state[self.weight]
        bias = state[self.bias].astype(np.float64) if self.had_bias else 0.0
        return {
            self.weight: weight * factor.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1)),
            self.bias: ((bias - mean) * factor + shift).astype(np.float32),
        }


@dataclass
class Template:
    """An exported graph whose initialisers are parameters by name, and the recipe that fills them."""

    model: bytes
    folds: tuple[_Fold, ...]
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto, *, state: Arrays) -> Template:
        """The form of an exported branch; state: its parameters, so that constants can be told from them."""
        model = _simplified(model)
        folds = _fold_norms(model.graph)
        model = with_map(model, features="features")
        folded = {name for fold in folds for name in (fold.weight, fold.bias)}
        names = []
        for initializer in model.graph.initializer:
            if initializer.name in state and initializer.name not in folded:
                names.append(initializer.name)
            if initializer.name in state or initializer.name in folded:
                initializer.ClearField("raw_data")
        return cls(model=model.SerializeToString(), folds=tuple(folds), parameters=tuple(names))

    def filled(self, state: Arrays) -> onnx.ModelProto:
        """The graph with these parameters; constants stay. The head may have any number of leaves."""
        model = onnx.load_from_string(self.model)
        arrays: dict[str, np.ndarray] = {name: state[name] for name in self.parameters}
        for fold in self.folds:
            arrays.update(fold.arrays(state))
        for initializer in model.graph.initializer:
            array = arrays.get(initializer.name)
            if array is not None:
                initializer.dims[:] = array.shape
                initializer.raw_data = np.ascontiguousarray(array).tobytes()
        logits = next(output for output in model.graph.output if output.name == "logits")
        logits.type.tensor_type.shape.dim[1].dim_value = len(state["head.bias"])
        return model


def head_only(*, feature_dim: int, num_leaves: int) -> onnx.ModelProto:
    """The graph of a branch at cut 0: a linear head on pooled features, which it passes on."""
    inputs = [helper.make_tensor_value_info("activation", TensorProto.FLOAT, ["batch", feature_dim])]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_leaves]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", feature_dim]),
    ]
    nodes = [
        helper.make_node("Gemm", ["activation", "head.weight", "head.bias"], ["logits"], transB=1),
        helper.make_node("Identity", ["activation"], ["features"]),
    ]
    shapes = {"head.weight": (num_leaves, feature_dim), "head.bias": (num_leaves,)}
    zeros = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "head", inputs, outputs, zeros)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without notes: the exporter writes stack traces, with this machine's paths, into every node."""
    model.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for group in (model.graph.node, model.graph.initializer, model.graph.input, model.graph.output, model.functions):
        for item in group:
            item.doc_string = ""
            del item.metadata_props[:]
    del model.graph.value_info[:]
    return model


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shape arithmetic folded away, parameters untouched: while that happens they are inputs, not numbers."""
    import onnxscript.optimizer  # half a second, needed only where something is exported

    graph, parameters = model.graph, list(model.graph.initializer)
    inputs = [copy.deepcopy(value) for value in graph.input]
    del graph.initializer[:]
    graph.input.extend(helper.make_tensor_value_info(p.name, p.data_type, list(p.dims)) for p in parameters)
    model = bare(onnxscript.optimizer.optimize(model))
    used = {name for node in model.graph.node for name in node.input}
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(p for p in parameters if p.name in used)
    return model


def _fold_norms(graph: onnx.GraphProto) -> list[_Fold]:
    """Every BatchNorm right after a convolution is gone from the graph; returns how to fill the convolutions."""
    parameters = {i.name: i for i in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    made_by = {node.output[0]: node for node in graph.node}
    folds: list[_Fold] = []
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = made_by.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or uses[norm.input[0]] != 1:
            continue
        names = [*conv.input[1:], *norm.input[1:]]
        if any(name not in parameters or uses[name] != 1 for name in names):
            continue
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        had_bias = len(conv.input) > 2
        bias = conv.input[2] if had_bias else f"{conv.input[1]}.folded_bias"
        scale, shift, mean, var = norm.input[1:5]
        folds.append(_Fold(conv.input[1], bias, had_bias, (scale, shift, mean, var), epsilon))
        if not had_bias:
            conv.input.append(bias)
            zeros = np.zeros(parameters[scale].dims[0], np.float32)
            graph.initializer.append(numpy_helper.from_array(zeros, bias))
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    gone = {name for fold in folds for name in fold.norm}
    kept = [i for i in graph.initializer if i.name not in gone]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return folds
