"""Evidence adds up to the logits, whatever is pooled; and giving a map changes no bit of what is answered."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cluster.registry import Bundles
from jobs.compress import BranchExporter, export_trunk
from jobs.evidence import evidence, pooled, with_map
from jobs.model import CutModel
from jobs.parity import Evaluator, open_session
from jobs.quantise import prepared, quantise
from plants.heatmaps import frame_size
from plants.synthetic import TRUNK
from serving.intake import Frame, PartRequest
from serving.local import local_predictor
from tests.fleets import Works
from tests.jobs.nets import images, model_of
from tests.jobs.test_package import published

LEAVES = ["ok", "dent", "scratch"]
POOLS = {"mean": {}, "mean and maximum": TRUNK["options"]}


@pytest.fixture(scope="module", params=POOLS)
def model(request: pytest.FixtureRequest) -> CutModel:
    return model_of(cuts=(0, 1), size_px=96, **POOLS[request.param])


@pytest.fixture(scope="module")
def folder(model: CutModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """trunk.onnx, and branches `cut0.onnx` and `cut1.onnx` whose head is the same."""
    root = tmp_path_factory.mktemp("files")
    export_trunk(model, root / "trunk.onnx")
    for cut in (0, 1):
        BranchExporter(model, cut).write(model.new_branch(cut, LEAVES, seed=1).eval(), root / f"cut{cut}.onnx")
    return root


def without_map(path: Path) -> Path:
    graph = onnx.load(str(path))
    kept = [output for output in graph.graph.output if output.name != "map"]
    assert len(kept) == len(graph.graph.output) - 1
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    target = path.with_name(f"{path.stem}.plain.onnx")
    onnx.save(graph, str(target))
    return target


def test_what_a_branch_is_given_and_pools_at_once_is_its_map_under_a_name_of_its_own():
    source = helper.make_tensor_value_info("activation", TensorProto.FLOAT, ["batch", 4, 3, 3])
    result = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4, 1, 1])
    node = helper.make_node("GlobalAveragePool", ["activation"], ["features"])
    graph = helper.make_graph([node], "branch", [source], [result])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = open_session(with_map(plain, features="features").SerializeToString())
    given = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)
    features, shown = session.run(["features", "map"], {"activation": given})
    np.testing.assert_array_equal(shown, given)
    np.testing.assert_allclose(features[:, :, 0, 0], given.mean((2, 3)), rtol=1e-5)


def maps(model: CutModel, folder: Path, cut: int, *, trunk: str = "trunk.onnx") -> tuple[np.ndarray, np.ndarray]:
    """Evidence [N, L, h, w] of some images, and the logits [N, L] that the branch gives."""
    head = model.new_branch(cut, LEAVES, seed=1).head.weight.detach().numpy()
    first, second = open_session(str(folder / trunk)), open_session(str(folder / f"cut{cut}.onnx"))
    activation, source = first.run([f"cut{cut}", "map"], {"images": images(5, size_px=96)})
    (logits,) = second.run(["logits"], {"activation": activation})
    if cut:
        (source,) = second.run(["map"], {"activation": activation})
    path, features = (folder / f"cut{cut}.onnx", "features") if cut else (folder / "trunk.onnx", "cut0")
    file = evidence(onnx.load(str(path)), features=features, weight=head)
    assert file is not None
    return open_session(file.SerializeToString()).run(["evidence"], {"map": source})[0], logits


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 1])
def test_evidence_over_all_places_is_the_logit(model: CutModel, folder: Path, cut: int):
    found, logits = maps(model, folder, cut)
    assert found.shape == (5, 3, 3, 3)
    np.testing.assert_allclose(found.sum(axis=(2, 3)), logits, atol=1e-5)  # a new head's bias is 0
    assert found.std() > 0


@pytest.mark.slow
def test_a_head_and_a_branch_of_the_same_numbers_have_the_same_map(model: CutModel, folder: Path):
    np.testing.assert_allclose(maps(model, folder, 0)[0], maps(model, folder, 1)[0], atol=1e-5)


@pytest.mark.slow
def test_a_file_that_gives_its_map_answers_the_same_to_the_bit(folder: Path):
    given = {"trunk": {"images": images(5, size_px=96)}}
    given["cut1"] = {"activation": Evaluator(folder / "trunk.onnx").activations(images(5, size_px=96))[1]}
    for name, inputs in given.items():
        plain = open_session(str(without_map(folder / f"{name}.onnx")))
        names = [output.name for output in plain.get_outputs()]
        mapped = open_session(str(folder / f"{name}.onnx"))
        for one, other in zip(plain.run(names, inputs), mapped.run(names, inputs), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_int8_is_the_same_with_a_map_and_without_and_its_evidence_near(model: CutModel, folder: Path):
    without_map(folder / "trunk.onnx")
    for name in ("trunk", "trunk.plain"):
        prepared(folder / f"{name}.onnx", folder / f"{name}.float.onnx")
        quantise(folder / f"{name}.float.onnx", folder / f"{name}.int8.onnx", inputs=images(16, size_px=96))
    graphs = [onnx.load(str(folder / f"{name}.int8.onnx")).graph for name in ("trunk", "trunk.plain")]
    assert len({tuple(sorted(Counter(n.op_type for n in graph.node).items())) for graph in graphs}) == 1
    inputs = {"images": images(5, size_px=96)}
    said = [open_session(str(folder / f"{n}.int8.onnx")).run(["cut0"], inputs)[0] for n in ("trunk", "trunk.plain")]
    np.testing.assert_array_equal(*said)
    found, logits = maps(model, folder, 0, trunk="trunk.int8.onnx")
    np.testing.assert_allclose(found.sum(axis=(2, 3)), logits, atol=0.02)  # what is pooled is rounded too
    assert np.corrcoef(found.ravel(), maps(model, folder, 0)[0].ravel())[0, 1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("run", ["frozen-essen-s0", "own-essen-s0"])
def test_defects_of_the_embedded_fleet_are_found_where_they_are_drawn(works: Works, tmp_path: Path, run: str):
    digest, policy = published(works, model=run, members=[run])
    bundles = Bundles(works.store)
    folder = bundles.fetch(digest, tmp_path / "bundles")
    rules = works.store.local_path(f"policies/{policy}.json")
    (trunk,) = (works.store.local_path("trunks") or tmp_path).glob("*.onnx")
    one = local_predictor(folder, plant="essen", policy=rules, trunk=trunk)
    place = Path(works.fleet.store).parent / "essen"
    hits, centre, num = 0, 0, 0
    for row in csv.DictReader((place / "labels.csv").open()):
        if not row["box"]:
            continue
        data = (place / row["frame"]).read_bytes()
        found = one.predict(PartRequest("essen", (Frame("f", data),), environment=row["environment"]))
        if found.location is None:
            assert found.decision.verdict == "ok"
            continue
        x0, y0, x1, y1 = (float(value) for value in row["box"].split())
        a0, b0, a1, b1 = found.location.box
        roi = found.heat.geometry.roi or (0, 0, *frame_size(data))
        num += 1
        hits += a0 <= (x0 + x1) / 2 <= a1 and b0 <= (y0 + y1) / 2 <= b1
        wide, high = (a1 - a0) / 2, (b1 - b0) / 2
        x, y = (roi[0] + roi[2]) / 2, (roi[1] + roi[3]) / 2
        centre += abs((x0 + x1) / 2 - x) <= wide and abs((y0 + y1) / 2 - y) <= high
    assert num >= 8
    assert hits / num >= 0.7, (hits, centre, num)
    assert hits > 1.5 * centre, (hits, centre, num)


def small(*nodes: onnx.NodeProto, axes: tuple[int, ...] = (2, 3)) -> onnx.ModelProto:
    """Images [N, 4, 6, 6] through a convolution `x` to `cut0`."""
    value = helper.make_tensor_value_info
    weights = {"w": np.ones((4, 4, 1, 1), np.float32), "flat": np.array([0, -1], np.int64)}
    tensors = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
    tensors += [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "w"], ["x"]), *nodes],
        "net",
        [value("images", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [value("cut0", TensorProto.FLOAT, ["n", None])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_what_is_no_pooled_map_has_none():
    mean, node = helper.make_node("ReduceMean", ["x", "axes"], ["m"]), helper.make_node
    flat = node("Reshape", ["m", "flat"], ["cut0"])
    known = pooled(small(mean, flat).graph, "cut0")
    assert known is not None
    assert known == ("x", ("mean",))
    computed = small(mean, node("Conv", ["m", "w"], ["c"]), node("Reshape", ["c", "flat"], ["cut0"]))
    tokens = small(node("Reshape", ["x", "flat"], ["cut0"]))
    for other in (computed, tokens, small(mean, flat, axes=(1, 2))):
        assert pooled(other.graph, "cut0") is None
        assert [output.name for output in with_map(other, features="cut0").graph.output] == ["cut0"]
        assert evidence(other, features="cut0", weight=np.ones((2, 4))) is None
