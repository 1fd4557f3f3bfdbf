"""What `bench_plants.py` serves: a thousand plants on one trunk, each with a head, some with a last stage."""

from __future__ import annotations

import argparse
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from served import CLASSES, SIZES, _images, _quantised, _randomise_norms, _views

BRANCH_SHARE = 0.05
RANK = 8


def names(kind: str, num: int) -> list[str]:
    """The plants of a fleet of that size: on heads, or one in twenty on a last stage of its own; or all of a kind."""
    if kind in ("adapters", "stages"):
        return [f"{kind.removesuffix('s')}-{i:05d}" for i in range(num)]
    num_branches = max(1, round(num * BRANCH_SHARE)) if kind == "mixed" else 0
    heads = [f"head-{i:05d}" for i in range(num - num_branches)]
    return heads + [f"stage-{i:05d}" for i in range(num_branches)]


def published(folder: Path, *, given: argparse.Namespace) -> dict[str, Any]:
    """Bundles, policies, routes and tokens of all plants, and the task that every side gets."""
    from cluster.access import Access
    from cluster.registry import Bundles, Journal
    from cluster.settings import Settings
    from cluster.storage import LocalStore

    images = _images(folder / "images", size=given.image)
    store = LocalStore(folder / "store")
    settings = Settings(home=folder / "home", slots=1)
    bundles, journal, access = Bundles(store), Journal(settings.journal_url), Access(settings.journal_url)
    plants = sorted({name for num in given.plants for kind in given.kinds for name in names(kind, num)})
    tokens, bundle_of = {}, {}
    for plant, bundle_folder in _exported(folder / "exports", plants=plants, images=images, given=given):
        digest = bundles.publish(bundle_folder)
        policy = _policy(plant, digest)
        store.write(f"policies/{policy.digest}.json", policy.to_json().encode())
        journal.promote(plant, bundle=digest, policy=policy.digest, who="bench")
        tokens[plant] = access.issue("plant", plant=plant, ttl=timedelta(days=1))
        bundle_of[plant] = str(bundle_folder)
    for name in ("trunk.onnx", "stages.onnx"):
        if (folder / "exports" / name).exists():
            bundles.publish_trunk(folder / "exports" / name)
    return {
        "store": store.uri,
        "home": str(settings.home),
        "trunk": str(folder / "exports" / "trunk.onnx"),
        "tokens": tokens,
        "bundles": bundle_of,
        "images": images,
        "seconds": given.seconds,
        "warmup_s": given.warmup_s,
        "connections": given.connections,
        "branch_mb": given.branch_mb,
    }


def home_of(task: dict[str, Any], *, plants: list[str]) -> Path:
    """A home whose journal and tokens are these plants' alone, as if there were no others."""
    home = Path(task["home"]).with_name(f"home-{task['kind']}-{len(plants)}")
    if not home.exists():
        home.mkdir()
        with (
            closing(sqlite3.connect(Path(task["home"]) / "routes.db")) as whole,
            closing(sqlite3.connect(home / "routes.db")) as own,
        ):
            whole.backup(own)
            marks = ", ".join("?" * len(plants))
            for table in ("routes", "tokens"):
                own.execute(f"DELETE FROM {table} WHERE plant NOT IN ({marks})", plants)
            own.commit()
    return home


def _policy(plant: str, bundle: str) -> Any:
    from plants.costs import Policy

    return Policy(plant=plant, bundle=bundle, classes=CLASSES, ok=("ok",), pass_below=0.2, reject_above=0.6)


def _exported(folder: Path, *, plants: list[str], images: list[str], given: argparse.Namespace) -> Any:
    """Each plant with its bundle's folder; heads are drawn, spread so that plants and images get different answers."""
    import torch

    from jobs.backbone import load_backbone
    from jobs.compress import BranchExporter, Evaluator, export_trunk
    from jobs.factors import split
    from jobs.model import CutModel
    from plants import hashing
    from plants.plant import Trunk

    spec = Trunk(backbone=given.backbone, weights=given.weights, size_px=given.size_px, cuts=(0, 1))
    backbone = load_backbone(spec)
    if given.weights == "none":
        _randomise_norms(backbone.net)
    model = CutModel(spec, backbone)
    folder.mkdir(parents=True, exist_ok=True)
    trunk, is_int8 = folder / "trunk.onnx", getattr(given, "int8", False)
    export_trunk(model, trunk)
    seen = _views(images, size_px=spec.size_px, interpolation=model.interpolation)
    if is_int8:
        _quantised(trunk, inputs=seen)
    sha256, evaluator = hashing.sha256(trunk.read_bytes()), Evaluator(trunk)
    features = torch.from_numpy(evaluator.activations(seen, batch=8)[0])
    rng = np.random.default_rng(0)
    probes = rng.integers(0, 256, (32, spec.size_px, spec.size_px, 3), dtype=np.uint8)
    activations = evaluator.activations(probes, batch=8)
    exporters = {cut: BranchExporter(model, cut) for cut in (0, 1)}
    for number, plant in enumerate(plants):
        cut = 0 if plant.startswith("head") else 1
        branch = model.new_branch(cut, CLASSES)
        if is_adapter := plant.startswith("adapter"):
            _adapt(branch, shape=model.shapes[cut], seed=number)
        generator = torch.Generator().manual_seed(number)
        scale = 2 / (features.std(0) * features.shape[1] ** 0.5).clamp_min(1e-3)
        weight = torch.randn(len(CLASSES), features.shape[1], generator=generator) * scale
        branch.adopt_head(weight, -weight @ features.mean(0), CLASSES)
        where = folder / plant
        where.mkdir(exist_ok=True)
        exporters[cut].write(branch, where / "branch.onnx")
        if is_int8 and cut:
            _quantised(where / "branch.onnx", inputs=evaluator.activations(seen, batch=8)[cut])
        logits, _ = evaluator.branch(where / "branch.onnx", activations[cut])
        np.savez(where / "probe.npz", inputs=probes, logits=logits)
        stages = None
        if is_adapter:
            found = split(branch, model=model, rank=RANK)
            assert found is not None
            (folder / "stages.onnx").write_bytes(found.stages)
            stages = hashing.sha256(found.stages)
            np.savez(where / "factors.npz", **found.factors)
            (where / "adapter.safetensors").write_bytes(b"")
        _write(where, plant=plant, cut=cut, model=model, sha256=sha256, given=given, stages=stages)
        yield plant, where


def _adapt(branch: Any, *, shape: tuple[int, ...], seed: int) -> None:
    """The branch is as if it had learned by adapters, merged."""
    import torch

    from jobs import lora

    chosen = lora.choose(branch, rank=RANK, sample=torch.zeros(1, *shape))
    lora.attach(branch, rank=RANK, layers=chosen.layers, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in branch.named_parameters():
            if ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
    lora.merge(branch)


def _write(
    folder: Path, *, plant: str, cut: int, model: Any, sha256: str, given: argparse.Namespace, stages: str | None
) -> None:
    from jobs.recipe import Recipe
    from plants import bundle
    from plants.bundle import Manifest, PlantView, TrunkRef
    from plants.geometry import Environment

    leaf_sets = {name: (name,) for name in CLASSES}
    view = PlantView(classes=CLASSES, ok=("ok",), leaf_sets=leaf_sets, environments={"cam": Environment()})
    trunk = TrunkRef(
        sha256=sha256,
        backbone=given.backbone,
        weights_digest=model.weights_digest,
        size_px=given.size_px,
        interpolation=model.interpolation,
        cuts=model.cuts,
    )
    manifest = Manifest(
        kind="own",
        run_id=plant,
        name=f"bench/{plant}",
        plants=(plant,),
        leaves=CLASSES,
        trunk=trunk,
        cut=cut,
        tier="adapter" if stages else "branch" if cut else "head",
        stages=stages,
        branch_inputs="map" if cut else "features",
        serves={plant: view},
        seed=0,
        recipe=Recipe().model_dump(mode="json"),
        code_version="bench",
        created_at="",
    )
    bundle.write(folder, manifest)


def requests_of(
    task: dict[str, Any], *, plants: list[str], url: str, side: str, num: int = 2048, in_turn: bool = False
) -> list[bytes]:
    """Requests of plants drawn at random, evenly, or of each in turn, an image each."""
    from urllib.parse import urlsplit

    target, rng = urlsplit(url), np.random.default_rng(1)
    bodies = [Path(file).read_bytes() for file in task["images"]]
    found = []
    for number in range(num):
        plant = plants[number % len(plants) if in_turn else int(rng.integers(len(plants)))]
        body = bodies[number % len(bodies)]
        path = f"/plants/{plant}/predict" if side == "ours" else "/"
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {target.hostname}:{target.port}",
            "Content-Type: image/jpeg",
            f"Authorization: Bearer {task['tokens'][plant]}",
            f"serve_multiplexed_model_id: {plant}",
            f"Content-Length: {len(body)}",
        ]
        found.append(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
    return found


__all__ = ["CLASSES", "SIZES", "home_of", "names", "published", "requests_of"]
