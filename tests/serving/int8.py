"""Toy bundles in two variants: another file for the trunk stands for INT8, exact, off by a little, by much, or slow."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from plants import bundle
from plants.variants import Int8, Pair, PlantGate, Shift, shift
from tests.serving.toys import Works, make_trunk

WIDTH = 512
GATE = PlantGate(
    n=40,
    macro_f1=Pair(float32=0.9, int8=0.89),
    cost=Pair(float32=100.0, int8=101.0),
    recall={"dent": Pair(float32=1.0, int8=0.98)},
)


def burdened(path: Path, *, layers: int) -> Path:
    """The same trunk, with so many large products whose outcome counts for nothing."""
    model = onnx.load(str(path))
    graph = model.graph
    rng = np.random.default_rng(0)
    at = next(node for node in graph.node if "cut0" in node.output)
    at.output[0] = "plain"
    shapes = [(3, WIDTH), *[(WIDTH, WIDTH)] * layers, (WIDTH, 3)]
    before = "plain"
    for number, shape in enumerate(shapes):
        values = rng.normal(0, 1 / WIDTH, shape) if number < len(shapes) - 1 else np.zeros(shape)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"w{number}"))
        graph.node.append(helper.make_node("MatMul", [before, f"w{number}"], [f"y{number}"]))
        before = f"y{number}"
    graph.node.append(helper.make_node("Add", ["plain", before], ["cut0"]))
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    path.write_bytes(model.SerializeToString())
    return path


def slow_float(works: Works, *, layers: int = 40) -> None:
    """From now on bundles are made on a trunk that takes its time."""
    burdened(works.trunk, layers=layers)
    works.trunk_sha256 = works.bundles.publish_trunk(works.trunk)


def add_int8(
    works: Works,
    digest: str,
    *,
    scale: float = 1 / 255,
    layers: int = 0,
    judged: Shift | None = None,
    gate: dict[str, PlantGate] | None = None,
) -> str:
    """The bundle with a second trunk as its INT8. judged: how far it was from float, where that is not measured here.

    scale: what the trunk multiplies pixels by; layers: how slow it is; gate: what was shown where, all well at mill.
    """
    trunk = make_trunk(works.root / "int8" / f"{scale}-{layers}.onnx", scale=scale)
    if layers:
        burdened(trunk, layers=layers)
    folder = works.root / "both" / digest
    shutil.copytree(works.bundles.fetch(digest, works.root / "fetched"), folder)
    manifest, _ = bundle.read(folder)
    probe = judged or (_shift(folder, trunk=trunk, cut=manifest.cut) if "probe.npz" in manifest.files else None)
    int8 = Int8(
        trunk=works.bundles.publish_trunk(trunk), rung="toy", probe=probe, gate={"mill": GATE} if gate is None else gate
    )
    bundle.write(folder, manifest.model_copy(update={"int8": int8, "files": {}}))
    return works.bundles.publish(folder)


def _shift(folder: Path, *, trunk: Path, cut: int) -> Shift:
    with np.load(folder / "probe.npz") as probe:
        inputs, expected = probe["inputs"], probe["logits"]
    first, second = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (trunk, folder / "branch.onnx")
    )
    (activation,) = first.run([f"cut{cut}"], {"images": inputs})
    return shift(expected, second.run(["logits"], {"activation": activation})[0])
