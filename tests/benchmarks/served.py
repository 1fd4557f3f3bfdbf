"""What `bench_serving.py` serves: one bundle in a store, with policy, route and token, and images to send."""

from __future__ import annotations

import argparse
import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

PLANT = "bench"
CLASSES = ("ok", "dent", "scratch", "stain", "chip")
SIZES = {
    "10kB": (10_000, (320, 240), 16),
    "50kB": (50_000, (800, 600), 16),
    "2MB": (2_000_000, (2592, 1944), 4),
    "8MB": (8_000_000, (5184, 3888), 2),
}
"""Bytes of a JPEG, its pixels, and how many there are."""


def published(folder: Path, *, given: argparse.Namespace, sizes: list[str]) -> dict[str, Any]:
    """The task that every side gets."""
    from cluster.access import Access
    from cluster.registry import Bundles, Journal
    from cluster.settings import Settings
    from cluster.storage import LocalStore
    from plants.costs import Policy

    images = {size: _images(folder / "images" / size, size=size) for size in sizes}
    store = LocalStore(folder / "store")
    settings = Settings(home=folder / "home", slots=given.replicas)
    known = _images(folder / "images" / "10kB", size="10kB")
    trunk, bundle_folder = _exported(folder / "exports", images=known, given=given, bundles=Bundles(store))
    digest = Bundles(store).publish(bundle_folder)
    policy = Policy(plant=PLANT, bundle=digest, classes=CLASSES, ok=("ok",), pass_below=0.2, reject_above=0.6)
    store.write(f"policies/{policy.digest}.json", policy.to_json().encode())
    Journal(settings.journal_url).promote(PLANT, bundle=digest, policy=policy.digest, who="bench")
    token = Access(settings.journal_url).issue("plant", plant=PLANT, ttl=timedelta(days=1))
    return {
        "store": store.uri,
        "home": str(settings.home),
        "replicas": given.replicas,
        "plant": PLANT,
        "bundle": str(bundle_folder),
        "trunk": str(trunk),
        "branch": str(bundle_folder / "branch.onnx"),
        "token": token,
        "files": images,
    }


def _exported(folder: Path, *, images: list[str], given: argparse.Namespace, bundles: Any) -> tuple[Path, Path]:
    """The trunk's file and a bundle's folder. The head is random, spread so that images get different answers."""
    import torch

    from jobs.backbone import load_backbone
    from jobs.compress import BranchExporter, Evaluator, export_trunk
    from jobs.model import CutModel
    from plants.plant import Trunk

    spec = Trunk(backbone=given.backbone, weights=given.weights, size_px=given.size_px, cuts=(0, given.cut or 1))
    backbone = load_backbone(spec)
    if given.weights == "none":
        _randomise_norms(backbone.net)
    model = CutModel(spec, backbone)
    bundle_folder = folder / "bundle"
    bundle_folder.mkdir(parents=True, exist_ok=True)
    trunk = folder / "trunk.onnx"
    export_trunk(model, trunk)
    seen = _views(images, size_px=spec.size_px, interpolation=model.interpolation)
    features = torch.from_numpy(Evaluator(trunk).activations(seen, batch=8)[0])
    branch = model.new_branch(given.cut, CLASSES)
    generator = torch.Generator().manual_seed(0)
    scale = 2 / (features.std(0) * features.shape[1] ** 0.5).clamp_min(1e-3)
    weight = torch.randn(len(CLASSES), features.shape[1], generator=generator) * scale
    branch.adopt_head(weight, -weight @ features.mean(0), CLASSES)
    exported = bundle_folder / "branch.onnx"
    BranchExporter(model, given.cut).write(branch, exported)
    if given.int8:
        _quantised(trunk, inputs=seen)
        if given.cut:
            _quantised(exported, inputs=Evaluator(trunk).activations(seen, batch=8)[given.cut])
    _write_manifest(bundle_folder, model=model, sha256=bundles.publish_trunk(trunk), given=given)
    return trunk, bundle_folder


def _quantised(path: Path, *, inputs: np.ndarray) -> None:
    """The file is INT8, calibrated on these inputs."""
    from jobs.quantise import prepared, quantise

    ready = path.with_suffix(".prepared.onnx")
    prepared(path, ready)
    quantise(ready, path, inputs=inputs)
    ready.unlink()


def _write_manifest(folder: Path, *, model: Any, sha256: str, given: argparse.Namespace) -> None:
    from plants import bundle
    from plants.bundle import Manifest, PlantView, TrunkRef
    from plants.geometry import Environment

    leaf_sets = {name: (name,) for name in CLASSES}
    environment = Environment(geometry=getattr(given, "geometry", None) or {})
    view = PlantView(classes=CLASSES, ok=("ok",), leaf_sets=leaf_sets, environments={"cam": environment})
    trunk = TrunkRef(
        sha256=sha256,
        backbone=given.backbone,
        weights_digest=model.weights_digest,
        size_px=given.size_px,
        interpolation=model.interpolation,
        cuts=model.cuts,
    )
    bundle.write(
        folder,
        Manifest(
            kind="own",
            run_id="bench",
            name="bench",
            plants=(PLANT,),
            leaves=CLASSES,
            trunk=trunk,
            cut=given.cut,
            tier="branch" if given.cut else "head",
            branch_inputs="map" if given.cut else "features",
            serves={PLANT: view},
            seed=0,
            code_version="bench",
            created_at="",
        ),
    )


def _views(images: list[str], *, size_px: int, interpolation: Any) -> np.ndarray:
    from plants.geometry import Environment
    from plants.views import read_views

    where = Environment()
    how: Any = {"geometry": where.geometry, "photometry": where.photometry, "interpolation": interpolation}
    return np.concatenate([read_views(Path(file).read_bytes(), size_px=size_px, **how).pixels for file in images])


def _randomise_norms(net: Any) -> None:
    """Norms as a trained network has them: timm's random ones end in zeros, and a runtime could skip the work."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            size = module.weight.shape
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            module.bias.data = 0.1 * torch.randn(size, generator=generator)


def _images(folder: Path, *, size: str) -> list[str]:
    """JPEG files of about the size asked for: blurred noise, at the quality that comes nearest."""
    folder.mkdir(parents=True, exist_ok=True)
    num_bytes, shape, count = SIZES[size]
    found = []
    for number in range(count):
        file = folder / f"{number}.jpg"
        if not file.exists():
            file.write_bytes(_jpeg(shape, number, num_bytes=num_bytes))
        found.append(str(file))
    return found


def _jpeg(shape: tuple[int, int], number: int, *, num_bytes: int) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (shape[1] // 12, shape[0] // 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(shape, Image.Resampling.BICUBIC), dtype=np.float32)
    noise = rng.standard_normal((*smooth.shape[:2], 1), dtype=np.float32) * 6
    image = Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    low, high = 5, 97
    while low < high:  # the lowest quality that is as large as asked for
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        low, high = (low, quality) if buffer.tell() >= num_bytes else (quality + 1, high)
    image.save(buffer := io.BytesIO(), "JPEG", quality=low)
    return buffer.getvalue()
