"""INT8 against float32 in ONNX Runtime: speed and bytes of trunk and last stage, and what the real plants lose by it.

Float and INT8 run in turns in this process, one image at a time, one thread; times are the thread's own. Quality is the
product's own gate: own models of the three real plants (last stage, a few epochs) on their `decide` parts, as exported
files. ResNet-18 has random weights with randomised norms, so that its quality is not measured. Needs
CROSSPLANT_REAL_DATA and CROSSPLANT_WEIGHTS (default ../shared/data, ../shared/weights) for the plants. Prints one JSON
object last.

    python tests/benchmarks/bench_int8.py            # the embedded backbone, mobilenetv2_035, resnet18
    python tests/benchmarks/bench_int8.py --quick    # resnet18 alone: no plants
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_real import fleet as real_fleet
from measuring import ROOT, machine, note

sys.path.insert(0, str(ROOT))

from cluster.catalog import Catalog
from cluster.imports import import_plant
from cluster.settings import Settings
from cluster.storage import PlantFiles
from jobs.compress import BranchExporter, export_trunk
from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.int8 import Workshop, climb
from jobs.int8_gate import Judged
from jobs.ladder import kept, sentence
from jobs.material import Material
from jobs.parity import open_session
from jobs.quantise import prepared, quantise
from jobs.recipe import Recipe, Stage
from jobs.scoring import Exports
from plants.errors import InputError
from plants.plant import load_fleet
from plants.variants import speed, worst_loss
from tests.jobs.nets import images, model_of

BACKBONES = ("embedded", "mobilenetv2_035")
ROUNDS = 60
GOALS = {"speed_resnet": 2.5, "smaller": 3.8, "points_lost": 1.0}


def timed(trunks: tuple[Path, Path], branches: tuple[Path, Path], image: np.ndarray) -> dict[str, float]:
    """Milliseconds of one image through trunk and branch by both variants, and their bytes."""

    def once(trunk: Path, branch: Path) -> Any:
        first, second = open_session(str(trunk)), open_session(str(branch))
        return lambda: second.run(["logits"], {"activation": first.run(["cut1"], {"images": image})[0]})

    found = speed(*(once(*pair) for pair in zip(trunks, branches, strict=True)), rounds=ROUNDS)
    sizes = [trunk.stat().st_size + branch.stat().st_size for trunk, branch in zip(trunks, branches, strict=True)]
    return {
        "float_ms": round(found.float_ms, 3),
        "int8_ms": round(found.int8_ms, 3),
        "ratio": round(found.ratio, 2),
        "float_bytes": sizes[0],
        "int8_bytes": sizes[1],
        "smaller": round(sizes[0] / sizes[1], 2),
    }


def drawn(backbone: str, *, size_px: int, folder: Path) -> dict[str, Any]:
    """A backbone with random weights: speed and bytes, no quality."""
    model = model_of(backbone, cuts=(0, 1), size_px=size_px)
    export_trunk(model, folder / "trunk.onnx")
    BranchExporter(model, 1).write(model.new_branch(1, ["ok", "dent", "scratch"]).eval(), folder / "branch.onnx")
    shown = images(16, size_px=size_px)
    (values,) = open_session(str(folder / "trunk.onnx")).run(["cut1"], {"images": shown})
    for name, inputs in (("trunk", shown), ("branch", values)):
        prepared(folder / f"{name}.onnx", folder / f"{name}.float.onnx")
        quantise(folder / f"{name}.float.onnx", folder / f"{name}.int8.onnx", inputs=inputs)
    trunks, branches = ((folder / f"{name}.onnx", folder / f"{name}.int8.onnx") for name in ("trunk", "branch"))
    return {**timed(trunks, branches, shown[:1]), "quality": "not measured: random weights"}


def plants(backbone: str, *, folder: Path, data: Path, weights: Path, epochs: int) -> dict[str, Any]:
    """The real plants' own models on this backbone through the product's ladder and gate."""
    fleet = load_fleet(real_fleet(folder, backbone=backbone, data=data, weights=weights))
    catalog, settings = Catalog.of(fleet), Settings(home=folder / "home")
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
        note(f"{backbone}: {plant.name} imported")
    recipe = Recipe(stages=(Stage(cut=1, epochs=epochs),), views=1)
    material = Material(fleet, cache=settings.cache, recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, seeds=(0,))
    runs = [run for run in plan.runs if run.kind == "own"]
    for run in sorted((r for r in plan.runs if r.kind in ("frozen", "own", "normality")), key=lambda r: len(r.sources)):
        fit_run(run, material=material, plan=plan)
    note(f"{backbone}: {len(runs)} own models trained")
    given = {"kind": "own", "weights": None, "rule": None, "bundle": ""}
    judged = [Judged(str(run.target), run.run_id, {**given, "members": [run.run_id]}) for run in runs]
    exports = Exports(material, plan=plan)
    workshop = Workshop(exports, judged, {run.run_id: [str(run.target)] for run in runs}, folder)
    tried, files = climb(workshop, say=note)
    found = kept(tried)
    assert files is not None
    last = found or tried[-1]
    deepest = max(workshop.runs, key=lambda run: (exports.words(run)["cut"], run))
    branches = (exports.branch(deepest)[2], files.branches.get(deepest) or exports.branch(deepest)[2])
    at_cut = exports.words(deepest)["cut"]
    lost = worst_loss(last.gates)
    return {
        **(timed((material.trunk_path, files.trunk), branches, workshop.trunk[1][:1]) if at_cut == 1 else {}),
        "cut": at_cut,
        "decision": sentence(tried),
        "kept": found is not None,
        "points_lost": None if lost is None else round(100 * lost, 2),
        "plants": {
            name: {
                "n": gate.n,
                "macro_f1": [gate.macro_f1.float32, gate.macro_f1.int8],
                "flips": gate.flips,
                "verdict_flips": gate.verdict_flips,
            }
            for name, gate in last.gates.items()
        },
        "rungs": {one.rung.name: one.faults or ["holds"] for one in tried},
    }


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="resnet18 alone")
    parser.add_argument("--epochs", type=int, default=5, help="of the last stage at the real plants")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", ROOT.parent / "shared" / "data"))
    weights = Path(os.environ.get("CROSSPLANT_WEIGHTS", ROOT.parent / "shared" / "weights"))
    begun, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "resnet18")
        folder.mkdir()
        found["resnet18"] = drawn("resnet18", size_px=224, folder=folder)
        note(f"resnet18: {found['resnet18']}")
        for backbone in () if args.quick else BACKBONES:
            folder = Path(scratch, backbone)
            folder.mkdir()
            if not data.is_dir():
                found[backbone] = {"quality": "not measured: no real plants here"}
                continue
            try:
                found[backbone] = plants(backbone, folder=folder, data=data, weights=weights, epochs=args.epochs)
            except InputError as error:
                found[backbone] = {"quality": f"not measured: {error}"}
            note(f"{backbone}: {found[backbone]}")
    ours = found["resnet18"]
    lost = [row["points_lost"] for row in found.values() if row.get("points_lost") is not None]
    print(
        json.dumps(
            {
                "name": "int8",
                "ratio": ours["ratio"],
                "ours": ours["int8_ms"],
                "peer": ours["float_ms"],
                "equal_quality": {"worst_points_lost": max(lost, default=None)},
                "smaller": ours["smaller"],
                "goals": GOALS,
                "backbones": found,
                "seconds": round(time.monotonic() - begun, 1),
                "machine": machine(threads={"onnxruntime": 1, "torch": 1}),
            }
        )
    )


if __name__ == "__main__":
    main()
