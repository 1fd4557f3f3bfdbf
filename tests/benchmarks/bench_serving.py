"""How many single images a second the endpoints answer, against the limit of the machine and against FastAPI.

One bundle is exported, published and promoted; `serving.app.run` serves it from two replicas, once behind Ray's Python
proxy and once behind HAProxy. The limit is two one-thread ONNX Runtime processes that decode and judge the same files
without any server, the second peer FastAPI + ONNX Runtime in two uvicorn workers. Everybody runs at the niceness of
Ray's workers but the load generator, a process of its own whose cost is stated and is taken from the same cores.
Sides alternate over rounds; answers are compared before speed is spoken of.

    .venv/bin/python tests/benchmarks/bench_serving.py --rounds 3
    .venv/bin/python tests/benchmarks/bench_serving.py --backbone resnet18 --rounds 3      random weights, heavier
    .venv/bin/python tests/benchmarks/bench_serving.py --quick          a smoke run; its figures mean nothing
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Child, entry, even_niceness, machine, mean, note, percentile, say_ready

PLANT = "bench"
CLASSES = ("ok", "dent", "scratch", "stain", "chip")
SIZES = {"10kB": (10_000, (320, 240)), "50kB": (50_000, (800, 600))}
"""Bytes of a JPEG and its pixels."""
SIDES = ("python", "haproxy", "limit", "fastapi", "bare")
TOLERANCE = 1e-4
START_TIMEOUT_S = 240


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of all sides."""
    if given.quick:
        given.seconds, given.warmup_s, given.rounds = 2.0, 0.5, 1
        given.sides = given.sides or ["python", "limit", "fastapi"]
    sides = given.sides or list(SIDES)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-serving-"))
    task = published(folder, given=given)
    found: list[dict[str, Any]] = []
    for turn in range(given.rounds):
        for side in sides:
            for size, row in _measured(side, task=task, folder=folder / f"turn{turn}", given=given).items():
                row |= {"side": side, "size": size}
                found.append(row)
                times = f"p50 {_ms(row, 50)} ms, p99 {_ms(row, 99)} ms"
                note(f"round {turn + 1}, {side}, {size}: {row['per_s']:.1f}/s, {times}")
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return figures(found, sides=sides, given=given)


# --- what is served


def published(folder: Path, *, given: argparse.Namespace) -> dict[str, Any]:
    """A bundle in a store, with policy, route and token, and images to send."""
    from cluster.access import Access
    from cluster.registry import Bundles, Journal
    from cluster.settings import Settings
    from cluster.storage import LocalStore
    from plants.costs import Policy

    images = {size: _images(folder / "images" / size, size=size, count=given.images) for size in SIZES}
    store = LocalStore(folder / "store")
    settings = Settings(home=folder / "home", slots=given.replicas)
    trunk, bundle_folder = _exported(folder / "exports", images=images["10kB"], given=given, bundles=Bundles(store))
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
        "token": token,
        "files": images,
        "seconds": given.seconds,
        "warmup_s": given.warmup_s,
        "connections": given.connections,
    }


def _exported(folder: Path, *, images: list[str], given: argparse.Namespace, bundles: Any) -> tuple[Path, Path]:
    """The trunk's file and a bundle's folder. The head is random, spread so that images get different answers."""
    import torch

    from jobs.backbone import load_backbone
    from jobs.compress import BranchExporter, Evaluator, export_trunk
    from jobs.model import CutModel
    from plants import bundle
    from plants.bundle import Manifest, PlantView, TrunkRef
    from plants.geometry import Environment
    from plants.images import decode
    from plants.plant import Trunk
    from plants.views import views

    spec = Trunk(backbone=given.backbone, weights=given.weights, size_px=given.size_px, cuts=(0, given.cut or 1))
    backbone = load_backbone(spec)
    if given.weights == "none":
        _randomise_norms(backbone.net)
    model = CutModel(spec, backbone)
    bundle_folder = folder / "bundle"
    bundle_folder.mkdir(parents=True, exist_ok=True)
    trunk = folder / "trunk.onnx"
    sha256 = export_trunk(model, trunk)
    environment = Environment()
    pixels = [decode(Path(file).read_bytes()) for file in images]
    seen = [
        views(
            p,
            geometry=environment.geometry,
            photometry=environment.photometry,
            size_px=spec.size_px,
            interpolation=model.interpolation,
        ).pixels
        for p in pixels
    ]
    features = torch.from_numpy(Evaluator(trunk).activations(np.concatenate(seen), batch=8)[0])
    branch = model.new_branch(given.cut, CLASSES)
    generator = torch.Generator().manual_seed(0)
    scale = 2 / (features.std(0) * features.shape[1] ** 0.5).clamp_min(1e-3)
    weight = torch.randn(len(CLASSES), features.shape[1], generator=generator) * scale
    branch.adopt_head(weight, -weight @ features.mean(0), CLASSES)
    BranchExporter(model, given.cut).write(branch, bundle_folder / "branch.onnx")
    manifest = Manifest(
        kind="own",
        run_id="bench",
        name="bench",
        plants=(PLANT,),
        leaves=CLASSES,
        trunk=TrunkRef(
            sha256=sha256,
            backbone=spec.backbone,
            weights_digest=model.weights_digest,
            size_px=spec.size_px,
            interpolation=model.interpolation,
            cuts=model.cuts,
        ),
        cut=given.cut,
        tier="branch" if given.cut else "head",
        branch_inputs="map" if given.cut else "features",
        serves={
            PLANT: PlantView(
                classes=CLASSES,
                ok=("ok",),
                leaf_sets={name: (name,) for name in CLASSES},
                environments={"cam": environment},
            )
        },
        seed=0,
        code_version="bench",
        created_at="",
    )
    bundle.write(bundle_folder, manifest)
    bundles.publish_trunk(trunk)
    return trunk, bundle_folder


def _randomise_norms(net: Any) -> None:
    """Norms as a trained network has them: timm's random ones end in zeros, and a runtime could skip the work."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            size = module.weight.shape
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            module.bias.data = 0.1 * torch.randn(size, generator=generator)


def _images(folder: Path, *, size: str, count: int) -> list[str]:
    """JPEG files of about the size asked for: blurred noise, at the quality that comes nearest."""
    folder.mkdir(parents=True, exist_ok=True)
    num_bytes, shape = SIZES[size]
    found = []
    for number in range(count):
        data = min((_jpeg(shape, number, q) for q in range(30, 97, 3)), key=lambda data: abs(len(data) - num_bytes))
        (folder / f"{number}.jpg").write_bytes(data)
        found.append(str(folder / f"{number}.jpg"))
    return found


def _jpeg(shape: tuple[int, int], number: int, quality: int) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (shape[1] // 12, shape[0] // 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(shape, Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = np.clip(smooth + rng.normal(0, 6, (*smooth.shape[:2], 1)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# --- the sides


def _measured(side: str, *, task: dict[str, Any], folder: Path, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Size -> what the load generator found at this side's server, or what the limit did without one."""
    wait_s = given.seconds + given.warmup_s + 180
    if side == "limit":
        return {
            size: Child(__file__, "limit", {**task, "images": files}, folder=folder / side / size).result(
                timeout_s=wait_s
            )
            for size, files in task["files"].items()
        }
    ready = folder / side / "ready.json"
    role = "ours" if side in ("python", "haproxy") else "uvicorn"
    env = {"RAY_SERVE_ENABLE_HA_PROXY": "0"} if side == "python" else {}
    server = Child(__file__, role, {**task, "side": side, "ready": str(ready)}, folder=folder / side, env=env)
    try:
        url = server.ready(ready, timeout_s=START_TIMEOUT_S)["url"]
        headers = [f"Authorization: Bearer {task['token']}"]
        return {
            size: Child(
                __file__, "load", {**task, "url": url, "headers": headers, "images": files}, folder=folder / side / size
            ).result(timeout_s=wait_s)
            for size, files in task["files"].items()
        }
    finally:
        server.release(timeout_s=60)


def ours(task: dict[str, Any]) -> None:
    """The endpoints as `crossplant serve --replicas 2` starts them, until the comparison lets go."""
    from cluster import session
    from cluster.settings import Settings
    from serving import app

    settings = Settings(home=Path(task["home"]), slots=task["replicas"])
    address = app.run(
        settings, store_uri=task["store"], fleet="bench", plants=[PLANT], port=0, num_replicas=task["replicas"]
    )
    say_ready(task["ready"], url=f"{address}/plants/{PLANT}/predict")
    app.stop("bench")
    session.stop()


def uvicorn(task: dict[str, Any]) -> None:
    """Two uvicorn workers on one socket, of FastAPI around ONNX Runtime, or of crossplant's app without Ray."""
    import subprocess
    import sys
    import time

    import httpx
    from plain_serving import TASK

    factory, path = ("make_our_app", f"/plants/{PLANT}/predict") if task["side"] == "bare" else ("make_app", "/predict")
    port = _free_port()
    options = ["--workers", str(task["replicas"]), "--port", str(port), "--log-level", "error", "--no-access-log"]
    command = [sys.executable, "-m", "uvicorn", "--factory", f"plain_serving:{factory}", *options]
    server = subprocess.Popen(command, env={**os.environ, TASK: json.dumps(task)})
    try:
        while server.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        time.sleep(2)  # the other worker
        say_ready(task["ready"], url=f"http://127.0.0.1:{port}{path}")
    finally:
        server.terminate()
        server.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def limit(task: dict[str, Any]) -> dict[str, Any]:
    """As many one-thread processes as there are replicas, without a server."""
    import plain_serving

    even_niceness()
    return plain_serving.limit(task, num_processes=task["replicas"])


def load(task: dict[str, Any]) -> dict[str, Any]:
    """The load generator."""
    from load import generate

    return generate(task)


# --- figures


def figures(found: list[dict[str, Any]], *, sides: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """What was measured, each side as a fraction of the limit at every size."""
    table = {side: {size: _summary(_rows(found, side, size)) for size in SIZES} for side in sides}

    def ratio(side: str, to: str) -> float | None:
        if side not in table or to not in table:
            return None
        return round(min(table[side][size]["per_s"] / table[to][size]["per_s"] for size in SIZES), 3)

    proxies = [side for side in ("python", "haproxy") if side in table]
    best = max(proxies, key=lambda side: ratio(side, "limit") or table[side]["10kB"]["per_s"], default=None)
    return {
        "name": "serving",
        "ratio": ratio(best, "limit") if best else None,
        "ratio_fastapi": ratio(best, "fastapi") if best else None,
        "faster_proxy": best if len(proxies) == 2 else None,
        "ratios_to_limit": {side: ratio(side, "limit") for side in sides if side != "limit"},
        "ours": table.get(best or ""),
        "peer": {"what": "the limit: ONNX Runtime with decode, no server", **(table.get("limit") or {})},
        "sides": table,
        "equal_quality": _equality(found, sides=sides),
        "is_smoke_run": given.quick,
        "backbone": f"{given.backbone}, weights {given.weights}, {given.size_px} px, branch at cut {given.cut}",
        "connections": given.connections,
        "seconds": given.seconds,
        "rounds": given.rounds,
        "machine": machine(
            threads={"replicas": given.replicas, "replica": 1, "limit": f"{given.replicas} processes of 1"}
        ),
    }


def _rows(found: list[dict[str, Any]], side: str, size: str) -> list[dict[str, Any]]:
    return [row for row in found if row["side"] == side and row["size"] == size]


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = [ms for row in rows for ms in row["latencies_ms"]]
    summary: dict[str, Any] = {
        "per_s": round(mean([row["per_s"] for row in rows]) or 0.0, 1),
        "per_s_by_round": [round(row["per_s"], 1) for row in rows],
        "p50_ms": round(percentile(latencies, 50) or 0.0, 2),
        "p99_ms": round(percentile(latencies, 99) or 0.0, 2),
    }
    if "generator_cpu" in rows[0]:
        summary["generator_cores"] = round(mean([row["generator_cpu"] for row in rows]) or 0.0, 3)
        summary["generator_ms_a_request"] = round(mean([row["generator_ms_a_request"] for row in rows]) or 0.0, 3)
        summary["num_failed"] = sum(row["num_failed"] for row in rows)
    return summary


def _equality(found: list[dict[str, Any]], *, sides: list[str]) -> dict[str, Any]:
    """Whether every side gives the same probabilities for every image as the first one does."""
    worst, flips, num = 0.0, 0, 0
    for size in SIZES:
        rows = [row for row in found if row["size"] == size]
        expected = _matrix(rows[0]["answers"])
        for row in rows[1:]:
            values = _matrix(row["answers"])
            worst = max(worst, float(np.abs(values - expected).max()))
            flips += int((values.argmax(1) != expected.argmax(1)).sum())
            num += len(values)
    kinds = {int(value) for row in found for value in _matrix(row["answers"]).argmax(1)}
    return {
        "is_equal": flips == 0 and worst <= TOLERANCE,
        "compared": num,
        "flips": flips,
        "largest_difference": worst,
        "different_answers": len(kinds),
        "sides": sides,
    }


def _matrix(answers: list[dict[str, float]]) -> np.ndarray:
    return np.array([[answer[name] for name in CLASSES] for answer in answers])


def _ms(row: dict[str, Any], q: float) -> str:
    value = percentile(row["latencies_ms"], q)
    return "-" if value is None else f"{value:.1f}"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seconds a side, Python proxy only: a smoke run")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: all; bare is our app without Ray")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load at each side, size and round")
    parser.add_argument("--warmup-s", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=1, help="sides alternate")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--images", type=int, default=16, help="files of each size")
    parser.add_argument("--backbone", default="test_resnet", help="a timm backbone")
    parser.add_argument("--weights", help="embedded, none or a file; none for a backbone that is not the embedded one")
    parser.add_argument("--size-px", type=int, help="128 for the embedded backbone, else 224")
    parser.add_argument("--cut", type=int, default=1, help="0: a head on pooled features; 1: the last stage too")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    return parser


def _filled(given: argparse.Namespace) -> dict[str, Any]:
    is_embedded = given.backbone == "test_resnet"
    given.weights = given.weights or ("embedded" if is_embedded else "none")
    given.size_px = given.size_px or (128 if is_embedded else 224)
    return compare(given)


if __name__ == "__main__":
    entry({"ours": ours, "uvicorn": uvicorn, "limit": limit, "load": load}, parser=arguments(), compare=_filled)
