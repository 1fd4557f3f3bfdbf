"""Toy bundles that say where: a trunk and branches that give the map they pool, and evidence beside them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from jobs.evidence import evidence, with_map
from plants import bundle
from plants.bundle import EVIDENCE, PlantView
from tests.serving.toys import GREEN, LEAVES, RED, SHARPNESS, SIZE_PX, Works, plant_view

Box = tuple[int, int, int, int]


def _pooling(before: str, *, cell: int, features: str) -> list[onnx.NodeProto]:
    """Cells of the colours, as deep nets have, and their mean."""
    sides = [cell, cell]
    return [
        helper.make_node("AveragePool", [before], ["cells"], kernel_shape=sides, strides=sides),
        helper.make_node("ReduceMean", ["cells", "places"], [features], keepdims=0),
    ]


def _model(graph: onnx.GraphProto, path: Path, *, features: str) -> onnx.ModelProto:
    if any("places" in node.input for node in graph.node):
        graph.initializer.append(numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "places"))
    model = with_map(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), features=features
    )
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return model


def use_trunk(works: Works, *, cell: int, scale: float = 1 / 255) -> onnx.ModelProto:
    """From now on bundles are made on a trunk that gives a map of cells of so many pixels."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["cut1"], perm=[0, 3, 1, 2]),
        *_pooling("cut1", cell=cell, features="cut0"),
    ]
    graph = helper.make_graph(
        nodes,
        "trunk",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE_PX, SIZE_PX, 3])],
        [
            helper.make_tensor_value_info("cut0", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("cut1", TensorProto.FLOAT, ["n", 3, SIZE_PX, SIZE_PX]),
        ],
        [numpy_helper.from_array(np.array(scale, dtype=np.float32), "scale")],
    )
    works.trunk = works.root / f"trunk-{cell}.onnx"
    model = _model(graph, works.trunk, features="cut0")
    works.trunk_sha256 = works.bundles.publish_trunk(works.trunk)
    return model


def use_bundle(
    works: Works,
    *,
    cut: int = 0,
    cell: int = 1,
    view: PlantView | None = None,
    name: str = "mapped",
    sharpness: float = SHARPNESS,
) -> str:
    """Publishes a bundle that says where, on a trunk of its own, and returns its digest."""
    trunk, folder = use_trunk(works, cell=cell), works.root / "exports" / f"{name}-{cut}-{cell}-{sharpness:g}"
    weights = np.zeros((3, 3), dtype=np.float32)
    weights[[1, 0, 2], [0, 1, 2]] = sharpness  # ok is green, dent red, scratch blue
    shape = ["n", 3] if cut == 0 else ["n", 3, SIZE_PX, SIZE_PX]
    first = [helper.make_node("Identity", ["activation"], ["features"])]
    nodes = first if cut == 0 else _pooling("activation", cell=cell, features="features")
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["features", "weights"], ["logits"])],
        "branch",
        [helper.make_tensor_value_info("activation", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    branch = _model(graph, folder / "branch.onnx", features="features")
    found = evidence(branch if cut else trunk, features="features" if cut else "cut0", weight=weights.T)
    assert found is not None
    (folder / EVIDENCE).write_bytes(found.SerializeToString())
    inputs = np.random.default_rng(0).integers(0, 256, (6, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (works.trunk, folder / "branch.onnx")
    ]
    (activation,) = sessions[0].run([f"cut{cut}"], {"images": inputs})
    (logits,) = sessions[1].run(["logits"], {"activation": activation})
    np.savez(folder / "probe.npz", inputs=inputs, logits=logits)
    manifest = works.manifest(serves={"mill": view or plant_view()}, leaves=LEAVES, cut=cut, name=name)
    bundle.write(folder, manifest)
    return works.bundles.publish(folder)


def planted(size: tuple[int, int], box: Box, *, kind: str = "PNG", turned: bool = False) -> bytes:
    """A green frame with a red defect; `turned` as a camera on its side writes it, to be shown upright by EXIF."""
    image = Image.new("RGB", size, GREEN)
    image.paste(RED, box)
    exif = Image.Exif()
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    both = max(wide, 0) * max(high, 0)
    return both / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - both)
