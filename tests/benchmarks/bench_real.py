"""The three real plants from import to the sealed test, with the embedded backbone and with ImageNet weights.

Two steel mills that share classes and a tile maker with money. Needs CROSSPLANT_REAL_DATA (default ../shared/data) and,
for the ImageNet backbones, CROSSPLANT_WEIGHTS (default ../shared/weights). Prints one JSON object last.

    python tests/benchmarks/bench_real.py --backbone embedded --backbone mobilenetv2_035
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

MILLS = {
    "neu": {
        "crazing": "crazing",
        "inclusion": "inclusion",
        "patches": "patches",
        "pitted_surface": "pitted_surface",
        "rolled-in_scale": "scale",
        "scratches": "scratch",
    },
    "xsdd": {
        "finishing_roll_printing": "finishing_roll_printing",
        "iron_sheet_ash": "iron_sheet_ash",
        "oxide_scale_of_plate_system": "scale",
        "oxide_scale_of_temperature_system": "scale",
        "red_iron": "red_iron",
        "slag_inclusion": "inclusion",
        "surface_scratch": "scratch",
    },
}
MAGNETIC = {"free": "ok", **{name: name for name in ("blowhole", "break", "crack", "fray", "uneven")}}


def fleet(folder: Path, *, backbone: str, data: Path, weights: Path) -> Path:
    """The fleet file of the three plants on one backbone.

    Input size and pooling of the ImageNet files were chosen by cross-validation without the test's rows, see README.
    They go back to TensorFlow's, evaluated with bilinear resizing; timm's of the same name are bicubic.
    """
    trunks = {
        "embedded": {"size_px": 128, "cuts": [0, 1, 2], "options": {"global_pool": "catavgmax"}},
        "mobilenetv2_035": {
            "backbone": "mobilenetv2_035",
            "weights": str(weights / "mobilenetv2_035.keras_in1k_notop.safetensors"),
            "size_px": 224,
            "interpolation": "bilinear",
            "cuts": [0, 1],
            "options": {"pad_type": "same", "global_pool": "catavgmax"},
        },
        "mobilenetv2_100": {
            "backbone": "mobilenetv2_100",
            "weights": str(weights / "mobilenetv2_100.coral_in1k.fp16.safetensors"),
            "size_px": 224,
            "interpolation": "bilinear",
            "cuts": [0, 1],
            "options": {"pad_type": "same", "global_pool": "catavgmax"},
        },
    }
    geometry = {"geometry": {"fit": "letterbox"}}
    plants: list[dict[str, Any]] = [
        {"name": name, "images": str(data / "steel" / name), "classes": classes} for name, classes in MILLS.items()
    ]
    plants.append(
        {
            "name": "magnetic",
            "images": str(data / "magnetic"),
            "classes": MAGNETIC,
            "ok": ["free"],
            "environment_pattern": "/(exp[0-9])_",
            "environments": {f"exp{n}": geometry for n in range(7)},
        }
    )
    path = folder / "real.yaml"
    raw = {"fleet": "real", "store": str(folder / "store"), "trunks": [trunks[backbone]], "plants": plants}
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return path


def walk(
    backbone: str, *, folder: Path, seed: int, data: Path, weights: Path, show: Console, copies: bool = True
) -> dict[str, Any]:
    """import, audit, train, compare, evaluate, publish, serve, predict; the sealed figures of every plant."""
    from cluster.settings import Settings
    from jobs import release, verbs, verdicts
    from plants.plant import load_fleet

    start = time.monotonic()
    loaded = load_fleet(fleet(folder, backbone=backbone, data=data, weights=weights))
    loaded = loaded.model_copy(update={"seed": seed})
    names = [plant.name for plant in loaded.plants]
    settings = Settings(home=folder / "home")
    imported = verbs.import_fleet(loaded, names=names, show=show, cache=settings.cache if copies else None)
    audited = verbs.audit_fleet(loaded, settings=settings, names=names, show=Console(quiet=True), is_looking=False)
    findings = audited["findings"]
    verbs.train(loaded, settings=settings, recipe_file=None, seeds=(seed,), leave_out=(), retry_failed=False, show=show)
    compared = verdicts.compare(loaded, settings=settings, show=show)
    sealed = verdicts.evaluate(loaded, settings=settings, names=names, show=show)
    release.publish(loaded, settings=settings, names=names, show=show)
    answered = _answers(loaded, settings=settings)
    pooled_sealed = pooled_against_own(loaded, settings=settings, seed=seed)
    pooled = compared["matrix"].get(f"pooled-s{seed}", {})
    own = {name: compared["matrix"][f"own-{name}-s{seed}"][name]["macro_f1"] for name in MILLS}
    keys = ("model", "macro_f1", "macro_f1_low", "macro_f1_high", "cost", "cost_low", "cost_high", "auc", "n")
    return {
        "seconds": round(time.monotonic() - start, 1),
        "sealed": {name: {key: row[key] for key in keys} for name, row in sealed["plants"].items()},
        "frozen": {name: (row.get("frozen") or row)["macro_f1"] for name, row in sealed["plants"].items()},
        "pooled_minus_own": {name: pooled[name]["macro_f1"] - own[name] for name in MILLS if name in pooled},
        "pooled_minus_own_sealed": pooled_sealed,
        "endpoints_answer_as_bundles": answered,
        "quarantined": {row["plant"]: len(row["quarantined"]) for row in imported["plants"]},
        "errors_of_audit": [f["kind"] for f in findings if f["level"] == "error"],
    }


def pooled_against_own(fleet: Any, *, settings: Any, seed: int) -> dict[str, dict[str, float | None]]:
    """Mill -> macro-F1 of the pooled model minus own's on the sealed test, with its interval; a counted opening."""
    from datetime import UTC, datetime

    from cluster.storage import open_store
    from jobs.evaluate import open_test
    from jobs.scoring import role_inputs
    from jobs.verdicts import exports_of, latest_plan
    from plants.differences import paired

    exports = exports_of(fleet, settings=settings, plan=latest_plan(open_store(fleet.store)))
    found = {}
    for name in MILLS:
        runs = (f"pooled-s{seed}", f"own-{name}-s{seed}")
        counted = {"who": "bench_real", "bundles": runs, "now": datetime.now(UTC), "budget": settings.budget}
        rows = open_test(name, catalog=exports.material.catalog, **counted)
        inputs = role_inputs(name, role="test", exports=exports, rows=rows)
        leaf_sets = fleet.leaf_sets(fleet.plant(name))
        scores = [inputs.scores([inputs.probabilities(run)], leaf_sets=leaf_sets) for run in runs]
        difference = paired(*scores)
        found[name] = {key: difference[key] for key in ("diff", "low", "high")}
    return found


def _answers(fleet: Any, *, settings: Any) -> dict[str, str]:
    """Plant -> how many frames of the test got the same verdict and probabilities by HTTP and from the bundle."""
    import numpy as np

    from cluster import session
    from cluster.catalog import Catalog
    from cluster.registry import Journal
    from serving import app
    from serving.verbs import predict_files, serve_fleet

    served = serve_fleet(fleet, settings=settings, host="127.0.0.1", port=0)
    found = {}
    for name in served["plants"]:
        rows = Catalog.of(fleet).rows(name)
        row = rows[rows["role"] == "test"].iloc[0]
        same = rows[(rows["role"] == "test") & (rows["environment"] == row["environment"])]["frame"][:5]
        files = [Path(fleet.plant(name).images) / frame for frame in same]
        asked = {"settings": settings, "plant": name, "environment": row["environment"]}
        route = Journal(settings.journal_url).route(name)
        bundle = Path(fleet.store) / "bundles" / route.bundle
        policy = Path(fleet.store) / "policies" / f"{route.policy}.json"
        http = predict_files(files, **asked, address=served["address"])["predictions"]
        disk = predict_files(files, **asked, bundle=bundle, policy=policy)["predictions"]
        equal = [
            a["verdict"] == b["verdict"]
            and np.allclose(list(a["probabilities"].values()), list(b["probabilities"].values()), atol=1e-5)
            for a, b in zip(http, disk, strict=True)
        ]
        found[name] = f"{sum(equal)} of {len(files)}"
    app.stop(fleet.fleet)
    session.stop()
    return found


def main() -> None:
    """Every backbone asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", action="append", choices=["embedded", "mobilenetv2_035", "mobilenetv2_100"])
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--quick", action="store_true", help="the embedded backbone, one seed")
    parser.add_argument("--no-copies", action="store_true", help="import --no-copies: each image is a lot of its own")
    asked = parser.parse_args()
    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data")).resolve()
    weights = Path(os.environ.get("CROSSPLANT_WEIGHTS", "../shared/weights")).resolve()
    if not data.is_dir():
        raise SystemExit(f"the real plants are not at {data}: set CROSSPLANT_REAL_DATA")
    show = Console(stderr=True)
    figures: dict[str, Any] = {}
    every = ["embedded"] if asked.quick else ["embedded", "mobilenetv2_035", "mobilenetv2_100"]
    for backbone in asked.backbone or every:
        for seed in asked.seed or ([0] if asked.quick else [0, 1, 2]):
            with tempfile.TemporaryDirectory() as folder:
                given: dict[str, Any] = {"seed": seed, "data": data, "weights": weights, "show": show}
                figures[f"{backbone}-s{seed}"] = walk(
                    backbone, folder=Path(folder), copies=not asked.no_copies, **given
                )
    print(json.dumps({"name": "real", "cpus": os.cpu_count(), "figures": figures}))


if __name__ == "__main__":
    main()
