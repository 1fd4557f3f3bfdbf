"""Plants on shared stages: each gets its own answers, takes the memory of its factors, and harms no other."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from plants import bundle
from plants.errors import InputError
from serving.adapters import Adapter, read_factors
from serving.intake import Frame, PartRequest
from serving.local import local_predictor
from serving.router import Target
from serving.scoring import Model
from serving.sessions import KeptSession
from serving.standing import cost
from serving.wiring import Shelf, Tiers
from tests.serving.toys import LEAVES, SIZE_PX, Works, _save, plant_view, png

NAMES = ("head.bias", "head.weight", "layer.a", "layer.b")


def make_stages(path: Path) -> Path:
    """Mean colours through a linear layer that is the identity, with factors beside it, and a head; both are inputs."""
    nodes = [
        helper.make_node("ReduceMean", ["activation", "axes"], ["colours"], keepdims=0),
        helper.make_node("Gemm", ["colours", "layer"], ["layer.out"], transB=1),
        helper.make_node("Gemm", ["colours", "layer.a"], ["low"], transB=1),
        helper.make_node("Gemm", ["low", "layer.b"], ["change"], transB=1),
        helper.make_node("Add", ["layer.out", "change"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    shapes = {"activation": ["n", 3, SIZE_PX, SIZE_PX], "layer.a": ["rank", 3], "layer.b": [3, "rank"]}
    shapes |= {"head.weight": ["leaves", 3], "head.bias": ["leaves"]}
    outputs = {"logits": ["n", "leaves"], "features": ["n", 3]}
    ones = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    numbers = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.eye(3, dtype=np.float32), "layer"),
    ]
    return _save(helper.make_graph(nodes, "stages", ones, found, numbers), path)


def factors_of(number: int, *, rank: int = 2) -> dict[str, np.ndarray]:
    """A plant's own numbers, no two plants' alike."""
    rng = np.random.default_rng(number)
    shapes = {"layer.a": (rank, 3), "layer.b": (3, rank), "head.weight": (len(LEAVES), 3), "head.bias": (len(LEAVES),)}
    return {name: rng.normal(0, 2, shape).astype(np.float32) for name, shape in shapes.items()}


def merged(path: Path, factors: dict[str, np.ndarray]) -> Path:
    """The same plant's branch, merged."""
    whole = np.eye(3, dtype=np.float32) + factors["layer.b"] @ factors["layer.a"]
    numbers = {"layer": whole, "head.weight": factors["head.weight"], "head.bias": factors["head.bias"]}
    nodes = [
        helper.make_node("ReduceMean", ["activation", "axes"], ["colours"], keepdims=0),
        helper.make_node("Gemm", ["colours", "layer"], ["features"], transB=1),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    given = [helper.make_tensor_value_info("activation", TensorProto.FLOAT, ["n", 3, SIZE_PX, SIZE_PX])]
    shapes = {"logits": ["n", len(LEAVES)], "features": ["n", 3]}
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    tensors = [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")]
    tensors += [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    return _save(helper.make_graph(nodes, "branch", given, found, tensors), path)


class Adapted:
    """A fleet of adapter plants on one file of stages."""

    def __init__(self, root: Path) -> None:
        self.works = Works(root)
        self.stages = make_stages(root / "stages.onnx")
        self.sha256 = self.works.bundles.publish_trunk(self.stages)

    def target(self, number: int, *, factors: dict[str, np.ndarray] | None = None, shared: bool = True) -> Target:
        """A published bundle of plant-N with its policy."""
        plant, own = f"plant-{number}", factors_of(number)
        folder = self.works.root / "exports" / plant
        merged(folder / "branch.onnx", own)
        (folder / bundle.ADAPTER).write_bytes(b"as trained")
        if shared:
            np.savez(folder / bundle.FACTORS, **(factors or own))
        inputs = np.random.default_rng(0).integers(0, 256, (6, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        (colours,) = onnxruntime.InferenceSession(str(self.works.trunk)).run(["cut1"], {"images": inputs})
        (logits,) = onnxruntime.InferenceSession(str(folder / "branch.onnx")).run(["logits"], {"activation": colours})
        np.savez(folder / "probe.npz", inputs=inputs, logits=logits)
        words = {"cut": 1, "tier": "adapter", "stages": self.sha256 if shared else None}
        bundle.write(folder, self.works.manifest(serves={plant: plant_view(tuple(sorted(LEAVES)))}, **words))
        policy = self.works.policy(plant, classes=tuple(sorted(LEAVES)))
        return Target(self.works.bundles.publish(folder), policy, 1)

    def shelf(self, name: str = "shelf", *, merge: bool = False) -> Shelf:
        """What a replica would open."""
        return Shelf(self.works.store, folder=self.works.root / name, tiers=Tiers(merge_adapters=merge))


@pytest.fixture
def fleet(tmp_path: Path) -> Adapted:
    return Adapted(tmp_path)


def part(plant: str, number: int) -> PartRequest:
    colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
    return PartRequest(plant, (Frame("part.png", png(colour)),), environment="cam-1")


def test_an_adapter_answers_as_its_branch_and_as_predict_and_says_what_it_costs(fleet):
    target = fleet.target(0)
    shared, own = (
        fleet.shelf().predictor("plant-0", target),
        fleet.shelf("own", merge=True).predictor("plant-0", target),
    )
    local = local_predictor(fleet.works.bundles.fetch(target.bundle, fleet.works.root / "store" / "bundles"))
    assert (shared.scorer.tier, own.scorer.tier) == ("adapter", "branch")
    for number in range(8):
        one = shared.predict(part("plant-0", number)).probabilities
        assert one == pytest.approx(own.predict(part("plant-0", number)).probabilities, abs=1e-5)
        assert one == pytest.approx(local.predict(part("plant-0", number)).probabilities, abs=1e-5)
    assert cost(shared.scorer).memory_mb == pytest.approx(96e-6)
    assert cost(shared.scorer).is_loaded


def test_a_bundle_from_before_there_were_shared_stages_serves_as_a_branch(fleet):
    predictor = fleet.shelf().predictor("plant-0", fleet.target(0, shared=False))
    assert predictor.scorer.tier == "branch"
    assert isinstance(predictor.scorer.parts[0], KeptSession)
    assert "stages" not in (fleet.works.root / "exports/plant-0/manifest.json").read_text()


def test_threads_that_ask_for_many_plants_at_once_never_get_anothers_answer(fleet):
    shelf = fleet.shelf()
    predictors = [shelf.predictor(f"plant-{n}", fleet.target(n)) for n in range(6)]
    models = [one.scorer for one in predictors if isinstance(one.scorer, Model)]
    assert len({id(one.branch._stages) for one in models if isinstance(one.branch, Adapter)}) == 1
    parts = [[part(one.plant, number) for number in range(4)] for one in predictors]
    expected = [[one.predict(p).probabilities for p in mine] for one, mine in zip(predictors, parts, strict=True)]
    assert len({tuple(answers[0].values()) for answers in expected}) == len(predictors)
    start = threading.Barrier(4)

    def asked(seed: int) -> None:
        start.wait()
        for at, number in np.random.default_rng(seed).integers((len(predictors), 4), size=(60, 2)):
            assert predictors[at].predict(parts[at][number]).probabilities == pytest.approx(
                expected[at][number], abs=1e-6
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(asked, range(4)))


def test_damaged_factors_stop_their_plant_alone_with_one_line(fleet):
    shelf, good = fleet.shelf(), fleet.target(0)
    wrong = factors_of(1) | {"layer.b": np.zeros((4, 2), np.float32)}
    with pytest.raises(InputError, match=r"file factors\.npz: does not fit the stages .*\(layer\.b\)"):
        shelf.predictor("plant-1", fleet.target(1, factors=wrong))
    others = fleet.target(2, factors=factors_of(3))
    with pytest.raises(InputError, match="gives other outputs here"):
        shelf.predictor("plant-2", others)
    torn = fleet.target(4)
    path = fleet.works.bundles.fetch(torn.bundle, fleet.works.root / "shelf" / "bundles") / bundle.FACTORS
    path.write_bytes(path.read_bytes()[:-20])
    assert shelf.predictor("plant-4", torn).scorer.tier == "adapter", "what is torn here is fetched again"
    assert shelf.predictor("plant-0", good).predict(part("plant-0", 0)).probabilities


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"layer.c": np.zeros(1, np.float32)}, "layer.c"),
        ({"layer.a": np.zeros((2, 3))}, "layer.a"),
        ({"layer.a": np.full((2, 3), np.nan, np.float32)}, "layer.a"),
        ({"head.bias": np.array(["ok"], dtype=object)}, "is not a table of factors"),
    ],
)
def test_factors_that_the_stages_cannot_take_are_named(fleet, tmp_path, change, what):
    np.savez(tmp_path / "factors.npz", **factors_of(0) | change)
    with pytest.raises(InputError, match=re.escape(what)):
        read_factors(tmp_path / "factors.npz", stages=onnxruntime.InferenceSession(str(fleet.stages)))


def test_factors_that_unpack_to_more_than_the_bound_are_refused_unread(fleet, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.adapters.LARGEST_MB", 1e-4)
    np.savez_compressed(tmp_path / "factors.npz", **{"layer.a": np.zeros((10_000, 3), np.float32)})
    with pytest.raises(InputError, match="holds more than"):
        read_factors(tmp_path / "factors.npz", stages=onnxruntime.InferenceSession(str(fleet.stages)))


def test_fifty_plants_on_shared_stages_take_less_than_fifty_kilobytes_each(fleet):
    shelf, process = fleet.shelf(), psutil.Process()
    targets = [fleet.target(number) for number in range(60)]
    kept = [shelf.predictor(f"plant-{n}", targets[n]) for n in range(10)]
    before = process.memory_info().rss
    kept += [shelf.predictor(f"plant-{n}", targets[n]) for n in range(10, 60)]
    assert (process.memory_info().rss - before) / 50 < 50e3
    assert {one.scorer.tier for one in kept} == {"adapter"}
