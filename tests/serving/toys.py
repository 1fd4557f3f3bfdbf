"""A tiny real fleet on disk: a trunk that averages colours, branches that read them, policies, routes and tokens.

Red parts are dented, blue ones scratched, green ones good; two views of the same trunk (`cut0` colours, `cut1` a map).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cluster.access import Access
from cluster.registry import Bundles, Journal
from cluster.settings import Settings
from cluster.storage import LocalStore
from plants import bundle
from plants.bundle import Manifest, PlantView, TrunkRef
from plants.costs import Policy
from plants.geometry import Environment, Geometry

SIZE_PX = 32
LEAVES = ("ok", "dent", "scratch")
GREEN, RED, BLUE = (20, 220, 20), (220, 20, 20), (20, 20, 220)
SHARPNESS = 20.0


def png(colour: tuple[int, int, int], *, size: tuple[int, int] = (48, 40), patch: Any = None) -> bytes:
    """A frame of one colour; `patch` (colour, box) paints a defect into it."""
    image = Image.new("RGB", size, colour)
    if patch is not None:
        image.paste(patch[0], patch[1])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def make_trunk(path: Path, *, scale: float = 1 / 255) -> Path:
    """uint8 images [N, S, S, 3] -> cut0: mean colour [N, 3], cut1: a map [N, 3, S, S]."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["cut0"], keepdims=0),
        helper.make_node("Transpose", ["scaled"], ["cut1"], perm=[0, 3, 1, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "trunk",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE_PX, SIZE_PX, 3])],
        [
            helper.make_tensor_value_info("cut0", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("cut1", TensorProto.FLOAT, ["n", 3, SIZE_PX, SIZE_PX]),
        ],
        [
            numpy_helper.from_array(np.array(scale, dtype=np.float32), "scale"),
            numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
        ],
    )
    return _save(graph, path)


def make_branch(path: Path, *, cut: int = 0, leaves: tuple[str, ...] = LEAVES, sharpness: float = SHARPNESS) -> Path:
    """Colours to leaves: green is ok, red dent, blue scratch, others get nothing."""
    colour = {"dent": 0, "ok": 1, "scratch": 2}
    weights = np.zeros((3, len(leaves)), dtype=np.float32)
    for column, leaf in enumerate(leaves):
        if leaf in colour:
            weights[colour[leaf], column] = sharpness
    shape = ["n", 3] if cut == 0 else ["n", 3, SIZE_PX, SIZE_PX]
    nodes = [helper.make_node("MatMul", ["features", "weights"], ["logits"])]
    initializers = [numpy_helper.from_array(weights, "weights")]
    if cut == 0:
        nodes.insert(0, helper.make_node("Identity", ["activation"], ["features"]))
    else:
        nodes.insert(0, helper.make_node("ReduceMean", ["activation", "axes"], ["features"], keepdims=0))
        initializers.append(numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"))
    graph = helper.make_graph(
        nodes,
        "branch",
        [helper.make_tensor_value_info("activation", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(leaves)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
        ],
        initializers,
    )
    return _save(graph, path)


def plant_view(classes: tuple[str, ...] = LEAVES, *, environments: dict[str, Environment] | None = None) -> PlantView:
    """A plant whose classes are leaves of the same name."""
    return PlantView(
        classes=classes,
        ok=tuple(name for name in classes if name == "ok"),
        leaf_sets={name: (name,) for name in classes},
        environments=environments or {"cam-1": Environment(), "tiled": Environment(geometry=TILES)},
    )


TILES = Geometry(fit="tiles", tile_px=32, overlap_px=8)


@dataclass
class Works:
    """A fleet's store, journal and tokens under one folder."""

    root: Path

    def __post_init__(self) -> None:
        self.store = LocalStore(self.root / "store")
        self.settings = Settings(home=self.root / "home", slots=1)
        self.bundles = Bundles(self.store)
        self.journal = Journal(self.settings.journal_url)
        self.access = Access(self.settings.journal_url)
        self.trunk = make_trunk(self.root / "trunk.onnx")
        self.trunk_sha256 = self.bundles.publish_trunk(self.trunk)
        self.tokens: dict[tuple[str, str | None], str] = {}

    def manifest(self, *, serves: dict[str, PlantView], leaves: tuple[str, ...] = LEAVES, **kwargs: Any) -> Manifest:
        """A manifest on this fleet's trunk."""
        trunk = TrunkRef(sha256=self.trunk_sha256, backbone="colours", weights_digest="", size_px=SIZE_PX, cuts=(0, 1))
        defaults: dict[str, Any] = {
            "kind": "own",
            "run_id": "run-1",
            "name": "own",
            "plants": tuple(serves),
            "seed": 0,
            "code_version": "test",
            "created_at": "2026-01-01T00:00:00Z",
        }
        return Manifest(leaves=leaves, trunk=trunk, serves=serves, **(defaults | kwargs))

    def bundle(
        self,
        name: str,
        *,
        serves: dict[str, PlantView] | None = None,
        leaves: tuple[str, ...] = LEAVES,
        cut: int = 0,
        sharpness: float = SHARPNESS,
        with_probe: bool = True,
        normality: Any = None,
        severity: Any = None,
        recorded: float = 0.0,
    ) -> str:
        """Publishes a bundle and returns its digest. recorded: added to the severities of its probe."""
        folder = self.root / "exports" / name
        make_branch(folder / "branch.onnx", cut=cut, leaves=leaves, sharpness=sharpness)
        if with_probe:
            inputs = np.random.default_rng(0).integers(0, 256, (6, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
            trunk = onnxruntime.InferenceSession(str(self.trunk), providers=["CPUExecutionProvider"])
            branch = onnxruntime.InferenceSession(str(folder / "branch.onnx"), providers=["CPUExecutionProvider"])
            (activation,) = trunk.run([f"cut{cut}"], {"images": inputs})
            logits, features = branch.run(["logits", "features"], {"activation": activation})
            grave = {} if severity is None else {"severity": severity.of(features) + recorded}
            np.savez(folder / "probe.npz", inputs=inputs, logits=logits, **grave)
        if severity is not None:
            severity.save(folder / "severity.npz")
        if normality is not None:
            normality.save(folder / "normality.npz")
        manifest = self.manifest(serves=serves or {"mill": plant_view()}, leaves=leaves, cut=cut, name=name)
        bundle.write(folder, manifest)
        return self.bundles.publish(folder)

    def ensemble(
        self, members: tuple[str, ...], weights: tuple[float, ...], *, normality: Any = None, **kwargs: Any
    ) -> str:
        """Publishes an ensemble of published bundles and returns its digest."""
        folder = self.root / "exports" / "ensemble"
        folder.mkdir(parents=True, exist_ok=True)
        if normality is not None:
            normality.save(folder / "normality.npz")
        serves = kwargs.pop("serves", {"mill": plant_view()})
        manifest = self.manifest(
            serves=serves, kind="ensemble", name="ensemble", members=members, weights=weights, **kwargs
        )
        bundle.write(folder, manifest)
        return self.bundles.publish(folder)

    def good_parts(self, normality: Any, **kwargs: Any) -> str:
        """Publishes a bundle that knows good parts only and returns its digest."""
        folder = self.root / "exports" / "good"
        folder.mkdir(parents=True, exist_ok=True)
        normality.save(folder / "normality.npz")
        serves = kwargs.pop("serves", {"mill": plant_view()})
        bundle.write(folder, self.manifest(serves=serves, kind="normality", leaves=("ok",), **kwargs))
        return self.bundles.publish(folder)

    def policy(self, plant: str = "mill", *, classes: tuple[str, ...] = LEAVES, **kwargs: Any) -> str:
        """Stores a policy and returns its digest."""
        ok = tuple(name for name in classes if name == "ok")
        limits = {"pass_below": 0.2, "reject_above": 0.6} | kwargs
        policy = Policy(plant=plant, classes=classes, ok=ok, **limits)
        self.store.write(f"policies/{policy.digest}.json", policy.to_json().encode())
        return policy.digest

    def promote(self, plant: str = "mill", *, bundle: str, policy: str) -> int:
        """The plant's new route."""
        return self.journal.promote(plant, bundle=bundle, policy=policy, who="test").sequence

    def token(self, role: Any = "plant", *, plant: str | None = "mill") -> dict[str, str]:
        """The headers of this role's bearer. A token issued before a gate opens is known to it without a wait."""
        if (role, plant) not in self.tokens:
            self.tokens[role, plant] = self.access.issue(role, plant=plant, ttl=timedelta(hours=1))
        return {"Authorization": f"Bearer {self.tokens[role, plant]}"}


def spoil(path: Path) -> None:
    """One byte of the file is another."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
