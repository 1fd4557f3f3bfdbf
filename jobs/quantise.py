"""A float ONNX file becomes a static INT8 one: convolutions and matrices in 8 bits, in and out stay float32.

Activations are unsigned and weights signed, one scale for each channel of a weight: what CPUs with VNNI multiply
without losing anything. The normalisation of the input and the head that gives logits stay float: a head in INT8 cost
20 points of macro-F1 on `mobilenetv2_035`. Whether the file may serve is decided in `jobs.ladder`, from what it
answers. Not for branches that are a head alone: see `has_layers`.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, qdq_loss_debug, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

Method = Literal["minmax", "percentile", "entropy"]
METHODS: dict[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What INT8 makes faster; all else is quantised only on the way between two of them."""
BATCH = 8
NUM_IN_HISTOGRAMS = 32
"""Inputs at most for methods by histogram, which hold every layer's outputs of all of them in memory."""
NUM_COMPARED = 8
"""Inputs on which layers are compared with their float selves."""
WORST = 3
"""How many of the worst tensors lose their INT8 on one step of the ladder."""


class _Inputs(CalibrationDataReader):
    """Gives calibration inputs in batches."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._blocks: Iterator[np.ndarray] = iter(values[at : at + BATCH] for at in range(0, len(values), BATCH))
        self._name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        block = next(self._blocks, None)
        return None if block is None else {self._name: np.ascontiguousarray(block)}


def prepared(source: Path, target: Path) -> None:
    """The float file with its shapes inferred and its norms folded lies at target: what `quantise` takes."""
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        by_rows = Path(scratch, "rows.onnx")
        onnx.save(rows_normalised(onnx.load(str(source))), str(by_rows))
        quant_pre_process(str(by_rows), str(target), skip_symbolic_shape=True)


def rows_normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, where images [N, S, S, 3] are normalised row by row instead of channel by channel.

    INT8 convolutions want channels last, so the runtime moves the trunk's transposition behind its normalisation, which
    then repeats three numbers S x S times: 40 % of an INT8 `mobilenetv2_035`. A row of 3 S numbers is added at once.
    A model that does not begin as `jobs.compress.export_trunk` writes it is left as it is.
    """
    graph = model.graph
    nodes, known = list(graph.node[:4]), {tensor.name: tensor for tensor in graph.initializer}
    if [node.op_type for node in nodes] != ["Transpose", "Cast", "Mul", "Add"]:
        return model
    transpose, cast, *both = nodes
    size = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    constants = [next((name for name in node.input if name in known), None) for node in both]
    if not size or None in constants or any(np.prod(known[name].dims) != 3 for name in constants if name):
        return model
    source, target = graph.input[0].name, both[-1].output[0]
    shapes = {"rows": [0, size, 3 * size], "pixels": [0, size, size, 3]}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v, dtype=np.int64), k) for k, v in shapes.items())
    for node, name in zip(both, constants, strict=True):
        row = np.tile(onnx.numpy_helper.to_array(known[name]).reshape(3), size)  # type: ignore[index]
        graph.initializer.append(onnx.numpy_helper.from_array(row, f"{node.name}_row"))
    make = onnx.helper.make_node
    new = [
        make("Cast", [source], ["images_float"], name=cast.name, to=onnx.TensorProto.FLOAT),
        make("Reshape", ["images_float", "rows"], ["images_rows"], name="to_rows"),
        make("Mul", ["images_rows", f"{both[0].name}_row"], ["images_scaled"], name=both[0].name),
        make("Add", ["images_scaled", f"{both[1].name}_row"], ["images_shifted"], name=both[1].name),
        make("Reshape", ["images_shifted", "pixels"], ["images_pixels"], name="to_pixels"),
        make("Transpose", ["images_pixels"], [target], name=transpose.name, perm=[0, 3, 1, 2]),
    ]
    rest = list(graph.node[4:])
    del graph.node[:]
    graph.node.extend([*new, *rest])
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


def has_layers(path: Path) -> bool:
    """Whether there is anything in the file that INT8 would make faster: a head alone has nothing."""
    graph = onnx.load(str(path)).graph
    return any(node.op_type in HEAVY for node in graph.node if node.name not in set(float_nodes(graph)))


def quantise(
    source: Path, target: Path, *, inputs: np.ndarray, method: Method = "minmax", exclude: Iterable[str] = ()
) -> None:
    """The INT8 file of a prepared float file lies at target.

    inputs: what the file is calibrated on, [N, ...] of its one input. exclude: names of nodes that stay float too.
    """
    model = onnx.load(str(source))
    with _quiet(), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch, target.name)
        quantize_static(
            str(source),
            str(part),
            _Inputs(model.graph.input[0].name, inputs if method == "minmax" else some(inputs)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted({*float_nodes(model.graph), *exclude}),
            calibrate_method=METHODS[method],
        )
        data = onnx.load(str(part)).SerializeToString(deterministic=True)
        part.write_bytes(data)
        os.replace(part, target)


def some(inputs: np.ndarray, *, num: int = NUM_IN_HISTOGRAMS) -> np.ndarray:
    """As many of the inputs as histograms take, evenly over all, in whole batches: the library joins them as equals."""
    num = min(num, len(inputs))
    num = num - num % BATCH if num > BATCH else num
    return inputs[np.linspace(0, len(inputs) - 1, num).astype(int)]


def float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that always stay float: what lies before the first heavy one, and the head of `logits`."""
    seen: set[str] = set()
    names = []
    for node in graph.node:
        if node.op_type in HEAVY or seen.intersection(node.input):
            seen.update(node.output)
        else:
            names.append(node.name)
    return names + _head(graph)


def _head(graph: onnx.GraphProto) -> list[str]:
    """The matrix that gives `logits`, and what follows it."""
    by_output = {name: node for node in graph.node for name in node.output}
    names, at = [], by_output.get("logits")
    while at is not None:
        names.append(at.name)
        if at.op_type in HEAVY:
            return names
        at = next((by_output[name] for name in at.input if name in by_output), None)
    return []


def worst_nodes(source: Path, quantised: Path, *, inputs: np.ndarray, num: int = WORST) -> list[str]:
    """Names of the nodes around the tensors that lose most by their own rounding, in decibels of signal to error.

    source: the prepared float file. These nodes, left float, keep the most for the least time.
    """
    ratios = _ratios(source, quantised, inputs=inputs[:NUM_COMPARED])
    worst = sorted(ratios, key=lambda name: (ratios[name], name))[:num]
    graph = onnx.load(str(source)).graph
    return [node.name for node in graph.node if set(worst) & {*node.input, *node.output}]


def _ratios(source: Path, quantised: Path, *, inputs: np.ndarray) -> dict[str, float]:
    """Tensor -> its own ratio of signal to rounding error, in decibels."""
    name = onnx.load(str(source)).graph.input[0].name
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        found = []
        for path in (source, quantised):
            opened = Path(scratch, path.name + ".all.onnx")
            qdq_loss_debug.modify_model_output_intermediate_tensors(str(path), str(opened))
            found.append(qdq_loss_debug.collect_activations(str(opened), _Inputs(name, inputs)))
        matched = qdq_loss_debug.create_activation_matching(found[1], found[0])
        errors = qdq_loss_debug.compute_activation_error(matched)
    return {tensor: float(row["qdq_err"]) for tensor, row in errors.items()}


def nodes_of(path: Path, names: Sequence[str]) -> list[str]:
    """What people call these nodes: their operator and their place among all, e.g. `Conv 12`."""
    places = {node.name: f"{node.op_type} {at}" for at, node in enumerate(onnx.load(str(path)).graph.node)}
    return [places[name] for name in names if name in places]


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's advice to developers, which it gives on the root logger and on stdout, is not for users."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
